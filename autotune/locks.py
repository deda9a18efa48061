"""Locks between processes: one writer of a run, one user of a GPU."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.errors import BusyError, FileError
from autotune.machine import DeviceInfo
from autotune.store import durable_write


@contextmanager
def hold(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Hold a lock file; the holder's pid and time stand beside it for the message of the next one.

    Raises:
        BusyError: somebody else holds it (said within a second).
    """
    lock, owner = FileLock(path), path.with_suffix(".owner")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        holder = owner.read_text(encoding="utf-8", errors="replace").strip() if owner.exists() else "another process"
        raise BusyError(f"{what} is in use by {holder}. {remedy}") from None
    except OSError as error:
        raise FileError(
            f"cannot lock {path}: {error.strerror or error}. Its folder must be local and writable: choose another "
            "with --runs, or copy the run to one"
        ) from error
    try:
        durable_write(owner, f"PID {os.getpid()} (since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)")
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that is read-only by now; nobody reads it without the lock
            owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def hold_device(device: DeviceInfo) -> Iterator[None]:
    """Be the only autotune process of this user that measures or trains on a GPU; a CPU is not held.

    The lock lies in a private folder below the system's temporary one, keyed by the GPU's UUID.

    Raises:
        BusyError: another process holds it; the message names it.
        FileError: the private folder belongs to somebody else, or cannot be made.
    """
    if device.gpu is None or device.gpu.uuid is None:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"autotune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        there = folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
            raise FileError(
                f"{folder} is not this user's own folder: remove it, or set TMPDIR to another place"
            ) from None
    except OSError as error:
        raise FileError(f"cannot create {folder}: {error.strerror}. Set TMPDIR to a place where it can be") from error
    what = f"{device.name} ({device.gpu.uuid})"
    with hold(folder / f"{device.gpu.uuid}.lock", what, "Wait for it, or choose another GPU with --device cuda:N."):
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file; one that cannot be tried (somebody else's, read-only) is taken for free."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
