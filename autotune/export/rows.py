"""A measurement as one flat row: what `--json` prints and `--export` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotune.codec import to_json
from autotune.records import KNOBS, ProbeResult
from autotune.search.trials import TrialRecord

FIGURES = (
    *KNOBS,
    "status",
    "sps",
    "sps_low",
    "sps_high",
    "job_sps",
    "vram_peak_bytes",
    "ram_peak_bytes",
    "goodput_per_usd",
)
"""Of a row, what other programs rely on: there in every object that `--json` prints of a measurement."""


def probe_row(result: ProbeResult, price: float | None) -> dict[str, Any]:
    """One row: knobs, status, SPS with interval, memory, goodput per dollar, and the rest by its record's names.

    None is unknown. `price` is in US dollars per hour.
    """
    figures = to_json(result)
    for left_out in ("requested", "log_tail"):
        del figures[left_out]
    return {**result.requested.knobs(), **figures, "goodput_per_usd": result.goodput_per_usd(price)}


def probe_rows(results: Sequence[ProbeResult], price: float | None) -> list[dict[str, Any]]:
    """A row for each result."""
    return [probe_row(result, price) for result in results]


def trial_rows(records: Sequence[TrialRecord], price: float | None) -> list[dict[str, Any]]:
    """A row for each trial that was run, led by its number and stage."""
    return [
        {"number": record.number, "stage": record.stage, **probe_row(record.result, price)}
        for record in records
        if record.counts
    ]
