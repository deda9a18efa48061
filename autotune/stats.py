"""Rates with honest intervals from aligned, autocorrelated iteration traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, stdtrit

Interval = tuple[float, float | None, float | None]
LAUNCH_FRACTION = 0.015
"""Launch-to-launch deviation until repeats show it: Breakout on two CPU cores shows 1.8 % (15 launches) and 2.7 % (20),
and intervals that assume 1 % cover 29 of those 35, with 1.5 % 31."""
NORMAL_95 = 1.96
"""Standard errors to either end of a 95 % interval."""
NOISE_WINDOW_S = 10.0
"""Seconds over which a point's noise is stated."""
GAMES_PER_ENV = 2.0
"""Games that must have ended in each environment, on average, before their length is stated."""
_BATCHES = 12
_SINGLE_BELOW = 16
_PRIOR_CORRELATION = 0.4
_PRIOR_WEIGHT = 8.0
_CORRELATION_MAX = 0.8
_PRIOR_LAUNCHES = 2.0
"""Degrees of freedom that the launch-to-launch spread assumed beforehand counts as."""
_SPREAD_RATIOS = 10 ** np.linspace(-1, 2, 181)
"""Launch-to-launch deviations that are considered, over the one assumed."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Consecutive iterations of one process.

    Attributes:
        seconds: duration of each iteration, from the end of the one before.
        steps: env steps of each.
    """

    seconds: tuple[float, ...]
    steps: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A rate with its 95 % interval.

    Attributes:
        rate: steps per second over all processes.
        low: lower end, not below 0.
        high: upper end; infinite when one iteration was seen.
        per_process: rate of each process.
    """

    rate: float
    low: float
    high: float
    per_process: tuple[float, ...]


def nearest_by_ratio(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> int:
    """Index of the row (n, k) that is nearest to `wanted` (k,), all above 0, by ratios; the first of equals."""
    return int(np.argmin(((np.log2(rows) - np.log2(wanted)) ** 2).sum(axis=1)))


def total_rate(trace: Trace) -> float:
    """Total steps / total time, never the mean of rates."""
    total_s = sum(trace.seconds)
    return sum(trace.steps) / total_s if total_s > 0 else 0.0


def batch_rates(trace: Trace) -> tuple[NDArray[np.float64], int]:
    """Rates of consecutive batches and the iterations in each: singles below 16 iterations, else 12 batches.

    Source: batch means (Law & Kelton, Simulation Modeling and Analysis, section 9.5).
    """
    count = len(trace.seconds)
    batches = count if count < _SINGLE_BELOW else _BATCHES
    size = count // batches
    seconds = np.asarray(trace.seconds[count - batches * size :], dtype=np.float64).reshape(batches, size).sum(axis=1)
    steps = np.asarray(trace.steps[count - batches * size :], dtype=np.float64).reshape(batches, size).sum(axis=1)
    return steps / np.maximum(seconds, 1e-12), size


def summed_batch_rates(traces: Sequence[Trace]) -> tuple[NDArray[np.float64], int]:
    """`batch_rates` of all processes together, the n-th from the end of one beside that of the others.

    As many as every process has. What disturbs a machine disturbs all its processes at once: the errors of their sum
    are its own, and not those of independent parts.
    """
    batches = [batch_rates(trace) for trace in traces]
    count = min(len(rates) for rates, _ in batches)
    total: NDArray[np.float64] = np.sum([rates[len(rates) - count :] for rates, _ in batches], axis=0)
    return total, min(size for _, size in batches)


def shrunk_correlation(values: NDArray[np.float64], batch_size: int) -> float:
    """Lag-1 correlation, shrunk towards 0.4 / (iterations a batch) with the weight of 8 observations."""
    count = len(values)
    observed = 0.0
    if count >= 3 and values[:-1].std() > 0 and values[1:].std() > 0:
        observed = float(np.corrcoef(values[:-1], values[1:])[0, 1])
    mixed = (count * observed + _PRIOR_WEIGHT * _PRIOR_CORRELATION / batch_size) / (count + _PRIOR_WEIGHT)
    return min(max(mixed, 0.0), _CORRELATION_MAX)


def sampling_error(traces: Sequence[Trace]) -> float:
    """Standard error of the summed rate in steps per second, s * sqrt((1 + r) / (1 - r) / n); infinite for n = 1."""
    return _standard_error(*summed_batch_rates(traces))


def _standard_error(rates: NDArray[np.float64], size: int) -> float:
    if len(rates) < 2:
        return math.inf
    correlation = shrunk_correlation(rates, size)
    return float(rates.std(ddof=1)) * math.sqrt((1 + correlation) / (1 - correlation) / len(rates))


def sampling_half_width(traces: Sequence[Trace]) -> tuple[float, float]:
    """Half-width of the sampling error and the drift between half windows, both in steps per second.

    Half-width = t * error (`sampling_error`); infinite for one iteration.
    """
    rates, size = summed_batch_rates(traces)
    count = len(rates)
    if count < 2:
        return math.inf, 0.0
    half = count // 2
    drift = abs(float(rates[:half].mean()) - float(rates[count - half :].mean()))
    return float(stdtrit(count - 1, 0.975)) * _standard_error(rates, size), drift


def window_noise(traces: Sequence[Trace], window_s: float) -> float | None:
    """Deviation of the summed rate over windows of `window_s` seconds, relative to it; None when unknown.

    Errors of means of independent spans fall with the square root of their length.
    """
    rate = sum(total_rate(trace) for trace in traces)
    span_s = sum(sum(trace.seconds) for trace in traces) / len(traces)
    noise = sampling_error(traces) * math.sqrt(span_s / window_s) / rate if rate else math.inf
    return noise if math.isfinite(noise) else None


def estimate(traces: Sequence[Trace], *, launch_fraction: float = LAUNCH_FRACTION) -> Estimate:
    """The summed rate of processes that run side by side, with its 95 % interval.

    Args:
        traces: one of each process, over the span in which all run.
        launch_fraction: launch-to-launch standard deviation, relative.
    """
    rates = [total_rate(trace) for trace in traces]
    rate = sum(rates)
    sampling, drift = sampling_half_width(traces)
    half = math.sqrt(sampling**2 + (NORMAL_95 * launch_fraction * rate) ** 2 + drift**2)
    return Estimate(
        rate=rate,
        low=max(0.0, rate - half),
        high=rate + half,
        per_process=tuple(rates),
    )


def launch_spread(groups: Sequence[Sequence[tuple[float, float]]], *, prior: float = LAUNCH_FRACTION) -> float:
    """Launch-to-launch standard deviation, relative, pooled over settings that were launched again.

    The between-launch component of a one-way random-effects model by restricted maximum likelihood (Searle, Casella
    and McCulloch 1992, Variance Components, chapter 6) on the logarithms of the rates, with the windows' own errors
    known. `prior` counts as two degrees of freedom: a spread is the prior until repeats say otherwise, and
    windows much noisier than the spread say little.

    Args:
        groups: for each setting, the (rate, relative standard error of its window) of its launches.
        prior: relative deviation assumed beforehand.
    """
    variance = (prior * _SPREAD_RATIOS) ** 2
    likelihood = -_PRIOR_LAUNCHES / 2 * (np.log(variance) + prior**2 / variance)
    for group in groups:
        if len(group) > 1:
            likelihood += _restricted_likelihood(group, variance)
    return float(math.sqrt(variance[np.argmax(likelihood)]))


def _restricted_likelihood(group: Sequence[tuple[float, float]], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log likelihood of one setting's launches at each (n,) between-launch variance, their mean integrated out."""
    logs = np.log([rate for rate, _ in group])
    total = variance[:, None] + np.square([error for _, error in group])
    mean = (logs / total).sum(axis=1, keepdims=True) / (1 / total).sum(axis=1, keepdims=True)
    terms = np.log(total).sum(axis=1) + ((logs - mean) ** 2 / total).sum(axis=1) + np.log((1 / total).sum(axis=1))
    result: NDArray[np.float64] = -terms / 2
    return result


