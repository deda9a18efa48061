"""The PPO session on real EnvPool environments: counting, truncation, learning, saving."""

import json
import math
import os
import statistics
import tomllib
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("envpool")

from autotune.errors import UsageError, WorkerError  # noqa: E402
from autotune.records import Budget, Job, Point  # noqa: E402
from autotune.resources import find  # noqa: E402
from autotune.workloads.atari import AtariWorkload, ppo  # noqa: E402
from autotune.workloads.atari import environment as environment_module  # noqa: E402
from autotune.workloads.atari import session as session_module  # noqa: E402
from autotune.workloads.atari.environment import HOST_BYTES, VectorEnvironment, environment_spec, full_name  # noqa: E402
from autotune.workloads.atari.learner import Learner  # noqa: E402
from autotune.workloads.atari.precision import native_precisions  # noqa: E402
from autotune.workloads.atari.rollout import RolloutBuffer, bytes_per_env  # noqa: E402
from autotune.workloads.atari.settings import PPOSettings  # noqa: E402
from autotune.workloads.guards import OutOfMemoryError  # noqa: E402
from autotune.workloads.protocol import OPENMP, SessionState  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "1")


CARTPOLE = tomllib.loads(find("probes", "cartpole").read_text())["hyperparameters"]
POINT = Point(num_envs=4, batch_size=32)


def job(env="CartPole-v1", seed=1):
    return Job(id="job", env=env, seed=seed, budget=Budget(unit="steps", amount=1000))


def open_session(num_envs=4, batch_size=32, env="CartPole-v1", extra=(), seed=1, **hyperparameters):
    workload = AtariWorkload({"rollout": 16, "epochs": 2, **hyperparameters})
    return workload.open(Point(num_envs=num_envs, batch_size=batch_size, extra=extra), job(env, seed), "cpu")


def make_environment(env, num_envs, **settings):
    return VectorEnvironment(environment_spec(env, PPOSettings(**settings)), num_envs, 1, seed=3)


def test_jobs_of_neighbouring_seeds_play_no_game_in_common():
    """Pilots and repetitions are taken for independent; EnvPool gives environment i the seed of its first plus i."""
    starts = []
    for seed in (1, 2):
        session = open_session(num_envs=8, seed=seed)
        starts.append({tuple(row) for row in session.environment.observations.tolist()})
        session.close()
    assert len(starts[0]) == 8 and not starts[0] & starts[1]


def test_every_row_of_cartpole_is_a_step_or_a_reset_and_games_have_their_true_length():
    environment = make_environment("CartPole-v1", 3, env_options={"max_episode_steps": 12})
    rng = np.random.default_rng(0)
    length, previous_done, expected = np.zeros(3, int), np.zeros(3, bool), []
    for _ in range(200):
        rows = environment.step(rng.integers(0, 2, 3).astype(np.int32))
        assert (rows.valid == ~previous_done).all()
        assert (rows.rewards == rows.valid).all()
        length += rows.valid
        expected += [int(length[i]) for i in np.flatnonzero(rows.done)]
        length[rows.done] = 0
        previous_done = rows.done
    returns, lengths = environment.take_games()
    assert list(lengths) == expected
    assert list(returns) == expected
    assert max(lengths) == 12
    assert environment.executed_steps == environment.elapsed_steps == 600 - environment.reset_rows
    assert environment.reset_rows == pytest.approx(len(expected), abs=3)
    assert environment.take_games() == ((), ())
    environment.close()
    environment.close()


def test_breakout_counts_games_not_lives_and_unclipped_returns():
    environment = make_environment("Breakout", 4)
    assert environment.spec.name == "Breakout-v5"
    assert (environment.spec.kind, environment.spec.shape, environment.spec.actions) == ("image", (4, 84, 84), 4)
    rng = np.random.default_rng(1)
    ends = 0
    while len(environment.lengths) < 8:
        rows = environment.step(rng.integers(0, 4, 4).astype(np.int32))
        ends += int(rows.done.sum())
    assert environment.executed_steps == environment.elapsed_steps
    # Five lives a game: several episodes end for each game that does.
    assert ends >= 4 * len(environment.lengths)
    assert sum(environment.lengths) <= environment.executed_steps
    assert min(environment.lengths) > 50
    assert environment.reset_rows == pytest.approx(ends, abs=4)
    environment.close()


