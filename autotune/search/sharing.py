"""Whether several processes on one device make more than one does: a result, whichever way it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.records import Point, ProbeResult
from autotune.search.confirm import pool
from autotune.search.precision import NORMAL_95


@dataclass(frozen=True, kw_only=True)
class SharingGain:
    """The best point with several processes against the best with one.

    Attributes:
        point: the former.
        alone: the latter.
        gain: throughput of `point` over that of `alone`, all its processes together.
        low: lower end of the 95 % interval.
        high: upper end.
        sentence: says it.
    """

    point: Point
    alone: Point
    gain: float
    low: float
    high: float
    sentence: str

    @property
    def pays(self) -> bool:
        """Whether the interval lies above 1."""
        return self.low > 1


def sharing_gain(history: Sequence[ProbeResult]) -> SharingGain | None:
    """What sharing the device gains, None unless both ways were measured as stable.

    The logarithms' errors add in quadrature (independent launches); both sides are the best of several points.
    """
    entries = pool(history)
    together = next((entry for entry in entries if entry.point.concurrency > 1), None)
    alone = next((entry for entry in entries if entry.point.concurrency == 1), None)
    if together is None or alone is None:
        return None
    gain = together.sps / alone.sps
    spread = math.exp(NORMAL_95 * math.hypot(together.error_sps / together.sps, alone.error_sps / alone.sps))
    low, high = gain / spread, gain * spread
    reach = f"{together.point.concurrency} processes reach {gain:.2f}x [{low:.2f}, {high:.2f}] of one"
    verdict = "sharing pays here" if low > 1 else "sharing does not pay here"
    return SharingGain(
        point=together.point, alone=alone.point, gain=gain, low=low, high=high, sentence=f"{verdict}: {reach}"
    )
