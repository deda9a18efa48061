"""The measuring loop tells every iteration once, short ones together."""

import itertools
import json
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from autotune.errors import WorkerError
from autotune.executors.evidence import Evidence
from autotune.executors.window import Step, totals
from autotune.records import Budget, Work
from autotune.worker.measure import REPORT_PERIOD_S, effective_of, measure, peak_of, step_message
from autotune.worker.totals import Onset, Progress, Totals


class Steps:
    """A session whose steps take so many seconds each, until it has done them all."""

    def __init__(self, seconds, stop):
        self.effective = {}
        self.left, self.stop = list(seconds), stop
        self.done = 0

    def step(self, parts=1):
        time.sleep(self.left.pop(0))
        self.done += 1
        if not self.left:
            self.stop.set()
        return Work(
            env_steps=self.done,
            reset_rows=1,
            episodes=1,
            minibatches=2,
            seconds={"env": 0.5} | ({"learn": 1.0} if self.done % 2 else {}),
            lengths=(self.done,),
            metrics={"count": float(self.done)},
        )

    def synchronize(self):
        pass

    def peak_memory_bytes(self):
        return None


def told(seconds) -> list[Step]:
    """What `measure` tells of such steps."""
    go, stop, messages = threading.Event(), threading.Event(), []
    go.set()
    measure(Steps(seconds, stop), messages.append, go, stop, long_iteration_s=15.0)
    return [Step.from_message(message) for message in messages if message["type"] == "step"]


def test_short_iterations_are_told_together_and_each_once():
    steps = told([0.001] * 1000)
    assert 2 < len(steps) < 30
    for earlier, later in itertools.pairwise(steps):
        assert later.t >= earlier.t + REPORT_PERIOD_S
        assert later.started >= earlier.t
    count = sum(step.iterations for step in steps)
    assert sum(step.env_steps for step in steps) == count * (count + 1) / 2
    assert [length for step in steps for length in step.lengths] == list(range(1, count + 1))
    assert totals([steps])["iterations"] == count - steps[0].iterations


def test_long_iterations_are_told_at_their_ends():
    assert [step.iterations for step in told([REPORT_PERIOD_S + 0.01] * 4)] == [1] * 4


def test_the_first_iteration_is_told_alone():
    """It is timed apart."""
    assert told([0.001] * 5)[0].iterations == 1


