"""``python -m autotune``."""

from autotune.cli import entry

entry()
