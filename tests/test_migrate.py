"""A training goes on at another point in another run, and returns: whole at every moment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from migration_run import NEW, OLD, STEPS, a_manifest, content, old_run, save, steps_of, totals

from autotune import cli, store
from autotune.device.inspect import inspect_device
from autotune.errors import BusyError, FileError, UsageError
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, save_manifest
from autotune.report.facts import gather
from autotune.report.render import render_sections
from autotune.runs import Run, find_run
from autotune.train.events import EventLog, read_events
from autotune.train.folder import open_migrated_run, open_training_run
from autotune.train.migrate import migrate, rollback, take_over
from autotune.train.migration import load_migration, refuse_migrated, successor
from autotune.train.migration_plan import plan_migration
from autotune.train.supervise import supervise
from autotune.views import status_text
from autotune.worker import lock
from autotune.worker.checkpoint import best_checkpoint, generations, load_checkpoint
from autotune.worker.metrics import read_metrics


@pytest.fixture(scope="module")
def device() -> DeviceInfo:
    return inspect_device("cpu")


def new_run(root: Path, source: Run, manifest: Manifest | None = None) -> tuple[Manifest, Run]:
    chosen = manifest or a_manifest("abc", NEW, name="new")
    return chosen, open_migrated_run(root / "new.json", chosen, source, root)


def check_migrated(source: Run, run: Run) -> None:
    migration = load_migration(run)
    assert migration is not None
    assert [(job.id, job.env_steps) for job in migration.jobs] == [("a", 300), ("b", 500)]
    assert migration.fresh == ("c",)
    assert migration.sps_before == 200.0
    assert steps_of(run) == STEPS
    for job, last in STEPS.items():
        folder = run.train_folder / "jobs" / job
        assert [row["env_steps"] for row in read_metrics(folder / "metrics.csv")] == [
            str(n) for n in range(100, last + 1, 100)
        ]
        best = best_checkpoint(folder / "checkpoints")
        assert best is not None and load_checkpoint(best[0]).meta["progress"]["env_steps"] == 200
    assert [(e["kind"], e["job"], e["total_env_steps"]) for e in read_events(run)] == [
        ("migrated", "a", 300),
        ("migrated", "b", 500),
    ]
    backup = run.train_folder / "backup"
    assert content(Run(backup)) == content(source)
    assert (backup / "manifest.json").read_bytes() == source.manifest_file.read_bytes()
    assert successor(source) == Run(run.path.resolve())


def test_every_job_goes_on_at_the_new_point(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    before = content(source)
    manifest, run = new_run(tmp_path, source)
    with run.hold():
        migrate(manifest, source, run, device=device)
    check_migrated(source, run)
    assert content(source) == before, "the old run is as it was"
    result = supervise(manifest, run, device=device)
    assert {job.id: job.status for job in result.jobs} == {"a": "done", "b": "done", "c": "done"}
    resumed = {e["job"]: e["total_env_steps"] for e in read_events(run) if e["kind"] == "resumed"}
    assert resumed == STEPS
    ready = [e["effective"] for e in read_events(run) if e["kind"] == "ready"]
    assert {(e["num_envs"], e["batch_size"]) for e in ready} == {(16, 128)}
    for job, last in STEPS.items():
        rows = [int(row["env_steps"]) for row in read_metrics(run.train_folder / "jobs" / job / "metrics.csv")]
        assert rows[: last // 100] == [*range(100, last + 1, 100)] and rows[last // 100] == last + 128
        assert rows == sorted(set(rows)) and rows[-1] >= 1000
        best = best_checkpoint(run.train_folder / "jobs" / job / "checkpoints")
        assert best is not None, "the best generation is kept over the migration"
    assert content(source) == before
    with pytest.raises(UsageError, match=rf"was migrated to {run.path}.*autotune rollback"):
        supervise(a_manifest(), source, device=device)
    with pytest.raises(UsageError, match="was migrated to"):
        open_migrated_run(tmp_path / "x.json", a_manifest("abc", NEW, steps=5000, name="other"), source, tmp_path)
    assert open_migrated_run(tmp_path / "new.json", manifest, source, tmp_path).path.name == run.name, "it goes on"


def test_a_rollback_returns_and_loses_nothing(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    before, (manifest, run) = content(source), new_run(tmp_path, source)
    for attempt in (1, 2):
        assert open_migrated_run(tmp_path / "new.json", manifest, source, tmp_path) == run
        take_over(plan_migration(manifest, source), source, run)
        save(run, "a", 400 + attempt)
        trained = content(run)
        for _ in range(3):
            assert rollback(run).path == source.path.resolve()
            assert content(source) == before and successor(source) is None and not run.train_folder.exists()
            assert sorted(path.name for path in (run.path / "rolled-back").iterdir()) == [
                str(n) for n in range(1, attempt + 1)
            ]
        aside = run.path / "rolled-back" / str(attempt)
        assert {name: (aside / name.removeprefix("train/")).read_bytes() for name in trained} == trained
    refuse_migrated(source)
    with pytest.raises(UsageError, match="was not migrated from another run"):
        rollback(source)


def test_a_report_and_the_status_tell_which_run_goes_on(tmp_path: Path) -> None:
    """They told of `autotune train` with the old manifest, which is refused."""
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    markdown = next(each.markdown for each in render_sections(gather(source)) if each.name == "summary")
    assert f"- **Next:** run {run.name} goes on with this training: `autotune report {run.path}`" in markdown
    assert status_text(source).endswith(f"\nrun {run.path} goes on with this training")
    rollback(run)
    markdown = next(each.markdown for each in render_sections(gather(source)) if each.name == "summary")
    assert "goes on with this training" not in markdown + status_text(source)


def test_a_rollback_repairs_or_recreates_the_old_run(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    before, (manifest, run) = content(source), new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    folder = source.train_folder / "jobs" / "a"
    newest = generations(folder / "checkpoints")[-1].path
    newest.unlink()
    newest.write_bytes(b"broken")
    later = save(source, "b", 900, keep=9)
    (folder / "metrics.csv").unlink()
    said: list[str] = []
    rollback(run, warn=said.append)
    assert len(said) == 1 and said[0].startswith(f"3 files of run {source.path.resolve()} were not as before")
    assert "kept beside each as *.before-rollback" in said[0]
    assert {n: c for n, c in content(source).items() if not n.endswith(".before-rollback")} == before
    assert newest.with_name(newest.name + ".before-rollback").read_bytes() == b"broken"
    assert later.with_name(later.name + ".before-rollback").exists(), "set aside, not removed"
    assert steps_of(source) == STEPS

    for path in list(source.train_folder.rglob("*.before-rollback")):
        path.unlink()
    (source.train_folder / "jobs" / "b" / "checkpoints" / "best.json.before-rollback").unlink(missing_ok=True)
    take_over(plan_migration(manifest, source), source, run)
    shutil.rmtree(source.path)
    said.clear()
    rollback(run, warn=said.append)
    assert said == [f"there was no run {source.path.resolve()} any more: it was made again from the backup"]
    assert content(source) == before and source.state()["name"] == "old-1"
    assert source.manifest_file.is_file()


def test_what_was_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    curve = source.train_folder / "jobs" / "a" / "metrics.csv"
    for text in ("first", "second"):
        take_over(plan_migration(manifest, source), source, run)
        (run.path / "rolled-back").mkdir(exist_ok=True)
        (run.path / "rolled-back" / "notes.txt").write_text("mine")
        curve.write_text(text)
        rollback(run)
    kept = sorted(curve.parent.glob("metrics.csv.before-rollback*"))
    assert [path.read_text() for path in kept] == ["first", "second"]
    shutil.rmtree(run.path / "rolled-back" / "1")
    take_over(plan_migration(manifest, source), source, run)
    rollback(run)
    assert {path.name for path in (run.path / "rolled-back").iterdir()} == {"2", "3", "notes.txt"}


def test_what_began_after_a_rollback_is_not_rolled_back(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    rollback(run)
    save(run, "a", 700)
    run.update(training="done", finished=True)
    with pytest.raises(UsageError, match="rolled back already, and what it trains now began after that"):
        rollback(run)
    assert run.state()["finished"] is True
    assert steps_of(run)["a"] == 700


@pytest.mark.parametrize("command", ["train", "search"])
def test_a_rollback_leaves_a_finished_search_finished(tmp_path: Path, command: str) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    run.update(command=command, finished=True)
    take_over(plan_migration(manifest, source), source, run)
    for _ in range(2):
        rollback(run)
        assert run.state()["training"] == "rolled back"
        assert run.state()["finished"] is (command == "search")


def refused_rollback(run: Run, source: Run, message: str) -> None:
    before, new = content(source), content(run)
    with pytest.raises(UsageError, match=message):
        rollback(run)
    assert content(source) == before and content(run) == new and not list(source.path.rglob("*.before-rollback"))


def test_a_renamed_run_does_not_take_newer_training_back(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    moved = Run(run.path.rename(tmp_path / "renamed"))
    warnings: list[str] = []
    for _ in range(2):
        supervise(a_manifest(), source, device=device, warn=warnings.append)
    told = [text for text in warnings if "was migrated to" in text]
    assert len(told) == 1 and "is not there any more: training goes on from before the migration" in told[0]
    refused_rollback(moved, source, rf"run {source.path} has trained since run {moved.path} took it over")
    moved.path.rename(run.path)
    refused_rollback(run, source, "has trained since")
    supervise(a_manifest(steps=1200), source, device=device)


def test_a_copy_of_the_new_run_does_not_take_anything_back(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    refused_rollback(copy, source, rf"was migrated to {run.path}, so {copy.path} is a copy.*rollback {run.path}")
    rollback(run)
    save(source, "a", 700)
    EventLog(source).record("saved", job="a", path="p", **totals(700))
    for late in (copy, run):
        refused_rollback(late, source, "has trained since")


def test_another_run_in_the_place_of_the_old_one_stays_as_it_is(tmp_path: Path) -> None:
    source = old_run(tmp_path / "runs")
    manifest, run = new_run(tmp_path / "runs", source)
    take_over(plan_migration(manifest, source), source, run)
    stranger = old_run(tmp_path / "other")
    save(stranger, "a", 700)
    shutil.copytree(run.path, tmp_path / "other" / run.name)
    copy = Run(tmp_path / "other" / run.name)
    refused_rollback(copy, stranger, rf"with run old-1, created .* {stranger.path} was created .* another run")
    rollback(run)
    shutil.copytree(run.path, tmp_path / "other" / "rolled")
    refused_rollback(Run(tmp_path / "other" / "rolled"), stranger, "another run")


def test_a_chain_is_rolled_back_from_its_end(tmp_path: Path) -> None:
    first = old_run(tmp_path)
    manifest, second = new_run(tmp_path, first)
    take_over(plan_migration(manifest, first), first, second)
    last = a_manifest("abc", replace(NEW, num_envs=32), name="last")
    third = open_migrated_run(tmp_path / "last.json", last, second, tmp_path)
    take_over(plan_migration(last, second), second, third)
    assert steps_of(third) == STEPS
    with pytest.raises(UsageError, match=rf"was migrated to {third.path}"):
        rollback(second)
    rollback(third)
    rollback(second)
    assert successor(first) is None and steps_of(first) == STEPS
    assert shutil.rmtree(second.path) is None and successor(first) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": "a"}, "has the jobs b, which the manifest lacks: add them"),
        ({"workload": "atari", "hyperparameters": {}}, "trains workload 'busywork', the manifest 'atari'"),
        ({"env": "other"}, "job a plays busy in run .* and other in the manifest"),
    ],
)
def test_runs_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = old_run(tmp_path)
    manifest = a_manifest(**{"jobs": "ab", "point": replace(NEW, concurrency=1), **changes})
    with pytest.raises(UsageError, match=message):
        plan_migration(manifest, source)


def test_a_job_that_the_old_manifest_dropped_goes_on_too(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    save_manifest(source.manifest_file, a_manifest("a", replace(OLD, concurrency=1)))
    manifest, run = new_run(tmp_path, source)
    with run.hold():
        migration = migrate(manifest, source, run, device=device)
    assert {job.id: job.env_steps for job in migration.jobs} == STEPS == steps_of(run) and migration.fresh == ("c",)
    rollback(run)
    other = old_run(tmp_path / "other", a_manifest("c", replace(OLD, concurrency=1), env="other"))
    with pytest.raises(UsageError, match=r"job b plays busy in run .* and other in the manifest"):
        plan_migration(a_manifest("bc", env="other"), other)
    shutil.rmtree(source.train_folder / "jobs" / "b")
    with pytest.raises(FileError, match="job b saved at env step 500, but there is no checkpoint"):
        plan_migration(manifest, source)


def test_damaged_curves_and_events_of_the_old_run_are_no_obstacle(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    whole, manifest = plan_migration(a_manifest(name="new"), source), a_manifest(name="new")
    for job, bad in (("a", "xx"), ("b", "nan")):
        curve = source.train_folder / "jobs" / job / "metrics.csv"
        lines = curve.read_text().splitlines()
        lines[1] = f"{lines[1].rpartition(',')[0]},{bad}"
        curve.write_text("\n".join(lines) + "\n")
    with (source.train_folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "opened", "job": null}\n')
    warnings: list[str] = []
    plan = plan_migration(manifest, source, warn=warnings.append)
    assert [job.first_return for job in whole.jobs] == [2.0, 2.0]
    assert [job.first_return for job in plan.jobs] == [4.0, 4.0] and plan.sps_before == whole.sps_before
    assert len(warnings) == 2 and "'xx' in column mean_return_100 is no number" in warnings[0]
    supervise(a_manifest(), source, device=device)


def test_what_cannot_be_resumed_is_named(tmp_path: Path, device: DeviceInfo) -> None:
    source, manifest = old_run(tmp_path), a_manifest("ab", replace(NEW, concurrency=2), name="new")
    run = open_migrated_run(tmp_path / "new.json", manifest, source, tmp_path)

    def refused(kind: type[Exception], message: str, source: Run = source, run: Run = run) -> None:
        with pytest.raises(kind, match=message):
            migrate(manifest, source, run, device=device)
        assert load_migration(run) is None and successor(source) is None

    run.train_folder.symlink_to(tmp_path)
    refused(UsageError, rf"{run.train_folder} is a link to {tmp_path}, and a migration puts a folder there")
    run.train_folder.unlink()
    source.manifest_file.rename(tmp_path / "kept.json")
    refused(UsageError, r"run .*old-1 is incomplete, since it has no manifest\.json: put the manifest")
    (tmp_path / "kept.json").rename(source.manifest_file)
    untrained = open_training_run(tmp_path / "fresh.json", a_manifest(name="fresh"), tmp_path)
    refused(UsageError, "has not trained: there is nothing to resume", source=untrained)
    refused(UsageError, "has trained already", run=source)
    with source.hold():
        refused(BusyError, r"run .*old-1 is in use by PID")
    with pytest.MonkeyPatch.context() as patch, FileLock(source.train_folder / "jobs" / "a" / ".lock"):
        patch.setattr(lock, "ORPHAN_S", 0.05)
        refused(BusyError, "another worker still trains in")
    with pytest.raises(UsageError, match=r"is the manifest of run .*old-1 itself"):
        open_migrated_run(source.manifest_file, a_manifest(), source, tmp_path)

    checkpoints = generations(source.train_folder / "jobs" / "a" / "checkpoints")
    checkpoints[-1].path.write_bytes(b"")
    warnings: list[str] = []
    plan = plan_migration(manifest, source, warn=warnings.append)
    assert plan.jobs[0].env_steps == 200, "the generation before the damaged one"
    assert len(warnings) == 2 and "env step 300" in warnings[0] and "continuing at env step 200" in warnings[1]
    assert checkpoints[-1].path.exists(), "planning changes nothing"
    for generation in checkpoints:
        generation.path.write_bytes(b"")
    refused(FileError, r"no valid checkpoint in .* \(3 found, 3 failed")
    shutil.rmtree(checkpoints[0].path.parent)
    refused(FileError, "job a saved at env step 300, but there is no checkpoint")


def test_checkpoints_of_another_job_are_refused(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    shutil.rmtree(source.jobs_folder / "a")
    shutil.copytree(source.jobs_folder / "b", source.jobs_folder / "a")
    with pytest.raises(UsageError, match="is a checkpoint of job b, and this is job a: move it away"):
        migrate(manifest, source, run, device=device)
    assert successor(source) is None and not (run.path / ".migrating").exists()


def test_own_programs_are_not_migrated(tmp_path: Path) -> None:
    changes = {"workload": "command", "hyperparameters": {"argv": ["python", "x.py", "--envs", "{num_envs}"]}}
    source = open_training_run(tmp_path / "old.json", a_manifest(**changes), tmp_path)
    EventLog(source).record("saved", job="a", **totals(10))
    with pytest.raises(UsageError, match="keeps its own checkpoints: autotune cannot migrate them"):
        plan_migration(a_manifest(name="new", **changes), source)


@pytest.mark.parametrize(("count", "message"), [(3, "between 1 and the 2 jobs"), (2, "but 1 migrated jobs have work")])
def test_a_canary_larger_than_what_runs_is_refused(tmp_path: Path, count: int, message: str) -> None:
    source = old_run(tmp_path)
    manifest = a_manifest("ab", replace(NEW, concurrency=2), steps=400, name="new")
    with pytest.raises(UsageError, match=message):
        plan_migration(manifest, source, canary=(count, 60.0, 0.95))


def test_without_hard_links_everything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    take_over(plan_migration(manifest, source), source, run)
    check_migrated(source, run)
    assert {path.stat().st_nlink for path in run.train_folder.rglob("*.safetensors")} == {1}


def test_links_are_followed_and_what_is_no_file_stays_behind(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    checkpoints = source.jobs_folder / "a" / "checkpoints"
    for file in sorted(checkpoints.glob("*.safetensors")):
        file.rename(tmp_path / file.name)
        file.symlink_to(Path("../../../../..") / file.name)
    (source.jobs_folder / "b").rename(tmp_path / "b")
    (source.jobs_folder / "b").symlink_to(tmp_path / "b")
    before = {**content(source), **content(Run(tmp_path / "b"))}
    os.mkfifo(checkpoints / "pipe.safetensors")
    (checkpoints / "folder.safetensors").mkdir()
    (checkpoints / "gone.safetensors").symlink_to("nowhere")
    (source.train_folder / "self").symlink_to("self")
    (source.train_folder / "up").symlink_to("..")
    (source.jobs_folder / "notes.txt").write_text("mine")
    with run.hold():
        migrate(manifest, source, run, device=device)
    assert steps_of(run) == STEPS
    assert not any(path.is_symlink() for path in run.train_folder.rglob("*"))
    names = {path.name for path in run.train_folder.rglob("*")}
    assert not {"pipe.safetensors", "gone.safetensors", "self", "up"} & names and "notes.txt" in names
    rollback(run)
    assert steps_of(source) == STEPS and before.items() <= content(source).items()
    assert not list(tmp_path.rglob("*.before-rollback"))


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ordinary errors sees it."""


