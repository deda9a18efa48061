"""How much of the time survives failures: availability and checkpoint interval."""

from __future__ import annotations

import math

from scipy import special

from autotune.errors import UsageError

CHECKPOINT_S = 5.0
RESTART_S = 60.0
"""What a checkpoint and a restart are taken to cost where neither was seen."""


def effective_cost_usd(cost_usd: float, downtime_fraction: float) -> float:
    """What a cost becomes when a share u of the time is lost: cost / (1 - u).

    Raises:
        UsageError: u not in [0, 1).
    """
    if not 0 <= downtime_fraction < 1:
        raise UsageError(f"downtime must be at least 0 and below 1 (0.17 is 17 %), not {downtime_fraction}")
    return cost_usd / (1 - downtime_fraction)


def availability(mean_failure_s: float, restart_s: float, checkpoint_s: float, interval_s: float) -> float:
    """Share of the time that is kept work: A(t) = t / (M exp(R/M) (exp((t + d)/M) - 1)).

    Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    with exponential failures of mean M, restart R, checkpoint cost d, interval t; all in seconds.
    """
    exponent = (interval_s + checkpoint_s) / mean_failure_s
    restart = restart_s / mean_failure_s
    if exponent + restart > 500:  # the share is below 1e-200, and exp would overflow soon
        return 0.0
    return interval_s / (mean_failure_s * math.exp(restart) * math.expm1(exponent))


def best_checkpoint_interval_s(mean_failure_s: float, checkpoint_s: float) -> float:
    """The interval with the highest availability: t = M (1 + W0(-exp(-d/M - 1))), about sqrt(2 d M) - d.

    Daly 2006; W0 is Lambert's function. M = 600 s and d = 5 s give 74.2 s.
    """
    argument = -math.exp(-checkpoint_s / mean_failure_s - 1)
    return mean_failure_s * (1 + float(special.lambertw(argument).real))  # type: ignore[no-untyped-call]
