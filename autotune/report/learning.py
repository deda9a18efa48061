"""What a point changes for learning, read from a run's facts (`autotune.workloads.learning` has the arithmetic)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.manifest_schema import LearningSection
from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.search.learning import warning_of
from autotune.workloads import learning
from autotune.workloads.learning import Learning, LearningChange


def learning_of(measured: Measured, hyperparameters: Mapping[str, Any]) -> Learning | None:
    """The point's effect on the learner, None when the workload names no rollout and epochs."""
    return learning.learning_of(measured.point, hyperparameters, measured.result.effective)


def checked(facts: Facts) -> LearningSection | None:
    """What pilots found of learning at the tuned point, None where none were trained for it."""
    known = facts.manifest.checked() if facts.manifest else None
    return known if known and known.status != "not checked" else None


def loud_change(facts: Facts) -> str | None:
    """A warning when the tuned point teaches very differently from the baseline, None otherwise."""
    if facts.tuned is None or facts.baseline is None:
        return None
    tuned = learning_of(facts.tuned, facts.hyperparameters)
    baseline = learning_of(facts.baseline, facts.hyperparameters)
    change = LearningChange(tuned=tuned, baseline=baseline) if tuned and baseline else None
    return warning_of(change, facts.recipe.workload if facts.recipe else "", facts.tuned.point, facts.baseline.point)
