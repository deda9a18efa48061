"""The records passed between steps: frozen, keyword-only; `autotune.codec` has them as JSON.

Units stand in the names. ``None`` means "not known", never zero.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autotune.machine import GpuProcess

KnobValue = int | float | str | bool
Status = Literal["ok", "oom", "timeout", "unstable", "crashed", "host_lost"]
Grade = Literal["quick", "final"]
BudgetUnit = Literal["steps", "episodes", "hours"]
Phase = Literal["env", "infer", "transfer", "learn"]

STATUSES: tuple[Status, ...] = typing.get_args(Status)
PHASES: tuple[Phase, ...] = typing.get_args(Phase)
KNOBS = ("num_envs", "batch_size", "concurrency")
SHARING = "sharing"
"""A further knob: how processes share a GPU. The executor honours it; workloads never see it."""
SHARINGS = ("time-slice", "cuda-mps")
REFUSED = "refused"
"""Flag of a crash: a program of the user's own ended with an exit code before its first step."""
ENDED_EARLY = "ended early"
"""Flag of a crash that says nothing about the point: a program did all its steps before they could be measured."""
PAUSED = "paused"
"""Flag of a timeout that says nothing about the point: this command itself stood still for that long (Ctrl-Z)."""
RESTARTED = "the machine restarted while this ran"
"""Detail of a probe that is `host_lost`."""
COUNT_MAX = 2**31 - 1
"""Of a standard knob: what every framework's sizes hold."""
JOBS_MAX = 10_000
"""Jobs that a manifest holds, and so processes at once."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value for every knob.

    Attributes:
        num_envs: environments per process.
        batch_size: learner minibatch in samples.
        concurrency: training processes that share the device.
        extra: the recipe's further knobs as sorted (name, value) pairs.
    """

    num_envs: int
    batch_size: int
    concurrency: int = 1
    extra: tuple[tuple[str, KnobValue], ...] = ()

    def knobs(self) -> dict[str, KnobValue]:
        """Every knob by name, the three standard ones first."""
        return {
            "num_envs": self.num_envs,
            "batch_size": self.batch_size,
            "concurrency": self.concurrency,
            **dict(self.extra),
        }

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, KnobValue]) -> Point:
        """The point with these knob values; names beyond the standard three go to `extra`."""
        extra = tuple(sorted((k, v) for k, v in knobs.items() if k not in KNOBS))
        standard = {k: int(v) for k, v in knobs.items() if k in KNOBS}
        return cls(**standard, extra=extra)

    def dominates(self, other: Point) -> bool:
        """Whether this point asks for at least as much of every standard knob (and equals the rest)."""
        return (
            self.num_envs >= other.num_envs
            and self.batch_size >= other.batch_size
            and self.concurrency >= other.concurrency
            and self.extra == other.extra
        )

    def label(self) -> str:
        """Copyable settings: ``num_envs=64 batch_size=512 concurrency=2``."""
        return " ".join(f"{name}={value}" for name, value in self.knobs().items())


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a job is done: an amount of agent steps, episodes (games) or hours."""

    unit: BudgetUnit
    amount: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: an environment, a seed, a budget."""

    id: str
    env: str
    seed: int
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """How long a probe discards and measures; seconds and iterations.

    Attributes:
        long_iteration_s: iterations above this are measured in slices (`Session.step`).
    """

    discard_s: float = 10.0
    discard_iterations: int = 3
    window_s: float = 8.0
    window_iterations: int = 2
    long_iteration_s: float = 4.0
    start_timeout_s: float = 120.0
    timeout_s: float = 300.0


