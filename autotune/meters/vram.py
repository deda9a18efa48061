"""Device memory: of everybody, of the probe's processes, above what was there before, and of neighbours."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.device.live_gpu import memory_of
from autotune.meters.base import GpuMeter

NEIGHBOUR = "neighbour_bytes_"
"""Begins the name of a neighbour's readings; its pid ends it."""


class VramMeter(GpuMeter):
    """``vram_device_used_bytes``, ``vram_process_bytes``, ``vram_delta_bytes``, ``neighbour_bytes_<pid>``.

    The delta is the device's use above the first reading, which `start` takes before the probe's
    processes exist; it holds where NVML cannot see the container's pids, unless a neighbour moves.

    A neighbour is a process that is none of the probe's. In a container with its own pid numbers NVML
    lists the host's, ours among them unrecognised, so that one which appears during the probe is counted
    only once NVML has listed a process of ours by the number that we know.
    """

    _baseline_bytes: int | None = None

    def open(self) -> None:
        """Open the GPU and remember what is in use, and whose."""
        super().open()
        self._baseline_bytes = self.gpu.used_bytes() if self.gpu else None
        self._earlier = set((self.gpu.processes() if self.gpu else None) or ())
        self._ours: set[int] = set()
        self._recognised = False

    def read(self) -> Mapping[str, float | None]:
        """Bytes now."""
        pids = self.pids() if self.gpu else ()
        self._ours |= set(pids)
        used = self.gpu.used_bytes() if self.gpu else None
        listed = (self.gpu.processes() if self.gpu else None) or {}
        return {
            "vram_device_used_bytes": used,
            "vram_process_bytes": memory_of(pids, listed),
            "vram_delta_bytes": None
            if used is None or self._baseline_bytes is None
            else max(0, used - self._baseline_bytes),
            **{f"{NEIGHBOUR}{pid}": listed[pid] for pid in self._neighbours(listed)},
        }

    def _neighbours(self, listed: Mapping[int, int | None]) -> set[int]:
        if set(listed) - self._ours:  # one of ours may have started while NVML was asked
            self._ours |= set(self.pids())
        self._recognised |= bool(self._ours & set(listed))
        others = set(listed) - self._ours
        return others if self._recognised else others & self._earlier
