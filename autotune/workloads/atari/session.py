"""One running PPO training: collect a rollout, learn from it, account for it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from autotune.records import Job, Point, Work
from autotune.workloads.atari import ppo
from autotune.workloads.atari.ceilings import measure_ceilings
from autotune.workloads.atari.collect import Collector, Rollout
from autotune.workloads.atari.environment import (
    HOST_BYTES,
    EnvironmentGroup,
    VectorEnvironment,
    allowed_threads,
    environment_spec,
    identity,
)
from autotune.workloads.atari.lanes import Lanes, acting_lanes, lane_columns, lane_count
from autotune.workloads.atari.learner import Learner
from autotune.workloads.atari.precision import choose_device, choose_precision, native_precisions
from autotune.workloads.atari.rollout import RolloutBuffer, Samples, bytes_per_env
from autotune.workloads.atari.settings import PPOSettings
from autotune.workloads.guards import check_memory, first_environment_seed, free_ram_bytes, refuse_foreign_state
from autotune.workloads.protocol import ALLOC_RETRIES, OPENMP, SessionState

_SMALL_HIDDEN = 512
"""Widest layer for vectors with which one thread is faster than two, measured on 2 cores."""


class PPOSession:
    """A `Session` of PPO at one point; see `autotune.workloads.protocol.Session` for the contract.

    Attributes:
        effective: what took effect, read back from EnvPool and torch.
        environment: the vector environments of all lanes, with their two independent step counts.
        env_steps: executed since the job began, restored ones included.
    """

    def __init__(self, settings: PPOSettings, point: Point, job: Job, device: str) -> None:
        self.settings = settings
        self._point = point
        self._seed = job.seed
        torch.use_deterministic_algorithms(settings.deterministic)
        self._device = choose_device(device)
        fraction = os.environ.get("AUTOTUNE_MEMORY_FRACTION")
        if fraction and self._device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(float(fraction), self._device)
        precision = choose_precision(settings.precision, native_precisions(self._device), str(self._device))
        self._spec = environment_spec(job.env, settings)
        self._check_memory(fraction)
        lanes, actors = self._divide()
        self._learner = Learner(self._spec, settings, self._device, precision, job.seed, lanes, actors.count)
        self._lanes = lanes
        self.environment = self._start_environment(0, actors.count)
        self._collector = Collector(self.environment, self._learner, actors, self._device)
        self._buffers = [
            RolloutBuffer(settings.rollout, point.num_envs, self._spec, self._learner.channels_last, self._device)
            for _ in range(1 + settings.overlap)
        ]
        self._next: Rollout | None = None  # collected, and not learnt from yet
        self.env_steps = self._counted_steps = self._restored_steps = 0
        self._iterations = 0
        self._episodes = 0
        self.effective: Mapping[str, Any] = self._read_effective()

    def step(self, parts: int = 1) -> Work:
        """Collect 1/parts of a rollout (at least one minibatch) and learn from it.

        Raises:
            WorkerError: an observation or a loss is not finite.
        """
        environment, steps = self.environment, self._slice_steps(parts)
        before, resets = self.env_steps, environment.reset_rows
        rollout = self._next or self._collector.collect(self._buffers[0], steps)
        self._count_steps()
        if self.settings.overlap:
            self._collector.begin(self._buffers[rollout.buffer is self._buffers[0]], steps)
        start = perf_counter()
        samples = rollout.buffer.samples(rollout.steps, self.settings.gamma, self.settings.gae_lambda)
        metrics, updates = self._learn(samples)
        learn_s = perf_counter() - start
        if self.settings.overlap:
            self._next = self._collector.take()
            self._learner.publish()
            self._count_steps()
        self._iterations += 1
        if environment.elapsed_steps is not None:
            metrics["elapsed_steps"] = self._restored_steps + environment.elapsed_steps
        if self._device.type == "cuda":
            metrics[ALLOC_RETRIES] = torch.cuda.memory_stats_as_nested_dict(self._device).get("num_alloc_retries", 0)
        returns, lengths = environment.take_games()
        self._episodes += len(returns)
        return Work(
            env_steps=self.env_steps - before,
            reset_rows=environment.reset_rows - resets,
            episodes=len(returns),
            samples=len(samples.rows) * self.settings.epochs,
            minibatches=updates,
            seconds={**(self._next or rollout).seconds, "learn": learn_s},
            returns=returns,
            lengths=lengths,
            metrics=metrics,
        )

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def peak_memory_bytes(self) -> int | None:
        """Most device memory that torch's allocator has held, None without CUDA."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def ceilings(self, seconds: float) -> dict[str, float]:
        """Env steps per second of stepping, inference and learning alone; throw the session away after."""
        return measure_ceilings(self, seconds)

    def state(self) -> SessionState:
        """Weights, optimizer, random state and counters. EnvPool's running games cannot be saved."""
        meta = {
            "identity": identity(self._spec, self.settings),
            "env_steps": self.env_steps,
            "iterations": self._iterations,
            "episodes": self._episodes,
            **self._learner.meta(),
        }
        return SessionState(arrays=self._learner.arrays(), meta=meta)

    def restore(self, state: SessionState) -> None:
        """Continue from a state of this or another point.

        EnvPool cannot put running games back: they start anew, from seeds that follow from the job's seed
        and `env_steps`, so that a state always continues alike. What was played of the games that were cut
        off counts as env steps; their returns count nowhere. So does a rollout that `overlap` had collected ahead,
        which is not learnt from.

        Raises:
            UsageError: the state is of another environment or network.
        """
        refuse_foreign_state(state.meta.get("identity", {}), identity(self._spec, self.settings))
        self._learner.load(state.arrays, state.meta, self._seed)
        self.env_steps = self._restored_steps = int(state.meta["env_steps"])
        self._iterations = int(state.meta["iterations"])
        self._episodes = int(state.meta["episodes"])
        self.environment.close()
        self._next = None
        self.environment = self._start_environment(self.env_steps, self._collector.lanes.count)
        self._collector.environment, self._counted_steps = self.environment, 0

    def close(self) -> None:
        """Stop the environments and the lanes."""
        self._collector.close()
        self._lanes.close()
        self.environment.close()

    def _count_steps(self) -> None:
        """Take over what the environments have counted; nothing is being collected."""
        executed = self.environment.executed_steps
        self.env_steps += executed - self._counted_steps
        self._counted_steps = executed

    def _divide(self) -> tuple[Lanes, Lanes]:
        """The lanes that learn and those that act, the same ones where both take turns on a CPU's cores.

        As many as the settings and the machine allow: one on a device, for vectors, and when compiled.

        Two lanes for one on 2 cores, Breakout in bf16 with AMX: 917 SPS for 839 (8 environments, minibatch 128),
        1,045 for 971 (8, 256), 1,231 for 1,156 (16, 512), 1,561 for 1,546 (128, 1024); in float32 658 for 627 (8, 256)
        and 761 for 784 (32, 512). Beside another busy process 691 for 355 and 430 for 384 (8, 256): the operations of
        one lane wait for all its threads each time.

        The small network of vectors has one thread, which operations of microseconds would only wait for: CartPole,
        2 cores, one thread for two: 10,300 SPS for 3,200 (4 environments, minibatch 64), 32,100 for 11,800 (16, 256),
        72,400 for 35,600 (64, 1024), 91,900 for 48,600 (256, 1024), 115,000 for 110,000 (1024, 4096); with layers of
        512 units still 4,200 for 2,600 (16, 128) and 5,200 for 4,600 (64, 1024).
        """
        settings, cores, point = self.settings, allowed_threads(), self._point
        alone = self._device.type != "cpu" or self._spec.kind == "vector" or settings.compile
        beside = settings.overlap and self._device.type == "cpu"
        own = max(1, cores // 2) if beside else cores
        count = 1 if alone else lane_count(settings.lanes, own, point.num_envs, point.batch_size)
        if settings.env_threads:
            count = min(count, settings.env_threads)
        threads = 1 if self._spec.kind == "vector" and settings.hidden <= _SMALL_HIDDEN else own
        lanes = Lanes(count, max(1, threads // count))
        torch.set_num_threads(threads)
        if self._device.type == "cuda" and self._spec.kind == "image" and not settings.compile:
            acting = settings.lanes or acting_lanes(point.num_envs, self._env_threads())
            return lanes, Lanes(min(acting, point.num_envs), 1)
        return lanes, Lanes(count, lanes.threads) if settings.overlap else lanes

    def _start_environment(self, env_steps: int, lanes: int) -> EnvironmentGroup:
        """Every lane's environments, after so many env steps; the seeds of games are those of one lane."""
        threads, seed = self._env_threads(), first_environment_seed(self._seed, env_steps)
        if lanes == self._lanes.count:  # else they take turns, and each has all the threads
            threads = max(1, threads // lanes)
        columns = lane_columns(self._point.num_envs, lanes)
        return EnvironmentGroup(
            [VectorEnvironment(self._spec, each.stop - each.start, threads, seed + each.start) for each in columns]
        )

    def _env_threads(self) -> int:
        """EnvPool's threads that may run at once."""
        cores = allowed_threads()
        if self.settings.overlap:  # on a GPU one core for each of the two threads that feed it
            cores = max(1, cores // 2 if self._device.type == "cpu" else cores - 2)
        return self.settings.env_threads or min(self._point.num_envs, cores)

    def _check_memory(self, fraction: str | None) -> None:
        """Refuse more environments than the host's memory takes, and than their rollout's place takes."""
        num_envs, emulator = self._point.num_envs, HOST_BYTES[self._spec.kind]
        rollout = (1 + self.settings.overlap) * bytes_per_env(self.settings.rollout, self._spec)
        if self._device.type != "cuda":
            check_memory("environments and rollout", emulator + rollout, num_envs, free_ram_bytes())
            return
        free, total = torch.cuda.mem_get_info(self._device)
        share = min(free, int(total * float(fraction))) if fraction else free
        check_memory("rollout", rollout, num_envs, share)
        check_memory("environments", emulator, num_envs, free_ram_bytes(), or_else="fewer processes")

    def _slice_steps(self, parts: int) -> int:
        """Vector steps of one of `parts` slices: enough to fill a minibatch, no more than a rollout."""
        filled = -(-self._point.batch_size // self.environment.num_envs)
        return min(self.settings.rollout, max(-(-self.settings.rollout // parts), filled))

    def _learn(self, samples: Samples) -> tuple[dict[str, float], int]:
        """Update from a rollout; returns metrics by name and the number of optimizer steps."""
        settings, before = self.settings, self._learner.updates
        learning_rate = settings.learning_rate
        if settings.anneal:
            horizon = settings.schedule_horizon_steps
            learning_rate = ppo.annealed(learning_rate, self.env_steps, horizon, settings.anneal_floor)
        variance = ppo.explained_variance(samples.values[samples.rows], samples.returns[samples.rows])
        terms = self._learner.update(samples, self._point.batch_size, learning_rate)
        metrics = {
            "policy_loss": terms["policy"],
            "value_loss": terms["value"],
            "entropy": terms["entropy"],
            "approx_kl": terms["approx_kl"],
            "clip_fraction": terms["clip_fraction"],
            "learning_rate": learning_rate,
        }
        if math.isfinite(explained := float(variance)):
            metrics["explained_variance"] = explained
        return metrics, self._learner.updates - before

    def _read_effective(self) -> dict[str, Any]:
        samples = self.environment.num_envs * self.settings.rollout
        return {
            "env": self._spec.name,
            "num_envs": self.environment.num_envs,
            "batch_size": self._point.batch_size,
            "minibatches": -(-samples // self._point.batch_size),
            "rollout": self.settings.rollout,
            "epochs": self.settings.epochs,
            "learning_rate": self.settings.learning_rate,
            "env_threads": self.environment.threads,
            "lanes": self._lanes.count,
            "acting_lanes": self._collector.lanes.count,
            "overlap": self.settings.overlap,
            "staleness_iterations": int(self.settings.overlap),
            "torch_threads": self._lanes.count * self._lanes.threads,
            "precision": self._learner.precision,
            "compile": self._learner.compiled,
            "cuda_graphs": self._learner.cuda_graphs,
            "channels_last": self._learner.channels_last,
            "device": str(self._device),
            "rollout_bytes": sum(buffer.nbytes for buffer in self._buffers),
            "network_bytes": self._learner.nbytes,
            "deterministic": self.settings.deterministic,
            **{name.lower(): os.environ.get(name) for name in OPENMP},
            **self._spec.options,
        }
