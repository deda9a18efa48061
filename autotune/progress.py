"""`autotune.tick(steps)`: two lines in a script that let autotune count its steps.

Light on purpose: a training script imports it. Outside a probe it does nothing.
"""

from __future__ import annotations

import os

FIFO_VARIABLE = "AUTOTUNE_TICK_FIFO"

_total_steps = 0
_descriptor: int | None = None


def tick(steps: int) -> None:
    """Count `steps` more env steps (or samples, or whatever is the unit of progress).

    The running total is written to the pipe named by ``AUTOTUNE_TICK_FIFO``; a full pipe loses
    nothing, since the next call writes a larger total.
    """
    global _total_steps, _descriptor
    _total_steps += int(steps)
    path = os.environ.get(FIFO_VARIABLE)
    if not path:
        return
    try:
        if _descriptor is None:
            _descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(_descriptor, f"{_total_steps}\n".encode())
    except OSError:  # no reader (yet), or a full pipe: the next total carries this one
        return
