"""pytest-benchmark's JSON: seconds per env step of every point, for ``pytest-benchmark compare``.

A point is a benchmark, a batch of the window a round, an env step an iteration. Where a result carries no
batches (a replayed surface), its window is one round. Points that were never measured as stable are left out: the
format has no place for them.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune import __version__
from autotune.codec import to_json
from autotune.machine import DeviceInfo
from autotune.records import Point, ProbeResult

_KEPT = (
    *("envs", "sps", "sps_low", "sps_high", "grade"),
    *("noise_fraction", "window_s", "vram_peak_bytes", "ram_peak_bytes"),
)


def benchmark_json(name: str, results: Sequence[ProbeResult], device: DeviceInfo | None) -> dict[str, Any]:
    """The whole document.

    Args:
        name: of the recipe, which prefixes every benchmark's.
        results: launches, of any points and in any order; final ones count alone where a point has any.
        device: that was measured, None when not known.
    """
    by_point: dict[Point, list[ProbeResult]] = {}
    for result in results:
        if result.ok and result.sps:
            by_point.setdefault(result.requested, []).append(result)
    return {
        "machine_info": machine_info(device),
        "commit_info": commit_info(Path.cwd()),
        "benchmarks": [_benchmark(name, point, _best_grade(own)) for point, own in by_point.items()],
        "datetime": datetime.now(UTC).isoformat(),
        "version": f"autotune {__version__}",
    }


def _best_grade(launches: Sequence[ProbeResult]) -> list[ProbeResult]:
    finals = [result for result in launches if result.grade == "final"]
    return finals or list(launches)


def _benchmark(name: str, point: Point, launches: Sequence[ProbeResult]) -> dict[str, Any]:
    knobs = "-".join(str(value) for value in point.knobs().values())
    last = launches[-1]
    return {
        "group": None,
        "name": f"{name}[{knobs}]",
        "fullname": f"{name}[{point.label()}]",
        "params": point.knobs(),
        "param": knobs,
        "extra_info": {"launches": len(launches), "flags": list(last.flags)}
        | {each: to_json(getattr(last, each)) for each in _KEPT},
        "options": {"timer": "monotonic", "warmup": True},
        "stats": statistics_of(step_seconds(launches)) | {"iterations": _steps_per_round(launches)},
    }


def step_seconds(launches: Sequence[ProbeResult]) -> list[float]:
    """Seconds per env step, over all processes, of each batch of each launch; of a launch without batches, one."""
    rates = [rate for result in launches for rate in (result.batch_sps or (result.sps,))]
    return [1 / rate for rate in rates if rate]


def _steps_per_round(launches: Sequence[ProbeResult]) -> int:
    """Env steps behind each round, the mean; 1 where the window is not known."""
    steps = sum((result.sps or 0.0) * (result.window_s or 0.0) for result in launches)
    return max(1, round(steps / len(step_seconds(launches))))


def statistics_of(seconds: Sequence[float]) -> dict[str, Any]:
    """The fields that pytest-benchmark computes from its rounds; quartiles as Python's inclusive quantiles.

    One round has no deviation: 0, as there.
    """
    ordered = sorted(seconds)
    mean, deviation = statistics.mean(ordered), statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    q1, median, q3 = statistics.quantiles(ordered, method="inclusive") if len(ordered) > 1 else ordered * 3
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    far = sum(abs(value - mean) > deviation for value in ordered)
    outside = sum(not low <= value <= high for value in ordered)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": len(ordered),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outside,
        "stddev_outliers": far,
        "outliers": f"{far};{outside}",
        "ld15iqr": min(value for value in ordered if value >= low),
        "hd15iqr": max(value for value in ordered if value <= high),
        "ops": 1 / mean,
        "total": sum(ordered),
        "data": list(seconds),
    }


def machine_info(device: DeviceInfo | None) -> dict[str, Any]:
    """pytest-benchmark's keys, and the device that was measured; empty when it is not known."""
    if device is None:
        return {}
    host, gpu = device.host, device.gpu
    return {
        "node": host.hostname,
        "processor": host.cpu_model,
        "machine": platform.machine(),
        "python_version": host.python,
        "release": host.kernel,
        "system": platform.system(),
        "cpu": {"brand_raw": host.cpu_model, "count": host.cpu_cores_visible, "allowed": host.cpu_cores_allowed},
        "ram_limit_bytes": host.ram_limit_bytes,
        "gpu": gpu and {"name": gpu.name, "vram_total_bytes": gpu.vram_total_bytes, "driver": device.driver},
        "packages": dict(host.packages),
    }


def commit_info(folder: Path) -> dict[str, Any]:
    """pytest-benchmark's keys, of the git repository that a folder is in; ``unversioned`` outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "id": commit or "unversioned",
        "time": _git(folder, "show", "-s", "--format=%cI"),
        "author_time": _git(folder, "show", "-s", "--format=%aI"),
        "dirty": bool(changes),
        "project": Path(_git(folder, "rev-parse", "--show-toplevel") or folder).name,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "(unknown)",
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, None where there is no git, no repository or no commit."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
