"""A pynvml that answers as configured: machines with NVIDIA GPUs, broken ones included."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 2**30
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 3, 4, 6
DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST, MISMATCH = 9, 10, 12, 13, 15, 18
_TEXTS = {
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    NOT_FOUND: "Not Found",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    TIMEOUT: "Timeout",
    LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    FUNCTION_NOT_FOUND: "Function Not Found",
    GPU_IS_LOST: "GPU is lost",
    MISMATCH: "RM has detected an NVML/RM version mismatch.",
}


class FakeError(Exception):
    """As pynvml's: the code in `value`, its words as text."""

    def __init__(self, value: int) -> None:
        super().__init__(_TEXTS[value])
        self.value = value


class FakeMismatchError(Exception):
    """As pynvml's, no kind of its other error: it knows a newer version of a function than this driver's library."""


@dataclass
class FakeGpu:
    """One GPU; None for what it does not support."""

    name: str | bytes
    uuid: str
    vram_gib: float
    capability: tuple[int, int]
    used_gib: float = 0.0
    reserved_gib: float = 0.5
    processes: dict[int, int | None] = field(default_factory=dict)
    mps_clients: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int | None] = field(default_factory=dict)
    power_limit_w: float | None = 300.0
    power_default_w: float | None = 300.0
    power_draw_w: float | None = 50.0
    energy_j: float | None = 1000.0
    sm_clock_mhz: int = 1200
    sm_clock_max_mhz: int = 1500
    temperature_c: int = 40
    utilisation: int | None = 25
    ecc: bool | None = True
    ecc_errors: int | None = 0
    mig: bool | None = False
    parts: list[FakeGpu] = field(default_factory=list)
    persistence: bool = True
    compute_mode: int | None = 0
    throttle_bits: int = 0x1
    lost: bool = False
    denied: bool = False
    xids: list[int] = field(default_factory=list)


def t4(**changes: Any) -> FakeGpu:
    values = {"name": "Tesla T4", "mig": None, "power_limit_w": 70.0, "power_default_w": 70.0} | changes
    return FakeGpu(uuid="GPU-t4", vram_gib=15, capability=(7, 5), **values)


def a100_40(**changes: Any) -> FakeGpu:
    return FakeGpu(
        **{"name": "NVIDIA A100-SXM4-40GB", "uuid": "GPU-a40", "vram_gib": 40, "capability": (8, 0)} | changes
    )


def a100_80(**changes: Any) -> FakeGpu:
    return FakeGpu(
        **{"name": "NVIDIA A100-SXM4-80GB", "uuid": "GPU-a80", "vram_gib": 80, "capability": (8, 0)} | changes
    )


