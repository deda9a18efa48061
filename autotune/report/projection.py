"""What a measured speed means in hours and dollars: pure functions, no files.

Everything is linear in time, so an interval of a speed becomes an interval of hours by dividing
by its ends. Sources of the formulas stand in the docstrings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.errors import UsageError
from autotune.records import Budget, Job
from autotune.search.worth import job_speeds, spans
from autotune.stats import log_ratio

HOUR_S = 3600.0
DAY_HOURS = 24.0
SAME = 1e-9
"""Times that differ by less than this fraction are equal."""
_OPPOSITE = {"value": "value", "low": "high", "high": "low"}
"""The end of a speed's interval that makes an end of the hours'."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A value with its 95 % interval; the ends are None when no interval is known."""

    value: float
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float) -> Quantity:
        """This estimate times a positive constant."""
        ends = (None if end is None else end * factor for end in (self.low, self.high))
        low, high = ends
        return Quantity(value=self.value * factor, low=low, high=high)

    def less_sure(self, error_fraction: float) -> Quantity:
        """This estimate times a factor of 1 that is known to ``/ (1 + error)`` and ``* (1 + error)``, independently."""
        if self.low is None or self.high is None or math.isinf(error_fraction):
            return Quantity(value=self.value)
        towards_0, away = abs(self.value) * error_fraction / (1 + error_fraction), abs(self.value) * error_fraction
        below, above = (towards_0, away) if self.value > 0 else (away, towards_0)
        return Quantity(
            value=self.value,
            low=self.value - math.hypot(self.value - self.low, below),
            high=self.value + math.hypot(self.high - self.value, above),
        )

    @property
    def half_width_fraction(self) -> float | None:
        """The larger half of the interval relative to the value, None without an interval."""
        if self.low is None or self.high is None or self.value <= 0:
            return None
        return max(self.high - self.value, self.value - self.low) / self.value


@dataclass(frozen=True, kw_only=True)
class JobProjection:
    """One job's part.

    Attributes:
        id: the job's.
        budget: as the manifest states it.
        steps: agent steps it will make, None when the budget cannot be turned into steps.
        hours: wall hours from its start to its end, None when not known.
        usd: its share of the bill, by its share of all job hours; None without a price.
    """

    id: str
    budget: Budget
    steps: float | None
    hours: Quantity | None
    usd: float | None


