"""The user's program as a child process: started, heard line by line, ended with all its descendants."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from autotune.progress import FIFO_VARIABLE
from autotune.workloads.command_progress import ProgressCounter, ProgressRule

_LINE_LIMIT_BYTES = 2**15
"""Of a line that is read for progress: a result as one line of JSON holds its whole configuration."""
_KEPT_LIMIT_BYTES = 4096
"""Of a line that is shown and copied."""
_LOG_LIMIT_BYTES = 8 * 2**20
_LOG_FULL = b"[autotune] the log is full: what the program prints from here on is read but not kept\n"
_TAIL_LINES = 200
_CHUNK_BYTES = 2**16
_POLL_S = 0.1
_QUIET_S = 0.2
_LAST_OUTPUT_S = 1.0
_END_OF_TICKS = b"end\n"


class Child:
    """One running program; the constructor starts it, in this process's group, so that both end together.

    Threads read its output and its ticks at all times, so that a full pipe never holds it up. The
    output is copied to this process's own, up to 8 MiB.
    """

    def __init__(
        self, argv: Sequence[str], *, cwd: str | None, environment: Mapping[str, str], rule: ProgressRule
    ) -> None:
        self._progress = ProgressCounter(rule)
        self._progress_at_s = 0.0
        self._changed = threading.Condition()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._unended = b""
        self._copied_bytes = 0
        self._output_ended = False
        self._interrupted = False
        self._by_tick, self._ticked = rule.by_tick, False
        self._oom_kills = count_oom_kills()
        self._ticks: int | None = self._listen()
        # opened anew through /proc by any descendant that ticks: a named pipe without a file to clean up
        ticks = {FIFO_VARIABLE: f"/proc/{os.getpid()}/fd/{self._ticks}"}
        self._process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(environment) | ticks,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self._read_output, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the program."""
        return self._process.pid

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interrupted

    @property
    def progress(self) -> ProgressCounter:
        """What its output has told so far."""
        return self._progress

    @property
    def ticked_unheard(self) -> bool:
        """Whether it calls `autotune.tick`, while its lines are read instead."""
        return self._ticked and not self._by_tick

    def wait_for_progress(self, beyond_steps: int, not_before_s: float, timeout_s: float) -> int | None:
        """Steps done when a line tells of more than `beyond_steps`, or when the program ends.

        A line that arrives before `not_before_s` is added to the next, unless that one is not soon
        to come. At once after `interrupt`. None when `timeout_s` passed without progress.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                due = self._progress_at_s >= not_before_s or time.monotonic() - self._progress_at_s >= _QUIET_S
                told = due and self._progress.steps >= beyond_steps + 1
                if told or self._ended() or self._interrupted:
                    return int(self._progress.steps)
                if time.monotonic() >= deadline_s:
                    return None
                self._changed.wait(_POLL_S)

    def wait_for_end(self, timeout_s: float, enough_steps: float) -> bool:
        """Wait until the program ends, has done so many steps, or `interrupt`; False when `timeout_s` passed first."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not (self._ended() or self._interrupted or self._progress.steps >= enough_steps):
                if time.monotonic() >= deadline_s:
                    return False
                self._changed.wait(_POLL_S)
        return True

    def interrupt(self) -> None:
        """Whoever waits for the program waits no longer; from any thread."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines it printed."""
        return "\n".join(list(self._tail)[-lines:])

    def unended(self) -> str:
        """What it printed last, as long as no line end follows."""
        return self._unended[:_KEPT_LIMIT_BYTES].decode(errors="replace")

    def killed_for_memory(self) -> bool:
        """Whether SIGKILL ended it, or what a shell ran, while the kernel's out-of-memory killer was at work."""
        return self._process.poll() in (-9, 128 + 9) and count_oom_kills() > self._oom_kills

    def end(self, grace_s: float) -> bool:
        """SIGTERM to the program, then to what it leaves behind; SIGKILL to all after `grace_s`; safe to call twice.

        A program ends its own workers; a wrapper such as a shell ends before the program that it runs.

        Returns:
            Whether all ended without SIGKILL.
        """
        family, deadline_s, well = descendants(self.pid), time.monotonic() + grace_s, True
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            _, left = psutil.wait_procs(family, timeout=max(0.0, deadline_s - time.monotonic()))
            well = self._process.poll() is not None and not left
        for process in [*family, *descendants(self.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil makes sure that it is still the same process
        self._process.kill()
        self._process.wait()
        if self._ticks is not None:
            os.write(self._ticks, _END_OF_TICKS)
            self._ticks = None
        return well

    def _ended(self) -> bool:
        """Whether it has ended and its output was read, as far as no descendant holds the pipe open."""
        if self._process.poll() is None:
            return False
        if not self._output_ended:
            self._changed.wait_for(lambda: self._output_ended, _LAST_OUTPUT_S)
        return True

    def _read_output(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        pending = b""
        while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
            t_s = time.monotonic()
            *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
            pending = pending[:_LINE_LIMIT_BYTES]
            self._unended = pending
            self._take_lines(lines, t_s)
        self._take_lines([pending], time.monotonic())
        with self._changed:
            self._output_ended = True
            self._changed.notify_all()
        pipe.close()

    def _take_lines(self, lines: Sequence[bytes], t_s: float) -> None:
        told = [line[:_LINE_LIMIT_BYTES] for line in lines if line.strip()]
        self._copy(b"".join(line[:_KEPT_LIMIT_BYTES] + b"\n" for line in told))
        with self._changed:
            before = self._progress.steps
            for line in told:
                self._tail.append(line[:_KEPT_LIMIT_BYTES].decode(errors="replace"))
                self._progress.read_line(line.decode(errors="replace"), t_s)
            self._note_progress(before, t_s)

    def _note_progress(self, before_steps: float, t_s: float) -> None:
        if self._progress.steps > before_steps:
            self._progress_at_s = t_s
            self._changed.notify_all()

    def _copy(self, data: bytes) -> None:
        if self._copied_bytes > _LOG_LIMIT_BYTES or not data:
            return
        self._copied_bytes += len(data)
        try:
            os.write(1, data if self._copied_bytes <= _LOG_LIMIT_BYTES else _LOG_FULL)
        except OSError:  # a full disk must not stop the program
            self._copied_bytes = _LOG_LIMIT_BYTES + 1

    def _listen(self) -> int:
        """Read ticks in a thread; returns the pipe's write end, which keeps it open until `end`."""
        read_end, write_end = os.pipe()

        def read() -> None:
            with os.fdopen(read_end, "rb") as pipe:
                for line in iter(pipe.readline, _END_OF_TICKS):
                    with self._changed:
                        self._ticked, before = True, self._progress.steps
                        if self._by_tick:
                            self._progress.read_tick(line.decode(errors="replace"))
                        self._note_progress(before, time.monotonic())
            os.close(write_end)

        threading.Thread(target=read, daemon=True).start()
        return write_end


def descendants(pid: int) -> list[psutil.Process]:
    """Processes below a process, none when it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def describe_exit(code: int) -> str:
    """``exit code 3``, or ``signal 9`` for a negative one."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def describe_start_error(error: OSError, program: Path) -> str:
    """Why the system starts no program that is there and executable; a script's first line is what it goes by."""
    if error.errno == errno.ENOEXEC:
        return "its first line names no interpreter: write '#!/bin/sh' there, or the interpreter before it (sh SCRIPT)"
    if error.errno == errno.ENOENT and program.is_file():
        with contextlib.suppress(OSError), program.open("rb") as file:
            first = file.readline(_KEPT_LIMIT_BYTES).rstrip(b"\n").decode(errors="replace")
            ends = (
                ", of which the carriage return is a part: let its lines end in newlines only" if "\r" in first else ""
            )
            return f"the interpreter that its first line names is not there ({first!r}{ends})"
    return error.strerror or str(error)


def count_oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer has ended since boot, 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
