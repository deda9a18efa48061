"""Workload ``cartpole-jax``: a small PPO in JAX over EnvPool's vector observations.

Light: the parent imports this module to check values; JAX and EnvPool are imported by `open`.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from autotune.errors import UsageError
from autotune.records import Job, Point
from autotune.workloads import settings
from autotune.workloads.guards import OTHERWISE, environment_made, refuse_foreign_state, require
from autotune.workloads.learning import LearningRule
from autotune.workloads.protocol import Session

DEVICES = "auto, cpu, cuda or cuda:<index>"

_SMALL_HIDDEN = 256
"""Widest layer with which one thread is faster than two, measured on 2 cores."""


class Settings(LearningRule):
    """Hyperparameters, the same for every point; those of `LearningRule` adapt rollout and learning rate to it.

    Attributes:
        rollout: vector steps per training iteration.
        epochs: passes over the collected samples.
        learning_rate: Adam's step size.
        gamma: discount per env step.
        gae_lambda: GAE's lambda.
        clip: PPO's clipping range.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        max_grad_norm: global norm above which gradients are scaled down.
        hidden: widths of the hidden layers, of the actor and of the critic alike.
        schedule_horizon_steps: env steps over which the learning rate falls to zero; None keeps it.
        deterministic: have XLA take only operations with one result on a GPU. On a CPU equal runs (seed,
            point, threads) are bit-identical with and without it.
    """

    rollout: int = Field(32, ge=1)
    epochs: int = Field(10, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    gamma: float = Field(0.99, ge=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.5, ge=0)
    entropy_coefficient: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(0.5, gt=0)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 64), strict=False)
    schedule_horizon_steps: int | None = Field(None, ge=1)
    deterministic: bool = False


class CartpoleJaxWorkload:
    """PPO in JAX on any EnvPool environment with vector observations and discrete actions.

    Args:
        hyperparameters: fields of `Settings` by name.

    Raises:
        UsageError: an unknown or impossible hyperparameter.
    """

    backend = "jax"

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        self.settings = settings.parse_settings(Settings, "cartpole-jax", hyperparameters)

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Refuse points that no environment can run.

        Raises:
            UsageError: names the value, the expectation and the remedy.
        """
        settings_in_effect = self.settings.in_effect(point)
        settings_in_effect.check_counts(point)
        if point.num_envs * settings_in_effect.rollout == 1:
            raise UsageError(
                "num_envs x rollout 1 makes every advantage 0 when it is normalised, and nothing is learnt; "
                "use more environments or a longer rollout"
            )
        if knobs := settings.workload_knobs(point):
            names = ", ".join(knobs)
            raise UsageError(f"workload cartpole-jax has no knob {names}: it has num_envs, batch_size, concurrency")
        for job in jobs:
            if job.seed < 0:
                raise UsageError(f"seed {job.seed} of job {job.id!r} must not be negative")

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """Refuse environments that EnvPool lacks or cannot make, for several players, or with other spaces.

        Raises:
            AutotuneError: JAX or EnvPool is not installed.
            UsageError: names the environment and near alternatives.
        """
        require("cartpole-jax", "jax", "envpool")
        envpool = importlib.import_module("envpool")
        known = envpool.list_all_envs()
        for name in dict.fromkeys(job.env for job in jobs):
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4)) or "CartPole-v1, Acrobot-v1"
                raise UsageError(f"EnvPool has no environment {name!r}. Near: {near}.")
            spec = environment_made(envpool.make_spec, name, {})
            observations, actions = spec.gymnasium_observation_space, spec.gymnasium_action_space
            if len(getattr(observations, "shape", None) or ()) != 1 or not hasattr(actions, "n"):
                raise UsageError(
                    f"environment {name!r} has observations {observations} and actions {actions}; "
                    "workload cartpole-jax needs a vector and discrete actions, as CartPole-v1 or Acrobot-v1 have: "
                    f"{OTHERWISE}"
                )

    def check_state(self, point: Point, job: Job, meta: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another environment or network, by the `meta` of its `SessionState`.

        Raises:
            UsageError: names every difference.
        """
        refuse_foreign_state(meta, identity(job.env, self.settings))

    def open(self, point: Point, job: Job, device: str) -> Session:
        """Start one copy in this process; JAX's memory settings are set before it is imported.

        Raises:
            AutotuneError: JAX or EnvPool is not installed.
            UsageError: the point cannot run, or the device is not one of JAX's.
        """
        self.check(point, [job])
        require("cartpole-jax", "jax", "envpool")
        if device not in ("auto", "cpu") and not device.startswith("cuda"):
            raise UsageError(f"device {device!r} is not one that workload cartpole-jax can use: choose {DEVICES}")
        small = max(self.settings.hidden, default=0) <= _SMALL_HIDDEN
        set_environment(device, small=small, deterministic=self.settings.deterministic)
        session = importlib.import_module("autotune.workloads.cartpole_jax.session")
        opened: Session = session.CartpoleJaxSession(self.settings.in_effect(point), point, job, device)
        return opened


def identity(env: str, settings: Settings) -> dict[str, Any]:
    """What a checkpoint must share with the session that loads it; all else (point, device, schedule) may differ."""
    spec = importlib.import_module("envpool").make_spec(env)
    return {
        "workload": "cartpole-jax",
        "env": env,
        "observation_size": int(spec.gymnasium_observation_space.shape[0]),
        "actions": int(spec.gymnasium_action_space.n),
        "hidden": list(settings.hidden),
    }


def set_environment(device: str, *, small: bool = False, deterministic: bool = False) -> None:
    """What JAX reads from the environment when it starts; values that the user set are kept.

    Preallocation would take 75 % of the GPU in each process; ``NPROC`` is the size of XLA's CPU
    thread pool; ``JAX_PLATFORMS=cpu`` keeps a CPU session from opening a CUDA context.

    A small network computes with one thread on a CPU, others would only wait for each other: 38,000 SPS for 30,000 of
    two threads on 2 cores (8 environments, minibatch 128), 98,000 for 71,000 (64, 512), 121,000 for 95,000 (256,
    2048). With layers of 256 it is 18,500 for 16,700 (64, 1024), with 512 it is 5,300 for 8,200.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    fraction = os.environ.get("AUTOTUNE_MEMORY_FRACTION")
    if fraction and "XLA_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
    if threads := "1" if small and device == "cpu" else os.environ.get("AUTOTUNE_THREADS"):
        os.environ.setdefault("NPROC", threads)
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    if device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
