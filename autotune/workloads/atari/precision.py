"""Which device, which arithmetic: what is asked for against what the machine computes natively."""

from __future__ import annotations

import torch

from autotune.errors import DeviceError, UsageError
from autotune.workloads.atari.settings import Precision


def choose_device(name: str) -> torch.device:
    """The device behind ``auto`` (CUDA, then MPS, then CPU), ``cuda``, ``cuda:1``, ``mps`` or ``cpu``.

    Raises:
        UsageError: not the name of a device.
        DeviceError: torch does not see that device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda:0" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (index and not index.isdigit()):
        raise UsageError(f"device {name!r} is not known; use auto, cpu, mps, cuda or cuda:<number>")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if kind == "cuda" else int(mps)
    if int(index or 0) >= count:
        raise DeviceError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees {count} {kind} devices; "
            "run `autotune doctor`, or use --device cpu"
        )
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device("mps")


def native_precisions(device: torch.device) -> tuple[Precision, ...]:
    """What the device computes natively, fastest suitable one first.

    CUDA by compute capability: bf16 and tf32 from 8.0, fp16 from 7.0 (a T4, 7.5, emulates bf16 slowly).
    CPU: bf16 first with AMX, whose tiles make Breakout 1.4 to 1.6 times as fast as fp32 (8 environments and
    minibatch 256: 828 and 844 SPS for 591 and 565), and with AVX-512 BF16 (Zen 5, two lanes: 1,230 for 800 at 8 and
    256, 1,430 for 860 at 16 and 512, 1,520 for 830 at 64 and 1,024; 780 for 500 and 880 for 540 beside another busy
    process, where one lane of two threads falls to 320; Zen 4: 838 and 862 for 552 and 532 at 8 and 256, 1,010 and 993
    for 612 and 609 at 64 and 1,024).
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return ("bf16", "tf32", "fp16", "fp32")
        return ("fp16", "fp32") if capability >= (7, 0) else ("fp32",)
    if device.type == "cpu" and _cpu_has_bf16():
        return ("bf16", "fp32")
    return ("fp32",)


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.8 has the single questions only
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def choose_precision(requested: str, native: tuple[Precision, ...], device: str) -> Precision:
    """The precision in effect: ``auto`` takes the first native one.

    Raises:
        UsageError: the device does not compute it natively.
    """
    for precision in native:
        if requested in ("auto", precision):
            return precision
    raise UsageError(
        f"precision {requested!r} is not native on {device}, which has {', '.join(native)}; "
        "use one of these or precision = 'auto'"
    )
