"""Lanes: threads that share one training on a CPU."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("envpool")

from autotune.records import Budget, Job, Point  # noqa: E402
from autotune.workloads.atari import AtariWorkload  # noqa: E402
from autotune.workloads.atari.lanes import Lanes, acting_lanes, lane_columns, lane_count  # noqa: E402
from autotune.workloads.atari.learner import Learner  # noqa: E402
from autotune.workloads.atari.session import PPOSession  # noqa: E402

JOB = Job(id="pong", env="Pong-v5", seed=7, budget=Budget(unit="steps", amount=1e6))


def open_session(lanes, *, num_envs=4, batch_size=24, **settings):
    values = {"rollout": 16, "epochs": 2, "precision": "fp32", "lanes": lanes, **settings}
    return AtariWorkload(values).open(Point(num_envs=num_envs, batch_size=batch_size), JOB, "cpu")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")


@pytest.mark.parametrize(
    ("asked", "cores", "num_envs", "batch_size", "count"),
    [
        (0, 2, 8, 256, 2),
        (0, 1, 8, 256, 1),
        (0, 16, 64, 1024, 4),
        (0, 2, 1, 32, 1),
        (0, 2, 8, 32, 1),
        (8, 2, 64, 1024, 8),
        (8, 2, 3, 1024, 3),
    ],
)
def test_each_lane_has_enough_to_do(asked, cores, num_envs, batch_size, count):
    assert lane_count(asked, cores, num_envs, batch_size) == count


@pytest.mark.parametrize(("num_envs", "threads", "count"), [(64, 16, 2), (63, 16, 1), (4, 1, 2), (3, 1, 1), (1, 1, 1)])
def test_lanes_take_turns_at_acting_where_their_environments_keep_the_threads_busy(num_envs, threads, count):
    assert acting_lanes(num_envs, threads) == count


def test_lanes_that_take_turns_have_all_threads_and_the_games_of_one_lane(monkeypatch):
    one = open_session(1)
    monkeypatch.setattr(PPOSession, "_divide", lambda self: (Lanes(1, 1), Lanes(2, 1)))  # as on a GPU
    two = open_session(1)
    assert (two.effective["lanes"], two.effective["acting_lanes"], two.effective["env_threads"]) == (1, 2, 4)
    np.testing.assert_array_equal(one.environment.observations, two.environment.observations)
    works = [two.step() for _ in range(3)]
    assert sum(work.env_steps for work in works) == two.env_steps == two.environment.elapsed_steps
    two.restore(two.state())
    assert two.environment.threads == 4
    assert two.step().env_steps > 0
    one.close()
    two.close()


@pytest.mark.parametrize(("num_envs", "lanes"), [(8, 1), (8, 2), (7, 3), (5, 5)])
def test_columns_cover_every_environment_once(num_envs, lanes):
    columns = lane_columns(num_envs, lanes)
    assert [index for which in columns for index in range(num_envs)[which]] == list(range(num_envs))
    sizes = [which.stop - which.start for which in columns]
    assert max(sizes) - min(sizes) <= 1


def test_lanes_work_at_the_same_time_and_raise_what_one_of_them_raises():
    lanes, both = Lanes(2, 1), threading.Barrier(2, timeout=30)
    assert lanes.run(lambda lane: (both.wait() >= 0, lane)) == [(True, 0), (True, 1)]
    with pytest.raises(ZeroDivisionError):
        lanes.run(lambda lane: 1 // lane)
    lanes.close()
    lanes.close()


def test_the_shares_of_a_minibatch_add_up_to_its_gradient():
    session = open_session(2)
    session.step()
    session._collector.collect(session._buffers[0], 16)
    samples = session._buffers[0].samples(16, 0.99, 0.95)
    one = Learner(session._spec, session.settings, torch.device("cpu"), "fp32", seed=0)
    one.load(session._learner.arrays(), session._learner.meta(), seed=0)
    for rows in (samples.rows[:25], samples.rows[3:4]):
        terms = [learner.gradients(samples, rows) for learner in (session._learner, one)]
        torch.testing.assert_close(*terms)
        for ours, theirs in zip(session._learner.model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    session.close()


def test_both_lanes_fill_their_columns_and_the_games_are_those_of_one_lane():
    one, two = open_session(1), open_session(2)
    assert (one.effective["lanes"], two.effective["lanes"]) == (1, 2)
    assert two.effective["num_envs"] == 4
    np.testing.assert_array_equal(one.environment.observations, two.environment.observations)
    for session in (one, two):
        session._collector.collect(session._buffers[0], 1)
    np.testing.assert_array_equal(one._buffers[0].observations(0), two._buffers[0].observations(0))
    work = two.step()
    assert work.samples == 2 * 64
    assert two.env_steps == two.environment.executed_steps == two.environment.elapsed_steps
    buffer = two._buffers[0]
    assert (buffer.log_probs < 0).all()
    assert (buffer.values[:16] != 0).all()
    assert set(work.seconds) == {"env", "infer", "transfer", "learn"}
    one.close()
    two.close()


def test_equal_runs_are_bit_identical():
    states = []
    for _ in range(2):
        session = open_session(2, batch_size=16)
        works = [session.step() for _ in range(3)]
        states.append((session.state().arrays, [dict(work.metrics) for work in works]))
        session.close()
    (first, metrics), (second, same) = states
    assert metrics == same
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_a_training_goes_on_with_another_number_of_lanes(before, after):
    first = open_session(before)
    first.step()
    state = first.state()
    second = open_session(after)
    second.restore(state)
    assert second.env_steps == first.env_steps
    again = second.state().arrays
    shared = [name for name in state.arrays if name in again]
    assert all((again[name] == state.arrays[name]).all() for name in shared)
    assert second.step().env_steps > 0
    first.close()
    second.close()


def test_memory_is_told_by_component():
    one, two, ahead = open_session(1), open_session(2), open_session(1, overlap=True)
    parameters = sum(parameter.nbytes for parameter in one._learner.model.parameters())
    assert [s.effective["network_bytes"] / parameters for s in (one, two, ahead)] == [4, 5, 5]
    rollout = one.effective["rollout_bytes"]
    assert 17 * 4 * 4 * 84 * 84 < rollout < 1.01 * 17 * 4 * 4 * 84 * 84
    assert two.effective["rollout_bytes"] == rollout
    assert ahead.effective["rollout_bytes"] == 2 * rollout
    for session in (one, two, ahead):
        session.close()


def test_an_optimizer_step_reaches_every_lanes_network():
    session = open_session(2)
    session.step()
    learner = session._learner
    for twin in learner._models[1:]:
        for own, shared in zip(twin.parameters(), learner.model.parameters(), strict=True):
            assert own.data_ptr() == shared.data_ptr()
            assert own.grad is not shared.grad
    session.close()


def test_lanes_are_not_more_than_the_environments_threads():
    session = open_session(2, env_threads=1)
    assert (session.effective["lanes"], session.effective["env_threads"]) == (1, 1)
    session.close()
