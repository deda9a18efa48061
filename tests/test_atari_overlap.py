"""The next rollout is collected while the last one is learnt from."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("envpool")

from autotune.records import Budget, Job, Point  # noqa: E402
from autotune.workloads.atari import AtariWorkload  # noqa: E402
from autotune.workloads.atari.environment import HOST_BYTES  # noqa: E402


def open_session(*, env="CartPole-v1", num_envs=4, batch_size=32, seed=7, **settings):
    values = {"rollout": 16, "epochs": 2, "precision": "fp32", "overlap": True, **settings}
    job = Job(id="a", env=env, seed=seed, budget=Budget(unit="steps", amount=1e6))
    return AtariWorkload(values).open(Point(num_envs=num_envs, batch_size=batch_size), job, "cpu")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_learnt_from_was_collected_by_the_policy_of_one_iteration_before():
    session = open_session()
    learner = session._learner
    assert (session.effective["overlap"], session.effective["staleness_iterations"]) == (True, 1)
    history = [weights(learner.model)]
    for _ in range(4):
        session.step()
        history.append(weights(learner.model))
        acting = dict(learner._actor.state_dict())
        assert same(history[-1], acting)
        # The rollout that waits was collected before this iteration's updates.
        rollout = session._next
        with torch.no_grad():
            learner._actor.load_state_dict(history[-2])
            values = [learner.values(rollout.buffer.observations(step)) for step in range(rollout.steps + 1)]
            learner.publish()
        torch.testing.assert_close(torch.stack(values), rollout.buffer.values)
        assert not same(history[-1], history[-2])
    session.close()


def test_rollouts_alternate_and_no_step_is_lost():
    session = open_session()
    first = session.step()
    assert first.env_steps + first.reset_rows == 2 * 4 * 16  # one to learn from, one for the next time
    buffers, steps = {id(session._next.buffer)}, first.env_steps
    for _ in range(3):
        work = session.step()
        steps += work.env_steps
        assert work.env_steps + work.reset_rows == 4 * 16
        assert set(work.seconds) == {"env", "infer", "transfer", "learn"}
        buffers.add(id(session._next.buffer))
    assert len(buffers) == 2
    assert session.env_steps == steps == session.environment.executed_steps == session.environment.elapsed_steps
    session.close()


def test_equal_runs_are_bit_identical():
    states = []
    for _ in range(2):
        session = open_session(env="Pong-v5", batch_size=24)
        metrics = [dict(session.step().metrics) for _ in range(3)]
        states.append((session.state().arrays, metrics))
        session.close()
    (first, metrics), (second, again) = states
    assert metrics == again
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_training_goes_on_with_and_without(before, after):
    first = open_session(overlap=before)
    first.step()
    second = open_session(overlap=after)
    second.step()
    second.restore(first.state())
    assert second.env_steps == first.env_steps
    assert second._next is None
    assert same(weights(second._learner.model), weights(first._learner.model))
    assert same(weights(second._learner._actor), weights(first._learner.model))
    assert second.step().env_steps > 0
    first.close()
    second.close()


def test_a_rollout_that_is_waited_for_is_collected_in_the_stream_that_learns(monkeypatch):
    """What was restored is ordered before it; only what is collected meanwhile has a stream of its own."""

    class Stream:
        def wait_stream(self, other):
            pass

    used = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: used.append(stream) or contextlib.nullcontext())
    session = open_session()
    session.step()
    session.restore(session.state())
    collector = session._collector
    collector._stream = Stream()
    collector.collect(session._buffers[0], 4)
    assert used == []
    collector.begin(session._buffers[1], 4)
    collector.take()
    assert used == [collector._stream]
    session.close()


def test_what_the_environment_raises_is_not_lost_in_the_other_thread():
    session = open_session()
    session.step()

    class Broken:
        def step(self, _actions):
            raise RuntimeError("the emulator stopped")

        def close(self):
            pass

    session.environment.parts[0]._pool.close()
    session.environment.parts[0]._pool = Broken()
    with pytest.raises(Exception, match="the emulator stopped"):
        session.step()
    session.close()


def test_both_rollouts_count_before_memory_is_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "autotune.workloads.atari.session.check_memory", lambda _what, each, envs, _free: asked.append(each * envs)
    )
    open_session().close()
    open_session(overlap=False).close()
    emulators = 4 * HOST_BYTES["vector"]
    assert asked[0] - emulators == 2 * (asked[1] - emulators) > 0


def test_it_learns():
    """CartPole gets better within seconds, though each rollout is one policy old."""
    session = open_session(
        num_envs=8, batch_size=64, seed=1, rollout=32, epochs=10, learning_rate=1e-3, clip=0.2, value_clip=False,
        entropy_coefficient=0.0, schedule_horizon_steps=300_000,
    )  # fmt: skip
    lengths = []
    while session.env_steps < 20_000:
        lengths += session.step().lengths
    session.close()
    assert sum(lengths[-20:]) / 20 > 5 * sum(lengths[:20]) / 20
