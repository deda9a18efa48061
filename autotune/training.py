"""What the command line does to train: its options in, a training that ended out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import live, resources
from autotune.device.inspect import usable_device
from autotune.errors import EXIT_ERROR, EXIT_OK, EXIT_UNFINISHED, UsageError
from autotune.locks import hold_device
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, check_manifest, load_manifest
from autotune.records import TrainResult
from autotune.runs import Run, discarded_when_refused, find_run
from autotune.search.learning import concerns
from autotune.signals import StopSignals
from autotune.train.canary import train_run
from autotune.train.folder import open_migrated_run, open_training_run
from autotune.train.migrate import migrate
from autotune.train.migration import BACKUP, load_migration
from autotune.units import typed

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EndedTraining:
    """A training that ended, for now or for good."""

    result: TrainResult
    run: Run
    exit_code: int


def run_training(options: dict[str, Any], say: Say) -> EndedTraining:
    """Execute the manifest that the options name, after taking another run's training over if they say so.

    Raises:
        CanaryError: the first jobs of a migration failed; it was rolled back.
        UsageError: the manifest or the runs cannot be used.
        BusyError: the run or the device is in use.
        FileError: a file is damaged, or cannot be read or written.
    """
    path = resources.find("manifests", options["manifest"])
    manifest = load_manifest(path)
    check_manifest(manifest)
    device = usable_device(options["device"])
    run, source = _choose_run(path, manifest, options)
    say(f"run {run.path}")
    for sentence in concerns(manifest.checked()):
        say(sentence)
    with (
        discarded_when_refused(run),
        run.hold(),
        hold_device(device),
        StopSignals("stopped; the same command goes on from the last checkpoint") as stop,
        live.TrainView() as view,
    ):
        if source and load_migration(run):
            say(f"run {source.name} was migrated before: run {run.name} goes on")
        elif source:
            _take_over(manifest, source, run, device, options, say, stop.requested)
        elif run.state().get("training") == "rolled back":
            say(f"run {run.name} was rolled back: it begins at env step 0; --resume-from RUN goes on with another's")
        result = train_run(manifest, run, device=device, on_event=view.update, warn=say, should_stop=stop.requested)
    statuses = {job.status for job in result.jobs}
    ended = EXIT_OK if statuses == {"done"} else EXIT_ERROR if "crashed" in statuses else EXIT_UNFINISHED
    return EndedTraining(result=result, run=run, exit_code=stop.exit_code or ended)


def _choose_run(path: Path, manifest: Manifest, options: dict[str, Any]) -> tuple[Run, Run | None]:
    """The run to work in, and the one whose training it goes on with, if any."""
    root, name, new = options["runs"], options["name"], options["new"]
    if options["resume_from"] is None:
        if options["canary"] is not None:
            raise UsageError("--canary needs --resume-from RUN: it is for the first jobs of a migration")
        return open_training_run(path, manifest, root, name=name, new=new), None
    source = find_run(root, options["resume_from"])
    return open_migrated_run(path, manifest, source, root, name=name, new=new), source


def _take_over(
    manifest: Manifest,
    source: Run,
    run: Run,
    device: DeviceInfo,
    options: dict[str, Any],
    say: Say,
    should_stop: Callable[[], bool],
) -> None:
    asked = (options["canary"], options["canary_time"], options["canary_sps"]) if options["canary"] else None
    done = migrate(manifest, source, run, device=device, canary=asked, warn=say, should_stop=should_stop)
    for job in done.jobs:
        say(f"{job.id} goes on at env step {job.env_steps:,} of run {source.name}")
    if done.fresh:
        say(f"from the beginning, since run {source.name} has no checkpoint of theirs: {', '.join(done.fresh)}")
    say(
        f"backup of run {source.name}: {run.train_folder / BACKUP}; `autotune rollback {typed(run.path)}` returns to it"
    )
