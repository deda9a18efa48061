"""What a recipe file may say, checked by pydantic, with messages a person can act on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from autotune.device.mps import check_sharing
from autotune.errors import ManifestError
from autotune.records import (
    COUNT_MAX,
    KNOBS,
    SHARING,
    Budget,
    BudgetUnit,
    Job,
    KnobValue,
)
from autotune.registry import did_you_mean
from autotune.runs import NAME, NAMED

CONCURRENCY_LEVELS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Levels of concurrency that are tried."""


def levels(knob: str) -> tuple[int, ...]:
    """What a range of a standard knob is made of: `CONCURRENCY_LEVELS`, or powers of two."""
    return CONCURRENCY_LEVELS if knob == "concurrency" else tuple(2**power for power in range(31))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Range(_Strict):
    """``{min = 8, max = 1024}``: the powers of two (levels of concurrency) within."""

    min: int = Field(ge=1, le=COUNT_MAX)
    max: int = Field(ge=1, le=COUNT_MAX)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} must not exceed max = {self.max}")
        return self

    def values(self, knob: str) -> tuple[int, ...]:
        """The values within, ascending.

        Raises:
            ValueError: there is none.
        """
        inside = tuple(value for value in levels(knob) if self.min <= value <= self.max)
        if not inside:
            what = f"levels {list(CONCURRENCY_LEVELS)}" if knob == "concurrency" else "powers of two"
            raise ValueError(f"{knob} = {{min = {self.min}, max = {self.max}}} holds none of the {what}")
        return inside


def _scalar(value: object) -> object:
    if not isinstance(value, (int, float, str, bool)) or value == "":
        raise ValueError("must be a number, a text or true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _form(value: object) -> str | None:
    return "range" if isinstance(value, (dict, Range)) else "list" if isinstance(value, list) else None


Scalar = Annotated[Any, AfterValidator(_scalar)]
Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Scalar], Tag("list")],
    Discriminator(
        _form,
        custom_error_type="knob_values",
        custom_error_message="expected a list such as [8, 16, 32], or {min = 8, max = 64}",
    ),
]


class PlanPart(_Strict):
    """Overrides of a `MeasurePlan`; seconds and iterations."""

    discard_s: float | None = Field(default=None, ge=0, strict=False)
    discard_iterations: int | None = Field(default=None, ge=0)
    window_s: float | None = Field(default=None, gt=0, strict=False)
    window_iterations: int | None = Field(default=None, ge=1)
    long_iteration_s: float | None = Field(default=None, gt=0, strict=False)
    start_timeout_s: float | None = Field(default=None, gt=0, strict=False)
    timeout_s: float | None = Field(default=None, gt=0, strict=False)


class LimitsPart(_Strict):
    """Overrides of `Limits`."""

    vram_fraction: float | None = Field(default=None, gt=0, le=1, strict=False)
    ram_fraction: float | None = Field(default=None, gt=0, le=1, strict=False)
    concurrency_max: int | None = Field(default=None, ge=1)


class JobPart(_Strict):
    """A ``[[jobs]]`` table: exactly one of steps, episodes and hours."""

    id: str = Field(pattern=f"^{NAME.pattern}$")
    env: str = Field(min_length=1, max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**31)
    steps: float | None = Field(default=None, gt=0, le=1e15, strict=False)
    episodes: float | None = Field(default=None, gt=0, le=1e15, strict=False)
    hours: float | None = Field(default=None, gt=0, le=1e15, strict=False)

    @model_validator(mode="after")
    def _whole(self) -> JobPart:
        for unit in ("steps", "episodes"):
            amount = getattr(self, unit)
            if amount is not None and amount != int(amount):
                raise ValueError(f"{unit} = {amount:g} must be a whole number")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> JobPart:
        given = [unit for unit in ("steps", "episodes", "hours") if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, episodes, hours (given: {', '.join(given) or 'none'})")
        return self

    def job(self) -> Job:
        """The record."""
        units: tuple[BudgetUnit, ...] = ("steps", "episodes", "hours")
        unit, amount = next((unit, value) for unit in units if (value := getattr(self, unit)) is not None)
        return Job(id=self.id, env=self.env, seed=self.seed, budget=Budget(unit=unit, amount=float(amount)))


class RecipeFile(_Strict):
    """A whole recipe file."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    workload: str
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    knobs: dict[str, Values]
    grid: dict[str, Values] = Field(default_factory=dict)
    baseline: dict[str, Scalar] = Field(default_factory=dict)
    quick: PlanPart = PlanPart()
    final: PlanPart = PlanPart()
    limits: LimitsPart = LimitsPart()
    jobs: list[JobPart] = Field(min_length=1)
    points: list[dict[str, Scalar]] = Field(default_factory=list)


def ascending(name: str, values: Values) -> tuple[KnobValue, ...]:
    """A knob's allowed values as the recipe means them.

    Raises:
        ValueError: empty, unordered, repeated, of mixed kinds, or (standard knobs) not whole numbers >= 1.
        UsageError: an unknown way of sharing a GPU.
    """
    if isinstance(values, Range):
        return values.values(name)
    if not values:
        raise ValueError(f"{name} = [] needs at least one value")
    for value in values:
        if name in KNOBS:
            check_count(name, value)
        elif name == SHARING:
            check_sharing(value)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        if any(b <= a for a, b in itertools.pairwise(numbers)):
            raise ValueError(f"{name} = {values} must be ascending, without repetition")
    elif len(set(map(repr, values))) != len(values) or len({type(value) for value in values}) != 1:
        raise ValueError(f"{name} = {values} must be distinct values of one kind")
    return tuple(values)


def check_count(name: str, value: object) -> int:
    """A value of a standard knob.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= COUNT_MAX:
        raise ValueError(f"{name} = {value!r} must be a whole number of at least 1 (at most {COUNT_MAX:,})")
    return value


def parse(data: Mapping[str, Any], source: str) -> RecipeFile:
    """Check the data of a recipe file.

    Raises:
        ManifestError: every fault, one a line, as file, key, value and expectation.
    """
    try:
        return RecipeFile.model_validate(dict(data))
    except ValidationError as error:
        lines = list(dict.fromkeys(_message(item) for item in error.errors()))
        raise ManifestError(f"recipe {source}: " + "\n  ".join(lines)) from error


def _message(item: Any) -> str:
    place = [part for index, part in enumerate(item["loc"]) if index != 2 or part not in ("range", "list")]
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in place).replace(".[", "[")
    if item["type"] == "extra_forbidden":
        known = _known_keys(place)
        return f"unknown key {key!r}.{did_you_mean(str(place[-1]), known)} Allowed here: {', '.join(known)}."
    if item["type"] == "missing":
        return f"{key!r} is missing"
    value, expected = item["input"], item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_pattern_mismatch":
        expected = NAMED
    shown = "" if isinstance(value, (dict, list)) and len(str(value)) > 80 else f" = {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}{shown}: expected a finite number"
    return f"{key}{shown}: {expected}"


def _known_keys(place: list[Any]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "quick": PlanPart,
        "final": PlanPart,
        "limits": LimitsPart,
        "jobs": JobPart,
        "knobs": Range,
        "grid": Range,
    }
    model = parts.get(str(place[0]), RecipeFile) if len(place) > 1 else RecipeFile
    return list(model.model_fields)
