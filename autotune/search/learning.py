"""What a search says of learning: what the tuned point moves, and what pilots found of it, as a manifest keeps it."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.manifest_schema import Knobs, LearningSection, PilotReturns
from autotune.records import Point, Recipe
from autotune.search.knobs import NEUTRAL
from autotune.search.result import StudyResult
from autotune.units import format_count
from autotune.workloads.learning import UNTOLD, LearningChange, knobs_warning

COMPARE = "Compare a short training at both settings before a long one."
"""What to do where no guard can: it knows nothing of a program of the user's own."""
_FED = ("samples per update", "optimizer steps per env step")


def learns_alike(one: Point, other: Point) -> bool:
    """Whether one process of either point trains in the same way: only what learning does not see differs."""
    return _fed(one) == _fed(other)


def _fed(point: Point) -> dict[str, object]:
    return {name: value for name, value in point.knobs().items() if name not in (*NEUTRAL, "concurrency")}


def warning_of(change: LearningChange | None, workload: str, point: Point, baseline: Point) -> str | None:
    """What a point moves loudly: of what the learner is fed, of the knobs where that is not known; None for nothing."""
    if change is not None:
        return change.warning
    return None if workload == "replay" else knobs_warning(point, baseline)  # a replay trains nothing


def unchecked(found: StudyResult, recipe: Recipe, detail: str = "") -> LearningSection:
    """What is known of learning without pilots.

    Args:
        found: by the search.
        recipe: that was searched.
        detail: why there were none.
    """
    change = found.learning
    warning = warning_of(change, recipe.workload, found.point, recipe.baseline)
    if warning and change is None:
        detail = detail or UNTOLD
    if learns_alike(found.point, recipe.baseline):
        detail = "each process trains as at the baseline, only speed differs"
    return LearningSection(
        status="not checked",
        detail=detail,
        warning=warning,
        point=knobs_of(found.point),
        baseline=knobs_of(recipe.baseline),
        samples_per_update_ratio=change.samples_ratio if change else None,
        updates_per_step_ratio=change.updates_ratio if change else None,
    )


def knobs_of(point: Point) -> Knobs:
    """A point as manifests write it."""
    return Knobs.model_validate(point.knobs())


def sentences(learning: LearningSection) -> list[str]:
    """What a search or a report says of it; the first sentence is the verdict, loud where it has to be."""
    loud = f"{learning.warning} than the baseline" if learning.warning else ""
    if learning.status == "not checked":
        return _not_checked(learning, loud)
    evidence, moved = _evidence(learning), loud or _fed_beside(learning)
    although = [f"The tuned point has {moved}."] if moved else []
    if learning.status == "passed":
        bound = "not worse by more than the margin"
        found = bound if learning.margin is not None else "better than the baseline, which learnt nothing"
        return [f"Learning checked: {evidence}: {found}.", *although]
    if learning.status == "failed":
        found = "an env step at the tuned point teaches less than at the baseline"
        if _crashed(learning):
            found = "the tuned point did not survive its pilots"
        why = f" ({learning.detail})" if learning.detail else ""
        return [
            f"LEARNING FAILED THE GUARD: {found}{why}: {evidence}. The recommendation stands for speed alone.",
            *although,
            f"What to do: {remedy(learning)}.",
        ]
    return [
        f"LEARNING NOT SETTLED: {learning.detail or 'the interval reaches beyond the margin'}: {evidence}.",
        *although,
        f"What to do: {_what_settles(learning)}.",
    ]


def _what_settles(learning: LearningSection) -> str:
    if learning.difference_low is None:  # too few pairs: no number of seeds mends that
        return (
            "read why in the pilot's log, in guard/ of the run, and compare with a baseline that gets to its end "
            "(--baseline); where no game ended, train longer pilots (--guard-steps)"
        )
    return (
        "more --guard-seeds narrow the interval, more --guard-steps let both learn more; choose them once, for raising "
        "them until it passes is optional stopping"
    )


