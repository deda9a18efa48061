"""Readings over time of the device and the host, taken in the parent."""
