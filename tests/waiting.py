"""Waiting for what another process does."""

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Whether something comes true in time."""
    deadline_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()
