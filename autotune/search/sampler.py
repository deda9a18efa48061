"""Our sampler as an Optuna sampler, for our own search and for a user's own study."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.codec import from_json
from autotune.errors import UsageError
from autotune.records import KNOBS, KnobValue, Point, ProbeResult
from autotune.search import own_study
from autotune.search.epochs import comparable
from autotune.search.memory import MemoryLimits
from autotune.search.model import measured
from autotune.search.propose import Problem, Proposal, propose
from autotune.search.space import Space, grid
from autotune.workloads.learning import Rollout

RESULT = "result"
"""User attribute of a trial: its `ProbeResult` as JSON."""
EPOCH = "epoch"
"""User attribute of a trial: the epoch of the machine in which it was measured."""
STAGE = "stage"
"""User attribute of a trial of `autotune.search` itself: which part of its plan it is; such a one without a result was
lost."""
IGNORED = "ignored"
"""Flag of a result that says nothing about its point (cut short by the end of the budget, lost with the parent)."""
_CHOOSING = threading.Lock()
"""A study may run its trials in threads; no sampler's own, for samplers are pickled."""


def history_of(trials: Sequence[FrozenTrial]) -> list[ProbeResult]:
    """What ended trials measured, in order of their numbers; results flagged `IGNORED` are left out.

    Where the machine has changed meanwhile, all are put on its last footing (`autotune.search.epochs`).
    """
    done = sorted((t for t in trials if t.state.is_finished()), key=lambda trial: trial.number)
    pairs = [(result_of(trial), int(trial.user_attrs.get(EPOCH, 0))) for trial in done]
    kept = [(result, epoch) for result, epoch in pairs if result is not None and IGNORED not in result.flags]
    return comparable([result for result, _ in kept], [epoch for _, epoch in kept])


def result_of(trial: FrozenTrial) -> ProbeResult | None:
    """The measurement of a trial: its `RESULT` attribute, or what a user's own trial says (`own_study.measured_by`)."""
    if RESULT in trial.user_attrs:
        result: ProbeResult = from_json(ProbeResult, trial.user_attrs[RESULT])
        return result
    return None if STAGE in trial.user_attrs else own_study.measured_by(trial)


class PointSampler(BaseSampler):
    """A sampler that chooses whole points and gives out their knobs one by one."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: the knobs of a point are given out one by one."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}


class HistorySampler(PointSampler):
    """A sampler whose next point is a function of the study's history; subclasses say which.

    Parameters of a study beyond the standard knobs are drawn at random.
    """

    def __init__(self, *, problem: Problem | None = None, limits: MemoryLimits | None = None, seed: int = 0) -> None:
        self._problem = problem
        self._limits = limits or MemoryLimits()  # of a problem that the study's own knobs make
        self._seed = seed
        self._chosen: dict[int, Point | None] = {}  # of the trials under way

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that wants anything but the most of one value.

        Raises:
            UsageError: it minimises, or has several objectives.
        """
        if study.directions != [StudyDirection.MAXIMIZE]:
            wanted = ", ".join(direction.name.lower() for direction in study.directions)
            raise UsageError(
                f"{type(self).__name__} finds the most steps per second, and the study's direction is {wanted}: "
                'make it with direction="maximize", and return steps per second'
            )

    def limit_cost(self, left_s: float) -> None:
        """Propose no probe that is predicted to take longer than this."""
        if self._problem is not None:
            self._problem = replace(self._problem, left_s=left_s)

    def propose(self, problem: Problem, history: Sequence[ProbeResult]) -> Proposal | None:
        """What to measure next, None when nothing is worth measuring."""
        raise NotImplementedError

    def upcoming(self, study: Study) -> Proposal | None:
        """What the next trial would measure, None when nothing is worth measuring.

        Raises:
            UsageError: the study's knobs are not known yet.
        """
        trials = study.get_trials(deepcopy=False)
        problem = self._problem or own_study.problem_of(trials, self._limits)
        if problem is None:
            raise UsageError("the knobs are known after the first trial, or make the sampler with knobs=...")
        return self.propose(problem, history_of(trials))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A knob of the trial's point; a random value of any other parameter, the same for the same trial.

        Raises:
            UsageError: the study does not allow the point's value.
        """
        point = self._point(study, trial) if param_name in KNOBS else None
        if point is None:
            own_seed = self._seed + zlib.crc32(param_name.encode())  # else all are the same quantile of their ranges
            random = RandomSampler(seed=seed_of(own_seed, trial.number))
            return random.sample_independent(study, trial, param_name, param_distribution)
        value = getattr(point, param_name)
        if not own_study.allows(param_distribution, value):
            raise UsageError(
                f"the study does not allow {param_name}={value} ({param_distribution}): "
                "suggest the values that the sampler was given as knobs"
            )
        return value

    def _point(self, study: Study, trial: FrozenTrial) -> Point | None:
        """The point of this trial, chosen once; the best one so far when nothing else is worth measuring."""
        with _CHOOSING:
            if trial.number not in self._chosen:
                trials = study.get_trials(deepcopy=False)
                problem = self._problem or own_study.problem_of(trials, self._limits)
                under_way = [ProbeResult(requested=p, status="ok", grade="quick") for p in self._chosen.values() if p]
                history = history_of(trials) + under_way
                proposal = self.propose(problem, history) if problem else None
                best = best_measured(problem, history) or problem.space.points[0] if problem else None
                self._chosen[trial.number] = proposal.point if proposal else best
            return self._chosen[trial.number]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Forget the trial's point: it is in the study now, the knobs included that the trial did not come to.

        Raises:
            UsageError: the trial was measured without a knob of which the sampler has several values.
        """
        point = self._chosen.pop(trial.number, None)
        if point is not None:
            own_study.complete(study, trial, point, values if state == TrialState.COMPLETE else None, self._problem)


