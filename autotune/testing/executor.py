"""The contract of an executor, as tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from autotune.codec import from_json, to_json
from autotune.errors import UsageError
from autotune.executors.protocol import Executor
from autotune.records import STATUSES, ProbeRequest, ProbeResult, Recipe, Status


class ExecutorContract:
    """Subclass it, name it ``Test...``, and give an executor and what to ask of it."""

    def make_executor(self) -> Executor:
        """The executor under test."""
        raise NotImplementedError

    def good_request(self) -> ProbeRequest:
        """A point that is measured as stable, with at least two processes."""
        raise NotImplementedError

    def failing_requests(self) -> Mapping[Status, ProbeRequest]:
        """A point for each way of failing that this executor can tell apart."""
        raise NotImplementedError

    def impossible_recipe(self) -> Recipe | None:
        """A recipe that `check` must refuse, None where every recipe can be answered."""
        raise NotImplementedError

    def test_measures_a_good_point(self) -> None:
        """Rates, interval, cost and clock fit together; the result survives JSON."""
        executor, request = self.make_executor(), self.good_request()
        assert request.point.concurrency >= 2, "the contract wants several processes"
        begin_s = executor.clock_s()
        result = executor.run(request)
        passed_s = executor.clock_s() - begin_s
        check_measured(request, result)
        assert passed_s >= 0.9 * result.cost_s
        assert from_json(ProbeResult, json.loads(json.dumps(to_json(result)))) == result

    def test_failures_are_values(self) -> None:
        """Each failure comes back as its status with a detail, no rate, and its cost; the next point runs."""
        executor = self.make_executor()
        for status, request in self.failing_requests().items():
            result = executor.run(request)
            assert (result.status, result.requested) == (status, request.point), result.detail
            assert result.detail and result.sps is None and result.cost_s > 0
        assert executor.run(self.good_request()).ok

    def test_clock_never_goes_back(self) -> None:
        """Whatever happens in between."""
        executor = self.make_executor()
        times_s = [executor.clock_s() for _ in range(100)]
        assert times_s == sorted(times_s)

    def test_predicted_cost_is_positive_or_unknown(self) -> None:
        """None where it cannot say."""
        predicted_s = self.make_executor().predict_cost_s(self.good_request())
        assert predicted_s is None or predicted_s > 0

    def test_impossible_recipe_is_refused(self) -> None:
        """Before anything is measured, as misuse."""
        recipe = self.impossible_recipe()
        if recipe is None:
            pytest.skip("this executor answers every recipe")
        with pytest.raises(UsageError):
            self.make_executor().check(recipe)


def check_measured(request: ProbeRequest, result: ProbeResult) -> None:
    """Assert that a stable point's result can be true."""
    assert result.status in STATUSES and result.ok, f"{result.status}: {result.detail}\n{result.log_tail}"
    assert (result.requested, result.grade) == (request.point, request.grade)
    assert result.sps is not None and result.sps_low is not None and result.sps_high is not None
    assert 0 < result.sps_low <= result.sps <= result.sps_high
    assert len(result.job_sps) == request.point.concurrency
    assert sum(result.job_sps) == pytest.approx(result.sps, rel=0.2)
    assert result.cost_s > 0