def remedy(learning: LearningSection) -> str:
    """What to do about a point that teaches less, by what it moves (unknown is taken for moved), or that crashed."""
    if _crashed(learning):
        return (
            "read why in the pilot's log, in guard/ of the run; where its loss was not finite any more, lower "
            "learning_rate or use precision = 'fp32', and where memory ran out, allow fewer environments (num_envs) in "
            "the recipe's [knobs], and search again; or train at the baseline"
        )
    samples, updates = learning.samples_per_update_ratio, learning.updates_per_step_ratio
    changes = ["allow fewer environments (num_envs) in the recipe's [knobs]"]
    if samples is None or samples > 1:
        changes.append("keep its samples per update in a range (samples_per_update = [least, most])")
    if updates is None or updates < 1:
        changes += [
            "allow smaller minibatches only (batch_size)",
            "let the learning rate follow (learning_rate_scaling)",
        ]
    return f"{', or '.join(changes)}, and search again; or train at the baseline"


def _crashed(learning: LearningSection) -> bool:
    """Whether a pilot at the tuned point crashed: that is no matter of how much an env step teaches."""
    returns = learning.tuned_returns
    return learning.status == "failed" and bool(learning.detail) and returns is not None and None in returns.by_seed


def _fed_beside(learning: LearningSection) -> str:
    """What the learner is fed, as multiples of the baseline's; nothing where that is not known."""
    ratios = (learning.samples_per_update_ratio, learning.updates_per_step_ratio)
    fed = [f"{ratio:.2g}x {name}" for ratio, name in zip(ratios, _FED, strict=True) if ratio is not None]
    return f"{', '.join(fed)} of the baseline's" if fed else ""


def concerns(learning: LearningSection | None) -> list[str]:
    """What is to be said again to whoever trains at the point; nothing where learning passed or hardly moved."""
    if learning is None or learning.status == "passed" or (learning.status == "not checked" and not learning.warning):
        return []
    return sentences(learning)


def _not_checked(learning: LearningSection, moved: str) -> list[str]:
    why = f" ({learning.detail})" if learning.detail else ""
    if moved:
        told = learning.samples_per_update_ratio is not None
        how = "`autotune search --guard` compares short trainings of both." if told else COMPARE
        return [f"LEARNING NOT CHECKED, AND IT MAY CHANGE: {moved}{why}; an env step may teach less. {how}"]
    against = f": {fed}" if (fed := _fed_beside(learning)) else ""
    return [f"Learning not checked{why}{against}."] if why or against else []


def _evidence(learning: LearningSection) -> str:
    """``return 31.2 [28, 34] against 30.1 [27, 33] at the baseline, difference 1.1 [-2, 4], margin 2.9 (10 % ...)``."""
    where = f"after {format_count(learning.env_steps)} env steps of {learning.env}, {len(learning.seeds)} seeds each"
    known = learning.difference is not None
    parts = [
        f"return {_returned(learning.tuned_returns)} against {_returned(learning.baseline_returns)} at the baseline",
        *([f"difference {_with_ends(_interval(learning))}"] if known else []),
        *([_margin(learning)] if learning.margin is not None else []),
        where,
    ]
    return ", ".join(parts)


def _interval(learning: LearningSection) -> Sequence[float | None]:
    return learning.difference, learning.difference_low, learning.difference_high


def _margin(learning: LearningSection) -> str:
    share = f" ({learning.margin_fraction:.0%} of what the baseline learnt)" if learning.margin_fraction else ""
    return f"margin {format_count(learning.margin)}{share}"


def _returned(returns: PilotReturns | None) -> str:
    return _with_ends((returns.final, returns.final_low, returns.final_high)) if returns else "unknown"


def _with_ends(values: Sequence[float | None]) -> str:
    value, low, high = values
    ends = "" if low is None or high is None else f" [{format_count(low)}, {format_count(high)}]"
    return f"{format_count(value)}{ends}"