def test_a_game_that_is_over_within_the_reset_after_a_lost_life_is_counted(monkeypatch):
    """RoadRunner's often are: EnvPool lets it go on without an action there, and starts it anew without a word."""
    environment = VectorEnvironment(environment_spec("RoadRunner", PPOSettings()), 4, 1, seed=5)
    told, step = [], environment._pool.step
    monkeypatch.setattr(environment._pool, "step", lambda actions: told.append(step(actions)) or told[-1])
    rng = np.random.default_rng(0)
    expected, silent, length, previous = [], 0, np.zeros(4, int), None
    while silent < 2 and len(told) < 1000:
        rows = environment.step(rng.integers(0, 18, 4).astype(np.int32))
        info = told[-1][4]
        length += rows.valid
        anew = np.zeros(4, bool) if previous is None else ~rows.valid & (previous["terminated"] == 0)
        anew &= True if previous is None else info["lives"] == 3  # a whole game's, though one was lost just before
        silent += int(anew.sum())
        for index in np.flatnonzero(anew | (rows.valid & (info["terminated"] > 0))):
            expected.append(int(length[index]))
            length[index] = 0
        previous = {name: info[name].copy() for name in ("terminated", "lives")}
    returns, lengths = environment.take_games()
    assert silent == 2
    assert list(lengths) == expected
    assert len(returns) == len(expected)
    assert sum(lengths) + length.sum() == environment.executed_steps
    environment.close()


def test_truncated_episode_bootstraps_from_the_value_of_its_true_final_observation():
    session = open_session(num_envs=2, batch_size=8, rollout=12, env_options={"max_episode_steps": 5}, gae_lambda=1.0)
    session._collector.collect(session._buffers[0], 12)
    buffer = session._buffers[0]
    samples = buffer.samples(12, gamma=0.9, gae_lambda=1.0)
    returns = samples.returns.reshape(12, 2)
    truncated = np.argwhere(buffer._done & ~buffer._terminated)
    assert len(truncated) >= 2
    for t, env in truncated:
        with torch.no_grad():
            final = session._learner.model(buffer._observations[t + 1, env][None])[1].item()
        # The reset comes one row later, close to the origin; the final observation does not.
        assert buffer._valid[t, env]
        assert returns[t, env].item() == pytest.approx(1 + 0.9 * final, rel=1e-5)
        if t + 1 < 12:
            assert not buffer._valid[t + 1, env]
            assert (t + 1) * 2 + env not in samples.rows.tolist()
            assert (buffer._observations[t + 2, env].abs() < 0.051).all()
            assert (buffer._observations[t + 1, env].abs() > 0.051).any()
    session.close()


def test_terminated_episode_bootstraps_nothing():
    session = open_session(num_envs=8, batch_size=8, rollout=64)
    session._collector.collect(session._buffers[0], 64)
    returns = session._buffers[0].samples(64, gamma=0.9, gae_lambda=1.0).returns.reshape(64, 8)
    terminated = np.argwhere(session._buffers[0]._terminated)
    assert len(terminated) >= 8
    assert [returns[t, env].item() for t, env in terminated] == pytest.approx([1.0] * len(terminated), abs=1e-5)
    session.close()


