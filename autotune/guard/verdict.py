"""The statistics of the guard, pure: learning curves of pilots in, a verdict of non-inferiority out.

The primary statistic of a pilot is its final return: the mean of the last 100 games, averaged over the last fifth
of the env steps. Seeds are paired, since a seed gives both points the same first weights. What may be lost is
stated beforehand as a fraction of what the baseline learnt, its final return over the return that all began with,
so that it means the same in Pong (from -21) and in Breakout (from 1).

A game counts when it ends: where games are long and environments many, returns lag behind by as many env steps
as are played at once. That errs against many environments, never for them.

Sources: Piaggio et al. 2012, "Reporting of Noninferiority and Equivalence Randomized Trials" (JAMA 308), for the
verdict; Colas et al. 2018, arXiv:1806.08295, for few seeds and t intervals in reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from autotune.worker.totals import MEAN_RETURN, RETURNS_KEPT

FINAL_SHARE = 0.2
"""Of the env steps, the last ones, over which the final return is taken."""
LEVEL = 0.90
"""Of the two-sided t intervals: either end errs in 5 % of cases, which is what a one-sided question asks for."""
PAIRS_MIN = 2

Verdict = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One pilot's returns.

    Attributes:
        env_steps: (n,) ascending.
        returns: (n,) mean return of the last 100 games by then (fewer at first).
        first_games: games behind the first of them.
        failure: why it did not reach its end, empty when it did.
    """

    env_steps: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    first_games: int = 0
    failure: str = ""

    def mean(self, start: float, end: float) -> float | None:
        """Mean return from one env step to another: the area under the curve over its length.

        Linear between what is known, level before and after; None for a pilot that failed or finished no game.
        """
        if self.failure or not self.returns:
            return None
        inner = [at for at in self.env_steps if start < at < end]
        grid = np.array([start, *inner, end], dtype=np.float64)
        values = np.interp(grid, self.env_steps, self.returns)
        return float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum() / (end - start))


def curve_of(rows: Sequence[Mapping[str, str]], failure: str = "") -> Curve:
    """The curve in the rows of a job's `metrics.csv`; rows from before the first game ended say nothing."""
    known = [(float(row["env_steps"]), float(row[MEAN_RETURN]), row) for row in rows if row.get(MEAN_RETURN)]
    games = int(float(known[0][2].get("episodes") or 1)) if known else 0
    return Curve(
        env_steps=tuple(steps for steps, _, _ in known),
        returns=tuple(value for _, value, _ in known),
        first_games=min(games, RETURNS_KEPT),
        failure=failure,
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the ends of its t interval; both None for a single value."""

    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float]) -> Interval | None:
    """Mean and two-sided `LEVEL` interval of independent values, mean +- t(n - 1) * s / sqrt(n); None without one."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean=mean, low=None, high=None)
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * float(np.std(values, ddof=1)) / count**0.5
    return Interval(mean=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Side:
    """The pilots at one point.

    Attributes:
        finals: final return by seed, None where the pilot did not get there.
        final: over the seeds.
        area: mean return over all env steps, over the seeds.
    """

    finals: tuple[float | None, ...]
    final: Interval | None
    area: Interval | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both points' pilots, compared.

    Attributes:
        verdict: see `compare`.
        detail: why, where the figures alone do not say it.
        tuned: at the tuned point.
        baseline: at the baseline.
        difference: of final returns, tuned minus baseline, paired by seed; None without a pair.
        margin: what may be lost, as a return; None where the baseline learnt nothing.
    """

    verdict: Verdict
    detail: str
    tuned: Side
    baseline: Side
    difference: Interval | None
    margin: float | None


def compare(tuned: Sequence[Curve], baseline: Sequence[Curve], *, env_steps: int, margin_fraction: float) -> Comparison:
    """Whether the tuned point is not inferior to the baseline after equally many env steps.

    Passed when the lower end of the interval of the paired differences lies above minus the margin (above 0 where the
    baseline learnt nothing, and there is none), failed when the upper end lies below it, or when a pilot at the tuned
    point crashed where the baseline's did not; else inconclusive.

    Args:
        tuned: a curve of each seed.
        baseline: of the same seeds, in the same order.
        env_steps: of each pilot; what a last iteration did beyond them is left out.
        margin_fraction: what may be lost of what the baseline learnt.
    """
    sides = side_of(tuned, env_steps), side_of(baseline, env_steps)
    pairs = [(a, b) for a, b in zip(sides[0].finals, sides[1].finals, strict=True) if a is not None and b is not None]
    difference = t_interval([a - b for a, b in pairs])
    begun = beginning([*tuned, *baseline])
    learnt = sides[1].final.mean - begun if sides[1].final is not None and begun is not None else None
    margin = margin_fraction * learnt if learnt is not None and learnt > 0 else None
    crashed = next((a.failure for a, b in zip(tuned, baseline, strict=True) if a.failure and not b.failure), "")
    verdict: Verdict = "inconclusive"
    if crashed:
        verdict, detail = "failed", f"a pilot there did not get to its end: {crashed}"
    elif len(pairs) < PAIRS_MIN or difference is None:
        detail = _too_few(len(pairs), [*tuned, *baseline])
    elif margin is None and not _above(difference, 0.0):
        detail = f"the baseline learnt nothing in {env_steps:,} env steps, so that nothing could be lost"
    else:
        verdict, detail = _judge(difference, margin or 0.0), ""
    return Comparison(
        verdict=verdict, detail=detail, tuned=sides[0], baseline=sides[1], difference=difference, margin=margin
    )


def _above(difference: Interval, value: float) -> bool:
    return difference.low is not None and difference.low > value


def _judge(difference: Interval, margin: float) -> Verdict:
    if _above(difference, -margin):
        return "passed"
    return "failed" if difference.high is not None and difference.high < -margin else "inconclusive"


def _too_few(pairs: int, curves: Sequence[Curve]) -> str:
    failure = next((curve.failure for curve in curves if curve.failure), "")
    why = f"pilots of the baseline did not get to their end: {failure}" if failure else "no game ended"
    return f"{pairs} seeds have a return at both points, {PAIRS_MIN} are the least: {why}"


def side_of(curves: Sequence[Curve], env_steps: int) -> Side:
    """The pilots of one point, over the seeds that reached `env_steps`."""
    finals = tuple(curve.mean((1 - FINAL_SHARE) * env_steps, env_steps) for curve in curves)
    areas = [curve.mean(0.0, env_steps) for curve in curves]
    return Side(
        finals=finals,
        final=t_interval([value for value in finals if value is not None]),
        area=t_interval([value for value in areas if value is not None]),
    )


def beginning(curves: Sequence[Curve]) -> float | None:
    """The return that training began with: the first one known of every pilot, by the games behind it."""
    known = [curve for curve in curves if curve.returns and curve.first_games > 0]
    games = sum(curve.first_games for curve in known)
    return sum(curve.returns[0] * curve.first_games for curve in known) / games if games else None
