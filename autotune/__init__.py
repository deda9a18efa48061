"""autotune: finds, writes down and runs the training settings that make the most of a rented GPU."""

from autotune.progress import tick

__all__ = ["__version__", "tick"]
__version__ = "0.1.0"
