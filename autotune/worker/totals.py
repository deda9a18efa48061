"""What a job has done, in all and since the last message or row: counts that are added up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.records import Budget, Work

RETURNS_KEPT = 100
MEAN_RETURN = f"mean_return_{RETURNS_KEPT}"
"""Column of `metrics.csv`: the mean of the last so many games."""


@dataclass
class Progress:
    """What a job has done since it began, restarts included.

    Attributes:
        env_steps: agent decisions.
        episodes: games.
        seconds: of training, saving included.
        best_return: of a single game.
        returns: of the last 100 games.
    """

    env_steps: int = 0
    episodes: int = 0
    seconds: float = 0.0
    best_return: float | None = None
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=RETURNS_KEPT))

    def add(self, work: Work) -> None:
        """Count one iteration's work."""
        returns = [float(value) for value in work.returns if math.isfinite(value)]
        self.env_steps += int(work.env_steps)
        self.episodes += int(work.episodes)
        self.returns.extend(returns)
        self.best_return = max((r for r in (self.best_return, *returns) if r is not None), default=None)

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 games (fewer at the start)."""
        return sum(self.returns) / len(self.returns) if self.returns else None

    def meets(self, budget: Budget) -> bool:
        """Whether the budget is used up."""
        return self.amount(budget) >= budget.amount

    def amount(self, budget: Budget) -> float:
        """What is done, in the budget's unit."""
        return {"steps": self.env_steps, "episodes": self.episodes, "hours": self.seconds / 3600}[budget.unit]

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "returns": list(self.returns)}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Progress:
        """What a row of `metrics.csv` tells."""
        return cls(env_steps=int(row["env_steps"]), episodes=int(row["episodes"]), seconds=float(row["seconds"]))

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Progress:
        """The inverse of `to_meta`."""
        return cls(**{**meta, "returns": deque(meta["returns"], maxlen=RETURNS_KEPT)})


class Onset:
    """The first steps that a program of the user's own tells: they may hold what it did before it was started.

    It went on from a checkpoint of its own, such as one that a probe left. Nothing says how long they took.
    """

    _LEAP, _WITHIN_S, _KNOWN_S = 8.0, 1.0, 2.0

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._decided = False

    def untimed(self, steps: int, seconds: float) -> int:
        """Of `steps` in `seconds` since the start, those of the first total, if they are far too many; told once.

        Far too many: more than it does later in eight times as long, and a second more. Else, and before that is
        known, 0.
        """
        first_steps, first_s = self._first = self._first or (steps, seconds)
        since_s = seconds - first_s
        if self._decided or since_s < self._KNOWN_S or steps == first_steps:
            return 0
        self._decided = True
        usual_sps = (steps - first_steps) / since_s
        return first_steps if first_steps > self._LEAP * usual_sps * (first_s + self._WITHIN_S) else 0


@dataclass
class Totals:
    """Sums over the iterations since the last message or row."""

    env_steps: int = 0
    reset_rows: int = 0
    episodes: int = 0
    samples: int = 0
    minibatches: int = 0
    iterations: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """Count one iteration's work."""
        for name in ("env_steps", "reset_rows", "episodes", "samples", "minibatches"):
            setattr(self, name, getattr(self, name) + int(getattr(work, name)))
        self.iterations += 1
        for phase, seconds in work.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + float(seconds)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "seconds": dict(self.seconds)}
