"""Ways to carry out a probe: isolated subprocesses, or replay of a recorded surface."""
