"""The contract of a sampler, as tests."""

from __future__ import annotations

from typing import ClassVar

import optuna
from optuna.trial import FrozenTrial

from autotune.records import Point, ProbeResult
from autotune.search import samplers, trials
from autotune.search.propose import Problem
from autotune.search.space import Space, grid

KNOBS = {"num_envs": (8, 16, 32, 64), "batch_size": (64, 256, 1024), "concurrency": (1, 2, 3, 4)}
HEAVY = 128
"""Environments, over all processes, from which a point runs out of memory here."""


class SamplerContract:
    """Subclass it, name it ``Test...``, and say which sampler; it is asked as a search asks it.

    Attributes:
        name: in the registry.
        count: trials; a sampler that begins at random may want more to show what it does.
    """

    name: ClassVar[str]
    count: ClassVar[int] = 12

    def test_points_are_of_the_space(self) -> None:
        """Whatever failed before."""
        points = asked(self.name, self.count)
        assert len(points) == self.count and set(points) <= set(grid(KNOBS))
        assert len(set(points)) > 1

    def test_equal_seeds_propose_equal_points(self) -> None:
        """The seed is all that is random."""
        assert asked(self.name, self.count, seed=3) == asked(self.name, self.count, seed=3)

    def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(self) -> None:
        """What a sampler knows is in the study: it is made anew when a search is resumed."""
        study = new_study()
        half = asked(self.name, self.count // 2, study=study)
        rest = asked(self.name, self.count - len(half), study=study)
        assert half + rest == asked(self.name, self.count)


def new_study() -> optuna.Study:
    """An empty study in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize")


def asked(name: str, count: int, *, seed: int = 0, study: optuna.Study | None = None) -> list[Point]:
    """The points that a sampler proposes in a study for so many trials, each of which is measured and told."""
    space, study = Space(points=tuple(grid(KNOBS))), study or new_study()
    study.sampler = samplers.make(name, Problem(space=space), seed)
    points = []
    for _ in range(count):
        trial = study.ask(space.distributions())
        point = space.nearest(trial.params)
        trials.start(trial, "model", point, "boot", 0.0, 30.0)
        result = measured(point)
        trials.finish(study, trial, result, result.goodput_per_usd(1.0) or trials.worst_value(study))
        points.append(exact(study.trials[-1], point))
    return points


def exact(trial: FrozenTrial, point: Point) -> Point:
    """The point that a trial's own values make, which must be the nearest of the space."""
    assert Point.from_knobs(trial.params) == point, "values between those of the space"
    return point


def measured(point: Point) -> ProbeResult:
    """What a small machine makes of a point: faster with more of everything, until its memory is full."""
    if point.num_envs * point.concurrency >= HEAVY:
        return ProbeResult(requested=point, status="oom", grade="quick", detail="out of memory", cost_s=10.0)
    sps = 1e4 * point.concurrency / (1 + 32 / point.num_envs + 128 / point.batch_size + 0.5 * point.concurrency)
    each = (sps / point.concurrency,) * point.concurrency
    return ProbeResult(requested=point, status="ok", grade="quick", sps=sps, job_sps=each, cost_s=30.0)
