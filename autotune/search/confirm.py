"""Finalists: which points are measured again, how repeats are pooled, who wins, what is tied."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from autotune.executors.stability import confirmed_drift
from autotune.records import ENDED_EARLY, Point, ProbeResult
from autotune.search.model import Belief, believe, measured
from autotune.search.precision import launch_fraction, relative_error
from autotune.search.space import Space
from autotune.stats import NORMAL_95, log_ratio
from autotune.units import counted

FINALISTS = 3
WITHIN = 0.03
"""A finalist's pooled throughput lies at most this fraction below the best one's."""
ROUNDS = 3
TIE = 0.01
"""Tied points further apart than this fraction are not swapped for the lighter one."""

SMOOTH_FROM = 6
"""Measured points from which the model says more about a point than its own measurement does."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """All stable measurements of one point taken together.

    Attributes:
        sps: weighted by precision.
        error_sps: its standard error.
        finals: how many of them are final.
    """

    point: Point
    sps: float
    error_sps: float
    finals: int

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.sps - NORMAL_95 * self.error_sps

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.sps + NORMAL_95 * self.error_sps


def stable_points(history: Sequence[ProbeResult]) -> dict[Point, list[ProbeResult]]:
    """Every point that was stable each time it was measured, with its measurements.

    One that slowed down within its window in two launches is not stable; one at which a program had too few steps to
    be measured once more is.
    """
    return {point: results for point, results in _ran(history).items() if not confirmed_drift(results)}


def slowing_points(history: Sequence[ProbeResult]) -> tuple[Point, ...]:
    """Points that ran each time they were measured, and are not stable all the same, since they slow down."""
    return tuple(point for point, results in _ran(history).items() if confirmed_drift(results))


def _ran(history: Sequence[ProbeResult]) -> dict[Point, list[ProbeResult]]:
    failed = {result.requested for result in history if not result.ok and ENDED_EARLY not in result.flags}
    by_point: dict[Point, list[ProbeResult]] = {}
    for result in measured(history):
        if result.requested not in failed:
            by_point.setdefault(result.requested, []).append(result)
    return by_point


def outruns(history: Sequence[ProbeResult], point: Point) -> bool:
    """Whether a program does all its steps at a point before a final window is over: another one would tell nothing."""
    return any(r.requested == point and r.grade == "final" and ENDED_EARLY in r.flags for r in history)


def pool(history: Sequence[ProbeResult]) -> list[Pooled]:
    """Every one of `stable_points`, the fastest first.

    Weights are 1 / variance, the variance of the mean 1 / sum of weights (independent launches).
    """
    spread = launch_fraction(history)
    pooled = [_pool(point, results, spread) for point, results in stable_points(history).items()]
    return sorted(pooled, key=lambda entry: -entry.sps)


def observed_s(history: Sequence[ProbeResult], point: Point) -> float:
    """Seconds for which a point's processes ran, over all its stable launches."""
    return sum(ran_s(result) for result in history if result.requested == point and result.ok)


def ran_s(result: ProbeResult) -> float:
    """Seconds for which a launch's processes ran, from ready to end: none where it failed before they were ready."""
    if result.startup_s is None and not result.ok:
        return 0.0
    return max(0.0, result.cost_s - (result.startup_s or 0.0))


def _pool(point: Point, results: Sequence[ProbeResult], launch_spread: float) -> Pooled:
    values = np.array([float(result.sps or 0.0) for result in results])
    typical = statistics.median(values)
    weights = np.array([(relative_error(result, launch_spread) * typical) ** -2.0 for result in results])
    return Pooled(
        point=point,
        sps=float((weights * values).sum() / weights.sum()),
        error_sps=float(weights.sum() ** -0.5),
        finals=sum(result.grade == "final" for result in results),
    )


def smooth(space: Space, history: Sequence[ProbeResult]) -> list[Pooled]:
    """`pool` with each point's estimate drawn towards its neighbours' by the model, the fastest first.

    The fastest of many noisy measurements is usually a lucky one; its neighbours know better.
    """
    entries = pool(history)
    if not entries:
        return []
    belief = believe(space, history)
    drawn = [_drawn(entry, belief, space.index.get(entry.point)) for entry in entries]
    return sorted(drawn, key=lambda entry: -entry.sps)


def _drawn(entry: Pooled, belief: Belief, index: int | None) -> Pooled:
    if index is None:
        return entry
    sps = float(np.exp(belief.mean[index]))
    return replace(entry, sps=sps, error_sps=sps * float(belief.deviation[index]))


def next_finalist(
    space: Space, history: Sequence[ProbeResult], wanted: Callable[[Point, float], bool] = lambda _point, _gain: True
) -> Point | None:
    """The finalist to measure next, the least often measured first; None when every one had its rounds.

    Args:
        space: the points.
        history: what was measured.
        wanted: asked whether to measure a point for an expected gain, as a fraction of the throughput; the
            gain is infinite for the first confirmation of the leader and of what is lighter, which a tie goes to.
    """
    entries = smooth(space, history)
    if not entries:
        return None
    near = [entry for entry in entries[:FINALISTS] if entry.sps >= (1 - WITHIN) * entries[0].sps]
    left = [entry for entry in near if entry.finals < ROUNDS and not outruns(history, entry.point)]
    due = sorted(left, key=lambda entry: _turn(entry, near[0]))
    for entry in due:
        first = not entry.finals and weight(entry.point) <= weight(near[0].point)
        if wanted(entry.point, np.inf if first else _regret_left(entry, near)):
            return entry.point
    return None


