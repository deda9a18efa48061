"""One running PPO in JAX: EnvPool steps on the CPU, networks and learner on the chosen device."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import envpool
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from autotune.errors import DeviceError, UsageError, WorkerError
from autotune.records import Job, Point, Work
from autotune.workloads.cartpole_jax import Settings, identity, ppo
from autotune.workloads.guards import (
    broken_environment,
    check_memory,
    checked_observations,
    checked_rewards,
    first_environment_seed,
    free_ram_bytes,
    refuse_foreign_state,
)
from autotune.workloads.protocol import SessionState

Array = np.ndarray[Any, Any]


def find_device(device: str) -> jax.Device:
    """The JAX device behind ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.

    Raises:
        DeviceError: JAX has no such device here.
    """
    platform, _, index = device.partition(":")
    try:
        found = jax.devices() if platform == "auto" else jax.devices(platform)
    except RuntimeError as error:
        raise DeviceError(
            f"JAX finds no device {device!r} ({error}): install jax[cuda12] beside a working driver, "
            "or use --device cpu"
        ) from error
    number = int(index) if index.isdigit() else 0
    if number >= len(found):
        raise DeviceError(f"device {device!r} is not there: JAX sees {', '.join(map(str, found))}")
    return found[number]


def _compile_anew() -> None:
    """Compile from here on, whatever an earlier process has kept: opening is quick, and what follows is as at first.

    A process that reads a point's programs instead of compiling them takes a quarter less host memory, which says
    nothing about the processes that will compile them together (reports/reference/start/results.md).
    """
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    compilation_cache.reset_cache()


class CartpoleJaxSession:
    """See `autotune.workloads.protocol.Session`."""

    _pool: Any = None

    def __init__(self, settings: Settings, point: Point, job: Job, device: str) -> None:
        self._settings, self._point, self._job = settings, point, job
        self._device = find_device(device)
        self._env_steps = self._episodes = self._executed = 0
        self._identity = identity(job.env, settings)
        self._obs_size: int = self._identity["observation_size"]
        self._actions: int = self._identity["actions"]
        check_memory("rollout", self._bytes_per_env(), point.num_envs, free_ram_bytes())
        self._open_environments()
        key, learner_key = jax.random.split(jax.random.key(job.seed))
        learner = ppo.new_learner(learner_key, self._obs_size, self._actions, settings.hidden)
        self._learner: ppo.Learner = jax.device_put(learner, self._device)
        self._key: jax.Array = jax.device_put(key, self._device)
        self.effective: Mapping[str, Any] = self._describe()
        _compile_anew()

    def _describe(self) -> dict[str, Any]:
        config = self._pool.spec.config
        fraction = os.environ.get("XLA_CLIENT_MEM_FRACTION") or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        return {
            "num_envs": int(config.num_envs),
            "batch_size": self._point.batch_size,
            "rollout": self._settings.rollout,
            "epochs": self._settings.epochs,
            "learning_rate": self._settings.learning_rate,
            "minibatches": math.ceil(int(config.num_envs) * self._settings.rollout / self._point.batch_size),
            "env": self._job.env,
            "env_threads": int(config.num_threads),
            "xla_threads": int(os.environ["NPROC"]) if os.environ.get("NPROC") else None,
            "precision": "float32",
            "backend": "jax",
            "device": f"{self._device.platform}:{self._device.id}",
            "device_name": self._device.device_kind,
            "preallocate": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "") not in ("false", "False", "0"),
            "memory_fraction": float(fraction) if fraction else None,
        }

    def _open_environments(self) -> None:
        """Open (or open again) the environments; a continued job sees other starts than its first steps did."""
        self.close()
        num_envs = self._point.num_envs
        threads = min(num_envs, int(os.environ.get("AUTOTUNE_THREADS") or len(os.sched_getaffinity(0))))
        seed = first_environment_seed(self._job.seed, self._env_steps)
        self._pool = envpool.make(
            self._job.env, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=seed
        )
        self._obs = np.asarray(self._pool.reset()[0], np.float32)
        self._ended = np.zeros(num_envs, bool)
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, int)

    def step(self, parts: int = 1) -> Work:
        """One iteration, or one of `parts` equal slices: collect rows, then learn on the valid ones.

        Raises:
            WorkerError: a loss term became NaN or infinite (names it and the update), or the environment broke.
        """
        seconds = dict.fromkeys(("env", "infer", "transfer", "learn"), 0.0)
        rows = self._slice_rows(parts)
        columns, returns, lengths = self._collect(rows, seconds)
        with _timed(seconds, "transfer"):
            rollout = jax.device_put(ppo.Rollout(**columns, last_obs=cast("Any", self._obs)), self._device)
            rollout.obs.block_until_ready()
        with _timed(seconds, "learn"):
            learning_rate = self._learning_rate()
            updates = int(self._learner.updates)
            self._key, key = jax.random.split(self._key)
            self._learner, metrics = ppo.update(
                self._learner, rollout, key, learning_rate, settings=self._settings, batch_size=self._point.batch_size
            )
            figures = {name: float(value) for name, value in metrics.items()} | {"learning_rate": learning_rate}
        if bad := int(figures.pop("nonfinite_update")):
            named = [f"{name} ({value})" for name, value in figures.items() if not math.isfinite(value)]
            raise WorkerError(
                f"the loss is not finite at update {updates + bad}: {', '.join(named)}; "
                "lower learning_rate or max_grad_norm"
            )
        env_steps = int(columns["valid"].sum())
        self._env_steps += env_steps
        self._episodes += len(returns)
        return Work(
            env_steps=env_steps,
            reset_rows=columns["valid"].size - env_steps,
            episodes=len(returns),
            samples=env_steps * self._settings.epochs,
            minibatches=int(self._learner.updates) - updates,
            seconds=seconds,
            returns=tuple(returns),
            lengths=tuple(lengths),
            metrics=figures,
        )

    def _slice_rows(self, parts: int) -> int:
        """Vector steps of a slice: the rollout's largest equal cut into at most `parts` that fills a minibatch."""
        rollout, num_envs = self._settings.rollout, self._point.num_envs
        return next(
            rollout // count
            for count in range(min(max(parts, 1), rollout), 0, -1)
            if rollout % count == 0 and rollout // count * num_envs >= self._point.batch_size
        )

    def _collect(self, rows: int, seconds: dict[str, float]) -> tuple[dict[str, Any], list[float], list[int]]:
        """Step all environments `rows` times: columns of `ppo.Rollout`, returns and lengths of ended games."""
        table: list[dict[str, Array]] = []
        returns: list[float] = []
        lengths: list[int] = []
        for _ in range(rows):
            begun_s = time.monotonic()
            drawn = ppo.act(self._learner.params, self._obs, self._key)
            self._key = drawn[3]
            actions, log_probs, values = (np.asarray(column) for column in drawn[:3])
            acted_s = time.monotonic()
            obs, rewards, terminated, truncated = self._act(actions)
            seconds["env"] += time.monotonic() - acted_s
            seconds["infer"] += acted_s - begun_s
            valid = ~self._ended
            self._executed += int(valid.sum())
            table.append(
                {
                    "obs": self._obs,
                    "actions": actions,
                    "log_probs": log_probs,
                    "values": values,
                    "rewards": np.asarray(rewards, np.float32),
                    "terminated": terminated,
                    "truncated": truncated,
                    "valid": valid,
                }
            )
            self._ended = terminated | truncated
            self._returns = np.where(valid, self._returns + rewards, 0.0)
            self._lengths = np.where(valid, self._lengths + 1, 0)
            returns += self._returns[self._ended & valid].tolist()
            lengths += self._lengths[self._ended & valid].tolist()
            self._obs = obs
        return {name: np.stack([row[name] for row in table]) for name in table[0]}, returns, lengths

    def _act(self, actions: Array) -> tuple[Array, Array, Array, Array]:
        """One vector step: observations (N, D) and rewards that are whole and finite, terminated, truncated."""
        try:
            obs, rewards, terminated, truncated, _ = self._pool.step(actions)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the worker takes its own signals
            raise broken_environment(self._job.env, self._executed, error) from error
        found = checked_observations(np.asarray(obs, np.float32), (self._obs_size,), self._job.env, self._executed)
        return found, checked_rewards(rewards, self._job.env, self._executed), terminated, truncated

    def _learning_rate(self) -> float:
        horizon = self._settings.schedule_horizon_steps
        share = 1.0 if horizon is None else max(0.0, 1.0 - self._env_steps / horizon)
        return self._settings.learning_rate * share

    def synchronize(self) -> None:
        """Wait for the learner's arrays (one program writes them all)."""
        self._learner.updates.block_until_ready()

    def peak_memory_bytes(self) -> int | None:
        """Peak of XLA's allocator on the device, None where it keeps none (CPU)."""
        peak = (self._device.memory_stats() or {}).get("peak_bytes_in_use")
        return None if peak is None else int(peak)

    def state(self) -> SessionState:
        """Networks, optimizer moments, random key and counters; environments start anew on `restore`."""
        arrays = {name: np.array(leaf) for name, leaf in _named(self._learner)}
        return SessionState(
            arrays=arrays | {"key": np.array(jax.random.key_data(self._key))},
            meta=self._identity | {"env_steps": self._env_steps, "episodes": self._episodes},
        )

    def _bytes_per_env(self) -> int:
        """Host memory of a rollout for each environment: its rows, and their stack."""
        columns = 8 + 4 + 4 + 4 + 3  # action, log probability, value, reward, three flags
        return 2 * self._settings.rollout * (4 * self._obs_size + columns)

    def restore(self, state: SessionState) -> None:
        """Continue from a state taken at any point.

        EnvPool cannot put running games back: they start anew, from seeds that follow from the job's seed and
        the env steps. What was played of games that were cut off counts as env steps; their returns nowhere.

        Raises:
            UsageError: it belongs to another workload, environment or architecture.
        """
        refuse_foreign_state(state.meta, self._identity)
        missing = [name for name, _ in _named(self._learner) if name not in state.arrays]
        if missing:
            raise UsageError(f"the checkpoint lacks {', '.join(missing[:3])}: it is damaged, use an older one")
        leaves = [state.arrays[name] for name, _ in _named(self._learner)]
        learner = jax.tree.unflatten(jax.tree.structure(self._learner), leaves)
        self._learner = jax.device_put(learner, self._device)
        self._key = jax.device_put(jax.random.wrap_key_data(jnp.asarray(state.arrays["key"])), self._device)
        self._env_steps, self._episodes = int(state.meta["env_steps"]), int(state.meta["episodes"])
        self._open_environments()

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _named(learner: ppo.Learner) -> list[tuple[str, jax.Array]]:
    """Leaves with names such as ``params.actor.0.weight``."""
    leaves = cast("list[tuple[Any, jax.Array]]", jax.tree_util.tree_leaves_with_path(learner))
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    seconds[phase] += time.monotonic() - started_s
