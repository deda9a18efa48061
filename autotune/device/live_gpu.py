"""Light readings of one NVIDIA GPU while something runs on it, through NVML; None where it cannot tell.

Events: https://docs.nvidia.com/deploy/nvml-api/group__nvmlEvents.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from autotune.device.nvml import (
    CLOCK_SM,
    ECC_UNCORRECTED,
    ECC_VOLATILE,
    SENSOR_GPU,
    GpuLostError,
    ask,
    bounded,
    flag,
    is_lost,
    load_pynvml,
    memory_info,
    memory_version,
    process_memory,
    scaled,
    throttle_reasons,
)
from autotune.machine import DeviceInfo, GpuInfo

T = TypeVar("T")
MPS_SERVER = "nvidia-cuda-mps-server"
_XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
_XIDS_AT_ONCE = 16


class LiveGpu:
    """Light readings of one GPU while something runs on it; None where it cannot tell.

    Memory and processes are those of the MIG instance where there is one, the rest the board's.

    Attributes:
        lost: whether it has said that it fell off the bus, or works no more before it is reset.
    """

    def __init__(self, gpu: GpuInfo, pynvml: Any = None) -> None:
        """Open the GPU; a refusal makes every reading None."""
        self._nvml = pynvml if pynvml is not None else load_pynvml()
        self._board = self._part = self._events = None
        self.lost = self._opened = False
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
            self._opened = True
            self._board = self._nvml.nvmlDeviceGetHandleByIndex(gpu.index)
            by_uuid = ask(self._nvml, "nvmlDeviceGetHandleByUUID", gpu.uuid) if gpu.uuid else None
            divided = gpu.board_uuid is not None
            self._part = self._board if by_uuid is None and not divided else by_uuid
            if self._part is not None:
                self._memory_version = memory_version(self._nvml, self._part)  # one throughout: they count differently
        except (self._nvml.NVMLError, GpuLostError) as error:
            self.lost = is_lost(error)
            self.close()

    def _quietly(self, query: Callable[[Any, Any, Any], T | None]) -> T | None:
        """`query(nvml, board, part)`, None when the GPU never opened or is lost."""
        if self._board is None:
            return None
        try:
            return query(self._nvml, self._board, self._part)
        except GpuLostError:
            self.lost = True
            return None

    def _board_value(self, name: str, *arguments: Any) -> Any:
        return self._quietly(lambda nvml, board, _: ask(nvml, name, board, *arguments))

    def _memory(self) -> Any:
        return self._quietly(
            lambda nvml, _, part: None if part is None else memory_info(nvml, part, self._memory_version)
        )

    def used_bytes(self) -> int | None:
        """Device memory in use, by whomever."""
        memory = self._memory()
        return None if memory is None else int(memory.used)

    def processes(self) -> dict[int, int | None] | None:
        """Device memory by process, whoever's; MPS servers, which hold their clients' memory, left out."""
        return self._quietly(
            lambda nvml, _, part: None if part is None else _without_servers(nvml, process_memory(nvml, part))
        )

    def utilisation(self) -> float | None:
        """Share of the last sample period in which a kernel ran, 0 to 1."""
        rates = self._board_value("nvmlDeviceGetUtilizationRates")
        return None if rates is None else float(rates.gpu) / 100

    def sm_clock_mhz(self) -> float | None:
        """Clock of the multiprocessors."""
        return scaled(self._board_value("nvmlDeviceGetClockInfo", CLOCK_SM), 1)

    def temperature_c(self) -> float | None:
        """Of the GPU die."""
        return scaled(self._board_value("nvmlDeviceGetTemperature", SENSOR_GPU), 1)

    def power_w(self) -> float | None:
        """Of the whole board."""
        return scaled(self._board_value("nvmlDeviceGetPowerUsage"), 1000)

    def energy_j(self) -> float | None:
        """Since the driver was loaded (Volta and later)."""
        return scaled(self._board_value("nvmlDeviceGetTotalEnergyConsumption"), 1000)

    def throttle_reasons(self) -> tuple[str, ...] | None:
        """Why the clocks are below their maximum, names of `THROTTLE_BITS`."""
        return self._quietly(lambda nvml, board, _: throttle_reasons(nvml, board))

    def total_bytes(self) -> int | None:
        """Device memory there is; another number than before means that MIG was reconfigured."""
        memory = self._memory()
        return None if memory is None else int(memory.total)

    def mig_enabled(self) -> bool | None:
        """Whether the board is split."""
        return flag(self._board_value("nvmlDeviceGetMigMode"))

    def ecc_uncorrected(self) -> int | None:
        """Memory errors since the driver was loaded that ECC could not correct."""
        count = self._board_value("nvmlDeviceGetTotalEccErrors", ECC_UNCORRECTED, ECC_VOLATILE)
        return None if count is None else int(count)

    def watch_xids(self) -> None:
        """Have XID errors of the board recorded from now on."""
        self._events = self._quietly(_register_events)

    def take_xids(self) -> list[int] | None:
        """XID errors since the last call; None where they are not told (no permission, an old card)."""
        events = self._events
        return None if events is None else self._quietly(lambda nvml, *_: _waiting_xids(nvml, events))

    def close(self) -> None:
        """Let NVML go; safe to call twice."""
        if self._events is not None:
            events, self._events = self._events, None
            self._quietly(lambda nvml, *_: ask(nvml, "nvmlEventSetFree", events))
        self._board = self._part = None
        if self._opened:
            self._opened = False
            with contextlib.suppress(GpuLostError):
                ask(self._nvml, "nvmlShutdown")


class PatientGpu:
    """Device memory by process, for one who has more to do than to wait for a driver that hangs."""

    def __init__(self, gpu: GpuInfo, pynvml: Any = None, timeout_s: float = 5.0) -> None:
        """Open the GPU; no call takes longer than `timeout_s`."""
        self._timeout_s = timeout_s
        self._gpu: LiveGpu | None = bounded(lambda: LiveGpu(gpu, pynvml), timeout_s)

    @property
    def lost(self) -> bool:
        """Whether an answer was that it is lost."""
        return self._gpu is not None and self._gpu.lost

    def processes(self) -> Mapping[int, int | None]:
        """What `LiveGpu.processes` lists; nothing where it is not told, and never again once a call has hung."""
        gpu = self._gpu
        listed: dict[int, int | None] | None = (
            None if gpu is None else bounded(lambda: gpu.processes() or {}, self._timeout_s)
        )
        if listed is None:
            self._gpu = None
        return listed or {}

    def gone(self) -> bool:
        """Whether it is lost, asked now."""
        self.processes()
        return self.lost

    def close(self) -> None:
        """Let NVML go; safe to call twice."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            bounded(gpu.close, self._timeout_s)


