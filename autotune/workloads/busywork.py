"""`busywork`: a workload without a framework whose speed, memory, noise and failures are chosen.

It exists for tests and demonstrations of everything around a workload. Its cost model, in seconds
of one iteration of num_envs environments, a rollout of R vector steps, minibatches of B samples,
K processes and T threads:

    env   = R * num_envs * env_s / T
    infer = R * (step_overhead_s + num_envs * infer_s) * share
    learn = epochs * (R * num_envs * learn_s + ceil(R * num_envs / B) * minibatch_overhead_s) * share
    share = 1 + concurrency_slowdown * (K - 1)
"""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
from pydantic import Field

from autotune.errors import UsageError
from autotune.records import Job, Point, Work
from autotune.workloads.protocol import SessionState
from autotune.workloads.settings import Settings, check_counts, parse_settings, workload_knobs

Failure = Literal["none", "oom", "host_oom", "crash", "exit", "hang", "ignore_sigterm", "segfault", "garbage"]


class OutOfMemoryError(RuntimeError):
    """Stands for a framework's error of the same name."""


class BusyworkSettings(Settings):
    """Hyperparameters of `busywork`.

    Attributes:
        rollout: vector steps per iteration.
        epochs: passes of the learner over a rollout.
        env_s: seconds per env step, divided by the threads if `env_scales`.
        env_scales: whether threads share the environments' work.
        step_overhead_s: seconds per vector step, whatever num_envs.
        infer_s: seconds of inference per env step.
        learn_s: seconds per sample learnt.
        minibatch_overhead_s: seconds per minibatch, whatever its size.
        concurrency_slowdown: what each further process adds to inference and learning, as a fraction.
        noise_fraction: deviation of an iteration's seconds, as a fraction.
        noise_correlation: lag-1 correlation of that noise.
        launch_noise_fraction: deviation between launches; drawn anew at each, the one thing that
            the job's seed does not determine.
        ram_base_bytes: allocated and touched by each process.
        ram_bytes_per_env: and per environment.
        warmup_iterations: slow ones at the start of each launch.
        warmup_slowdown: their factor.
        burn: keep a core busy (CPU seconds) instead of sleeping (wall seconds).
        reset_fraction: share of the rows spent on automatic resets.
        episode_steps: env steps of a game.
        return_limit: what returns grow towards.
        return_scale_steps: env steps in which 63 % of the way is gone.
        fail: what goes wrong.
        fail_num_envs: it goes wrong at points at or above every threshold that is given.
        fail_batch_size: likewise.
        fail_concurrency: likewise.
        fail_after_iterations: complete iterations before it does, 0 for while opening.
    """

    rollout: int = Field(default=32, ge=1)
    epochs: int = Field(default=1, ge=1)
    env_s: float = Field(default=2e-5, ge=0)
    env_scales: bool = True
    step_overhead_s: float = Field(default=2e-4, ge=0)
    infer_s: float = Field(default=2e-6, ge=0)
    learn_s: float = Field(default=5e-6, ge=0)
    minibatch_overhead_s: float = Field(default=5e-4, ge=0)
    concurrency_slowdown: float = Field(default=0.0, ge=0)
    noise_fraction: float = Field(default=0.0, ge=0, le=1)
    noise_correlation: float = Field(default=0.0, gt=-1, lt=1)
    launch_noise_fraction: float = Field(default=0.0, ge=0, le=1)
    ram_base_bytes: int = Field(default=0, ge=0)
    ram_bytes_per_env: int = Field(default=0, ge=0)
    warmup_iterations: int = Field(default=0, ge=0)
    warmup_slowdown: float = Field(default=3.0, ge=1)
    burn: bool = False
    reset_fraction: float = Field(default=0.0, ge=0, lt=1)
    episode_steps: int = Field(default=200, ge=1)
    return_limit: float = 100.0
    return_scale_steps: float = Field(default=100_000.0, gt=0)
    fail: Failure = "none"
    fail_num_envs: int | None = Field(default=None, ge=1)
    fail_batch_size: int | None = Field(default=None, ge=1)
    fail_concurrency: int | None = Field(default=None, ge=1)
    fail_after_iterations: int = Field(default=0, ge=0)

    def fails_at(self, point: Point) -> bool:
        """Whether the failure is meant for this point."""
        thresholds = (
            (point.num_envs, self.fail_num_envs),
            (point.batch_size, self.fail_batch_size),
            (point.concurrency, self.fail_concurrency),
        )
        return self.fail != "none" and all(limit is None or value >= limit for value, limit in thresholds)


