"""`autotune.tick(steps)`: two lines in a script that let autotune count its steps.

Light on purpose: a training script imports it. Outside a probe it only adds up a number.

The pipe carries lines ``<process id> <total>``. Each process reports its own running total, so that
the totals of a script's processes add up, and one lost line costs nothing: the next carries more.
"""

from __future__ import annotations

import atexit
import math
import os
import stat
import threading
import time

FIFO_VARIABLE = "AUTOTUNE_TICK_FIFO"

_MIN_PERIOD_S = 0.005  # a script may call tick at every step: the pipe must not be what limits it

_lock = threading.Lock()
_total_steps = 0.0
_written_steps = 0
_written_at_s = -math.inf
_descriptor: int | None = None


def tick(steps: float) -> None:
    """Count `steps` more env steps (or samples, or whatever is the unit of progress).

    Never blocks and never fails for the sake of the pipe; may be called from any thread or process,
    at any rate.

    Raises:
        ValueError: `steps` is negative or not a finite number.
    """
    global _total_steps
    amount = float(steps)
    if not 0 <= amount < math.inf:
        raise ValueError(f"autotune.tick({steps!r}): the number of new steps must be finite and not negative")
    with _lock:
        _total_steps += amount
        if os.environ.get(FIFO_VARIABLE) and time.monotonic() - _written_at_s >= _MIN_PERIOD_S:
            _report()


def _report() -> None:
    """Write the total to the pipe, if somebody reads it and it has room; else the next total carries this one."""
    global _descriptor, _written_at_s, _written_steps
    _written_at_s = time.monotonic()
    try:
        if _descriptor is None:
            _descriptor = _open_fifo(os.environ[FIFO_VARIABLE])
        if _descriptor is not None:
            os.write(_descriptor, f"{os.getpid()} {int(_total_steps)}\n".encode())
            _written_steps = int(_total_steps)
    except BlockingIOError:
        return
    except OSError:  # no reader yet, or no longer: a later one may be there
        if _descriptor is not None:
            os.close(_descriptor)
            _descriptor = None


def _open_fifo(path: str) -> int | None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)  # some other file of that name: not ours to write to
    return None


def _flush() -> None:
    """The last steps of a script that ends within a period of the one before."""
    if os.environ.get(FIFO_VARIABLE) and int(_total_steps) > _written_steps:
        _report()


def _start_anew_in_child() -> None:
    """A forked process counts its own steps: its parent reports what came before."""
    global _lock, _total_steps, _written_steps, _written_at_s
    _lock, _total_steps, _written_steps, _written_at_s = threading.Lock(), 0.0, 0, -math.inf


atexit.register(_flush)
os.register_at_fork(after_in_child=_start_anew_in_child)
