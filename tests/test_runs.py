"""Run folders: created, named, found, resumed, held by one."""

import errno
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_host import host

from autotune.errors import BusyError, FileError, UsageError
from autotune.locks import hold_device
from autotune.machine import DeviceInfo, GpuInfo
from autotune.runs import (
    Run,
    all_runs,
    check_name,
    create_run,
    discarded_when_refused,
    find_run,
    hold,
    next_name,
    numbered_run,
    open_run,
    running_runs,
)


def test_a_run_keeps_its_facts(tmp_path):
    run = create_run(tmp_path / "runs", "atari-1", command="search", finished=False)
    run.update(finished=True, spent_s=12.5)
    state = Run(tmp_path / "runs" / "atari-1").state()
    assert (state["command"], state["finished"], state["spent_s"], state["name"]) == ("search", True, 12.5, "atari-1")
    with pytest.raises(UsageError, match="'atari-1' exists already"):
        create_run(tmp_path / "runs", "atari-1")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "-x", "x" * 101, "a\n", "a\x00", "é"])
def test_names_that_are_no_folder_names(tmp_path, name):
    with pytest.raises(UsageError, match="must be 1 to 100 letters"):
        create_run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_good_names():
    assert [check_name(name) for name in ("atari-1", "A.b_c", "x" * 100)] == ["atari-1", "A.b_c", "x" * 100]


def test_numbers_go_on_from_the_highest(tmp_path):
    assert next_name(tmp_path, "atari") == "atari-1"
    for name in ("atari-2", "atari-10", "atari-probe-40", "atari-x", "atarix-99"):
        create_run(tmp_path, name)
    assert next_name(tmp_path, "atari") == "atari-11"
    assert next_name(tmp_path, "atari-probe") == "atari-probe-41"


def test_newest_is_by_creation(tmp_path):
    for created, name in [("2026-01-02", "b"), ("2026-01-03", "a"), ("2026-01-01", "c")]:
        create_run(tmp_path, name).update(created=created)
    (tmp_path / "no-run").mkdir()
    assert [run.name for run in all_runs(tmp_path)] == ["c", "b", "a"]
    assert find_run(tmp_path, None).name == "a"
    assert find_run(tmp_path, "b").path == find_run(tmp_path, str(tmp_path / "b")).path == tmp_path / "b"


def test_the_run_that_is_meant_is_the_one_used_last(tmp_path):
    for created, name in [("2026-01-01", "training"), ("2026-01-02", "probe"), ("2026-01-03", "later")]:
        create_run(tmp_path, name).update(created=created)
    with Run(tmp_path / "training").hold(), Run(tmp_path / "probe").hold():
        assert find_run(tmp_path, None).name == "probe"
        assert [run.name for run in running_runs(tmp_path)] == ["training", "probe"]
    assert running_runs(tmp_path) == []
    with Run(tmp_path / "training").hold():
        pass
    assert find_run(tmp_path, None).name == "training"
    assert [run.name for run in all_runs(tmp_path)][-1] == "later", "resuming goes by creation"


def test_runs_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"no run in .* yet: start one with `autotune search"):
        find_run(tmp_path, None)
    create_run(tmp_path, "a")
    with pytest.raises(UsageError, match=r"no run 'b' in .* \(runs: a\)"):
        find_run(tmp_path, "b")


def test_of_many_runs_a_message_names_the_newest(tmp_path):
    """A list of hundreds hid the error, and so did the oldest of them."""
    for number in range(1, 14):
        create_run(tmp_path, f"r{number}").update(created=f"2026-01-01T00:00:{number:02d}")
    with pytest.raises(UsageError, match=r"no run 'x' in .* \(runs: r13, r12, .*, r4 and 3 more\)$"):
        find_run(tmp_path, "x")


def test_a_folder_with_other_files_never_becomes_a_run(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"mine holds files but no run.json"):
        create_run(tmp_path, "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", [".run.json.x7k2", ".lock"])
