"""Recorded surfaces in place of a machine: the same search, under a simulated clock, exactly repeatable.

A surface is CSV with the columns `COLUMNS`, one row per point; a combination without a row is not part
of the space. ``sps`` is the aggregate, ``sd_fraction`` the noise of a 10-second window, the bytes are
totals over all processes. Header lines: ``# device: A100``, ``# synthetic: true``,
``# vram_limit_bytes: N``, ``# ram_limit_bytes: N``, ``# cpu_cores: N``, ``# price_usd_per_hour: X``,
``# baseline: num_envs=8 batch_size=256 concurrency=1``.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import UsageError
from autotune.records import (
    KNOBS,
    STATUSES,
    Budget,
    DeviceInfo,
    GpuInfo,
    HostInfo,
    Job,
    Point,
    ProbeRequest,
    ProbeResult,
    Recipe,
    Status,
)
from autotune.units import parse_price

COLUMNS = (
    *KNOBS,
    "status",
    "sps",
    "sd_fraction",
    "startup_s",
    "vram_bytes",
    "ram_bytes",
)
HEADERS = (
    "device",
    "synthetic",
    "vram_limit_bytes",
    "ram_limit_bytes",
    "cpu_cores",
    "price_usd_per_hour",
    "baseline",
)
QUICK_S, FINAL_S = 20.0, 50.0
"""What a stable probe costs beyond its start."""
TIMEOUT_S, HOST_LOST_S = 300.0, 180.0
_NOISE_WINDOW_S = 10.0
_WINDOWS_S = {"quick": 8.0, "final": 30.0}
_NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point of a surface; sps is None where it failed."""

    point: Point
    status: Status
    sps: float | None
    sd_fraction: float
    startup_s: float
    vram_bytes: int | None
    ram_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A recorded machine."""

    rows: tuple[Row, ...]
    header: Mapping[str, str]
    source: str

    @property
    def baseline(self) -> Point:
        """What the header states, the first row's point without one."""
        text = self.header.get("baseline")
        return _baseline(text, self.source) if text else self.rows[0].point

    @property
    def price_usd_per_hour(self) -> float | None:
        """Of the machine, None when not stated."""
        return parse_price(self.header["price_usd_per_hour"]) if "price_usd_per_hour" in self.header else None


def load_surface(path: Path) -> Surface:
    """Read a surface file.

    Raises:
        UsageError: missing or malformed; the message names line, column and expectation.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"surface {path} cannot be read: {error}") from error
    header = {
        key.strip(): value.strip()
        for key, colon, value in (line.lstrip("# ").partition(":") for line in lines if line.startswith("#"))
        if colon and key.strip() in HEADERS
    }
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not numbered or tuple(cell.strip() for cell in numbered[0][1].split(",")) != COLUMNS:
        raise UsageError(f"surface {path}: the first line after the header must be {','.join(COLUMNS)}")
    names = [cell.strip() for cell in numbered[0][1].split(",")]
    rows = [
        _row(dict(zip(names, next(csv.reader([line])), strict=False)), f"{path}, line {n}") for n, line in numbered[1:]
    ]
    if not rows:
        raise UsageError(f"surface {path} has no rows")
    if len({row.point for row in rows}) != len(rows):
        raise UsageError(f"surface {path} has a point twice")
    return Surface(rows=tuple(rows), header=header, source=str(path))


def _row(cells: Mapping[str, str], where: str) -> Row:
    status = cells.get("status", "")
    if status not in STATUSES:
        raise UsageError(f"surface {where}: status {status!r} must be one of {', '.join(STATUSES)}")
    ok = status == "ok"
    knobs = {name: int(_number(cells, name, where, least=1)) for name in KNOBS}
    vram, ram = (_optional(cells, name, where) for name in ("vram_bytes", "ram_bytes"))
    return Row(
        point=Point.from_knobs(knobs),
        status=status,
        sps=_number(cells, "sps", where, least=1e-9) if ok else None,
        sd_fraction=_optional(cells, "sd_fraction", where) or 0.0,
        startup_s=_optional(cells, "startup_s", where) or 0.0,
        vram_bytes=None if vram is None else int(vram),
        ram_bytes=None if ram is None else int(ram),
    )


def _number(cells: Mapping[str, str], name: str, where: str, *, least: float) -> float:
    text = (cells.get(name) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise UsageError(f"surface {where}: {name} {text!r} must be a number of at least {least:g}")
    return value


def _optional(cells: Mapping[str, str], name: str, where: str) -> float | None:
    return _number(cells, name, where, least=0) if (cells.get(name) or "").strip() else None


def _baseline(text: str, source: str) -> Point:
    pairs = dict(word.partition("=")[::2] for word in text.split())
    if set(pairs) != set(KNOBS) or not all(value.isdigit() and int(value) > 0 for value in pairs.values()):
        raise UsageError(f"surface {source}: baseline {text!r} must read num_envs=8 batch_size=256 concurrency=1")
    return Point.from_knobs({name: int(value) for name, value in pairs.items()})


def surface_recipe(path: Path | str) -> Recipe:
    """The recipe that a surface stands for: its rows are the points, jobs as many as its highest concurrency.

    Raises:
        UsageError: the file is missing or malformed.
    """
    surface = load_surface(Path(path))
    points = tuple(sorted((row.point for row in surface.rows), key=lambda p: tuple(p.knobs().values())))
    knobs = {name: tuple(sorted({getattr(point, name) for point in points})) for name in KNOBS}
    budget = Budget(unit="steps", amount=10_000_000)
    most = max(knobs["concurrency"][-1], surface.baseline.concurrency)
    return Recipe(
        name=Path(path).stem,
        workload="replay",
        hyperparameters={},
        jobs=tuple(Job(id=f"job-{n + 1}", env="recorded", seed=n + 1, budget=budget) for n in range(most)),
        knobs=knobs,
        grid=knobs,
        baseline=surface.baseline,
        source=str(path),
        points=points,
    )


def surface_device(surface: Surface) -> DeviceInfo:
    """The machine that a surface's header describes."""
    header = surface.header
    cores = float(header.get("cpu_cores", 1))
    ram = int(float(header.get("ram_limit_bytes", 2**60)))
    vram = header.get("vram_limit_bytes")
    name = header.get("device", "recorded")
    host = HostInfo(
        hostname="replay",
        cpu_model=name,
        cpu_cores_visible=math.ceil(cores),
        cpu_cores_allowed=cores,
        load_1m=None,
        pids_limit=None,
        ram_total_bytes=ram,
        ram_available_bytes=ram,
        ram_cgroup_limit_bytes=None,
        ram_limit_bytes=ram,
        shm_total_bytes=None,
        shm_free_bytes=None,
        disk_free_bytes=None,
        boot_id="replay",
        boot_time=None,
        kernel="replay",
        python="replay",
    )
    gpus = (GpuInfo(index=0, name=name, vram_total_bytes=int(float(vram))),) if vram else ()
    return DeviceInfo(kind="cuda" if gpus else "cpu", name=name, host=host, gpus=gpus, gpu_index=0 if gpus else None)


