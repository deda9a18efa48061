"""Measuring one point, seen from the parent: recipes and probes."""
