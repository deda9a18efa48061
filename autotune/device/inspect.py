"""Which device this machine trains on, described: NVML first, ``nvidia-smi`` next, else unknown."""

from __future__ import annotations

import errno
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from autotune.device.host import ROOT, inspect_host, read_text
from autotune.device.nvml import NvmlAnswer, read_nvml
from autotune.device.prices import find_sku
from autotune.device.smi import Run, read_smi, run_program
from autotune.errors import DeviceError, UsageError
from autotune.machine import DeviceInfo, GpuInfo, HostInfo


def visible_gpus(gpus: tuple[GpuInfo, ...], variable: str | None) -> list[int]:
    """Indexes of the GPUs that CUDA will show, in CUDA's order (with CUDA_DEVICE_ORDER=PCI_BUS_ID).

    CUDA_VISIBLE_DEVICES holds indexes or UUID prefixes; the first entry that names no GPU hides
    itself and all after it. A ``MIG-`` entry names a part of a GPU, whose UUID NVML gave; a divided GPU's own
    UUID stands for the part that CUDA uses.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    if variable is None:
        return [gpu.index for gpu in gpus]
    shown: list[int] = []
    for entry in (part.strip() for part in variable.split(",")):
        match = [
            gpu.index
            for number, gpu in enumerate(gpus)  # CUDA counts those that may be used, NVML all
            if entry == str(number) or (entry and not entry.isdigit() and _is_named(gpu, entry))
        ]
        if len(match) != 1:
            break
        shown += match
    return shown


def _is_named(gpu: GpuInfo, start: str) -> bool:
    """Whether its UUID, or that of the board it is a part of, begins so."""
    return any((uuid or "").startswith(start) for uuid in (gpu.uuid, gpu.board_uuid))


def _is_listened_to(path: Path) -> bool:
    """Whether a process listens at this socket; what a killed one has left of it refuses."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EPROTOTYPE)  # has no time, is of another type
    return True