def test_work_counts_steps_resets_samples_and_minibatches():
    session = open_session(num_envs=6, batch_size=20, env_options={"max_episode_steps": 7})
    for _ in range(4):
        work = session.step()
        assert work.env_steps + work.reset_rows == 6 * 16
        assert session.env_steps == work.metrics["elapsed_steps"]
        assert work.reset_rows > 0
        assert work.samples == 2 * work.env_steps
        assert work.minibatches == 2 * math.ceil(work.env_steps / 20)
        assert work.episodes == len(work.returns) == len(work.lengths)
        assert set(work.seconds) == {"env", "infer", "transfer", "learn"}
        assert min(work.seconds.values()) > 0
    assert session.env_steps == session.environment.elapsed_steps
    session.close()


def test_reset_rows_reach_no_minibatch(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ppo, "ppo_loss", lambda *a, _loss=ppo.ppo_loss, **k: seen.append(a[0].shape[0]) or _loss(*a, **k)
    )
    session = open_session(num_envs=4, batch_size=32, env_options={"max_episode_steps": 3})
    work = session.step()
    assert sum(seen) == work.samples == 2 * work.env_steps < 2 * 64
    assert seen[0] == 32
    session.close()


def test_slices_keep_the_minibatch_and_never_fall_below_one():
    session = open_session(num_envs=4, batch_size=32)
    whole, quarter, tiny = session.step(), session.step(2), session.step(1000)
    assert [w.env_steps + w.reset_rows for w in (whole, quarter, tiny)] == [64, 32, 32]
    session.close()


def test_learning_rate_follows_the_horizon_not_the_budget():
    session = open_session(learning_rate=1e-3, schedule_horizon_steps=100, anneal_floor=0.05)
    first, second = session.step(), session.step()
    assert first.metrics["learning_rate"] == pytest.approx(1e-3 * (1 - first.env_steps / 100))
    assert second.metrics["learning_rate"] == pytest.approx(5e-5)
    session.close()


def test_first_loss_of_an_untouched_policy():
    """Before any update the ratio is 1: nothing is clipped; the policy loss is the mean normalised advantage."""
    session = open_session(num_envs=8, batch_size=128, epochs=1)
    metrics = session.step().metrics
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0
    assert metrics["entropy"] == pytest.approx(math.log(2), abs=1e-3)
    session.close()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_odd_minibatches_down_to_one_sample(batch_size):
    session = open_session(batch_size=batch_size, epochs=1)
    work = session.step()
    assert work.minibatches == math.ceil(work.env_steps / batch_size)
    assert all(math.isfinite(value) for value in work.metrics.values())
    session.close()


def test_same_seed_same_metrics_other_seed_others():
    runs = []
    for seed in (1, 1, 2):
        session = open_session(seed=seed)
        runs.append([dict(session.step().metrics) for _ in range(3)])
        session.close()
    assert runs[0] == runs[1] != runs[2]


