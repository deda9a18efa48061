"""A memory limit on a probe's processes, so that they die and not the machine: Linux control groups.

A group is made only where that is this process's to do: below its own group when that is the top of a
container's tree or was delegated to it, or in the folder that ``AUTOTUNE_CGROUP`` names. Groups have one
writer, and most belong to systemd or to whatever else manages the machine.
(https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/memory.html, https://systemd.io/CGROUP_DELEGATION/)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.device.host import ROOT, read_text

FOLDER_VARIABLE = "AUTOTUNE_CGROUP"
_NAME = "autotune"
_VICTIM_SCORE = 800
_REMOVE_S = 2.0
_POLL_S = 0.05
_serial = itertools.count()


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A control group with a memory limit.

    Attributes:
        folder: where its control files lie.
        version: of the control group interface, 1 or 2.
    """

    folder: Path
    version: int

    def add(self, pid: int) -> bool:
        """Put a process in, with all that it will start; False when the kernel refuses."""
        return _write(self.folder / "cgroup.procs", str(pid))

    def oom_kills(self) -> int:
        """Processes in it that were killed for exceeding the limit."""
        text = read_text(self.folder / ("memory.oom_control" if self.version == 1 else "memory.events")) or ""
        match = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
        return int(match[1]) if match else 0

    def remove(self) -> bool:
        """Remove it; its processes must have ended, which the kernel may take a moment to notice."""
        deadline_s = time.monotonic() + _REMOVE_S
        while self.folder.exists():
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return True
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True


def parent_folder(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> tuple[Path, int] | None:
    """(folder in which groups may be made, version of its interface), None where there is none."""
    named = environment.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named)
        return folder, 2 if (folder / "cgroup.controllers").exists() else 1
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if controllers == "" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / ("" if version == 2 else "memory") / path.strip("/")
        if folder.is_dir() and _limits_memory(folder, version) and (path == "/" or _delegated(folder)):
            return folder, version
    return None


def _limits_memory(folder: Path, version: int) -> bool:
    """Whether a group made here would have a memory limit, under those of the groups above."""
    name, wanted = ("memory.use_hierarchy", "1") if version == 1 else ("cgroup.subtree_control", "memory")
    return wanted in (read_text(folder / name) or "").split()


def _delegated(folder: Path) -> bool:
    """Whether systemd has left the group to its processes."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError, AttributeError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def make_group(limit_bytes: int, parent: tuple[Path, int] | None) -> MemoryGroup | None:
    """A new group with this limit and no swap beyond it; None when the kernel refuses.

    Args:
        limit_bytes: of all its processes together.
        parent: see `parent_folder`.
    """
    if parent is None:
        return None
    group = MemoryGroup(folder=parent[0] / f"{_NAME}-{os.getpid()}-{next(_serial)}", version=parent[1])
    with contextlib.suppress(OSError):
        group.folder.mkdir()
        memory, swap, swap_bytes = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit_bytes)
            if group.version == 1
            else ("memory.max", "memory.swap.max", 0)
        )
        if _write(group.folder / memory, str(limit_bytes)):
            _write(group.folder / swap, str(swap_bytes))  # a kernel may account for no swap: then it is not limited
            return group
        group.remove()
    return None


@contextlib.contextmanager
def memory_limit(limit_bytes: int, root: Path = ROOT) -> Iterator[MemoryGroup | None]:
    """A group for the time being; None where there can be none. Its processes must end within."""
    group = make_group(limit_bytes, parent_folder(root))
    try:
        yield group
    finally:
        if group is not None:
            group.remove()


def offer_as_victim(pid: int, root: Path = ROOT) -> bool:
    """Have the kernel kill this process, and those that it starts, before others when memory runs out (Linux)."""
    return _write(root / f"proc/{pid}/oom_score_adj", str(_VICTIM_SCORE))


def _write(path: Path, text: str) -> bool:
    try:
        path.write_text(text)
    except OSError:
        return False
    return True
