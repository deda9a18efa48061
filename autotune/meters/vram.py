"""Device memory: of everybody, of the probe's processes, and above what was there before."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.meters.base import GpuMeter


class VramMeter(GpuMeter):
    """``vram_device_used_bytes``, ``vram_process_bytes``, ``vram_delta_bytes``.

    The delta is the device's use above the first reading, which `start` takes before the probe's
    processes exist; it holds where NVML cannot see the container's pids, unless a neighbour moves.
    """

    _baseline_bytes: int | None = None

    def open(self) -> None:
        """Open the GPU and remember what is in use."""
        super().open()
        self._baseline_bytes = self.gpu.used_bytes() if self.gpu else None

    def read(self) -> Mapping[str, float | None]:
        """Bytes now."""
        used = self.gpu.used_bytes() if self.gpu else None
        return {
            "vram_device_used_bytes": used,
            "vram_process_bytes": self.gpu.process_bytes(self.pids()) if self.gpu else None,
            "vram_delta_bytes": None
            if used is None or self._baseline_bytes is None
            else max(0, used - self._baseline_bytes),
        }
