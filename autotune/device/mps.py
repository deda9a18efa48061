"""CUDA MPS, NVIDIA's Multi-Process Service: processes compute on one GPU at once instead of taking turns.

A private control daemon serves the children of one probe or training and is gone afterwards, whatever
happens to this process (`autotune.device.mps_guard`). It needs no privileges: its pipes and logs lie in
a folder of its own. https://docs.nvidia.com/deploy/mps/
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from autotune.device.inspect import child_environment
from autotune.errors import DeviceError, UsageError
from autotune.machine import DeviceInfo
from autotune.records import SHARING, SHARINGS, Point

PROGRAM = "nvidia-cuda-mps-control"
_START_S = 10.0
_ANSWER_S = 5.0
_POLL_S = 0.1
_STOP_S = 12.0
"""More than the guard itself waits before it kills."""
_LOG_LINES = 3


def check_sharing(value: object) -> None:
    """Refuse a value of the knob ``sharing`` that is none; None (no such knob) passes.

    Raises:
        UsageError: names the value and those there are.
    """
    if value is None or value in SHARINGS:
        return
    which = " (mps alone means Apple's Metal Performance Shaders)" if value == "mps" else ""
    raise UsageError(f"{SHARING} = {value!r} is no way to share a GPU{which}: write {' or '.join(SHARINGS)}")


def mps_problem(device: DeviceInfo) -> str | None:
    """Why CUDA MPS cannot be started for this device, None when nothing speaks against it."""
    if device.kind != "cuda":
        return f"it needs an NVIDIA GPU, and the device in use is {device.kind} ({device.name})"
    if device.mps_active:
        return "a CUDA MPS control daemon of someone else already runs on this machine"
    if device.gpu is not None and device.gpu.mig_enabled:
        return "the GPU is split by MIG"
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM}, which comes with NVIDIA's driver, is not on PATH"
    return None


def check_compute_mode(device: DeviceInfo, point: Point) -> None:
    """Refuse a point whose processes the GPU's compute mode keeps out; CUDA MPS is one process to it.

    Raises:
        DeviceError: names the mode, the point's concurrency and the remedy.
    """
    mode = None if device.gpu is None else device.gpu.compute_mode
    if _admits_several(device) or (mode != "prohibited" and (point.concurrency == 1 or _wants_mps(point))):
        return
    others = "" if mode == "prohibited" else ", or sharing = cuda-mps, or concurrency = 1"
    raise DeviceError(
        f"the GPU's compute mode is {mode}, which admits {'no' if mode == 'prohibited' else 'one'} process, and "
        f"concurrency is {point.concurrency}: set the mode to default (sudo nvidia-smi -c 0){others}"
    )


def _admits_several(device: DeviceInfo) -> bool:
    """Whether the GPU's compute mode lets several processes in."""
    return device.gpu is None or device.gpu.compute_mode in (None, "default")


@contextlib.contextmanager
def shared_device(device: DeviceInfo, point: Point) -> Iterator[dict[str, str]]:
    """The environment in which a point's processes see their device and share it as the point says.

    Raises:
        DeviceError: the point wants CUDA MPS, and it does not serve here, or the GPU admits fewer processes; says why.
    """
    check_compute_mode(device, point)
    environment = child_environment(device)
    if _wants_mps(point):
        with _serving(device, environment) as variables:
            yield environment | variables
    elif SHARING in dict(point.extra) and device.mps_active and _admits_several(device):
        # CUDA goes to whatever daemon it finds in this folder; one that holds the GPU for itself is the only way to it
        with tempfile.TemporaryDirectory(prefix="autotune-turns-", ignore_cleanup_errors=True) as empty:
            yield environment | {"CUDA_MPS_PIPE_DIRECTORY": empty}
    else:
        yield environment


@contextlib.contextmanager
def shared_if_possible(
    device: DeviceInfo, point: Point, warn: Callable[[str], None]
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """`shared_device` and `sharing_in_effect`; where CUDA MPS does not serve, a warning and turns instead.

    Raises:
        DeviceError: the GPU admits fewer processes.
    """
    with contextlib.ExitStack() as stack:
        try:
            shared = stack.enter_context(shared_device(device, point)), sharing_in_effect(point)
        except DeviceError as error:
            turns = replace(point, extra=((SHARING, SHARINGS[0]),))
            shared = stack.enter_context(shared_device(device, turns)), {SHARING: SHARINGS[0]}
            warn(f"{error}. The processes take turns on the device instead.")
        yield shared


def sharing_in_effect(point: Point) -> dict[str, str]:
    """The knob ``sharing`` as it takes effect, empty where the point has none; a single process shares nothing."""
    return {SHARING: SHARINGS[_wants_mps(point)]} if SHARING in dict(point.extra) else {}


def _wants_mps(point: Point) -> bool:
    return point.concurrency > 1 and dict(point.extra).get(SHARING) == "cuda-mps"


@contextlib.contextmanager
def _serving(device: DeviceInfo, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a control daemon with a server; yields what its clients need in their environment."""
    problem = mps_problem(device)
    if problem is not None:
        raise DeviceError(f"CUDA MPS cannot be started: {problem}")
    with tempfile.TemporaryDirectory(prefix="autotune-mps-", ignore_cleanup_errors=True) as folder:  # mode 0700
        pipes, logs = Path(folder) / "pipe", Path(folder) / "log"
        pipes.mkdir(mode=0o700)
        logs.mkdir(mode=0o700)
        variables = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
        whole = {**os.environ, **environment, **variables}
        with (logs / "guard.log").open("wb") as errors:
            guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "autotune.device.mps_guard", PROGRAM, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=whole,
                start_new_session=True,  # Ctrl-C on the terminal is this process's affair
            )
        try:
            _wait_for_server(guard, whole, logs)
            yield variables
        finally:
            _stop(guard)


def _wait_for_server(guard: subprocess.Popen[bytes], environment: Mapping[str, str], logs: Path) -> None:
    """Return when a server runs, not only the daemon that would start one."""
    deadline_s = time.monotonic() + _START_S
    while guard.poll() is None and time.monotonic() < deadline_s:
        _ask(f"start_server -uid {os.getuid()}", environment)
        if any(word.isdigit() for word in _ask("get_server_list", environment).split()):
            return
        time.sleep(_POLL_S)
    ended = guard.poll() is not None
    why = "its control daemon ended at once" if ended else f"no server appeared within {_START_S:.0f} s"
    raise DeviceError(f"CUDA MPS does not serve here: {why}; {_last_lines(logs)}")


def _ask(command: str, environment: Mapping[str, str]) -> str:
    """What the control daemon answers, empty when it does not."""
    try:
        answer = subprocess.run(
            [PROGRAM],
            input=f"{command}\n",
            env=environment,
            timeout=_ANSWER_S,
            capture_output=True,
            text=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _last_lines(logs: Path) -> str:
    """What its logs say at their ends."""
    said = [path.read_text(errors="replace").splitlines()[-_LOG_LINES:] for path in sorted(logs.glob("*.log"))]
    lines = [line.strip() for lines in said for line in lines if line.strip()]
    return f"its logs end with: {' | '.join(lines)}" if lines else "its logs are empty"


def _stop(guard: subprocess.Popen[bytes]) -> None:
    """Have the guard end the service and itself."""
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        guard.kill()  # the daemon then gets SIGTERM from the kernel
        guard.wait()
