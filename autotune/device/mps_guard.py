"""Owns a CUDA MPS control daemon and ends with its parent: ``python -P -m autotune.device.mps_guard PROGRAM FOLDER``.

Standard input is a pipe that the parent holds: when it is closed, by the parent or by the kernel at the
parent's death, the daemon is told to quit, what is left of it and of its servers is killed, and where the parent died,
the folder of its pipes and logs is removed, which otherwise the parent reads and removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_S = 0.2
_QUIT_S = 3.0


def main(program: str, folder: str) -> int:
    """Run the daemon in the foreground until standard input ends or it does."""
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # servers that daemonise become children of this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def end_with_guard() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    daemon = subprocess.Popen([program, "-f"], stdin=subprocess.DEVNULL, preexec_fn=end_with_guard)
    while daemon.poll() is None and not select.select([sys.stdin], [], [], _LOOK_S)[0]:
        pass
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([program], input=b"quit\n", timeout=_QUIT_S, check=False)
        daemon.wait(_QUIT_S)
    code = daemon.poll()
    _kill_descendants()
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if code is None else code


def _kill_descendants() -> None:
    """End whatever is left; children are known for certain, unlike processes of a remembered pid."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=_QUIT_S)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
