"""Every probe, the failed ones too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotune.executors.stability import MARKS
from autotune.records import KNOBS, Point
from autotune.report.facts import Facts
from autotune.report.wording import block, code, table, text
from autotune.search.precision import EPOCH_FLAG
from autotune.units import counted, format_bytes, format_count, format_duration

_LOGS_SHOWN = 5
_SKIPPED_SHOWN = 8
UNSEEN = "-"


def render(facts: Facts) -> str:
    """A table of all trials, then what failed and why."""
    rows = facts.trial_rows
    if not rows:
        return ""
    parts = [
        _introduction(facts, len(rows)),
        _table(rows, facts.tuned.point if facts.tuned else None),
        *_legend(rows),
        *_changed(rows),
        *_refused(facts),
        *_skipped(facts),
        *_failed(rows),
    ]
    return "\n\n".join(parts)


def _introduction(facts: Facts, probes: int) -> str:
    bold = (
        f" Bold: the {facts.tuned.role} point; a single figure above it is usually a lucky one." if facts.tuned else ""
    )
    return (
        f"{counted(facts.points_measured, 'point') if facts.points_measured else 'No stable point'} measured in "
        f"{counted(probes, 'probe')}. "
        "SPS are agent decisions per second, summed over the jobs that run at once; rows that an environment spends on "
        f"resets do not count. Quick windows rank, final ones are published.{bold} "
        f"Start: from launch to ready, then the first iteration.{_spent(facts)}"
    )


def _table(rows: list[dict[str, Any]], tuned: Point | None) -> str:
    headers = ["stage", "probe", "num_envs", "batch_size", "concurrency", "status", "SPS", "95 % interval"]
    headers += ["SPS of each job", "VRAM", "RAM", "start (s)", "marks"]
    cells = [dict(zip(headers, _cells(row, tuned), strict=True)) for row in rows]
    shown = [name for name in headers if any(row[name] != UNSEEN for row in cells)]
    return table(shown, [[row[name] for name in shown] for row in cells])


def _spent(facts: Facts) -> str:
    if not facts.spent_s:
        return ""
    of = f" of {format_duration(facts.budget_s)}" if facts.budget_s else ""
    return f" Time spent: {format_duration(facts.spent_s)}{of}."


def _cells(row: dict[str, Any], tuned: Point | None) -> list[str]:
    known = row["sps_low"] is not None and row["sps_high"] is not None
    jobs = row["job_sps"]
    stage = row["stage"] if row["stage"] == row["grade"] else f"{row['stage']}, {row['grade']}"
    if row["extra"]:
        stage += " (" + ", ".join(f"{name}={value}" for name, value in row["extra"]) + ")"
    speed = format_count(row["sps"]) if row["sps"] is not None else UNSEEN
    return [
        text(stage),
        str(row["number"]),
        *(str(row[name]) for name in ("num_envs", "batch_size", "concurrency")),
        text(row["status"].replace("_", " ")),
        f"**{speed}**" if row["sps"] and _point(row) == tuned else speed,
        f"{format_count(row['sps_low'])} to {format_count(row['sps_high'])}" if known else UNSEEN,
        format_count(sum(jobs) / len(jobs)) if jobs else UNSEEN,
        format_bytes(row["vram_peak_bytes"]) if row["vram_peak_bytes"] is not None else UNSEEN,
        format_bytes(row["ram_peak_bytes"]) if row["ram_peak_bytes"] is not None else UNSEEN,
        _seconds(row["startup_s"], row["first_iteration_s"]),
        text(", ".join(marks(row["flags"]))) or UNSEEN,
    ]


def _point(row: dict[str, Any]) -> Point:
    knobs = (row[name] for name in KNOBS)
    return Point(**dict(zip(KNOBS, knobs, strict=True)), extra=tuple(row["extra"]))


def _seconds(*each_s: float | None) -> str:
    known = [f"{seconds:.1f}" for seconds in each_s if seconds is not None]
    return " + ".join(known) or UNSEEN


def marks(flags: Sequence[str]) -> list[str]:
    """What makes a probe's figure less than it seems; how many launches it rests on is said elsewhere."""
    return [flag for flag in flags if flag in MARKS or flag.startswith(EPOCH_FLAG)]


def _legend(rows: list[dict[str, Any]]) -> list[str]:
    seen = {mark for row in rows for mark in marks(row["flags"])}
    lines = [f"- {mark}: {meaning}" for mark, meaning in MARKS.items() if mark in seen]
    return ["**Marks:**\n\n" + "\n".join(lines)] if lines else []


def _skipped(facts: Facts) -> list[str]:
    """Points that cost too much of the budget to measure."""
    skipped = facts.search.skipped if facts.search else ()
    if not skipped:
        return []
    shown = [
        f"{code(point.label())} ({format_duration(predicted_s)})" for point, predicted_s in skipped[:_SKIPPED_SHOWN]
    ]
    more = f" and {len(skipped) - len(shown)} more" if len(skipped) > len(shown) else ""
    share = "a probe would take more than 15 % of the budget (predicted seconds in brackets)"
    return [f"**Left out**, because {share}: {', '.join(shown)}{more}. A longer `--budget` reaches them."]


def _changed(rows: list[dict[str, Any]]) -> list[str]:
    changed = [row for row in rows if row["changed"]]
    unused = ", ".join(dict.fromkeys(code(name) for row in rows for name in row["unused"]))
    told = [f"Not named in the command, so that the program has values of its own: {unused}."] if unused else []
    if not changed:
        return told
    lines = [
        f"- probe {row['number']}: {text(row['changed'])} took effect instead of what was asked for" for row in changed
    ]
    return ["**Asked for and taken effect differ:**\n\n" + "\n".join(lines), *told]


def _refused(facts: Facts) -> list[str]:
    if not facts.refused:
        return []
    points = counted(facts.refused, "point was", "points were")
    return [f"Beside these, {points} not run: the memory rule predicts a failure there."]


def _failed(rows: list[dict[str, Any]]) -> list[str]:
    failed = [row for row in rows if row["status"] != "ok"]
    if not failed:
        return ["No probe failed."]
    parts = ["**Failed probes:**"]
    for shown, row in enumerate(failed):
        status, took = row["status"].replace("_", " "), format_duration(row["cost_s"])
        settings = text(_point(row).label())
        parts.append(f"Probe {row['number']} ({settings}): {status} after {took}. {text(row['detail'])}".rstrip())
        if shown < _LOGS_SHOWN and row["log_tail"]:
            parts.append(block(row["log_tail"]))
    return parts
