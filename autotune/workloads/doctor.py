"""`doctor`: small real measurements of what the frameworks and the device can do, one a step.

One framework per process: hyperparameter ``framework`` is ``torch`` (with EnvPool, which is none)
or ``jax``. A framework that is not installed is skipped, which is not an error; a check that fails
leaves its message in ``session.effective["errors"]`` and the next one runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

from autotune.records import Job, Point, Work
from autotune.workloads.protocol import Finished, SessionState
from autotune.workloads.settings import Settings, parse_settings

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a framework that is broken or short of memory raises."""

_MATMUL_SIDE = {"cuda": 4096, "mps": 2048, "cpu": 1024}
_IMAGES = 64


class DoctorSettings(Settings):
    """Hyperparameters of `doctor`.

    Attributes:
        framework: which one this process loads.
        seconds: upper end of each measurement, warm-up left out.
    """

    framework: Literal["torch", "jax"] = "torch"
    seconds: float = 1.0


def rate_per_s(call: Callable[[], object], synchronize: Callable[[], None], seconds: float) -> float:
    """Calls per second on an asynchronous device, after one call that warms up.

    Calls are queued in growing batches, each waited for, until `seconds` have passed: a slow
    device is not flooded, a fast one not held back by waiting.
    """
    call()
    synchronize()
    started_s, calls, batch = time.perf_counter(), 0, 1
    while (passed_s := time.perf_counter() - started_s) < seconds:
        if calls and passed_s * 3 < seconds:
            batch = min(batch * 2, 1024)
        elif calls:
            batch = max(1, min(batch, int(calls / passed_s * (seconds - passed_s))))
        for _ in range(batch):
            call()
        synchronize()
        calls += batch
    return calls / passed_s


def _matmul_flop(side: int) -> float:
    """Operations of a product of two square matrices: 2 n^3."""
    return 2.0 * side**3


