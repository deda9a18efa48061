"""The machine that was measured."""

from __future__ import annotations

from autotune.machine import DeviceInfo, GpuInfo
from autotune.report.facts import Facts
from autotune.report.wording import UNKNOWN, table, text
from autotune.units import counted, format_bytes, format_count


def render(facts: Facts) -> str:
    """Device, host and software as one table."""
    if facts.device is None:
        return "The device was not recorded in this run."
    rows = [*_gpu_rows(facts.device), *_host_rows(facts.device)]
    return table(["", ""], [[name, text(value)] for name, value in rows], numbers_from=2)


def _gpu_rows(device: DeviceInfo) -> list[tuple[str, str]]:
    gpu = device.gpu
    if gpu is None:
        return [("device", f"{device.name} (no GPU in use)")]
    rows = [
        ("device", device.name),
        ("GPU memory", format_bytes(gpu.vram_total_bytes)),
        ("driver, CUDA", f"{device.driver or UNKNOWN}, {device.cuda_driver or UNKNOWN}"),
        ("power limit", _watts(gpu.power_limit_w)),
    ]
    if computing := [process for process in gpu.processes or () if process.computes]:
        others = counted(len(computing), "process", "processes")
        rows.append(("others on the GPU", f"memory held by {others}: figures are of a shared device"))
    if problem := _problem(gpu):
        rows.append(("problem", problem))
    return rows


def _watts(power_w: float | None) -> str:
    return UNKNOWN if power_w is None else f"{format_count(power_w)} W"


def _problem(gpu: GpuInfo) -> str:
    throttled = ", ".join(gpu.throttle_reasons or ())
    return "; ".join(part for part in (gpu.problem or "", f"throttled: {throttled}" if throttled else "") if part)


def _host_rows(device: DeviceInfo) -> list[tuple[str, str]]:
    host = device.host
    packages = ", ".join(f"{name} {version}" for name, version in host.packages.items() if version)
    cores = f"{host.cpu_cores_allowed:g} of {host.cpu_cores_visible} cores allowed"
    return [
        ("CPU", f"{host.cpu_model}, {cores}"),
        ("RAM limit", format_bytes(host.ram_limit_bytes)),
        ("load before", UNKNOWN if host.load_1m is None else f"{host.load_1m:.2f} (1 minute)"),
        ("kernel", host.kernel),
        ("Python", host.python),
        ("packages", packages or UNKNOWN),
    ]
