"""How hard the GPU works: power, energy, clock, temperature, utilisation, throttling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.device.nvml import LiveGpu
from autotune.meters.base import SampledMeter
from autotune.records import DeviceInfo

THERMAL = {"sw_thermal", "hw_thermal"}
NAMES = (
    "power_w",
    "energy_j",
    "sm_clock_mhz",
    "temperature_c",
    "gpu_utilisation",
    "throttle_thermal",
    "throttle_power_brake",
)


class PowerMeter(SampledMeter):
    """``power_w``, ``energy_j`` (a counter since the driver was loaded), ``sm_clock_mhz``, ``temperature_c``,
    ``gpu_utilisation`` (0 to 1), ``throttle_thermal`` and ``throttle_power_brake`` (0 or 1).
    """  # noqa: D205

    def __init__(
        self, device: DeviceInfo, pids: Callable[[], Sequence[int]], period_s: float = 0.5, *, pynvml: Any = None
    ) -> None:
        """See `SampledMeter`; `pynvml` is the NVML binding, ``nvidia-ml-py`` by default."""
        super().__init__(device, pids, period_s)
        self._pynvml = pynvml
        self._gpu: LiveGpu | None = None

    def open(self) -> None:
        """Open the GPU in use, if there is one."""
        self._gpu = LiveGpu(self.device.gpu, self._pynvml) if self.device.gpu else None

    def close(self) -> None:
        """Let the GPU go."""
        if self._gpu:
            self._gpu.close()

    def read(self) -> Mapping[str, float | None]:
        """Values now."""
        if self._gpu is None:
            return dict.fromkeys(NAMES)
        reasons = self._gpu.throttle_reasons()
        return {
            "power_w": self._gpu.power_w(),
            "energy_j": self._gpu.energy_j(),
            "sm_clock_mhz": self._gpu.sm_clock_mhz(),
            "temperature_c": self._gpu.temperature_c(),
            "gpu_utilisation": self._gpu.utilisation(),
            "throttle_thermal": None if reasons is None else float(bool(THERMAL & set(reasons))),
            "throttle_power_brake": None if reasons is None else float("hw_power_brake" in reasons),
        }
