"""Surface files: what a machine answered at every point of a grid, to be replayed.

A surface is CSV with the columns `COLUMNS`, one row per point; a combination without a row is not part
of the space. ``sps`` is the aggregate, ``sd_fraction`` the noise of a 10-second window, the bytes are
totals over all processes. Header lines such as ``# device: A100`` describe the machine, see `surface_header`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import UsageError
from autotune.executors.surface_header import Header, is_comment, read_header, stated_number
from autotune.machine import RAM_UNSTATED_BYTES, DeviceInfo, GpuInfo, HostInfo
from autotune.records import (
    COUNT_MAX,
    JOBS_MAX,
    KNOBS,
    Budget,
    Job,
    Point,
    ProbeResult,
    Recipe,
    Status,
)
from autotune.stats import nearest_by_ratio
from autotune.store import content_hash
from autotune.units import counted

COLUMNS = (
    *KNOBS,
    "status",
    "sps",
    "sd_fraction",
    "startup_s",
    "vram_bytes",
    "ram_bytes",
)
STATUSES: tuple[Status, ...] = ("ok", "oom", "crashed", "host_lost", "timeout")
"""A surface knows no verdict: unstable points are left out of it."""
QUICK_S, FINAL_S = 20.0, 50.0
"""What a stable probe costs beyond its start."""
_SPS_MAX = 1e15
_SD_FRACTION_MAX = 1.0
_UNKNOWN = ("", "nan", "none", "null", "na", "n/a")
"""What programs write for a number that is not known."""


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
    header: Header
    source: str
    content_hash: str

    def row(self, point: Point) -> Row:
        """The row of a point, or the nearest one by ratios."""
        places = [[getattr(row.point, name) for name in KNOBS] for row in self.rows]
        return self.rows[nearest_by_ratio(places, [getattr(point, name) for name in KNOBS])]

    @property
    def baseline(self) -> Point:
        """The row nearest to the header's baseline, the first one without a header."""
        return self.row(self.header.baseline).point if self.header.baseline else self.rows[0].point

    @property
    def price_usd_per_hour(self) -> float | None:
        """Of the machine, None when not stated."""
        return self.header.price_usd_per_hour


