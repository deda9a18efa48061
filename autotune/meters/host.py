"""What the probe's processes take of the host: memory, CPU time, shared memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.device.host import ROOT, busy_cpu_clock, listed_bytes, pressure, read_text, shm_space_bytes
from autotune.machine import DeviceInfo
from autotune.meters.base import SampledMeter

PSS_SHARE = 0.001  # of a core at most: the kernel walks a process's pages under its memory lock
_STARTING_SHARE = 0.01
_STARTING_S = 60.0
"""For so long after a process was first seen its sizes are read at `_STARTING_SHARE` while it maps files."""
_MAPPED_BYTES = 4 * 2**20
"""Files mapped since the last reading that are worth another one."""
PRESSURE_PERIOD_S = 2.0
"""The kernel works its averages out as often (PSI_FREQ in its kernel/sched/psi.c)."""


@dataclass(frozen=True, kw_only=True)
class Resident:
    """Memory of a process that no file backs, and that one does (libraries, shared memory).

    `spike_bytes` is how far its largest size so far lies above the one now: memory that a learner takes for
    milliseconds falls between readings; the kernel keeps the high-water mark.
    """

    private_bytes: int
    file_bytes: int
    spike_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A process's memory when its pages were last counted."""

    pss_bytes: int
    private_bytes: int
    file_bytes: int


def pss_bytes(pid: int, root: Path = ROOT) -> int | None:
    """Proportional set size: private memory plus the share of what is shared; None without such a process.

    Where the kernel does not tell it (no ``smaps_rollup``, another user), the resident size,
    which counts shared pages in full.
    """
    size = listed_bytes(read_text(f"{root}/proc/{pid}/smaps_rollup") or "", "Pss")
    if size is not None:
        return size
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def process_times(pid: int, root: Path = ROOT) -> tuple[float, int, int] | None:
    """(CPU seconds, threads, start in ticks since boot) of a process, None without it; ``/proc/PID/stat``, proc(5)."""
    fields = (read_text(f"{root}/proc/{pid}/stat") or "").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[17]), int(fields[19])


def resident(pid: int, root: Path = ROOT) -> Resident:
    """A process's resident memory; zeros when it cannot be read (``/proc/PID/status``, proc(5))."""
    status = read_text(f"{root}/proc/{pid}/status") or ""
    now, peak, files, shared = (listed_bytes(status, name) or 0 for name in ("VmRSS", "VmHWM", "RssFile", "RssShmem"))
    backed = files + shared
    return Resident(private_bytes=now - backed, file_bytes=backed, spike_bytes=max(0, peak - now))


def pressures(root: Path = ROOT) -> dict[str, float | None]:
    """``cpu_pressure`` and ``memory_pressure``."""
    return {f"{resource}_pressure": pressure(resource, root) for resource in ("cpu", "memory")}


class HostMeter(SampledMeter):
    """``ram_pss_bytes``, ``ram_peak_bytes`` (the same with each process at its largest so far), ``cpu_seconds``
    (cumulative), ``processes``, ``threads``, ``others_cpu_seconds`` (cumulative, of what is neither the probe nor
    this process), ``shm_used_bytes``, ``cpu_pressure`` and ``memory_pressure`` (0 to 1).

    The kernel counts a proportional set size page by page (0.1 s for some GiB), so that it is read as seldom as keeps
    to `PSS_SHARE`; in between it is the last one plus the growth of private memory. All processes' sizes are read
    together, and again when there is a new process or one that starts has mapped more: one read before a library was
    shared and another one after would count it more than once, or not at all.
    """  # noqa: D205

    def __init__(
        self,
        device: DeviceInfo,
        pids: Callable[[], Sequence[int]],
        period_s: float = 0.5,
        *,
        root: Path = ROOT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `SampledMeter`; `root` is where ``proc`` lies, `clock` times the reading of memory."""
        super().__init__(device, pids, period_s)
        self._root = root
        self._clock = clock
        self._busy_cpu_seconds = busy_cpu_clock(root)
        self._sizes: dict[int, _Size] = {}
        self._asked: frozenset[int] = frozenset()
        self._newest_s = self._read_s = self._took_s = 0.0
        self._cpu_s: dict[tuple[int, int], float] = {}
        self._pressures: dict[str, float | None] = {}
        self._pressed_s = -math.inf

    def _ram_pss_bytes(self, now: Mapping[int, Resident]) -> int | None:
        self._sizes = {pid: known for pid, known in self._sizes.items() if pid in now}
        started_s, new = self._clock(), not self._asked.issuperset(now)
        if new:
            self._newest_s = started_s
        if new or started_s >= self._due_s(now):
            sizes = {pid: pss_bytes(pid, self._root) for pid in now}
            self._sizes = {
                pid: _Size(pss_bytes=size, private_bytes=now[pid].private_bytes, file_bytes=now[pid].file_bytes)
                for pid, size in sizes.items()
                if size is not None
            }
            self._asked, self._read_s = frozenset(now), self._clock()
            self._took_s = self._read_s - started_s
        grown = [now[pid].private_bytes - known.private_bytes for pid, known in self._sizes.items()]
        return sum(known.pss_bytes for known in self._sizes.values()) + sum(grown) if self._sizes else None

    def _due_s(self, now: Mapping[int, Resident]) -> float:
        """When the sizes of known processes, which take this much now, are to be read again."""
        mapping = any(abs(now[pid].file_bytes - known.file_bytes) > _MAPPED_BYTES for pid, known in self._sizes.items())
        starting = mapping and self._read_s < self._newest_s + _STARTING_S
        return self._read_s + self._took_s / (_STARTING_SHARE if starting else PSS_SHARE)

    def _cpu_seconds(self, pids: Sequence[int]) -> tuple[float, int, int]:
        """(CPU seconds of all seen so far, processes and threads that run now); an ended one keeps its last value."""
        running = threads = 0
        for pid in pids:
            if (found := process_times(pid, self._root)) is None:
                continue
            cpu_s, own_threads, started = found
            self._cpu_s[pid, started] = cpu_s
            threads += own_threads
            running += 1
        return sum(self._cpu_s.values()), running, threads

    def _pressure(self) -> Mapping[str, float | None]:
        if (now_s := self._clock()) >= self._pressed_s + PRESSURE_PERIOD_S:
            self._pressures = pressures(self._root)
            self._pressed_s = now_s
        return self._pressures

    def read(self) -> Mapping[str, float | None]:
        """Values now."""
        pids = self.pids()
        cpu_seconds, running, threads = self._cpu_seconds(pids)
        memory = {pid: resident(pid, self._root) for pid in pids}
        everybody_s, ram = self._busy_cpu_seconds(), self._ram_pss_bytes(memory)
        shm = shm_space_bytes(self._root)
        return {
            "ram_pss_bytes": ram,
            "ram_peak_bytes": None if ram is None else ram + sum(each.spike_bytes for each in memory.values()),
            "cpu_seconds": cpu_seconds,
            "processes": running,
            "threads": threads,
            "others_cpu_seconds": None if everybody_s is None else everybody_s - cpu_seconds - time.process_time(),
            "shm_used_bytes": shm[0] - shm[1] if shm else None,
            **self._pressure(),
        }
