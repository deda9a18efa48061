"""The measuring loop of a worker: step until told to stop, one message an iteration, or for several short ones."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from numbers import Real
from operator import attrgetter
from typing import Any

import numpy as np

from autotune.codec import to_json
from autotune.errors import WorkerError
from autotune.records import Work
from autotune.workloads.protocol import Finished, Session

_SLICES_WHEN_LONG = 4
_FIRST_SLICE_ROWS = 512
_STEPS_TO_SETTLE = 2
_PEAK_PERIOD_S = 1.0
_COUNTS = ("env_steps", "reset_rows", "episodes", "minibatches")
REPORT_PERIOD_S = 0.25
"""Iterations that end sooner after the last message are told with the next: telling takes up to 3 % of 1 ms.

The shortest window, of 8 s, still has 32 messages for its 12 batches.
"""


def share_done(session: Session, work: Work) -> float:
    """Share of a full iteration that a step did, from the rows it collected."""
    rollout = session.effective.get("rollout")
    if not rollout:
        return 1.0
    rows = int(rollout) * int(session.effective["num_envs"])
    return min(1.0, (work.env_steps + work.reset_rows) / rows)


def first_parts(session: Session) -> int:
    """Slices for the very first step, so that a long iteration is noticed without waiting for it."""
    rows = int(session.effective.get("rollout") or 0) * int(session.effective.get("num_envs") or 0)
    return max(1, rows // _FIRST_SLICE_ROWS)


def settle_parts(iteration_s: float, long_iteration_s: float) -> int:
    """Slices at which long iterations are measured (a quarter of the limit each); 1 for shorter ones."""
    return 1 if iteration_s <= long_iteration_s else math.ceil(iteration_s * _SLICES_WHEN_LONG / long_iteration_s)


def measure(
    session: Session,
    send: Callable[[dict[str, Any]], None],
    go: threading.Event,
    stop: threading.Event,
    *,
    long_iteration_s: float,
) -> None:
    """Wait at the barrier for `go`, then step and report until `stop`.

    The first step, or the second where the first looks long (it may have compiled), finds the length
    of an iteration and so the number of parts; messages carry ``settled`` from the step on at which
    that number is final.
    """
    go.wait()
    parts, steps, settled, last_peak_s = first_parts(session), 0, False, 0.0
    untold: list[Work] = []
    begun_s, told_s = 0.0, -math.inf
    while not stop.is_set():
        started_s = time.monotonic()
        work = session.step(parts)
        session.synchronize()
        ended_s = time.monotonic()
        begun_s = begun_s if untold else started_s
        untold.append(work)
        if settled and ended_s < told_s + REPORT_PERIOD_S:
            continue
        steps += 1
        if not settled:
            wanted = settle_parts((ended_s - started_s) / max(share_done(session, work), 1e-6), long_iteration_s)
            settled = wanted == parts
        message = step_message(untold, ended_s, begun_s)
        message |= {"parts": parts, "settled": settled, "iterations": len(untold)}
        if not settled and steps == _STEPS_TO_SETTLE:
            parts, settled = wanted, True
        if ended_s - last_peak_s >= _PEAK_PERIOD_S:
            message["peak_memory_bytes"], last_peak_s = peak_of(session), ended_s
        send(message)
        untold, told_s = [], ended_s
    send({"type": "done", "reason": "stopped", "peak_memory_bytes": peak_of(session)})


def effective_of(session: Session) -> dict[str, Any]:
    """What took effect, as plain JSON values.

    Raises:
        WorkerError: it is nothing of that kind.
    """
    try:
        return dict(json.loads(json.dumps(to_json(session.effective), allow_nan=False, default=_plain)))
    except (TypeError, ValueError) as error:
        raise WorkerError(
            f"the workload tells what took effect (`effective`) in another form than values of JSON by name: {error}"
        ) from error


def _plain(value: Any) -> bool | float | str:
    """A number of numpy's as one of Python's.

    Raises:
        TypeError: it is no number.
    """
    if not isinstance(value, np.generic):
        raise TypeError(f"a {type(value).__name__} is none")
    return value.item()  # type: ignore[no-any-return]


def peak_of(session: Session) -> int | None:
    """The framework's own peak of device memory.

    Raises:
        WorkerError: it is no number of bytes.
    """
    peak = session.peak_memory_bytes()
    return None if peak is None else _count("peak_memory_bytes", peak)


def step_message(works: Sequence[Work], ended_s: float, started_s: float) -> dict[str, Any]:
    """A ``step`` message: what one or several iterations did, in plain numbers; told up to four times a second.

    What is counted adds up; the metrics are the last iteration's, those without a finite value left out.

    Raises:
        WorkerError: a count or a time that cannot be: its rate would be none.
    """
    columns = zip(_COUNTS, zip(*map(attrgetter(*_COUNTS), works), strict=True), strict=True)
    lengths = [length for work in works for length in work.lengths]
    if lengths and (set(map(type, lengths)) != {int} or min(lengths) < 0):
        lengths = [_count("a length", length) for length in lengths]
    metrics = {name: float(value) for name, value in works[-1].metrics.items() if math.isfinite(value)}
    return {
        "type": "step",
        "t": ended_s,
        "started": started_s,
        **{name: _count(name, _sum(column)) for name, column in columns},
        "lengths": lengths,
        "seconds": _phases(works),
        "metrics": metrics,
    }


def _phases(works: Sequence[Work]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for work in works:
        for phase, took_s in work.seconds.items():
            try:
                seconds[phase] = seconds.get(phase, 0.0) + took_s
            except TypeError:
                _number(f"seconds of {phase}", took_s)
                raise
    return {phase: _number(f"seconds of {phase}", took_s) for phase, took_s in seconds.items()}


def _sum(values: Sequence[Any]) -> Any:
    """The sum; of values that have none the one that is no number, for the message."""
    try:
        return sum(values)
    except TypeError:
        return next(value for value in values if not isinstance(value, Real))


def _count(name: str, value: Any) -> int:
    if type(value) is int and value >= 0:  # as nearly always
        return value
    number = _number(name, value)
    if not number.is_integer():
        raise WorkerError(f"the workload reports {name} {value!r} of a step: it must be a whole number")
    return int(number)


def _number(name: str, value: Any) -> float:
    if type(value) is float and 0 <= value < math.inf:
        return value
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise WorkerError(f"the workload reports {name} {value!r} of a step: it must be a number of at least 0")
    return float(value)


def run_steps(session: Session, steps: int, send: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    """Do at most `steps` steps, fewer when the session is finished; the doctor's checks run this way."""
    for _ in range(steps):
        if stop.is_set():
            break
        started_s = time.monotonic()
        try:
            work = session.step()
        except Finished:
            break
        session.synchronize()
        send(step_message([work], time.monotonic(), started_s))
    send({"type": "done", "reason": "steps", "effective": effective_of(session)})
