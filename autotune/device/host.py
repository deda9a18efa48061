"""The machine around the device: CPU, memory, limits of the container, disk, packages.

Reads ``/proc`` and ``/sys`` below a root that tests replace by a made-up tree. What cannot be
read is None. Limits are those of every cgroup from the process's own up to the top, versions 1
and 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/).
"""

from __future__ import annotations

import functools
import os
import platform
import re
import resource
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from autotune.machine import HostInfo

ROOT = Path("/")
PACKAGES = (
    "gpu-autotune",
    "torch",
    "jax",
    "jaxlib",
    "envpool",
    "numpy",
    "optuna",
    "pandas",
    "pydantic",
    "click",
    "tabulate",
    "pytest-benchmark",
    "nvidia-ml-py",
    "pynvml",
)
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as a number near 2**63


class ProcessIdentity(NamedTuple):
    """What tells a process from a later one with the same pid."""

    boot_id: str
    pid: int
    start_ticks: int


def read_text(path: Path | str) -> str | None:
    """A small file's text without surrounding space, None when it cannot be read.

    Readings give the path as a string: to join one takes longer than to open it.
    """
    try:
        return _read_bytes(path).decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def _read_bytes(path: Path | str) -> bytes:
    """What a file holds, by the system's own calls: less than half of what `Path.read_text` takes, for readings."""
    file = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(functools.partial(os.read, file, 2**16), b""))
    finally:
        os.close(file)


def boot_id(root: Path = ROOT) -> str:
    """The kernel's random id of this boot (the boot time where there is none)."""
    return read_text(root / "proc/sys/kernel/random/boot_id") or f"boot-{psutil.boot_time():.0f}"


def process_identity(pid: int, root: Path = ROOT) -> ProcessIdentity | None:
    """Boot id, pid and start time in clock ticks since boot; None when there is no such process."""
    stat = read_text(root / f"proc/{pid}/stat")
    if stat is not None:
        return ProcessIdentity(boot_id(root), pid, int(stat.rpartition(")")[2].split()[19]))
    try:
        return ProcessIdentity(boot_id(root), pid, int(psutil.Process(pid).create_time() * 100))
    except psutil.Error:
        return None


def still_runs(identity: Sequence[Any]) -> bool:
    """Whether the process of a `ProcessIdentity` runs; not where it is empty, which is unknown."""
    return len(identity) == 3 and process_identity(int(identity[1])) == tuple(identity)


def _cgroup_texts(root: Path, controller: str, v1_file: str, v2_file: str) -> Iterator[str]:
    """The control file's text in the process's cgroup and in each one above it."""
    texts = (read_text(file) for file in _cgroup_files(root, controller, v1_file, v2_file))
    return (text for text in texts if text)


@functools.lru_cache(maxsize=64)
def _cgroup_files(root: Path, controller: str, v1_file: str, v2_file: str) -> tuple[str, ...]:
    """Where that control file is; a process stays in its cgroup."""
    found: list[Path] = []
    mount = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = (mount if (mount / "cgroup.controllers").exists() else mount / "unified"), v2_file
        elif controller in controllers.split(","):
            top, name = next((t for t in (mount / controller, mount / controllers) if t.exists()), mount), v1_file
        else:
            continue
        group = Path(path.strip("/"))
        found += [top / folder / name for folder in dict.fromkeys([group, *group.parents])]
    return tuple(str(file) for file in found if file.exists())


def _limited_groups(root: Path, controller: str, v1_file: str, v2_file: str) -> Iterator[tuple[str, int]]:
    """(folder, limit) of the process's cgroup and of each one above it, of those that have one."""
    for file in _cgroup_files(root, controller, v1_file, v2_file):
        text = read_text(file) or ""
        if text.isdigit() and int(text) < _UNLIMITED_BYTES:
            yield file.rpartition("/")[0], int(text)


def _number_in(*files: str) -> int | None:
    """The number in the first of these files that holds one."""
    texts = (read_text(file) or "" for file in files)
    return next((int(text) for text in texts if text.isdigit()), None)


def _quota_cores(root: Path) -> float | None:
    """CPU quota of the cgroups in cores, None without one."""
    pairs = [text.split() for text in _cgroup_texts(root, "cpu", "cpu.cfs_quota_us", "cpu.max")]
    periods = [float(text) for text in _cgroup_texts(root, "cpu", "cpu.cfs_period_us", "cpu.max") if text.isdigit()]
    cores = []
    for index, pair in enumerate(pairs):
        quota, period = pair if len(pair) == 2 else (pair[0], periods[index] if index < len(periods) else 100_000)
        if quota != "max" and float(quota) > 0 and float(period) > 0:
            cores.append(float(quota) / float(period))
    return min(cores, default=None)


