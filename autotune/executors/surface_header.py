"""The header of a surface file: its lines ``# key: value``, wherever they stand; other lines with ``#`` are comments.

``# device: A100``, ``# synthetic: true``, ``# vram_limit_bytes: N``, ``# ram_limit_bytes: N``, ``# cpu_cores: N``,
``# price_usd_per_hour: X``, ``# baseline: num_envs=8 batch_size=256 concurrency=1``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from autotune.errors import UsageError
from autotune.records import KNOBS, Point
from autotune.units import PRICES_USD_PER_HOUR

_RANGES = {
    "vram_limit_bytes": (1.0, 2.0**63),
    "ram_limit_bytes": (1.0, 2.0**63),
    "cpu_cores": (1e-9, 2.0**63),
    "price_usd_per_hour": PRICES_USD_PER_HOUR,
}
_ENTRY = re.compile(r"([^:=]*)([:=])(.*)", re.DOTALL)
_ALIKE = 0.8
"""Keys at least this similar to a header's are a misspelt one."""
_UNKNOWN = "; delete the line if it is not known"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a surface states of its machine; None is not stated.

    Attributes:
        device: name of the device.
        synthetic: ``true`` where a formula made the surface.
        vram_limit_bytes: memory of the device.
        ram_limit_bytes: memory of the host.
        cpu_cores: that processes may use.
        price_usd_per_hour: of the machine.
        baseline: what its owner ran, recorded or not.
    """

    device: str = "recorded"
    synthetic: str | None = None
    vram_limit_bytes: float | None = None
    ram_limit_bytes: float | None = None
    cpu_cores: float | None = None
    price_usd_per_hour: float | None = None
    baseline: Point | None = None


def is_comment(line: str) -> bool:
    """Whether a line is no row: a header or a comment."""
    return line.lstrip().startswith("#")


def read_header(lines: Sequence[str], source: str) -> Header:
    """The header among the lines of a surface file.

    Raises:
        UsageError: a key that is only there misspelt, or stated in two ways, a value that cannot be meant; names the
            line.
    """
    stated: dict[str, tuple[int, str]] = {}
    misspelt: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = _entry(line) if is_comment(line) else None
        if entry is None:
            continue
        key, value, exact = entry
        if not exact:
            misspelt[key] = (
                f"surface {source}, line {number}: {line.strip()[:80]!r} is no header; "
                f"write '# {key}: {value[:60]}', or '# note: ...' for a comment"
            )
            continue
        first, before = stated.setdefault(key, (number, value))
        if value != before:
            raise UsageError(
                f"surface {source}: {key} is {before[:60]!r} in line {first} and {value[:60]!r} in line {number}; "
                "delete one of them"
            )
    for key, message in misspelt.items():
        if key not in stated:
            raise UsageError(message)
    values: dict[str, Any] = {
        key: _value(key, text, f"{source}, line {number}") for key, (number, text) in stated.items()
    }
    return Header(**values)


def stated_number(name: str, text: str, where: str, *, least: float, most: float, otherwise: str = "") -> float:
    """A number in plain digits, as people and programs write it: neither ``1_000`` nor digits of other scripts.

    Args:
        name: what it is.
        text: the number.
        where: file and line.
        least: the smallest that can be meant.
        most: the largest.
        otherwise: what to do without a number, the end of the message.

    Raises:
        UsageError: it is none, or out of range.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        limits = f"at least {least:g} and at most {most:g}"
        raise UsageError(f"surface {where}: {name} {text[:60]!r} must be a number of {limits}{otherwise}")
    return value


def _entry(line: str) -> tuple[str, str, bool] | None:
    """Key and value of a line like a header's, and whether the key is spelt so; None for a comment."""
    match = _ENTRY.fullmatch(line.strip().lstrip("# \t"))
    if match is None:
        return None
    key, separator, value = (part.strip() for part in match.groups())
    near = difflib.get_close_matches(key.casefold(), [field.name for field in fields(Header)], n=1, cutoff=_ALIKE)
    return (near[0], value, (key, separator) == (near[0], ":")) if near else None


def _value(key: str, text: str, where: str) -> str | float | Point:
    if key in _RANGES:
        least, most = _RANGES[key]
        return stated_number(key, text, where, least=least, most=most, otherwise=_UNKNOWN)
    return _baseline(text, where) if key == "baseline" else text


def _baseline(text: str, where: str) -> Point:
    words = [word.partition("=")[::2] for word in text.split()]
    values = {name: int(value) for name, value in words if value.isascii() and value.isdecimal() and len(value) < 10}
    if sorted(name for name, _ in words) != sorted(KNOBS) or len(values) < len(KNOBS) or not all(values.values()):
        raise UsageError(
            f"surface {where}: baseline {text[:100]!r} must read num_envs=8 batch_size=256 concurrency=1, "
            f"with every knob once{_UNKNOWN}"
        )
    return Point.from_knobs(values)
