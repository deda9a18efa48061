"""Samplers to compare ours with: Optuna's own, a coarse grid and a hill climb."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from autotune import registry
from autotune.errors import UsageError
from autotune.records import Point
from autotune.search.propose import Problem, Proposal
from autotune.search.sampler import GoodputSampler, HistorySampler, SnappedSampler, history_of, seed_of


def tpe(*, seed: int) -> BaseSampler:
    """Optuna's tree-structured Parzen estimator."""
    return optuna.samplers.TPESampler(seed=seed)


def gp(*, seed: int) -> BaseSampler:
    """Optuna's Gaussian process; needs torch and scipy.

    Raises:
        UsageError: torch is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise UsageError("--sampler gp needs torch: pip install 'gpu-autotune[torch]', or take the default sampler")
    return optuna.samplers.GPSampler(seed=seed)


def random(*, seed: int) -> BaseSampler:
    """Uniform in the logarithm of every knob."""
    return optuna.samplers.RandomSampler(seed=seed)


class GridSampler(HistorySampler):
    """Every second level of every knob (the ends included), in random order."""

    def propose(self, problem: Problem, trials: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """The next point of the grid that was not measured."""
        kept = [set(levels[::-2]) | {levels[0]} for levels in problem.space.levels]
        points = [
            p
            for p in problem.space.points
            if p.num_envs in kept[0] and p.batch_size in kept[1] and p.concurrency in kept[2]
        ]
        stdlib_random.Random(self._seed).shuffle(points)
        seen = {result.requested for result in history_of(trials)}
        left = [point for point in points if point not in seen]
        return Proposal(point=left[0], stage="model") if left else None


class HillClimbSampler(HistorySampler):
    """Moves to the best measured point's neighbours, and starts elsewhere at random when none is better."""

    def propose(self, problem: Problem, trials: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """An unmeasured neighbour of the current climb's best point, or a new start."""
        history = history_of(trials)
        seen = {result.requested for result in history}
        draw = stdlib_random.Random(seed_of(self._seed, number))
        left = [point for point in problem.space.points if point not in seen]
        if not left:
            return None
        stable = [result for result in history if result.ok and result.requested in problem.space.index]
        home = max(stable, key=lambda result: result.sps or 0.0).requested if stable else None
        near = self._neighbours(problem, home, seen) if home else []
        return Proposal(point=draw.choice(near or left), stage="neighbours" if near else "spread")

    def _neighbours(self, problem: Problem, home: Point, seen: set[Point]) -> list[Point]:
        near = [problem.space.points[i] for i in problem.space.neighbours(home)]
        return [p for p in near if p not in seen and len(set(p.knobs().items()) - set(home.knobs().items())) == 1]


def make(name: str, problem: Problem, seed: int) -> BaseSampler:
    """The sampler of this name for a problem.

    Raises:
        UsageError: there is none of this name, or it lacks a package.
    """
    factory = registry.load("sampler", name)
    if isinstance(factory, type) and issubclass(factory, HistorySampler):
        return factory(problem=problem, seed=seed)
    return SnappedSampler(factory, problem.space, seed)


__all__ = ["GoodputSampler", "GridSampler", "HillClimbSampler", "gp", "make", "random", "tpe"]