def log_ratio(a: Interval, b: Interval) -> Interval:
    """How many times `b` is `a`, both (value above 0, low, high), an unknown end None and so the ratio's.

    The two are independent, so the errors of their logarithms add in quadrature, and each end keeps its own distance
    (MOVER: Donner & Zou 2012, "Closed-form confidence intervals for functions of the normal mean and standard
    deviation", on the logarithms).
    """
    value = a[0] / b[0]
    low = high = None
    if a[1] and b[2] and a[1] > 0:
        low = value * math.exp(-math.hypot(math.log(a[0] / a[1]), math.log(b[2] / b[0])))
    if a[2] and b[1] and b[1] > 0:
        high = value * math.exp(math.hypot(math.log(a[2] / a[0]), math.log(b[0] / b[1])))
    return value, low, high


def game_steps(executed: float, lengths: Sequence[float], envs: int) -> float | None:
    """Mean env steps of a game from what environments did since their first one began; None when too few ended.

    Those that ended are the shorter ones (steps per ended game are down to half the mean), while steps executed over
    games ended charge the running ones in full. After t steps in each environment a renewal process has on average
    t / mean + (c^2 - 1) / 2 ends, c the deviation of a length over its mean (Cox 1962, Renewal Theory, section 4.5);
    c is taken from the games that ended, at most 1.

    Args:
        executed: env steps, of all environments.
        lengths: of the games that ended, in env steps.
        envs: how many environments.
    """
    if len(lengths) < max(GAMES_PER_ENV * envs, 2):
        return None
    variation = float(np.std(lengths) / np.mean(lengths))
    return executed / (len(lengths) + envs * (1 - min(1.0, variation**2)) / 2)


def pooled_game_steps(games: Sequence[int], lengths: Sequence[float | None]) -> float | None:
    """Mean of the lengths that are known, each with the weight of the games behind it."""
    known = [(count, length) for count, length in zip(games, lengths, strict=True) if length]
    return sum(count * length for count, length in known) / sum(count for count, _ in known) if known else None


def failure_rate_bound_per_hour(failures: int, hours: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound chi2_c(2k + 2) / (2T) of a Poisson rate (Garwood 1936); none in T: about 3/T.

    Half of chi-squared's quantile with 2k + 2 degrees is the gamma quantile of shape k + 1.
    """
    return float(gammaincinv(failures + 1, confidence)) / hours


def failure_rate_mean_per_hour(failures: int, hours: float) -> float:
    """Mean rate (k + 1/2) / T under Jeffreys' prior (Jeffreys 1946)."""
    return (failures + 0.5) / hours
