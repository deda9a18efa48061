"""The discrete grid of points that a search may visit, as arrays.

Further knobs of a recipe (``Point.extra``) keep the baseline's value here; they are compared at the
incumbent afterwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution

from autotune.errors import UsageError
from autotune.probe.recipe_file import batch_size_max, rollout_rule
from autotune.records import KNOBS, KnobValue, Point, Recipe
from autotune.stats import nearest_by_ratio
from autotune.workloads.learning import Rollout

Array = NDArray[Any]


@dataclass(frozen=True)
class Space:
    """Every point that may be measured.

    Attributes:
        points: in ascending order of num_envs, batch_size, concurrency.
        rollout: vector steps per iteration at any num_envs, None where the recipe has none.

    Raises:
        UsageError: there is none.
    """

    points: tuple[Point, ...]
    rollout: Rollout | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise UsageError(
                "the knobs allow no point: give num_envs, batch_size and concurrency whole numbers, and a batch_size "
                "of at most num_envs x rollout"
            )

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The values that occur, by standard knob, ascending."""
        return tuple(tuple(sorted({getattr(point, knob) for point in self.points})) for knob in KNOBS)

    @cached_property
    def index(self) -> Mapping[Point, int]:
        """Position of every point in `points`."""
        return {point: i for i, point in enumerate(self.points)}

    @cached_property
    def counts(self) -> Array:
        """(n, 3) num_envs, effective batch_size and concurrency of every point."""
        return counts(self.points, self.rollout)

    @cached_property
    def octaves(self) -> Array:
        """(n, 3) log2 of `counts`, the coordinates of models and distances."""
        return np.log2(self.counts)

    def distributions(self, also: Iterable[Point] = ()) -> dict[str, BaseDistribution]:
        """Optuna's distributions, wide enough for further points too."""
        every = [*self.points, *also]
        spans = {knob: [getattr(point, knob) for point in every] for knob in KNOBS}
        return {knob: IntDistribution(min(span), max(span), log=True) for knob, span in spans.items()}

    def nearest(self, knobs: Mapping[str, Any]) -> Point:
        """The point nearest to these standard knobs, by ratio; the lighter one of equals."""
        rows = [[getattr(point, knob) for knob in KNOBS] for point in self.points]
        return self.points[nearest_by_ratio(rows, [max(1.0, float(knobs.get(knob, 1))) for knob in KNOBS])]

    def neighbours(self, point: Point) -> list[int]:
        """Points one level away along one knob, along num_envs and batch_size, or along num_envs and concurrency.

        Of the former pair either way, of the latter one up and the other down.
        """
        here = [_level(levels, getattr(point, knob)) for levels, knob in zip(self.levels, KNOBS, strict=True)]
        steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (1, 1, 0), (-1, -1, 0)]
        steps += [(1, -1, 0), (-1, 1, 0), (1, 0, -1), (-1, 0, 1)]
        extra, found = self.points[0].extra, []
        for step in steps:
            there = [at + move for at, move in zip(here, step, strict=True)]
            if all(0 <= at < len(levels) for at, levels in zip(there, self.levels, strict=True)):
                values = [levels[at] for at, levels in zip(there, self.levels, strict=True)]
                candidate = Point(num_envs=values[0], batch_size=values[1], concurrency=values[2], extra=extra)
                if candidate in self.index:
                    found.append(self.index[candidate])
        return found


def _level(levels: Sequence[int], value: int) -> int:
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / value)))


def counts(points: Sequence[Point], rollout: Rollout | None) -> Array:
    """(n, 3) num_envs, batch_size and concurrency; a minibatch is never larger than the rollout."""
    rows = np.array([[p.num_envs, p.batch_size, p.concurrency] for p in points], dtype=float).reshape(-1, 3)
    if rollout is not None:
        rows[:, 1] = np.minimum(rows[:, 1], samples(rows[:, 0], rollout))
    return rows


def samples(num_envs: Array, rollout: Rollout | None) -> Array:
    """(n,) env steps of one iteration of one process; one of each environment where the recipe has no rollout.

    Args:
        num_envs: (n,) environments per process, each of which the rollout allows.
        rollout: of the recipe.
    """
    if rollout is None:
        return num_envs
    if rollout.samples_per_update is None:
        result: Array = num_envs * rollout.steps
        return result
    return np.array([rollout.samples(int(each)) for each in num_envs], dtype=float)


def space_of(recipe: Recipe) -> Space:
    """The grid of a recipe: its values, its explicit points, minibatches no larger than the rollout.

    Raises:
        UsageError: no combination is possible.
    """
    extra = recipe.baseline.extra
    points = [point for point in recipe.points if point.extra == extra] if recipe.points else grid(recipe.knobs, extra)
    feasible = [point for point in points if point.batch_size <= batch_size_max(recipe, point.num_envs)]
    if not feasible:
        raise UsageError(
            f"recipe {recipe.name!r} allows no point: every batch_size is larger than num_envs x rollout; "
            "allow smaller batch sizes or more environments (or other samples_per_update, where that is set)"
        )
    return Space(points=tuple(feasible), rollout=rollout_rule(recipe))


def possible(recipe: Recipe, space: Space, point: Point) -> Point:
    """The point itself; of a recipe that has certain points only (a recorded surface) the nearest of them."""
    return space.nearest(point.knobs()) if recipe.points else point


def grid(knobs: Mapping[str, Sequence[KnobValue]], extra: tuple[tuple[str, KnobValue], ...] = ()) -> list[Point]:
    """Every combination of the standard knobs."""
    axes = [[int(value) for value in knobs.get(knob, (1,))] for knob in KNOBS]
    return [Point(num_envs=e, batch_size=b, concurrency=k, extra=extra) for e, b, k in itertools.product(*axes)]