CALLS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "link", "fdopen", "mkdir")),
    *((Path, name) for name in ("replace", "rename", "unlink", "chmod")),
    (store.tempfile, "mkstemp"),
    (shutil, "rmtree"),
]


def killed_at(call: int, action: Callable[[], Any]) -> int:
    """Do something, and die before the `call`-th system call that changes what lies on the disk.

    Returns how many calls there were: fewer than `call` when it was not killed.
    """
    count = 0

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= call:  # the dead do nothing more, clean-up included
                raise Killed
            return None if original is fsync else original(*arguments, **options)

        return wrapper

    fsync = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, guarded(getattr(owner, name)))
        with contextlib.suppress(Killed):
            action()
    return count


def kills(root: Path, template: Path, action: Callable[[Path], Any]) -> Iterator[tuple[bool, Path]]:
    """A copy of the template for each moment to die at: the first and last ones, and a part of those between."""
    shutil.copytree(template, root / "whole")
    last = killed_at(10**9, lambda: action(root / "whole"))
    assert last > 20
    for call in sorted({*range(1, 5), *range(5, last - 12, 9), *range(max(5, last - 12), last + 2)}):
        folder = root / str(call)
        shutil.copytree(template, folder)
        yield killed_at(call, lambda folder=folder: action(folder)) >= call, folder


