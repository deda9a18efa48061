"""What a point feeds the learner: rollout and learning rate in effect, samples per update, updates per env step.

A faster point is no gain if each env step teaches less. Everything here is pure: sessions train by it, searches
count by it, manifests and reports state it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from autotune.errors import UsageError
from autotune.records import COUNT_MAX, Point
from autotune.units import format_count
from autotune.workloads.settings import Settings, check_counts

LOUD_FACTOR = 2.0
"""A point that moves what the learner is fed by more than this is spoken of loudly."""

Scaling = Literal["none", "linear", "sqrt"]
_Count = Annotated[int, Field(ge=1, le=COUNT_MAX)]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How many vector steps are collected before each update.

    Attributes:
        steps: as the recipe says.
        samples_per_update: least and most env steps that one update may learn from (num_envs x rollout); None
            keeps `steps` at every point.
    """

    steps: int
    samples_per_update: tuple[int, int] | None = None

    def at(self, num_envs: int) -> int:
        """Vector steps with this many environments: `steps`, or the nearest number that stays in the range.

        Raises:
            UsageError: no whole rollout of these environments has so many samples.
        """
        if self.samples_per_update is None or num_envs < 1:
            return self.steps
        low, high = self.samples_per_update
        least, most = -(-low // num_envs), high // num_envs
        if least > most:
            raise UsageError(_out_of_range(num_envs, low, high))
        return min(max(self.steps, least), most)

    def samples(self, num_envs: int) -> int:
        """Env steps of one update.

        Raises:
            UsageError: see `at`.
        """
        return num_envs * self.at(num_envs)

    def allows(self, num_envs: int) -> bool:
        """Whether a rollout of these environments can stay in the range."""
        try:
            return self.at(num_envs) >= 1
        except UsageError:
            return False


def _out_of_range(num_envs: int, low: int, high: int) -> str:
    said = f"num_envs {num_envs} cannot stay within samples_per_update = [{low}, {high}]"
    if num_envs > high:
        return f"{said}: one step of them is {num_envs} samples; use num_envs <= {high} or raise the upper end"
    below = high // num_envs
    return (
        f"{said}: {below} steps of them are {below * num_envs} samples and {below + 1} are {(below + 1) * num_envs}; "
        "use another num_envs or widen the range"
    )


def rollout_of(settings: Mapping[str, Any]) -> Rollout | None:
    """The rollout that hyperparameters state, None where they state none that can be read.

    Args:
        settings: hyperparameters in a recipe's words, a point's further knobs put in; whether they are
            possible is for the workload to say.
    """
    steps, span = settings.get("rollout"), settings.get("samples_per_update")
    if not _is_count(steps):
        return None
    if isinstance(span, (list, tuple)) and len(span) == 2 and all(map(_is_count, span)) and span[0] <= span[1]:
        return Rollout(steps=steps, samples_per_update=(span[0], span[1]))
    return Rollout(steps=steps)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def scaled_learning_rate(learning_rate: float, *, meant_for: int, batch_size: int, scaling: Scaling) -> float:
    """The learning rate for another minibatch: times (batch_size / meant_for), or its square root, or as it is.

    Linear keeps the mean of the steps over the same samples (Goyal et al. 2017, arXiv:1706.02677, section 2.1);
    the square root keeps their variance (Krizhevsky 2014, arXiv:1404.5997, section 5; Hoffer et al. 2017,
    arXiv:1705.08741, section 4) and is the rule that carries over to Adam (Malladi et al. 2022, arXiv:2205.10287).
    All were derived for supervised learning: for PPO they are something to try, and to check.

    Args:
        learning_rate: that suits `meant_for`.
        meant_for: samples of the minibatch that it was chosen with.
        batch_size: samples of the minibatch in effect.
        scaling: the rule.
    """
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[scaling]
    return float(learning_rate * (batch_size / meant_for) ** power)


def _ordered(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError("expected [least, most], the smaller number first")
    return span


class LearningRule(Settings):
    """Hyperparameters that keep the learning rule under control while a point moves; shared by PPO workloads.

    Attributes:
        rollout: vector steps collected before each update.
        learning_rate: the optimizer's.
        samples_per_update: least and most samples of one update, num_envs x rollout: the rollout in effect is the
            nearest to `rollout` that stays within; None keeps `rollout` at every point.
        learning_rate_scaling: how the learning rate follows batch_size, see `scaled_learning_rate`.
        learning_rate_batch_size: the batch_size that `learning_rate` is meant for.
    """

    rollout: int
    learning_rate: float
    samples_per_update: Annotated[tuple[_Count, _Count], Field(strict=False), AfterValidator(_ordered)] | None = None
    learning_rate_scaling: Scaling = "none"
    learning_rate_batch_size: int | None = Field(default=None, ge=1, le=COUNT_MAX, validate_default=True)

    @field_validator("learning_rate_batch_size")
    @classmethod
    def _stated(cls, value: int | None, info: ValidationInfo) -> int | None:
        scaling = info.data.get("learning_rate_scaling", "none")
        if value is None and scaling != "none":
            raise ValueError(
                f"learning_rate_scaling = {scaling!r} needs the batch_size that learning_rate is meant for, such as 256"
            )
        return value

    def in_effect(self, point: Point) -> Self:
        """These settings as they take effect at a point: rollout and learning rate adapted; again, they stay.

        Raises:
            UsageError: the point cannot stay within samples_per_update.
        """
        rule = Rollout(steps=self.rollout, samples_per_update=self.samples_per_update)
        changes: dict[str, Any] = {"rollout": rule.at(point.num_envs)}
        if self.learning_rate_batch_size is not None and point.batch_size >= 1:
            changes["learning_rate_batch_size"] = point.batch_size
            changes["learning_rate"] = scaled_learning_rate(
                self.learning_rate,
                meant_for=self.learning_rate_batch_size,
                batch_size=point.batch_size,
                scaling=self.learning_rate_scaling,
            )
        return self.model_copy(update=changes)

    def check_counts(self, point: Point) -> None:
        """`settings.check_counts` of a point at which these settings are in effect.

        Raises:
            UsageError: the point can never run.
        """
        check_counts(point, self.rollout, or_else="raise samples_per_update" if self.samples_per_update else None)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How one point feeds the learner; see Schulman et al. 2017, algorithm 1, for the loop that is counted.

    Attributes:
        samples_per_update: env steps collected between two policy updates: num_envs x rollout.
        updates_per_step: optimizer steps per env step: epochs x minibatches / samples per update, the last
            minibatch smaller where the size does not divide them.
    """

    samples_per_update: float
    updates_per_step: float


def learning_of(point: Point, hyperparameters: Mapping[str, Any], effective: Mapping[str, Any]) -> Learning | None:
    """The point's effect on the learner, None when the workload names no rollout and epochs.

    Args:
        point: asked for.
        hyperparameters: fixed for every point.
        effective: what took effect, empty where that is not known.
    """
    asked = {**hyperparameters, **point.knobs()}
    rule = rollout_of(asked)
    if rule is not None and rule.allows(point.num_envs):
        asked["rollout"] = rule.at(point.num_envs)
    known = {**asked, **effective}
    values = [known.get(name) for name in ("num_envs", "batch_size", "rollout", "epochs")]
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        return None
    num_envs, batch_size, rollout, epochs = (float(value) for value in values if value is not None)
    samples = num_envs * rollout
    minibatches = math.ceil(samples / batch_size)
    return Learning(samples_per_update=samples, updates_per_step=epochs * minibatches / samples)


@dataclass(frozen=True, kw_only=True)
class LearningChange:
    """How the tuned point feeds the learner beside the baseline."""

    tuned: Learning
    baseline: Learning

    @property
    def samples_ratio(self) -> float:
        """Samples per update at the tuned point over those at the baseline."""
        return self.tuned.samples_per_update / self.baseline.samples_per_update

    @property
    def updates_ratio(self) -> float:
        """Optimizer steps per env step at the tuned point over those at the baseline."""
        return self.tuned.updates_per_step / self.baseline.updates_per_step

    @property
    def warning(self) -> str | None:
        """What moved by more than `LOUD_FACTOR`: ``16 times more samples per update and ...``; None when nothing."""
        return _loud({"samples per update": self.samples_ratio, "optimizer steps per env step": self.updates_ratio})


UNTOLD = "what that does to samples per update and optimizer steps per env step only the program knows"
"""Of a point that moves the knobs of a workload which tells no rollout and epochs."""


def knobs_warning(point: Point, baseline: Point) -> str | None:
    """Knobs that moved by more than `LOUD_FACTOR`, for a workload of which no more is known; None when none did."""
    return _loud(
        {
            "environments": point.num_envs / baseline.num_envs,
            "samples per minibatch": point.batch_size / baseline.batch_size,
        }
    )


def _loud(ratios: Mapping[str, float]) -> str | None:
    parts = [
        f"{format_count(max(ratio, 1 / ratio))} times {'more' if ratio > 1 else 'fewer'} {name}"
        for name, ratio in ratios.items()
        if max(ratio, 1 / ratio) > LOUD_FACTOR
    ]
    return " and ".join(parts) or None
