"""What may be wrong with a machine: one pure function a topic, each from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from autotune.machine import DeviceInfo, GpuInfo, HostInfo
from autotune.units import format_bytes

Severity = Literal["fatal", "warning", "info"]

SHM_LOW_BYTES = 2**30  # Docker gives 64 MiB unless told otherwise
RAM_LOW_BYTES = 4 * 2**30
DISK_LOW_BYTES = 5 * 2**30
PIDS_LOW = 1000
LOAD_HIGH = 0.5  # of the allowed cores, before anything of ours runs
UNSEEN_VRAM_BYTES = 2**30
EMULATED_BELOW = 0.5  # of the fp16 rate
_LOW_PRECISION = ("matmul_tf32", "matmul_bf16", "matmul_fp16")

_MORE_RAM = "stop other programs, raise the container's memory limit, or rent more memory"

EXTRAS = {"torch": "torch", "jax": "jax", "envpool": "envpool", "pytest-benchmark": "bench"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know about the machine.

    Attributes:
        severity: ``fatal`` (training on this device cannot work), ``warning`` (it costs speed, money or
            safety) or ``info``.
        what: was seen.
        cause: why, as far as known.
        fix: what to do; empty where there is nothing to do.
    """

    severity: Severity
    what: str
    cause: str
    fix: str


def _finding(severity: Severity, what: str, cause: str, fix: str = "") -> Finding:
    return Finding(severity=severity, what=what, cause=cause, fix=fix)


_NVML_REMEDIES: tuple[tuple[str, Severity, str], ...] = (
    ("library not found", "info", "for a GPU: install the NVIDIA driver, or start the container with --gpus all"),
    ("driver not loaded", "warning", "load the driver: sudo modprobe nvidia, or reboot"),
    ("mismatch", "warning", "the driver was updated under a running system: reboot"),
    ("permission", "warning", "give this user access to /dev/nvidia*, or start the container with --gpus all"),
    ("gave no answer", "warning", "the driver hangs: look for Xid errors in dmesg, then reboot"),
    ("not installed", "warning", "pip install nvidia-ml-py"),
)


def driver_answer(device: DeviceInfo) -> Iterator[Finding]:
    """Whether and how the NVIDIA driver answered, and which of its GPUs is used."""
    problem = device.nvml_problem
    if problem is not None:
        severity, fix = next(
            ((s, f) for words, s, f in _NVML_REMEDIES if words in problem.lower()), ("warning", "run nvidia-smi")
        )
        if device.source is None:
            used = "CPU" if device.kind == "cpu" else device.kind.upper()
            yield _finding(severity, f"no NVIDIA GPU or driver answers; the {used} is used", f"NVML: {problem}", fix)
        else:
            yield _finding("info", "GPU read through nvidia-smi, not NVML: no live readings", f"NVML: {problem}", fix)
    elif not device.gpus:
        yield _finding("info", "the NVIDIA driver lists no GPU; the CPU is used", "none fitted or passed in")
    elif device.gpu is None and any(gpu.problem is None for gpu in device.gpus):
        cause = "the CPU was asked for, or CUDA_VISIBLE_DEVICES hides them"
        yield _finding("info", f"{len(device.gpus)} GPU present, the {device.kind.upper()} is used", cause)
    elif len(device.gpus) > 1:
        yield _finding(
            "info",
            f"training uses one of {len(device.gpus)} GPUs: index {device.gpu_index}",
            "one device a run",
            "run one on each, with CUDA_VISIBLE_DEVICES set to its index or UUID",
        )
        if not device.pci_order and len({gpu.name for gpu in device.gpus if gpu.problem is None}) > 1:
            yield _finding(
                "warning",
                f"the GPUs differ; index {device.gpu_index} is {device.name}, as nvidia-smi counts",
                "CUDA by itself counts the fastest first: cuda:0 of another program may be another GPU",
                "export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID in CUDA_VISIBLE_DEVICES",
            )


