"""Finds the bundled recipes, manifests and templates, in a wheel or in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autotune.errors import UsageError
from autotune.registry import unknown_name

Named = Literal["probes", "manifests"]

_PACKAGE = Path(__file__).parent
_KINDS = {"probes": ("recipe", ".toml"), "manifests": ("manifest", ".json")}


def folder(name: Named | Literal["reports/templates"]) -> Path:
    """The folder of bundled files: inside the package in a wheel, beside it in a checkout."""
    packaged = _PACKAGE / "data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def bundled(name: Named) -> list[str]:
    """Names of the bundled recipes or manifests, sorted."""
    suffix = _KINDS[name][1]
    return sorted(
        path.name.removesuffix(suffix) for path in folder(name).glob(f"*{suffix}") if "schema" not in path.name
    )


def find(name: Named, word: str) -> Path:
    """The file that the user means: a bare word is bundled, anything with a suffix or slash is a path.

    Raises:
        UsageError: no such file.
    """
    kind, suffix = _KINDS[name]
    if "/" in word or word.endswith(suffix):
        path = Path(word)
        if path.is_dir():
            there = path / f"{kind}{suffix}"  # as it is named in a run's folder
            raise UsageError(
                f"{word!r} is a folder: name the {kind} file in it{f', {str(there)!r}' if there.is_file() else ''}"
            )
        if not path.is_file():
            raise UsageError(f"there is no file {word!r}; bundled names are: {', '.join(bundled(name))}")
        return path
    path = folder(name) / f"{word}{suffix}"
    if not path.is_file():
        raise UsageError(unknown_name(kind, word, bundled(name)))
    return path
