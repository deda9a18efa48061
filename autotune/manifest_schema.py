"""The manifest's sections: strict pydantic models."""

from __future__ import annotations

import typing
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from autotune.records import COUNT_MAX, Budget, BudgetUnit, Grade, Job, KnobValue, Limits, Point
from autotune.runs import NAME
from autotune.store import canonical_json
from autotune.units import counted

SafeName = Annotated[str, Field(pattern=f"^{NAME.pattern}$", description="letters, digits, dots, dashes, underscores")]
Count = Annotated[int, Field(ge=1, le=COUNT_MAX)]
Rate = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
LearningStatus = typing.Literal["not checked", "passed", "failed", "inconclusive"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True, validate_by_name=False)


class Knobs(_Section):
    """One value for every knob; names beyond the standard three are the recipe's own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, KnobValue]

    num_envs: Count = Field(description="environments per process")
    batch_size: Count = Field(description="learner minibatch in samples")
    concurrency: Count = Field(description="training processes that share the device")

    def record(self) -> Point:
        """As a `Point`."""
        return Point.from_knobs(self.model_dump())


class WorkloadSection(_Section):
    """The training program, and what every job shares."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    backend: str | None = Field(default=None, description="framework: torch, jax, command; null when it needs none")
    hyperparameters: dict[str, JsonValue] = Field(
        description="in the workload's own words; schedule_horizon_steps is in env steps whatever the budget's unit"
    )

    @field_validator("hyperparameters")
    @classmethod
    def _finite(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_json(value)
        return value


class BudgetSection(_Section):
    """When a job is done."""

    unit: BudgetUnit = Field(description="env steps (agent decisions), episodes (games) or hours of training")
    amount: Annotated[int | float, Field(gt=0, le=1e15)]

    @model_validator(mode="after")
    def _whole(self) -> BudgetSection:
        if self.unit != "hours" and self.amount != int(self.amount):
            raise ValueError(f"a budget in {self.unit} is a whole number")
        return self


class JobSection(_Section):
    """One training: an environment, a seed, a budget."""

    id: SafeName
    env: Annotated[str, Field(min_length=1, max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    budget: BudgetSection

    def record(self) -> Job:
        """As a `Job`."""
        budget = Budget(unit=self.budget.unit, amount=float(self.budget.amount))
        return Job(id=self.id, env=self.env, seed=self.seed, budget=budget)


class Rung(_Section):
    """A lighter point to step down to."""

    point: Knobs
    goodput_sps: Rate | None = Field(description="predicted env steps per second that survive")


class Stability(_Section):
    """How a training is kept alive, and what it may use."""

    checkpoint_interval_s: Annotated[float, Field(ge=1, le=86400)] = 60.0
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, description="newest checkpoints, beside the best")
    restarts: typing.Literal[0] = Field(default=0, description="of a crashed job; the same command starts it again")
    quarantine_after_crashes: typing.Literal[1] = Field(default=1, description="crashes that set a job aside")
    vram_fraction: Fraction = Limits().vram_fraction
    ram_fraction: Fraction = Limits().ram_fraction


class Prediction(_Section):
    """What the search measured at `point`; null is unknown."""

    point: Knobs = Field(description="where this was measured: an edited point has no prediction")
    sps: Ratio = Field(description="env steps per second of all processes together")
    sps_low: Rate | None = Field(description="lower end of the 95 % interval")
    sps_high: Rate | None
    job_sps: tuple[Rate, ...] = Field(description="of each process")
    vram_peak_bytes: Annotated[int, Field(ge=0)] | None
    ram_peak_bytes: Annotated[int, Field(ge=0)] | None
    power_w: Rate | None
    price_usd_per_hour: Annotated[float, Field(gt=0)] | None
    goodput_per_usd: Rate | None = Field(description="3600 * sps / price_usd_per_hour; null without a price")
    limited_by: str
    grade: Grade


class DeviceSection(_Section):
    """The machine that the point was tuned on."""

    fingerprint: str
    name: str
    kind: typing.Literal["cuda", "mps", "cpu"]


class Provenance(_Section):
    """Where the manifest comes from."""

    study: str | None = Field(default=None, description="file in the run folder, such as study.db")
    trials: Annotated[int, Field(ge=0)] | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    commit: str | None = None
    created: str | None = Field(default=None, description="ISO 8601, UTC")
    trained_env_steps: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="by job: of the policy that its probes began with; no entry: untrained"
    )

    @field_validator("study")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        path = PurePosixPath(value or "")
        if value is not None and (not value or path.is_absolute() or ".." in path.parts or "\0" in value):
            raise ValueError("names a file outside the run folder: give a name inside it, such as study.db")
        return value


class PilotReturns(_Section):
    """What the pilots at one point returned; ends are those of a 90 % t interval over the seeds, null below two."""

    final: float | None = Field(description="mean return over the last fifth of the env steps, mean over the seeds")
    final_low: float | None
    final_high: float | None
    area: float | None = Field(description="mean return over all env steps: the area under the curve per step")
    area_low: float | None
    area_high: float | None
    by_seed: tuple[float | None, ...] = Field(description="final of each seed; null when the pilot did not get there")


class LearningSection(_Section):
    """Whether an env step at `point` teaches as much as one at `baseline`; null is unknown."""

    status: LearningStatus = Field(description="non-inferiority of the final return at the margin")
    detail: str = Field(default="", description="why it is so")
    warning: str | None = Field(default=None, description="what moved by more than twice from the baseline")
    point: Knobs = Field(description="what was compared: an edited point has no evidence")
    baseline: Knobs
    samples_per_update_ratio: Ratio | None = Field(default=None, description="point over baseline")
    updates_per_step_ratio: Ratio | None = Field(default=None, description="optimizer steps per env step, likewise")
    env: str | None = Field(default=None, description="that the pilots trained on")
    env_steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="of each pilot")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    margin_fraction: Fraction | None = Field(default=None, description="of what the baseline learnt")
    margin: Rate | None = Field(default=None, description="the same as a return")
    difference: float | None = Field(default=None, description="final return, point minus baseline, paired by seed")
    difference_low: float | None = Field(default=None, description="lower end of its 90 % t interval")
    difference_high: float | None = None
    tuned_returns: PilotReturns | None = None
    baseline_returns: PilotReturns | None = None

    @model_validator(mode="after")
    def _evident(self) -> LearningSection:
        missing = [
            name for name in ("env", "env_steps", "tuned_returns", "baseline_returns") if not getattr(self, name)
        ]
        if self.status != "not checked" and missing:
            raise ValueError(f"status = {self.status!r} without {', '.join(missing)}: a verdict needs its evidence")
        return self


