"""The contract of a workload, as tests."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest

from autotune import registry
from autotune.errors import UsageError
from autotune.records import PHASES, Budget, Job, Point, Work
from autotune.workloads.protocol import Session, SessionState, Workload

FRAMEWORKS = ("torch", "jax", "jaxlib", "tensorflow", "envpool")


class WorkloadContract:
    """Subclass it, name it ``Test...``, and say which workload; every test opens a session on the CPU.

    Attributes:
        name: in the registry.
        hyperparameters: small ones, so that an iteration takes milliseconds.
        point: knobs with at least two minibatches in a rollout.
        other_point: another one, to which a state must carry over.
        job: an environment that is quick to start.
        keeps_state: whether a session's state carries counters.
        slices: whether a session can do part of an iteration.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    point: ClassVar[Point] = Point(num_envs=4, batch_size=16)
    other_point: ClassVar[Point] = Point(num_envs=2, batch_size=8)
    job: ClassVar[Job] = Job(id="job", env="CartPole-v1", seed=1, budget=Budget(unit="steps", amount=1000))
    keeps_state: ClassVar[bool] = True
    slices: ClassVar[bool] = True

    def make_workload(self, **changes: Any) -> Workload:
        """The workload under test."""
        workload: Workload = registry.load("workload", self.name)({**self.hyperparameters, **changes})
        return workload

    @contextmanager
    def session(self, point: Point | None = None) -> Iterator[Session]:
        """An open session, closed at the end."""
        session = self.make_workload().open(point or self.point, self.job, "cpu")
        try:
            yield session
        finally:
            session.close()

    def test_step_reports_sane_work(self) -> None:
        """Counts are whole and fit together; phases are known; returns belong to games."""
        with self.session() as session:
            for work in (session.step(), session.step()):
                session.synchronize()
                check_work(work)

    def test_effective_echoes_the_point(self) -> None:
        """What took effect is what was asked for, and is JSON."""
        with self.session() as session:
            effective = session.effective
            asked = {name: value for name, value in self.point.knobs().items() if name != "concurrency"}
            assert {name: effective[name] for name in asked} == asked
            assert json.loads(json.dumps(dict(effective))) == dict(effective)

    def test_peak_memory_is_unknown_or_positive(self) -> None:
        """None where the framework has no figure, never 0."""
        with self.session() as session:
            session.step()
            peak = session.peak_memory_bytes()
            assert peak is None or peak > 0

    def test_state_is_plain(self) -> None:
        """Arrays without objects, JSON beside them."""
        with self.session() as session:
            session.step()
            state = session.state()
            assert json.loads(json.dumps(dict(state.meta), allow_nan=False)) == dict(state.meta)
            assert all(isinstance(a, np.ndarray) and a.dtype != object for a in state.arrays.values())

    def test_restored_session_continues(self) -> None:
        """A new session with the state holds the same state, and goes on counting from there."""
        if not self.keeps_state:
            pytest.skip("this workload keeps no state")
        with self.session() as first:
            first.step()
            done = first.step().env_steps
            state = copied(first.state())
        assert state.meta["env_steps"] >= done > 0
        with self.session() as second:
            second.restore(state)
            check_same_state(second.state(), state)
            work = second.step()
            assert second.state().meta["env_steps"] == state.meta["env_steps"] + work.env_steps

    def test_state_carries_over_to_another_point(self) -> None:
        """Retuning never throws progress away."""
        if not self.keeps_state:
            pytest.skip("this workload keeps no state")
        with self.session() as first:
            first.step()
            state = copied(first.state())
        with self.session(self.other_point) as second:
            second.restore(state)
            work = second.step()
            assert second.state().meta["env_steps"] == state.meta["env_steps"] + work.env_steps

    def test_slices_make_up_an_iteration(self) -> None:
        """Half an iteration has half the rows, and learns."""
        if not self.slices:
            pytest.skip("this workload knows no slices")
        with self.session() as session:
            whole = session.step()
            halves = [session.step(2), session.step(2)]
            assert sum(rows(half) for half in halves) == rows(whole)
            assert all(half.minibatches > 0 for half in halves)

    def test_closes_twice(self) -> None:
        """Closing is safe to repeat."""
        session = self.make_workload().open(self.point, self.job, "cpu")
        session.step()
        session.close()
        session.close()

    def test_unknown_hyperparameter_is_refused(self) -> None:
        """By name."""
        with pytest.raises(UsageError, match="no_such_thing"):
            self.make_workload(no_such_thing=1)

    def test_impossible_point_is_refused(self) -> None:
        """Counts below one, and a minibatch larger than the rollout where there is one."""
        workload = self.make_workload()
        workload.check(self.point, [self.job])
        with pytest.raises(UsageError, match="num_envs"):
            workload.check(Point(num_envs=0, batch_size=1), [self.job])
        with self.session() as session:
            rollout = session.effective.get("rollout")
        if rollout is not None:
            too_large = Point(num_envs=self.point.num_envs, batch_size=self.point.num_envs * rollout + 1)
            with pytest.raises(UsageError, match=str(too_large.batch_size)):
                workload.check(too_large, [self.job])

    def test_naming_it_loads_no_framework(self) -> None:
        """A parent process can import it, construct it and check a point."""
        code = (
            "import json, sys; from autotune import registry\n"
            "from autotune.codec import from_json; from autotune.records import Job, Point\n"
            "name, hyperparameters, point, job = json.loads(sys.argv[1])\n"
            "workload = registry.load('workload', name)(hyperparameters)\n"
            "workload.check(from_json(Point, point), [from_json(Job, job)])\n"
            f"print([name for name in {FRAMEWORKS} if name in sys.modules])"
        )
        job = {"id": "job", "env": self.job.env, "seed": 1, "budget": {"unit": "steps", "amount": 1}}
        task = json.dumps([self.name, dict(self.hyperparameters), self.point.knobs(), job])
        done = subprocess.run([sys.executable, "-c", code, task], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "[]", done.stderr


def rows(work: Work) -> int:
    """Rows that the environments produced, automatic resets included."""
    return work.env_steps + work.reset_rows


def check_work(work: Work) -> None:
    """Assert that a step's report can be true."""
    assert work.env_steps > 0
    assert min(work.reset_rows, work.samples, work.minibatches) >= 0
    assert set(work.seconds) <= set(PHASES)
    assert all(math.isfinite(value) and value >= 0 for value in work.seconds.values())
    assert work.episodes == len(work.returns) == len(work.lengths)
    assert all(length > 0 for length in work.lengths)
    assert all(math.isfinite(value) for value in (*work.returns, *work.metrics.values()))


def check_same_state(state: SessionState, expected: SessionState) -> None:
    """Assert that two states are equal, bit for bit."""
    assert dict(state.meta) == dict(expected.meta)
    assert set(state.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(state.arrays[name], array, err_msg=name)


def copied(state: SessionState) -> SessionState:
    """The state as a checkpoint would bring it back, unaffected by what its session does next."""
    arrays = {name: np.array(array) for name, array in state.arrays.items()}
    return SessionState(arrays=arrays, meta=json.loads(json.dumps(dict(state.meta))))
