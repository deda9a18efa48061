"""The order of a search, as a function of what was measured: opening, search, finals, soak."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autotune.machine import DeviceInfo
from autotune.probe.recipe import rule_of_thumb
from autotune.records import Grade, MeasurePlan, Point, ProbeResult, Recipe
from autotune.search import confirm, epochs, knobs
from autotune.search.memory import ODD, safe_points
from autotune.search.propose import Problem
from autotune.search.space import Space, possible
from autotune.search.worth import SOAK_SHARE, pays

FINAL_SHARE = 0.2
FINAL_SHARE_MAX = 0.4
"""A single final window may take this share of a short budget; beyond it there is none."""
FINAL_FROM_PROBES = 5
"""Nor is there one where it leaves room for fewer quick probes: baseline, rule of thumb and three spread points."""
SENTINEL_FROM_PROBES = 10
"""Budgets of fewer probes have none to spare for the sentinel."""

Ending = Literal["budget", "known", "worth", "stopped"]
"""Why a search ended: no further probe fits into the budget, nothing is left worth measuring, the next probe would
cost more than it saves, it was stopped."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One probe of the plan.

    Attributes:
        stage: of `TrialRecord`.
        point: None where the sampler chooses.
        grade: quick or final.
        predicted_s: seconds it is expected to take.
    """

    stage: str
    point: Point | None
    grade: Grade = "quick"
    predicted_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the next step is decided from.

    Attributes:
        recipe: what is searched.
        problem: its points and limits.
        opening: steps that come first.
        history: every result that counts, in order, on the machine's last footing; comparisons of further knobs
            left out.
        compared: those.
        budget_s: of the whole search.
        left_s: of it.
        first_quick_s: predicted seconds of a quick probe while none was measured.
        first_final_s: likewise of a final one.
        planned_s: seconds of the planned training at the best point so far; None where nothing ends early for it.
        drifts: whether the machine can change.
    """

    recipe: Recipe
    problem: Problem
    opening: tuple[Step, ...]
    history: Sequence[ProbeResult]
    budget_s: float
    left_s: float
    first_quick_s: float
    first_final_s: float
    planned_s: float | None
    drifts: bool
    compared: Sequence[ProbeResult] = ()

    @property
    def space(self) -> Space:
        """The points."""
        return self.problem.space

    def quick_s(self) -> float:
        """Predicted seconds of any quick probe: the mean so far."""
        costs = [result.cost_s for result in self.history if result.ok and result.grade == "quick"]
        return sum(costs) / len(costs) if costs else self.first_quick_s

    def final_s(self, point: Point | None = None) -> float:
        """Predicted seconds of a final probe of a point, or of the one that would be next."""
        return final_cost_s(self.recipe, self.history, self.first_final_s, point)


def next_step(now: Situation, search: Callable[[float], Step | Ending]) -> Step | Ending:
    """The next probe that fits into what is left, or why there is none.

    Args:
        now: where the search stands.
        search: what the sampler wants measured within some seconds.
    """
    if (step := _opening_step(now)) is not None:
        return step
    final_s = now.final_s(confirm.next_finalist(now.space, now.history))
    reserve_s = final_reserve_s(now.budget_s, final_s, now.quick_s())
    knobs_s = knobs.reserve_s(now.recipe, now.budget_s, now.quick_s())
    if now.compared:  # the search is over
        found: Step | Ending = "budget" if now.left_s < now.quick_s() else "known"
    else:
        found = search(now.left_s - reserve_s - knobs_s)
    if isinstance(found, Step):
        return _sentinel_step(now, now.left_s - reserve_s) or found
    tuning = knobs.standing(now.recipe, now.space, now.history, now.compared)
    if (step := _knob_step(now, tuning, now.left_s - reserve_s)) is not None:
        return step
    space, history = knobs.narrowed(now.space, now.history, now.compared, tuning)
    tuned = replace(now, problem=replace(now.problem, space=space), history=history)
    if (step := _final_step(tuned)) is not None:
        return step
    best = confirm.winner(space, history)
    if best is not None and best[0].finals:
        return _reference_step(now) or _soak_step(tuned, best[0].point) or found
    # No finalist fits. A confirmed reference would be recommended over faster points; more quick probes may help.
    return search(now.left_s) if found == "budget" and not now.compared else found


def opening(recipe: Recipe, space: Space, device: DeviceInfo, tries: Sequence[Point]) -> tuple[Step, ...]:
    """The baseline, the rule of thumb and the user's own points, each once."""
    steps = {recipe.baseline: "baseline"}
    steps.setdefault(thumb_point(recipe, space, device), "rule of thumb")
    for point in tries:
        steps.setdefault(point, "try")
    return tuple(Step(stage=stage, point=point) for point, stage in steps.items())


def thumb_point(recipe: Recipe, space: Space, device: DeviceInfo) -> Point:
    """The rule of thumb as a point of the space."""
    return possible(recipe, space, rule_of_thumb(recipe, device.host))


def _opening_step(now: Situation) -> Step | None:
    """The next point that was named, though a lighter one crashed or hung: it may want what that one lacked."""
    seen, predicted_s = {result.requested for result in now.history}, now.quick_s()
    weighing = [result for result in now.history if result.status not in ODD]
    for step in now.opening:
        assert step.point is not None
        if step.point not in seen and predicted_s <= now.left_s and is_safe(now.problem, weighing, step.point):
            return replace(step, predicted_s=predicted_s)
    return None


def is_safe(problem: Problem, history: Sequence[ProbeResult], point: Point) -> bool:
    """Whether the memory rule allows a point, of the space or not."""
    return bool(safe_points([point], history, problem.limits, problem.space.rollout)[0])


