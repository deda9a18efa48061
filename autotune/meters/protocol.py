"""The contract of a meter, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from autotune.machine import DeviceInfo
from autotune.records import Reading


class Meter(Protocol):
    """Takes readings between `start` and `stop`.

    Constructed with the device and a function that gives the current process ids of the probe
    (all descendants), so that processes which start later are seen too.
    A value that the device cannot tell is None, never 0.
    """

    def __init__(self, device: DeviceInfo, pids: Callable[[], Sequence[int]], period_s: float = 0.5) -> None: ...

    def start(self) -> None:
        """Begin taking readings, every `period_s` seconds, in a thread."""
        ...

    def stop(self) -> tuple[Reading, ...]:
        """End, and return every reading taken, in order of time; at least one."""
        ...
