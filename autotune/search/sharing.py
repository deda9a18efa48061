"""Whether several processes on one device make more than one does: a result, whichever way it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.records import Point, ProbeResult
from autotune.search.confirm import Pooled, pool
from autotune.stats import log_ratio


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


def sharing_gain(
    history: Sequence[ProbeResult], recommended: Point | None = None, tied: Sequence[Point] = ()
) -> SharingGain | None:
    """What sharing the device gains, None unless both ways were measured as stable.

    Either side is the recommended point where it is of that kind, else the one with the best lower end of its
    interval: the highest of many noisy measurements is usually a lucky one.

    Args:
        history: what was measured.
        recommended: by the search.
        tied: with it.
    """
    entries = pool(history)
    together = _best([entry for entry in entries if entry.point.concurrency > 1], recommended)
    alone = _best([entry for entry in entries if entry.point.concurrency == 1], recommended)
    if together is None or alone is None:
        return None
    gain, low, high = log_ratio(*((entry.sps, entry.low, entry.high) for entry in (together, alone)))
    low, high = low or 0.0, high or math.inf
    reach = f"{together.point.concurrency} processes reach {gain:.2f}x [{low:.2f}, {high:.2f}] of one"
    chosen = recommended is not None and min(point.concurrency for point in (recommended, *tied)) > 1
    against = "whether sharing pays here is not settled" if chosen else "sharing does not pay here"
    verdict = "sharing pays here" if low > 1 else against
    return SharingGain(
        point=together.point, alone=alone.point, gain=gain, low=low, high=high, sentence=f"{verdict}: {reach}"
    )


def _best(entries: Sequence[Pooled], recommended: Point | None) -> Pooled | None:
    own = [entry for entry in entries if entry.point == recommended]
    return max(own or entries, key=lambda entry: entry.low, default=None)
