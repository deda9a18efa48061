"""Whether a program that failed says that it was for want of memory, and its own words for why: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = (
    r"(?:out[ _]of[ _]memory|OutOfMemory|RESOURCE_?EXHAUSTED|OOM when allocating|MemoryError\b|MemoryAllocation\b|"
    r"bad_alloc|(?:cannot|can't|unable to|failed to) allocate (?:memory|[\d.]+ (?:bytes|[kmgtpe]i?b))|"
    # A library of the device that finds no room for its own workspace or handle, and torch's words for it.
    r"ALLOC(?:ATION)?_FAILED|CU(?:BLAS|DNN)_STATUS_NOT_INITIALIZED|unable to find an engine to execute|"
    r"unable to find a valid cuDNN algorithm|"
    # JAX's words for it, of which several processes beside each other get to see these first.
    r"gpu\w+Create(?:\(&handle\))? failed|create cu(?:blas|dnn|fft|rand|solver|sparse)\w* (?:handle|instance)|"
    r"(?:resource|memory|cu(?:blas|dnn|fft|rand|solver|sparse)\w*) allocation failed)"
)
_MEMORY = re.compile(_WORDS, re.IGNORECASE)
_HINT = re.compile(rf"\b(?:if|when|unless|in case|avoid|prevent|hint:|tip:)\s[^.:]*?{_WORDS}", re.IGNORECASE)
_EXCEPTION = re.compile(r"(?:[\[(][^\])]*[\])]:?\s*)*(?:\w+\.)*([A-Za-z_]\w+(?:Error|Exception|Pool))(?=[:(]|\s*$)")
"""At the start of a line, where a launcher may have put a rank."""
_TRACEBACK = re.compile(r".*Traceback \(most recent call last\):")
_OF_ANOTHER = {"BrokenPipeError", "BrokenProcessPool", "CalledProcessError", "ChildFailedError", "ConnectionResetError"}
_OF_ANOTHER |= {"EOFError"}
"""Exceptions that tell of the end of another process, which has said why."""
_CHAINED = ("another exception occurred:", "the direct cause of the following exception:")
_END_LINES = 20
_FAILURE = re.compile(
    r"\b(?:error|fatal|failed|invalid|unknown|unrecogni[sz]ed|missing|required|could not|can(?:not|'t)|no such|"
    r"not found)\b",
    re.IGNORECASE,
)
_FRAME = re.compile(r"^[\s│┃|]+|[\s│┃|]+$")
_ASKED = re.compile(r"EOF when reading a line|[\[(]y(?:es)?/no?[\])]", re.IGNORECASE)
_ASKED_LINES = 3


def tells_out_of_memory(output: str) -> bool:
    """Whether the end of an output, from its last traceback or else 20 lines, says that memory ran out.

    The last line that does so or names another exception decides. A sentence on what to do if memory runs out says
    nothing; an exception that passes on another (one that was raised from it, the end of a worker) leaves it to that.
    """
    *_, traceback = [None, *_TRACEBACK.finditer(output)]
    before, end = (output[: traceback.start()], output[traceback.end() :]) if traceback else ("", output)
    lines = [line for line in end.splitlines() if line.strip()]
    lines = lines if traceback else lines[-_END_LINES:]
    named = ""
    for line in reversed(lines):
        if _MEMORY.search(_HINT.sub("", line)):
            return True
        if exception := _EXCEPTION.match(line):
            named = exception[1]
            break
    passed_on = named in _OF_ANOTHER or before.rstrip().endswith(_CHAINED)
    return traceback is not None and passed_on and tells_out_of_memory(before)


def said_exception(lines: Sequence[str]) -> str | None:
    """The last line that names an exception, of the program's own if there is one; None where no line does.

    Launchers end with a summary of theirs, and exceptions with notes: the last line need not say why.
    """
    named = [(match[1], line.strip()) for line in lines if (match := _EXCEPTION.match(line))]
    told = [line for name, line in named if name not in _OF_ANOTHER] or [line for _, line in named]
    return told[-1] if told else None


def said_why(lines: Sequence[str]) -> str | None:
    """The line that says why a program failed: of an exception, else the last in words of failure.

    Parsers of arguments and configurations end with advice or with the frame around what they say; None where no line
    says why.
    """
    told = [_FRAME.sub("", line) for line in lines[-_END_LINES:] if _FAILURE.search(line)]
    return said_exception(lines) or (told[-1] if told else None)


def asked_for_input(lines: Sequence[str]) -> bool:
    """Whether a program's last lines are those of one that asked a question and read no answer."""
    return any(_ASKED.search(line) for line in lines[-_ASKED_LINES:])
