"""Standard error as the place of progress and warnings: that they cannot be shown ends no work."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lossy(io.FileIO):
    """A file that drops what it cannot take: its disk is full, or its terminal gone."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; a pipe that nobody reads any more is an error all the same."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return memoryview(data).nbytes


def lose_what_cannot_be_shown() -> None:
    """From here on a full disk or a lost terminal below standard error is no error."""
    if sys.stderr is None:
        return
    raw = io.BufferedWriter(_Lossy(sys.stderr.fileno(), "w", closefd=False))
    encoding, errors = sys.stderr.encoding, sys.stderr.errors
    sys.stderr = io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=True)
