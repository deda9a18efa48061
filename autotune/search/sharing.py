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
        high: upper end, None where noise leaves it open.
        pays: the interval lies above 1, and one process was tried with as many environments.
        sentence: says it.
    """

    point: Point
    alone: Point
    gain: float
    low: float
    high: float | None
    pays: bool
    sentence: str


def sharing_gain(
    history: Sequence[ProbeResult], recommended: Point | None = None, tied: Sequence[Point] = ()
) -> SharingGain | None:
    """What sharing the device gains, None unless both ways were measured as stable.

    Either side is the recommended point where it is of that kind, else the one with the best lower end of its
    interval: the highest of many noisy measurements is usually a lucky one. There is no verdict for one side while the
    other was not tried with as many environments: alone with those of each process, together with as many in all.

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
    low = low or 0.0
    reach = f"{together.point.concurrency} processes reach {gain:.2f}x [{low:.2f}, {high or math.inf:.2f}] of one"
    chosen = recommended is not None and min(point.concurrency for point in (recommended, *tied)) > 1
    untried = _untried(together.point, alone.point, [result.requested for result in history], pays=low > 1)
    against = "whether sharing pays here is not settled" if chosen or untried else "sharing does not pay here"
    pays = low > 1 and not untried
    sentence = f"{'sharing pays here' if pays else against}: {reach}{untried}"
    return SharingGain(
        point=together.point, alone=alone.point, gain=gain, low=low, high=high, pays=pays, sentence=sentence
    )


def _untried(together: Point, alone: Point, tried: Sequence[Point], *, pays: bool) -> str:
    """What was not tried of the side that lost, empty where it had as many environments as the one that won."""
    if pays:
        wanted = together.num_envs
        most = max(point.num_envs for point in tried if point.concurrency == 1)
        said = f"one was tried with {most} environments at most, and each of these has {wanted}"
    else:
        wanted = alone.num_envs
        most = max(point.num_envs * point.concurrency for point in tried if point.concurrency > 1)
        said = f"they were tried with {most} environments in all at most, and that one has {wanted}"
    return f", but {said}" if most < wanted else ""


def _best(entries: Sequence[Pooled], recommended: Point | None) -> Pooled | None:
    own = [entry for entry in entries if entry.point == recommended]
    return max(own or entries, key=lambda entry: entry.low, default=None)
