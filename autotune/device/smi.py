"""NVIDIA GPUs through the ``nvidia-smi`` program, for when NVML does not answer."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Sequence

from autotune.device.nvml import NvmlAnswer, bounded
from autotune.machine import GpuInfo, GpuProcess

Run = Callable[[Sequence[str]], str | None]
"""Runs a program and gives its output, None when it is missing, hangs or says nothing."""

FIELDS = (
    "index",
    "name",
    "uuid",
    "memory.total",
    "memory.free",
    "memory.used",
    "compute_cap",
    "power.limit",
    "power.default_limit",
    "power.draw",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "ecc.mode.current",
    "ecc.errors.uncorrected.volatile.total",
    "mig.mode.current",
    "persistence_mode",
    "compute_mode",
    "driver_version",
)
_MIB = 2**20
_KILL_S = 1.0


def run_program(arguments: Sequence[str], timeout_s: float = 15.0) -> str | None:
    """Output and errors of a program as text, None when it is missing or takes longer than `timeout_s`."""
    # One that hangs in the driver cannot be killed, and `subprocess.run` waits for its end.
    output: str | None = bounded(functools.partial(_output, arguments, timeout_s), timeout_s + _KILL_S)
    return output


def _output(arguments: Sequence[str], timeout_s: float) -> str | None:
    try:
        done = subprocess.run(
            list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace").strip() or None


def _value(text: str | None) -> str | None:
    """A field, None for ``[N/A]``, ``[Not Supported]``, ``[Unknown Error]`` and the like."""
    text = (text or "").strip()
    return None if not text or text.startswith("[") or text in {"N/A", "Not Supported"} else text


def _number(text: str | None) -> float | None:
    match = re.match(r"-?\d+(?:\.\d+)?", _value(text) or "")
    return float(match[0]) if match else None


def _whole(text: str | None, factor: int = 1) -> int | None:
    number = _number(text)
    return None if number is None else int(number * factor)


def _enabled(text: str | None) -> bool | None:
    value = _value(text)
    return None if value is None else value == "Enabled"


def _query(run: Run, fields: Sequence[str]) -> tuple[list[dict[str, str]], str | None]:
    """Rows by field name and what went wrong; a field that this version does not know is left out."""
    known = list(fields)
    while True:
        output = run(["nvidia-smi", f"--query-gpu={','.join(known)}", "--format=csv,noheader,nounits"])
        if output is None:
            return [], "nvidia-smi is missing or does not answer"
        unknown = re.search(r'Field "([\w.]+)" is not a valid field', output)
        if not unknown or unknown[1] not in known:
            break
        known.remove(unknown[1])
    split = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    rows = [dict(zip(known, cells, strict=True)) for cells in split if len(cells) == len(known) and cells[0].isdigit()]
    return rows, None if rows else output.splitlines()[0]


def _processes(run: Run) -> dict[str, list[GpuProcess]]:
    """Processes on each GPU by the GPU's UUID."""
    command = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory,process_name"]
    found: dict[str, list[GpuProcess]] = {}
    for line in (run([*command, "--format=csv,noheader,nounits"]) or "").splitlines():
        cells = [cell.strip() for cell in line.split(",", 3)]
        if len(cells) == 4 and cells[1].isdigit():
            process = GpuProcess(pid=int(cells[1]), used_bytes=_whole(cells[2], _MIB), name=_value(cells[3]))
            found.setdefault(cells[0], []).append(process)
    return found


def _gpu(row: dict[str, str], processes: dict[str, list[GpuProcess]]) -> GpuInfo:
    capability = re.fullmatch(r"(\d+)\.(\d+)", _value(row.get("compute_cap")) or "")
    return GpuInfo(
        index=int(row["index"]),
        name=_value(row.get("name")) or "unknown NVIDIA GPU",
        uuid=_value(row.get("uuid")),
        vram_total_bytes=_whole(row.get("memory.total"), _MIB),
        vram_free_bytes=_whole(row.get("memory.free"), _MIB),
        vram_used_bytes=_whole(row.get("memory.used"), _MIB),
        processes=tuple(processes.get(row.get("uuid", ""), ())),
        compute_capability=(int(capability[1]), int(capability[2])) if capability else None,
        power_limit_w=_number(row.get("power.limit")),
        power_default_limit_w=_number(row.get("power.default_limit")),
        power_draw_w=_number(row.get("power.draw")),
        sm_clock_mhz=_whole(row.get("clocks.sm")),
        sm_clock_max_mhz=_whole(row.get("clocks.max.sm")),
        memory_clock_mhz=_whole(row.get("clocks.mem")),
        temperature_c=_whole(row.get("temperature.gpu")),
        ecc_enabled=_enabled(row.get("ecc.mode.current")),
        ecc_uncorrected=_whole(row.get("ecc.errors.uncorrected.volatile.total")),
        mig_enabled=_enabled(row.get("mig.mode.current")),
        persistence_enabled=_enabled(row.get("persistence_mode")),
        compute_mode=(_value(row.get("compute_mode")) or "").lower() or None,
        problem="GPU is lost" if "lost" in " ".join(row.values()).lower() else None,
    )


def read_smi(run: Run = run_program) -> NvmlAnswer:
    """Driver and GPUs as ``nvidia-smi`` prints them, in the same form as NVML's answer."""
    rows, problem = _query(run, FIELDS)
    if not rows:
        return NvmlAnswer(problem=problem)
    processes = _processes(run)
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", run(["nvidia-smi"]) or "")
    return NvmlAnswer(
        driver=_value(rows[0].get("driver_version")),
        cuda_driver=cuda[1] if cuda else None,
        gpus=tuple(_gpu(row, processes) for row in rows),
    )
