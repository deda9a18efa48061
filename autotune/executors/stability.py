"""The stability verdict on a probe: what it saw that a long training would not survive. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autotune.device.xids import describe_xid
from autotune.executors import leak, window
from autotune.executors.window import Step
from autotune.machine import DeviceInfo, GpuProcess
from autotune.meters.health import XID
from autotune.meters.summary import first, last, mean, names, peak, series
from autotune.meters.vram import NEIGHBOUR
from autotune.records import Limits, ProbeResult, Reading
from autotune.stats import Trace, sampling_half_width, total_rate
from autotune.units import format_bytes
from autotune.workloads.protocol import ALLOC_RETRIES, SEVERAL_TOTALS

SHARED, SHARED_CPU, SLOWING = "shared", "shared cpu", "slowing"
MARKS = {
    "extrapolated": "iterations too long to measure whole, put together from their phases",
    SHARED: "another process used the GPU meanwhile",
    SHARED_CPU: "other processes kept much of the CPU busy meanwhile",
    SLOWING: "its second half was slower than its first",
    SEVERAL_TOTALS: "the program told several totals of steps, of which the largest counts",
}
"""Flags of a result, and what they mean."""
_BRAKE_SHARE_MAX = 0.05
_SLOWER_MAX = 0.05
_OTHERS_SHARE_MAX = 0.10


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a verdict rests on.

    Attributes:
        result: the figures so far.
        readings: of every meter, from before the processes until before their end.
        device: as inspected before.
        limits: what a stable point may use.
        opened: the windows, by process; empty when the probe failed.
    """

    result: ProbeResult
    readings: Sequence[Reading]
    device: DeviceInfo
    limits: Limits
    opened: Sequence[Sequence[Step]] = ()


def judge(seen: Seen) -> ProbeResult:
    """The result with its verdict, its flags and its neighbours.

    A measured point that any check objects to is ``unstable``, with every objection in the detail. A failed
    one stays what it is; its detail gains the errors that the device reported.
    """
    result = seen.result
    others = neighbours(seen.readings, seen.device)
    result = replace(result, neighbours=others, flags=(*result.flags, *_flags(seen, others)))
    if result.status != "ok":
        return replace(result, detail="\n".join(filter(None, [_xids(seen), result.detail])))
    objections = [text for check in _CHECKS if (text := check(seen))]
    return replace(result, status="unstable", detail="; ".join(objections)) if objections else result


def confirmed_drift(results: Sequence[ProbeResult]) -> bool:
    """Whether a point slowed down within its final window in two launches or more: then it is not stable.

    Args:
        results: the launches of one point.
    """
    return sum(SLOWING in result.flags for result in results if result.grade == "final") >= 2


def neighbours(readings: Sequence[Reading], device: DeviceInfo) -> tuple[GpuProcess, ...]:
    """Other processes that held memory on the GPU (32 MiB or an unknown amount), each with its peak."""
    known = {process.pid: process.name for process in device.gpu.processes or ()} if device.gpu else {}
    found = []
    for name in names(readings, NEIGHBOUR):
        pid, used = int(name.removeprefix(NEIGHBOUR)), peak(readings, name)
        found.append(GpuProcess(pid=pid, used_bytes=None if used is None else int(used), name=known.get(pid)))
    return tuple(sorted((process for process in found if process.computes), key=lambda process: process.pid))


