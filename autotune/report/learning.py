"""What a point changes for learning: faster stepping is no gain if each step teaches less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.report.facts import Facts, Measured
from autotune.units import format_count

LOUD_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How one point feeds the learner; see Schulman et al. 2017, algorithm 1, for the loop that is counted.

    Attributes:
        samples_per_update: env steps collected between two policy updates: num_envs x rollout.
        updates_per_step: optimizer steps per env step: epochs / minibatch size, the minibatch no
            larger than the rollout.
    """

    samples_per_update: float
    updates_per_step: float


def learning_of(measured: Measured, hyperparameters: Mapping[str, Any]) -> Learning | None:
    """The point's effect on the learner, None when the workload names no rollout and epochs."""
    known = {**hyperparameters, **measured.point.knobs(), **measured.result.effective}
    values = [known.get(name) for name in ("num_envs", "batch_size", "rollout", "epochs")]
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        return None
    num_envs, batch_size, rollout, epochs = (float(value) for value in values if value is not None)
    samples = num_envs * rollout
    return Learning(samples_per_update=samples, updates_per_step=epochs / min(batch_size, samples))


def change(after: float, before: float) -> float:
    """How many times larger or smaller, always at least 1."""
    return max(after / before, before / after)


def loud_change(facts: Facts) -> str | None:
    """A warning when the tuned point teaches very differently from the baseline, None otherwise."""
    if facts.tuned is None or facts.baseline is None:
        return None
    tuned = learning_of(facts.tuned, facts.hyperparameters)
    baseline = learning_of(facts.baseline, facts.hyperparameters)
    if tuned is None or baseline is None:
        return None
    parts = [
        f"{format_count(change(after, before))} times {'more' if after > before else 'fewer'} {name}"
        for name, after, before in (
            ("samples per update", tuned.samples_per_update, baseline.samples_per_update),
            ("optimizer steps per env step", tuned.updates_per_step, baseline.updates_per_step),
        )
        if change(after, before) > LOUD_FACTOR
    ]
    return " and ".join(parts) or None
