"""The aggregate rate of a training, measured as a probe measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.records import MeasurePlan


@dataclass
class _Span:
    first_t: float
    last_t: float
    env_steps: int = 0

    @property
    def seconds(self) -> float:
        """From the first to the last of them."""
        return self.last_t - self.first_t


class SharedThroughput:
    """Env steps per second of all processes, over the spans in which as many as planned run warm.

    A process is warm `discard_s` after the slowest one's first complete iteration and after
    `discard_iterations` of its own. A process that ends closes the span;
    the next one opens when its successor is warm. Rates are sums over processes of steps / time
    from iteration end to iteration end, averaged over spans by their length.
    """

    def __init__(self, processes: int, plan: MeasurePlan) -> None:
        self._processes, self._plan = processes, plan
        self._first_t: dict[str, float] = {}
        self._span: dict[str, _Span] = {}
        self._closed_rate_seconds = 0.0
        self._closed_s = 0.0

    def add(self, job: str, message: Mapping[str, Any]) -> None:
        """Take a ``step`` message of a training worker."""
        t = float(message["t"])
        self._first_t.setdefault(job, t)
        warm_t = max(self._first_t.values()) + self._plan.discard_s
        if len(self._first_t) < self._processes or t < warm_t or message["iteration"] < self._plan.discard_iterations:
            return
        if job not in self._span:
            self._span[job] = _Span(first_t=t, last_t=t)
        else:
            self._span[job].last_t = t
            self._span[job].env_steps += int(message["env_steps"])

    def leave(self, job: str) -> None:
        """A process ended: what follows is another mixture."""
        rate, seconds = self._open()
        self._closed_rate_seconds += rate * seconds
        self._closed_s += seconds
        self._span.clear()
        self._first_t.pop(job, None)

    def _open(self) -> tuple[float, float]:
        spans = list(self._span.values())
        if len(spans) < self._processes or any(span.seconds <= 0 for span in spans):
            return 0.0, 0.0
        return sum(span.env_steps / span.seconds for span in spans), min(span.seconds for span in spans)

    def sps(self) -> float | None:
        """Measured so far, None before all processes were warm together."""
        rate, seconds = self._open()
        total_s = self._closed_s + seconds
        return (self._closed_rate_seconds + rate * seconds) / total_s if total_s > 0 else None