def test_a_folder_whose_making_was_killed_becomes_the_run(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("{")
    assert create_run(tmp_path, "mine").state()["name"] == "mine"
    assert (tmp_path / "mine" / name).exists(), "it may be of a command that starts at the same moment"


@pytest.mark.parametrize("error", [UsageError("no such game"), BusyError("the GPU is taken"), FileError("damaged")])
def test_only_a_run_of_this_command_without_work_is_discarded(tmp_path, error):
    def refuse(run):
        with pytest.raises(type(error)), discarded_when_refused(run):
            raise error

    run = create_run(tmp_path, "a")
    refuse(Run(run.path))
    assert run.state()["name"] == "a"
    run.study_file.write_bytes(b"")
    refuse(run)
    assert run.study_file.exists()
    run.study_file.unlink()
    run.update(training="running")  # whose folder somebody removed
    refuse(run)
    assert run.state()["training"] == "running"
    run.update(training=None)
    refuse(run)
    assert not run.path.exists()


def test_what_cannot_be_discarded_does_not_hide_the_reason(tmp_path):
    """A run that was moved while its command ran, and one that is a link to another disk."""
    moved, linked = create_run(tmp_path, "moved"), tmp_path / "linked"
    (tmp_path / "disk").mkdir()
    linked.symlink_to(tmp_path / "disk")
    run = create_run(tmp_path, "linked")
    (run.path / "train" / "jobs").mkdir(parents=True)
    moved.path.rename(tmp_path / "elsewhere")
    for each in (moved, run):
        with pytest.raises(FileError, match="the reason"), discarded_when_refused(each):
            raise FileError("the reason")
    assert (tmp_path / "elsewhere" / "run.json").exists()
    assert linked.is_symlink() and not list((tmp_path / "disk").iterdir())


def test_a_damaged_run_is_named(tmp_path):
    run = create_run(tmp_path, "a")
    (run.path / "run.json").write_text("[1]")
    with pytest.raises(FileError, match=r"run.json is damaged: expected an object"):
        run.state()


def search(root, recipe="r", device="d", name=None, new=False, **facts):
    return open_run(root, command="search", stem="atari", recipe=recipe, device=device, name=name, new=new, **facts)


def test_the_same_command_resumes_and_another_does_not(tmp_path):
    first = search(tmp_path, seed=0)
    assert first.name == "atari-1"
    assert search(tmp_path, seed=0).name == "atari-1"
    assert search(tmp_path, seed=1).name == "atari-2"
    assert search(tmp_path, recipe="other", seed=0).name == "atari-3"
    assert search(tmp_path, device="other", seed=0).name == "atari-4"
    assert search(tmp_path, seed=0, new=True).name == "atari-5"
    assert search(tmp_path, seed=0).name == "atari-5"
    Run(tmp_path / "atari-5").update(finished=True)
    assert search(tmp_path, seed=0).name == "atari-1"
    first.update(finished=True)
    assert search(tmp_path, seed=0).name == "atari-6"


def test_a_named_run_that_belongs_to_another_search_is_refused(tmp_path):
    assert search(tmp_path, name="mine").name == "mine"
    assert search(tmp_path, name="mine").name == "mine"
    with pytest.raises(UsageError, match=r"'mine' in .* is already another recipe_hash, device"):
        search(tmp_path, recipe="other", device="other", name="mine")
    with pytest.raises(UsageError, match=r"'mine' in .* is already there"):
        search(tmp_path, name="mine", new=True)
    Run(tmp_path / "mine").update(finished=True)
    with pytest.raises(UsageError, match=r"'mine' in .* is already finished"):
        search(tmp_path, name="mine")


def _hold_until_told(path, held, release):
    with hold(path, "run x", "Stop it."):
        held.set()
        release.wait(30)


def test_one_process_holds_a_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold_until_told, args=(tmp_path / ".lock", held, release))
    holder.start()
    assert held.wait(30)
    with pytest.raises(BusyError, match=rf"run x is in use by PID {holder.pid} \(since .* UTC\). Stop it."):
        hold(tmp_path / ".lock", "run x", "Stop it.").__enter__()
    release.set()
    holder.join(30)
    with hold(tmp_path / ".lock", "run x", "Stop it."):
        pass


def test_a_holder_that_was_killed_holds_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold_until_told, args=(tmp_path / ".lock", held, release))
    holder.start()
    assert held.wait(30)
    holder.kill()
    holder.join(30)
    with hold(tmp_path / ".lock", "run x", "Stop it."):
        assert f"PID {os.getpid()}" in (tmp_path / ".lock.owner").read_text()


def test_a_disk_that_became_read_only_does_not_hide_the_reason(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    def fail():
        monkeypatch.setattr(Path, "unlink", refuse)
        raise FileError("the reason")

    with pytest.raises(FileError, match="the reason"), hold(tmp_path / ".lock", "run x", "Stop it."):
        fail()
    monkeypatch.undo()
    with hold(tmp_path / ".lock", "run x", "Stop it."):
        pass


def test_a_lock_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FileError, match="must be local and writable: choose another with --runs, or copy the run"),
        hold(tmp_path / "file" / ".lock", "run x", "Stop it."),
    ):
        pass


def gpu_machine(uuid):
    gpu = GpuInfo(index=0, name="NVIDIA H200", uuid=uuid)
    return DeviceInfo(kind="cuda", name=gpu.name, host=host(), gpus=(gpu,), gpu_index=0)


def test_a_gpu_is_held_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with hold_device(gpu_machine("GPU-1")):
        with hold_device(gpu_machine("GPU-2")):
            pass
        message = rf"NVIDIA H200 \(GPU-1\) is in use by PID {os.getpid()}"
        with pytest.raises(BusyError, match=message), hold_device(gpu_machine("GPU-1")):
            pass
    with hold_device(gpu_machine("GPU-1")):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [f"autotune-{os.getuid()}"]


@pytest.mark.parametrize("planted", ["link", "link to nothing", "file"])
def test_the_device_lock_refuses_what_is_planted_in_its_place(tmp_path, monkeypatch, planted):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    place = tmp_path / f"autotune-{os.getuid()}"
    if planted == "file":
        place.touch()
    else:
        (tmp_path / "link").mkdir()
        place.symlink_to(tmp_path / planted)
    with pytest.raises(FileError, match="not this user's own folder"), hold_device(gpu_machine("GPU-1")):
        pass


def test_numbered_runs_of_commands_that_start_together_differ(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: numbered_run(tmp_path, "my surface (1)"), range(24)))
    assert {run.name for run in runs} == {f"my-surface-1-{n}" for n in range(1, 25)}


def test_a_device_lock_that_has_no_place_says_which_is_to_be_set(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileError, match=r"cannot create .*gone.*Set TMPDIR"), hold_device(gpu_machine("GPU-1")):
        pass