FINAL_PLAN = MeasurePlan(discard_s=20.0, window_s=30.0, window_iterations=6, long_iteration_s=15.0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a stable point may use.

    Attributes:
        vram_fraction: of the device's memory.
        ram_fraction: of the host's allowed memory.
        concurrency_max: processes at most, None for the number of jobs.
    """

    vram_fraction: float = 0.90
    ram_fraction: float = 0.90
    concurrency_max: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is measured and which knobs may move.

    Attributes:
        name: the recipe's name, also the run's.
        workload: name in the registry.
        hyperparameters: fixed for every point, in the workload's own words.
        jobs: trainings that the manifest will hold; process i runs job i.
        knobs: allowed values of every knob, ascending.
        grid: the values `autotune probe` measures when none are named.
        baseline: what the user runs today.
        quick: plan of ranking probes.
        final: plan of probes whose figures are published.
        limits: headroom.
        source: the file it came from, for messages.
        points: when not empty, the only points there are (recorded surfaces have holes).
        checkpoints: by job, the file that its probes begin with; jobs without one begin untrained.
    """

    name: str
    workload: str
    hyperparameters: Mapping[str, Any]
    jobs: tuple[Job, ...]
    knobs: Mapping[str, tuple[KnobValue, ...]]
    grid: Mapping[str, tuple[KnobValue, ...]]
    baseline: Point
    quick: MeasurePlan = field(default_factory=MeasurePlan)
    final: MeasurePlan = FINAL_PLAN
    limits: Limits = field(default_factory=Limits)
    source: str = ""
    points: tuple[Point, ...] = ()
    checkpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one `Session.step` did.

    Attributes:
        env_steps: agent decisions that the environment executed (automatic resets left out).
        reset_rows: rows that the environment spent on automatic resets.
        episodes: games that ended (not lives).
        samples: samples passed through the learner, every epoch counted.
        minibatches: optimizer steps taken.
        seconds: by phase; phases that ran are present.
        returns: true undiscounted return of each game that ended.
        lengths: env steps of each game that ended.
        metrics: losses and the like, by name.
    """

    env_steps: int
    reset_rows: int = 0
    episodes: int = 0
    samples: int = 0
    minibatches: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    returns: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One value of one meter at one time.

    Attributes:
        t_s: `time.monotonic` when it was taken.
        name: what and unit, such as ``vram_used_bytes`` or ``power_w``.
        value: None where the device cannot tell.
    """

    t_s: float
    name: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """Everything an executor needs to measure one point; `checkpoints` are those of a `Recipe`.

    Attributes:
        steps_heard: whether a probe of the same run told steps: where this one tells none, its settings are at fault.
        ran_before: the point was measured as stable before.
    """

    workload: str
    hyperparameters: Mapping[str, Any]
    point: Point
    jobs: tuple[Job, ...]
    grade: Grade
    plan: MeasurePlan
    limits: Limits
    log_folder: str
    samples_path: str | None = None
    label: str = ""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    steps_heard: bool = False
    ran_before: bool = False


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One measured (or failed) point.

    Attributes:
        requested: the point asked for.
        effective: what took effect, as the session reports it.
        envs: environment of each process.
        status: see `STATUSES`; everything but ``ok`` is a failure with a `detail`.
        grade: quick figures rank, final ones are published.
        sps: aggregate agent steps per second over all processes, None on failure.
        sps_low: lower end of the 95 % interval.
        sps_high: upper end.
        job_sps: of each process.
        noise_fraction: deviation of the rate over 10 s, relative to it.
        batch_sps: aggregate steps per second of each batch of the window (`stats.summed_batch_rates`).
        cost_s: wall time the probe took, start to clean device.
        startup_s: launch to the slowest process's ready.
        first_iteration_s: the slowest process's first iteration (compile included).
        window_s: measured span.
        iterations: in the window, over all processes.
        phase_seconds: seconds per env step by phase, mean over processes.
        reset_fraction: reset rows / all rows in the window.
        episode_steps: mean env steps of a game, over the processes of `game_steps`.
        games: that ended since its start, by process.
        game_steps: mean env steps of a game by process (`stats.game_steps`), None where too few ended.
        vram_peak_bytes: all processes, framework and context included, None without a GPU.
        framework_peak_bytes: the framework's own peak, summed over processes.
        vram_process_bytes: peak of what NVML attributes to the probe's processes, None where it does not.
        vram_device_delta_bytes: peak of the device's use above `vram_idle_bytes`, neighbours' growth included.
        vram_idle_bytes: device memory in use before the probe.
        ram_peak_bytes: proportional set size of all processes, each at its largest.
        shm_peak_bytes: growth of ``/dev/shm`` above what was in use before the probe.
        processes_peak: processes of the probe at once, all descendants included.
        threads_peak: their threads at once (what a pids limit counts).
        cpu_cores: cores kept busy by the processes.
        others_cpu_cores: cores that other processes kept busy meanwhile.
        neighbours: other processes on the GPU before or during the probe, each with its peak.
        gpu_utilisation: mean, 0 to 1.
        power_w: mean board power.
        energy_j: over the window.
        limited_by: one sentence: what holds this point back.
        flags: ``extrapolated``, ``shared``, ``shared cpu``, ``slowing``, ``one launch``, `REFUSED` ...
        log_tail: end of the failing process's log.
    """

    requested: Point
    status: Status
    grade: Grade
    effective: Mapping[str, Any] = field(default_factory=dict)
    envs: tuple[str, ...] = ()
    detail: str = ""
    sps: float | None = None
    sps_low: float | None = None
    sps_high: float | None = None
    job_sps: tuple[float, ...] = ()
    noise_fraction: float | None = None
    batch_sps: tuple[float, ...] = ()
    cost_s: float = 0.0
    startup_s: float | None = None
    first_iteration_s: float | None = None
    window_s: float | None = None
    iterations: int = 0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    reset_fraction: float | None = None
    episode_steps: float | None = None
    games: tuple[int, ...] = ()
    game_steps: tuple[float | None, ...] = ()
    vram_peak_bytes: int | None = None
    framework_peak_bytes: int | None = None
    vram_process_bytes: int | None = None
    vram_device_delta_bytes: int | None = None
    vram_idle_bytes: int | None = None
    ram_peak_bytes: int | None = None
    shm_peak_bytes: int | None = None
    processes_peak: int | None = None
    threads_peak: int | None = None
    cpu_cores: float | None = None
    others_cpu_cores: float | None = None
    neighbours: tuple[GpuProcess, ...] = ()
    gpu_utilisation: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    limited_by: str = ""
    flags: tuple[str, ...] = ()
    log_tail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the point was measured and is stable."""
        return self.status == "ok"

    @property
    def measured(self) -> bool:
        """Whether it is stable and says how fast; one that is under way does not."""
        return self.ok and self.sps is not None and self.sps > 0

    def goodput_per_usd(self, price: float | None) -> float | None:
        """Env steps per dollar, 3600 * sps / price; None where it is not stable, or without a price per hour."""
        return 3600 * self.sps / price if price and self.sps and self.ok else None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How one job of a training ended."""

    id: str
    status: Literal["done", "stopped", "crashed", "waiting", "running"]
    env_steps: int
    episodes: int
    seconds: float
    sps: float | None
    mean_return: float | None
    best_return: float | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a training ended: every job, and measured against predicted."""

    run: str
    jobs: tuple[JobResult, ...]
    sps: float | None
    predicted_sps: float | None
    seconds: float
