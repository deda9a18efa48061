"""The end of everything below a process, what starts meanwhile included."""

from __future__ import annotations

import contextlib
import time

import psutil

from autotune.workloads.command_child import descendants

WITHIN_S = 2.0
_POLL_S = 0.02


def end_descendants(pid: int) -> None:
    """Kill whatever runs below a process until nothing does, for `WITHIN_S` at most; some may have left the group.

    The process itself should start nothing more, and adopt what loses its parent (`adopt_orphans`).
    """
    deadline_s = time.monotonic() + WITHIN_S
    while (left := [child for child in descendants(pid) if _runs(child)]) and time.monotonic() < deadline_s:
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()
        time.sleep(_POLL_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