def a100_80_mig(**changes: Any) -> FakeGpu:
    parts = [
        FakeGpu(name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", uuid=f"MIG-{n}", vram_gib=39.5, capability=(8, 0))
        for n in (1, 2)
    ]
    return a100_80(mig=True, parts=parts, utilisation=None, **changes)


def h200(**changes: Any) -> FakeGpu:
    return FakeGpu(**{"name": "NVIDIA H200", "uuid": "GPU-h", "vram_gib": 141, "capability": (9, 0)} | changes)


class FakeNvml:
    """Stands for the module `pynvml`.

    Args:
        gpus: in PCI order.
        init_error: code that `nvmlInit` raises.
        refused: code that a function raises, by its name.
        absent: functions that this driver's library does not have.
        outdated: functions of which it has the second version only.
    """

    NVMLError = FakeError
    NVMLLibraryMismatchError = FakeMismatchError
    nvmlMemory_v2 = 2

    def __init__(
        self,
        *gpus: FakeGpu,
        driver: str | bytes = "550.54.15",
        cuda: int = 12040,
        init_error: int | None = None,
        refused: dict[str, int] | None = None,
        absent: tuple[str, ...] = (),
        outdated: tuple[str, ...] = (),
    ) -> None:
        self.gpus, self.driver, self.cuda, self.init_error = list(gpus), driver, cuda, init_error
        self.refused, self.absent, self.outdated = refused or {}, absent, outdated
        self.opened = 0
        self.event_sets = 0
        self.names: dict[int, bytes] = {}

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name != "nvmlMemory_v2":
            if name in object.__getattribute__(self, "absent"):
                raise AttributeError(name)
            code = object.__getattribute__(self, "refused").get(name)
            if code is not None:

                def refuse(*_: Any) -> None:
                    raise FakeError(code)

                return refuse
            if name in object.__getattribute__(self, "outdated"):

                def mismatch(*_: Any) -> None:
                    raise FakeMismatchError("Unversioned function called and the pyNVML version does not match")

                return mismatch
            if name.removesuffix("_v2") in object.__getattribute__(self, "outdated"):
                return object.__getattribute__(self, name.removesuffix("_v2"))
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise FakeError(self.init_error)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlSystemGetProcessName(self, pid: int) -> bytes:
        return self.names.get(pid, f"python{pid}".encode())

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if self.gpus[index].lost:
            raise FakeError(GPU_IS_LOST)
        if self.gpus[index].denied:
            raise FakeError(NO_PERMISSION)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in itertools.chain(self.gpus, *(whole.parts for whole in self.gpus)):
            if gpu.uuid == uuid:
                return gpu
        raise FakeError(NOT_FOUND)

    @staticmethod
    def _known(handle: FakeGpu, value: Any) -> Any:
        if handle.lost:
            raise FakeError(GPU_IS_LOST)
        if value is None:
            raise FakeError(NOT_SUPPORTED)
        return value

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str | bytes:
        return self._known(handle, handle.name)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return self._known(handle, handle.uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu, version: int = 1) -> Any:
        self._known(handle, 1)
        total, used, reserved = (int(g * GIB) for g in (handle.vram_gib, handle.used_gib, handle.reserved_gib))
        shown = used if version == self.nvmlMemory_v2 else used + reserved
        return SimpleNamespace(total=total, used=shown, free=total - used - reserved)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:
        self._known(handle, 1)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.processes.items()]

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.mps_clients.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: FakeGpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.drawing.items()]

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeGpu) -> tuple[int, int]:
        return self._known(handle, handle.capability)

    def _milli(self, handle: FakeGpu, value: float | None) -> int:
        return int(self._known(handle, value) * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: FakeGpu) -> int:
        return self._milli(handle, handle.power_limit_w)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: FakeGpu) -> int:
        return self._milli(handle, handle.power_default_w)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return self._milli(handle, handle.power_draw_w)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        return self._milli(handle, handle.energy_j)

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, kind: int) -> int:
        return self._known(handle, handle.sm_clock_mhz if kind == 1 else 877)

    def nvmlDeviceGetMaxClockInfo(self, handle: FakeGpu, kind: int) -> int:
        return self._known(handle, handle.sm_clock_max_mhz)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return self._known(handle, handle.temperature_c)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> Any:
        return SimpleNamespace(gpu=self._known(handle, handle.utilisation), memory=0)

    def nvmlDeviceGetEccMode(self, handle: FakeGpu) -> list[int]:
        return [int(self._known(handle, handle.ecc))] * 2

    def nvmlDeviceGetTotalEccErrors(self, handle: FakeGpu, kind: int, counter: int) -> int:
        assert (kind, counter) == (1, 0), "uncorrected, since the driver was loaded"
        return self._known(handle, handle.ecc_errors)

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        return [int(self._known(handle, handle.mig))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, index: int) -> FakeGpu:
        if index >= len(handle.parts):
            raise FakeError(NOT_FOUND)
        return handle.parts[index]

    def nvmlDeviceGetPersistenceMode(self, handle: FakeGpu) -> int:
        return int(self._known(handle, handle.persistence))

    def nvmlDeviceGetComputeMode(self, handle: FakeGpu) -> int:
        return int(self._known(handle, handle.compute_mode))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeGpu) -> int:
        return self._known(handle, handle.throttle_bits)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: FakeGpu) -> int:
        return self._known(handle, handle.throttle_bits)

    def nvmlEventSetCreate(self) -> list[FakeGpu]:
        self.event_sets += 1
        return []

    def nvmlEventSetFree(self, events: list[FakeGpu]) -> None:
        self.event_sets -= 1

    def nvmlDeviceRegisterEvents(self, handle: FakeGpu, types: int, events: list[FakeGpu]) -> None:
        assert types == 8, "XID errors"
        self._known(handle, 1)
        handle.xids.clear()
        events.append(handle)

    def nvmlEventSetWait_v2(self, events: list[FakeGpu], timeout_ms: int) -> Any:
        assert timeout_ms == 0, "a meter does not wait"
        for handle in events:
            if handle.xids:  # also of one that is lost: what was recorded before
                return SimpleNamespace(device=handle, eventType=8, eventData=handle.xids.pop(0))
            self._known(handle, 1)
        raise FakeError(TIMEOUT)