class Manifest(_Section):
    """A training, ready to run."""

    schema_version: typing.Literal[1] = Field(alias="schema")
    name: SafeName
    workload: WorkloadSection
    point: Knobs
    jobs: Annotated[tuple[JobSection, ...], Field(min_length=1, max_length=10_000)]
    ladder: tuple[Rung, ...] = ()
    stability: Stability = Field(default_factory=Stability)
    prediction: Prediction | None = None
    learning: LearningSection | None = None
    device: DeviceSection | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        ids = [job.id for job in self.jobs]
        double = next((name for name in ids if ids.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"two jobs have the id {double!r}: ids name folders, give each job its own")
        for field, knobs in self.points():
            if knobs.concurrency > len(ids):
                jobs = counted(len(ids), "job", "jobs")
                raise ValueError(
                    f"{field}.concurrency = {knobs.concurrency} processes, but the manifest has {jobs}: "
                    f"process i runs job i, so lower it to {len(ids)} or fewer, or add jobs"
                )
        return self

    def points(self) -> list[tuple[str, Knobs]]:
        """Every point with its place in the manifest, the tuned one first."""
        rungs = [(f"ladder.{index}.point", rung.point) for index, rung in enumerate(self.ladder)]
        return [("point", self.point), *rungs]

    def job_records(self) -> tuple[Job, ...]:
        """The jobs as records."""
        return tuple(job.record() for job in self.jobs)

    def predicted(self) -> Prediction | None:
        """The prediction, if it is for the point that will run."""
        return self.prediction if self.prediction and self.prediction.point == self.point else None

    def checked(self) -> LearningSection | None:
        """What is known of learning, if it is for the point that will run."""
        return self.learning if self.learning and self.learning.point == self.point else None