def test_breakout_trains_with_images_and_reports_what_took_effect(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")
    for name, value in OPENMP.items():
        monkeypatch.setenv(name, value)
    session = open_session(num_envs=3, batch_size=17, env="Breakout-v5", epochs=1, extra=(("env_threads", 1),))
    before = {name: value.copy() for name, value in session.state().arrays.items() if name.startswith("model.")}
    work = session.step()
    assert work.env_steps + work.reset_rows == 48
    assert work.minibatches == math.ceil(work.env_steps / 17)
    effective = session.effective
    assert (effective["num_envs"], effective["batch_size"], effective["minibatches"]) == (3, 17, 3)
    assert (effective["env_threads"], effective["torch_threads"]) == (1, 2)
    assert (effective["device"], effective["env"]) == ("cpu", "Breakout-v5")
    assert effective["precision"] == native_precisions(torch.device("cpu"))[0]
    assert {name: effective[name] for name in ("omp_wait_policy", "gomp_spincount")} == {
        "omp_wait_policy": "PASSIVE", "gomp_spincount": "1000"
    }  # fmt: skip
    after = session.state().arrays
    assert all((after[name] != value).any() for name, value in before.items())
    session.close()


def test_a_small_network_computes_with_one_thread_whatever_its_share(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")
    session = open_session()
    assert (session.effective["torch_threads"], torch.get_num_threads(), session.effective["lanes"]) == (1, 1, 1)
    session.close()


@pytest.mark.parametrize(
    ("known", "precisions"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, ("bf16", "fp32")),
        ({"amx_bf16": False, "avx512_bf16": True}, ("bf16", "fp32")),
        ({"avx2": True}, ("fp32",)),
    ],
)
def test_a_cpu_computes_in_bf16_by_default_where_it_has_instructions_for_it(monkeypatch, known, precisions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert native_precisions(torch.device("cpu")) == precisions


def test_low_precision_points_where_full_precision_does():
    """The gradient in bf16 on real minibatches, against the one in fp32 with the same weights."""
    session = open_session(num_envs=8, batch_size=64, env="Breakout-v5", precision="fp32", rollout=32)
    exact = session._learner
    for _ in range(3):
        session.step()
    session._collector.collect(session._buffers[0], 32)
    samples = session._buffers[0].samples(32, session.settings.gamma, session.settings.gae_lambda)
    low = Learner(session._spec, session.settings, torch.device("cpu"), "bf16", seed=0)
    low.load(exact.arrays(), exact.meta(), seed=0)
    for rows in list(ppo.minibatches(samples.rows, 128, torch.Generator().manual_seed(0)))[:2]:
        exact.gradients(samples, rows)
        low.gradients(samples, rows)
        pairs = {
            name: (parameter.grad.flatten(), other.grad.flatten())
            for (name, parameter), other in zip(exact.model.named_parameters(), low.model.parameters(), strict=True)
        }
        whole = [torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1)]
        assert torch.cosine_similarity(*whole, dim=0) >= 0.99
        assert all(torch.cosine_similarity(*pair, dim=0) >= 0.95 for pair in pairs.values())
        assert all(other.grad.dtype == torch.float32 for other in low.model.parameters())
    session.close()


@pytest.mark.parametrize(("channels_last"), [True, False])
def test_layout_changes_no_prediction(channels_last):
    session = open_session(num_envs=2, batch_size=16, env="Pong", channels_last=channels_last)
    raw = session.environment.observations
    session._collector.collect(session._buffers[0], 1)
    stored = session._buffers[0].observations(0)
    np.testing.assert_array_equal(stored.numpy(), raw)
    with torch.no_grad():
        logits, value = session._learner.model(stored)
        model = session._learner.model
        x = torch.from_numpy(raw).double() / 255
        for layer in (model.first, model.second, model.third):
            x = torch.relu(torch.nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), layer.stride))
        x = torch.relu(x.flatten(1) @ model.hidden.weight.double().T + model.hidden.bias.double())
        expected = x @ model.value.weight.double().T + model.value.bias.double()
    np.testing.assert_allclose(value.numpy(), expected.squeeze(1).numpy(), rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, 6)
    session.close()


def test_bf16_gradient_points_where_the_fp32_one_does():
    """Cosine >= 0.99 over all weights and >= 0.95 in each layer, on a real minibatch."""
    session = open_session(num_envs=8, batch_size=128, env="Breakout", epochs=1)
    session.step()
    session._collector.collect(session._buffers[0], 16)
    samples = session._buffers[0].samples(16, 0.99, 0.95)
    learner, gradients = session._learner, {}
    for precision in ("fp32", "bf16"):
        learner.precision = precision
        with learner.autocast():
            logits, values = learner.model(samples.minibatch(samples.rows)[0])
        assert logits.dtype == values.dtype == torch.float32
        arguments = (samples.actions, samples.log_probs, samples.values, samples.advantages, samples.returns)
        weights = {"clip": 0.1, "value_clip": True, "value_coefficient": 0.5, "entropy_coefficient": 0.01}
        loss = ppo.ppo_loss(logits, values, *(a[samples.rows] for a in arguments), **weights)
        learner.optimizer.zero_grad()
        loss.total.backward()
        gradients[precision] = [p.grad.flatten().double().clone() for p in learner.model.parameters()]
    session.close()
    pairs = list(zip(gradients["fp32"], gradients["bf16"], strict=True))
    each = [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs]
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())
    assert min(each) >= 0.95
    assert torch.cosine_similarity(torch.cat(gradients["fp32"]), torch.cat(gradients["bf16"]), dim=0) >= 0.99
    assert each != [1.0] * len(each)


