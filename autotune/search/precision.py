"""How sure a measured throughput is: its own window, and the spread from launch to launch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.records import Point, ProbeResult
from autotune.stats import LAUNCH_FRACTION, NORMAL_95, Interval, launch_spread

DEFAULT_ERROR = 0.03
_LEAST = 1e-3
EPOCH_FLAG = "epoch "
"""Begins the flag of a result that was measured in an earlier epoch."""


def stated_error(result: ProbeResult) -> float:
    """Standard error of a result as a fraction, from its 95 % interval; 3 % where it states none.

    From the upper half, for the lower one ends at 0 at the latest.
    """
    if result.sps is None or result.sps_low is None or result.sps_high is None or result.sps <= 0:
        return DEFAULT_ERROR
    return max(_LEAST, (result.sps_high - result.sps) / (NORMAL_95 * result.sps))


def interval_of(result: ProbeResult) -> Interval:
    """A result's throughput with its 95 % interval, by `stated_error` where it states none."""
    sps = result.sps or 0.0
    half = NORMAL_95 * DEFAULT_ERROR * sps
    known = result.sps_low is not None and result.sps_high is not None
    return (sps, result.sps_low, result.sps_high) if known else (sps, sps - half, sps + half)


def window_error(result: ProbeResult) -> float:
    """The part of one launch's `stated_error` that is not the launch-to-launch spread assumed in it."""
    return math.sqrt(max(_LEAST**2, stated_error(result) ** 2 - LAUNCH_FRACTION**2))


def relative_error(result: ProbeResult, launch_fraction: float = LAUNCH_FRACTION) -> float:
    """Standard error of one launch as a fraction, with this launch-to-launch spread."""
    return math.hypot(window_error(result), launch_fraction)


def launch_fraction(history: Sequence[ProbeResult]) -> float:
    """Launch-to-launch spread over the repeats in a history, within an epoch each; 1.5 % until known."""
    groups: dict[tuple[Point, str], list[tuple[float, float]]] = {}
    for result in history:
        if result.ok and result.sps:
            epoch = next((flag for flag in result.flags if flag.startswith(EPOCH_FLAG)), "")
            groups.setdefault((result.requested, epoch), []).append((result.sps, window_error(result)))
    return launch_spread(list(groups.values()))
