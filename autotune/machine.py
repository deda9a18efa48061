"""The records that describe a machine: device, host and what else runs there; units stand in the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RAM_UNSTATED_BYTES = 2**60
"""`HostInfo.ram_limit_bytes` of a recorded machine whose memory nobody stated."""
_CONTEXT_MIN_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on the GPU."""

    pid: int
    used_bytes: int | None
    name: str | None

    @property
    def computes(self) -> bool:
        """Whether it may compute there; a display server without a screen holds less than any compute context."""
        return self.used_bytes is None or self.used_bytes >= _CONTEXT_MIN_BYTES


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One NVIDIA GPU as NVML (or nvidia-smi) describes it; None is unknown.

    Attributes:
        uuid: of the MIG instance where the board is divided.
        board_uuid: of the whole board, None where `uuid` is it.
        compute_mode: who may compute on it: ``default`` (every process), ``exclusive_process`` (one at a time) or
            ``prohibited``.
    """

    index: int
    name: str
    uuid: str | None = None
    board_uuid: str | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    vram_used_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    compute_capability: tuple[int, int] | None = None
    power_limit_w: float | None = None
    power_default_limit_w: float | None = None
    power_draw_w: float | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    mig_enabled: bool | None = None
    persistence_enabled: bool | None = None
    compute_mode: str | None = None
    throttle_reasons: tuple[str, ...] | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class HostInfo:
    """The machine around the device; None is unknown.

    Attributes:
        cpu_cores_visible: as the kernel lists them.
        cpu_cores_allowed: after affinity and the cgroup quota; may be fractional.
        pids_limit: processes and threads at most: the smallest of the cgroups', the kernel's and the user's limit.
        pids_used: of them, in use.
        ram_limit_bytes: the smaller of RAM and the cgroup's limit.
        boot_id: the kernel's random id of this boot.
        boot_time: ISO 8601, UTC.
    """

    hostname: str
    cpu_model: str
    cpu_cores_visible: int
    cpu_cores_allowed: float
    load_1m: float | None
    pids_limit: int | None
    ram_total_bytes: int
    ram_available_bytes: int
    ram_cgroup_limit_bytes: int | None
    ram_limit_bytes: int
    shm_total_bytes: int | None
    shm_free_bytes: int | None
    disk_free_bytes: int | None
    boot_id: str
    boot_time: str | None
    kernel: str
    python: str
    packages: Mapping[str, str | None] = field(default_factory=dict)
    pids_used: int | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """What this machine trains on.

    Attributes:
        kind: ``cuda``, ``mps`` or ``cpu``: the best the machine has (or what the user asked for).
        name: of the GPU, or the CPU model.
        gpus: all NVIDIA GPUs; the one used is `gpu_index`.
        driver: NVIDIA driver version.
        cuda_driver: highest CUDA version that the driver runs, such as ``12.4``.
        source: ``nvml``, ``nvidia-smi`` or None where neither answered.
        nvml_problem: why NVML did not answer, None when it did.
        mps_active: whether a CUDA MPS control daemon runs.
        pci_order: whether CUDA is told to count the GPUs in this order.
        sku: key in the price table, such as ``a100-80gb``; None when not listed.
    """

    kind: Literal["cuda", "mps", "cpu"]
    name: str
    host: HostInfo
    gpus: tuple[GpuInfo, ...] = ()
    gpu_index: int | None = None
    driver: str | None = None
    cuda_driver: str | None = None
    source: Literal["nvml", "nvidia-smi"] | None = None
    nvml_problem: str | None = None
    mps_active: bool | None = None
    pci_order: bool = True
    sku: str | None = None

    @property
    def gpu(self) -> GpuInfo | None:
        """The GPU in use, None on CPU."""
        return None if self.gpu_index is None else next((g for g in self.gpus if g.index == self.gpu_index), None)

    @property
    def vram_total_bytes(self) -> int | None:
        """Memory of the GPU in use."""
        return self.gpu.vram_total_bytes if self.gpu else None

    @property
    def fingerprint(self) -> str:
        """Same string, same kind of machine: device, memory, allowed cores, RAM in GiB."""
        vram_gib = f" {self.vram_total_bytes / 2**30:.0f}GiB" if self.vram_total_bytes else ""
        ram_gib = self.host.ram_limit_bytes / 2**30
        return f"{self.name}{vram_gib}, {self.host.cpu_cores_allowed:g} cores, {ram_gib:.0f}GiB RAM"
