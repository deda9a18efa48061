"""The arguments of a user's own command: placeholders in braces, and their values at a point."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.errors import UsageError
from autotune.records import Job, KnobValue, Point

_BRACES = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}|[{}]")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def placeholders(argv: Sequence[str]) -> set[str]:
    """Names in braces: the knobs (and ``seed``, ``env``, ``job``) that reach the program.

    Raises:
        UsageError: a brace that is no placeholder.
    """
    return {name for argument in argv for name in _names(argument)}


def _doubled(argument: str) -> str:
    """The argument with braces that are no placeholder's as they are to be written."""
    return _BRACES.sub(lambda match: 2 * match[0] if match[0] in "{}" else match[0], argument)


def _names(argument: str) -> list[str]:
    names = []
    for match in _BRACES.finditer(argument):
        if match[0] in "{}":
            raise UsageError(
                f"argument {argument!r} has a brace that is no placeholder: write {{{{ and }}}} for literal braces "
                f"(such as {_doubled(argument)!r}), {{num_envs}} for a knob"
            )
        if match[1]:
            names.append(match[1])
    return names


def fill(argv: Sequence[str], values: Mapping[str, KnobValue]) -> list[str]:
    """The arguments with every placeholder replaced.

    Raises:
        UsageError: a placeholder without a value; the message lists those there are.
    """
    unknown = sorted(placeholders(argv) - set(values))
    if unknown:
        raise UsageError(
            f"unknown placeholder {{{unknown[0]}}} in the command. There are: "
            f"{', '.join(f'{{{name}}}' for name in values)}. Literal braces are written {{{{ and }}}}."
        )

    def replace(match: re.Match[str]) -> str:
        return str(values[match[1]]) if match[1] else match[0][0]

    return [_BRACES.sub(replace, argument) for argument in argv]


def values_at(point: Point, job: Job) -> dict[str, KnobValue]:
    """Every placeholder's value."""
    return {**point.knobs(), "seed": job.seed, "env": job.env, "job": job.id}


def how_to_start(program: str, local: str) -> str:
    """What else to write for a program that is not found, by its looks and whether a file is at the path `local`."""
    if Path(local).is_file():
        interpreter = "python" if program.endswith(".py") else "sh"
        return f"it is a file that is no program yet: write its interpreter before it ({interpreter} {program}), or "
    if _ASSIGNMENT.match(program):
        return f"no shell is involved, so write env before it (env {program} ...), or "
    if " " in program:
        return "write the command without quotes around all of it; "
    return ""
