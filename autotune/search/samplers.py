"""Samplers to compare ours with: Optuna's own, a coarse grid and a hill climb."""

from __future__ import annotations

import random as random_numbers
from collections.abc import Sequence
from importlib.util import find_spec
from typing import cast

import optuna
from optuna.samplers import BaseSampler

from autotune import registry
from autotune.errors import UsageError
from autotune.records import Point, ProbeResult
from autotune.search.memory import safe
from autotune.search.propose import Problem, Proposal
from autotune.search.sampler import HistorySampler, SnappedSampler, best_measured, seed_of


def tpe(*, seed: int) -> BaseSampler:
    """Optuna's tree-structured Parzen estimator."""
    return optuna.samplers.TPESampler(seed=seed)


def gp(*, seed: int) -> BaseSampler:
    """Optuna's Gaussian process; needs torch and scipy.

    Raises:
        UsageError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise UsageError("--sampler gp needs torch: pip install 'gpu-autotune[torch]', or take the default sampler")
    return optuna.samplers.GPSampler(seed=seed)


def random(*, seed: int) -> BaseSampler:
    """Uniform in the logarithm of every knob."""
    return optuna.samplers.RandomSampler(seed=seed)


class GridSampler(HistorySampler):
    """Every second level of every knob (the ends included), in random order."""

    def propose(self, problem: Problem, history: Sequence[ProbeResult]) -> Proposal | None:
        """The next point of the grid that was not measured and is safe."""
        kept = [{*levels[::-2], levels[0]} for levels in problem.space.levels]
        points = _open(problem, history)
        coarse = [p for p in points if p.num_envs in kept[0] and p.batch_size in kept[1] and p.concurrency in kept[2]]
        if not coarse:
            return None
        draw = random_numbers.Random(seed_of(self._seed, len(history)))
        return Proposal(point=draw.choice(coarse), stage="model")


class HillClimbSampler(HistorySampler):
    """Moves to the best measured point's neighbours, and starts elsewhere at random when none is better."""

    def propose(self, problem: Problem, history: Sequence[ProbeResult]) -> Proposal | None:
        """An unmeasured neighbour of the current climb's best point, or a new start."""
        left = _open(problem, history)
        if not left:
            return None
        near: list[Point] = []
        if home := best_measured(problem, history):
            beside = [problem.space.points[i] for i in problem.space.neighbours(home)]
            near = [p for p in beside if p in left and len(set(p.knobs().items()) - set(home.knobs().items())) == 1]
        draw = random_numbers.Random(seed_of(self._seed, len(history)))
        return Proposal(point=draw.choice(near or left), stage="neighbours" if near else "spread")


def _open(problem: Problem, history: Sequence[ProbeResult]) -> list[Point]:
    """Points that were not measured and are safe."""
    seen = {result.requested for result in history}
    allowed = safe(problem.space, history, problem.limits)
    return [p for p, may in zip(problem.space.points, allowed, strict=True) if may and p not in seen]


def make(name: str, problem: Problem, seed: int) -> BaseSampler:
    """The sampler of this name for a problem.

    Raises:
        UsageError: there is none of this name, or it lacks a package.
    """
    factory = registry.load("sampler", name)
    with registry.blamed("sampler", name):
        if isinstance(factory, type) and issubclass(factory, HistorySampler):
            return factory(problem=problem, seed=seed)
        snapped = SnappedSampler(factory, problem.space, seed)
    if name in registry.BUNDLED["sampler"]:
        return snapped
    return cast(BaseSampler, registry.Watched("sampler", name, snapped, what="propose a point"))
