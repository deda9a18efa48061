"""Atari PPO in PyTorch over EnvPool; any EnvPool environment with discrete actions.

Importing this package loads neither torch nor EnvPool: `AtariWorkload.open` and
`AtariWorkload.check_installed` do, in the worker process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.records import Job, Point
from autotune.workloads.atari.settings import PPOSettings, check_point
from autotune.workloads.guards import refuse_foreign_state, require
from autotune.workloads.protocol import OPENMP, Session


class AtariWorkload:
    """PPO (arXiv:1707.06347) with the usual Atari details; see `PPOSettings` for its hyperparameters."""

    backend = "torch"

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        """Raise `UsageError` for an unknown or impossible hyperparameter."""
        self.settings = PPOSettings.parse(hyperparameters)

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Refuse knobs below 1, unknown knobs, and minibatches larger than the rollout.

        Raises:
            UsageError: names the value, the expectation and the remedy.
        """
        check_point(self.settings.at(point), point)

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """Refuse games that the installed EnvPool lacks or this PPO cannot play, and arithmetic the device lacks.

        Raises:
            AutotuneError: torch or EnvPool is not installed.
            UsageError: names the game or the precision, and alternatives.
            DeviceError: the device is not there.
        """
        require("atari", "torch", "envpool")
        from autotune.workloads.atari.environment import environment_spec

        for job in jobs:
            environment_spec(job.env, self.settings)
        precision = self.settings.at(point).precision
        if precision not in ("auto", "fp32"):  # for these torch need not be loaded
            from autotune.workloads.atari.precision import choose_device, choose_precision, native_precisions

            choose_precision(precision, native_precisions(choose_device(device)), device)

    def check_state(self, point: Point, job: Job, meta: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another game or network, by the `meta` of its `SessionState`.

        Raises:
            UsageError: names every difference.
        """
        from autotune.workloads.atari.environment import environment_spec, identity

        settings = self.settings.at(point)
        refuse_foreign_state(meta.get("identity", {}), identity(environment_spec(job.env, settings), settings))

    def open(self, point: Point, job: Job, device: str) -> Session:
        """Start one training of `job` at `point` on `device`.

        Raises:
            UsageError: impossible point, game or precision.
            DeviceError: the device is not there.
        """
        self.check(point, [job])
        if self.settings.at(point).deterministic:  # read by cuBLAS when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if "torch" not in sys.modules:
            for name, value in OPENMP.items():  # read once, when torch is loaded
                os.environ.setdefault(name, value)
        from autotune.workloads.atari.session import PPOSession

        return PPOSession(self.settings.at(point), point, job, device)
