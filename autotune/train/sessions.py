"""What each supervisor of a training did, one session for each time that it was opened. Pure."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autotune.availability import CHECKPOINT_S
from autotune.train.events import Event

_FIRST = {"edited", "stepped", "opened"}
"""Kinds of the events with which a supervisor begins: before them nobody had the machine."""
_ENDINGS = {"finished", "stopped", "crashed"}


@dataclass(frozen=True, kw_only=True)
class Session:
    """One supervisor, from its first event to its last.

    Attributes:
        point: the knobs at which it trained; None where its events do not tell.
        device: fingerprint of the device; None likewise.
        seconds: in which it had the machine. One that came to its end tells them itself, whatever the clock did.
        sps: of all processes together, while they ran warm; None when it did not measure that.
        out_of_memory: crashes of jobs for want of memory.
        host_lost: whether the machine went down while jobs ran: the next session is of another boot.
        down_s: seconds until that session, in which nothing was trained; 0.0 where the machine stayed up.
        saving_s: what each of its checkpoints took.
    """

    point: Mapping[str, Any] | None
    device: str | None
    seconds: float
    sps: float | None
    out_of_memory: int
    host_lost: bool
    down_s: float
    saving_s: tuple[float, ...]

    @property
    def failures(self) -> int:
        """That a lighter point may avoid."""
        return self.out_of_memory + self.host_lost


def sessions_of(events: Sequence[Event]) -> list[Session]:
    """Every session that some events tell of, oldest first.

    A supervisor that was killed leaves no end, and neither does a machine that goes down; it was the machine where
    jobs ran then and the next session is of another boot on the same device. So nothing is known of the last one.
    """
    parts = list(_split(events))
    return [_session(part, parts[n + 1] if n + 1 < len(parts) else []) for n, part in enumerate(parts)]


def checkpoint_seconds(sessions: Iterable[Session]) -> float:
    """What a checkpoint takes, the median of those that were saved, or what is assumed where none was."""
    saving_s = [seconds for session in sessions for seconds in session.saving_s]
    return statistics.median(saving_s) if saving_s else CHECKPOINT_S


def _split(events: Iterable[Event]) -> Iterable[list[Event]]:
    part: list[Event] = []
    for event in events:
        if event["kind"] in _FIRST and any(each["kind"] not in _FIRST for each in part):
            yield part
            part = []
        part.append(event)
    if part:
        yield part


def _session(events: Sequence[Event], following: Sequence[Event]) -> Session:
    opened, ended = _of_kind(events, "opened"), _of_kind(events, "ended")
    device = opened.get("device")
    lost = bool(
        following
        and not ended
        and _running(events)
        and following[0].get("boot_id") != events[-1].get("boot_id")
        and _of_kind(following, "opened").get("device", device) == device
    )
    return Session(
        point=opened.get("point"),
        device=device,
        seconds=_number(ended.get("seconds"), span_s(events)),
        sps=_number(ended.get("sps"), 0.0) or None,
        out_of_memory=sum(event["kind"] == "crashed" and event.get("error") == "oom" for event in events),
        host_lost=lost,
        down_s=span_s([events[-1], following[0]]) if lost else 0.0,
        saving_s=tuple(_number(event.get("cost_s"), 0.0) for event in events if event["kind"] == "saved"),
    )


def _of_kind(events: Sequence[Event], kind: str) -> Event:
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def _running(events: Sequence[Event]) -> set[str]:
    """Jobs that ran when the last of these was written."""
    running = set[str]()
    for event in events:
        if event["kind"] == "started":
            running.add(event["job"])
        elif event["kind"] in _ENDINGS:
            running.discard(event["job"])
    return running


def span_s(events: Sequence[Event]) -> float:
    """Seconds from the first to the last that tell a time, but for what the clock was set back between two."""
    times = [when for event in events if (when := _time_of(event))]
    return sum(max(0.0, (after - before).total_seconds()) for before, after in itertools.pairwise(times))


def _time_of(event: Event) -> datetime | None:
    """When it happened; None where it does not tell or that is damaged."""
    with contextlib.suppress(ValueError):
        when = datetime.fromisoformat(str(event.get("time")))
        return when if when.tzinfo else None
    return None


def _number(value: Any, otherwise: float) -> float:
    """A number of at least 0 that an event tells, `otherwise` where it tells none."""
    return max(0.0, float(value)) if isinstance(value, int | float) and math.isfinite(value) else otherwise
