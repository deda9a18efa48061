"""The contract of a meter, as tests."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from autotune.meters.protocol import Meter

_PERIOD_S = 0.02
_PATIENCE_S = 10.0


class MeterContract:
    """Subclass it, name it ``Test...``, and say how the meter is made.

    Attributes:
        asks_for_processes: whether it reads processes on the machine of the test.
    """

    asks_for_processes: ClassVar[bool]

    def make_meter(self, pids: Callable[[], Sequence[int]], period_s: float) -> Meter:
        """The meter under test, watching these processes."""
        raise NotImplementedError

    def test_gives_readings_in_order(self) -> None:
        """Times lie between start and stop, values are finite or None, every name comes again."""
        meter = self.make_meter(lambda: [os.getpid()], _PERIOD_S)
        begin_s = time.monotonic()
        meter.start()
        time.sleep(10 * _PERIOD_S)
        readings = meter.stop()
        end_s = time.monotonic()
        times_s = [reading.t_s for reading in readings]
        assert readings and times_s == sorted(times_s)
        assert begin_s <= times_s[0] and times_s[-1] <= end_s
        assert all(reading.name for reading in readings)
        assert all(reading.value is None or math.isfinite(reading.value) for reading in readings)

    def test_short_span_has_a_reading(self) -> None:
        """At least one, however soon it is stopped."""
        meter = self.make_meter(lambda: [os.getpid()], 3600.0)
        begin_s = time.monotonic()
        meter.start()
        assert meter.stop()
        assert time.monotonic() - begin_s < _PATIENCE_S

    def test_processes_are_asked_for_each_time(self) -> None:
        """Processes that start later are seen too."""
        if not self.asks_for_processes:
            pytest.skip("this meter reads no processes here")
        asked: list[float] = []

        def pids() -> list[int]:
            asked.append(time.monotonic())
            return [os.getpid()]

        meter = self.make_meter(pids, _PERIOD_S)
        meter.start()
        deadline_s = time.monotonic() + _PATIENCE_S
        while len(asked) < 3 and time.monotonic() < deadline_s:
            time.sleep(_PERIOD_S)
        meter.stop()
        assert len(asked) >= 3

    def test_processes_may_be_gone(self) -> None:
        """A process that has ended, or none at all, is no error."""
        for watched in ([], [2**22 + 1]):
            meter = self.make_meter(lambda watched=watched: watched, _PERIOD_S)  # type: ignore[misc]
            meter.start()
            assert meter.stop()

    def test_starts_again(self) -> None:
        """A second span holds its own readings only."""
        meter = self.make_meter(lambda: [os.getpid()], _PERIOD_S)
        meter.start()
        meter.stop()
        begin_s = time.monotonic()
        meter.start()
        assert all(reading.t_s >= begin_s for reading in meter.stop())
