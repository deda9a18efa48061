"""NVIDIA's XID errors that a training meets: whose fault, what it means, what to do.

Source: https://docs.nvidia.com/deploy/xid-errors/ ; which of them leave the GPU healthy:
https://github.com/NVIDIA/k8s-device-plugin (internal/rm/health.go).
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Xid(NamedTuple):
    """One kind of error.

    Attributes:
        cause: ``application``: the program that ran on the GPU, which stays healthy; else ``hardware``.
        meaning: a few words.
        action: what NVIDIA advises, in a few words.
    """

    cause: Literal["application", "hardware"]
    meaning: str
    action: str


_RESET = "reset the GPU or restart the machine"
_REPLACE = f"{_RESET}; replace the GPU if it comes again"
XIDS = {
    13: Xid("application", "graphics engine exception", "look for an access out of bounds or an invalid kernel"),
    31: Xid("application", "GPU memory page fault", "look for an illegal memory access"),
    43: Xid("application", "the GPU stopped processing a faulty program", "look for the error before it"),
    45: Xid("application", "clean-up after an earlier error or a killed program", "look for the error before it"),
    48: Xid("hardware", "double-bit memory error", _REPLACE),
    61: Xid("hardware", "microcontroller breakpoint or warning", _RESET),
    62: Xid("hardware", "microcontroller halted", _RESET),
    63: Xid("hardware", "a memory row is to be remapped or a page retired", "reset the GPU when it is idle"),
    64: Xid("hardware", "remapping a memory row or retiring a page failed", _REPLACE),
    68: Xid("application", "video processor exception", "restart the program"),
    69: Xid("application", "graphics engine class error", "look for an invalid kernel"),
    74: Xid("hardware", "NVLink error", _REPLACE),
    79: Xid("hardware", "the GPU has fallen off the bus", "restart the machine; check its power, cooling and seat"),
    92: Xid("hardware", "many single-bit memory errors", "watch the GPU's ECC counters"),
    94: Xid("hardware", "memory error contained to one program", "restart the program; reset the GPU when it is idle"),
    95: Xid("hardware", "uncontained memory error", _REPLACE),
    109: Xid("application", "context switch timed out", "restart the program; reset the GPU if it comes again"),
    119: Xid("hardware", "the GPU's system processor (GSP) did not answer", _RESET),
    120: Xid("hardware", "error of the GPU's system processor (GSP)", _RESET),
    140: Xid("hardware", "memory error that ECC could not correct", _REPLACE),
}


def describe_xid(number: int) -> str:
    """``XID 79 (hardware): the GPU has fallen off the bus; restart the machine ...``."""
    known = XIDS.get(number)
    if known is None:
        return f"XID {number}: see https://docs.nvidia.com/deploy/xid-errors/"
    return f"XID {number} ({known.cause}): {known.meaning}; {known.action}"