class TorchChecks:
    """Matmul in every precision that torch claims for the device, and a convolutional training step."""

    def __init__(self, device: str, seconds: float) -> None:
        """Load torch and choose the device: ``auto`` is CUDA, else MPS, else CPU."""
        import torch

        self._torch, self._seconds = torch, seconds
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        self.device = torch.device(best if device == "auto" else device)
        torch.zeros(1, device=self.device)
        self.checks: dict[str, Callable[[], dict[str, float]]] = {
            f"matmul_{precision}": partial(self._matmul, precision) for precision in self._claimed()
        } | {"autograd": self._autograd}

    def _claimed(self) -> list[str]:
        """Precisions that torch says the device has, emulated ones included."""
        if self.device.type != "cuda":
            return ["fp32", "bf16"] if self.device.type == "cpu" else ["fp32", "fp16"]
        tf32 = ["tf32"] if self._torch.cuda.get_device_capability(self.device) >= (8, 0) else []
        bf16 = ["bf16"] if self._torch.cuda.is_bf16_supported() else []
        return ["fp32", *tf32, *bf16, "fp16"]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            self._torch.mps.synchronize()

    def _matmul(self, precision: str) -> dict[str, float]:
        torch = self._torch
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        side = _MATMUL_SIDE[self.device.type]
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        left, right = (
            torch.randn(side, side, device=self.device).to(kinds.get(precision, torch.float32)) for _ in range(2)
        )
        rate = rate_per_s(lambda: left @ right, self._synchronize, self._seconds)
        torch.set_float32_matmul_precision("highest")
        return {f"{self.device.type}_matmul_{precision}_tflops": rate * _matmul_flop(side) / 1e12}

    def _autograd(self) -> dict[str, float]:
        """Training steps per second of a small convolutional net on 64 stacked Atari frames."""
        nn = self._torch.nn
        net = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2592, 18)
        ).to(self.device)
        optimizer = self._torch.optim.Adam(net.parameters())
        images = self._torch.rand(_IMAGES, 4, 84, 84, device=self.device)
        losses: list[Any] = []

        def train_step() -> None:
            optimizer.zero_grad()
            loss = net(images).square().mean()
            loss.backward()
            optimizer.step()
            losses[:] = [loss.detach()]

        rate = rate_per_s(train_step, self._synchronize, self._seconds)
        if not bool(self._torch.isfinite(losses[0])):
            raise ArithmeticError(f"the loss of a training step is {float(losses[0])}")
        return {f"{self.device.type}_autograd_steps_per_s": rate}

    def peak_memory_bytes(self) -> int | None:
        """Of torch on CUDA."""
        return int(self._torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else None


class JaxChecks:
    """Matmul in JAX on its default device."""

    def __init__(self, device: str, seconds: float) -> None:
        """Load JAX; ``auto`` is what JAX chooses."""
        import jax

        self._jax, self._seconds = jax, seconds
        kind = device.partition(":")[0]
        self.device = jax.devices(None if kind == "auto" else kind)[0]
        self.checks: dict[str, Callable[[], dict[str, float]]] = {
            f"jax_matmul_{precision}": partial(self._matmul, precision) for precision in ("fp32", "bf16")
        }

    def _matmul(self, precision: str) -> dict[str, float]:
        numpy = self._jax.numpy
        kind = "cuda" if self.device.platform == "gpu" else "cpu"
        side = _MATMUL_SIDE[kind]
        matrix = self._jax.device_put(
            numpy.ones((side, side), numpy.bfloat16 if precision == "bf16" else numpy.float32), self.device
        )
        product = self._jax.jit(lambda a: numpy.matmul(a, a, precision="highest"))
        last: list[Any] = []

        def multiply() -> None:
            last[:] = [product(matrix)]

        rate = rate_per_s(multiply, lambda: last[0].block_until_ready(), self._seconds)
        return {f"{kind}_jax_matmul_{precision}_tflops": rate * _matmul_flop(side) / 1e12}

    def peak_memory_bytes(self) -> int | None:
        """Of JAX's allocator, None where it keeps no account."""
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use")


def step_environments(name: str, num_envs: int, threads: int, seconds: float) -> tuple[int, float]:
    """Step an EnvPool game with random actions.

    Returns:
        (env steps, seconds); rows that EnvPool spends on automatic resets are no steps.
    """
    import envpool
    import numpy as np

    pool = envpool.make(name, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=0)
    try:
        pool.reset()
        generator = np.random.default_rng(0)
        started_s, steps = time.perf_counter(), 0
        while (passed_s := time.perf_counter() - started_s) < seconds:
            info = pool.step(generator.integers(pool.action_space.n, size=num_envs, dtype=np.int32))[-1]
            steps += int((np.asarray(info["elapsed_step"]) > 0).sum())
        return steps, passed_s
    finally:
        pool.close()


class DoctorSession:
    """One check a step; raises `Finished` after the last."""

    def __init__(self, settings: DoctorSettings, point: Point, job: Job, device: str) -> None:
        """Load the framework; that it cannot be loaded is the first finding."""
        threads = max(1, int(os.environ.get("AUTOTUNE_THREADS") or 1))
        self._settings, self._point, self._job, self._threads = settings, point, job, threads
        self._errors: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._framework = self._load(device)
        self._plan: list[tuple[str, Callable[[], tuple[int, dict[str, float]]]]] = []
        for name, check in self._framework.checks.items() if self._framework else ():
            self._plan.append((name, partial(_no_steps, check)))
        if settings.framework == "torch" and self._installed("envpool"):
            self._plan.append(("envpool", self._envpool))
        self._done = 0
        self.checks: tuple[str, ...] = tuple(name for name, _ in self._plan)
        self.effective: Mapping[str, Any] = {
            "checks": list(self.checks),
            "errors": self._errors,
            "skipped": self._skipped,
            "device": str(self._framework.device) if self._framework else None,
            "env_threads": threads,
        }

    def _installed(self, package: str) -> bool:
        found = find_spec(package) is not None
        if not found:
            self._skipped[package] = f"{package} is not installed"
        return found

    def _load(self, device: str) -> TorchChecks | JaxChecks | None:
        name = self._settings.framework
        if not self._installed(name):
            return None
        try:
            return (TorchChecks if name == "torch" else JaxChecks)(device, self._settings.seconds)
        except FAILURES as error:
            self._errors[name] = _describe(error)
            return None

    def _envpool(self) -> tuple[int, dict[str, float]]:
        name = self._job.env or "Breakout-v5"
        steps, seconds = step_environments(name, self._point.num_envs, self._threads, 2 * self._settings.seconds)
        return steps, {"envpool_steps_per_s": steps / seconds, "envpool_threads": float(self._threads)}

    def step(self, parts: int = 1) -> Work:
        """Run the next check.

        Raises:
            Finished: there is none.
        """
        if self._done >= len(self._plan):
            raise Finished("every check has run")
        name, check = self._plan[self._done]
        self._done += 1
        try:
            steps, metrics = check()
        except FAILURES as error:
            self._errors[name] = _describe(error)
            return Work(env_steps=0)
        return Work(env_steps=steps, metrics=metrics)

    def synchronize(self) -> None:
        """Nothing is left running by a check."""

    def peak_memory_bytes(self) -> int | None:
        """The framework's own peak."""
        return self._framework.peak_memory_bytes() if self._framework else None

    def state(self) -> SessionState:
        """How many checks have run."""
        return SessionState(arrays={}, meta={"done": self._done})

    def restore(self, state: SessionState) -> None:
        """Go on after the checks that had run."""
        self._done = int(state.meta["done"])

    def close(self) -> None:
        """Nothing is held."""


def _no_steps(check: Callable[[], dict[str, float]]) -> tuple[int, dict[str, float]]:
    """A framework's check in the form of one that steps environments."""
    return 0, check()


def _describe(error: BaseException) -> str:
    """The first line of an error with its kind, as the doctor prints it."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


class DoctorWorkload:
    """The doctor's framework checks as a workload."""

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        """Refuse what `DoctorSettings` does not know.

        Raises:
            UsageError: an unknown name or value.
        """
        self._settings = parse_settings(DoctorSettings, "doctor", hyperparameters)

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Every point will do."""

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """What is not installed is a finding, not an error."""

    def open(self, point: Point, job: Job, device: str) -> DoctorSession:
        """Start the checks on a device."""
        return DoctorSession(self._settings, point, job, device)
