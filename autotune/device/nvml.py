"""NVIDIA GPUs through NVML: the only importer of pynvml.

Every query stands alone: what a driver, a container or a card does not answer is None, and a GPU
that fell off the bus is a `GpuInfo` with a `problem`, beside its healthy neighbours.
(https://docs.nvidia.com/deploy/nvml-api/)
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from autotune.machine import GpuInfo, GpuProcess

THROTTLE_BITS = {
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
}
"""Of NVML's reasons for low clocks all but 0x1: an idle GPU is not held back."""
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
_NO_PERMISSION = 4
_LOST_CODES = (15, 16)  # GPU_IS_LOST, RESET_REQUIRED
_NOT_AVAILABLE = 2**64 - 1
ECC_UNCORRECTED, ECC_VOLATILE = 1, 0
CLOCK_SM, CLOCK_MEMORY, SENSOR_GPU = 1, 2, 0


class GpuLostError(Exception):
    """The GPU no longer answers; `autotune.device.live_gpu` alone sees it beside this module."""


@dataclass(frozen=True, kw_only=True)
class NvmlAnswer:
    """What NVML said; `problem` is why it said nothing."""

    driver: str | None = None
    cuda_driver: str | None = None
    gpus: tuple[GpuInfo, ...] = ()
    problem: str | None = None


def is_lost(error: Exception) -> bool:
    """Whether it says that the GPU fell off the bus, or works no more before it is reset."""
    return isinstance(error, GpuLostError) or getattr(error, "value", None) in _LOST_CODES


def ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """The answer to one query; None when the driver, the card or a permission refuses it.

    Raises:
        GpuLostError: the GPU fell off the bus.
    """
    function = getattr(nvml, name, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        if is_lost(error):
            raise GpuLostError(str(error)) from error
        return None
    # A name that is no UTF-8; the binding's newest form of a function, which this driver's library lacks.
    except (ValueError, getattr(nvml, "NVMLLibraryMismatchError", ValueError)):
        return None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return None if value is None else str(value)


def scaled(value: Any, divisor: float) -> float | None:
    """A number in a larger unit, None when it is not known."""
    return None if value is None else value / divisor


def flag(value: Any) -> bool | None:
    """Current state of a mode that NVML gives as a number or as [current, pending]."""
    current = value[0] if isinstance(value, (list, tuple)) else value
    return None if current is None else bool(current)


def memory_version(nvml: Any, handle: Any) -> tuple[Any, ...]:
    """What `memory_info` is asked with: version 2, where it is answered."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    return () if version is None or memory_info(nvml, handle, (version,)) is None else (version,)


def memory_info(nvml: Any, handle: Any, version: tuple[Any, ...]) -> Any:
    """Total, free and used bytes; version 2 leaves what the driver reserves out of "used"."""
    return ask(nvml, "nvmlDeviceGetMemoryInfo", handle, *version)


def process_memory(nvml: Any, handle: Any) -> dict[int, int | None] | None:
    """Bytes by pid on a device: clients of MPS, compute and graphics; None when NVML refuses every list.

    A program that draws only, and of whose memory nothing is told, is left out: every WSL has such a display server.
    """
    # An empty list of clients says nothing of others.
    clients = _listed(nvml, "nvmlDeviceGetMPSComputeRunningProcesses", handle) or None
    computing = _listed(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    drawing = _listed(nvml, "nvmlDeviceGetGraphicsRunningProcesses", handle)
    if clients is None and computing is None and drawing is None:
        return None
    found = {process.pid: _used_bytes(process) for process in [*(clients or ()), *(computing or ())]}
    drawn = {process.pid: _used_bytes(process) for process in drawing or ()}
    return found | {pid: used for pid, used in drawn.items() if used is not None}


def _used_bytes(process: Any) -> int | None:
    used = process.usedGpuMemory
    return None if used is None or used == _NOT_AVAILABLE else int(used)


def _listed(nvml: Any, name: str, handle: Any) -> Any:
    """A list of processes; drivers before 510 know its second version only."""
    processes = ask(nvml, name, handle)
    return processes if processes is not None else ask(nvml, f"{name}_v2", handle)


def throttle_reasons(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    """Why the clocks are below their maximum, names of `THROTTLE_BITS`; None when NVML does not say."""
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        bits = ask(nvml, name, handle)
        if bits is not None:
            return tuple(reason for bit, reason in THROTTLE_BITS.items() if bits & bit)
    return None


def _mig_handle(nvml: Any, parent: Any, visible: str) -> Any:
    """The MIG instance that CUDA would use: the first named in CUDA_VISIBLE_DEVICES, else the first."""
    count = ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", parent) or 0
    handles = [ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", parent, index) for index in range(count)]
    present = [handle for handle in handles if handle is not None]
    uuids = [_text(ask(nvml, "nvmlDeviceGetUUID", handle)) or "" for handle in present]
    entries = [part.strip() for part in visible.split(",") if part.strip().startswith("MIG-")]
    named = [h for entry in entries for h, uuid in zip(present, uuids, strict=True) if uuid.startswith(entry)]
    return (named or present or [None])[0]


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    memory = process_memory(nvml, handle)
    if memory is None:
        return None
    return tuple(
        GpuProcess(pid=pid, used_bytes=used, name=_text(ask(nvml, "nvmlSystemGetProcessName", pid)))
        for pid, used in sorted(memory.items())
    )


def _with_memory(nvml: Any, handle: Any, info: GpuInfo) -> GpuInfo:
    """The description of a GPU or a MIG instance completed by whose memory it is."""
    memory = memory_info(nvml, handle, memory_version(nvml, handle))
    return replace(
        info,
        name=_text(ask(nvml, "nvmlDeviceGetName", handle)) or info.name,
        uuid=_text(ask(nvml, "nvmlDeviceGetUUID", handle)) or info.uuid,
        vram_total_bytes=None if memory is None else int(memory.total),
        vram_free_bytes=None if memory is None else int(memory.free),
        vram_used_bytes=None if memory is None else int(memory.used),
        processes=_processes(nvml, handle),
    )


def _describe(nvml: Any, handle: Any, index: int, visible: str) -> GpuInfo:
    capability = ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    info = GpuInfo(
        index=index,
        name="unknown NVIDIA GPU",
        compute_capability=None if capability is None else (int(capability[0]), int(capability[1])),
        power_limit_w=scaled(ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle), 1000),
        power_default_limit_w=scaled(ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle), 1000),
        power_draw_w=scaled(ask(nvml, "nvmlDeviceGetPowerUsage", handle), 1000),
        sm_clock_mhz=ask(nvml, "nvmlDeviceGetClockInfo", handle, CLOCK_SM),
        sm_clock_max_mhz=ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, CLOCK_SM),
        memory_clock_mhz=ask(nvml, "nvmlDeviceGetClockInfo", handle, CLOCK_MEMORY),
        temperature_c=ask(nvml, "nvmlDeviceGetTemperature", handle, SENSOR_GPU),
        ecc_enabled=flag(ask(nvml, "nvmlDeviceGetEccMode", handle)),
        ecc_uncorrected=ask(nvml, "nvmlDeviceGetTotalEccErrors", handle, ECC_UNCORRECTED, ECC_VOLATILE),
        mig_enabled=flag(ask(nvml, "nvmlDeviceGetMigMode", handle)),
        persistence_enabled=flag(ask(nvml, "nvmlDeviceGetPersistenceMode", handle)),
        compute_mode=COMPUTE_MODES.get(ask(nvml, "nvmlDeviceGetComputeMode", handle)),
        throttle_reasons=throttle_reasons(nvml, handle),
    )
    instance = _mig_handle(nvml, handle, visible) if info.mig_enabled else None
    if instance is None:
        return _with_memory(nvml, handle, info)
    return _with_memory(nvml, instance, replace(info, board_uuid=_text(ask(nvml, "nvmlDeviceGetUUID", handle))))


def _gpu(nvml: Any, index: int, visible: str) -> GpuInfo | None:
    """One GPU; when it is lost, whatever names it and the problem; None for one that only others may use.

    NVML counts those too (a batch system gave them to other jobs), CUDA does not.
    """
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return _describe(nvml, handle, index, visible)
    except (nvml.NVMLError, GpuLostError) as error:
        if getattr(error, "value", None) == _NO_PERMISSION:
            return None
        return GpuInfo(index=index, name="unknown NVIDIA GPU", problem=str(error))


def _cuda_version(number: int | None) -> str | None:
    """12040 -> ``12.4``."""
    return None if not number else f"{number // 1000}.{number % 1000 // 10}"


def _read(nvml: Any, visible: str) -> NvmlAnswer:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NvmlAnswer(problem=str(error))
    try:
        cuda = ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or ask(nvml, "nvmlSystemGetCudaDriverVersion")
        found = [_gpu(nvml, index, visible) for index in range(nvml.nvmlDeviceGetCount())]
        gpus = tuple(gpu for gpu in found if gpu is not None)
        return NvmlAnswer(
            driver=_text(ask(nvml, "nvmlSystemGetDriverVersion")),
            cuda_driver=_cuda_version(cuda),
            gpus=gpus,
            problem="no permission to use any of its GPUs" if found and not gpus else None,
        )
    except (nvml.NVMLError, GpuLostError) as error:
        return NvmlAnswer(problem=str(error))
    finally:
        with contextlib.suppress(GpuLostError):
            ask(nvml, "nvmlShutdown")


def bounded(call: Callable[[], Any], timeout_s: float) -> Any:
    """The result of `call`, or None when it takes longer (a driver call can hang for good).

    Where the system refuses a further thread it is called here, and waited for.
    """
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return call()
    thread.join(timeout_s)
    return results[0] if results else None


def load_pynvml() -> Any:
    """The NVML binding, or None when ``nvidia-ml-py`` is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def read_nvml(pynvml: Any = None, *, visible: str = "", timeout_s: float = 15.0) -> NvmlAnswer:
    """Driver and GPUs, in NVML's (PCI bus) order.

    Args:
        pynvml: the binding, ``nvidia-ml-py`` by default.
        visible: CUDA_VISIBLE_DEVICES, which may name a MIG instance.
        timeout_s: after which NVML counts as hung.
    """
    nvml = pynvml if pynvml is not None else load_pynvml()
    if nvml is None:
        return NvmlAnswer(problem="the Python package nvidia-ml-py is not installed")
    answer = bounded(lambda: _read(nvml, visible), timeout_s)
    return answer if answer is not None else NvmlAnswer(problem=f"NVML gave no answer within {timeout_s:g} s")