class Clocked:
    """A session with iterations of 32 x 128 rows that take so many seconds on a clock of its own."""

    def __init__(self, iteration_s, first_s=0.0):
        self.effective = {"num_envs": 32, "rollout": 128}
        self.iteration_s, self.first_s, self.now_s = iteration_s, first_s, 1000.0
        self.order = []

    def step(self, parts=1):
        self.order.append("step")
        self.now_s += self.iteration_s / parts + self.first_s
        self.first_s = 0.0
        return Work(env_steps=4096 // parts - 10, reset_rows=10)

    def synchronize(self):
        pass

    def peak_memory_bytes(self):
        return 7

    def told(self, monkeypatch, count):
        """The first messages of `measure`; the barrier is noted in `order`."""
        stop, messages = threading.Event(), []

        def send(message):
            messages.append(message)
            if len(messages) == count:
                stop.set()

        monkeypatch.setattr("autotune.worker.measure.time", SimpleNamespace(monotonic=lambda: self.now_s))
        barrier = SimpleNamespace(wait=lambda: self.order.append("barrier"))
        measure(self, send, barrier, stop, long_iteration_s=15.0)
        return messages[:count]


@pytest.mark.parametrize(
    ("iteration_s", "first_s", "parts"),
    [(15.0, 0.0, 1), (60.0, 0.0, 16), (61.0, 0.0, 17), (60.0, 100.0, 16), (1.0, 100.0, 1)],
)
def test_long_iterations_are_settled_in_slices_of_a_quarter_of_the_limit(monkeypatch, iteration_s, first_s, parts):
    """First in slices of 512 rows, twice: the first may have compiled."""
    session = Clocked(iteration_s, first_s)
    told = [(message["parts"], message["settled"]) for message in session.told(monkeypatch, 4)]
    assert told == [(8, False), (8, False), (parts, True), (parts, True)]
    assert session.order == ["barrier", *["step"] * 4]
    assert Clocked(30.0).told(monkeypatch, 1)[0]["settled"], "eight slices are what 30 s ask for"


def test_what_is_told_together_began_with_the_first_of_it(monkeypatch):
    messages = Clocked(0.1).told(monkeypatch, 8)
    assert [message["iterations"] for message in messages] == [1, 1, *[3] * 6]
    for earlier, later in itertools.pairwise(messages):
        assert later["started"] == pytest.approx(earlier["t"])
    assert ["peak_memory_bytes" in message for message in messages] == [True, *[False] * 4, True, False, False]


def test_iterations_as_one_keep_every_phase_and_the_last_metrics():
    works = [
        Work(env_steps=3, lengths=(4,), seconds={"env": 1.0, "learn": 2.0}, metrics={"loss": 1.0}),
        Work(env_steps=5, episodes=2, lengths=(5, 6), seconds={"env": 0.5}, metrics={"loss": 2.0}),
    ]
    both = step_message(works, 9.0, 7.0)
    assert (both["t"], both["started"], both["env_steps"], both["episodes"]) == (9.0, 7.0, 8, 2)
    assert both["lengths"] == [4, 5, 6]
    assert both["seconds"] == pytest.approx({"env": 1.5, "learn": 2.0})
    assert both["metrics"] == {"loss": 2.0}


def test_numbers_of_numpy_are_told_as_plain_ones():
    work = Work(
        env_steps=np.int64(3),
        episodes=np.int32(1),
        lengths=(np.int64(7),),
        seconds={"env": np.float32(0.5)},
        metrics={"loss": np.float32(2.0), "lost": np.float32(np.nan)},
    )
    message = json.loads(json.dumps(step_message([work], 2.0, 1.0), allow_nan=False))
    assert (message["env_steps"], message["lengths"], message["seconds"]) == (3, [7], {"env": 0.5})
    assert message["metrics"] == {"loss": 2.0}


@pytest.mark.parametrize("steps", [math.nan, math.inf, -5, 2.5, None])
def test_counts_that_cannot_be_are_refused(steps):
    with pytest.raises(WorkerError, match="the workload reports env_steps"):
        step_message([Work(env_steps=steps)], 2.0, 1.0)
    with pytest.raises(WorkerError, match="the workload reports a length"):
        step_message([Work(env_steps=1, lengths=(steps,))], 2.0, 1.0)


@pytest.mark.parametrize("took_s", [math.nan, math.inf, -0.1, None])
def test_times_that_cannot_be_are_refused(took_s):
    with pytest.raises(WorkerError, match="the workload reports seconds of learn"):
        step_message([Work(env_steps=1, seconds={"learn": took_s})], 2.0, 1.0)


@pytest.mark.parametrize("effective", [None, 1.5, {"num_envs": object()}, {"rate": math.nan}, {"sizes": np.ones(3)}])
def test_what_took_effect_must_be_json(effective):
    """None ended the parent in a traceback, and so did NaN within."""
    session = Steps([], threading.Event())
    session.effective = effective
    with pytest.raises(WorkerError, match=r"what took effect \(`effective`\) in another form than values of JSON by"):
        effective_of(session)


def test_what_took_effect_may_be_in_numbers_of_numpy():
    session = Steps([], threading.Event())
    session.effective = {"num_envs": np.int64(8), "rate": np.float32(0.5), "compiled": np.bool_(True), "sizes": (1, 2)}
    assert json.dumps(effective_of(session)) == '{"num_envs": 8, "rate": 0.5, "compiled": true, "sizes": [1, 2]}'


def test_a_peak_of_memory_is_a_number_of_bytes(monkeypatch):
    """NaN ended the parent in a traceback."""
    session = Steps([], threading.Event())
    for peak, told_peak in ((None, None), (7, 7), (np.int64(7), 7), (2.0**20, 2**20)):
        monkeypatch.setattr(session, "peak_memory_bytes", lambda peak=peak: peak)
        assert peak_of(session) == told_peak
    monkeypatch.setattr(session, "peak_memory_bytes", lambda: math.nan)
    with pytest.raises(WorkerError, match="reports peak_memory_bytes nan"):
        peak_of(session)


def test_a_process_without_a_step_in_its_window_was_not_measured():
    """One whose steps are counted when they arrive may tell none of an iteration."""

    def steps(*counts):
        return [Step(t=float(n), started=n - 1.0, env_steps=count) for n, count in enumerate(counts)]

    for opened, status, culprit in (
        ([steps(5, 1, 0), steps(0, 0, 1)], "ok", None),
        ([steps(5, 1, 0), steps(5, 0, 0)], "crashed", 1),
    ):
        state = Evidence(workers=[], steps=[], started_s=0.0, opened=opened)
        state.blame_idle()
        assert (state.status, state.culprit) == (status, culprit)


def test_what_a_job_has_done_adds_up_and_meets_its_budget():
    done, row = Progress(), Totals()
    works = [
        Work(env_steps=10, episodes=1 + n, samples=7, returns=(n, math.nan), seconds={"env": 0.5}) for n in range(3)
    ]
    for work in works:
        done.add(work)
        row.add(work)
    assert (done.env_steps, done.episodes, done.best_return, done.mean_return) == (30, 6, 2.0, 1.0)
    assert (row.env_steps, row.episodes, row.samples, row.iterations, row.seconds) == (30, 6, 21, 3, {"env": 1.5})
    done.add(Work(env_steps=1, returns=(-5.0,) * 100))
    assert (done.best_return, done.mean_return, Progress().mean_return) == (2.0, -5.0, None)
    done.seconds = 7200.0
    for unit, amount in (("steps", 31), ("episodes", 6), ("hours", 2.0)):
        assert done.meets(Budget(unit=unit, amount=amount)) and not done.meets(Budget(unit=unit, amount=amount + 0.01))
    assert Progress.from_meta(done.to_meta()) == done
    assert Progress.from_row({"env_steps": "5", "episodes": "2", "seconds": "1.5"}) == Progress(
        env_steps=5, episodes=2, seconds=1.5
    )


@pytest.mark.parametrize(
    ("told", "untimed"),
    [
        ([(1000, 1.0), (1050, 2.9), (1100, 3.0), (1200, 4.0)], [0, 0, 1000, 0]),  # 50 a second: beyond 8 x 50 x 2
        ([(800, 1.0), (900, 3.0), (901, 9.0)], [0, 0, 0]),  # not beyond it, and decided
        ([(1000, 1.0), (1000, 9.0), (1100, 11.0)], [0, 0, 1000]),
    ],
)
def test_a_first_total_far_beyond_the_pace_was_done_before(told, untimed):
    onset = Onset()
    assert [onset.untimed(*each) for each in told] == untimed
