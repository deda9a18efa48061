"""Made-up machines: a `HostInfo`, and ``/proc`` and ``/sys`` as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.machine import HostInfo

GIB = 2**30


def host(**changes: Any) -> HostInfo:
    """A healthy machine: 8 cores, 64 GiB, everything installed."""
    values: dict[str, Any] = {
        "hostname": "box",
        "cpu_model": "Fast CPU",
        "cpu_cores_visible": 8,
        "cpu_cores_allowed": 8.0,
        "load_1m": 0.1,
        "pids_limit": None,
        "ram_total_bytes": 64 * GIB,
        "ram_available_bytes": 60 * GIB,
        "ram_cgroup_limit_bytes": None,
        "ram_limit_bytes": 64 * GIB,
        "shm_total_bytes": 32 * GIB,
        "shm_free_bytes": 32 * GIB,
        "disk_free_bytes": 100 * GIB,
        "boot_id": "boot",
        "boot_time": "2025-01-01T00:00:00+00:00",
        "kernel": "6.0",
        "python": "3.11.7",
        "packages": {
            "torch": "2.8.0",
            "torch-cuda": "12.4",
            "jax": "0.7",
            "envpool": "1.2",
            "pytest-benchmark": "5",
            "pynvml": None,
        },
    }
    return HostInfo(**values | changes)


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Files below a root, as the kernel shows them."""
    base = {
        "proc/cpuinfo": "".join(f"processor\t: {n}\nmodel name\t: Test CPU\n\n" for n in range(8)),
        "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:    8388608 kB\n",
        "proc/loadavg": "1.25 1.00 0.50 1/100 4242\n",
        "proc/stat": "cpu  1 2 3\nbtime 1735689600\n",
        "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    }
    for name, text in (base | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
