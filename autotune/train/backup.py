"""Copies of a run's training: whole, durable, and cheap where the file system has hard links."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autotune.runs import Run
from autotune.store import content_hash, copy_file, set_aside, sync_folder

_FACTS = ("manifest.json", "run.json", "device.json")
_NEVER_CHANGED = (".safetensors", ".damaged")
ASIDE = ".before-rollback"


def copy_tree(source: Path, target: Path, *, above: frozenset[Path] = frozenset()) -> None:
    """Copy a folder to where there is none; hidden files (locks, leftovers) stay behind.

    Checkpoints, which never change in place, become hard links where the file system can. Links are followed, but
    not to a folder that they lie in, `above`; what is neither file nor folder, a pipe or a dangling link, stays behind.

    Raises:
        FileError: something cannot be read or written.
    """
    target.mkdir(parents=True)
    above |= {source.resolve(), *source.resolve().parents}
    for entry in sorted(source.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.resolve() not in above:
                copy_tree(entry, target / entry.name, above=above)
        elif entry.is_file():
            copy_file(entry, target / entry.name, link=entry.suffix in _NEVER_CHANGED)
    sync_folder(target)


def back_up(run: Run, target: Path) -> None:
    """Copy what a training is made of, ``train/`` and the facts of its run, to where there is nothing.

    Searches (study, samples) are never touched by a training and stay where they are.

    Raises:
        FileError: something cannot be read or written.
    """
    copy_tree(run.train_folder, target / run.train_folder.name)
    for name in _FACTS:
        if (run.path / name).is_file():
            copy_file(run.path / name, target / name)
    sync_folder(target)


def restore(run: Run, backup: Path) -> list[Path]:
    """Make a run's training what its backup says; whatever differs is set aside first, nothing is removed.

    Safe to repeat after a kill. A run that is as its backup says is not touched.

    Returns:
        The files that were put back or set aside.

    Raises:
        FileError: something cannot be read or written.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    for name in _FACTS:
        if (backup / name).is_file() and not (run.path / name).is_file():
            copy_file(backup / name, run.path / name)
    wanted, folder, changed = backup / run.train_folder.name, run.train_folder, list[Path]()
    kept = set(_files(wanted))
    for place in sorted(kept | set(_files(folder))):
        there, here = wanted / place, folder / place
        if here.is_file() and not (place in kept and _same(here, there)):
            set_aside(here, ASIDE)
            changed.append(here)
        if place in kept and not here.is_file():
            here.parent.mkdir(parents=True, exist_ok=True)
            copy_file(there, here, link=here.suffix in _NEVER_CHANGED)
            sync_folder(here.parent)
            changed.append(here)
    return changed


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, by their place in it; none of the hidden ones, none that were set aside."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and not path.suffix.startswith(ASIDE):
            yield path.relative_to(folder)


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    same_size = one.stat().st_size == other.stat().st_size
    return same_size and content_hash(one.read_bytes()) == content_hash(other.read_bytes())
