"""What a measured speed means in hours and dollars: pure functions, no files.

Everything is linear in time, so an interval of a speed becomes an interval of hours by dividing
by its ends. Sources of the formulas stand in the docstrings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.errors import UsageError
from autotune.records import Budget, Job
from autotune.search.worth import job_steps, makespan

HOUR_S = 3600.0
DAY_HOURS = 24.0


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
        hours: wall hours from the first start to the last end, None when a job's are not known.
        price_usd_per_hour: of the whole machine, None when not known.
        unknown: ids of the jobs whose length is not known.
    """

    jobs: tuple[JobProjection, ...]
    slots: int
    hours: Quantity | None
    price_usd_per_hour: float | None
    unknown: tuple[str, ...] = ()

    @property
    def days(self) -> float | None:
        """Wall days."""
        return self.hours.value / DAY_HOURS if self.hours else None

    @property
    def usd(self) -> Quantity | None:
        """What the machine costs over `hours`."""
        if self.hours is None or self.price_usd_per_hour is None:
            return None
        return self.hours.scaled(self.price_usd_per_hour)


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What one projection saves against another; negative when it costs more.

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


def job_hours(budget: Budget, job_sps: Quantity, steps_per_episode: float | None) -> Quantity | None:
    """Wall hours of one job at its own speed: steps / SPS / 3600; an hours budget is its own answer.

    An interval of the speed that reaches down to 0 leaves the hours without an upper end.
    """
    if budget.unit == "hours":
        return Quantity(value=budget.amount, low=budget.amount, high=budget.amount)
    steps = job_steps(budget, steps_per_episode)
    if steps is None or job_sps.value <= 0:
        return None
    low = steps / job_sps.high / HOUR_S if job_sps.high else None
    high = steps / job_sps.low / HOUR_S if job_sps.low and job_sps.low > 0 else None
    return Quantity(value=steps / job_sps.value / HOUR_S, low=low, high=high)


def project(
    jobs: Sequence[Job],
    job_sps: Quantity,
    slots: int,
    *,
    price_usd_per_hour: float | None = None,
    steps_per_episode: Mapping[str, float] | float | None = None,
) -> Projection:
    """Hours and cost of all jobs when each runs at `job_sps`, `slots` at a time.

    Args:
        jobs: in the order in which they start.
        job_sps: agent steps per second of one job while `slots` of them run.
        slots: jobs that run at once.
        price_usd_per_hour: of the whole machine.
        steps_per_episode: measured, by environment or one for all.
    """

    def lookup(job: Job) -> float | None:
        return steps_per_episode.get(job.env) if isinstance(steps_per_episode, Mapping) else steps_per_episode

    budgets = {job.id: job.budget for job in jobs}
    hours = {job.id: job_hours(job.budget, job_sps, lookup(job)) for job in jobs}
    steps: dict[str, float | None] = {}
    for job in jobs:
        known = job_steps(job.budget, lookup(job))
        steps[job.id] = job_sps.value * HOUR_S * job.budget.amount if job.budget.unit == "hours" else known
    return _projection(budgets, hours, steps, slots, price_usd_per_hour)


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
        exact = amount / rates[job]
        hours[job] = Quantity(value=exact, low=exact, high=exact)
    budgets = {job: Budget(unit="episodes", amount=amount) for job, amount in episodes.items()}
    return _projection(budgets, hours, dict.fromkeys(episodes), slots, price_usd_per_hour)


def _projection(
    budgets: Mapping[str, Budget],
    hours: Mapping[str, Quantity | None],
    steps: Mapping[str, float | None],
    slots: int,
    price_usd_per_hour: float | None,
) -> Projection:
    slots = max(1, min(slots, len(budgets)))
    total = _total_hours([hours[job] for job in budgets], slots)
    usd = total.value * price_usd_per_hour if total and price_usd_per_hour is not None else None
    job_hours_sum = sum(each.value for each in hours.values() if each)
    parts = []
    for job, budget in budgets.items():
        own = hours[job]
        share = usd * own.value / job_hours_sum if usd is not None and own and job_hours_sum > 0 else None
        parts.append(JobProjection(id=job, budget=budget, steps=steps[job], hours=own, usd=share))
    unknown = tuple(job for job, own in hours.items() if own is None)
    return Projection(
        jobs=tuple(parts), slots=slots, hours=total, price_usd_per_hour=price_usd_per_hour, unknown=unknown
    )


def _total_hours(hours: Sequence[Quantity | None], slots: int) -> Quantity | None:
    known = [each for each in hours if each is not None]
    if not known or len(known) < len(hours):
        return None
    lows = [each.low for each in known if each.low is not None]
    highs = [each.high for each in known if each.high is not None]
    return Quantity(
        value=makespan([each.value for each in known], slots),
        low=makespan(lows, slots) if len(lows) == len(known) else None,
        high=makespan(highs, slots) if len(highs) == len(known) else None,
    )


def ratio(a: Quantity, b: Quantity) -> Quantity:
    """How many times `b` is `a`; the two are independent, so the errors of their logarithms add in quadrature.

    Each end keeps its own distance (MOVER: Donner & Zou 2012, "Closed-form confidence intervals for
    functions of the normal mean and standard deviation", on the logarithms).
    """
    value = a.value / b.value
    low = high = None
    if a.low and b.high:
        low = value * math.exp(-math.hypot(math.log(a.value / a.low), math.log(b.high / b.value)))
    if a.high and b.low:
        high = value * math.exp(math.hypot(math.log(a.high / a.value), math.log(b.value / b.low)))
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
    if reference.hours is None or tuned.hours is None or reference.hours.value <= 0 or tuned.hours.value <= 0:
        return None
    hours = difference(reference.hours, tuned.hours)
    left = ratio(tuned.hours, reference.hours)
    fraction = Quantity(
        value=1 - left.value,
        low=None if left.high is None else 1 - left.high,
        high=None if left.low is None else 1 - left.low,
    )
    usd = hours.scaled(tuned.price_usd_per_hour) if tuned.price_usd_per_hour is not None else None
    return Savings(hours=hours, usd=usd, fraction=fraction, tied=tied(left))