def _sentinel_step(now: Situation, left_s: float) -> Step | None:
    """The baseline again, where the machine can change and the budget has room for it."""
    predicted_s = now.quick_s()
    roomy = now.budget_s >= SENTINEL_FROM_PROBES * predicted_s and predicted_s <= left_s
    if not now.drifts or not roomy or not epochs.due(now.history, now.recipe.baseline):
        return None
    return Step(stage="sentinel", point=now.recipe.baseline, predicted_s=predicted_s)


def _knob_step(now: Situation, tuning: knobs.Tuning | None, left_s: float) -> Step | None:
    """The next launch that compares further knobs at the incumbent."""
    if tuning is None or tuning.upcoming is None:
        return None
    own = [r.cost_s for r in (*now.history, *now.compared) if r.ok and r.requested == tuning.incumbent]
    predicted_s = max([now.quick_s(), *own[-1:]])
    if predicted_s > left_s or not pays(knobs.HOPED_GAIN, predicted_s, now.planned_s):
        return None
    return Step(stage=knobs.STAGE, point=tuning.upcoming, predicted_s=predicted_s)


def _final_step(now: Situation) -> Step | None:
    """A finalist whose confirmation fits and pays."""

    def wanted(point: Point, gain_fraction: float) -> bool:
        cost_s = now.final_s(point)
        return cost_s <= now.left_s and pays(gain_fraction, cost_s, now.planned_s)

    point = confirm.next_finalist(now.space, now.history, wanted)
    return None if point is None else _final(now, "final", point)


def _final(now: Situation, stage: str, point: Point) -> Step:
    return Step(stage=stage, point=point, grade="final", predicted_s=now.final_s(point))


def _reference_step(now: Situation) -> Step | None:
    """A final window of the baseline and of the rule of thumb: what gains are stated against."""
    stable = {result.requested for result in now.history if result.ok}
    confirmed = {result.requested for result in now.history if result.grade == "final"}
    for step in now.opening:
        if step.stage in ("baseline", "rule of thumb") and step.point in stable and step.point not in confirmed:
            final = _final(now, "final", step.point)
            if final.predicted_s <= now.left_s:
                return final
    return None


def _soak_step(now: Situation, point: Point) -> Step | None:
    """The winner again, in a fresh process, while the budget lasts and the planned training is worth it."""
    step, observed_s = _final(now, "soak", point), confirm.observed_s(now.history, point)
    enough = now.planned_s is not None and observed_s + step.predicted_s > SOAK_SHARE * now.planned_s
    enough = enough or confirm.outruns(now.history, point)
    return None if enough or step.predicted_s > now.left_s else step


def final_reserve_s(budget_s: float, final_cost_s: float, quick_cost_s: float) -> float:
    """Seconds kept for final windows: a fifth of the budget, at least one window, none where that takes too much."""
    reserve_s = max(FINAL_SHARE * budget_s, final_cost_s)
    room = reserve_s <= FINAL_SHARE_MAX * budget_s and budget_s - reserve_s >= FINAL_FROM_PROBES * quick_cost_s
    return reserve_s if room else 0.0


def final_cost_s(
    recipe: Recipe, history: Sequence[ProbeResult], fallback_s: float, point: Point | None = None
) -> float:
    """Seconds of a final probe: what this point's (else the slowest) quick one took, and what its iterations add.

    An iteration of a final window is whole up to a longer limit than a quick one's, so a window of six can
    take far longer than the plan's seconds.
    """
    stable = [result for result in history if result.ok and result.cost_s > 0]
    finals = [result.cost_s for result in stable if result.grade == "final" and result.requested == point]
    if finals:
        return max(finals)
    quick = [result for result in stable if result.grade == "quick"]
    own = [result for result in quick if result.requested == point] or quick
    return max((_longer_s(recipe, result) for result in own), default=fallback_s)


def _longer_s(recipe: Recipe, quick: ProbeResult) -> float:
    """Seconds of a final probe of a point whose quick one is known."""
    seen_s = _seen_step_s(quick)
    final_step_s = _final_step_s(recipe.final, quick, seen_s)
    slow_s = final_step_s if final_step_s > seen_s else 0.0  # one more where settling finds another length
    return quick.cost_s + measuring_s(recipe.final, final_step_s) - measuring_s(recipe.quick, seen_s) + slow_s


def measuring_s(plan: MeasurePlan, step_s: float) -> float:
    """Seconds that discarding and measuring take when each step takes `step_s`: whole steps."""

    def whole(seconds: float, steps: int) -> float:
        return max(steps, math.ceil(seconds / step_s)) * step_s if step_s > 0 else seconds

    return whole(plan.discard_s, plan.discard_iterations) + whole(plan.window_s, plan.window_iterations)


def _seen_step_s(result: ProbeResult) -> float:
    """Seconds of one step (an iteration, or a slice of a long one) in a measured window; 0 where not known."""
    return (result.window_s or 0.0) * result.requested.concurrency / result.iterations if result.iterations else 0.0


def _final_step_s(plan: MeasurePlan, result: ProbeResult, seen_s: float) -> float:
    """Seconds of one step of a final window: a whole iteration, slices of a quarter of the limit above it."""
    rows = float(result.effective.get("rollout") or 0) * result.requested.num_envs * result.requested.concurrency
    if "extrapolated" not in result.flags or not rows or not result.sps:
        return seen_s
    iteration_s = rows / result.sps
    return iteration_s if iteration_s <= plan.long_iteration_s else max(seen_s, plan.long_iteration_s / 4)
