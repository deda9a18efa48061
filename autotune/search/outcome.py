"""From the trials of a search to what it found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from autotune.errors import InfeasibleError
from autotune.machine import DeviceInfo
from autotune.records import REFUSED, Job, Point, ProbeResult, Recipe
from autotune.search import confirm, knobs
from autotune.search.episodes import game_lengths, steps_of
from autotune.search.memory import memory_limits
from autotune.search.plan import Ending, thumb_point
from autotune.search.precision import launch_fraction
from autotune.search.propose import Problem, too_costly
from autotune.search.result import FORBIDS, SLOWED, StudyResult, what_slowing_means
from autotune.search.sharing import sharing_gain
from autotune.search.space import space_of
from autotune.search.trials import TrialRecord, comparable_history
from autotune.search.worth import training_s
from autotune.stats import Interval, log_ratio
from autotune.units import counted
from autotune.workloads.learning import LearningChange, learning_of

_COST_SHARE_MAX = 0.15


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a search has measured and spent.

    Attributes:
        history: results that count, on the machine's last footing.
        compared: those of further knobs, which `history` leaves out.
        records: every trial.
        ended: why the search ended.
        spent_s: seconds, over all resumptions.
        budget_s: what was allowed.
        price: US dollars per hour.
    """

    history: Sequence[ProbeResult]
    compared: Sequence[ProbeResult]
    records: tuple[TrialRecord, ...]
    ended: Ending
    spent_s: float
    budget_s: float
    price: float | None


def problem_of(recipe: Recipe, device: DeviceInfo, budget_s: float) -> Problem:
    """What a search of a recipe on a machine may measure within a budget."""
    quick = recipe.quick
    return Problem(
        space=space_of(recipe),
        limits=memory_limits(recipe.limits, device),
        cost_max_s=max(_COST_SHARE_MAX * budget_s, 2 * (quick.discard_s + quick.window_s)),
        slice_s=None if recipe.workload == "replay" else quick.long_iteration_s / 4,
    )


def by_stage(records: Sequence[TrialRecord]) -> tuple[list[ProbeResult], list[ProbeResult]]:
    """What the trials that count say on the machine's last footing: of the search, and of comparing further knobs."""
    kept = [record for record in records if record.counts]
    results = list(zip(kept, comparable_history(kept), strict=True))
    history = [result for record, result in results if record.stage != knobs.STAGE]
    return history, [result for record, result in results if record.stage == knobs.STAGE]


def found_in(
    state: Mapping[str, Any],
    records: tuple[TrialRecord, ...],
    recipe: Recipe,
    device: DeviceInfo,
    price: float | None,
) -> StudyResult | None:
    """What a search has found by its run's `state` and trials; None where it was none, or nothing was stable."""
    budget_s, (history, compared) = state.get("budget_s"), by_stage(records)
    if not isinstance(budget_s, (int, float)) or not (history or compared):
        return None
    problem = problem_of(recipe, device, budget_s)
    ended: Ending = state["ended"] if state.get("ended") in get_args(Ending) else "stopped"
    account = Account(
        history=history,
        compared=compared,
        records=records,
        ended=ended,
        spent_s=float(state.get("spent_s", 0.0)),
        budget_s=float(budget_s),
        price=price,
    )
    try:
        return conclude(recipe, problem, account, thumb=thumb_point(recipe, problem.space, device))
    except InfeasibleError:
        return None


def conclude(recipe: Recipe, problem: Problem, account: Account, *, thumb: Point) -> StudyResult:
    """What came out.

    Args:
        recipe: what was searched.
        problem: its points and limits.
        account: what was measured and spent.
        thumb: the rule of thumb.

    Raises:
        InfeasibleError: nothing was stable.
    """
    history, compared = account.history, account.compared
    tuning = knobs.standing(recipe, problem.space, history, compared)
    found = confirm.winner(*knobs.narrowed(problem.space, history, compared, tuning))
    if found is None:
        raise InfeasibleError(_nothing(recipe, account))
    best, tied = found
    every = [*compared, *history]
    result = confirm.published(every, best.point)
    # lighter points were measured before any further knob moved
    heaviest = replace(best.point, extra=tuning.incumbent.extra) if tuning else best.point
    baseline, rule_of_thumb = _stated(history, recipe.baseline), _stated(history, thumb)
    length = steps_of(game_lengths(recipe.jobs, every))
    jobs = () if recipe.workload == "replay" else recipe.jobs  # a surface plans no training
    return StudyResult(
        point=best.point,
        result=result,
        baseline=baseline,
        rule_of_thumb=rule_of_thumb,
        tied=tuple(entry.point for entry in tied),
        ladder=confirm.lighter(history, heaviest),
        trials=account.records,
        points_measured=len(confirm.stable_points(every)),
        spent_s=account.spent_s,
        budget_s=account.budget_s,
        price_usd_per_hour=account.price,
        ended=account.ended,
        skipped=tuple(too_costly(problem, history)),
        observed_s=confirm.observed_s(every, best.point),
        training_s=training_s(jobs, result, length, confirm.at_fewer(every, best.point)),
        baseline_training_s=_least_s(jobs, baseline, length, history),
        rule_of_thumb_training_s=_least_s(jobs, rule_of_thumb, length, history),
        sooner=sooner_than(best.point, jobs, length, every),
        launch_fraction=launch_fraction(history),
        knobs=knobs.concluded(recipe, tuning) if tuning else (),
        sharing=sharing_gain(history, best.point, [entry.point for entry in tied]),
        learning=learning_change(recipe, result, baseline),
    )


