"""What limits a measured point, in one sentence, from its phases, cores and GPU utilisation."""

from __future__ import annotations

from autotune.machine import DeviceInfo
from autotune.records import ProbeResult
from autotune.units import format_count

_CPU_SATURATED = 0.85
_GPU_SATURATED = 0.90
_PHASE_NAMES = {
    "env": "env stepping",
    "infer": "inference",
    "transfer": "transfers between host and device",
    "learn": "learning",
}


def limited_by(result: ProbeResult, device: DeviceInfo) -> str:
    """One sentence for a measured point, empty where nothing is known.

    The phase with the most seconds per step names the work; CPU cores kept busy and GPU
    utilisation say which part of the machine does it.
    """
    phases = {name: seconds for name, seconds in result.phase_seconds.items() if seconds > 0}
    if not phases or result.sps is None:
        return ""
    name, seconds = max(phases.items(), key=lambda item: item[1])
    share = seconds / sum(phases.values())
    work = _PHASE_NAMES.get(name, name)
    return f"{work} takes {share:.0%} of the time{_hardware(result, device)}{_advice(name, share, result, device)}"


def _hardware(result: ProbeResult, device: DeviceInfo) -> str:
    cores, allowed = result.cpu_cores, device.host.cpu_cores_allowed
    parts = []
    if cores is not None:
        full = ", saturated" if cores >= _CPU_SATURATED * allowed else ""
        parts.append(f"{cores:.1f} of {allowed:g} CPU cores busy{full}")
    if result.gpu_utilisation is not None:
        parts.append(f"GPU {result.gpu_utilisation:.0%} utilised")
    return f" ({'; '.join(parts)})" if parts else ""


def _advice(name: str, share: float, result: ProbeResult, device: DeviceInfo) -> str:
    if device.kind == "cpu":
        return ""
    if name == "env" and share > 0.5 and (result.gpu_utilisation or 0) < _GPU_SATURATED:
        return (
            f": {device.host.cpu_cores_allowed:g} CPU cores feed {format_count(result.sps)} SPS; "
            "a faster GPU buys nothing, more cores do"
        )
    if name == "learn" and share > 0.5 and (result.gpu_utilisation or 0) >= _GPU_SATURATED:
        return ": a faster GPU or a lower precision helps, more cores do not"
    return ""