def _affinity(visible: int) -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(visible)


def allowed_cores(root: Path = ROOT, affinity: int | None = None) -> float:
    """Cores that this process may keep busy: the smaller of its affinity mask and the cgroups' quota."""
    cores = float(affinity if affinity is not None else len(_affinity(os.cpu_count() or 1)))
    quota = _quota_cores(root)
    return cores if quota is None else min(cores, quota)


def busy_cpu_clock(root: Path = ROOT, affinity: Collection[int] | None = None) -> Callable[[], float | None]:
    """Tells the CPU seconds used so far, by whomever, on what this process may use; None when it cannot be read.

    On the cores of the affinity mask, time that the hypervisor gave to other machines included; where a quota
    allows less than those, by the processes under the same quota. Which of the two is decided here, once.
    (https://docs.kernel.org/filesystems/proc.html, "Miscellaneous kernel statistics in /proc/stat")
    """
    cores = set(affinity if affinity is not None else _affinity(os.cpu_count() or 1))
    quota = _quota_cores(root)
    if quota is not None and quota < len(cores):
        return functools.partial(_group_cpu_seconds, root)
    return functools.partial(_cores_cpu_seconds, root, cores)


def _cores_cpu_seconds(root: Path, cores: Collection[int]) -> float | None:
    per_core = (read_text(f"{root}/proc/stat") or "").partition("\nintr")[0]  # of interrupts there can be thousands
    rows = re.findall(r"^cpu(\d+) (.+)$", per_core, re.MULTILINE)
    ticks = [[int(number) for number in numbers.split()] for core, numbers in rows if int(core) in cores]
    busy = [sum(row[:3]) + sum(row[5:8]) for row in ticks]  # all but idle, waiting for disks, and guests (in user)
    return sum(busy) / os.sysconf("SC_CLK_TCK") if busy else None


def _group_cpu_seconds(root: Path) -> float | None:
    text = next(_cgroup_texts(root, "cpuacct", "cpuacct.usage", "cpu.stat"), "")
    match = re.search(r"^usage_usec (\d+)", text, re.MULTILINE)
    if match:
        return int(match[1]) / 1e6
    return int(text) / 1e9 if text.isdigit() else None


def listed_bytes(text: str, name: str) -> int | None:
    """The size in a line ``NAME:   123 kB`` of a file below ``/proc``, None without it; half a pattern's time."""
    rest = f"\n{text}".partition(f"\n{name}:")[2].split(maxsplit=1)
    return int(rest[0]) * 1024 if rest and rest[0].isdigit() else None


def _meminfo(root: Path) -> dict[str, int]:
    """``MemTotal``, ``MemFree`` and ``MemAvailable`` of ``/proc/meminfo`` in bytes (psutil's where there is none)."""
    text = read_text(f"{root}/proc/meminfo")
    if text is None:
        memory = psutil.virtual_memory()
        return {"MemTotal": memory.total, "MemAvailable": memory.available}
    sizes = {name: listed_bytes(text, name) for name in ("MemTotal", "MemFree", "MemAvailable")}
    return {name: size for name, size in sizes.items() if size is not None}


def ram_cgroup_limit_bytes(root: Path = ROOT) -> int | None:
    """Smallest memory limit of the cgroups, None without one."""
    limits = (limit for _, limit in _limited_groups(root, "memory", "memory.limit_in_bytes", "memory.max"))
    return min(limits, default=None)


