"""Entry of a worker process: ``python -P -m autotune.worker COMMAND_FD MESSAGE_FD``."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from autotune import registry
from autotune.codec import from_json
from autotune.device.host import ram_available_bytes
from autotune.errors import AutotuneError, BusyError, FileError, UsageError, WorkerError
from autotune.worker.family import end_descendants
from autotune.worker.measure import effective_of, measure, run_steps
from autotune.worker.protocol import WorkerTask
from autotune.workloads.guards import RAM_VARIABLE
from autotune.workloads.memory_words import tells_out_of_memory
from autotune.workloads.protocol import Finished, NoProgressError, RefusedError, Session, Workload

Send = Callable[[dict[str, Any]], None]

_CEILING_S = 1.5
_ORPHAN_GRACE_S = 8.0
_KINDS = {
    UsageError: "misuse",
    NoProgressError: "silent",
    RefusedError: "refused",
    FileError: "file",
    BusyError: "busy",
}
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Commands:
    """The parent's commands, read by a thread; a parent that dies ends the process group.

    Raises:
        WorkerError: the system refuses that thread.
    """

    def __init__(self, pipe: IO[str], *, grace_s: float) -> None:
        self.go = threading.Event()
        self.stop = threading.Event()
        self._grace_s = grace_s
        try:
            threading.Thread(target=self._read, args=(pipe,), daemon=True).start()
        except RuntimeError as error:
            raise WorkerError(
                f"the system refuses a worker another thread ({error}): lower concurrency, or raise the limit on "
                "processes and threads, which `autotune doctor` shows"
            ) from error

    def end(self) -> None:
        """Wait for no further command, and end."""
        self.stop.set()
        self.go.set()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            {"go": self.go, "stop": self.stop}.get(line.strip(), threading.Event()).set()
        self.end()
        time.sleep(self._grace_s)
        end_descendants(os.getpid())
        os.killpg(os.getpgid(0), signal.SIGKILL)


def classify(error: BaseException) -> str:
    """Kind of a failure: ``oom``, ``misuse``, ``silent``, ``refused``, ``file``, ``busy`` or ``crashed``."""
    for kind, name in _KINDS.items():
        if isinstance(error, kind):
            return name
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"OutOfMemoryError", "MemoryError"} or tells_out_of_memory(str(error)):
        return "oom"
    return "crashed"


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that a daemon ends with this process (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Be ended some seconds after the parent has died although no thread of Python's can run any more (Linux).

    A driver that hangs with the interpreter's lock in its hands keeps `Commands` from noticing. So the kernel sends a
    signal that nobody else does, and its handler is libc's `alarm` itself, which takes the number, 16, for seconds:
    longer than an orphan has to save. What that alarm then sends ends a process that has no handler for it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        libc.signal(signal.SIGSTKFLT, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGSTKFLT, 0, 0, 0)


def check_states(workload: Workload, task: WorkerTask) -> None:
    """Refuse checkpoints that do not fit their jobs, where the workload can tell without a session."""
    check = getattr(workload, "check_state", None)
    for job in task.jobs:
        if check is None or job.id not in task.states:
            continue
        try:
            check(task.point, job, task.states[job.id])
        except UsageError as error:
            raise UsageError(f"job {job.id}: {error}") from error


def in_effect(session: Session, checkpoint: str | None) -> dict[str, Any]:
    """What took effect in a session that will be measured, after a trained job's state, if any, was put into it."""
    effective = effective_of(session)
    if checkpoint is None:
        return effective
    from autotune.worker.checkpoint import restore_session

    meta = restore_session(session, Path(checkpoint))
    return effective | {"trained_env_steps": meta["progress"]["env_steps"]}


def execute(task: WorkerTask, commands: Commands, send: Send, ending: contextlib.ExitStack) -> None:
    """Open the session that the task names, to be closed by `ending`, and do what its mode says."""
    workload: Workload = registry.load("workload", task.workload)(task.hyperparameters)
    if task.mode == "check":
        workload.check_installed(task.point, task.jobs, task.device)
        check_states(workload, task)
        send({"type": "done", "reason": "checked"})
        return
    started_s = time.monotonic()
    free_bytes = ram_available_bytes()
    os.environ[RAM_VARIABLE] = str(free_bytes if task.ram_bytes is None else min(free_bytes, task.ram_bytes))
    session: Session = workload.open(task.point, task.jobs[0], task.device)
    ending.callback(session.close)
    if interrupt := getattr(session, "interrupt", None):
        threading.Thread(target=lambda: commands.stop.wait() and interrupt(), daemon=True).start()
    effective = in_effect(session, task.checkpoint)
    ready = {"type": "ready", "open_s": time.monotonic() - started_s, "threads": task.threads}
    ready |= {"stop_s": getattr(session, "stop_s", 0.0), "effective": effective}
    send(ready)
    if task.mode == "measure":
        if hurry := getattr(session, "hurry", None):
            hurry(task.end_by_s)
        measure(session, send, commands.go, commands.stop, long_iteration_s=task.plan.long_iteration_s)
    elif task.mode == "ceilings":
        parts = session.ceilings(_CEILING_S) if hasattr(session, "ceilings") else {}
        send({"type": "done", "reason": "ceilings", "ceilings": parts})
    elif task.mode == "steps":
        run_steps(session, task.steps, send, commands.stop)
    else:
        from autotune.worker.train import train

        train(session, task, send, commands.stop.is_set)


def close(ending: contextlib.ExitStack) -> None:
    """Close the session; that it cannot be closed stands in the log, and changes nothing of what it did."""
    try:
        ending.close()
    except Exception as error:  # noqa: BLE001 - of an environment or a framework, and this process ends anyway
        log_error(error)


def log_error(error: Exception) -> None:
    """Write it to the log, if that takes anything; one of ours that nothing else caused says all that matters."""
    with contextlib.suppress(OSError):  # its disk is full
        if isinstance(error, AutotuneError) and error.__cause__ is None:
            sys.stderr.write(f"autotune: {error}\n")
        else:
            traceback.print_exception(error)


def main(arguments: list[str]) -> int:
    """Read the task, carry it out, say how it ended."""
    command_pipe = os.fdopen(int(arguments[0]), "r", encoding="utf-8")
    message_pipe = os.fdopen(int(arguments[1]), "w", buffering=1, encoding="utf-8")
    task: WorkerTask = from_json(WorkerTask, json.loads(command_pipe.readline()))
    adopt_orphans()
    end_with_parent()

    def send(message: dict[str, Any]) -> None:
        message_pipe.write(json.dumps(message) + "\n")

    ending = contextlib.ExitStack()  # after its last message is sent: to close a session may fail, or never end
    try:
        commands = Commands(command_pipe, grace_s=_ORPHAN_GRACE_S if task.mode == "train" else 0.5)
        if task.mode in ("train", "measure"):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: commands.end())
        execute(task, commands, send, ending)
    except Finished as end:
        send({"type": "done", "reason": "finished", "detail": str(end)})
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure becomes a message
        log_error(error)
        detail = (
            str(error) if isinstance(error, AutotuneError) else f"{type(error).__name__}: {error}".removesuffix(": ")
        )
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: the log has it
            send({"type": "error", "kind": classify(error), "detail": detail[:2000]})
        return 1
    finally:
        close(ending)
        end_descendants(os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