def test_fp16_scales_its_loss_and_keeps_the_scale(monkeypatch):
    """As on a T4; the CPU computes it slowly but alike."""
    monkeypatch.setattr(session_module, "native_precisions", lambda device: ("fp16", "fp32"))
    small = {"num_envs": 2, "batch_size": 16, "env": "Pong", "rollout": 8, "epochs": 1}
    first, second = open_session(**small), open_session(**small)
    assert first.effective["precision"] == "fp16"
    work = first.step()
    assert all(math.isfinite(value) for value in work.metrics.values())
    scale = first.state().meta["loss_scale"]
    assert scale > 1
    first._learner.scaler.update(scale / 8)
    second.step()
    recorded = second._learner.scaler._scale  # what a recorded minibatch reads
    second.restore(first.state())
    assert second.state().meta["loss_scale"] == recorded.item() == scale / 8
    first.close()
    second.close()


@pytest.mark.parametrize("num_envs", [2, 9])
def test_state_carries_over_to_another_point(num_envs):
    first = open_session()
    for _ in range(3):
        first.step()
    state = first.state()
    meta = json.loads(json.dumps(state.meta))
    arrays = {name: array.copy() for name, array in state.arrays.items()}
    second = open_session(num_envs=num_envs, batch_size=11, seed=1)
    second.restore(SessionState(arrays=arrays, meta=meta))
    again = second.state()
    assert again.meta == meta
    assert set(again.arrays) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)
    assert any(name.startswith("adam.exp_avg_sq.") for name in arrays)
    work = second.step()
    assert second.env_steps == first.env_steps + work.env_steps
    assert second.state().meta["updates"] == meta["updates"] + work.minibatches
    first.close()
    second.close()


def test_restored_optimizer_takes_the_same_step():
    """The next update from equal samples is bit-identical with restored weights, moments and random state."""
    first, second = open_session(env="Pong"), open_session(env="Pong")
    first.step()
    second.restore(first.state())
    first._collector.collect(first._buffers[0], 16)
    generator = first._learner.generator.get_state()
    results = []
    for session in (first, second):
        session._learner.generator.set_state(generator)
        metrics, _ = session._learn(first._buffers[0].samples(16, 0.99, 0.95))
        results.append((metrics["policy_loss"], metrics["value_loss"], session.state().arrays))
        session.close()
    assert results[0][:2] == results[1][:2]
    for name, array in results[0][2].items():
        np.testing.assert_array_equal(results[1][2][name], array, err_msg=name)


def test_a_restored_session_plays_other_games_than_the_first_did():
    first = open_session()
    start = first.environment.observations.copy()
    first.step()
    second = open_session()
    np.testing.assert_array_equal(second.environment.observations, start)
    second.restore(first.state())
    assert (second.environment.observations != start).any()
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"env": "Acrobot-v1"}, "environment is 'CartPole-v1' there and 'Acrobot-v1' here"),
        ({"hidden": 32}, "hidden is 64 there and 32 here"),
    ],
)
def test_state_of_another_game_or_network_is_refused(other, named):
    first, second = open_session(), open_session(**other)
    with pytest.raises(UsageError, match=named):
        second.restore(first.state())
    first.close()
    second.close()


