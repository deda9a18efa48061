"""Surface files: what a machine answered at every point of a grid, to be replayed.

A surface is CSV with the columns `COLUMNS`, one row per point; a combination without a row is not part
of the space. ``sps`` is the aggregate, ``sd_fraction`` the noise of a 10-second window, the bytes are
totals over all processes. Header lines: ``# device: A100``, ``# synthetic: true``,
``# vram_limit_bytes: N``, ``# ram_limit_bytes: N``, ``# cpu_cores: N``, ``# price_usd_per_hour: X``,
``# baseline: num_envs=8 batch_size=256 concurrency=1``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import UsageError
from autotune.machine import DeviceInfo, GpuInfo, HostInfo
from autotune.records import (
    KNOBS,
    STATUSES,
    Budget,
    Job,
    Point,
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
    names = [cell.strip() for cell in numbered[0][1].split(",")] if numbered else []
    if not set(COLUMNS) <= set(names):
        raise UsageError(f"surface {path}: the first line after the header must be {','.join(COLUMNS)}")
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


def surface_text(results: Sequence[ProbeResult], recipe: Recipe, device: DeviceInfo, price: float | None) -> str:
    """A surface file of measured points; of several measurements of a point the last one counts.

    ``startup_s`` is what makes a replayed probe as long as the measured one was. Unstable points are left out:
    a replay knows no verdict.
    """
    header = {
        "device": device.name,
        "synthetic": "false",
        "vram_limit_bytes": device.vram_total_bytes,
        "ram_limit_bytes": device.host.ram_limit_bytes,
        "cpu_cores": f"{device.host.cpu_cores_allowed:g}",
        "price_usd_per_hour": price,
        "baseline": " ".join(f"{name}={getattr(recipe.baseline, name)}" for name in KNOBS),
    }
    output = io.StringIO()
    output.writelines(f"# {name}: {value}\n" for name, value in header.items() if value is not None)
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in {result.requested: result for result in results if result.status != "unstable"}.values():
        writer.writerow(_cells(result))
    return output.getvalue()


def _cells(result: ProbeResult) -> list[object]:
    beyond_s = 0.0 if not result.ok else QUICK_S if result.grade == "quick" else FINAL_S
    return [
        *(getattr(result.requested, name) for name in KNOBS),
        result.status,
        "" if result.sps is None else f"{result.sps:.1f}",
        "" if result.noise_fraction is None else f"{result.noise_fraction:.4f}",
        f"{max(0.0, result.cost_s - beyond_s):.1f}",
        *("" if count is None else count for count in (result.vram_peak_bytes, result.ram_peak_bytes)),
    ]
