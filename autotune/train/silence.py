"""How long a worker has said nothing: whether its rate is still known, and whether it hangs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_STALE_S = 10.0
_STALE_FACTOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a worker may say nothing before it counts as hung.

    Attributes:
        start_s: until its first iteration has ended: opening and compiling are part of it.
        silence_s: after that, at least.
        factor: times the longest silence or iteration so far, at least.
    """

    start_s: float = 1800.0
    silence_s: float = 120.0
    factor: float = 10.0


class Silence:
    """The silence of one worker.

    Only time that its listener spent listening counts: a machine that was suspended does not hang.

    Attributes:
        seconds: since it said something.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._longest_s: float | None = None  # before the first iteration has ended

    def wait(self, seconds: float) -> None:
        """So much time has passed, in which it may have said something."""
        self.seconds += seconds

    def end(self, iteration_s: float = 0.0) -> None:
        """It said something, such as that an iteration took so long."""
        if self._longest_s is not None:
            self._longest_s = max(self._longest_s, self.seconds, iteration_s)
        elif iteration_s:
            self._longest_s = iteration_s
        self.seconds = 0.0

    @property
    def stale(self) -> bool:
        """Whether what it said last no longer tells how fast it is."""
        return self.seconds > max(_STALE_S, _STALE_FACTOR * (self._longest_s or 0.0))

    def hang(self, patience: Patience) -> str:
        """What to say of a silence that is too long; empty while it is not."""
        if self._longest_s is None:
            late = self.seconds > patience.start_s
            return f"it did not end its first iteration within {self.seconds:.0f} s" if late else ""
        late = self.seconds > max(patience.silence_s, patience.factor * self._longest_s)
        longest = f"{self._longest_s:.2g} s was the longest until then"
        return f"it said nothing for {self.seconds:.0f} s ({longest})" if late else ""