def test_nan_loss_names_update_and_term():
    session = open_session()
    work = session.step()
    with torch.no_grad():
        session._learner.model.value[-1].bias.fill_(math.nan)
    with pytest.raises(WorkerError, match=rf"at update {work.minibatches + 1}: total \(nan\), .*value \(nan\)"):
        session.step()
    session.close()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.nan, r"not finite in environment 1 after"),
        ("shape", r"shape \(5,\), expected \(4,\)"),
        ("reward", r"CartPole-v1 returned a reward that is not finite in environment 2 after 0 steps"),
        (MemoryError(), r"CartPole-v1 raised MemoryError after 0 steps, and gave no reason"),
        (SystemExit("bye"), r"CartPole-v1 raised SystemExit after 0 steps: bye"),
        (KeyboardInterrupt(), r"CartPole-v1 raised KeyboardInterrupt after 0 steps"),
    ],
)
def test_broken_environments_are_named(broken, message):
    session = open_session()
    pool = session.environment.parts[0]._pool

    class Broken:
        def step(self, actions):
            observations, *rest = pool.step(actions)
            observations = np.array(observations)
            if isinstance(broken, BaseException):
                raise broken
            if broken == "reward":
                return observations, np.where(np.arange(4) == 2, np.nan, rest[0]), *rest[1:]
            if broken == "shape":
                observations = np.zeros((4, 5), np.float32)
            else:
                observations[1, 2] = broken
            return observations, *rest

        def close(self):
            pool.close()

    session.environment.parts[0]._pool = Broken()
    with pytest.raises(WorkerError, match=message):
        session.step()
    session.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Breakout", "Breakout-v5"),
        ("ALE/Pong-v5", "Pong-v5"),
        ("CartPole-v1", "CartPole-v1"),
        ("frostbite-v5", "Frostbite-v5"),
        ("ale/mspacman", "MsPacman-v5"),
        ("lunarlander", "LunarLander-v3"),
        ("highway-v0", "highway-v0"),
    ],
)
def test_game_names(name, expected):
    assert full_name(name) == expected


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Brakeout", "unknown game 'Brakeout'.*near names: Breakout-v5"),
        ("qqqqqqqq", "no name is near"),
        ("Pendulum-v1", "discrete actions only: choose another environment, or tune a trainer of your own"),
        ("FrozenLake-v1", "takes vectors, or uint8 images.*: choose another environment, or tune a trainer"),
        ("KuhnPoker-v1", "for 2 players.*: choose another environment, or tune a trainer of your own"),
        ("VizdoomCustom-v1", r"EnvPool cannot make VizdoomCustom-v1: .* does not exist\. Mend that, or choose another"),
    ],
)
def test_impossible_games_are_refused(env, message):
    with pytest.raises(UsageError, match=message):
        AtariWorkload({}).check_installed(POINT, [job(env)], "cpu")


def test_possible_games_pass():
    AtariWorkload({}).check_installed(POINT, [job("Breakout"), job("Pong-v5"), job("Acrobot-v1")], "cpu")


def test_a_precision_that_the_device_lacks_is_refused_before_a_session():
    with pytest.raises(UsageError, match="'fp16' is not native on cpu"):
        AtariWorkload({"precision": "fp16"}).check_installed(POINT, [job()], "cpu")
    with pytest.raises(UsageError, match="'fp16' is not native on cpu"):
        AtariWorkload({}).check_installed(replace(POINT, extra=(("precision", "fp16"),)), [job()], "cpu")
    AtariWorkload({"precision": "fp32"}).check_installed(POINT, [job()], "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_skip": 2}, "CartPole-v1 has no option 'frame_skip'"),
        ({"num_envs": 2}, "CartPole-v1 has no option 'num_envs'"),
        ({"base_path": "elsewhere"}, "CartPole-v1 has no option 'base_path'"),
        ({"gym_reset_return_info": False}, "CartPole-v1 has no option 'gym_reset_return_info'"),
        ({"max_episode_steps": "many"}, r"does not take the options .*'many'.* types of .*: 500"),
    ],
)
def test_impossible_environment_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        AtariWorkload({"env_options": options}).check_installed(POINT, [job()], "cpu")


