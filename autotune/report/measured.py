"""A point, and what its launches say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.records import ENDED_EARLY, Point, ProbeResult
from autotune.report.projection import Quantity
from autotune.report.rows import finite
from autotune.search.confirm import at_fewer, published, ran_s
from autotune.search.model import measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One point and what its launches said.

    Attributes:
        role: ``tuned``, ``best measured``, ``baseline``, ``rule of thumb`` or ``soonest``.
        point: as asked for.
        result: what is stated for the point: final launches pooled, else the quick one; a failure
            when every launch failed.
        sps: aggregate env steps per second, None when every launch failed.
        launches: behind `sps`.
        failures: launches at this point, of any grade, that failed.
        observed_s: seconds that processes ran at this point, from ready to end, over all launches.
        fewer: aggregate env steps per second of the same settings, by how many processes, fewer than the point's.
    """

    role: str
    point: Point
    result: ProbeResult
    sps: Quantity | None
    launches: int
    failures: int
    observed_s: float
    fewer: Mapping[int, Quantity] = field(default_factory=dict)

    @property
    def job_sps(self) -> Quantity | None:
        """Env steps per second of one process, the mean over those that run at once."""
        return self.sps.scaled(1 / self.point.concurrency) if self.sps else None

    @property
    def firm(self) -> bool:
        """Whether the figure may be published as more than a ranking: final windows, two launches or more."""
        return self.result.grade == "final" and self.launches >= 2


def measure_role(role: str, point: Point | None, history: Sequence[ProbeResult]) -> Measured | None:
    """What the launches of a point say together, None where there was none."""
    own = [result for result in history if result.requested == point]
    if point is None or not own:
        return None
    good = measured(own)
    finals = [result for result in good if result.grade == "final"]
    result = published(history, point) if good else own[-1]
    return Measured(
        role=role,
        point=point,
        result=result,
        sps=_sps(result) if good else None,
        launches=len(finals) or min(1, len(good)),
        failures=sum(not each.ok and ENDED_EARLY not in each.flags for each in own),
        observed_s=sum(ran_s(each) for each in own),
        fewer={each.requested.concurrency: sps for each in at_fewer(history, point) if (sps := _sps(each))},
    )


def _sps(result: ProbeResult) -> Quantity | None:
    if not result.sps:
        return None
    return Quantity(value=result.sps, low=finite(result.sps_low), high=finite(result.sps_high))
