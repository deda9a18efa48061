"""SIGINT, SIGTERM and SIGHUP as a wish to stop: work in progress is saved, then the command ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_AGAIN_S = 0.05


class Interrupted(KeyboardInterrupt):
    """A second signal.

    Attributes:
        exit_code: 128 + its number.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignals:
    """While entered, the first signal asks to stop; a second one interrupts at once.

    Attributes:
        exit_code: 129 after SIGHUP, 130 after SIGINT, 143 after SIGTERM, else 0.
    """

    def __init__(self, interrupted: str = "stopped") -> None:
        """Tell `interrupted` when a second signal ends the command."""
        self._message = interrupted
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []
        self._hook: Any = None
        self._again: threading.Timer | None = None
        self.exit_code = 0

    def requested(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
        if self._event.is_set():
            raise Interrupted(self._message, 128 + number)
        self.exit_code = 128 + number
        self._event.set()

    def _interrupt_again(self, lost: Any) -> None:
        """Repeat a second signal that came within a callback of the interpreter (a finalizer), which lets no error out.

        Python would show it as ignored, and go on.
        """
        if not isinstance(lost.exc_value, Interrupted):
            self._hook(lost)
            return
        self._again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), lost.exc_value.exit_code - 128))
        self._again.start()

    def _leave_terminal(self) -> None:
        """Write to nowhere instead of to a terminal that is gone, which would be an error."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    def __enter__(self) -> Self:
        """Take over the signals; a SIGHUP that is ignored (``nohup``) stays so."""
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        for number in (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))):
            self._before[number] = signal.signal(number, self._handle)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._interrupt_again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give them back.

        Raises:
            Interrupted: in place of a KeyboardInterrupt for the first signal, which does not know its exit code.
        """
        if self._again:
            self._again.cancel()
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if type(error) is KeyboardInterrupt and self.exit_code:  # of something that was asked to stop
            raise Interrupted(self._message, self.exit_code) from error
