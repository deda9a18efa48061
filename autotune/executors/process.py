"""A worker process as its parent sees it: started in its own group, heard over a pipe, ended for sure."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from autotune.codec import to_json
from autotune.device.host import read_text
from autotune.errors import WorkerError, remedy_for
from autotune.executors.environment import worker_environment
from autotune.store import canonical_json, make_folder
from autotune.worker.family import end_descendants
from autotune.worker.protocol import WorkerTask
from autotune.workloads.command_child import count_oom_kills, descendants

Message = dict[str, Any]

_PIPE_BYTES = 2**18
_LINE_LIMIT_BYTES = 2**20
_TAIL_BYTES = 2**16
_REAP_S = 10.0  # a process that a driver holds cannot even be killed; waiting longer would not help


def _start(
    task: WorkerTask, log: Path, pipes: tuple[int, int], extra: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """Start the child that reads commands from the first pipe and writes messages to the second."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "autotune.worker", *map(str, pipes)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pipes,
            env=worker_environment(task, extra),
            start_new_session=True,
        )


class WorkerProcess:
    """One running worker; the constructor starts it.

    Attributes:
        log: file that takes its standard output and error.
        pid: its process id, also that of its group.

    Raises:
        WorkerError: the system refuses another process, or its log.
        FileError: the log's folder cannot be written.
    """

    def __init__(self, task: WorkerTask, log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        make_folder(log.parent)
        self.log, self._oom_kills = log, count_oom_kills()
        try:
            (commands_read, commands_write), (messages_read, messages_write) = _open_pipes()
        except OSError as error:
            raise _refused(log, error) from error
        _widen(messages_read)
        try:
            self._process = _start(task, log, (commands_read, messages_write), environment)
        except OSError as error:
            os.close(commands_write)
            os.close(messages_read)
            raise _refused(log, error) from error
        finally:
            os.close(commands_read)
            os.close(messages_write)
        os.set_blocking(messages_read, False)
        self._commands: int | None = commands_write
        self._messages = messages_read
        self._ended = False
        self._buffer = b""
        self.pid = self._process.pid
        self._write(canonical_json(to_json(task), indent=None))

    def _write(self, line: str) -> None:
        if self._commands is None:
            return
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._commands, left) :]
        except BrokenPipeError:  # it has ended: the message pipe or the exit code says why
            return

    def send(self, command: str) -> None:
        """Send ``go`` or ``stop``; harmless when the worker has ended."""
        self._write(command)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        return self._process.poll()

    @property
    def starved(self) -> bool:
        """Whether it was killed, and the kernel has killed for want of memory since it started."""
        return self.returncode == -signal.SIGKILL and count_oom_kills() > self._oom_kills

    def fileno(self) -> int:
        """Of the message pipe, for selectors."""
        return self._messages

    @property
    def ended(self) -> bool:
        """Whether no more messages will come."""
        return self._ended

    def drain(self) -> list[Message]:
        """Every message that has arrived; a line over 1 MiB or not JSON is dropped."""
        gone = not self.alive  # asked first: all that it wrote is in the pipe by now
        while not self._ended:
            try:
                chunk = os.read(self._messages, 2**16)
            except BlockingIOError:
                self._ended = gone  # a process that it left behind holds the pipe open
                break
            self._ended = not chunk
            self._buffer += chunk
            if len(self._buffer) > 2 * _LINE_LIMIT_BYTES and b"\n" not in self._buffer:
                self._buffer = b""
        *lines, self._buffer = self._buffer.split(b"\n")
        return [message for line in lines if (message := _decode(line)) is not None]

    def receive(self, timeout_s: float) -> list[Message]:
        """Messages that have arrived, waiting up to `timeout_s` for the first."""
        return [message for _, message in receive_all([self], timeout_s)]

    def descendants(self) -> list[int]:
        """Process ids of the worker and everything below it; may miss one while others start and end."""
        return descendants_of(self.pid)

    def kill(self, grace_s: float = 5.0) -> None:
        """End it and all below: SIGTERM to itself, SIGKILL to all after `grace_s`; reaps it and closes the pipes."""
        family = descendants(self.pid) if grace_s > 0 else []
        if grace_s > 0:
            if not self._ended:  # else it is leaving, and its exit code is what there is to know
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        if self.alive:
            self._process.send_signal(signal.SIGSTOP)  # it starts nothing more, and adopts what loses its parent
            end_descendants(self.pid)
        _signal_group(self.pid, signal.SIGKILL)
        for process in family:  # grandchildren that left the group of a worker that died
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        self._close()

    def _close(self) -> None:
        if self._commands is not None:
            os.close(self._commands)
            os.close(self._messages)
            self._commands, self._ended = None, True

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the log; empty where somebody removed it."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _open_pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pipes, or none."""
    first = os.pipe()
    try:
        return first, os.pipe()
    except OSError:
        os.close(first[0])
        os.close(first[1])
        raise


def _refused(log: Path, error: OSError) -> WorkerError:
    otherwise = "`autotune doctor` shows the pids limit, free memory and free disk."
    return WorkerError(
        f"no worker process could be started with the log {log}: {error.strerror or error}. "
        f"{remedy_for(error, otherwise)}"
    )


def _widen(pipe: int) -> None:
    """Room for what a worker says between two looks, where the system allows it: it must never wait for the parent."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _decode(line: bytes) -> Message | None:
    if not line or len(line) > _LINE_LIMIT_BYTES:
        return None
    try:
        message = json.loads(line.decode())  # of bytes, it would first guess their encoding
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def descendants_of(pid: int) -> list[int]:
    """A process and everything below it; empty without such a process. May miss one while others start and end.

    By the kernel's lists of children where it keeps them (CONFIG_PROC_CHILDREN): psutil reads all of ``/proc``.
    """
    if not _lists_children():
        return [pid, *(below.pid for below in descendants(pid))] if psutil.pid_exists(pid) else []
    try:
        children = _listed_children(pid)
    except OSError:  # it ends this moment
        return []
    return [pid, *(found for child in children for found in descendants_of(child))]


@functools.cache
def _lists_children() -> bool:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


def _listed_children(pid: int) -> list[int]:
    """Children of every thread of a process.

    Raises:
        OSError: there is no such process.
    """
    found: list[str] = []
    with os.scandir(f"/proc/{pid}/task") as threads:
        for thread in threads:
            found += (read_text(Path(thread.path, "children")) or "").split()  # None: this thread has ended
    return [int(child) for child in found]


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def receive_all(workers: Sequence[WorkerProcess], timeout_s: float) -> list[tuple[WorkerProcess, Message]]:
    """Messages of several workers, waiting up to `timeout_s` for the first one (or for an end)."""
    waiting = [worker for worker in workers if not worker.ended]
    if not waiting:
        time.sleep(max(0.0, min(timeout_s, 0.05)))
        return []
    if timeout_s > 0:
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker, selectors.EVENT_READ)
            selector.select(timeout_s)
    return [(worker, message) for worker in waiting for message in worker.drain()]
