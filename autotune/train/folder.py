"""The run folder in which a manifest is trained."""

from __future__ import annotations

from pathlib import Path

from autotune.manifest import Manifest, manifest_text, save_manifest
from autotune.runs import Run, all_runs, create_run, numbered_run


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
    own = Run(path.parent)
    if name is None and not new and path.name == own.manifest_file.name and (own.path / "run.json").is_file():
        return own
    if not new:
        for run in reversed(all_runs(root)):
            same = name is None or run.name == name
            if same and _holds(run, manifest) and (name is not None or not run.state().get("finished")):
                return run
    facts = {"command": "train", "finished": False}
    run = numbered_run(root, manifest.name, **facts) if name is None else create_run(root, name, **facts)
    save_manifest(run.manifest_file, manifest)
    return run


def _holds(run: Run, manifest: Manifest) -> bool:
    """Whether a run was made by `train` for this very manifest."""
    file = run.manifest_file
    return (
        run.state().get("command") == "train"
        and file.is_file()
        and file.read_bytes() == manifest_text(manifest).encode()
    )