class GoodputSampler(HistorySampler):
    """Finds the point with the most stable steps per second in few, costly and fallible measurements.

    In a study of your own::

        sampler = GoodputSampler(
            knobs={"num_envs": [8, 16, 32, 64], "batch_size": [256, 512, 1024], "concurrency": [1, 2, 4]}
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)

    The objective suggests those knobs with ``trial.suggest_int(name, low, high, log=True)`` and returns
    steps per second; a point that failed returns 0.0 or violates a constraint, and neither it nor
    any that dominates it is proposed again; where it raises, it alone is not. With memory limits, set
    the user attributes ``vram_peak_bytes`` and ``ram_peak_bytes`` on the trial; ``cost_s`` where a trial's
    duration is not what its measurement cost.

    Args:
        knobs: allowed values by knob; None takes the choices, or the powers of two within the ranges, that
            the study's own trials suggest (the first trial is then drawn at random).
        rollout: vector steps per iteration: minibatches larger than ``num_envs * rollout`` are left out.
        vram_limit_bytes: what all processes may hold on the device.
        ram_limit_bytes: what they may hold on the host.
        problem: instead of the above, the whole problem.
        seed: of the random choices.

    Raises:
        UsageError: `knobs` that allow no point, or hold what is no count of a standard knob.
    """

    def __init__(
        self,
        *,
        knobs: Mapping[str, Sequence[KnobValue]] | None = None,
        rollout: int | None = None,
        vram_limit_bytes: float | None = None,
        ram_limit_bytes: float | None = None,
        problem: Problem | None = None,
        seed: int = 0,
    ) -> None:
        limits = MemoryLimits(vram_bytes=vram_limit_bytes, ram_bytes=ram_limit_bytes)
        if problem is None and knobs is not None:
            own_study.check_knobs(knobs)
            points = [p for p in grid(knobs) if rollout is None or p.batch_size <= p.num_envs * rollout]
            rule = None if rollout is None else Rollout(steps=rollout)
            problem = Problem(space=Space(points=tuple(points), rollout=rule), limits=limits)
        super().__init__(problem=problem, limits=limits, seed=seed)

    def propose(self, problem: Problem, history: Sequence[ProbeResult]) -> Proposal | None:
        """`autotune.search.propose.propose`."""
        return propose(problem, history)


class FixedSampler(PointSampler):
    """Gives one point, whatever the study holds."""

    def __init__(self, point: Point) -> None:
        self._knobs = point.knobs()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The point's value."""
        return self._knobs[param_name]


class SnappedSampler(BaseSampler):
    """Another sampler whose integer values are moved to the nearest allowed ones, seeded anew for every trial.

    Args:
        make: called with a seed, returns the sampler.
        space: whose levels are allowed.
        seed: of the search; a resumed one proposes what an uninterrupted one would.
    """

    def __init__(self, make: Any, space: Space, seed: int) -> None:
        self._make, self._seed = make, seed
        self._levels = dict(zip(KNOBS, space.levels, strict=True))
        self._sampler: BaseSampler = make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the sampler for this trial."""
        self._sampler = self._make(seed=seed_of(self._seed, trial.number))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the other sampler has it."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The other sampler's values, moved to allowed ones."""
        values = self._sampler.sample_relative(study, trial, search_space)
        return {name: self._snap(name, value) for name, value in values.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The other sampler's value, moved to an allowed one."""
        return self._snap(param_name, self._sampler.sample_independent(study, trial, param_name, param_distribution))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the other sampler has it."""
        self._sampler.after_trial(study, trial, state, values)

    def _snap(self, name: str, value: Any) -> Any:
        levels = self._levels.get(name)
        return value if levels is None else min(levels, key=lambda level: max(level / value, value / level))


def seed_of(seed: int, number: int) -> int:
    """A seed for trial `number` of a search with this seed."""
    return (seed * 1_000_003 + number * 7919) % 2**31


def best_measured(problem: Problem, history: Sequence[ProbeResult]) -> Point | None:
    """The point of the space that was measured as the fastest, None when none was stable."""
    stable = [result for result in measured(history) if result.requested in problem.space.index]
    return max(stable, key=lambda result: result.sps or 0.0).requested if stable else None
