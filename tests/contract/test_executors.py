from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.executors.replay import ReplayExecutor
from autotune.records import Budget, Job, Limits, MeasurePlan, Point, ProbeRequest, Recipe, Status
from autotune.testing.executor import ExecutorContract

PLAN = MeasurePlan(discard_s=0.1, discard_iterations=1, window_s=0.3, window_iterations=4, timeout_s=60.0)
JOB = Job(id="job", env="busy", seed=1, budget=Budget(unit="steps", amount=1000))


@pytest.fixture
def ask(tmp_path):
    """Builds a request for busywork."""

    def build(point: Point, timeout_s: float = 60.0, **hyperparameters: Any) -> ProbeRequest:
        jobs = tuple(replace(JOB, id=f"job-{n}", seed=n) for n in range(point.concurrency))
        return ProbeRequest(
            workload="busywork",
            hyperparameters=hyperparameters,
            point=point,
            jobs=jobs,
            grade="quick",
            plan=replace(PLAN, timeout_s=timeout_s),
            limits=Limits(ram_fraction=1.0),
            log_folder=str(tmp_path),
            label="probe",
        )

    return build


class TestIsolated(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _requests(self, ask):
        self.ask = ask

    def make_executor(self) -> IsolatedExecutor:
        return IsolatedExecutor(inspect_device("cpu"))

    def good_request(self) -> ProbeRequest:
        return self.ask(Point(num_envs=8, batch_size=64, concurrency=2))

    def failing_requests(self) -> Mapping[Status, ProbeRequest]:
        point = Point(num_envs=8, batch_size=64)
        return {
            "oom": self.ask(point, fail="oom", fail_after_iterations=2),
            "crashed": self.ask(point, fail="crash"),
            "timeout": self.ask(point, fail="hang", timeout_s=3.0),
        }

    def impossible_recipe(self) -> Recipe:
        point = Point(num_envs=8, batch_size=10**6)
        knobs = {name: (value,) for name, value in point.knobs().items()}
        return Recipe(
            name="no", workload="busywork", hyperparameters={}, jobs=(JOB,), knobs=knobs, grid=knobs, baseline=point
        )

    @pytest.mark.parametrize(
        ("failure", "after", "status", "detail"),
        [
            ("host_oom", 0, "oom", "MemoryError"),
            ("exit", 2, "crashed", "exit code 3"),
            ("segfault", 2, "crashed", "signal 11"),
        ],
    )
    def test_sudden_ends(self, failure, after, status, detail):
        request = self.ask(Point(num_envs=8, batch_size=64), fail=failure, fail_after_iterations=after)
        result = self.make_executor().run(request)
        assert (result.status, detail in result.detail) == (status, True), result.detail

    def test_one_process_of_two_failing_fails_the_point(self):
        point = Point(num_envs=8, batch_size=64, concurrency=2)
        result = self.make_executor().run(self.ask(point, fail="crash", fail_concurrency=2, fail_after_iterations=1))
        assert result.status == "crashed"

    def test_deaf_process_is_gone_afterwards(self):
        request = self.ask(Point(num_envs=8, batch_size=64), fail="ignore_sigterm", timeout_s=3.0)
        assert self.make_executor().run(request).status == "timeout"
        children = psutil.Process(os.getpid()).children(recursive=True)
        assert [child.pid for child in children if "autotune.worker" in child.cmdline()] == []

    def test_garbage_on_the_output_does_no_harm(self):
        request = self.ask(Point(num_envs=8, batch_size=64), fail="garbage", fail_after_iterations=1)
        result = self.make_executor().run(request)
        assert result.ok and result.sps > 0, result.detail


SURFACE = """\
# device: recorded
num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes
8,64,2,ok,1000,0.02,5,1000,1000
64,64,2,oom,,,5,,
128,64,2,crashed,,,5,,
256,64,2,host_lost,,,5,,
512,64,2,timeout,,,5,,
"""


class TestReplay(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _surface(self, ask, tmp_path):
        self.ask, self.path = ask, tmp_path / "surface.csv"
        self.path.write_text(SURFACE)

    def make_executor(self) -> ReplayExecutor:
        return ReplayExecutor(self.path)

    def good_request(self) -> ProbeRequest:
        return self.ask(Point(num_envs=8, batch_size=64, concurrency=2))

    def failing_requests(self) -> Mapping[Status, ProbeRequest]:
        num_envs = {"oom": 64, "crashed": 128, "host_lost": 256, "timeout": 512}
        return {s: self.ask(Point(num_envs=n, batch_size=64, concurrency=2), 600.0) for s, n in num_envs.items()}

    def impossible_recipe(self) -> None:
        return None
