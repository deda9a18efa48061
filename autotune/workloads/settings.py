"""Hyperparameters of a workload as a pydantic model, refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autotune.errors import UsageError
from autotune.records import KNOBS, SHARING, KnobValue, Point
from autotune.registry import did_you_mean

_ENVIRONMENTS = "env_options"
"""The hyperparameter, of workloads that have it, which takes options of the environment."""


class Settings(BaseModel):
    """Base of a workload's hyperparameters: frozen, no unknown names, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


Model = TypeVar("Model", bound=Settings)


def parse_settings(model: type[Model], workload: str, hyperparameters: Mapping[str, Any]) -> Model:
    """The workload's settings.

    Raises:
        UsageError: an unknown name or an impossible value; the message names value, expectation and remedy.
    """
    try:
        return model.model_validate(dict(hyperparameters))
    except ValidationError as error:
        known = list(model.model_fields)
        messages = [_message(workload, dict(problem), known) for problem in error.errors()]
        raise UsageError("\n".join(messages)) from None


def workload_knobs(point: Point) -> dict[str, KnobValue]:
    """The point's further knobs that a workload honours: how processes share a GPU is the executor's affair."""
    return {name: value for name, value in point.extra if name != SHARING}


def check_counts(point: Point, rollout: int | None = None, *, or_else: str | None = None) -> None:
    """Refuse points that can never run: a standard knob below 1, or a minibatch larger than the rollout.

    Args:
        point: as asked for.
        rollout: vector steps of an iteration there, None where there are none.
        or_else: what makes the rollout large enough, more environments by default.

    Raises:
        UsageError: names the value, the expectation and the remedy.
    """
    for name in KNOBS:
        if getattr(point, name) < 1:
            raise UsageError(f"{name} is {getattr(point, name)}; it must be at least 1")
    if rollout is None or point.batch_size <= point.num_envs * rollout:
        return
    samples, need = point.num_envs * rollout, f"num_envs >= {-(-point.batch_size // rollout)}"
    raise UsageError(
        f"batch_size {point.batch_size} is larger than the rollout, which has num_envs {point.num_envs} x {rollout} "
        f"steps = {samples} samples; use batch_size <= {samples} or {or_else or need}"
    )


def _message(workload: str, problem: Mapping[str, Any], known: list[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "hyperparameters"
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(name, known)
        message = f"workload {workload!r} has no hyperparameter {name!r}.{hint} There are: {', '.join(known)}."
        if _ENVIRONMENTS in known:
            message += f" An option of EnvPool's own belongs in a table: {_ENVIRONMENTS} = {{ {name} = ... }}."
        return message
    expectation = str(problem["msg"]).removeprefix("Value error, ")
    return f"hyperparameter {name!r} of workload {workload!r} is {problem['input']!r}: {expectation}."
