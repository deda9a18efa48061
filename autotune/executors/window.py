"""Which iterations of a probe are discarded and which are measured; pure functions of what was reported."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.records import MeasurePlan
from autotune.stats import Trace

_MINIBATCHES_WHEN_SLICED = 16


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one message told: an iteration, several short ones or a slice of one; in `time.monotonic` seconds."""

    t: float
    started: float
    env_steps: int
    reset_rows: int = 0
    episodes: int = 0
    minibatches: int = 0
    iterations: int = 1
    parts: int = 1
    settled: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Step:
        """The step in a worker's ``step`` message."""
        return cls(**{name: message[name] for name in cls.__dataclass_fields__ if name in message})


def discard_end(processes: Sequence[Sequence[Step]], plan: MeasurePlan) -> float | None:
    """Time until which everything is discarded, None while a process has not ended its first iteration.

    At least `discard_s` after the slowest process's first complete iteration.
    """
    firsts = [next((step.t for step in steps if step.settled), None) for steps in processes]
    return None if None in firsts or not firsts else max(t for t in firsts if t is not None) + plan.discard_s


def window(steps: Sequence[Step], start_s: float, plan: MeasurePlan) -> Sequence[Step]:
    """The measured iterations of one process, led by the one whose end opens the window.

    Empty while the discard lasts.
    """
    settled = [step for step in steps if step.settled]
    for index, step in enumerate(settled):
        if step.t >= start_s and index >= plan.discard_iterations:
            return settled[index:]
    return []


def sliced(opened: Sequence[Step]) -> bool:
    """Whether these are slices of iterations; a program that knows no minibatches has none."""
    return opened[-1].parts > 1 and any(step.minibatches for step in opened)


def complete(opened: Sequence[Step], plan: MeasurePlan) -> bool:
    """Whether a window is long enough in seconds, iterations and, when sliced, minibatches."""
    if len(opened) < plan.window_iterations + 1 or opened[-1].t - opened[0].t < plan.window_s:
        return False
    return not sliced(opened) or sum(step.minibatches for step in opened[1:]) >= _MINIBATCHES_WHEN_SLICED


def windows(processes: Sequence[Sequence[Step]], plan: MeasurePlan) -> list[Sequence[Step]] | None:
    """The windows of all processes once every one is complete, else None."""
    start_s = discard_end(processes, plan)
    if start_s is None:
        return None
    opened = [window(steps, start_s, plan) for steps in processes]
    return opened if all(complete(steps, plan) for steps in opened) else None


def incomplete(processes: Sequence[Sequence[Step]], plan: MeasurePlan, started_s: float, now_s: float) -> str:
    """Why there is no complete window yet, and how long one would have taken by the iterations so far."""
    why = f"no complete window after {now_s - started_s:.0f} s"
    discarded_s = discard_end(processes, plan)
    if discarded_s is None:
        return f"{why}: the first iteration did not end"
    first_s = discarded_s - plan.discard_s - started_s
    iteration_s = max(step.t - step.started for steps in processes for step in steps[-1:])
    discard_s = max(plan.discard_s, plan.discard_iterations * iteration_s)
    needed_s = first_s + discard_s + max(plan.window_s, plan.window_iterations * iteration_s) + iteration_s
    return f"{why}: the first iteration ended after {first_s:.0f} s, and one would take about {needed_s:.0f} s"


def trace(opened: Sequence[Step]) -> Trace:
    """Durations (end to end) and env steps of the iterations in a window."""
    pairs = list(itertools.pairwise(opened))
    return Trace(
        seconds=tuple(after.t - before.t for before, after in pairs),
        steps=tuple(float(s.env_steps) for s in opened[1:]),
    )


def totals(opened: Sequence[Sequence[Step]]) -> dict[str, int]:
    """Sums over the windows of all processes: env steps, reset rows and iterations."""
    measured = [step for steps in opened for step in steps[1:]]
    return {
        "env_steps": sum(step.env_steps for step in measured),
        "reset_rows": sum(step.reset_rows for step in measured),
        "iterations": sum(step.iterations for step in measured),
    }


def phase_seconds(opened: Sequence[Sequence[Step]]) -> dict[str, float]:
    """Seconds per env step by phase, over the windows of all processes."""
    measured = [step for steps in opened for step in steps[1:]]
    env_steps = sum(step.env_steps for step in measured)
    names = sorted({name for step in measured for name in step.seconds})
    return {name: sum(step.seconds.get(name, 0.0) for step in measured) / max(env_steps, 1) for name in names}
