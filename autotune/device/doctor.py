"""The doctor's verdict: facts and measured rates in, findings with fixes out. Pure; nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tabulate import tabulate

from autotune.device import findings as topics
from autotune.device.findings import Finding
from autotune.device.prices import listed_price
from autotune.machine import DeviceInfo, GpuInfo, HostInfo
from autotune.units import format_bytes, format_count

_ORDER = {"fatal": 0, "warning": 1, "info": 2}
_UNITS = {"tflops": "TFLOP/s", "steps_per_s": "steps/s"}

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the doctor says.

    Attributes:
        device: what was inspected.
        checks: measured rates by name.
        errors: messages of checks that failed, by check.
        findings: the gravest first.
        fixes: what to do, in that order; the verdict's numbered list.
        fit: nothing fatal was found.
        verdict: one sentence.
    """

    device: DeviceInfo
    checks: Mapping[str, float]
    errors: Mapping[str, str]
    findings: tuple[Finding, ...]
    fixes: tuple[str, ...]
    fit: bool
    verdict: str


def _findings(device: DeviceInfo, checks: Mapping[str, float], errors: Mapping[str, str]) -> Iterable[Finding]:
    yield from topics.driver_answer(device)
    yield from topics.lost_gpus(device)
    yield from topics.driver_age(device)
    if device.gpu is not None and device.gpu.problem is None:
        yield from topics.divided(device)
        yield from topics.gpu_setup(device.gpu)
        yield from topics.gpu_health(device.gpu)
        yield from topics.neighbours(device.gpu)
    yield from topics.cpu_limits(device.host)
    yield from topics.memory_limits(device.host)
    yield from topics.packages(device)
    yield from topics.check_results(device, checks, errors)


def _verdict(device: DeviceInfo, found: tuple[Finding, ...]) -> str:
    fatal = [finding.what for finding in found if finding.severity == "fatal"]
    warnings = sum(finding.severity == "warning" for finding in found)
    name = f"{device.kind.upper()} ({device.name})"
    if fatal:
        return f"Not fit for training on {name}: {fatal[0]}."
    if warnings:
        return f"Fit for training on {name}, with {warnings} warning{'s' * (warnings > 1)}."
    return f"Fit for training on {name}."


def diagnose(device: DeviceInfo, checks: Mapping[str, float], errors: Mapping[str, str]) -> Diagnosis:
    """Judge a machine.

    Args:
        device: from `inspect_device`.
        checks: rates that the `doctor` workload measured, by metric name.
        errors: messages of its failed checks, by check; ``torch`` or ``jax`` for its process as a whole.
    """
    found = tuple(sorted(_findings(device, checks, errors), key=lambda finding: _ORDER[finding.severity]))
    return Diagnosis(
        device=device,
        checks=dict(checks),
        errors=dict(errors),
        findings=found,
        fixes=tuple(dict.fromkeys(f.fix for f in found if f.fix and f.severity != "info")),
        fit=all(finding.severity != "fatal" for finding in found),
        verdict=_verdict(device, found),
    )


def _known(value: object, unit: str = "") -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.0f}{unit}" if isinstance(value, float) else f"{value}{unit}"


def _gpu_rows(gpu: GpuInfo) -> list[Row]:
    if gpu.problem is not None:
        return [(f"GPU {gpu.index}", f"{gpu.name}: {gpu.problem}")]
    vram = [format_bytes(size) for size in (gpu.vram_total_bytes, gpu.vram_free_bytes, gpu.vram_used_bytes)]
    users = ", ".join(f"{p.pid} {p.name or 'unknown'} {format_bytes(p.used_bytes)}" for p in gpu.processes or ())
    capability = gpu.compute_capability
    return [
        (f"GPU {gpu.index}", f"{gpu.name} ({gpu.uuid or 'UUID unknown'})"),
        ("  VRAM", f"{vram[0]} total, {vram[1]} free, {vram[2]} used by {users or 'nobody seen'}"),
        ("  compute capability", "unknown" if capability is None else f"{capability[0]}.{capability[1]}"),
        (
            "  power",
            f"{_known(gpu.power_draw_w, ' W')} of {_known(gpu.power_limit_w, ' W')} "
            f"(default {_known(gpu.power_default_limit_w, ' W')})",
        ),
        (
            "  clocks",
            f"SM {_known(gpu.sm_clock_mhz)} of {_known(gpu.sm_clock_max_mhz, ' MHz')}, "
            f"memory {_known(gpu.memory_clock_mhz, ' MHz')}",
        ),
        ("  temperature", _known(gpu.temperature_c, " °C")),
        ("  throttled by", "unknown" if gpu.throttle_reasons is None else ", ".join(gpu.throttle_reasons) or "nothing"),
        ("  ECC", f"{_known(gpu.ecc_enabled)}, uncorrected errors {_known(gpu.ecc_uncorrected)}"),
        ("  MIG, persistence", f"{_known(gpu.mig_enabled)}, {_known(gpu.persistence_enabled)}"),
        ("  compute mode", _known(gpu.compute_mode)),
    ]