def ram_available_bytes(root: Path = ROOT) -> int:
    """Memory that can still be taken: the host's, or what the limits of the cgroups leave of it.

    File cache that the kernel can drop (``inactive_file``) counts as available, as in ``MemAvailable``.
    """
    info = _meminfo(root)
    available = info.get("MemAvailable", info.get("MemFree", 0))
    for folder, limit in _limited_groups(root, "memory", "memory.limit_in_bytes", "memory.max"):
        used = _number_in(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes")
        if used is not None:
            available = min(available, limit - used + _droppable_bytes(folder))
    return max(0, available)


def _droppable_bytes(folder: str) -> int:
    """File cache of a cgroup; of version 1, with that of the groups below it, which its usage counts."""
    cached = re.findall(r"^(?:total_)?inactive_file (\d+)", read_text(f"{folder}/memory.stat") or "", re.MULTILINE)
    return max(map(int, cached), default=0)


def pressure(resource: str, root: Path = ROOT) -> float | None:
    """Share of the last ten seconds in which something waited for ``cpu`` or ``memory``, 0 to 1."""
    text = read_text(f"{root}/proc/pressure/{resource}")
    match = re.search(r"^some avg10=([\d.]+)", text, re.MULTILINE) if text else None
    return float(match[1]) / 100 if match else None


def disk_space_bytes(folder: Path) -> tuple[int, int] | None:
    """(total, free) of the file system that a folder is or will be on; None when it cannot be asked."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return _space_bytes(folder)


def _space_bytes(folder: Path | str) -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.total, usage.free


def shm_space_bytes(root: Path = ROOT) -> tuple[int, int] | None:
    """(total, free) of ``/dev/shm``, None where there is none."""
    return _space_bytes(f"{root}/dev/shm")


def package_version(name: str) -> str | None:
    """An installed distribution's version, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def torch_cuda_version() -> str | None:
    """CUDA version that the installed torch was built for, such as ``12.8``; None for a CPU build or no torch.

    Read from the text of ``torch/version.py``: the parent process never imports torch.
    """
    try:
        text = read_text(Path(str(distribution("torch").locate_file("torch/version.py")))) or ""
    except PackageNotFoundError:
        return None
    match = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _packages() -> dict[str, str | None]:
    return {name: package_version(name) for name in PACKAGES} | {"torch-cuda": torch_cuda_version()}


def _pids(root: Path) -> tuple[int | None, int | None]:
    """(limit, in use) of processes and threads: the cgroups', or the kernel's and this user's where those are smaller.

    RLIMIT_NPROC does not bind the superuser (getrlimit(2)).
    """
    groups = [
        (limit, _number_in(f"{folder}/pids.current"))
        for folder, limit in _limited_groups(root, "pids", "pids.max", "pids.max")
    ]
    group, used = min(groups, key=lambda pair: pair[0] - (pair[1] or 0), default=(None, None))
    files = (root / "proc/sys/kernel" / name for name in ("pid_max", "threads-max"))
    wider = [int(text) for path in files if (text := read_text(path) or "").isdigit()]
    own = resource.getrlimit(resource.RLIMIT_NPROC)[0] if root == ROOT and os.geteuid() else resource.RLIM_INFINITY
    wider += [own] if own != resource.RLIM_INFINITY else []
    if group is not None and group <= min(wider, default=group):
        return group, used
    everybody = re.search(r"/(\d+) \d+$", read_text(root / "proc/loadavg") or "")
    return min(wider, default=None), int(everybody[1]) if everybody else None


def _boot_time(root: Path) -> str | None:
    match = re.search(r"^btime (\d+)", read_text(root / "proc/stat") or "", re.MULTILINE)
    seconds = float(match[1]) if match else psutil.boot_time()
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _cpu(root: Path) -> tuple[str, int]:
    """(model, visible cores)."""
    text = read_text(root / "proc/cpuinfo") or ""
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    count = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    return (model[1] if model else platform.processor() or platform.machine()), count or os.cpu_count() or 1


def _load_1m(root: Path) -> float | None:
    text = read_text(root / "proc/loadavg")
    if text:
        return float(text.split()[0])
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def inspect_host(folder: Path | None = None, *, root: Path = ROOT, affinity: int | None = None) -> HostInfo:
    """Describe this machine; takes a few milliseconds and starts nothing.

    Args:
        folder: the one whose disk is asked, the current one by default.
        root: where ``proc``, ``sys`` and ``dev`` lie.
        affinity: cores in the affinity mask, read from the kernel by default.
    """
    model, visible = _cpu(root)
    total = _meminfo(root).get("MemTotal", 0)
    limit = ram_cgroup_limit_bytes(root)
    limit = None if limit is not None and total and limit >= total else limit
    pids_limit, pids_used = _pids(root)
    shm, disk = shm_space_bytes(root), disk_space_bytes(folder or Path.cwd())
    return HostInfo(
        hostname=platform.node(),
        cpu_model=model,
        cpu_cores_visible=visible,
        cpu_cores_allowed=allowed_cores(root, affinity),
        load_1m=_load_1m(root),
        pids_limit=pids_limit,
        pids_used=pids_used,
        ram_total_bytes=total,
        ram_available_bytes=ram_available_bytes(root),
        ram_cgroup_limit_bytes=limit,
        ram_limit_bytes=min(total, limit) if limit is not None else total,
        shm_total_bytes=shm[0] if shm else None,
        shm_free_bytes=shm[1] if shm else None,
        disk_free_bytes=disk[1] if disk else None,
        boot_id=boot_id(root),
        boot_time=_boot_time(root),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=_packages(),
    )
