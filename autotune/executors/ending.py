"""The end of a probe, within a bound however a driver or a process hangs."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TypeVar

from autotune.device.live_gpu import LiveGpu
from autotune.executors.process import WorkerProcess
from autotune.machine import GpuInfo
from autotune.meters.base import say_silent
from autotune.meters.protocol import Meter
from autotune.records import Reading
from autotune.worker.family import WITHIN_S

T = TypeVar("T")
END_S = 10.0
"""From the end of the window to the end of the probe, all that may hang included."""
_START_METERS_S = 6.0
_STOP_METERS_S = 4.0
_KILL_S = WITHIN_S + 0.5
_CLEAN_SLACK_BYTES = 64 * 2**20
_POLL_S = 0.25


def side_by_side(calls: Sequence[Callable[[], T]], timeout_s: float) -> list[T | None]:
    """The results of calls that run at once, None for those not done in time; these are left to themselves.

    Where the system refuses further threads (a worker took all that the container may have) a call runs in turn.
    """
    results: list[T | None] = [None] * len(calls)

    def run(index: int) -> None:
        with contextlib.suppress(RuntimeError):  # a meter's own thread
            results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    deadline_s = time.monotonic() + timeout_s
    started = []
    for thread in threads:
        try:
            thread.start()
            started.append(thread)
        except RuntimeError:
            thread.run()
    for thread in started:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return list(results)


def start_meters(meters: Sequence[Meter]) -> None:
    """Start them all; one that hangs holds nobody up for long."""
    side_by_side([partial(_asked, meter, meter.start) for meter in meters], _START_METERS_S)


def _asked(meter: Meter, call: Callable[[], T]) -> T | None:
    """What a method of a meter gives; None where it fails, which an installed one may do in its own way."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the probe goes on without this meter
        say_silent(meter, error)
        return None


def stop_all(meters: Sequence[Meter], workers: Sequence[WorkerProcess], grace_s: float) -> tuple[Reading, ...]:
    """Stop the meters, then end the workers, within `END_S` together; the readings, by meter.

    Args:
        meters: first, so that what the ending itself does is not read.
        workers: each gets SIGTERM, and SIGKILL after `grace_s` seconds.
        grace_s: for a program to end by itself, shortened to what the bound leaves.
    """
    deadline_s = time.monotonic() + END_S
    taken = side_by_side([partial(_asked, meter, meter.stop) for meter in meters], _STOP_METERS_S)
    for worker in workers:
        worker.send("stop")
    left_s = deadline_s - time.monotonic()
    grace_s = min(grace_s, left_s - _KILL_S)
    side_by_side([partial(worker.kill, grace_s=grace_s) for worker in workers], left_s)
    return tuple(plain for readings in taken for plain in _plain_readings(readings))


def _plain_readings(given: object) -> list[Reading]:
    """What an installed meter gives, as far as it is readings."""
    return [_plain(one) for one in given if isinstance(one, Reading)] if isinstance(given, Iterable) else []


def _plain(reading: Reading) -> Reading:
    """A reading whose value is a number of Python's own or None, whatever an installed meter gives (NaN, numpy's)."""
    value = reading.value
    if value is None or (type(value) in (float, int) and math.isfinite(value)):
        return reading
    return replace(reading, value=float(value) if isinstance(value, Real) and math.isfinite(value) else None)


def wait_clean(gpu: GpuInfo | None, before_bytes: float | None, timeout_s: float) -> None:
    """Wait until device memory is back to what it was before the probe, or for `timeout_s`."""
    if gpu is not None and before_bytes is not None and timeout_s > 0:
        side_by_side([partial(_poll_clean, gpu, before_bytes, time.monotonic() + timeout_s)], timeout_s)


def _poll_clean(gpu: GpuInfo, before_bytes: float, deadline_s: float) -> None:
    live = LiveGpu(gpu)
    while (live.used_bytes() or 0) > before_bytes + _CLEAN_SLACK_BYTES and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    live.close()