def test_killed_at_any_call_either_the_old_state_or_the_new_one_is_whole(tmp_path: Path) -> None:
    template = tmp_path / "template"
    source = old_run(template)
    manifest, run = new_run(template, source)
    before, plan = content(source), plan_migration(manifest, source)

    def go(root: Path) -> None:
        take_over(plan, Run(root / source.name), Run(root / run.name))

    outcomes = set()
    for killed, root in kills(tmp_path, template, go):
        old, new = Run(root / source.name), Run(root / run.name)
        assert content(old) == before
        outcomes.add((killed, successor(old) is not None))
        if not successor(old):
            assert not new.train_folder.exists()
            killed_at(10**9, lambda root=root: go(root))
        check_migrated(old, new)
    assert outcomes == {(True, False), (True, True), (False, True)}


def test_a_killed_migration_is_not_taken_for_a_training_from_the_beginning(tmp_path: Path, device: DeviceInfo) -> None:
    source = old_run(tmp_path)
    manifest, run = new_run(tmp_path, source)
    plan = plan_migration(manifest, source)
    assert killed_at(30, lambda: take_over(plan, source, run)) >= 30
    assert open_training_run(tmp_path / "new.json", manifest, tmp_path) == run
    with pytest.raises(UsageError, match=r"was interrupted: repeat its command, with --resume-from"):
        supervise(manifest, run, device=device)
    assert open_migrated_run(tmp_path / "new.json", manifest, source, tmp_path) == run
    take_over(plan, source, run)
    refuse_migrated(run)
    check_migrated(source, run)


