"""EnvPool's vector environment: which rows are steps, when games end, what they returned."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import envpool
import numpy as np

from autotune.errors import UsageError
from autotune.workloads.atari.settings import Option, PPOSettings
from autotune.workloads.guards import (
    OTHERWISE,
    broken_environment,
    checked_observations,
    checked_rewards,
    environment_made,
)

Array = np.ndarray[Any, Any]

MINIMUM_IMAGE_SIDE = 36
OWN_OPTIONS = {"num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "task"}
OWN_OPTIONS |= {"env_name", "base_path", "gym_reset_return_info"}
"""EnvPool options that the point and the job decide (`task` and Procgen's `env_name` would play another game under this
one's name), and those that end the process, of a folder without its games or a form of answers that it gave up."""
HOST_BYTES = {"image": 1_300_000, "vector": 9_000}
"""EnvPool's own memory for an environment of a kind: Breakout and MsPacman with 128 to 1,024 environments took 1.24 to
1.29 MB each, CartPole 9 kB."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What the trainer needs to know before it builds anything.

    Attributes:
        name: EnvPool's full name, such as ``Breakout-v5``.
        kind: ``image`` (uint8, channels first) or ``vector`` (float32).
        shape: of one observation: (channels, height, width) or (values,).
        actions: number of discrete actions.
        options: EnvPool options in effect beyond its defaults.
    """

    name: str
    kind: Literal["image", "vector"]
    shape: tuple[int, ...]
    actions: int
    options: dict[str, Option]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One row per environment after a vector step; arrays of shape (num_envs,) but for observations.

    Attributes:
        observations: (num_envs, *shape); the true final one where an episode ended.
        rewards: as learning sees them (clipped if so set), 0 on reset rows.
        terminated: the episode ended (a lost life too, if so set): nothing follows.
        done: terminated or truncated; the next row is a reset.
        valid: the environment executed the action; false on rows of automatic resets.
    """

    observations: Array
    rewards: Array
    terminated: Array
    done: Array
    valid: Array


def allowed_threads() -> int:
    """This process's share of cores: `AUTOTUNE_THREADS`, else the cores it may run on."""
    if share := os.environ.get("AUTOTUNE_THREADS"):
        return max(1, int(share))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def full_name(name: str) -> str:
    """EnvPool's name for what the user wrote: ``breakout`` and ``ALE/Breakout-v5`` are ``Breakout-v5``.

    Raises:
        UsageError: EnvPool has no such environment; the message lists near names.
    """
    known = envpool.list_all_envs()
    lower = {task.lower(): task for task in known}
    short = name.lower().removeprefix("ale/")
    if name in known:  # some differ from others in case only
        return name
    for candidate in (short, f"{short}-v5"):
        if candidate in lower:
            return lower[candidate]
    same = sorted(task for task in known if task.rsplit("-v", 1)[0].lower() == short)
    if same:
        return same[-1]
    near = difflib.get_close_matches(f"{short}-v5", lower, n=4, cutoff=0.6)
    near += difflib.get_close_matches(short, lower, n=3, cutoff=0.6)
    hint = f"near names: {', '.join(dict.fromkeys(lower[task] for task in near))}" if near else "no name is near"
    raise UsageError(f"unknown game {name!r}: EnvPool {envpool.__version__} has no such environment; {hint}")


def environment_spec(name: str, settings: PPOSettings) -> EnvironmentSpec:
    """Describe an environment without starting it.

    Raises:
        UsageError: unknown game or option, one that EnvPool cannot make, continuous actions, several players, or
            observations that are neither uint8 images nor vectors.
    """
    task = full_name(name)
    spec = environment_made(envpool.make_spec, task, {})
    known = set(spec.config._fields) - OWN_OPTIONS
    if strange := sorted(set(settings.env_options) - known):
        raise UsageError(f"{task} has no option {strange[0]!r}; EnvPool knows: {', '.join(sorted(known))}")
    own = {"episodic_life": settings.episodic_life, "reward_clip": settings.reward_clip}
    options = {**{key: value for key, value in own.items() if key in known}, **settings.env_options}
    try:
        spec = environment_made(envpool.make_spec, task, options)
    except TypeError:
        usual = {key: getattr(spec.config, key) for key in settings.env_options}
        given = settings.env_options
        raise UsageError(f"{task} does not take the options {given}: use values of the types of {usual}") from None
    actions = getattr(spec.action_space, "n", None)
    if actions is None or spec.action_space.shape != ():
        actions = spec.action_space
        raise UsageError(f"{task} has actions {actions}; this workload plays discrete actions only: {OTHERWISE}")
    shape = tuple(getattr(spec.observation_space, "shape", None) or ())
    image = len(shape) == 3 and spec.observation_space.dtype == np.uint8 and min(shape[1:]) >= MINIMUM_IMAGE_SIDE
    if not image and len(shape) != 1:
        raise UsageError(
            f"{task} has observations {spec.observation_space}; this workload takes vectors, or uint8 images "
            f"(channels, height, width) of at least {MINIMUM_IMAGE_SIDE} x {MINIMUM_IMAGE_SIDE}: {OTHERWISE}"
        )
    kind: Literal["image", "vector"] = "image" if image else "vector"
    return EnvironmentSpec(name=task, kind=kind, shape=shape, actions=int(actions), options=options)


def identity(spec: EnvironmentSpec, settings: PPOSettings) -> dict[str, Any]:
    """What a checkpoint must share with the session that loads it; all else (point, device, schedule) may differ."""
    return {
        "workload": "atari",
        "environment": spec.name,
        "observations": list(spec.shape),
        "actions": spec.actions,
        "hidden": settings.hidden if spec.kind == "vector" else None,
    }


class VectorEnvironment:
    """`num_envs` copies of an EnvPool environment, stepped together.

    EnvPool resets by itself: after a row that ended an episode, the next row of that environment is
    the reset, its action is ignored and its reward is 0. Where a lost life ends an episode, the reset lets the game
    go on without an action for a moment; a game that is over by then (of RoadRunner one in eight) starts anew in
    silence, and only its lives tell.

    Attributes:
        spec: of one environment.
        num_envs: read back from EnvPool's spec.
        threads: EnvPool's own, read back.
        observations: of the last row.
        executed_steps: decisions executed since the start, counted by valid rows.
        elapsed_steps: the same counted from EnvPool's ``elapsed_step``, None where it has none.
        reset_rows: rows spent on automatic resets.
        returns: undiscounted, unclipped returns of games that ended; cleared by `take_games`.
        lengths: executed steps of these games.
    """

    def __init__(self, spec: EnvironmentSpec, num_envs: int, threads: int, seed: int) -> None:
        self.spec = spec
        self._pool: Any = envpool.make(
            spec.name,
            env_type="gymnasium",
            num_envs=num_envs,
            num_threads=threads,
            seed=seed % 2**31,
            **spec.options,
        )
        self.num_envs = int(self._pool.spec.config.num_envs)
        self.threads = int(self._pool.spec.config.num_threads)
        self.executed_steps = 0
        self.reset_rows = 0
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self._game_return = np.zeros(num_envs)
        self._game_length = np.zeros(num_envs, np.int64)
        self._previous_done = np.zeros(num_envs, bool)
        observations, info = self._pool.reset()
        self.observations = self._checked(observations)
        self._elapsed = info.get("elapsed_step")
        self._lives = info.get("lives")
        self.elapsed_steps = None if self._elapsed is None else 0

    def step(self, actions: Array) -> Rows:
        """Send one action per environment, shape (num_envs,), and wait for all rows.

        Raises:
            WorkerError: the environment raised, an observation or reward is not finite, or it changed its shape.
        """
        try:
            observations, rewards, terminated, truncated, info = self._pool.step(actions)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the worker takes its own signals
            raise broken_environment(self.spec.name, self.executed_steps, error) from error
        checked_rewards(rewards, self.spec.name, self.executed_steps)
        done = terminated | truncated
        valid = ~self._previous_done
        executed = int(np.count_nonzero(valid))
        self.executed_steps += executed
        self.reset_rows += self.num_envs - executed
        self._count_elapsed(info)
        game_over = (info["terminated"] > 0) | truncated if "terminated" in info else done
        self._count_games(info.get("reward", rewards), valid, (game_over & valid) | self._restarted(info, valid))
        self._previous_done = done
        self.observations = self._checked(observations)
        return Rows(
            observations=self.observations,
            rewards=np.where(valid, rewards, 0).astype(np.float32),
            terminated=terminated,
            done=done,
            valid=valid,
        )

    def take_games(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Returns and lengths of the games that ended since the last call."""
        games = tuple(self.returns), tuple(self.lengths)
        self.returns, self.lengths = [], []
        return games

    def close(self) -> None:
        """Stop EnvPool's threads; safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _count_elapsed(self, info: Mapping[str, Any]) -> None:
        if self.elapsed_steps is None:
            return
        elapsed = info["elapsed_step"]
        self.elapsed_steps += int(np.maximum(elapsed - self._elapsed, 0).sum())
        self._elapsed = elapsed

    def _restarted(self, info: Mapping[str, Any], valid: Array) -> Array:
        """Where the game was over within the reset after a lost life: there are more lives than before."""
        lives, before = info.get("lives"), self._lives
        self._lives = lives
        return np.zeros_like(valid) if lives is None else ~valid & (lives > before)

    def _count_games(self, rewards: Array, valid: Array, game_over: Array) -> None:
        self._game_return += np.where(valid, rewards, 0)
        self._game_length += valid
        for index in np.flatnonzero(game_over & (self._game_length > 0)):
            self.returns.append(float(self._game_return[index]))
            self.lengths.append(int(self._game_length[index]))
            self._game_return[index] = 0
            self._game_length[index] = 0

    def _checked(self, observations: Array) -> Array:
        return checked_observations(observations, self.spec.shape, self.spec.name, self.executed_steps)


class EnvironmentGroup:
    """The vector environments of a training, one for each lane, counted as one; see `VectorEnvironment`."""

    def __init__(self, parts: Sequence[VectorEnvironment]) -> None:
        self.parts = tuple(parts)
        self.spec = self.parts[0].spec
        self.num_envs = sum(part.num_envs for part in self.parts)
        self.threads = sum(part.threads for part in self.parts)

    @property
    def observations(self) -> Array:
        """Of the last rows: (num_envs, *shape), a copy."""
        return np.concatenate([part.observations for part in self.parts])

    @property
    def executed_steps(self) -> int:
        """Decisions executed since the start, counted by valid rows."""
        return sum(part.executed_steps for part in self.parts)

    @property
    def reset_rows(self) -> int:
        """Rows spent on automatic resets."""
        return sum(part.reset_rows for part in self.parts)

    @property
    def elapsed_steps(self) -> int | None:
        """`executed_steps` counted from EnvPool's ``elapsed_step``, None where it has none."""
        counts = [part.elapsed_steps for part in self.parts]
        return None if None in counts else sum(count or 0 for count in counts)

    def take_games(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Returns and lengths of the games that ended since the last call."""
        returns, lengths = zip(*(part.take_games() for part in self.parts), strict=True)
        return tuple(value for part in returns for value in part), tuple(n for part in lengths for n in part)

    def close(self) -> None:
        """Stop every environment; safe to call twice."""
        for part in self.parts:
            part.close()
