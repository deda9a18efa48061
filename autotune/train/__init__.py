"""Executing a manifest under supervision."""
