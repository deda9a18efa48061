"""Durations, sizes, rates and money: parsing what people type, printing what they read."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import PurePath

from autotune.errors import UsageError

_DURATION_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PRICES_USD_PER_HOUR = (1e-6, 1e9)


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``90s``, ``30m``, ``1h30m``, ``2h`` or, as `format_duration` has it, ``6m 40s``.

    Raises:
        UsageError: not a positive duration with a unit.
    """
    given = text.strip().lower()
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd]\s*)+", given):
        raise UsageError(f"duration {text!r} is not understood: write a number and a unit, such as 90s, 30m or 2h")
    parts = re.findall(r"([\d.]+)([smhd])", given)
    total_s = sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    if not 0 < total_s < math.inf:
        raise UsageError(f"duration {text!r} must be longer than zero, such as 90s, 30m or 2h")
    return total_s


def parse_price(text: str | float) -> float:
    """US dollars per hour of the whole machine.

    Raises:
        UsageError: not a number above zero, or beyond what a machine can cost.
    """
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not PRICES_USD_PER_HOUR[0] <= price <= PRICES_USD_PER_HOUR[1]:
        raise UsageError(
            f"price {text!r} must be a number of US dollars per hour above zero, such as --price 2.0 "
            f"({PRICES_USD_PER_HOUR[0]:g} to {PRICES_USD_PER_HOUR[1]:g})"
        )
    return price


def format_duration(seconds: float | None) -> str:
    """``95`` -> ``1m 35s``; rounded to two units, ``under 0.1s`` but for 0, ``unknown`` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    sign, rest = ("-" if seconds < 0 else ""), abs(seconds)
    if 0 < rest < 0.05:
        return "under 0.1s"
    if rest < 10:
        return f"{sign}{rest:.1f}s"
    smallest = 3600 if rest >= 86400 else 60 if rest >= 3600 else 1
    whole = round(rest / smallest) * smallest
    days, whole = divmod(whole, 86400)
    hours, whole = divmod(whole, 3600)
    minutes, secs = divmod(whole, 60)
    fields = [(days, "d"), (hours, "h"), (minutes, "m"), (secs, "s")]
    first = next((i for i, (value, _) in enumerate(fields) if value), 3)
    shown = [f"{value:,}{unit}" for value, unit in fields[first : first + 2] if value]
    return sign + " ".join(shown)


def format_bytes(count: float | None) -> str:
    """``1536`` -> ``1.5 KiB``; ``unknown`` for None."""
    if count is None:
        return "unknown"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_count(value: float | None) -> str:
    """``41234.5`` -> ``41,234``; three significant digits below 100; ``unknown`` for None."""
    if value is None or not math.isfinite(value):
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1, "process", "processes"`` -> ``one process``; ``1200, "launch", "launches"`` -> ``1,200 launches``."""
    return f"one {noun}" if count == 1 else f"{count:,} {plural or noun + 's'}"


def shortened(text: str, limit: int) -> str:
    """A text of at most so many characters; that it goes on is shown."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def brief(detail: str) -> str:
    """The first line, and the last that is no mere frame or rule where a program's own output follows."""
    lines = [line for line in detail.splitlines() if any(map(str.isalnum, line))]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def how_often(count: int) -> str:
    """``1`` -> ``once``; ``3`` -> ``3 times``."""
    return "once" if count == 1 else f"{count:,} times"


def format_usd(amount: float | None) -> str:
    """``15600`` -> ``15,600.00 USD``, ``0.000001`` -> ``0.000001 USD``; ``unknown`` for None."""
    if amount is None or not math.isfinite(amount):
        return "unknown"
    digits = math.ceil(-math.log10(abs(amount))) if 0 < abs(amount) < 0.005 else 2
    return f"{amount:,.{digits}f} USD"


def typed(path: PurePath) -> str:
    """A path as one types it in a command: quoted where a shell asks for it, and never to be taken for a bare name."""
    text = str(path)
    return shlex.quote(text if "/" in text and not text.startswith("-") else f"./{text}")
