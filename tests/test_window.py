from dataclasses import replace

import pytest

from autotune.executors.window import (
    Step,
    complete,
    discard_end,
    incomplete,
    phase_seconds,
    totals,
    trace,
    window,
    windows,
)
from autotune.records import MeasurePlan

PLAN = MeasurePlan(discard_s=10.0, discard_iterations=3, window_s=8.0, window_iterations=2)


def steps(count, *, period_s=1.0, start_s=0.0, first_s=None, **fields):
    ends, t = [], start_s
    for index in range(count):
        t += first_s if first_s is not None and index == 0 else period_s
        ends.append(t)
    return [Step(t=t, started=t - period_s, env_steps=100, **fields) for t in ends]


def test_discard_starts_at_the_slowest_process_s_first_iteration():
    assert discard_end([steps(5), steps(3, first_s=6.0)], PLAN) == 16.0
    assert discard_end([steps(5), []], PLAN) is None


def test_unsettled_slices_do_not_count_as_first_iteration():
    early = [Step(t=1.0, started=0.0, env_steps=1, settled=False), Step(t=2.0, started=1.0, env_steps=1)]
    assert discard_end([early], PLAN) == 12.0
    slices = [replace(step, settled=False) for step in steps(2)]
    assert window([*slices, *steps(9, start_s=2.0)], 0.0, PLAN)[0].t == 6.0, "after three iterations"


def test_window_opens_at_an_iteration_end_after_seconds_and_iterations():
    opened = window(steps(40), discard_end([steps(40)], PLAN), PLAN)
    assert opened[0].t == 11.0
    slow = steps(40, period_s=20.0)
    assert window(slow, discard_end([slow], PLAN), PLAN)[0].t == 80.0  # three iterations outlast ten seconds


def test_window_is_complete_by_seconds_and_iterations():
    opened = window(steps(18), 11.0, PLAN)
    assert not complete(opened, PLAN)
    assert complete(window(steps(19), 11.0, PLAN), PLAN)
    assert not complete(steps(2, period_s=30.0), PLAN)
    assert complete(steps(3, period_s=30.0), PLAN)


def test_sliced_window_needs_sixteen_minibatches():
    sliced = steps(12, parts=4, minibatches=1)
    assert not complete(sliced, PLAN)
    assert complete(steps(12, parts=4, minibatches=2), PLAN)
    assert not complete(steps(16, parts=4, minibatches=1), PLAN), "those of the opening slice are not measured"
    assert complete(steps(17, parts=4, minibatches=1), PLAN)
    assert not complete([*sliced, Step(t=13.0, started=12.0, env_steps=1, parts=4)], PLAN), "some slices have none"
    assert complete(steps(12, minibatches=1), PLAN), "whole iterations"
    assert complete(steps(12, parts=4), PLAN), "a program that knows none"


def test_all_processes_must_be_complete():
    assert windows([steps(30), steps(12)], PLAN) is None
    assert windows([steps(30), []], PLAN) is None
    opened = windows([steps(30), steps(30, start_s=0.5)], PLAN)
    assert [len(o) for o in opened] == [19, 20]


def test_trace_counts_steps_after_the_opening_iteration_end():
    measured = trace(steps(5, period_s=2.0))
    assert measured.seconds == (2.0, 2.0, 2.0, 2.0)
    assert sum(measured.steps) == 400.0


def test_sums_leave_the_opening_iteration_out():
    opened = [steps(3, reset_rows=4, lengths=(50,), seconds={"env": 0.3, "learn": 0.1})]
    assert totals(opened) == {"env_steps": 200, "reset_rows": 8, "iterations": 2}
    assert phase_seconds(opened) == {"env": 0.6 / 200, "learn": 0.2 / 200}
    seconds = ({"env": 9.0}, {"env": 0.1}, {"env": 0.4, "learn": 0.2})
    unequal = [replace(step, seconds=own) for step, own in zip(steps(3), seconds, strict=True)]
    assert phase_seconds([unequal]) == pytest.approx({"env": 0.5 / 200, "learn": 0.2 / 200})


def ended(t, took):
    return Step(t=t, started=t - took, env_steps=100)


@pytest.mark.parametrize(
    ("processes", "why"),
    [
        ([[]], "no complete window after 60 s: the first iteration did not end"),
        ([[ended(39, 4), ended(43, 4)]], "the first iteration ended after 39 s, and one would take about 63 s"),
        ([[ended(10, 9), ended(35, 25)]], "the first iteration ended after 10 s, and one would take about 160 s"),
    ],
)
def test_a_window_that_is_not_complete_says_what_it_would_take(processes, why):
    assert incomplete(processes, PLAN, 0.0, 60.0).endswith(why)
    later = [[replace(step, t=step.t + 1e3, started=step.started + 1e3) for step in steps] for steps in processes]
    assert incomplete(later, PLAN, 1e3, 1060.0).endswith(why), "on any clock"