@dataclass(frozen=True, kw_only=True)
class Projection:
    """All jobs on one machine.

    Attributes:
        jobs: in the order in which they start.
        slots: jobs that run at once.
        hours: wall hours from the first start to the last end, None when a job's are not known. Jobs that are left
            while fewer than `slots` run have the speed measured with so few, else the one that they had before.
        least: the same if those left share the whole speed where it was not measured with so few.
        tail: fewer jobs than may run at once are left at the end.
        price_usd_per_hour: of the whole machine, None when not known.
        unknown: ids of the jobs whose length is not known.
    """

    jobs: tuple[JobProjection, ...]
    slots: int
    hours: Quantity | None
    least: Quantity | None
    tail: bool
    price_usd_per_hour: float | None
    unknown: tuple[str, ...] = ()

    @property
    def days(self) -> float | None:
        """Wall days."""
        return self.hours.value / DAY_HOURS if self.hours else None

    @property
    def usd(self) -> Quantity | None:
        """What the machine costs over `hours`."""
        return self._cost(self.hours)

    @property
    def least_usd(self) -> Quantity | None:
        """What it costs over `least`."""
        return self._cost(self.least)

    @property
    def open_end(self) -> bool:
        """Whether fewer jobs are left at the end, with a speed that was not measured."""
        return bool(self.hours and self.least and self.least.value < self.hours.value * (1 - SAME))

    def _cost(self, hours: Quantity | None) -> Quantity | None:
        return hours.scaled(self.price_usd_per_hour) if hours and self.price_usd_per_hour is not None else None


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What one projection saves against another; negative when it costs more.

    Where the speed of the jobs left at the end of either was not measured, the values are the least that is saved
    (or lost), and the intervals reach from the least to the most.

    Attributes:
        hours: wall hours saved.
        usd: dollars saved, None without a price.
        fraction: of the reference's hours (and so of its cost).
        tied: the interval of the ratio of the hours includes 1, or is not known.
    """

    hours: Quantity
    usd: Quantity | None
    fraction: Quantity
    tied: bool

    def less_sure(self, error_fraction: float) -> Savings:
        """With an error that both plans share, such as the length of a game: the fraction does not feel it."""
        usd = self.usd.less_sure(error_fraction) if self.usd else None
        return replace(self, hours=self.hours.less_sure(error_fraction), usd=usd)


def job_hours(budget: Budget, job_sps: Quantity | None, steps_per_episode: Quantity | None) -> Quantity | None:
    """Wall hours of one job at its own speed: steps / SPS / 3600; an hours budget is its own answer.

    The errors of the speed and of the length of a game are independent, see `ratio`. An interval of the speed that
    reaches down to 0 leaves the hours without an upper end, a length without an interval without any.
    """
    if budget.unit == "hours":
        return _exactly(budget.amount)
    steps = _steps(budget, steps_per_episode)
    if steps is None or job_sps is None or steps.value <= 0 or job_sps.value <= 0:
        return None
    return ratio(steps, job_sps).scaled(1 / HOUR_S)


def _steps(budget: Budget, steps_per_episode: Quantity | None) -> Quantity | None:
    """Agent steps in a budget that is not in hours, None where the length of a game is not known."""
    if budget.unit == "steps":
        return _exactly(budget.amount)
    if budget.unit == "episodes" and steps_per_episode and steps_per_episode.value > 0:
        return steps_per_episode.scaled(budget.amount)
    return None


def project(
    jobs: Sequence[Job],
    job_sps: Quantity,
    slots: int,
    *,
    price_usd_per_hour: float | None = None,
    steps_per_episode: Mapping[str, Quantity] | None = None,
    fewer: Mapping[int, Quantity] | None = None,
) -> Projection:
    """Hours and cost of all jobs when each runs at `job_sps`, `slots` at a time.

    Args:
        jobs: in the order in which they start.
        job_sps: agent steps per second of one job while `slots` of them run.
        slots: jobs that run at once.
        price_usd_per_hour: of the whole machine.
        steps_per_episode: measured, by environment.
        fewer: agent steps per second of fewer jobs together, by how many run.
    """
    speeds = {**(fewer or {}), slots: job_sps.scaled(slots)}
    each = {job.id: job_sps for job in jobs}
    return project_each(jobs, each, speeds, price_usd_per_hour=price_usd_per_hour, steps_per_episode=steps_per_episode)


def project_each(
    jobs: Sequence[Job],
    job_sps: Mapping[str, Quantity],
    speeds: Mapping[int, Quantity],
    *,
    price_usd_per_hour: float | None = None,
    steps_per_episode: Mapping[str, Quantity] | None = None,
) -> Projection:
    """Hours and cost of all jobs when each runs at a speed of its own.

    Args:
        jobs: in the order in which they start.
        job_sps: agent steps per second of each while as many run as may, by id; one that is not there has no length.
        speeds: of all jobs together, by how many run: the most that may, and those fewer that were measured.
        price_usd_per_hour: of the whole machine.
        steps_per_episode: measured, by environment.
    """
    budgets = {job.id: job.budget for job in jobs}
    games = steps_per_episode or {}
    hours: dict[str, Quantity | None] = {}
    steps: dict[str, float | None] = {}
    for job in jobs:
        sps, known = job_sps.get(job.id), _steps(job.budget, games.get(job.env))
        if job.budget.unit == "hours":
            known = sps.scaled(HOUR_S * job.budget.amount) if sps else None
        hours[job.id] = job_hours(job.budget, sps, games.get(job.env))
        steps[job.id] = known.value if known else None
    return _projection(budgets, hours, steps, speeds, price_usd_per_hour)


def project_episode_rates(
    episodes: Mapping[str, float],
    episodes_per_hour: Mapping[str, float] | float,
    *,
    price_usd_per_hour: float | None = None,
    slots: int = 1,
) -> Projection:
    """Hours and cost when the speed is known in episodes (games) per hour: hours = episodes / rate.

    Args:
        episodes: to play, by job.
        episodes_per_hour: of one job while `slots` of them run, by job or one for all.
        price_usd_per_hour: of the whole machine.
        slots: jobs that run at once.

    Raises:
        UsageError: a rate that is not above zero.
    """
    rates = {
        job: episodes_per_hour[job] if isinstance(episodes_per_hour, Mapping) else episodes_per_hour for job in episodes
    }
    for job, rate in rates.items():
        if not 0 < rate < math.inf:
            raise UsageError(f"episodes per hour of {job!r} must be above zero, not {rate}")
    hours: dict[str, Quantity | None] = {}
    for job, amount in episodes.items():
        hours[job] = _exactly(amount / rates[job])
    budgets = {job: Budget(unit="episodes", amount=amount) for job, amount in episodes.items()}
    return _projection(budgets, hours, dict.fromkeys(episodes), {slots: _exactly(slots)}, price_usd_per_hour)


def _exactly(value: float) -> Quantity:
    return Quantity(value=value, low=value, high=value)


def _projection(
    budgets: Mapping[str, Budget],
    hours: Mapping[str, Quantity | None],
    steps: Mapping[str, float | None],
    speeds: Mapping[int, Quantity],
    price_usd_per_hour: float | None,
) -> Projection:
    """The plan of jobs that take `hours` each while as many run as the largest number in `speeds`."""
    unknown = tuple(job for job, length in hours.items() if length is None)
    own, total, least = dict(hours), None, None
    if not unknown and hours:
        lengths = {job: length for job, length in hours.items() if length is not None}
        timed = [budgets[job].unit == "hours" for job in lengths]
        plan = _schedules(list(lengths.values()), timed, speeds)
        own = {job: _taken(plan, index) for index, job in enumerate(lengths)}
        total, least = _last(plan), _last(_schedules(list(lengths.values()), timed, speeds, shared=True))
    usd = total.value * price_usd_per_hour if total and price_usd_per_hour is not None else None
    job_hours_sum = sum(each.value for each in own.values() if each)
    parts = []
    for job, budget in budgets.items():
        mine = own[job]
        share = usd * mine.value / job_hours_sum if usd is not None and mine and job_hours_sum > 0 else None
        parts.append(JobProjection(id=job, budget=budget, steps=steps[job], hours=mine, usd=share))
    return Projection(
        jobs=tuple(parts),
        slots=max(1, min(max(speeds), len(budgets))),
        hours=total,
        least=least,
        tail=total is not None and job_hours_sum < max(speeds) * total.value * (1 - SAME),
        price_usd_per_hour=price_usd_per_hour,
        unknown=unknown,
    )


def _schedules(
    lengths: Sequence[Quantity], timed: Sequence[bool], speeds: Mapping[int, Quantity], *, shared: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """Starts and ends of the jobs at the value and at the ends of its interval, those that are known."""
    found = {}
    for end, opposite in _OPPOSITE.items():
        own = [getattr(length, end) for length in lengths]
        ends = {count: getattr(speed, opposite) or 0.0 for count, speed in speeds.items()}
        sps = ends if min(ends.values()) > 0 else {count: speed.value for count, speed in speeds.items()}
        if None not in own and (sps is ends or all(timed)):
            each = job_speeds(sps, shared=shared)
            found[end] = spans(own, [speed / each[-1] for speed in each], timed)
    return found


def _taken(plan: Mapping[str, Sequence[tuple[float, float]]], index: int) -> Quantity:
    return Quantity(**{end: ends[index][1] - ends[index][0] for end, ends in plan.items()})


def _last(plan: Mapping[str, Sequence[tuple[float, float]]]) -> Quantity:
    return Quantity(**{end: max(ended for _, ended in ends) for end, ends in plan.items()})


def ratio(a: Quantity, b: Quantity) -> Quantity:
    """How many times `b` is `a`, see `stats.log_ratio`."""
    value, low, high = log_ratio((a.value, a.low, a.high), (b.value, b.low, b.high))
    return Quantity(value=value, low=low, high=high)


def difference(a: Quantity, b: Quantity) -> Quantity:
    """`a` less `b`, both independent: each end's distances add in quadrature (MOVER, as in `ratio`)."""
    value = a.value - b.value
    low = high = None
    if a.low is not None and b.high is not None:
        low = value - math.hypot(a.value - a.low, b.high - b.value)
    if a.high is not None and b.low is not None:
        high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Quantity(value=value, low=low, high=high)


