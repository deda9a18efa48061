"""What a training left behind: ``train/events.jsonl`` and every job's ``metrics.csv``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from autotune.errors import FileError
from autotune.runs import Run
from autotune.store import read_lines

RETURN_WINDOW = 100
_CURVE = ("env_steps", "episode_return")


@dataclass(frozen=True, kw_only=True)
class TrainedJob:
    """How far one job came; None is unknown."""

    id: str
    env_steps: float | None
    episodes: float | None
    seconds: float | None
    sps: float | None
    episode_return: float | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training's trace.

    Attributes:
        jobs: by id.
        curves: by job, the columns `env_steps` and `episode_return`.
        events: as written.
    """

    jobs: tuple[TrainedJob, ...]
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    steps_per_episode: Mapping[str, float] = field(default_factory=dict)


def load_training(run: Run) -> Training | None:
    """The run's training, None when nothing was trained in it.

    Raises:
        FileError: a file is damaged.
    """
    files = sorted(run.train_folder.glob("jobs/*/metrics.csv"))
    events = tuple(read_lines(run.train_folder / "events.jsonl"))
    if not files and not events:
        return None
    frames = {file.parent.name: read_metrics(file) for file in files}
    jobs = tuple(_trained(job, frame) for job, frame in frames.items())
    curves = {job: curve for job, frame in frames.items() if (curve := _curve(frame)) is not None}
    return Training(jobs=jobs, curves=curves, events=events)


def read_metrics(file: Path) -> pd.DataFrame:
    """A job's metrics; a torn last line (power loss while appending) is left out.

    Raises:
        FileError: unreadable.
    """
    try:
        return pd.read_csv(file, on_bad_lines="skip")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise FileError(f"cannot read {file}: {error}") from error


def _last(frame: pd.DataFrame, column: str) -> float | None:
    if column not in frame:
        return None
    known = pd.to_numeric(frame[column], errors="coerce").dropna()
    value = float(known.iloc[-1]) if len(known) else math.nan
    return value if math.isfinite(value) else None


def _trained(job: str, frame: pd.DataFrame) -> TrainedJob:
    names = ("env_steps", "episodes", "seconds", "sps", "episode_return")
    return TrainedJob(id=job, **{name: _last(frame, name) for name in names})


def _curve(frame: pd.DataFrame) -> pd.DataFrame | None:
    if not set(_CURVE) <= set(frame.columns):
        return None
    numbers = frame[list(_CURVE)].apply(pd.to_numeric, errors="coerce").dropna()
    return numbers if len(numbers) else None