def test_runs_are_found_through_links_and_after_they_moved_together(tmp_path: Path) -> None:
    source = old_run(tmp_path / "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    manifest, run = new_run(tmp_path / "link", Run(tmp_path / "link" / source.name))
    take_over(plan_migration(manifest, source), source, run)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Run(tmp_path / "two" / source.name)
    assert successor(moved) == Run(tmp_path / "two" / run.name)
    assert rollback(Run(tmp_path / "two" / run.name)) == moved


def test_a_rollback_that_is_killed_at_any_call_goes_on(tmp_path: Path) -> None:
    template = tmp_path / "template"
    source = old_run(template)
    manifest, run = new_run(template, source)
    before = content(source)
    take_over(plan_migration(manifest, source), source, run)
    for path in source.train_folder.rglob("metrics.csv"):  # something to put back
        path.unlink()

    outcomes = set()
    for killed, root in kills(tmp_path, template, lambda root: rollback(Run(root / run.name))):
        old, new = Run(root / source.name), Run(root / run.name)
        outcomes.add((killed, successor(old) is not None))
        if successor(old):
            assert steps_of(new) == STEPS and load_migration(new) is not None
        else:
            assert content(old) == before
        assert rollback(new).path == old.path.resolve()
        assert content(old) == before and successor(old) is None and old.state()["migrated_to"] is None
        assert len(list((new.path / "rolled-back").iterdir())) == 1
        assert new.state()["training"] == "rolled back"
    assert outcomes == {(True, True), (True, False), (False, False)}


def test_the_command_line_migrates_and_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    source = old_run(runs)
    file = tmp_path / "new.json"
    save_manifest(file, a_manifest("ab", replace(NEW, concurrency=2), name="new"))
    command = ["train", str(file), "--device", "cpu", "--runs", str(runs), "--json"]
    assert cli.main([*command, "--canary", "1"]) == 2
    assert "--canary needs --resume-from RUN" in capsys.readouterr().err
    for given in (["--canary-time", "1m"], ["--canary-sps", "0.5"]):
        assert cli.main([*command, "--resume-from", "old-1", *given]) == 2
        assert f"{given[0]} needs --canary" in capsys.readouterr().err
    assert cli.main([*command, "--resume-from", "nobody"]) == 2
    assert "there is no run 'nobody'" in capsys.readouterr().err
    assert cli.main([*command, "--resume-from", "old-1"]) == 0
    out, told = capsys.readouterr()
    assert {job["id"]: job["env_steps"] >= 1000 for job in json.loads(out)["jobs"]} == {"a": True, "b": True}
    assert "a goes on at env step 300 of run old-1" in told
    assert f"`autotune rollback {runs / 'new-1'}` returns to it" in told
    assert find_run(runs, None).name == "new-1", "status and report are of the run that trains on"
    assert cli.main(["train", str(source.manifest_file), "--device", "cpu", "--runs", str(runs)]) == 2
    assert "was migrated to" in capsys.readouterr().err
    for _ in range(2):
        assert cli.main(["rollback", "new-1", "--runs", str(runs)]) == 0
        assert f"autotune train {source.manifest_file.resolve()}" in capsys.readouterr().out
    assert cli.main(["rollback", "old-1", "--runs", str(runs)]) == 2
    assert "nothing to roll back" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "run new-1 was rolled back: it begins at env step 0" in capsys.readouterr().err
