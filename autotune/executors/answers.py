"""What an executor of somebody else's answers, held against the contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from autotune.codec import to_json
from autotune.records import STATUSES, ProbeResult
from autotune.store import canonical_json


def _number(what: str, value: Any) -> float:
    """A plain number.

    Raises:
        TypeError: it is none, or none that is finite and 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise TypeError(f"{what} is {value!r:.80}, not a finite number of 0 or more")
    return float(value)


def _seconds(answer: Any) -> float:
    return _number("its answer", answer)


def _seconds_or_none(answer: Any) -> float | None:
    return None if answer is None else _seconds(answer)


def _result(answer: Any) -> ProbeResult:
    """A result that a study can keep.

    Raises:
        TypeError: it is none, or lacks what a search needs of it.
    """
    if not isinstance(answer, ProbeResult):
        raise TypeError(f"its answer is {answer!r:.80}, not a ProbeResult")
    if answer.status not in STATUSES:
        raise TypeError(f"the status of its answer is {answer.status!r:.80}, not one of {', '.join(STATUSES)}")
    _number("cost_s of its answer", answer.cost_s)
    for name in ("sps", "sps_low", "sps_high"):
        value = getattr(answer, name)
        if value is not None or (answer.ok and name == "sps"):
            _number(f"{name} of its answer", value)
    if answer.ok and not answer.sps:
        raise TypeError("sps of its answer is 0.0, not above 0, though its status is ok")
    try:
        canonical_json(to_json(answer))
    except (TypeError, ValueError) as error:
        raise TypeError(f"its answer cannot be kept as JSON: {error}") from error
    return answer


def _rates(answer: Any) -> dict[str, float]:
    """Rates by name.

    Raises:
        TypeError: it is no mapping of names to numbers.
    """
    if not isinstance(answer, Mapping) or not all(isinstance(name, str) for name in answer):
        raise TypeError(f"its answer is {answer!r:.80}, not a mapping of names to numbers")
    return {name: _number(f"{name!r} of its answer", rate) for name, rate in answer.items()}


ANSWERS: Mapping[str, Callable[[Any], Any]] = {
    "clock_s": _seconds,
    "predict_cost_s": _seconds_or_none,
    "ceilings": _rates,
    "run": _result,
}
"""By method: gives its answer back in plain types, or raises TypeError."""