def lost_words(device: DeviceInfo, detail: str = "") -> str:
    """What to say when the GPU in use is lost, and of what it said last."""
    last = f" ({detail})" if detail else ""
    return f"GPU {device.gpu_index} ({device.name}) does not answer any more{last}: reset it or reboot the machine"


def memory_of(pids: Collection[int], listed: Mapping[int, int | None]) -> int | None:
    """Device memory of these processes together, from what `LiveGpu.processes` lists.

    None when none of them is listed: in a container with its own pid numbers NVML lists the host's,
    so an absent pid says nothing.
    """
    mine = [listed[pid] for pid in pids if pid in listed]
    known = [used for used in mine if used is not None]
    return sum(known) if known and len(known) == len(mine) else None


def _without_servers(nvml: Any, listed: dict[int, int | None] | None) -> dict[int, int | None] | None:
    if listed is None:
        return None
    names = {pid: str(ask(nvml, "nvmlSystemGetProcessName", pid)) for pid in listed}
    return {pid: used for pid, used in listed.items() if MPS_SERVER not in names[pid]}


def _register_events(nvml: Any, board: Any, _: Any) -> Any:
    """An event set that XID errors of the board go to, None where they cannot."""
    events = ask(nvml, "nvmlEventSetCreate")
    if events is None:
        return None
    try:
        nvml.nvmlDeviceRegisterEvents(board, _XID_EVENT, events)
    except (nvml.NVMLError, AttributeError):
        ask(nvml, "nvmlEventSetFree", events)
        return None
    return events


def _waiting_xids(nvml: Any, events: Any) -> list[int]:
    found: list[int] = []
    try:
        while len(found) < _XIDS_AT_ONCE and (event := ask(nvml, "nvmlEventSetWait_v2", events, 0)) is not None:
            if event.eventType == _XID_EVENT:
                found.append(int(event.eventData))
    except GpuLostError:
        if not found:  # what it told before it was lost says why
            raise
    return found