def test_a_game_that_lacks_what_the_options_ask_for_is_refused():
    with pytest.raises(UsageError, match=r"cannot make Freeway-v5 with the options .*'mode': 77.*Invalid game mode"):
        AtariWorkload({"env_options": {"mode": 77}}).check_installed(POINT, [job("Freeway-v5")], "cpu")
    with pytest.raises(UsageError, match="Freeway-v5 has no option 'task'"):  # it would be Pong by the name of Freeway
        AtariWorkload({"env_options": {"task": "pong"}}).check_installed(POINT, [job("Freeway-v5")], "cpu")
    with pytest.raises(UsageError, match="MiniGrid-Empty-5x5-v0 has no option 'env_name'"):  # Procgen has it, too
        AtariWorkload({"env_options": {"env_name": "x"}}).check_installed(POINT, [job("MiniGrid-Empty-5x5-v0")], "cpu")


def test_images_that_no_memory_holds_are_refused_by_the_option_that_asks_for_them():
    with pytest.raises(UsageError, match=r"cannot make Pong-v5 with the options .*'stack_num': 1000000000.*allocate"):
        AtariWorkload({"env_options": {"stack_num": 10**9}}).check_installed(POINT, [job("Pong")], "cpu")


def test_threads_come_from_the_share_of_cores(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "3")
    assert environment_module.allowed_threads() == 3


def test_cartpole_learns_with_the_recipe():
    """25,000 steps at 16 environments with the recipe's own hyperparameters."""
    session = open_session(num_envs=16, batch_size=128, seed=1, **CARTPOLE)
    returns = []
    while session.env_steps < 25_000:
        returns += session.step().returns
    session.close()
    assert statistics.fmean(returns[:20]) < 50
    assert statistics.fmean(returns[-20:]) > 150


def test_an_iteration_of_one_reset_row_teaches_nothing_and_goes_on():
    session = open_session(num_envs=1, batch_size=1, rollout=1, advantage_normalisation="none")
    works = [session.step() for _ in range(80)]
    assert sum(work.reset_rows for work in works) >= 2
    assert all(work.env_steps + work.reset_rows == 1 for work in works)
    assert all((work.minibatches == 0) == (work.env_steps == 0) for work in works)
    session.close()


def test_ceilings_are_rates_of_every_part():
    session = open_session(num_envs=4, batch_size=32)
    rates = session.ceilings(0.05)
    session.close()
    assert set(rates) == {"env", "infer", "learn"}
    assert min(rates.values()) > 0


def test_a_state_is_refused_without_a_session_too():
    session = open_session()
    meta = session.state().meta
    session.close()
    AtariWorkload({}).check_state(POINT, job(), meta)
    with pytest.raises(UsageError, match=r"environment is 'CartPole-v1' there and 'Acrobot-v1' here; .*actions"):
        AtariWorkload({}).check_state(POINT, job("Acrobot-v1"), meta)
    with pytest.raises(UsageError, match="hidden is 64 there and 32 here"):
        AtariWorkload({"hidden": 32}).check_state(POINT, job(), meta)
    with pytest.raises(UsageError, match="hidden is 64 there and 32 here"):
        AtariWorkload({}).check_state(replace(POINT, extra=(("hidden", 32),)), job(), meta)
    with pytest.raises(UsageError, match="this checkpoint is of another workload, and the job's is 'atari'"):
        AtariWorkload({}).check_state(POINT, job(), {})


def test_an_environment_that_raises_is_named():
    session = open_session()
    session.step()

    class Raising:
        def step(self, actions):
            raise RuntimeError("ROM gone")

        def close(self):
            pass

    session.environment.parts[0]._pool.close()
    session.environment.parts[0]._pool = Raising()
    with pytest.raises(WorkerError, match=rf"CartPole-v1 raised RuntimeError after {session.env_steps} steps: ROM"):
        session.step()
    session.close()


