"""Rows of a run as a file: the suffix says which format."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autotune.errors import UsageError
from autotune.export.benchmark import benchmark_json
from autotune.export.rows import trial_rows
from autotune.machine import DeviceInfo
from autotune.probe.recipe import load_recipe
from autotune.runs import Run, load_device
from autotune.search.trials import TrialRecord, load_trials
from autotune.store import canonical_json, durable_write
from autotune.units import counted


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is exported: the trials of one run.

    Attributes:
        name: of the recipe.
        trials: in the order in which they were run.
        device: None when the run does not say.
        price_usd_per_hour: None without one.
    """

    name: str
    trials: Sequence[TrialRecord]
    device: DeviceInfo | None = None
    price_usd_per_hour: float | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each trial."""
        return trial_rows(self.trials, self.price_usd_per_hour)


def csv_text(measurements: Measurements) -> str:
    """Rows as CSV, lists and objects as JSON in their cell; a knob that a trial lacks is an empty cell."""
    rows = measurements.rows
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return output.getvalue()


def _cell(value: Any) -> Any:
    return canonical_json(value, indent=None) if isinstance(value, (dict, list)) else value


def json_lines_text(measurements: Measurements) -> str:
    """A JSON object on each line, null where unknown (https://jsonlines.org)."""
    return "".join(canonical_json(row, indent=None) + "\n" for row in measurements.rows)


def benchmark_text(measurements: Measurements) -> str:
    """What ``pytest-benchmark compare`` reads."""
    results = [trial.result for trial in measurements.trials]
    return canonical_json(benchmark_json(measurements.name, results, measurements.device)) + "\n"


FORMATS: Mapping[str, Callable[[Measurements], str]] = MappingProxyType(
    {".csv": csv_text, ".jsonl": json_lines_text, ".json": benchmark_text}
)
"""Writers by suffix."""


def check_export(text: str) -> Path:
    """A file that rows can be written to when the work is done.

    Raises:
        UsageError: an unknown suffix, a folder, in no folder, or not writable.
    """
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{text!r} must end in .csv, .jsonl or .json (pytest-benchmark), such as rows.csv")
    return check_writable(text)


def check_writable(text: str) -> Path:
    """The path of a file that can be written when the work is done.

    Raises:
        UsageError: it is a folder, in no folder, or not writable.
    """
    path = Path(text)
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{text!r} must be a file in a folder that exists, such as rows.csv")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{text!r} cannot be written: its folder is read-only; name a file elsewhere")
    return path


def export_run(files: Sequence[Path], run: Run, price: float | None) -> list[str]:
    """Write a run's trials to every file, each in the format that its suffix names.

    Returns:
        A line on each file: what was written.

    Raises:
        FileError: a file cannot be written, or the run cannot be read.
    """
    if not files:
        return []
    measurements = Measurements(
        name=load_recipe(str(run.recipe_file)).name if run.recipe_file.exists() else run.name,
        trials=tuple(trial for trial in load_trials(run) if trial.counts),
        device=load_device(run),
        price_usd_per_hour=price,
    )
    lines = []
    for path in files:
        durable_write(path, FORMATS[path.suffix.lower()](measurements))
        lines.append(f"wrote {path}: {_count(path, measurements)}")
    return lines


def _count(path: Path, measurements: Measurements) -> str:
    if path.suffix.lower() != ".json":
        return counted(len(measurements.trials), "row")
    points = {trial.result.requested for trial in measurements.trials}
    stable = {trial.result.requested for trial in measurements.trials if trial.result.ok}
    left_out = f" ({len(points - stable)} without a stable measurement left out)" if points - stable else ""
    return f"{counted(len(stable), 'point')}{left_out}"