def tied(comparison: Quantity) -> bool:
    """Whether the interval of a ratio includes 1 (or there is no interval)."""
    return comparison.low is None or comparison.high is None or comparison.low <= 1.0 <= comparison.high


def savings(reference: Projection, tuned: Projection) -> Savings | None:
    """What `tuned` saves against `reference`, None when either length is not known."""
    if not (reference.hours and reference.least and tuned.hours and tuned.least):
        return None
    if min(reference.least.value, tuned.least.value) <= 0:
        return None
    worst, best = (reference.least, tuned.hours), (reference.hours, tuned.least)
    before, after = worst if worst[1].value <= worst[0].value else best
    slowest, fastest = ratio(worst[1], worst[0]), ratio(best[1], best[0])
    fraction = Quantity(
        value=1 - after.value / before.value,
        low=None if slowest.high is None else 1 - slowest.high,
        high=None if fastest.low is None else 1 - fastest.low,
    )
    hours = Quantity(value=before.value - after.value, low=difference(*worst).low, high=difference(*best).high)
    usd = hours.scaled(tuned.price_usd_per_hour) if tuned.price_usd_per_hour is not None else None
    unclear = fraction.low is None or fraction.high is None or fraction.low <= 0 <= fraction.high
    return Savings(hours=hours, usd=usd, fraction=fraction, tied=unclear)
