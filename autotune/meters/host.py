"""What the probe's processes take of the host: memory, CPU time, shared memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from autotune.device.host import ROOT, pressure, ram_available_bytes, read_text, shm_space_bytes
from autotune.meters.base import SampledMeter
from autotune.records import DeviceInfo

PSS_SHARE = 0.02  # of a core at most: the kernel walks a process's pages under its memory lock


def pss_bytes(pid: int, root: Path = ROOT) -> int | None:
    """Proportional set size: private memory plus the share of what is shared; None without such a process.

    Where the kernel does not tell it (no ``smaps_rollup``, another user), the resident size,
    which counts shared pages in full.
    """
    match = re.search(r"^Pss:\s+(\d+) kB", read_text(root / f"proc/{pid}/smaps_rollup") or "", re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


class HostMeter(SampledMeter):
    """``ram_pss_bytes``, ``cpu_seconds`` (cumulative), ``processes``, ``shm_used_bytes``,
    ``host_ram_available_bytes``, ``cpu_pressure`` and ``memory_pressure`` (0 to 1).

    ``ram_pss_bytes`` is read less often when reading is slow, so that it never takes more than
    `PSS_SHARE` of a core.
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
        self._pss_due_s = -float("inf")
        self._cpu_s: dict[tuple[int, float], float] = {}

    def _ram_pss_bytes(self, pids: Sequence[int]) -> int | None:
        before_s = self._clock()
        sizes = [size for pid in pids if (size := pss_bytes(pid, self._root)) is not None]
        after_s = self._clock()
        self._pss_due_s = after_s + (after_s - before_s) / PSS_SHARE
        return sum(sizes) if sizes else None

    def _cpu_seconds(self, pids: Sequence[int]) -> tuple[float, int]:
        """(CPU seconds of all processes seen so far, how many run now); an ended one keeps its last value."""
        running = 0
        for pid in pids:
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                self._cpu_s[pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
            running += 1
        return sum(self._cpu_s.values()), running

    def read(self) -> Mapping[str, float | None]:
        """Values now."""
        pids = self.pids()
        cpu_seconds, running = self._cpu_seconds(pids)
        shm = shm_space_bytes(self._root)
        values: dict[str, float | None] = {
            "cpu_seconds": cpu_seconds,
            "processes": running,
            "shm_used_bytes": shm[0] - shm[1] if shm else None,
            "host_ram_available_bytes": ram_available_bytes(self._root),
            "cpu_pressure": pressure("cpu", self._root),
            "memory_pressure": pressure("memory", self._root),
        }
        if self._clock() >= self._pss_due_s:
            values["ram_pss_bytes"] = self._ram_pss_bytes(pids)
        return values