class BusyworkWorkload:
    """See the module; a knob beyond the standard three overrides the hyperparameter of its name."""

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        self.settings = parse_settings(BusyworkSettings, "busywork", hyperparameters)

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Refuse counts below one and a minibatch larger than the rollout.

        Raises:
            UsageError: names the value and the expectation.
        """
        check_counts(point, self._settings_at(point).rollout)

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """Nothing to install: any environment name will do."""

    def open(self, point: Point, job: Job, device: str) -> BusyworkSession:
        """Start one copy; `device` is ignored, since it works on the CPU.

        Raises:
            UsageError: the point can never run.
        """
        self.check(point, [job])
        return BusyworkSession(self._settings_at(point), point, job)

    def _settings_at(self, point: Point) -> BusyworkSettings:
        knobs = workload_knobs(point)
        return (
            parse_settings(BusyworkSettings, "busywork", self.settings.model_dump() | knobs) if knobs else self.settings
        )


class BusyworkSession:
    """One copy of busywork."""

    def __init__(self, settings: BusyworkSettings, point: Point, job: Job) -> None:
        self._settings, self._point, self._job = settings, point, job
        self._threads = int(os.environ.get("AUTOTUNE_THREADS", "1"))
        self._minibatches = math.ceil(point.num_envs * settings.rollout / point.batch_size)
        self._counters = {"slices": 0, "rows": 0, "env_steps": 0, "episodes": 0, "samples": 0, "minibatches": 0}
        self._noise = 0.0
        self._launch_factor = math.exp(settings.launch_noise_fraction * float(np.random.default_rng().normal()))
        self._vector_steps = 0  # of this launch, as are complete iterations below
        self._failure: Failure = settings.fail if settings.fails_at(point) else "none"
        self._memory: np.ndarray[Any, Any] | None = np.ones(
            settings.ram_base_bytes + settings.ram_bytes_per_env * point.num_envs, dtype=np.uint8
        )
        self.effective: Mapping[str, Any] = {
            **point.knobs(),
            "rollout": settings.rollout,
            "minibatches": self._minibatches,
            "env_threads": self._threads,
            "device": "cpu",
        }
        if settings.fail_after_iterations == 0:
            self._misbehave()

    def step(self, parts: int = 1) -> Work:
        """Pass the time of one iteration, or of one slice of `parts`, and report plausible work."""
        settings = self._settings
        if settings.fail_after_iterations <= self._vector_steps // settings.rollout:
            self._misbehave()
        vector_steps = settings.rollout // max(1, min(parts, settings.rollout, self._minibatches))
        factor = self._slowness()
        planned_s = self._phase_seconds(vector_steps)
        seconds = {phase: pass_time(value_s * factor, burn=settings.burn) for phase, value_s in planned_s.items()}
        return self._report(vector_steps, seconds)

    def synchronize(self) -> None:
        """Nothing is asynchronous here."""

    def peak_memory_bytes(self) -> int | None:
        """None: there is no device."""
        return None

    def state(self) -> SessionState:
        """Counters and the noise: what follows is as if nothing had been interrupted."""
        return SessionState(arrays={"noise": np.array([self._noise])}, meta=dict(self._counters))

    def restore(self, state: SessionState) -> None:
        """Continue the counters of a state taken at any point.

        Raises:
            UsageError: the state is another workload's.
        """
        if set(state.meta) != set(self._counters) or set(state.arrays) != {"noise"}:
            raise UsageError(
                f"the state holds {sorted(state.meta)}, busywork's holds {sorted(self._counters)}: "
                "it belongs to another workload; choose its own manifest or start anew"
            )
        self._counters = {name: int(value) for name, value in state.meta.items()}
        self._noise = float(state.arrays["noise"][0])

    def close(self) -> None:
        """Free the memory."""
        self._memory = None

    def _misbehave(self) -> None:
        failure, self._failure = self._failure, "none"
        misbehave(failure, self._point)

    def _slowness(self) -> float:
        settings = self._settings
        rho = settings.noise_correlation
        fresh = float(self._random().normal())
        self._noise = rho * self._noise + math.sqrt(1 - rho**2) * fresh if self._counters["slices"] else fresh
        warming = self._vector_steps < settings.warmup_iterations * settings.rollout
        return (
            math.exp(settings.noise_fraction * self._noise)
            * self._launch_factor
            * (settings.warmup_slowdown if warming else 1.0)
        )

    def _random(self) -> np.random.Generator:
        return np.random.default_rng([self._job.seed, self._counters["slices"]])

    def _phase_seconds(self, vector_steps: int) -> dict[str, float]:
        settings, rows = self._settings, vector_steps * self._point.num_envs
        share = 1 + settings.concurrency_slowdown * (self._point.concurrency - 1)
        minibatches = math.ceil(rows / self._point.batch_size)
        return {
            "env": rows * settings.env_s / (self._threads if settings.env_scales else 1),
            "infer": share * (vector_steps * settings.step_overhead_s + rows * settings.infer_s),
            "learn": share * settings.epochs * (rows * settings.learn_s + minibatches * settings.minibatch_overhead_s),
        }

    def _report(self, vector_steps: int, seconds: Mapping[str, float]) -> Work:
        settings, before = self._settings, dict(self._counters)
        random, counters = self._random(), self._counters
        rows = vector_steps * self._point.num_envs
        counters["slices"] += 1
        counters["rows"] += rows
        counters["env_steps"] = counters["rows"] - math.floor(counters["rows"] * settings.reset_fraction)
        counters["episodes"] = counters["env_steps"] // settings.episode_steps
        env_steps, episodes = (counters[name] - before[name] for name in ("env_steps", "episodes"))
        minibatches = settings.epochs * math.ceil(rows / self._point.batch_size)
        counters["samples"] += settings.epochs * env_steps
        counters["minibatches"] += minibatches
        self._vector_steps += vector_steps
        skill = 1 - math.exp(-counters["env_steps"] / settings.return_scale_steps)
        returns = settings.return_limit * skill * random.uniform(0.8, 1.2, episodes)
        return Work(
            env_steps=env_steps,
            reset_rows=rows - env_steps,
            episodes=episodes,
            samples=settings.epochs * env_steps,
            minibatches=minibatches,
            seconds=seconds,
            returns=tuple(float(value) for value in returns),
            lengths=(settings.episode_steps,) * episodes,
            metrics={"loss": 1 - skill},
        )


def pass_time(duration_s: float, *, burn: bool) -> float:
    """Sleep for wall seconds, or keep a core busy for CPU seconds; returns the wall seconds that passed."""
    start_s = time.monotonic()
    if burn:
        end_cpu_s = time.thread_time() + duration_s
        while time.thread_time() < end_cpu_s:
            pass
    else:
        time.sleep(duration_s)
    return time.monotonic() - start_s


def misbehave(failure: Failure, point: Point) -> None:
    """Fail in the given way; only ``garbage`` comes back.

    Raises:
        OutOfMemoryError: ``oom``.
        MemoryError: ``host_oom``.
        RuntimeError: ``crash``.
    """
    if failure == "oom":
        raise OutOfMemoryError(f"out of memory, as asked for, at {point.label()}")
    if failure == "host_oom":
        raise MemoryError(f"no host memory left, as asked for, at {point.label()}")
    if failure == "crash":
        raise RuntimeError(f"crashed, as asked for, at {point.label()}")
    if failure == "exit":
        os._exit(3)
    if failure == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if failure == "garbage":
        _write_garbage()
    if failure in ("hang", "ignore_sigterm"):
        _hang(deaf=failure == "ignore_sigterm")


def _hang(*, deaf: bool) -> NoReturn:
    if deaf:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def _write_garbage(size_bytes: int = 4 * 2**20) -> None:
    """A line of megabytes that is no UTF-8, with NULs and terminal escapes, on standard output."""
    chunk = b"\xff\xfe\x00\x1b[31m{not json" * 4096
    for _ in range(size_bytes // len(chunk)):
        rest = chunk
        while rest:
            rest = rest[os.write(1, rest) :]
    os.write(1, b"\n")
