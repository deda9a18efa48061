"""Measurements for other programs: rows by name, as CSV, JSON lines or pytest-benchmark's JSON."""