def lost_gpus(device: DeviceInfo) -> Iterator[Finding]:
    """GPUs that fell off the bus."""
    alone = all(gpu.problem is not None for gpu in device.gpus)
    for gpu in device.gpus:
        if gpu.problem is not None:
            yield _finding(
                "fatal" if alone or gpu.index == device.gpu_index else "warning",
                f"GPU {gpu.index} does not answer: {gpu.problem}",
                "it fell off the bus (heat, power, hardware fault) or needs a reset",
                "reboot; if it returns, rent another machine",
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def driver_age(device: DeviceInfo) -> Iterator[Finding]:
    """The driver against the CUDA that torch was built for.

    A driver runs every minor version of its major version
    (https://docs.nvidia.com/deploy/cuda-compatibility/), except code that is compiled on the spot.
    """
    need, have = device.host.packages.get("torch-cuda"), device.cuda_driver
    if not device.gpus or need is None or have is None or _version(have) >= _version(need):
        return
    fix = f"update the NVIDIA driver, or install a torch built for CUDA {have} or older"
    what = f"driver {device.driver or 'unknown'} runs CUDA up to {have}; torch is built for {need}"
    if _version(have)[0] < _version(need)[0]:
        yield _finding("fatal", f"the NVIDIA driver is too old: {what}", "torch will refuse the GPU", fix)
    else:
        yield _finding("info", what, "the same major version: works, but for code compiled on the spot", fix)


def divided(device: DeviceInfo) -> Iterator[Finding]:
    """A GPU that MIG divides: an instance of it is used, if it has any."""
    gpu = device.gpu
    if gpu is None or not gpu.mig_enabled:
        return
    if gpu.board_uuid is None and device.source == "nvml":  # nvidia-smi does not tell its instances here
        yield _finding(
            "fatal",
            "MIG is on, and the GPU has no instance: CUDA shows nothing of it",
            "dividing the card was begun and not ended",
            "for the whole GPU: sudo nvidia-smi -mig 0; for parts: sudo nvidia-smi mig -lgip, then mig -cgi ID -C",
        )
        return
    yield _finding(
        "warning",
        f"MIG is on: training sees a part of the GPU, {gpu.name} with {format_bytes(gpu.vram_total_bytes)}",
        "the card is divided into instances; utilisation and energy are not told for one",
        "for the whole GPU: sudo nvidia-smi -mig 0, or rent an undivided one",
    )


def gpu_setup(gpu: GpuInfo) -> Iterator[Finding]:
    """Modes of the GPU that cost speed or memory."""
    if gpu.persistence_enabled is False:
        yield _finding(
            "info",
            "persistence mode is off",
            "the driver unloads between processes: each start waits a second or two",
            "sudo nvidia-smi -pm 1",
        )
    if gpu.compute_mode == "prohibited":
        yield _finding(
            "fatal", "the GPU's compute mode is prohibited", "no process may compute on it", "sudo nvidia-smi -c 0"
        )
    elif gpu.compute_mode not in (None, "default"):
        yield _finding(
            "warning",
            f"the GPU's compute mode is {gpu.compute_mode}",
            "one process at a time may compute on it: several fail, unless CUDA MPS serves them",
            "sudo nvidia-smi -c 0, or sharing = cuda-mps, or concurrency 1",
        )
    limit, default = gpu.power_limit_w, gpu.power_default_limit_w
    if limit is not None and default is not None and limit < 0.99 * default:
        yield _finding(
            "warning",
            f"the power limit is {limit:.0f} W, below the default {default:.0f} W",
            "somebody lowered it: clocks fall under load",
            f"sudo nvidia-smi -pl {default:.0f}, or ask the provider",
        )


def gpu_health(gpu: GpuInfo) -> Iterator[Finding]:
    """Memory errors and braked clocks."""
    if gpu.ecc_uncorrected:
        yield _finding(
            "warning",
            f"{gpu.ecc_uncorrected} uncorrected memory errors since the driver was loaded",
            "failing GPU memory",
            "reset the GPU or reboot; if they return, rent another machine",
        )
    reasons = gpu.throttle_reasons or ()
    if {"sw_thermal", "hw_thermal"} & set(reasons):
        heat = "unknown" if gpu.temperature_c is None else f"{gpu.temperature_c} °C"
        yield _finding(
            "warning",
            f"clocks are lowered by heat (GPU at {heat})",
            "poor cooling",
            "improve cooling or change machine",
        )
    if "hw_power_brake" in reasons:
        yield _finding(
            "warning", "clocks are lowered by the power brake", "the power supply gave an alarm", "change machine"
        )


def neighbours(gpu: GpuInfo) -> Iterator[Finding]:
    """Others on the GPU: seen, or only their memory."""
    others = [process for process in gpu.processes or () if process.computes]
    for process in others:
        name = process.name or "unknown program"
        yield _finding(
            "warning",
            f"process {process.pid} ({name}) is on the GPU with {format_bytes(process.used_bytes)}",
            "another program runs there: measurements will be disturbed and labelled shared",
            f"stop process {process.pid} or wait until it ends",
        )
    if not others and (gpu.vram_used_bytes or 0) > UNSEEN_VRAM_BYTES:
        yield _finding(
            "warning",
            f"{format_bytes(gpu.vram_used_bytes)} of GPU memory is in use, by no process that is visible here",
            "a program outside this container",
            "ask the provider whether the GPU is shared",
        )


def cpu_limits(host: HostInfo) -> Iterator[Finding]:
    """Cores, processes and load."""
    allowed, visible = host.cpu_cores_allowed, host.cpu_cores_visible
    if allowed < visible:
        yield _finding(
            "warning",
            f"{allowed:g} of {visible} visible CPU cores may be used",
            "a CPU quota or affinity mask (container)",
            "threads are set to the allowed cores; for more, raise the quota (docker --cpus) or rent more",
        )
    if host.pids_limit is not None and host.pids_limit < PIDS_LOW:
        yield _finding(
            "warning",
            f"at most {host.pids_limit} processes and threads",
            "a pids limit on the container",
            "docker --pids-limit 4096",
        )
    # the load is of the whole host, whatever a container may use of it
    if host.load_1m is not None and host.load_1m > max(LOAD_HIGH * allowed, visible - allowed):
        yield _finding(
            "warning",
            f"the load is {host.load_1m:.1f} on {visible} cores before anything is measured",
            "other programs run",
            "stop other programs: environments and training share these cores",
        )


def memory_limits(host: HostInfo) -> Iterator[Finding]:
    """RAM, shared memory, disk."""
    if host.ram_limit_bytes < RAM_LOW_BYTES or host.ram_available_bytes < RAM_LOW_BYTES / 2:
        free, limit = format_bytes(host.ram_available_bytes), format_bytes(host.ram_limit_bytes)
        yield _finding(
            "warning", f"{free} of {limit} RAM is free", "a small machine or limit, or others use it", _MORE_RAM
        )
    if host.shm_total_bytes is not None and host.shm_total_bytes < SHM_LOW_BYTES:
        yield _finding(
            "warning",
            f"/dev/shm holds only {format_bytes(host.shm_total_bytes)}",
            "the container's default; data loaders and NCCL fail with a bus error when it is full",
            "docker --shm-size 8g (or --ipc host)",
        )
    if host.disk_free_bytes is not None and host.disk_free_bytes < DISK_LOW_BYTES:
        yield _finding(
            "warning",
            f"{format_bytes(host.disk_free_bytes)} of disk is free",
            "checkpoints and samples need a few GiB",
            "free space, or choose another folder with --runs",
        )


def packages(device: DeviceInfo) -> Iterator[Finding]:
    """Missing extras, a torch without CUDA, the deprecated NVML binding."""
    installed = device.host.packages
    for package, extra in EXTRAS.items():
        if installed.get(package) is None:
            yield _finding(
                "info", f"{package} is not installed", "an optional extra", f"pip install 'gpu-autotune[{extra}]'"
            )
    if installed.get("pynvml") is not None:
        yield _finding(
            "warning",
            f"the deprecated package pynvml {installed['pynvml']} is installed",
            "it shadows nvidia-ml-py, and torch warns of it",
            "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py",
        )
    if device.kind == "cuda" and installed.get("torch") is not None and installed.get("torch-cuda") is None:
        yield _finding(
            "warning",
            f"torch {installed['torch']} is built without CUDA",
            "a CPU wheel on a machine with a GPU: torch trains on the CPU",
            "install a CUDA build: https://pytorch.org/get-started/locally/",
        )


def check_results(device: DeviceInfo, checks: Mapping[str, float], errors: Mapping[str, str]) -> Iterator[Finding]:
    """Checks that failed, and rates that betray an emulated precision or an unused GPU."""
    for check, message in errors.items():
        if check == "envpool":
            yield _finding("warning", f"EnvPool does not run: {message}", "a broken install", "pip install -U envpool")
        elif check in _LOW_PRECISION and f"{device.kind}_matmul_fp32_tflops" in checks:
            yield _finding(
                "warning",
                f"check {check} failed: {message}",
                "torch claims this precision, and the device does not compute in it; in fp32 it does",
                "use precision fp32, or auto",
            )
        else:
            severity: Severity = "warning" if check.startswith("jax") else "fatal"
            yield _finding(
                severity,
                f"check {check} failed: {message}",
                "the framework cannot compute on this device",
                "reinstall it for this device and driver",
            )
    bf16, fp16 = checks.get("cuda_matmul_bf16_tflops"), checks.get("cuda_matmul_fp16_tflops")
    if bf16 is not None and fp16 is not None and bf16 < EMULATED_BELOW * fp16:
        yield _finding(
            "warning",
            f"bf16 is emulated: {bf16:.3g} TFLOP/s against {fp16:.3g} in fp16",
            "the GPU claims bf16 but has no hardware for it (before compute capability 8.0)",
            "use precision fp16 or fp32",
        )
    if device.kind == "cuda" and "cpu_matmul_fp32_tflops" in checks:
        yield _finding(
            "warning",
            "torch measured on the CPU: it does not see the GPU",
            "a CPU build, a driver that is too old, or CUDA_VISIBLE_DEVICES",
            "python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'",
        )
