"""How long a loop has listened to its workers, and how long it stood still."""

from __future__ import annotations

import time

_MOST_S = 5.0


class Listening:
    """A clock that counts at most some seconds between two looks.

    More is a command that stood still (Ctrl-Z), a machine that slept or a slow disk: what workers said meanwhile is
    heard afterwards, and says nothing of how long they were silent.

    Attributes:
        paused_s: seconds so far that did not count.
    """

    def __init__(self) -> None:
        self.paused_s = 0.0
        self._looked_s = time.monotonic()

    def look(self) -> float:
        """Seconds since the last look, or since it was made, that count."""
        before_s, self._looked_s = self._looked_s, time.monotonic()
        counted_s = min(self._looked_s - before_s, _MOST_S)
        self.paused_s += self._looked_s - before_s - counted_s
        return counted_s
