"""`metrics.csv` of a job: a row for every half percent more env steps, in their order even after a crash."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.errors import FileError, remedy_for
from autotune.store import durable_write, keep_copy, make_folder, set_aside, sync_file

UNTIMED = "untimed_steps"
"""Column of `metrics.csv` and fact of an event: env steps of a program that nothing says the seconds of."""


class MetricsFile:
    """Appends rows; a metric that turns up later becomes a further column.

    Args:
        path: the file, continued when it is there.
        env_steps: where training continues: rows beyond it (work that a crash lost) and a torn
            last line are removed.

    Attributes:
        path: the file.
        last_env_steps: of the last row that was kept, None without one.
    """

    def __init__(self, path: Path, *, env_steps: int) -> None:
        self.path = path
        rows = read_metrics(path)
        self._columns: list[str] = list(rows[0]) if rows else []
        kept = _until(rows, env_steps)
        self.last_env_steps = _whole(kept[-1].get("env_steps")) if kept else None
        if path.exists():
            self._rewrite(kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row and flush it; None becomes an empty field.

        A folder that somebody removed is made again: only by going on is what was trained saved at all.

        Raises:
            FileError: the folder is read-only or full.
        """
        if not self.path.parent.is_dir():
            make_folder(self.path.parent)
        stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **row}
        new = [name for name in stamped if name not in self._columns]
        if new:
            rows = read_metrics(self.path)
            self._columns += new
            self._rewrite(rows)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                if not file.tell():  # somebody moved the file away: a row without names would be none
                    writer.writeheader()
                writer.writerow(stamped)
        except OSError as error:
            remedy = remedy_for(error, "Free some space.")
            raise FileError(f"cannot append to {self.path}: {error.strerror or error}. {remedy}") from error

    def sync(self) -> None:
        """Flush the rows to the disk, where they survive a power loss.

        Raises:
            FileError: the disk is full or fails.
        """
        if self.path.exists():
            sync_file(self.path)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        durable_write(self.path, text.getvalue())


def cell_number(text: str | None) -> float | None:
    """The number in a cell; None where it is empty, damaged or not finite."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The complete rows of a `metrics.csv`, oldest first; none when there is no such file.

    Raises:
        FileError: it cannot be read, or is no CSV.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}. Check its permissions.") from error
    whole = text[: text.rfind("\n") + 1]
    try:
        return [row for row in csv.DictReader(io.StringIO(whole, newline="")) if None not in row]
    except csv.Error as error:
        raise FileError(f"{path} is damaged ({error}): move it away, and a new one begins") from error


def set_aside_damaged(path: Path, warn: Callable[[str], None]) -> None:
    """Set a `metrics.csv` whose rows do not tell their env steps aside, and say so.

    Raises:
        FileError: it cannot be read, or the folder cannot be written to.
    """
    if any("env_steps" not in row for row in read_metrics(path)[:1]):
        kept = set_aside(path, ".damaged")
        warn(f"{path} is damaged, since it has no column env_steps: it is kept as {kept}, and a new one begins")


def keep_later_rows(path: Path, env_steps: int) -> Path | None:
    """Keep a copy of a `metrics.csv` with rows beyond `env_steps`; returns its place, None when it has none.

    Raises:
        FileError: it cannot be read, or the folder is read-only or full.
    """
    rows = read_metrics(path)
    return keep_copy(path, ".before-fallback") if len(_until(rows, env_steps)) < len(rows) else None


def _until(rows: list[dict[str, str]], env_steps: int) -> list[dict[str, str]]:
    return [row for row in rows if _whole(row.get("env_steps")) <= env_steps]


def untimed_steps(row: Mapping[str, str]) -> int:
    """Env steps in a row's total that nothing says the seconds of, such as of a program's own checkpoint."""
    return _whole(row.get(UNTIMED))


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
