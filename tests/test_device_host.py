"""The host as the kernel, the container's cgroups and the package metadata describe it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_host import GIB, write_tree

from autotune.codec import from_json, to_json
from autotune.device import host
from autotune.device.host import busy_cpu_clock, inspect_host, process_identity, still_runs
from autotune.machine import HostInfo

CGROUP_V2 = {
    "proc/self/cgroup": "0::/docker/job\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
}
CGROUP_V1 = {"proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n2:pids:/job\n1:name=systemd:/job\n"}
QUOTA = "150000 100000\n"


def test_without_limits_everything_is_the_hosts(tmp_path: Path) -> None:
    info = inspect_host(tmp_path, root=write_tree(tmp_path, {}), affinity=8)
    assert (info.cpu_model, info.cpu_cores_visible, info.cpu_cores_allowed) == ("Test CPU", 8, 8.0)
    assert (info.ram_total_bytes, info.ram_limit_bytes, info.ram_cgroup_limit_bytes) == (16 * GIB, 16 * GIB, None)
    assert info.ram_available_bytes == 8 * GIB
    assert (info.pids_limit, info.load_1m) == (None, 1.25)
    assert info.boot_time == "2025-01-01T00:00:00+00:00"
    assert info.boot_id == "11111111-2222-3333-4444-555555555555"
    assert info.shm_total_bytes is None
    assert from_json(HostInfo, to_json(info)) == info


def test_cgroup_v2_limits(tmp_path: Path) -> None:
    files = CGROUP_V2 | {
        "sys/fs/cgroup/docker/job/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/docker/job/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/docker/job/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/docker/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys/fs/cgroup/docker/job/pids.max": "512\n",
    }
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8)
    assert info.cpu_cores_allowed == 2.5
    assert (info.ram_cgroup_limit_bytes, info.ram_limit_bytes) == (4 * GIB, 4 * GIB)
    assert info.ram_available_bytes == 2 * GIB  # 4 - 3 in use + 1 of droppable cache
    assert info.pids_limit == 512


def test_a_pids_limit_is_the_tightest_one_with_what_is_in_use(tmp_path: Path) -> None:
    kernel = {"proc/sys/kernel/pid_max": "4096\n", "proc/sys/kernel/threads-max": "9000\n"}
    kernel["proc/loadavg"] = "0.26 0.1 0.1 1/302 12345\n"
    group = {"sys/fs/cgroup/docker/job/pids.max": "512\n", "sys/fs/cgroup/docker/job/pids.current": "40\n"}
    wide = {"sys/fs/cgroup/docker/job/pids.max": "50000\n", "sys/fs/cgroup/docker/job/pids.current": "40\n"}
    for files, limit, used in ((kernel, 4096, 302), (kernel | group, 512, 40), (kernel | wide, 4096, 302)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        info = inspect_host(folder, root=write_tree(folder, CGROUP_V2 | files), affinity=8)
        assert (info.pids_limit, info.pids_used) == (limit, used)


@pytest.mark.parametrize(
    ("user", "own", "limit"), [(1000, 300, 300), (0, 300, 512), (1000, host.resource.RLIM_INFINITY, 512)]
)
def test_a_users_own_limit_of_processes_counts_but_not_the_superusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, own: int, limit: int
) -> None:
    root = write_tree(tmp_path, CGROUP_V2 | {"sys/fs/cgroup/docker/job/pids.max": "512\n"})
    monkeypatch.setattr(host, "ROOT", root)
    monkeypatch.setattr(host.os, "geteuid", lambda: user)
    monkeypatch.setattr(host.resource, "getrlimit", lambda which: (own, own))
    assert inspect_host(tmp_path, root=root, affinity=8).pids_limit == limit


def test_without_an_estimate_of_the_kernel_free_memory_is_what_is_available(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/meminfo": "MemTotal:       4194304 kB\nMemFree:        1048576 kB\n"})
    info = inspect_host(tmp_path, root=root, affinity=8)
    assert (info.ram_total_bytes, info.ram_available_bytes) == (4 * GIB, GIB)


def test_cgroup_v2_takes_the_tightest_of_the_groups_above(tmp_path: Path) -> None:
    files = CGROUP_V2 | {
        "sys/fs/cgroup/docker/job/cpu.max": "max 100000\n",
        "sys/fs/cgroup/docker/cpu.max": "150000 50000\n",
        "sys/fs/cgroup/docker/job/memory.max": "max\n",
        "sys/fs/cgroup/docker/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/docker/job/pids.max": "max\n",
    }
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8)
    assert (info.cpu_cores_allowed, info.ram_limit_bytes, info.pids_limit) == (3.0, 2 * GIB, None)


def test_what_a_limit_leaves_is_counted_in_the_group_that_has_it(tmp_path: Path) -> None:
    """What others in the group above hold was left out: of its 4 GiB and 300 threads half a GiB and 20 are left."""
    files = CGROUP_V2 | {
        "sys/fs/cgroup/docker/job/memory.max": "max\n",
        "sys/fs/cgroup/docker/job/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/docker/job/memory.stat": f"inactive_file {GIB // 4}\n",
        "sys/fs/cgroup/docker/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/docker/memory.current": f"{4 * GIB}\n",
        "sys/fs/cgroup/docker/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
        "sys/fs/cgroup/docker/job/pids.max": "200\n",
        "sys/fs/cgroup/docker/job/pids.current": "40\n",
        "sys/fs/cgroup/docker/pids.max": "300\n",
        "sys/fs/cgroup/docker/pids.current": "280\n",
    }
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8)
    assert (info.ram_limit_bytes, info.ram_available_bytes) == (4 * GIB, GIB // 2)
    assert (info.pids_limit, info.pids_used) == (300, 280)


def test_cgroup_v1_counts_the_cache_of_the_groups_below(tmp_path: Path) -> None:
    """Its usage counts them, ``inactive_file`` does not: workers in groups of their own seemed to hold their cache."""
    files = CGROUP_V1 | {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 4096\ntotal_rss 1\ntotal_inactive_file {GIB}\n",
    }
    assert inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8).ram_available_bytes == 2 * GIB


def test_cgroup_v2_in_a_container_shows_its_own_group_at_the_top(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        "sys/fs/cgroup/cpu.max": "400000 100000\n",
    }
    assert inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8).cpu_cores_allowed == 4.0


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a:b\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu\n",
            "sys/fs/cgroup/a:b/cpu.max": QUOTA,
        },
        {"proc/self/cgroup": "1:name=systemd:/job\n0::/job\n", "sys/fs/cgroup/unified/job/cpu.max": QUOTA},
        CGROUP_V1 | {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n"},
    ],
    ids=["a colon in its name", "version 2 beside version 1", "no period"],
)
def test_a_quota_is_found_wherever_its_group_lies(tmp_path: Path, files: dict[str, str]) -> None:
    assert inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8).cpu_cores_allowed == 1.5


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    files = CGROUP_V1 | {
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB // 4}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/pids/job/pids.max": "100\n",
    }
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8)
    assert info.cpu_cores_allowed == 1.5
    assert (info.ram_limit_bytes, info.ram_available_bytes, info.pids_limit) == (GIB, GIB * 3 // 4, 100)


def test_cgroup_v1_without_limits(tmp_path: Path) -> None:
    files = CGROUP_V1 | {
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=6)
    assert (info.cpu_cores_allowed, info.ram_cgroup_limit_bytes) == (6.0, None)


def test_affinity_below_the_quota_wins(tmp_path: Path) -> None:
    files = CGROUP_V2 | {"sys/fs/cgroup/docker/job/cpu.max": "400000 100000\n"}
    assert inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=2).cpu_cores_allowed == 2.0


def test_a_limit_above_the_machines_ram_is_none(tmp_path: Path) -> None:
    files = CGROUP_V2 | {"sys/fs/cgroup/docker/job/memory.max": f"{64 * GIB}\n"}
    info = inspect_host(tmp_path, root=write_tree(tmp_path, files), affinity=8)
    assert (info.ram_cgroup_limit_bytes, info.ram_limit_bytes) == (None, 16 * GIB)


def test_process_identity_survives_odd_names_and_knows_the_dead(tmp_path: Path) -> None:
    fields = " ".join(str(n) for n in range(4, 53))
    root = write_tree(tmp_path, {"proc/77/stat": f"77 (a) b (c)) S {fields}\n"})
    identity = process_identity(77, root)
    assert identity == ("11111111-2222-3333-4444-555555555555", 77, 22)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_identity(child.pid) is None


def test_the_real_host_agrees_with_the_kernel() -> None:
    info = inspect_host()
    assert 0 < info.cpu_cores_allowed <= info.cpu_cores_visible
    assert 0 < info.ram_available_bytes <= info.ram_limit_bytes <= info.ram_total_bytes
    assert info.packages["numpy"] is not None
    own = process_identity(os.getpid())
    assert own == process_identity(os.getpid())
    assert still_runs(own) and not still_runs((*own[:2], own[2] + 1)) and not still_runs(())
    assert busy_cpu_clock()() != 0


def test_reading_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    closed: list[int] = []

    def note(path: Path, flags: int) -> int:
        opened.append(os.open(path, flags))
        return opened[-1]

    def close(file: int) -> None:
        closed.append(file)
        os.close(file)

    calls = SimpleNamespace(open=note, close=close, read=os.read, O_RDONLY=os.O_RDONLY)
    monkeypatch.setattr(host, "os", calls)
    (tmp_path / "text").write_text(" 1 \n")
    assert host.read_text(tmp_path / "text") == "1" and host.read_text(tmp_path / "none") is None
    assert host.read_text(tmp_path) is None, "a folder can be opened and not read"
    assert len(opened) == 2 and closed == opened


def test_inspection_imports_no_framework() -> None:
    code = (
        "import sys; from autotune.device.inspect import inspect_device; inspect_device();"
        "assert not {'torch', 'jax', 'envpool'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "expected"), [("cuda: Optional[str] = '12.8'\n", "12.8"), ("cuda: Optional[str] = None\n", None)]
)
def test_torchs_cuda_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str | None
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.8.0'\n{text}hip = None\n")

    class Distribution:
        def locate_file(self, name: str) -> Path:
            assert name == "torch/version.py"
            return tmp_path / "version.py"

    monkeypatch.setattr(host, "distribution", lambda _: Distribution())
    assert host.torch_cuda_version() == expected


def test_pressure_is_a_share(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\n"})
    assert host.pressure("cpu", root) == 0.125
    assert host.pressure("memory", root) is None


TICKS = os.sysconf("SC_CLK_TCK")
STAT = f"""cpu  9 9 9 9 9 9 9 9 9 9
cpu0 {100 * TICKS} {20 * TICKS} {30 * TICKS} 7000 8000 {TICKS} {2 * TICKS} {7 * TICKS} {50 * TICKS} 0
cpu1 {TICKS} 0 0 9000 0 0 0 0 0 0
cpu2 {1000 * TICKS} 0 0 9000 0 0 0 0 0 0
"""


@pytest.mark.parametrize(("affinity", "seconds"), [([0], 160.0), ([0, 1], 161.0), ([7], None)])
def test_busy_seconds_are_those_of_the_cores_that_may_be_used(
    tmp_path: Path, affinity: list[int], seconds: float | None
) -> None:
    """Idle, waiting for a disk and guests (which are in user time) left out."""
    assert busy_cpu_clock(write_tree(tmp_path, {"proc/stat": STAT}), affinity)() == seconds
    assert busy_cpu_clock(tmp_path / "nowhere", affinity)() is None


@pytest.mark.parametrize(
    ("files", "seconds"),
    [
        (
            CGROUP_V2
            | {
                "sys/fs/cgroup/docker/job/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/docker/job/cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
            },
            2.5,
        ),
        (
            CGROUP_V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpuacct.usage": "3500000000\n",
            },
            3.5,
        ),
        (CGROUP_V2 | {"sys/fs/cgroup/docker/job/cpu.max": QUOTA}, None),
        (
            CGROUP_V2
            | {
                "sys/fs/cgroup/docker/job/cpu.max": "200000 100000\n",  # as much as the cores
                "sys/fs/cgroup/docker/job/cpu.stat": "usage_usec 2500000\n",
            },
            161.0,
        ),
    ],
)
def test_under_a_quota_the_others_are_those_under_it_too(
    tmp_path: Path, files: dict[str, str], seconds: float | None
) -> None:
    assert busy_cpu_clock(write_tree(tmp_path, files | {"proc/stat": STAT}), [0, 1])() == seconds