def test_a_single_sample_that_could_teach_nothing_is_refused():
    with pytest.raises(UsageError, match="batch_size 1 with advantage_normalisation = 'minibatch'"):
        open_session(batch_size=1, advantage_normalisation="minibatch")
    with pytest.raises(UsageError, match=r"num_envs x rollout 1 with advantage_normalisation = 'rollout'.* = 'none'"):
        open_session(num_envs=1, batch_size=1, rollout=1)
    session = open_session(num_envs=1, rollout=9, batch_size=4, epochs=1, advantage_normalisation="minibatch")
    works = [session.step() for _ in range(3)]
    assert works[0].env_steps == 9, "minibatches of 4, 4 and 1"
    assert all(math.isfinite(value) for work in works for value in work.metrics.values())
    session.close()


def test_a_rollout_beyond_the_memory_is_refused_before_it_is_allocated(monkeypatch):
    spec = environment_spec("Breakout", PPOSettings())
    needed = 16 * (bytes_per_env(128, spec) + HOST_BYTES["image"])
    monkeypatch.setenv("AUTOTUNE_RAM_BYTES", str(needed - 1))
    monkeypatch.setattr(session_module, "VectorEnvironment", None)
    with pytest.raises(
        OutOfMemoryError, match=r"num_envs = 16 needs 75.* environments and rollout.* use num_envs <= 15 or"
    ):
        open_session(num_envs=16, env="Breakout", rollout=128)
    with pytest.raises(OutOfMemoryError, match=r"num_envs = 2000000000 needs 8"):
        open_session(num_envs=2_000_000_000, env="Breakout", rollout=128)
    monkeypatch.setenv("AUTOTUNE_RAM_BYTES", str(needed))
    with pytest.raises(TypeError):  # as far as the environment
        open_session(num_envs=16, env="Breakout", rollout=128)


@pytest.mark.parametrize("env", ["CartPole-v1", "Breakout"])
def test_the_predicted_rollout_is_what_is_allocated(env):
    spec = environment_spec(env, PPOSettings())
    buffer = RolloutBuffer(20, 3, spec, False, torch.device("cpu"))
    arrays = [value for value in vars(buffer).values() if isinstance(value, torch.Tensor | np.ndarray)]
    learning = 20 * (8 + 8 + 3 * 4)  # rows, their order, rewards, advantages, returns
    assert sum(array.nbytes for array in arrays) == 3 * (bytes_per_env(20, spec) - learning) + 3 * 4  # a row of values


def test_deterministic_mode_refuses_what_may_differ():
    session = open_session(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    metrics = [dict(session.step().metrics) for _ in range(3)]
    session.close()
    other = open_session()
    assert not torch.are_deterministic_algorithms_enabled()
    assert [dict(other.step().metrics) for _ in range(3)] == metrics, "a CPU gives the same without"
    assert (session.effective["deterministic"], other.effective["deterministic"]) == (True, False)
    other.close()


def test_deterministic_mode_as_a_knob_tells_cublas(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    session = open_session(extra=(("deterministic", True),))
    assert session.effective["deterministic"] is True
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    session.close()
    open_session().close()  # torch's mode is the process's


def test_a_state_always_continues_alike():
    first = open_session()
    first.step()
    state = first.state()
    first.close()
    runs = []
    for _ in range(2):
        session = open_session()
        session.restore(state)
        runs.append([dict(session.step().metrics) for _ in range(3)])
        session.close()
    assert runs[0] == runs[1]


def test_the_rollout_and_the_learning_rate_follow_the_point():
    further = {"learning_rate": 1e-3, "learning_rate_scaling": "linear", "learning_rate_batch_size": 32}
    session = open_session(num_envs=8, batch_size=16, rollout=64, samples_per_update=[32, 128], anneal=False, **further)
    assert session.effective["rollout"] == 16
    assert session.effective["learning_rate"] == pytest.approx(5e-4)
    work = session.step()
    assert work.env_steps + work.reset_rows == 128
    assert work.metrics["learning_rate"] == pytest.approx(5e-4)
