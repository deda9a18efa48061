"""The limit on host memory: which control group is ours to make, and what is written there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_host import write_tree

from autotune.executors import cgroup
from autotune.executors.cgroup import MemoryGroup, make_group, memory_limit, offer_as_victim, parent_folder

MIB = 2**20
V1 = {
    "proc/self/cgroup": "5:cpu:/\n4:memory:/\n0::/\n",
    "sys/fs/cgroup/memory/memory.use_hierarchy": "1\n",
}
V2 = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
    "sys/fs/cgroup/cgroup.subtree_control": "memory pids\n",
}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (V1, ("sys/fs/cgroup/memory", 1)),
        (V2, ("sys/fs/cgroup", 2)),
        ({}, None),
        (V1 | {"sys/fs/cgroup/memory/memory.use_hierarchy": "0\n"}, None),  # would escape the container's limit
        (V2 | {"sys/fs/cgroup/cgroup.subtree_control": "pids\n"}, None),
        (V1 | {"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.use_hierarchy": "1\n"}, None),
        (V2 | {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cgroup.subtree_control": "memory\n"}, None),
    ],
)
def test_a_group_is_made_only_where_it_is_ours(
    tmp_path: Path, tree: dict[str, str], expected: tuple[str, int] | None
) -> None:
    root = write_tree(tmp_path, tree)
    assert parent_folder(root, {}) == (None if expected is None else (root / expected[0], expected[1]))


def test_a_group_that_systemd_has_delegated_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cgroup.subtree_control": "memory\n"}
    root = write_tree(tmp_path, tree)
    monkeypatch.setattr(cgroup.os, "getxattr", lambda _, name: b"1" if name == "user.delegate" else b"", raising=False)
    assert parent_folder(root, {}) == (root / "sys/fs/cgroup/a", 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_folder_that_the_user_names(tmp_path: Path, version: int) -> None:
    if version == 2:
        (tmp_path / "cgroup.controllers").touch()
    assert parent_folder(tmp_path / "nowhere", {"AUTOTUNE_CGROUP": str(tmp_path)}) == (tmp_path, version)


@pytest.mark.parametrize(
    ("version", "written"),
    [
        (1, {"memory.limit_in_bytes": "1000", "memory.memsw.limit_in_bytes": "1000", "cgroup.procs": "17"}),
        (2, {"memory.max": "1000", "memory.swap.max": "0", "cgroup.procs": "17"}),
    ],
)
def test_what_a_group_is_told(tmp_path: Path, version: int, written: dict[str, str]) -> None:
    group = make_group(1000, (tmp_path, version))
    assert group is not None
    assert group.folder.parent == tmp_path and group.folder.name.startswith(f"autotune-{os.getpid()}-")
    assert group.add(17)
    assert {file.name: file.read_text() for file in group.folder.iterdir()} == written


@pytest.mark.parametrize(
    ("version", "file", "text"),
    [
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        (2, "memory.events", "low 0\nmax 80\noom 4\noom_kill 3\noom_group_kill 0\n"),
    ],
)
def test_kills_are_counted(tmp_path: Path, version: int, file: str, text: str) -> None:
    group = MemoryGroup(folder=tmp_path, version=version)
    assert group.oom_kills() == 0
    (tmp_path / file).write_text(text)
    assert group.oom_kills() == 3


def test_without_a_group_everything_goes_on(tmp_path: Path) -> None:
    assert make_group(1000, (tmp_path / "nowhere", 2)) is None
    with memory_limit(1000, tmp_path) as group:
        assert group is None


def test_a_group_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_REMOVE_S", 0.0)
    folder = tmp_path / "group"
    folder.mkdir()
    group = MemoryGroup(folder=folder, version=2)
    (folder / "busy").touch()
    assert not group.remove()
    (folder / "busy").unlink()
    assert group.remove() and not folder.exists()
    assert group.remove()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice of a victim is Linux's")
def test_workers_are_offered_to_the_kernel_first() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert offer_as_victim(child.pid)
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "800"
    child.communicate(b"\n")
    assert not offer_as_victim(child.pid)


@pytest.mark.skipif(parent_folder() is None, reason="no control group here is ours: name one in AUTOTUNE_CGROUP")
def test_the_kernel_kills_who_exceeds_the_limit() -> None:
    greedy = "input(); block = bytearray(400 * 2**20); print(len(block))"
    with memory_limit(200 * MIB) as group:
        assert group is not None
        child = subprocess.Popen([sys.executable, "-c", greedy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert group.add(child.pid)
        output, _ = child.communicate(b"\n")
        assert (child.returncode, output) == (-9, b"")
        assert group.oom_kills() == 1
        folder = group.folder
    assert not folder.exists()