def load_surface(path: Path) -> Surface:
    """Read a surface file.

    Raises:
        UsageError: missing or malformed; the message names line, column and expectation.
    """
    text = _text_of(path)
    lines = text.split("\n")
    header = read_header(lines, str(path))
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and not is_comment(line)]
    if len(numbered) < 2:
        raise UsageError(f"surface {path} has no rows; it needs a line of column names and a line for each point")
    names = _columns(numbered[0][1], f"{path}, line {numbered[0][0]}")
    rows: dict[Point, tuple[int, Row]] = {}
    for number, line in numbered[1:]:
        row = _row(_cells_of(line, names, f"{path}, line {number}"), f"{path}, line {number}")
        if row.point in rows:
            first = rows[row.point][0]
            raise UsageError(
                f"surface {path} has {row.point.label()} twice, in lines {first} and {number}; remove one of them"
            )
        rows[row.point] = number, row
    points = tuple(row for _, row in rows.values())
    return Surface(rows=points, header=header, source=str(path), content_hash=content_hash(text))


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"surface {path} cannot be read: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"surface {path}, line {line} is no text in UTF-8; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _columns(line: str, where: str) -> list[str]:
    names = _split(line, where)
    for separator, word in (("\t", "tabs"), (";", "semicolons")):
        if len(names) == 1 and separator in names[0]:
            raise UsageError(f"surface {where}: the cells are separated by {word}; separate them by commas")
    missing = [name for name in COLUMNS if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing:
        raise UsageError(f"surface {where}: no column {', '.join(missing)}; a surface has {','.join(COLUMNS)}")
    if twice:
        raise UsageError(f"surface {where}: column {', '.join(twice)} is there twice; keep one")
    return names


def _split(line: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise UsageError(f"surface {where} is no line of CSV: {error}") from error


def _cells_of(line: str, names: Sequence[str], where: str) -> dict[str, str]:
    cells = _split(line, where)
    if len(cells) != len(names):
        short = len(cells) < len(names)
        advice = "the line is cut off or a quote is open" if short else "write numbers without commas"
        raise UsageError(f"surface {where} has {counted(len(cells), 'cell')} for {len(names)} columns; {advice}")
    return dict(zip(names, cells, strict=True))


def _row(cells: Mapping[str, str], where: str) -> Row:
    status = cells["status"]
    if status not in STATUSES:
        raise UsageError(
            f"surface {where}: status {status!r} must be one of {', '.join(STATUSES)}; delete the line where none fits"
        )
    vram, ram = (_optional(cells, name, where, most=2**63) for name in ("vram_bytes", "ram_bytes"))
    return Row(
        point=Point.from_knobs({name: _knob(cells, name, where) for name in KNOBS}),
        status=status,
        sps=_sps(cells, where) if status == "ok" else None,
        sd_fraction=_optional(cells, "sd_fraction", where, most=_SD_FRACTION_MAX) or 0.0,
        startup_s=_optional(cells, "startup_s", where, most=86_400.0) or 0.0,
        vram_bytes=None if vram is None else int(vram),
        ram_bytes=None if ram is None else int(ram),
    )


def _sps(cells: Mapping[str, str], where: str) -> float:
    otherwise = "; where nothing ran, write the status crashed or timeout"
    return stated_number("sps", cells["sps"], where, least=1e-9, most=_SPS_MAX, otherwise=otherwise)


def _knob(cells: Mapping[str, str], name: str, where: str) -> int:
    most = JOBS_MAX if name == "concurrency" else COUNT_MAX
    value = stated_number(name, cells[name], where, least=1, most=most)
    if value != int(value):
        raise UsageError(f"surface {where}: {name} {cells[name]!r} must be a whole number")
    return int(value)


def _optional(cells: Mapping[str, str], name: str, where: str, *, most: float) -> float | None:
    if cells[name].lower() in _UNKNOWN:
        return None
    unknown = "; leave the cell empty if it is not known"
    return stated_number(name, cells[name], where, least=0, most=most, otherwise=unknown)


def surface_recipe(path: Path | str) -> Recipe:
    """The recipe that a surface file stands for, see `recipe_of`.

    Raises:
        UsageError: the file is missing or malformed.
    """
    return recipe_of(load_surface(Path(path)))


def recipe_of(surface: Surface) -> Recipe:
    """The recipe that a surface stands for: its rows are the points, jobs as many as its highest concurrency."""
    points = tuple(sorted((row.point for row in surface.rows), key=lambda p: tuple(p.knobs().values())))
    knobs = {name: tuple(sorted({getattr(point, name) for point in points})) for name in KNOBS}
    budget, most = Budget(unit="steps", amount=10_000_000), knobs["concurrency"][-1]
    return Recipe(
        name=Path(surface.source).stem,
        workload="replay",
        hyperparameters={},
        jobs=tuple(Job(id=f"job-{n + 1}", env="recorded", seed=n + 1, budget=budget) for n in range(most)),
        knobs=knobs,
        grid=knobs,
        baseline=surface.baseline,
        source=surface.source,
        points=points,
    )


def surface_device(surface: Surface) -> DeviceInfo:
    """The machine that a surface's header describes."""
    header = surface.header
    name, vram = header.device, header.vram_limit_bytes
    cores, ram = header.cpu_cores or 1.0, int(header.ram_limit_bytes or RAM_UNSTATED_BYTES)
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
    gpus = (GpuInfo(index=0, name=name, vram_total_bytes=int(vram)),) if vram else ()
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
        "" if result.sps is None else f"{result.sps:.1f}" if result.sps >= 100 else f"{result.sps:.4g}",
        "" if result.noise_fraction is None else f"{min(result.noise_fraction, _SD_FRACTION_MAX):.4f}",
        f"{max(0.0, result.cost_s - beyond_s):.1f}",
        *("" if count is None else count for count in (result.vram_peak_bytes, result.ram_peak_bytes)),
    ]
