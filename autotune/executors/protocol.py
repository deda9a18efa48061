"""The contract of an executor: it carries out a probe and owns the clock the search sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from autotune.machine import DeviceInfo
from autotune.records import Point, ProbeRequest, ProbeResult, Recipe


class Executor(Protocol):
    """Carries out probes.

    Attributes:
        name: ``isolated``, ``replay`` ...
        simulated: whether `clock_s` is a simulated clock.
        device: the machine it measures on.
    """

    name: str
    simulated: bool
    device: DeviceInfo

    def clock_s(self) -> float:
        """Seconds that pass while the machine is suspended too (CLOCK_BOOTTIME), or simulated ones."""
        ...

    def check(self, recipe: Recipe, points: Sequence[Point] = ()) -> None:
        """Refuse a recipe, or points of it, that can never run here.

        Raises:
            UsageError: names the value, the expectation and the remedy.
        """
        ...

    def ceilings(self, recipe: Recipe, point: Point, timeout_s: float) -> Mapping[str, float]:
        """Env steps per second of the workload's parts alone; a simulated executor is never asked."""
        ...

    def run(self, request: ProbeRequest) -> ProbeResult:
        """Measure one point. Failures are values; the device is clean again on return."""
        ...

    def predict_cost_s(self, request: ProbeRequest) -> float | None:
        """Seconds this probe will take when it goes well, None when the executor cannot say."""
        ...
