"""Two points compared by paired launches: the ratio of their throughputs, its interval, and what compiling costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from autotune.records import Job, ProbeResult
from autotune.search.episodes import game_lengths, steps_of
from autotune.search.precision import relative_error
from autotune.search.worth import training_s

ROUNDS_MIN, ROUNDS_MAX = 2, 4
"""Pairs after which it may be settled, and after which it is."""

_LOOK_LEVEL = 0.0221
"""Two-sided level of each of three looks at the data (after 2, 3 and 4 pairs) that together make 5 %: Pocock 1977,
"Group sequential methods in the design and analysis of clinical trials", Biometrika 64, table 1."""
_PRIOR_FREEDOM = 4
"""Degrees of freedom that the windows' own intervals count as, beside the spread of the pairs."""
_WORTH = 0.01
"""A value that cannot be this much faster is not measured again."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired launches of two points.

    Attributes:
        ratio: throughput of the second over the first's, geometric mean over the pairs; None without a pair.
        low: lower end of its interval (95 % over all looks at the data).
        high: upper end.
        net: the ratio after the compile seconds are spread over the planned training.
        net_low: `low` likewise.
        pairs: launches of each.
        compile_s: seconds that the second's first iteration takes longer.
        planned_s: of the planned training at the first point, None where it is not known.
        failure: why the second could not be measured.
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    net: float | None = None
    net_low: float | None = None
    pairs: int = 0
    compile_s: float = 0.0
    planned_s: float | None = None
    failure: str = ""

    @property
    def faster(self) -> bool:
        """Whether the interval lies above 1, compile seconds charged."""
        return self.net_low is not None and self.pairs >= ROUNDS_MIN and self.net_low > 1

    @property
    def settled(self) -> bool:
        """Whether more pairs are not needed: the interval leaves 1 out, or leaves no room for a gain."""
        if self.low is None or self.high is None or self.pairs < ROUNDS_MIN:
            return False
        return self.low > 1 or self.high < 1 + _WORTH


def compare(jobs: Sequence[Job], before: Sequence[ProbeResult], after: Sequence[ProbeResult]) -> Comparison:
    """What pairs of launches say.

    The log ratios' variance is their own, drawn towards what the windows' intervals predict with the weight of
    four degrees of freedom (the moderated t of Smyth 2004, doi:10.2202/1544-6115.1027). Compile seconds are what
    the first iteration takes beyond a usual one, more than in the other arm; every launch of the planned
    training pays them.
    """
    pairs = list(zip(before, after, strict=False))
    if not pairs:
        return Comparison()
    logs = np.log([(b.sps or 1.0) / (a.sps or 1.0) for a, b in pairs])
    expected = float(np.mean([relative_error(a) ** 2 + relative_error(b) ** 2 for a, b in pairs]))
    freedom = _PRIOR_FREEDOM + len(pairs) - 1
    variance = (_PRIOR_FREEDOM * expected + float(((logs - logs.mean()) ** 2).sum())) / freedom
    half = float(stdtrit(freedom, 1 - _LOOK_LEVEL / 2)) * math.sqrt(variance / len(pairs))
    ratio, low, high = (math.exp(float(logs.mean()) + shift) for shift in (0.0, -half, half))
    compile_s = max(0.0, float(np.mean([_compile_s(b) - _compile_s(a) for a, b in pairs])))
    planned_s = training_s(jobs, before[-1], steps_of(game_lengths(jobs, before)))
    charge_s = compile_s * math.ceil(len(jobs) / after[-1].requested.concurrency)
    return Comparison(
        ratio=ratio,
        low=low,
        high=high,
        net=_charged(ratio, charge_s, planned_s),
        net_low=_charged(low, charge_s, planned_s),
        pairs=len(pairs),
        compile_s=compile_s,
        planned_s=planned_s,
    )


def _compile_s(result: ProbeResult) -> float:
    """Seconds of the first iteration beyond a usual one, 0 where they are not known."""
    if result.first_iteration_s is None or not result.window_s or not result.iterations:
        return 0.0
    usual_s = result.window_s * max(1, len(result.job_sps)) / result.iterations
    return max(0.0, result.first_iteration_s - usual_s)


def _charged(ratio: float, charge_s: float, planned_s: float | None) -> float:
    """Planned seconds over those at `ratio` times the speed with the compile seconds charged."""
    return ratio if not planned_s else planned_s / (planned_s / ratio + charge_s)