def mps_active(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a CUDA MPS control daemon runs (it listens at its socket, or its process is listed)."""
    pipe = environment.get("CUDA_MPS_PIPE_DIRECTORY", str(root / "tmp/nvidia-mps"))
    if _is_listened_to(Path(pipe) / "control"):
        return True
    names = (read_text(path) for path in (root / "proc").glob("[0-9]*/comm"))
    return any((name or "").startswith("nvidia-cuda-mps") for name in names)


def _read_gpus(
    nvml: Any, run: Run, visible: str
) -> tuple[NvmlAnswer, Literal["nvml", "nvidia-smi"] | None, str | None]:
    """(answer, who gave it, why NVML did not)."""
    answer = read_nvml(nvml, visible=visible)
    if answer.problem is None:
        return answer, "nvml", None
    fallback = read_smi(run)
    if fallback.problem is None:
        return fallback, "nvidia-smi", answer.problem
    return answer, None, answer.problem


def _parse(want: str) -> tuple[str, int | None]:
    """``cuda:1`` -> ("cuda", 1).

    Raises:
        UsageError: not a device's name.
    """
    match = re.fullmatch(r"(auto|cpu|mps|cuda)(?::(\d+))?", want.strip().lower())
    if not match or (match[2] and match[1] != "cuda"):
        raise UsageError(f"device {want!r} is not understood: write auto, cpu, cuda, cuda:0 or mps")
    return match[1], int(match[2]) if match[2] else None


def _missing(want: str, device: DeviceInfo, shown: list[int], variable: str | None, mps: bool) -> DeviceError:
    """What is asked for and not there, what there is, and why."""
    there = [f"cuda:{n} ({next(g.name for g in device.gpus if g.index == i)})" for n, i in enumerate(shown)]
    there += ["mps"] * mps + ["cpu"]
    why = ""
    if want.startswith("cuda") and device.gpus and variable is not None:
        why = f" CUDA_VISIBLE_DEVICES={variable!r} shows {len(shown)} of {len(device.gpus)} GPUs."
    elif want.startswith("cuda") and device.nvml_problem:
        why = f" The NVIDIA driver did not answer: {device.nvml_problem}."
    return DeviceError(
        f"device {want!r} is not on this machine; there is: {', '.join(there)}.{why} "
        "Choose one with --device, or run `autotune doctor`."
    )


def inspect_device(
    want: str = "auto",
    *,
    pynvml: Any = None,
    run: Run = run_program,
    host: HostInfo | None = None,
    environment: Mapping[str, str] = os.environ,
    apple_gpu: bool = sys.platform == "darwin" and platform.machine() == "arm64",
    root: Path = ROOT,
) -> DeviceInfo:
    """The device to train on and the machine around it; loads no framework and starts no CUDA context.

    Args:
        want: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``cuda``, ``cuda:N`` (CUDA's count) or ``mps``.
        pynvml: the NVML binding, ``nvidia-ml-py`` by default.
        run: runs ``nvidia-smi``.
        host: what is known about the machine, read by default.
        environment: where CUDA_VISIBLE_DEVICES stands.
        apple_gpu: whether this is a Mac with Apple silicon.
        root: where ``proc`` lies.

    Raises:
        UsageError: `want` is no device's name.
        DeviceError: it is not on this machine; the message names those that are.
    """
    kind, number = _parse(want)
    host = host if host is not None else inspect_host(root=root)
    variable = environment.get("CUDA_VISIBLE_DEVICES")
    answer, source, problem = _read_gpus(pynvml, run, variable or "")
    device = DeviceInfo(
        kind="cpu",
        name=host.cpu_model,
        host=host,
        gpus=answer.gpus,
        driver=answer.driver,
        cuda_driver=answer.cuda_driver,
        source=source,
        nvml_problem=problem,
        mps_active=mps_active(root, environment) if answer.gpus else None,
        pci_order=environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID",
    )
    chosen = _choose(device, kind, number or 0, visible_gpus(answer.gpus, variable), apple_gpu)
    if chosen is None:
        raise _missing(want, device, visible_gpus(answer.gpus, variable), variable, apple_gpu)
    return chosen


def usable_device(want: str = "auto") -> DeviceInfo:
    """`inspect_device` for work on the device: a GPU that does not answer is refused, and no reason to take the CPU.

    Raises:
        UsageError: `want` is no device's name.
        DeviceError: it is not on this machine, or does not answer; the message names it.
    """
    device = inspect_device(want)
    gpu = device.gpu
    fell_back = _parse(want)[0] == "auto" and device.kind == "cpu"
    if fell_back and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        # the lost one's UUID is not known: it may be the one named there
        gpu = next((each for each in device.gpus if each.problem is not None), None)
    if gpu is not None and gpu.problem is not None:
        raise DeviceError(
            f"GPU {gpu.index} does not answer: {gpu.problem}. Reset it or reboot the machine, and if it comes again "
            "rent another one; --device cpu does without."
        )
    return device


def _choose(device: DeviceInfo, kind: str, number: int, shown: list[int], apple_gpu: bool) -> DeviceInfo | None:
    """The machine with the wanted device in use, None where it is not there; `shown` are the GPUs that CUDA shows."""
    by_index = {gpu.index: gpu for gpu in device.gpus}
    healthy = [index for index in shown if by_index[index].problem is None]
    if kind == "auto":
        kind = "cuda" if healthy else "mps" if apple_gpu else "cpu"
        shown = healthy
    if kind == "cpu":
        return device
    if kind == "mps":
        return replace(device, kind="mps", name=f"{device.host.cpu_model} GPU") if apple_gpu else None
    if number >= len(shown):
        return None
    gpu = by_index[shown[number]]
    return replace(device, kind="cuda", name=gpu.name, gpu_index=gpu.index, sku=find_sku(gpu))


def child_environment(device: DeviceInfo) -> dict[str, str]:
    """Variables that make a child see the inspected GPU alone, as ``cuda:0``; a CPU child sees none.

    CUDA's own order is "fastest first" and need not be NVML's; naming the GPU by UUID cannot go wrong.
    """
    gpu = device.gpu
    visible = "" if gpu is None else gpu.uuid or str(gpu.index)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}
