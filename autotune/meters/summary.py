"""Readings in short: peaks, means and differences over a span. Pure; None when nothing is known."""

from __future__ import annotations

import math
from collections.abc import Iterable

from autotune.records import Reading


def series(
    readings: Iterable[Reading], name: str, start_s: float = -math.inf, end_s: float = math.inf
) -> list[tuple[float, float]]:
    """(time, value) of the known readings of a name within [start_s, end_s] of `time.monotonic`."""
    return [
        (reading.t_s, reading.value)
        for reading in readings
        if reading.name == name and reading.value is not None and start_s <= reading.t_s <= end_s
    ]


def peak(readings: Iterable[Reading], name: str) -> float | None:
    """The largest known value."""
    return max((value for _, value in series(readings, name)), default=None)


def first(readings: Iterable[Reading], name: str) -> float | None:
    """The first known value: the state before the probe."""
    return next((value for _, value in series(readings, name)), None)


def last(readings: Iterable[Reading], name: str) -> float | None:
    """The last known value."""
    return next((value for _, value in reversed(series(readings, name))), None)


def names(readings: Iterable[Reading], prefix: str) -> list[str]:
    """The names that begin so, in order of appearance."""
    return [name for name in dict.fromkeys(reading.name for reading in readings) if name.startswith(prefix)]


def mean(readings: Iterable[Reading], name: str, start_s: float = -math.inf, end_s: float = math.inf) -> float | None:
    """The mean of the known values in the span."""
    values = [value for _, value in series(readings, name, start_s, end_s)]
    return sum(values) / len(values) if values else None


def rate(readings: Iterable[Reading], name: str, start_s: float = -math.inf, end_s: float = math.inf) -> float | None:
    """Growth of a counter per second in the span (watts from joules, cores from CPU seconds)."""
    known = series(readings, name, start_s, end_s)
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return None
    return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def energy_j(readings: Iterable[Reading], start_s: float, end_s: float) -> float | None:
    """Joules between two times: mean watts (from the counter, else from power) times the span."""
    known = tuple(readings)
    watts = rate(known, "energy_j", start_s, end_s)
    if watts is None:
        watts = mean(known, "power_w", start_s, end_s)
    return None if watts is None else watts * (end_s - start_s)
