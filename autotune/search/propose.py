"""Which point to measure next: a pure function of what was measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import ndtr

from autotune.records import REFUSED, Point, ProbeResult
from autotune.search.least_squares import fit_relative
from autotune.search.memory import ODD, MemoryLimits, safe, weighty
from autotune.search.model import Belief, believe, measured
from autotune.search.risk import chance_stable
from autotune.search.space import Array, Space, counts, samples

Stage = Literal["spread", "model", "neighbours"]

SPREAD = ((0.8, 0.75, 0.5), (0.45, 0.5, 0.3), (1.0, 1.0, 0.0))
"""Where the spread points lie, as fractions of the octaves of num_envs, batch_size and concurrency."""
ROUGHNESS = 0.04
"""Deviation of a surface from any smooth model, added to every expectation."""
WORTHWHILE = 3e-4
"""Expected improvement (of the log) below which the model is no longer asked."""

UNKNOWN_GAIN = 0.1
"""Gain expected of a probe while too little is known for the model to say."""

LOCAL_EVERY, LOCAL_FROM = 3, 9
"""How often, and from how many points on, the next one lies beside the best."""
SURE = 0.8
"""Chance of not taking the machine down below which nothing is run, once a point has."""

WASTE_MAX = 0.25
"""While failures took more than this share of the time, only points that are as likely to run are tried."""

REFUSALS_MAX = 6
"""A program that has run nowhere, and refused so many settings, will refuse the others."""
FAILURES_MAX = 3
"""While nothing has run, so many points are tried though all that are left are heavier than one that failed."""
LIKELY = 0.6
"""While nothing has run, the lightest point is next whose chance is at least this share of the best one's."""
USUAL = 1.5
"""A probe of up to this many times the mean of those so far is one like them."""

