"""The one tree of exceptions: misuse and broken files raise, failed probes are values.

The command line turns each of these into its message and exit code; anything else that
escapes is a bug.
"""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INFEASIBLE = 3
EXIT_UNFIT = 4
EXIT_UNFINISHED = 5
EXIT_REGRESSION = 6


class AutotuneError(Exception):
    """Something on the machine went wrong: the message says what, where, why and what next."""

    exit_code = EXIT_ERROR


class UsageError(AutotuneError):
    """A value given by the user cannot be used: the message names value, expectation, remedy."""

    exit_code = EXIT_USAGE


class FileError(AutotuneError):
    """A file or folder cannot be read or written (missing, full, read-only, damaged)."""


class ManifestError(UsageError):
    """A manifest or recipe does not say what its schema asks for."""


class BusyError(AutotuneError):
    """Another autotune process holds the run or the device."""


class InfeasibleError(AutotuneError):
    """No point of the space could be measured as stable."""

    exit_code = EXIT_INFEASIBLE


class DeviceError(AutotuneError):
    """The device cannot do what is asked of it."""

    exit_code = EXIT_UNFIT


class WorkerError(AutotuneError):
    """A worker process could not be started or ended without a result."""


_OPEN_FILES = "Raise the limit on open files (ulimit -n)."
_REMEDIES = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f).",
}


def remedy_for(error: OSError, otherwise: str) -> str:
    """What to do about what the system refuses, `otherwise` where its kind says nothing more."""
    return _REMEDIES.get(error.errno or 0, otherwise)
