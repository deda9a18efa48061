"""The contract between autotune and a training program.

`autotune.testing.WorkloadContract` checks it; a new workload subclasses that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from autotune.errors import WorkerError
from autotune.records import Job, Point, Work

LAST_LINES = "The last lines were:\n"
"""Stands before what a program printed last, in the detail of its failure."""
SEVERAL_TOTALS = "several totals"
"""Name in `Work.metrics`, and mark of a probe: the program tells several totals, of which the largest counts."""

ALLOC_RETRIES = "alloc_retries"
"""Name in `Work.metrics` of a cumulative count: allocations that succeeded only after the framework freed its cache."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Where numerical libraries read how many threads they may have."""

OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How OpenMP's threads wait for their next piece of a network, read when a framework loads libgomp.

Spinning for long, as they usually do, they take the cores that the environments need; asleep at once, each operation
has to wake them: Breakout on 2 cores with 8 environments makes 830 SPS asleep at once, 937 after 1,000 turns (tens of
microseconds), 829 after 3,000. Other runtimes than libgomp know the policy only.
"""


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """What a checkpoint holds.

    Attributes:
        arrays: plain arrays by name (weights, optimizer moments, RNG states).
        meta: JSON values (counters, schedule position, best return).
    """

    arrays: Mapping[str, np.ndarray[Any, Any]]
    meta: Mapping[str, Any] = field(default_factory=dict)


class Finished(Exception):
    """The training program ended by itself with exit code 0; raised by `Session.step`."""


class NoProgressError(WorkerError):
    """Nothing that the training program says counts steps, and it has had long enough to say it."""


class RefusedError(WorkerError):
    """The training program ended with an exit code before its first step: it may not take these settings."""


class Session(Protocol):
    """One running copy of a workload, in its own process.

    A session may also have `ceilings(seconds) -> Mapping[str, float]`: env steps per second of its
    parts (``env``, ``infer``, ``learn``) working alone; it is thrown away after. One that waits for a program of the
    user's own may have `interrupt()`, called from another thread when there is no more to wait for; `hurry(end_by_s)`,
    called before a probe; `resume()`, called before a training that goes on without a checkpoint of autotune's;
    `finish() -> str | None`, called when a training's budget is met, and `stop() -> str | None`,
    called at the end of any training, which return what to tell the user; and `stop_s`, the seconds that `stop` takes
    at most.

    Attributes:
        effective: what took effect, by name, read back from the environment and the framework
            (``num_envs`` from the environment's spec, ``batch_size``, ``minibatches``,
            ``env_threads``, ``torch_threads``, ``precision``, ``device`` ...).
    """

    effective: Mapping[str, Any]

    def step(self, parts: int = 1) -> Work:
        """Do one training iteration, or one of `parts` equal slices of one.

        A slice has 1/parts of the rollout's vector steps and learns on what it collected, with
        the same minibatch size and the same memory; probes of long iterations use it. A session
        may use fewer parts than asked (down to a slice that fills one minibatch).
        The device is idle when this returns only after `synchronize`.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished what `step` started."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """The framework's own peak of device memory, None where it has none."""
        ...

    def state(self) -> SessionState:
        """Everything that `restore` needs to go on, whatever the point.

        Arrays of floats are finite: NaN or infinity in one is a training that diverged, and is never saved.
        """
        ...

    def restore(self, state: SessionState) -> None:
        """Continue from a state taken at this or any other point.

        Raises:
            UsageError: the state belongs to another architecture or environment; the message
                names the difference.
        """
        ...

    def close(self) -> None:
        """Release everything; safe to call twice."""
        ...


class Workload(Protocol):
    """A training program. Constructed with the recipe's hyperparameters.

    The constructor raises `UsageError` for an unknown or impossible hyperparameter. A class may
    name its framework in an attribute ``backend`` (``torch``, ``jax``), which manifests record, and may have
    `check_state(point, job, meta)`, which refuses a checkpoint of another game or architecture by the `meta` of
    its `SessionState` (UsageError, naming the difference) without a session; it runs in a child.
    A point's further knobs override the hyperparameters of their names, but for ``sharing``, which is the
    executor's affair (`autotune.workloads.settings.workload_knobs`).
    """

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Refuse what can never run, without loading a framework.

        Raises:
            UsageError: names the value, the expectation and the remedy.
        """
        ...

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """Refuse what the installed packages (unknown game) or the device (precision) cannot do; runs in a child.

        Raises:
            UsageError: names the value and near alternatives.
            DeviceError: the device is not there.
        """
        ...

    def open(self, point: Point, job: Job, device: str) -> Session:
        """Start one copy on ``auto``, ``cuda``, ``cuda:1``, ``mps`` or ``cpu``.

        Thread counts are set by the worker before this is called
        (`AUTOTUNE_THREADS`, the process's share of cores).
        """
        ...
