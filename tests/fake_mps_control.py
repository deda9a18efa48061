#!/usr/bin/env python3
"""Stands for ``nvidia-cuda-mps-control``: files in the pipe folder instead of pipes. $FAKE_MPS says what goes wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

pipes, logs = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]), Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
fault = os.environ.get("FAKE_MPS", "")
servers, wanted, quitting, control = (pipes / name for name in ("servers", "wanted", "quit", "control"))
LEAVING = "import subprocess as s; print(s.Popen(['sleep', '300'], start_new_session=True, stdout=s.DEVNULL).pid)"
"""Starts a server that leaves its parent and its session, as the real one does."""


def daemon() -> None:
    if fault == "refused":
        (logs / "control.log").write_text("[1] Starting\n[1] Failed to allocate the GPU: not permitted\n")
        sys.exit(1)
    if fault == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    control.write_text(str(os.getpid()))
    while fault == "deaf" or not quitting.exists():
        time.sleep(0.02)
        if wanted.exists() and not servers.exists():
            server = subprocess.run([sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, text=True)
            servers.write_text(server.stdout)
    for pid in servers.read_text().split() if servers.exists() else []:
        os.kill(int(pid), signal.SIGTERM)


def answer(command: str) -> None:
    if command.startswith("start_server") and fault != "no-server":
        wanted.touch()
    elif command == "get_server_list" and servers.exists():
        print(servers.read_text().strip())
    elif command == "quit":
        quitting.touch()


if sys.argv[1:] == ["-f"]:
    daemon()
elif not control.exists():
    sys.exit("Cannot find MPS control daemon process")
else:
    for line in sys.stdin:
        answer(line.strip())