def _turn(entry: Pooled, leader: Pooled) -> tuple[object, ...]:
    """Orders finalists: least often confirmed first, then the fastest; the lightest of those as fast as the leader."""
    level = entry.sps >= (1 - TIE) * leader.sps
    return entry.finals, not level, weight(entry.point) if level else -entry.sps


def _regret_left(entry: Pooled, near: Sequence[Pooled]) -> float:
    """Expected loss, as a fraction, of taking the leader although this (or, for it, another) finalist is faster.

    The expected positive part of a normal difference, with both errors (Jones et al. 1998, eq. 15).
    """
    leader = near[0]
    losses = [0.0]
    for other in near[1:] if entry is leader else [entry]:
        error = float(np.hypot(leader.error_sps, other.error_sps))
        z = (other.sps - leader.sps) / error
        losses.append(error * float(z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi)) / leader.sps)
    return max(losses)


def winner(space: Space, history: Sequence[ProbeResult]) -> tuple[Pooled, tuple[Pooled, ...]] | None:
    """The best point and those tied with it; None when nothing is stable.

    Points with a final measurement come before others, but for one whose interval lies above all of theirs. The
    best lower end of the interval wins; among those tied with it and within 1 % the lightest is taken. With fewer
    points than `SMOOTH_FROM` and none confirmed (a very short search) the measurements alone decide: the model would
    follow its prior.
    """
    entries = smooth(space, history)
    eligible = [entry for entry in entries if entry.finals]
    if eligible:
        bar = max(entry.high for entry in eligible)
        eligible += [entry for entry in entries if not entry.finals and entry.low > bar]
    else:
        eligible = entries if len(entries) >= SMOOTH_FROM else pool(history)
    if not eligible:
        return None
    first = max(eligible, key=lambda entry: entry.low)
    close = [entry for entry in eligible if _tied(entry, first) and entry.sps >= (1 - TIE) * first.sps]
    best = min(close, key=lambda entry: weight(entry.point))
    return best, tuple(entry for entry in eligible if entry.point != best.point and _tied(entry, best))


def _tied(one: Pooled, other: Pooled) -> bool:
    """Whether the interval of their ratio includes 1: two that overlap a little may well differ."""
    _, low, high = log_ratio((one.sps, one.low, one.high), (other.sps, other.low, other.high))
    return (low or 0.0) <= 1 <= (high or np.inf)


def weight(point: Point) -> tuple[int, int, int]:
    """Orders points from light to heavy: processes, then environments, then minibatch."""
    return point.concurrency, point.num_envs * point.concurrency, point.batch_size


def published(history: Sequence[ProbeResult], point: Point) -> ProbeResult:
    """The result that is stated for a point: its final measurements pooled, else its last quick one, flagged.

    What disturbed one of the pooled launches stands for all of them: its flags, and the busiest others.
    """
    own = [result for result in measured(history) if result.requested == point]
    finals = [result for result in own if result.grade == "final"]
    if not finals:
        return _flagged(own[-1], "quick, one launch")
    entry = _pool(point, finals, launch_fraction(history))
    share = entry.sps / (finals[-1].sps or entry.sps)
    last = replace(
        finals[-1],
        sps=entry.sps,
        job_sps=tuple(each * share for each in finals[-1].job_sps),
        sps_low=max(0.0, entry.low),
        sps_high=entry.high,
        others_cpu_cores=max((busy for each in finals if (busy := each.others_cpu_cores) is not None), default=None),
        flags=tuple(dict.fromkeys(flag for each in finals for flag in each.flags)),
    )
    return _flagged(last, counted(len(finals), "launch", "launches"))


def at_fewer(history: Sequence[ProbeResult], point: Point) -> tuple[ProbeResult, ...]:
    """What is stated for the same settings at fewer processes, where they were measured as stable."""
    stable = stable_points(history)
    narrower = (replace(point, concurrency=count) for count in range(1, point.concurrency))
    return tuple(published(history, each) for each in narrower if each in stable)


def _flagged(result: ProbeResult, flag: str) -> ProbeResult:
    kept = tuple(f for f in result.flags if f not in ("one launch", flag))
    return replace(result, flags=(*kept, flag))


def lighter(history: Sequence[ProbeResult], point: Point) -> tuple[ProbeResult, ...]:
    """Rungs below a point: measured stable points that ask for no more of any knob, best first, each lighter still."""
    rungs: list[ProbeResult] = []
    last = point
    for entry in pool(history):
        if last.dominates(entry.point) and entry.point != last:
            rungs.append(published(history, entry.point))
            last = entry.point
    return tuple(rungs)