def sooner_than(
    recommended: Point, jobs: Sequence[Job], length: Mapping[str, float], history: Sequence[ProbeResult]
) -> tuple[Point, float] | None:
    """The stable point that ends the jobs soonest, and its seconds; None unless clearly before the recommended one.

    Soonest by the upper end of its seconds; clearly where the interval of the ratio of both lies below 1. Only at
    another concurrency: at the same one it is as fast or slower while all places are taken.
    """

    def seconds(point: Point) -> Interval | None:
        stated = (*confirm.at_fewer(history, point), confirm.published(history, point))

        def at(end: str) -> float | None:
            *fewer, own = [replace(each, sps=max(0.0, getattr(each, end) or 0.0)) for each in stated]
            return training_s(jobs, own, length, fewer)

        value = at("sps")
        return None if value is None else (value, at("sps_high"), at("sps_low"))

    others = [each.point for each in confirm.pool(history) if each.point.concurrency != recommended.concurrency]
    plans = [(point, taken) for point in others if (taken := seconds(point)) and taken[2]]
    planned = seconds(recommended)
    if not plans or planned is None:
        return None
    point, taken = min(plans, key=lambda pair: pair[1][2] or math.inf)
    latest = log_ratio(taken, planned)[2]
    return (point, taken[0]) if latest is not None and latest < 1 else None


def _least_s(
    jobs: Sequence[Job], reference: ProbeResult | None, length: Mapping[str, float], history: Sequence[ProbeResult]
) -> float | None:
    """Seconds of the planned training at a reference, at least: what is saved against it is not overstated."""
    fewer = confirm.at_fewer(history, reference.requested) if reference else ()
    return training_s(jobs, reference, length, fewer, shared=True)


def learning_change(recipe: Recipe, tuned: ProbeResult, baseline: ProbeResult | None) -> LearningChange | None:
    """What a measured point feeds the learner beside the baseline; None where the recipe does not say."""
    effective = baseline.effective if baseline else {}
    sides = (
        learning_of(tuned.requested, recipe.hyperparameters, tuned.effective),
        learning_of(recipe.baseline, recipe.hyperparameters, effective),
    )
    return LearningChange(tuned=sides[0], baseline=sides[1]) if sides[0] and sides[1] else None


def _stated(history: Sequence[ProbeResult], point: Point) -> ProbeResult | None:
    """The published result of a point, or its failure; None when it was not measured."""
    own = [result for result in history if result.requested == point]
    if any(result.measured for result in own):
        return confirm.published(history, point)
    return own[-1] if own else None


def _nothing(recipe: Recipe, account: Account) -> str:
    history = account.history
    if not history and account.ended == "stopped":
        return f"no point of recipe {recipe.name!r} was measured before the search was stopped; run it again to go on"
    if not history:
        reason = f" The last one: {account.records[-1].result.detail}" if account.records else ""
        return f"no probe of recipe {recipe.name!r} ended within the budget: give it a larger one (--budget).{reason}"
    failures = [result for result in history if not result.ok]
    slowing = ", ".join(point.label() for point in confirm.slowing_points(history))
    if not failures and slowing:
        return f"no point of recipe {recipe.name!r} is stable: {slowing} {what_slowing_means('[final] window_s')}"
    also = f"{slowing} {SLOWED}, and " if slowing else ""
    failed = f"no point of recipe {recipe.name!r} ran stably: {also}{counted(len(failures), 'probe')} failed"
    if recipe.workload == "replay":
        statuses = Counter(result.status for result in failures)
        counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
        known = "The surface has no point that ran among those that the search may try. "
        why = known if account.ended == "known" else ""
        return f"{failed} ({counts}). {why}Begin with a row that ran (--baseline): {FORBIDS}."
    remedy = (
        f"Look at the logs in the run's folder, begin with what you know to run (--baseline: {FORBIDS}), or allow "
        "lighter points in the recipe."
    )
    if all(REFUSED in result.flags for result in history):
        remedy = (
            "Each time the program ended by itself before it was measured: correct the command by what it says, "
            "and try it without autotune."
        )
    last = (failures or history)[-1]
    return f"{failed}. {remedy} The last one ({last.requested.label()}) {last.status}: {last.detail or 'no detail'}"
