"""The one place that writes files: durable, atomic, canonical.

A file is written beside its target, flushed to the disk, renamed over it, and the folder is
flushed too: a crash or a power loss at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from autotune.errors import FileError, remedy_for

_LINE_BYTES = 2**16
"""Few lines are longer."""


def canonical_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON with sorted keys and no NaN, the same text for the same value.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False, ensure_ascii=False)


def content_hash(data: bytes | str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def set_aside(path: Path, mark: str) -> Path:
    """Rename a file to its name and the mark, such as ``.old``, or ``.old2`` where that is taken; returns its place.

    Raises:
        FileError: the folder cannot be written to.
    """
    free = _free_place(path, mark)
    with _file_errors(path, "rename"):
        path.rename(free)
    return free


def keep_copy(path: Path, mark: str) -> Path:
    """Copy a file that is replaced next, never changed in place, to where `set_aside` would move it.

    Raises:
        FileError: it cannot be read, or the folder cannot be written to.
    """
    free = _free_place(path, mark)
    copy_file(path, free, link=True)
    return free


def _free_place(path: Path, mark: str) -> Path:
    names = (f"{path.name}{mark}{number}" for number in itertools.chain([""], itertools.count(2)))
    return next(place for name in names if not (place := path.with_name(name)).exists())


@contextmanager
def _file_errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        otherwise = "Check that the folder exists, is writable and has free space, or choose another with --runs."
        raise FileError(f"cannot {doing} {path}: {error.strerror or error}. {remedy_for(error, otherwise)}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk.

    Raises:
        FileError: it is not there, or the disk is full or fails.
    """
    with _file_errors(path, "flush"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def durable_write(path: Path, data: bytes | str) -> None:
    """Replace `path` with `data`, atomically and flushed to the disk.

    Raises:
        FileError: the folder is missing, read-only or full; the old file is untouched.
    """
    raw = data.encode() if isinstance(data, str) else data
    with _file_errors(path, "write"):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def copy_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file durably to where there is none.

    Args:
        source: what to copy.
        target: where to; its folder's entries are the caller's to flush when it is a link.
        link: share the bytes by a hard link where the file system can: for files that never change in place.

    Raises:
        FileError: the source cannot be read, or the folder is missing, read-only or full.
    """
    with _file_errors(target, f"copy {source} to"):
        if link:
            try:
                os.link(source.resolve(), target)  # never a link to a link, which may be relative
            except OSError:  # another file system, or one without links
                pass
            else:
                return
        data = source.read_bytes()
    durable_write(target, data)


def write_json(path: Path, value: Any) -> None:
    """`durable_write` of canonical JSON."""
    durable_write(path, canonical_json(value) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        FileError: missing, unreadable or not JSON.
    """
    with _file_errors(path, "read"):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON ({error}); it may be truncated: restore or regenerate it") from error


def append_line(path: Path, value: Any, *, sync: bool = False) -> None:
    """Append one JSON line; with `sync` it is on the disk when this returns.

    A line torn by a crash before is dropped first, else it would take this one with it.

    Raises:
        FileError: the folder is missing, read-only or full.
    """
    line = canonical_json(value, indent=None) + "\n"
    with _file_errors(path, "append to"), path.open("a+b") as file:
        _end_last_line(file)
        file.write(line.encode())
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _end_last_line(file: BinaryIO) -> None:
    """Drop a last line that `read_lines` leaves out, and end one that is whole."""
    size = file.seek(0, os.SEEK_END)
    tail = _last_line(file, size)
    try:
        json.loads(tail or b"0")
    except ValueError:
        file.truncate(size - len(tail))
    else:
        if tail and not tail.endswith(b"\n"):
            file.write(b"\n")


def _last_line(file: BinaryIO, size: int) -> bytes:
    """The last line, with the newline that may end it; all of the file is read only where it is that long."""
    for length in (min(size, _LINE_BYTES), size):
        file.seek(size - length)
        before, newline, _ = (tail := file.read(length))[:-1].rpartition(b"\n")
        if newline:
            return tail[len(before) + 1 :]
    return tail


def read_lines(path: Path) -> list[Any]:
    """The JSON lines of a file; a torn last line (power loss while appending) is left out.

    Raises:
        FileError: a line other than the last is damaged.
    """
    if not path.exists():
        return []
    with _file_errors(path, "read"):
        lines = path.read_bytes().splitlines()
    rows: list[Any] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise FileError(
                f"{path}, line {number} is damaged ({error}): remove that line, or restore the file"
            ) from error
    return rows


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        FileError: it cannot be created or written to.
    """
    with _file_errors(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path