_STEPS_MIN = 8
"""Steps of a probe whose steps are long: those that settle, are discarded and are measured."""
_COSTS_MIN = 5
"""Probes before their costs alone are believed."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is searched.

    Attributes:
        space: the points.
        limits: bytes that may be held.
        cost_max_s: probes predicted to take longer are left out, but for those of the usual length.
        left_s: nor may a probe take longer than this.
        slice_s: seconds of the slices in which long iterations are measured; None where a probe's length does not
            hang on its steps (a recorded surface's).
    """

    space: Space
    limits: MemoryLimits = field(default_factory=MemoryLimits)
    cost_max_s: float = np.inf
    left_s: float = np.inf
    slice_s: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The next point.

    Attributes:
        point: to measure.
        stage: that it belongs to.
        predicted_s: seconds it will take, None where that is not known.
        gain_per_s: the most that any open point promises, as a fraction of the throughput per second of
            measuring; None where that is not known.
    """

    point: Point
    stage: Stage
    predicted_s: float | None = None
    gain_per_s: float | None = None


def propose(problem: Problem, history: Sequence[ProbeResult]) -> Proposal | None:
    """The next point worth measuring, None when nothing is left that is safe and worth it."""
    space = problem.space
    seen = {result.requested for result in history}
    unseen = np.array([point not in seen for point in space.points])
    open_ = unseen & safe(space, history, problem.limits)
    if not open_.any():
        few = not measured(history) and len(history) < FAILURES_MAX
        return _heavier(problem, history, unseen) if few else None
    if not measured(history):
        if sum(REFUSED in result.flags for result in history) >= REFUSALS_MAX:
            return None
        runs = _chance(space, history, lost=False)
        likely = open_ & (runs >= LIKELY * np.where(open_, runs, 0.0).max())
        return Proposal(point=space.points[_lightest(space, likely)], stage="spread")
    belief = believe(space, history)
    cost_s = predict_cost_s(problem, history, belief)
    runs = _chance(space, history, lost=False)
    open_ &= (cost_s <= min(problem.left_s, cost_limit_s(problem, history))) & (
        _chance(space, history, lost=True) >= SURE
    )
    promise = expected_improvement(space, history, belief) * runs
    expected_s = cost_s + (1 - runs) * np.maximum(_failure_s(history) - cost_s, 0.0)
    careful = [open_ & (runs >= SURE)] if _wasted(history) > WASTE_MAX else []
    among = [mask for mask in (*careful, open_) if mask.any()]
    chosen = (
        *(_hoped_for(space, history, belief, mask, promise, expected_s) for mask in among),
        *(_neighbour(space, history, belief, mask) for mask in among),
    )
    stage, index = next((found for found in chosen if found is not None), (None, 0))
    if stage is None:
        return None
    known = np.maximum(promise, UNKNOWN_GAIN) if stage == "spread" else promise
    return Proposal(
        point=space.points[index],
        stage=stage,
        predicted_s=float(cost_s[index]),
        gain_per_s=float((np.where(open_, known, 0.0) / expected_s).max()),
    )


def _heavier(problem: Problem, history: Sequence[ProbeResult], unseen: Array) -> Proposal | None:
    """In the middle of what has more environments and larger minibatches than all that crashed or hung.

    At the fewest processes, for of too few of them nothing fails. None where the memory rule leaves none.
    """
    space = problem.space
    odd = counts([result.requested for result in history if result.status in ODD], space.rollout)
    if not len(odd):
        return None
    left = unseen & safe(space, [result for result in history if result.status not in ODD], problem.limits)
    left &= (space.counts[:, :2] > odd[:, :2].max(axis=0)).all(axis=1)
    if not left.any():
        return None
    left &= space.counts[:, 2] == space.counts[left, 2].min()
    distance = ((space.octaves - space.octaves[left].mean(axis=0)) ** 2).sum(axis=1)
    return Proposal(point=space.points[int(np.argmin(np.where(left, distance, np.inf)))], stage="spread")


def _hoped_for(
    space: Space, history: Sequence[ProbeResult], belief: Belief, among: Array, promise: Array, expected_s: Array
) -> tuple[Stage, int] | None:
    """The next of some points and its stage, None when the model expects too little of each.

    Args:
        space: the points.
        history: what was measured.
        belief: about the points.
        among: (n,) which may be chosen.
        promise: (n,) the gain expected of each, as a fraction of the throughput.
        expected_s: (n,) seconds that each is expected to take, failures counted.
    """
    gain = np.where(among, promise, 0.0)
    if (index := _spread(space, history, among)) is not None:
        return "spread", index
    return ("model", _promising(space, history, belief, gain / expected_s)) if gain.max() >= WORTHWHILE else None


def _wasted(history: Sequence[ProbeResult]) -> float:
    """Share of the seconds so far that failures took."""
    return sum(r.cost_s for r in history if not r.ok) / (sum(r.cost_s for r in history) or 1.0)


def _failure_s(history: Sequence[ProbeResult]) -> float:
    """Seconds that a failure took so far, such as a timeout; 0 while nothing failed."""
    costs = [result.cost_s for result in history if not result.ok]
    return sum(costs) / len(costs) if costs else 0.0


def _promising(space: Space, history: Sequence[ProbeResult], belief: Belief, gain_per_s: Array) -> int:
    """The point that promises most per second; every third time only among the best point's open neighbours.

    Where a surface is rough, what the model expects far away and nearby is much the same, and it would
    look everywhere before it looks beside the best.
    """
    points = len({result.requested for result in history})
    if points >= LOCAL_FROM and points % LOCAL_EVERY == 0:
        stable = [space.index[r.requested] for r in measured(history) if r.requested in space.index]
        best = max(stable, key=lambda i: float(belief.mean[i]), default=None)
        near = [] if best is None else [i for i in space.neighbours(space.points[best]) if gain_per_s[i] > 0]
        if near:
            return max(near, key=lambda i: float(gain_per_s[i]))
    return int(np.argmax(gain_per_s))


def _chance(space: Space, history: Sequence[ProbeResult], *, lost: bool) -> Array:
    """(n,) chance that a point runs, or with `lost` that it does not take the machine down."""
    failed = [result for result in history if (result.status == "host_lost" if lost else not result.ok)]
    heavy, ok = weighty(history, space.rollout), measured(history)
    expected, odd = [r for r in failed if r in heavy], [r for r in failed if r not in heavy]
    return chance_stable(space, ok, expected) * chance_stable(space, ok, odd, signed=True)


def cost_limit_s(problem: Problem, history: Sequence[ProbeResult]) -> float:
    """Seconds beyond which a probe is left out: in a short budget the usual ones may take more than their share."""
    costs = [result.cost_s for result in measured(history) if result.grade == "quick"]
    return max(problem.cost_max_s, USUAL * sum(costs) / len(costs) if costs else 0.0)


def too_costly(problem: Problem, history: Sequence[ProbeResult]) -> list[tuple[Point, float]]:
    """Safe points that were not measured because their probe is predicted to take too long, and how long."""
    if not measured(history):
        return []
    space, seen = problem.space, {result.requested for result in history}
    cost_s = predict_cost_s(problem, history, believe(space, history))
    left_out = (cost_s > cost_limit_s(problem, history)) & safe(space, history, problem.limits)
    return [(p, float(cost_s[i])) for i, p in enumerate(space.points) if left_out[i] and p not in seen]


def _lightest(space: Space, open_: Array) -> int:
    return int(np.argmin(np.where(open_, space.octaves.sum(axis=1), np.inf)))


def _spread(space: Space, history: Sequence[ProbeResult], open_: Array) -> int | None:
    """The open point nearest to the next spread target; None when the targets are spent.

    A target is spent when a point was measured for it, which is known from the number of
    measurements beyond the first two (baseline and rule of thumb).
    """
    done = len({result.requested for result in history}) - 2
    if done >= len(SPREAD):
        return None
    low, span = space.octaves.min(axis=0), np.maximum(np.ptp(space.octaves, axis=0), 1e-9)
    place = (space.octaves - low) / span
    distance = ((place - np.array(SPREAD[max(0, done)])) ** 2).sum(axis=1)
    return int(np.argmin(np.where(open_, distance, np.inf)))


def expected_improvement(space: Space, history: Sequence[ProbeResult], belief: Belief) -> Array:
    """(n,) expected gain in log steps per second over the best measured point (Jones et al. 1998, eq. 15)."""
    best = best_log_sps(space, history, belief)
    deviation = np.hypot(belief.deviation, ROUGHNESS)
    z = (belief.mean - best) / deviation
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    result: Array = deviation * (z * ndtr(z) + density)
    return result


def best_log_sps(space: Space, history: Sequence[ProbeResult], belief: Belief) -> float:
    """The largest log steps per second among measured points; smoothed by the model where they lie on the grid."""
    known = [space.index.get(result.requested) for result in measured(history)]
    smoothed = [float(belief.mean[i]) for i in known if i is not None]
    return max(smoothed) if smoothed else max(float(np.log(r.sps or 1.0)) for r in measured(history))


def predict_cost_s(problem: Problem, history: Sequence[ProbeResult], belief: Belief) -> Array:
    """(n,) seconds that a quick probe takes: a constant, shares per process and environment, multiples of a step.

    Non-negative least squares on the costs of the stable quick probes so far. While there are few, their
    mean, changed by `_STEPS_MIN` steps and by what the starts seen so far say of environments.
    """
    space = problem.space
    quick = [result for result in measured(history) if result.grade == "quick" and result.cost_s > 0]
    if not quick:
        return np.full(len(space), 1.0)
    costs = np.array([result.cost_s for result in quick])
    log_sps = np.log([float(result.sps or 1.0) for result in quick])
    here = _cost_terms(problem, counts([result.requested for result in quick], space.rollout), log_sps)
    there = _cost_terms(problem, space.counts, belief.mean)
    if len(quick) < _COSTS_MIN:
        starts = np.array([result.startup_s or 1.0 for result in quick])
        weights = np.array([0.0, 0.0, fit_relative(here[:, [0, 2]], starts)[1], _STEPS_MIN])
        predicted = costs.mean() + (there - here.mean(axis=0)) @ weights
    else:
        predicted = there @ fit_relative(here, costs)
    result: Array = np.maximum(predicted, 0.5 * costs.min())
    return result


def _cost_terms(problem: Problem, rows: Array, log_sps: Array) -> Array:
    """(n, 4): one, processes, environments, seconds of a step (an iteration, or its shortest slice: a minibatch)."""
    step_s = np.zeros(len(rows))
    if problem.slice_s is not None:
        samples_s = rows[:, 2] / np.exp(log_sps)
        iteration_s = samples_s * samples(rows[:, 0], problem.space.rollout)
        step_s = np.minimum(iteration_s, np.maximum(samples_s * rows[:, 1], problem.slice_s))
    return np.column_stack([np.ones(len(rows)), rows[:, 2], rows[:, 0] * rows[:, 2], step_s])


def _neighbour(space: Space, history: Sequence[ProbeResult], belief: Belief, open_: Array) -> tuple[Stage, int] | None:
    """The most promising open neighbour of the best of the three best measured points that has one."""
    best = sorted(measured(history), key=lambda result: -(result.sps or 0.0))
    for point in list(dict.fromkeys(result.requested for result in best))[:3]:
        near = [i for i in space.neighbours(point) if open_[i]]
        if near:
            return "neighbours", max(near, key=lambda i: float(belief.mean[i]))
    return None
