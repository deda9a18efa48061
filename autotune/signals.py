"""SIGINT and SIGTERM as a wish to stop: work in progress is saved, then the command ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignals:
    """While entered, the first signal asks to stop; a second one interrupts at once.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM, else 0.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self.exit_code = 0

    def requested(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            raise KeyboardInterrupt
        self.exit_code = 128 + number
        self._event.set()

    def __enter__(self) -> Self:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
