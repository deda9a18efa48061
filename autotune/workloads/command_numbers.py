"""Numbers as programs print them, read whole: pure functions."""

from __future__ import annotations

import re

_APART = r"_'\u2019\u00a0\u2009\u202f"
"""Between thousands, beside commas and spaces, which also stand between numbers."""


def _thousands(separators: str) -> str:
    return rf"\d{{1,3}}(?P<by>[{separators}])\d{{3}}(?:(?P=by)\d{{3}})*"


_NUMBER = re.compile(
    rf"\+?(?P<digits>(?:{_thousands(', ' + _APART)}|\d[\d_]*)(?:\.\d*)?|\.\d+)"
    r"(?P<exponent>e[+-]?\d+)?\s*(?P<suffix>[kmb]?)",
    re.IGNORECASE,
)
_WHOLE = re.compile(
    rf"(?<![\d.,{_APART}])(?:{_thousands(',' + _APART)}|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?![\d{_APART}]|[.,]\d)",
    re.IGNORECASE,
)
_WHOLE_MAX = 32
_SUFFIX_AFTER = re.compile(r"(?<=[\d.])[kmb](?![a-z\d])", re.IGNORECASE)
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def parse_number(text: str) -> float | None:
    """The number in ``1,234``, ``1_234``, ``1'234``, ``1 234``, ``1.2e+06``, ``3.4k`` or ``2M``; None where none is.

    Commas separate thousands; a trailing one is punctuation.
    """
    match = _NUMBER.fullmatch(text.strip().rstrip(",;."))
    if not match:
        return None
    digits = re.sub(r"[^\d.]", "", match["digits"])
    return float(digits + (match["exponent"] or "")) * _FACTORS[match["suffix"].lower()]


def number_at(match: re.Match[str], group: int) -> float | None:
    r"""The number of which a group is at least a part, with a suffix that stands right after it; None where none is.

    Of ``12,288 steps`` and ``1.5M``, the digits before or after a comma or point are a part. Where the pattern says
    what stands beside the group, as ``^(\d+),`` does of a row of values, the number ends there.
    """
    start, end = match.span(group)
    for whole in _WHOLE.finditer(match.string, max(0, start - _WHOLE_MAX)):
        if whole.start() > start:
            break
        open_start, open_end = match.start() == start, match.end() == end
        if whole.end() >= end and (whole.start() == start or open_start) and (whole.end() == end or open_end):
            start, end = whole.span()
            break
    suffix = _SUFFIX_AFTER.match(match.string, end)
    return parse_number(match.string[start:end] + (suffix[0] if suffix else ""))
