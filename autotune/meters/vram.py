"""Device memory: of everybody, of the probe's processes, and above what was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.device.nvml import LiveGpu
from autotune.meters.base import SampledMeter
from autotune.records import DeviceInfo


class VramMeter(SampledMeter):
    """``vram_device_used_bytes``, ``vram_process_bytes``, ``vram_delta_bytes``.

    The delta is the device's use above the first reading, which `start` takes before the probe's
    processes exist; it holds where NVML cannot see the container's pids, unless a neighbour moves.
    """

    def __init__(
        self, device: DeviceInfo, pids: Callable[[], Sequence[int]], period_s: float = 0.5, *, pynvml: Any = None
    ) -> None:
        """See `SampledMeter`; `pynvml` is the NVML binding, ``nvidia-ml-py`` by default."""
        super().__init__(device, pids, period_s)
        self._pynvml = pynvml
        self._gpu: LiveGpu | None = None
        self._baseline_bytes: int | None = None

    def open(self) -> None:
        """Open the GPU in use, if there is one."""
        self._gpu = LiveGpu(self.device.gpu, self._pynvml) if self.device.gpu else None
        self._baseline_bytes = self._gpu.used_bytes() if self._gpu else None

    def close(self) -> None:
        """Let the GPU go."""
        if self._gpu:
            self._gpu.close()

    def read(self) -> Mapping[str, float | None]:
        """Bytes now."""
        used = self._gpu.used_bytes() if self._gpu else None
        return {
            "vram_device_used_bytes": used,
            "vram_process_bytes": self._gpu.process_bytes(self.pids()) if self._gpu else None,
            "vram_delta_bytes": None
            if used is None or self._baseline_bytes is None
            else max(0, used - self._baseline_bytes),
        }
