"""The child side: one process of one workload, measured or trained."""
