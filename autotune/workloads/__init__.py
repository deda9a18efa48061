"""Training programs that can run at different settings; the only importers of torch, jax and envpool.

The module that the registry names is light (a parent process imports it to check values);
the framework is imported by `Workload.open`, in the child.
"""
