"""What a worker finds in its environment: its share of threads and memory, and folders that keep what was compiled."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from autotune.device.host import ROOT, read_text
from autotune.worker.protocol import WorkerTask
from autotune.workloads.protocol import OPENMP, THREAD_VARIABLES

_MEMORY_VARIABLE = "AUTOTUNE_MEMORY_FRACTION"
_JAX_CACHE_BYTES = 2**30
_KEPT_BYTES = 2**30
_GLIBC_KEEPS_FROM = (2, 36)
"""Earlier versions may refuse a threshold above 32 MiB, and then use one of 128 KiB."""


def worker_environment(task: WorkerTask, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The child's environment: its share of threads and device memory set, never inherited."""
    environment = {name: value for name, value in os.environ.items() if name != _MEMORY_VARIABLE}
    environment.update(dict.fromkeys(("AUTOTUNE_THREADS", *THREAD_VARIABLES), str(task.threads)))
    environment.update(
        **OPENMP,
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
        PYTHONUNBUFFERED="1",
    )
    if task.memory_fraction is not None:
        environment[_MEMORY_VARIABLE] = f"{task.memory_fraction:.4f}"
    own_script = task.workload == "command"  # finds what it would find without autotune
    own = {} if own_script else compile_caches() | kept_memory()
    return own | environment | dict(extra or {})


def kept_memory(libc: tuple[str, str] | None = None) -> dict[str, str]:
    """Variables with which glibc's malloc keeps what was freed, for those that the user has not set.

    Without them every minibatch's activations are fresh pages, which the kernel zeroes: 95,000 page faults a second
    in Breakout on 2 cores, and 823 SPS for 912 (8 environments, minibatch 256), 1,030 for 1,400 (64, 2048). The peak
    is the same.

    Args:
        libc: name and version, as `platform.libc_ver` gives them; of this Python by default.
    """
    name, version = libc or platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if name != "glibc" or numbers < _GLIBC_KEEPS_FROM:
        return {}
    return dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(_KEPT_BYTES))


def compile_caches() -> dict[str, str]:
    """Variables that let JAX's and torch's compiled programs outlive a process, for those that the user has not set.

    They lie in the user's cache folder, apart by kind of processor: programs for one need not run on another
    that shares the home. JAX would keep only what took a second to compile; a start is made of small programs.
    Where a cache cannot be written (a container's user has no home) it is the framework's own: torch would fail.
    """
    try:
        folder = Path(platformdirs.user_cache_dir("autotune", appauthor=False)) / processor_tag()
    except RuntimeError:  # a user whom the system does not know, and no HOME
        return {}
    jax = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(_JAX_CACHE_BYTES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    torch = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "torchinductor")}
    return (jax if _can_hold(folder / "jax") else {}) | (torch if _can_hold(folder / "torchinductor") else {})


def _can_hold(folder: Path) -> bool:
    """Whether files can be written there; without a home it is ``~``, which would be made here."""
    if not folder.is_absolute():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def processor_tag(root: Path = ROOT) -> str:
    """Short name of the processor's kind: its architecture and a hash of the instructions that it knows."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", read_text(root / "proc/cpuinfo") or "", re.MULTILINE)
    known = " ".join(sorted(found[1].split())) if found else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
