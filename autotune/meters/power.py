"""How hard the GPU works: power, energy, clock, temperature, utilisation, throttling."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.meters.base import GpuMeter

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


class PowerMeter(GpuMeter):
    """``power_w``, ``energy_j`` (a counter since the driver was loaded), ``sm_clock_mhz``, ``temperature_c``,
    ``gpu_utilisation`` (0 to 1), ``throttle_thermal`` and ``throttle_power_brake`` (0 or 1).
    """  # noqa: D205

    def read(self) -> Mapping[str, float | None]:
        """Values now."""
        if self.gpu is None:
            return dict.fromkeys(NAMES)
        reasons = self.gpu.throttle_reasons()
        return {
            "power_w": self.gpu.power_w(),
            "energy_j": self.gpu.energy_j(),
            "sm_clock_mhz": self.gpu.sm_clock_mhz(),
            "temperature_c": self.gpu.temperature_c(),
            "gpu_utilisation": self.gpu.utilisation(),
            "throttle_thermal": None if reasons is None else float(bool(THERMAL & set(reasons))),
            "throttle_power_brake": None if reasons is None else float("hw_power_brake" in reasons),
        }