def _host_rows(host: HostInfo) -> list[Row]:
    limit = (
        "no container limit" if host.ram_cgroup_limit_bytes is None else f"limit {format_bytes(host.ram_limit_bytes)}"
    )
    load = "unknown" if host.load_1m is None else f"{host.load_1m:.2f}"
    return [
        ("CPU", f"{host.cpu_model}, {host.cpu_cores_visible} cores visible, {host.cpu_cores_allowed:g} allowed"),
        ("load, pids limit", f"{load}, {host.pids_limit or 'none'}"),
        ("RAM", f"{format_bytes(host.ram_total_bytes)}, {format_bytes(host.ram_available_bytes)} free, {limit}"),
        ("/dev/shm", f"{format_bytes(host.shm_total_bytes)}, {format_bytes(host.shm_free_bytes)} free"),
        ("disk free", format_bytes(host.disk_free_bytes)),
        ("boot", f"{host.boot_time or 'unknown'} ({host.boot_id})"),
        ("system", f"{host.hostname}, kernel {host.kernel}, Python {host.python}"),
        (
            "packages",
            ", ".join(
                f"{name} {version or 'missing'}"
                for name, version in host.packages.items()
                if version or name in topics.EXTRAS
            ),
        ),
    ]


def check_rows(checks: Mapping[str, float]) -> list[Row]:
    """(check, rate with its unit)."""
    rows = []
    for name, value in checks.items():
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        stem = next((name.removesuffix(f"_{ending}") for ending in _UNITS if name.endswith(ending)), name)
        rows.append((stem.replace("_", " "), f"{format_count(value)} {unit}".strip()))
    return rows


def device_rows(device: DeviceInfo) -> list[Row]:
    """(property, value) of everything that was inspected; what is not known is "unknown"."""
    driver = (
        "none" if device.source is None else f"{device.driver or 'unknown'}, CUDA {device.cuda_driver or 'unknown'}"
    )
    price = listed_price(device)
    rows = [
        ("device", f"{device.kind.upper()}: {device.name}"),
        ("NVIDIA driver", f"{driver} (torch needs {device.host.packages.get('torch-cuda') or 'none'})"),
    ]
    if device.gpus:
        rows += [("CUDA MPS", _known(device.mps_active)), *(row for gpu in device.gpus for row in _gpu_rows(gpu))]
    return [*rows, *_host_rows(device.host), ("listed price", price.describe() if price else "none for this device")]


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """The text that ``autotune doctor`` prints, ending in the verdict and the numbered fixes."""
    parts = [tabulate(device_rows(diagnosis.device), tablefmt="plain")]
    if diagnosis.checks:
        parts.append("measured\n" + tabulate(check_rows(diagnosis.checks), tablefmt="plain"))
    if diagnosis.findings:
        lines = [
            f"{f.severity:8} {f.what}\n         {f.cause}{f' -> {f.fix}' if f.fix else ''}" for f in diagnosis.findings
        ]
        parts.append("\n".join(lines))
    fixes = [f"  {number}. {fix}" for number, fix in enumerate(diagnosis.fixes, start=1)]
    parts.append("\n".join([diagnosis.verdict, *fixes]))
    return "\n\n".join(parts)