def slows(traces: Sequence[Trace]) -> bool:
    """Whether the second half of a window is over 5 % slower than the first, beyond both halves' 95 % intervals.

    Args:
        traces: of each process; halves are of its iterations.
    """
    early = [_part(trace, 0, len(trace.seconds) // 2) for trace in traces]
    late = [_part(trace, (len(trace.seconds) + 1) // 2, len(trace.seconds)) for trace in traces]
    if any(len(trace.seconds) < 2 for trace in (*early, *late)):
        return False
    before, after = (sum(total_rate(trace) for trace in half) for half in (early, late))
    uncertainty = math.hypot(*(sampling_half_width(half)[0] for half in (early, late)))
    return before - after > max(_SLOWER_MAX * before, uncertainty)


def _part(trace: Trace, start: int, end: int) -> Trace:
    return Trace(seconds=trace.seconds[start:end], steps=trace.steps[start:end])


def _flags(seen: Seen, others: Sequence[GpuProcess]) -> list[str]:
    busy, allowed = seen.result.others_cpu_cores, seen.device.host.cpu_cores_allowed
    final = bool(seen.opened) and seen.result.grade == "final"
    marks = {
        SHARED: bool(others),
        SHARED_CPU: busy is not None and busy > _OTHERS_SHARE_MAX * allowed,
        SLOWING: final and slows([window.trace(steps) for steps in seen.opened]),
        SEVERAL_TOTALS: any(steps[-1].metrics.get(SEVERAL_TOTALS) for steps in seen.opened),
    }
    return [flag for flag, holds in marks.items() if holds]


def _vram_headroom(seen: Seen) -> str:
    own, total = seen.result.vram_peak_bytes or 0, seen.device.vram_total_bytes
    used = max(own, peak(seen.readings, "vram_device_used_bytes") or 0)
    if not total or used <= seen.limits.vram_fraction * total:
        return ""
    return f"VRAM peak at {used / total:.0%} of the device" + (", all programs together" if used > own else "")


def _ram_headroom(seen: Seen) -> str:
    used, limit = seen.result.ram_peak_bytes, seen.device.host.ram_limit_bytes
    if not used or used <= seen.limits.ram_fraction * limit:
        return ""
    return f"RAM peak at {used / limit:.0%} of the host's limit"


def _braking(seen: Seen) -> str:
    shares = {name: mean(seen.readings, name) or 0.0 for name in ("throttle_thermal", "throttle_power_brake")}
    return ", ".join(f"{name} in {share:.0%} of samples" for name, share in shares.items() if share > _BRAKE_SHARE_MAX)


def _xids(seen: Seen) -> str:
    numbers = sorted(int(name.removeprefix(XID)) for name in names(seen.readings, XID))
    whose = " (a neighbour's, perhaps)" if numbers and neighbours(seen.readings, seen.device) else ""
    return "; ".join(describe_xid(number) for number in numbers) + whose


def _device_changes(seen: Seen) -> str:
    """Memory errors and repartitioning make a measurement worth nothing, however good it looks."""
    errors = [value for _, value in series(seen.readings, "ecc_uncorrected")]
    found = []
    if errors and errors[-1] > errors[0]:
        found.append(f"{errors[-1] - errors[0]:.0f} uncorrected memory errors (ECC) of the GPU during the probe")
    before, after = first(seen.readings, "vram_total_bytes"), last(seen.readings, "vram_total_bytes")
    if before is not None and after is not None and before != after:
        found.append(f"the device's memory changed from {format_bytes(before)} to {format_bytes(after)}")
    if first(seen.readings, "mig_enabled") != last(seen.readings, "mig_enabled"):
        found.append("MIG was switched during the probe")
    return "; ".join(found) + (": measure again" if found else "")


def _allocation_retries(seen: Seen) -> str:
    for steps in seen.opened:
        counts = [step.metrics.get(ALLOC_RETRIES, 0.0) for step in steps]
        rose = [after > before for before, after in itertools.pairwise(counts)]
        if any(one and two for one, two in itertools.pairwise(rose)):
            return (
                "the framework's allocator had to free its cache and try again in two successive iterations: "
                "device memory is nearly full"
            )
    return ""


def _leaks(seen: Seen) -> str:
    """Final windows only: a quick one is too short to tell a leak from memory that settles."""
    if seen.result.grade != "final" or not seen.opened:
        return ""
    begin_s, end_s = min(steps[0].t for steps in seen.opened), max(steps[-1].t for steps in seen.opened)
    iteration_s = statistics.median(step.t - step.started for steps in seen.opened for step in steps)
    limits = seen.limits
    places = (
        ("VRAM", "vram_process_bytes", limits.vram_fraction, seen.device.vram_total_bytes),
        ("RAM", "ram_pss_bytes", limits.ram_fraction, seen.device.host.ram_limit_bytes),
    )
    found = []
    for place, name, fraction, total in places:
        if not total:
            continue
        readings = series(seen.readings, name, begin_s, end_s)
        hours = leak.hours_to(fraction * total, readings, iteration_s=iteration_s)
        if hours is not None:
            found.append(f"{place} of the processes grows: at its limit after about {hours:.2g} hours")
    return "; ".join(found)


_CHECKS: tuple[Callable[[Seen], str], ...] = (
    _vram_headroom,
    _ram_headroom,
    _braking,
    _xids,
    _device_changes,
    _allocation_retries,
    _leaks,
)
