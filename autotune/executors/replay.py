"""Recorded surfaces in place of a machine: the same search, under a simulated clock, exactly repeatable."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autotune.executors.surface import FINAL_S, QUICK_S, Row, load_surface, surface_device, surface_recipe
from autotune.records import Point, ProbeRequest, ProbeResult, Recipe
from autotune.stats import LAUNCH_FRACTION, NOISE_WINDOW_S, NORMAL_95

__all__ = ["ReplayExecutor", "load_surface", "surface_device", "surface_recipe"]

TIMEOUT_S, HOST_LOST_S = 300.0, 180.0
_WINDOWS_S = {"quick": 8.0, "final": 30.0}


class ReplayExecutor:
    """Answers probes from a surface; time passes only in its clock.

    Noise is independent normal with deviation ``sd_fraction * sqrt(10 / window seconds)``, drawn from
    the seed, the point and the request's label (the trial's number), so that a resumed search sees what an
    uninterrupted one would, but for the numbers that lost probes took.
    """

    name = "replay"
    simulated = True

    def __init__(self, path: Path | str, seed: int = 0) -> None:
        self.surface = load_surface(Path(path))
        self.device = surface_device(self.surface)
        self._seed = seed
        self._clock_s = 0.0

    def clock_s(self) -> float:
        """Simulated seconds."""
        return self._clock_s

    def check(self, recipe: Recipe, points: Sequence[Point] = ()) -> None:
        """Every recipe can be answered: points off the grid go to the nearest row."""

    def ceilings(self, recipe: Recipe, point: Point, timeout_s: float) -> dict[str, float]:
        """None: a surface knows whole points only."""
        return {}

    def predict_cost_s(self, request: ProbeRequest) -> float | None:
        """The median start of the surface and the probe's own seconds."""
        startup_s = float(np.median([row.startup_s for row in self.surface.rows]))
        return startup_s + (QUICK_S if request.grade == "quick" else FINAL_S)

    def run(self, request: ProbeRequest) -> ProbeResult:
        """The recorded outcome with noise; the clock moves by what the probe would have cost."""
        row = self.surface.row(request.point)
        cost_s = self._cost_s(row, request)
        timeout_s = request.plan.timeout_s
        if cost_s > timeout_s:
            self._clock_s += timeout_s
            detail = f"no complete window after {timeout_s:.0f} s"
            return ProbeResult(
                requested=request.point, status="timeout", grade=request.grade, detail=detail, cost_s=timeout_s
            )
        self._clock_s += cost_s
        result = ProbeResult(
            requested=request.point,
            effective=row.point.knobs(),
            status=row.status,
            grade=request.grade,
            detail="" if row.status == "ok" else f"recorded as {row.status}",
            cost_s=cost_s,
            startup_s=row.startup_s,
        )
        return result if row.sps is None else _measured(result, row, self._normal(row, request))

    def _cost_s(self, row: Row, request: ProbeRequest) -> float:
        if row.status == "timeout":
            return TIMEOUT_S
        if row.status == "host_lost":
            return HOST_LOST_S
        window_s = QUICK_S if request.grade == "quick" else FINAL_S
        return row.startup_s + (window_s if row.status == "ok" else 0.0)

    def _normal(self, row: Row, request: ProbeRequest) -> float:
        words = f"{self._seed} {row.point.label()} {request.grade} {request.label}"
        digest = hashlib.sha256(words.encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal())


def _measured(result: ProbeResult, row: Row, normal: float) -> ProbeResult:
    assert row.sps is not None
    window_s = _WINDOWS_S[result.grade]
    deviation = row.sd_fraction * math.sqrt(NOISE_WINDOW_S / window_s)
    error = math.hypot(deviation, LAUNCH_FRACTION)  # what one launch can state; it does not know that replays repeat
    sps = row.sps * max(0.01, 1 + deviation * normal)
    return replace(
        result,
        sps=sps,
        sps_low=max(0.0, sps * (1 - NORMAL_95 * error)),
        sps_high=sps * (1 + NORMAL_95 * error),
        job_sps=(sps / row.point.concurrency,) * row.point.concurrency,
        noise_fraction=row.sd_fraction,
        window_s=window_s,
        vram_peak_bytes=row.vram_bytes,
        ram_peak_bytes=row.ram_bytes,
        flags=("one launch",),
    )
