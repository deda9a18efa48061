"""One worker in a job's folder: waits for a predecessor that saves and ends, and kills one that no longer can."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotune.device.host import still_runs
from autotune.errors import BusyError

ORPHAN_S = 20.0
"""Within which a worker whose supervisor was killed saves and ends."""
_KILLED_S = 5.0


def lock_job(folder: Path, predecessor: Sequence[Any]) -> FileLock:
    """Be the only one that trains in a job's folder.

    Args:
        folder: of the job.
        predecessor: boot id, pid and start ticks of the worker that trained there last; empty when unknown. If it
            still does after `ORPHAN_S`, it was stopped or hangs without a supervisor: it is killed with its group,
            and nobody else ever is.

    Returns:
        The lock, held.

    Raises:
        BusyError: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    for wait_s in (ORPHAN_S, _KILLED_S):
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            if not _kill_group(predecessor):
                break
        else:
            return lock
    raise BusyError(f"another worker still trains in {folder}. Find it with `fuser {folder / '.lock'}` and stop it.")


def _kill_group(leader: Sequence[Any]) -> bool:
    """Kill a process and its group if it is still the same one and leads it; whether it was."""
    if not still_runs(leader):
        return False
    pid = int(leader[1])
    try:
        if os.getpgid(pid) != pid:
            return False
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
