"""How long a game is, by environment, from every probe that saw enough of them end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.records import Job, ProbeResult
from autotune.stats import NORMAL_95, pooled_game_steps


@dataclass(frozen=True, kw_only=True)
class GameLength:
    """The mean length of an environment's games.

    Attributes:
        steps: env steps.
        error_fraction: half of its 95 % interval, as a fraction: lengths that scatter as much as their mean, and half
            of what the games running at a probe's end may add.
        games: that ended.
        measured: of this environment; else the mean of those that were measured stands in for it.
    """

    steps: float
    error_fraction: float
    games: int
    measured: bool = True

    @classmethod
    def of(cls, steps: float, games: int, *, running: int = 0) -> GameLength:
        """The length told by so many games that ended, and so many that still ran at the end."""
        return cls(steps=steps, error_fraction=NORMAL_95 / math.sqrt(games) + running / games / 4, games=games)


def game_lengths(jobs: Sequence[Job], history: Sequence[ProbeResult]) -> dict[str, GameLength]:
    """By environment of the jobs, empty where no probe saw enough games end. Process i of a probe runs job i."""
    seen: dict[str, list[tuple[int, float, int]]] = {}
    for result in history:
        for job, games, steps in zip(jobs, result.games, result.game_steps, strict=False):
            if steps and result.ok:
                seen.setdefault(job.env, []).append((games, steps, result.requested.num_envs))
    known = {env: _pooled(each) for env, each in seen.items()}
    return with_stand_ins(jobs, known)


def with_stand_ins(jobs: Sequence[Job], known: Mapping[str, GameLength]) -> dict[str, GameLength]:
    """The lengths known of the jobs' environments, and their mean for every other one; empty when none is known."""
    own = {job.env: known[job.env] for job in jobs if job.env in known}
    if not own:
        return {}
    other = GameLength(
        steps=sum(length.steps for length in own.values()) / len(own), error_fraction=math.inf, games=0, measured=False
    )
    return {job.env: own.get(job.env, other) for job in jobs}


def _pooled(probes: Sequence[tuple[int, float, int]]) -> GameLength:
    games = sum(count for count, _, _ in probes)
    running = sum(envs for _, _, envs in probes)
    steps = pooled_game_steps([count for count, _, _ in probes], [length for _, length, _ in probes])
    return GameLength.of(steps or 0.0, games, running=running)


def steps_of(lengths: Mapping[str, GameLength]) -> dict[str, float]:
    """The mean env steps of a game, by environment."""
    return {env: length.steps for env, length in lengths.items()}
