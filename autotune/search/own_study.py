"""A user's own Optuna study: its trials as measurements, what its trials suggest as knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import UsageError
from autotune.probe.schema import levels
from autotune.records import COUNT_MAX, KNOBS, REFUSED, Point, ProbeResult
from autotune.registry import unknown_name
from autotune.search.memory import UNTOLD, MemoryLimits
from autotune.search.propose import Problem
from autotune.search.space import Space, grid

CHOSEN = "autotune:point"
"""System attribute of a trial that ended before it had suggested every knob: the point that it was to measure."""


def measured_by(trial: FrozenTrial) -> ProbeResult | None:
    """What a trial measured: its value as steps per second; None of one that says nothing of a point.

    It may carry the attributes ``vram_peak_bytes`` and ``ram_peak_bytes``; one whose constraints are violated, or
    whose value is not above zero, counts as failed. One without a value (the objective raised, was stopped or pruned)
    is not measured again, and forbids nothing heavier: it need not be for its weight.
    """
    value = trial.value if trial.state == TrialState.COMPLETE else None
    ok = _is_rate(value) and all(each <= 0 for each in trial.constraints.values())
    suggested = {name: trial.params[name] for name in KNOBS if name in trial.params}
    knobs = dict(trial.system_attrs.get(CHOSEN, {})) | suggested
    if ok and knobs:
        knobs = dict.fromkeys(KNOBS, 1) | knobs
    if "num_envs" not in knobs or "batch_size" not in knobs:
        return None
    return ProbeResult(
        requested=Point.from_knobs(knobs),
        status="ok" if ok else "crashed",
        grade="quick",
        sps=value if ok else None,
        cost_s=float(trial.user_attrs.get("cost_s", trial.duration.total_seconds() if trial.duration else 0.0)),
        vram_peak_bytes=trial.user_attrs.get("vram_peak_bytes"),
        ram_peak_bytes=trial.user_attrs.get("ram_peak_bytes"),
        flags=() if ok else (REFUSED if value is None else UNTOLD,),
    )


def _is_rate(value: float | None) -> bool:
    return value is not None and 0 < value < math.inf


def check_knobs(knobs: Mapping[str, Sequence[object]]) -> None:
    """Refuse values of knobs that a person has misspelt or that are no counts.

    Raises:
        UsageError: names the knob and the value.
    """
    for name, values in knobs.items():
        if name not in KNOBS:
            raise UsageError(
                f"{unknown_name('knob', name, list(KNOBS))} Further parameters of a study are drawn at random; leave "
                "them out of knobs"
            )
        for value in values:
            if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= COUNT_MAX:
                raise UsageError(f"{name}={value!r} must be a whole number of at least 1 and at most {COUNT_MAX}")


def complete(
    study: Study, trial: FrozenTrial, point: Point, values: Sequence[float] | None, problem: Problem | None
) -> None:
    """Keep the point of a trial that ended before it had suggested every knob: it would be proposed again and again.

    Args:
        study: of the trial.
        trial: that ends.
        point: it was to measure.
        values: that it returned, None where it returned none.
        problem: that the sampler was given.

    Raises:
        UsageError: it was measured without a knob of which there are several values.
    """
    missing = [name for name in KNOBS if name not in trial.params]
    if not missing:
        return
    study._storage.set_trial_system_attr(trial._trial_id, CHOSEN, point.knobs())
    if problem is None or not values or not _is_rate(values[0]):
        return
    for name, there in zip(KNOBS, problem.space.levels, strict=True):
        if name in missing and len(there) > 1:
            raise UsageError(
                f"the trial was measured without suggesting {name}, and the sampler was given {len(there)} values of "
                f"it: suggest {name} as well, or make the sampler with one value"
            )


def problem_of(trials: Sequence[FrozenTrial], limits: MemoryLimits) -> Problem | None:
    """The problem that a study's own distributions describe, None before they are known."""
    known = next((trial.distributions for trial in reversed(trials) if _says_knobs(trial)), None)
    if known is None:
        return None
    knobs = {name: _values(name, known[name]) for name in KNOBS if name in known}
    return Problem(space=Space(points=tuple(grid(knobs))), limits=limits)


def _says_knobs(trial: FrozenTrial) -> bool:
    """Whether a trial has suggested all the knobs that there are: the usual two, or any where it was measured."""
    if {"num_envs", "batch_size"} <= set(trial.distributions):
        return True
    measured = trial.state == TrialState.COMPLETE and _is_rate(trial.value)
    return measured and any(name in trial.distributions for name in KNOBS)


def _values(name: str, distribution: BaseDistribution) -> list[int]:
    if isinstance(distribution, CategoricalDistribution):
        return sorted(int(choice) for choice in distribution.choices if isinstance(choice, int))
    if not isinstance(distribution, IntDistribution):
        raise UsageError(f"{name} must be suggested with suggest_int or suggest_categorical, not {distribution}")
    within = [v for v in levels(name) if distribution.low <= v <= distribution.high] or [distribution.low]
    return sorted({distribution.low + _steps_to(distribution, v) * distribution.step for v in within})


def _steps_to(distribution: IntDistribution, value: int) -> int:
    """Steps from the lower end of a range to its value nearest to another one."""
    most = (distribution.high - distribution.low) // distribution.step
    return min(most, round((value - distribution.low) / distribution.step))


def allows(distribution: BaseDistribution, value: int) -> bool:
    """Whether a study may be given this value of a knob."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(distribution, IntDistribution) and value in range(
        distribution.low, distribution.high + 1, distribution.step
    )
