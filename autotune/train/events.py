"""`train/events.jsonl`: what happened to a training, one durable line each, over all its restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from autotune.device.host import boot_id
from autotune.errors import FileError
from autotune.runs import Run
from autotune.store import append_line, make_folder, read_lines

Event = Mapping[str, Any]

_COUNTS = ("total_env_steps", "total_episodes", "total_seconds")
_MOST = 2**63


def make_event(kind: str, *, job: str | None = None, **facts: Any) -> dict[str, Any]:
    """An event with the time and this boot's id."""
    stamp = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "boot_id": boot_id()}
    return {"kind": kind, "job": job, **stamp, **facts}


class EventLog:
    """Appends events of a run; each is on the disk when `record` returns.

    Kinds: ``opened`` (a supervisor took the run), ``edited`` (the manifest is another one than
    last time), ``stepped`` (down the ladder, to a lighter point), ``warning``, ``ended``; of a job
    ``migrated`` (taken over from another run), ``started``, ``ready`` (with what took effect),
    ``resumed``, ``saved``, ``finished``, ``crashed``, ``stopped``.
    """

    def __init__(self, run: Run) -> None:
        make_folder(run.train_folder)
        self._path = run.train_folder / "events.jsonl"

    def record(self, kind: str, *, job: str | None = None, **facts: Any) -> None:
        """Append one event with the time and this boot's id.

        Raises:
            FileError: the folder is read-only or full.
        """
        append_line(self._path, make_event(kind, job=job, **facts), sync=True)


def read_events(run: Run) -> list[Event]:
    """Every event of a run, oldest first; none when it never trained.

    Raises:
        FileError: a line other than the last is damaged.
    """
    file = run.train_folder / "events.jsonl"
    events = read_lines(file)
    for event in events:
        if not _is_event(event):
            raise FileError(
                f"{file} is damaged: {event!r} is no event. Move the file away: training goes on from its checkpoints."
            )
    return events


def _is_event(event: Any) -> bool:
    """Whether it has what every event has, and all totals of a job, in finite numbers, where it carries any."""
    if not isinstance(event, dict) or not {"kind", "job"} <= set(event):
        return False
    named = isinstance(event["kind"], str) and isinstance(event["job"], str | None)
    counts = [event.get(name) for name in _COUNTS]
    whole = all(isinstance(count, int | float) and abs(count) < _MOST for count in counts)
    return named and (whole or not any(name in event for name in _COUNTS))


def last_event(events: Sequence[Event], kinds: set[str], job: str | None = None) -> Event | None:
    """The newest event of these kinds (of a job), None when there is none."""
    return next((e for e in reversed(events) if e["kind"] in kinds and (job is None or e["job"] == job)), None)


def opened_otherwise(events: Sequence[Event], content: str) -> Event | None:
    """The newest event ``opened`` where it was of another manifest than the one with this hash, else None."""
    opened = last_event(events, {"opened"})
    return opened if opened is not None and opened.get("manifest") != content else None


def last_worker(events: Sequence[Event], job: str) -> tuple[Any, ...]:
    """Boot id, pid and start ticks of the worker that trained a job last; empty when the events do not tell."""
    started = last_event(events, {"started"}, job) or {}
    identity = tuple(started.get(name) for name in ("boot_id", "pid", "start_ticks"))
    return () if None in identity else identity
