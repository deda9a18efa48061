"""Finds the bundled recipes, manifests and templates, in a wheel or in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autotune.errors import UsageError
from autotune.registry import unknown_name

Folder = Literal["probes", "manifests", "reports/templates"]

_PACKAGE = Path(__file__).parent
_KINDS: dict[Folder, str] = {"probes": "recipe", "manifests": "manifest", "reports/templates": "template"}


def folder(name: Folder) -> Path:
    """The folder of bundled files: inside the package in a wheel, beside it in a checkout."""
    packaged = _PACKAGE / "data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def bundled(name: Folder, suffix: str) -> list[str]:
    """Names of the bundled files with this suffix, sorted."""
    return sorted(
        path.name.removesuffix(suffix) for path in folder(name).glob(f"*{suffix}") if "schema" not in path.name
    )


def find(name: Folder, word: str, suffix: str) -> Path:
    """The file that the user means: a bare word is bundled, anything with a suffix or slash is a path.

    Raises:
        UsageError: no such file.
    """
    if "/" in word or word.endswith(suffix):
        path = Path(word)
        if not path.is_file():
            raise UsageError(f"there is no file {word!r}; bundled names are: {', '.join(bundled(name, suffix))}")
        return path
    path = folder(name) / f"{word}{suffix}"
    if not path.is_file():
        raise UsageError(unknown_name(_KINDS[name], word, bundled(name, suffix)))
    return path
