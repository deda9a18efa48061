"""The run folder in which a manifest is trained."""

from __future__ import annotations

from pathlib import Path

from autotune.errors import UsageError
from autotune.manifest import Manifest, manifest_text, save_manifest
from autotune.runs import Run, all_runs, check_name, create_run, numbered_run
from autotune.train.migration import refuse_migrated, successor
from autotune.units import typed


def open_training_run(path: Path, manifest: Manifest, root: Path, *, name: str | None = None, new: bool = False) -> Run:
    """The run folder in which a manifest is trained.

    A manifest that lies in a run (``runs/<name>/manifest.json``) trains there. Any other is copied into
    a run of its own: the newest unfinished one with the same content, else ``<manifest name>-<n>``.

    Args:
        path: where the manifest was read.
        manifest: its content.
        root: folder of the runs.
        name: a certain run, resumed when it holds the same manifest.
        new: always a new run.

    Raises:
        UsageError: the named run exists and is another one.
        FileError: the run cannot be created.
    """
    if (own := _run_around(path)) and name is None and not new:
        return own
    if not new:
        for run in reversed(all_runs(root)):
            same = name is None or run.name == name
            if same and _holds(run, manifest) and (name is not None or not run.state().get("finished")):
                return run
    return _new_run(manifest, root, name)


def open_migrated_run(
    path: Path, manifest: Manifest, source: Run, root: Path, *, name: str | None = None, new: bool = False
) -> Run:
    """The run folder in which a manifest goes on with another run's training.

    The run that the source was migrated to with the same manifest, if it was: the same command goes on. Else
    the run that the manifest lies in, else the newest one without a training that holds it, else a new one.

    Args:
        path: where the manifest was read.
        manifest: its content.
        source: the run to go on with.
        root: folder of the runs.
        name: of the new run.
        new: never one that is there.

    Raises:
        UsageError: the source is the run of the manifest itself, or was migrated with another manifest.
        FileError: the run cannot be created.
    """
    following = successor(source)
    if following and not new and _same_text(following, manifest) and name in (None, following.name):
        return following
    refuse_migrated(source)
    if (own := _run_around(path)) and name is None and not new:
        if own.path.resolve() == source.path.resolve():
            raise UsageError(
                f"{path} is the manifest of run {source.path} itself: `autotune train {typed(path)}` goes on with "
                "it, at any point; to be able to return, copy the manifest elsewhere and change it there"
            )
        return own
    for run in [] if new else reversed(all_runs(root)):
        if name in (None, run.name) and run != source and _holds(run, manifest) and not run.train_folder.exists():
            return run
    return _new_run(manifest, root, name)


def _run_around(path: Path) -> Run | None:
    """The run whose manifest this file is, None where it lies elsewhere."""
    run = Run(path.parent)
    return run if path.name == run.manifest_file.name and run.state_file.is_file() else None


def _new_run(manifest: Manifest, root: Path, name: str | None) -> Run:
    facts = {"command": "train", "finished": False}
    if name is None:
        run = numbered_run(root, manifest.name, **facts)
    else:
        begun = Run(root / check_name(name))
        run = begun if _empty(begun) else create_run(root, name, **facts)
    save_manifest(run.manifest_file, manifest)
    return run


def _empty(run: Run) -> bool:
    """Whether `train` made a run and was killed before it wrote the manifest."""
    began = run.state_file.is_file() and run.state().get("command") == "train"
    return began and not run.manifest_file.exists() and not run.train_folder.exists()


def _same_text(run: Run, manifest: Manifest) -> bool:
    return run.manifest_file.is_file() and run.manifest_file.read_bytes() == manifest_text(manifest).encode()


def _holds(run: Run, manifest: Manifest) -> bool:
    """Whether a run was made by `train` for this very manifest."""
    return run.state().get("command") == "train" and _same_text(run, manifest)