class ReplayExecutor:
    """Answers probes from a surface; time passes only in its clock.

    Noise is independent normal with deviation ``sd_fraction * sqrt(10 / window seconds)``, drawn from
    the seed, the point and the request's label, so that a resumed search sees what an
    uninterrupted one would.
    """

    name = "replay"
    simulated = True

    def __init__(self, path: Path | str, seed: int = 0) -> None:
        self.surface = load_surface(Path(path))
        self.device = surface_device(self.surface)
        self._seed = seed
        self._clock_s = 0.0
        self._places = np.log2([[getattr(row.point, name) for name in KNOBS] for row in self.surface.rows])

    def clock_s(self) -> float:
        """Simulated seconds."""
        return self._clock_s

    def check(self, recipe: Recipe, points: Sequence[Point] = ()) -> None:
        """Every recipe can be answered: points off the grid go to the nearest row."""

    def ceilings(self, recipe: Recipe, point: Point) -> dict[str, float]:
        """None: a surface knows whole points only."""
        return {}

    def predict_cost_s(self, request: ProbeRequest) -> float | None:
        """The median start of the surface and the probe's own seconds."""
        startup_s = float(np.median([row.startup_s for row in self.surface.rows]))
        return startup_s + (QUICK_S if request.grade == "quick" else FINAL_S)

    def row(self, point: Point) -> Row:
        """The row of a point, or the nearest one by ratios."""
        place = np.log2([getattr(point, name) for name in KNOBS])
        return self.surface.rows[int(np.argmin(((self._places - place) ** 2).sum(axis=1)))]

    def run(self, request: ProbeRequest) -> ProbeResult:
        """The recorded outcome with noise; the clock moves by what the probe would have cost."""
        row = self.row(request.point)
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
        return row.startup_s + (window_s if row.status in ("ok", "unstable") else 0.0)

    def _normal(self, row: Row, request: ProbeRequest) -> float:
        words = f"{self._seed} {row.point.label()} {request.grade} {request.label}"
        digest = hashlib.sha256(words.encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal())


def _measured(result: ProbeResult, row: Row, normal: float) -> ProbeResult:
    assert row.sps is not None
    window_s = _WINDOWS_S[result.grade]
    deviation = row.sd_fraction * math.sqrt(_NOISE_WINDOW_S / window_s)
    sps = row.sps * max(0.01, 1 + deviation * normal)
    changes: dict[str, Any] = {
        "sps": sps,
        "sps_low": sps * (1 - _NORMAL_95 * deviation),
        "sps_high": sps * (1 + _NORMAL_95 * deviation),
        "job_sps": (sps / row.point.concurrency,) * row.point.concurrency,
        "window_s": window_s,
        "vram_peak_bytes": row.vram_bytes,
        "ram_peak_bytes": row.ram_bytes,
        "flags": ("one launch",),
    }
    return ProbeResult(**(vars(result) | changes))
