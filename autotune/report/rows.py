"""A search's trials as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from autotune.records import ProbeResult
from autotune.search.trials import TrialRecord

COLUMNS = (
    *("number", "stage", "num_envs", "batch_size", "concurrency", "extra", "status", "grade"),
    *("sps", "sps_low", "sps_high", "job_sps", "vram_peak_bytes", "ram_peak_bytes", "cost_s", "window_s"),
    *("startup_s", "first_iteration_s", "reset_fraction", "limited_by", "detail", "log_tail", "changed", "flags"),
    "unused",
)


def trials_frame(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per trial; numbers that are not known are None."""
    return pd.DataFrame([_row(record) for record in records], columns=list(COLUMNS), dtype=object)


def _row(record: TrialRecord) -> dict[str, Any]:
    result = record.result
    plain = ("status", "grade", "vram_peak_bytes", "ram_peak_bytes", "limited_by", "detail", "log_tail")
    numbers = ("sps", "sps_low", "sps_high", "cost_s", "window_s", "startup_s", "first_iteration_s", "reset_fraction")
    point = result.requested
    return {
        "number": record.number,
        "stage": record.stage,
        "num_envs": point.num_envs,
        "batch_size": point.batch_size,
        "concurrency": point.concurrency,
        "extra": point.extra,
        "job_sps": tuple(result.job_sps),
        "flags": tuple(result.flags),
        "changed": changed_knobs(result),
        "unused": tuple(name for name in point.knobs() if name in result.effective and result.effective[name] is None),
        **{name: getattr(result, name) for name in plain},
        **{name: finite(getattr(result, name)) for name in numbers},
    }


def changed_knobs(result: ProbeResult) -> str:
    """What took effect other than asked for, such as ``num_envs=16``; empty when all did.

    A knob that a user's own command has no place for (None) has one value, and nothing was asked for.
    """
    asked, got = result.requested.knobs(), result.effective
    return " ".join(f"{name}={got[name]}" for name in asked if got.get(name) not in (None, asked[name]))


def finite(value: Any) -> float | None:
    """A number, or None for None, NaN and infinity."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
