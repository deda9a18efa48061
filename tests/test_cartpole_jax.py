"""PPO in JAX: every part against plain float64, EnvPool's rows, checkpoints, and one framework a process."""

import json
import math
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load, save

from autotune.errors import DeviceError, UsageError, WorkerError
from autotune.records import Budget, Job, Point
from autotune.workloads.cartpole_jax import CartpoleJaxWorkload, Settings, set_environment
from autotune.workloads.guards import OutOfMemoryError
from autotune.workloads.protocol import SessionState

jax = pytest.importorskip("jax")
pytest.importorskip("envpool")
jnp = jax.numpy

from autotune.workloads.cartpole_jax import ppo  # noqa: E402

RNG = np.random.default_rng(7)
POINT = Point(num_envs=8, batch_size=64)


@pytest.fixture(autouse=True)
def _environment():
    with mock.patch.dict(os.environ, {"AUTOTUNE_THREADS": "1"}):
        yield


def job(env="CartPole-v1", seed=0):
    return Job(id="a", env=env, seed=seed, budget=Budget(unit="steps", amount=1000))


def open_session(num_envs=8, batch_size=64, env="CartPole-v1", seed=0, **hyperparameters):
    workload = CartpoleJaxWorkload(hyperparameters)
    return workload.open(Point(num_envs=num_envs, batch_size=batch_size), job(env, seed), "cpu")


def random_rollout(rows=40, envs=6, obs_size=4, actions=3):
    """Rows as EnvPool gives them: after an end the next row is a reset, with reward 0."""
    ends = RNG.random((rows, envs))
    terminated, truncated = ends < 0.1, ends > 0.9
    valid = np.ones((rows, envs), bool)
    valid[0, 0] = False
    for t in range(1, rows):
        valid[t] = ~(terminated[t - 1] | truncated[t - 1])
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
    terminated[0, 0] = truncated[0, 0] = False
    return ppo.Rollout(
        obs=RNG.normal(size=(rows, envs, obs_size)).astype(np.float32),
        actions=RNG.integers(0, actions, (rows, envs)),
        log_probs=np.log(RNG.uniform(0.1, 0.9, (rows, envs))).astype(np.float32),
        values=RNG.normal(size=(rows, envs)).astype(np.float32),
        rewards=(RNG.normal(size=(rows, envs)) * valid).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        last_obs=RNG.normal(size=(envs, obs_size)).astype(np.float32),
    )


def plain_advantages(rollout, last_value, gamma, gae_lambda):
    """Sum over k of (gamma lambda)^k delta_t+k up to the end of the episode or of the rollout, in float64."""
    values = np.concatenate([rollout.values, last_value[None]]).astype(np.float64)
    rows, envs = rollout.rewards.shape
    result = np.zeros((rows, envs))
    for env in range(envs):
        for start in range(rows):
            if not rollout.valid[start, env]:
                continue
            for t in range(start, rows):
                bootstrap = 0.0 if rollout.terminated[t, env] else values[t + 1, env]
                delta = float(rollout.rewards[t, env]) + gamma * bootstrap - values[t, env]
                result[start, env] += (gamma * gae_lambda) ** (t - start) * delta
                if rollout.terminated[t, env] or rollout.truncated[t, env]:
                    break
    return result


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_are_those_of_a_plain_loop(gamma, gae_lambda):
    rollout = random_rollout()
    last_value = RNG.normal(size=6).astype(np.float32)
    got = ppo.advantages_of(rollout, last_value, gamma, gae_lambda)
    assert rollout.truncated.sum() > 5
    assert rollout.terminated.sum() > 5
    np.testing.assert_allclose(got, plain_advantages(rollout, last_value, gamma, gae_lambda), rtol=1e-5, atol=2e-5)


def test_a_truncated_row_bootstraps_from_its_final_observation_and_a_terminated_one_does_not():
    def advantage(terminated):
        column = np.array([[1.0], [0.0]], np.float32)
        ended = np.array([[True], [False]])
        rollout = random_rollout(rows=2, envs=1)._replace(
            rewards=column,
            values=np.array([[2.0], [7.0]], np.float32),
            terminated=ended & terminated,
            truncated=ended & (not terminated),
            valid=~ended[::-1],
        )
        return np.asarray(ppo.advantages_of(rollout, np.array([100.0], np.float32), 0.5, 0.9))[:, 0].tolist()

    assert advantage(terminated=True) == [1 - 2, 0]
    assert advantage(terminated=False) == [1 + 0.5 * 7 - 2, 0]


def plain_adam(parameters, gradients, learning_rate):
    """Kingma and Ba's algorithm 1 in float64, a step per gradient."""
    mean = square = np.zeros_like(parameters)
    for t, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = (mean / (1 - 0.9**t), square / (1 - 0.999**t))
        parameters = parameters - learning_rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-5)
    return parameters


def test_adam_is_the_published_algorithm():
    start, gradients = RNG.normal(size=(5, 3)), RNG.normal(size=(30, 5, 3)) * np.logspace(-4, 1, 30)[:, None, None]
    zeros = {"w": np.zeros((5, 3), np.float32)}
    learner = ppo.Learner({"w": start.astype(np.float32)}, zeros, zeros, jnp.zeros((), jnp.int32))
    for gradient in gradients:
        learner = ppo.adam(learner, {"w": gradient.astype(np.float32)}, 0.01)
    np.testing.assert_allclose(learner.params["w"], plain_adam(start, gradients, 0.01), rtol=1e-4, atol=1e-5)
    assert int(learner.updates) == 30


def test_gradients_are_clipped_by_their_joint_norm():
    gradients = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    clipped = ppo.clip_by_global_norm(gradients, 0.5)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0, 1]], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(ppo.clip_by_global_norm(gradients, 5.1)["b"], gradients["b"], rtol=1e-6)


def plain_loss(params, samples, weights, settings):
    """The objective, sample by sample in float64."""

    def forward(layers, x):
        for layer in layers[:-1]:
            x = np.tanh(x @ layer["weight"] + layer["bias"])
        return x @ layers[-1]["weight"] + layers[-1]["bias"]

    gains, errors, entropies = [], [], []
    for i in np.flatnonzero(weights):
        logits = forward(params["actor"], samples.obs[i].astype(np.float64))
        probs = np.exp(logits) / np.exp(logits).sum()
        ratio = probs[samples.actions[i]] / math.exp(samples.log_probs[i])
        clipped = min(max(ratio, 1 - settings.clip), 1 + settings.clip)
        gains.append(min(ratio * samples.advantages[i], clipped * samples.advantages[i]))
        errors.append((forward(params["critic"], samples.obs[i].astype(np.float64))[0] - samples.targets[i]) ** 2)
        entropies.append(-(probs * np.log(probs)).sum())
    return (
        -np.mean(gains)
        + settings.value_coefficient * 0.5 * np.mean(errors)
        - settings.entropy_coefficient * np.mean(entropies)
    )


def test_loss_and_gradient_are_those_of_float64():
    settings = Settings(entropy_coefficient=0.05)
    learner = ppo.new_learner(jax.random.key(3), 4, 3, (8, 8))
    params = jax.tree.map(lambda leaf: leaf + RNG.normal(size=leaf.shape, scale=0.3).astype(np.float32), learner.params)
    rollout = random_rollout()
    samples = jax.tree.map(np.asarray, ppo.samples_of(rollout, params, settings))
    weights = rollout.valid.reshape(-1).astype(np.float32)
    differentiate = jax.jit(jax.value_and_grad(ppo.loss_of, has_aux=True), static_argnums=3)
    (loss, metrics), gradient = differentiate(params, samples, weights, settings)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    np.testing.assert_allclose(loss, plain_loss(exact, samples, weights, settings), rtol=1e-5)
    assert float(metrics["approx_kl"]) > 0
    leaves, shape = jax.tree.flatten(exact)
    for _ in range(4):
        direction = [RNG.normal(size=leaf.shape) for leaf in leaves]
        ahead, behind = (
            plain_loss(
                jax.tree.unflatten(shape, [p + s * d for p, d in zip(leaves, direction, strict=True)]),
                samples,
                weights,
                settings,
            )
            for s in (1e-6, -1e-6)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-3, abs=1e-4)


def test_advantages_are_normalised_over_valid_rows_and_targets_are_not():
    settings, rollout = Settings(), random_rollout()
    params = ppo.new_learner(jax.random.key(0), 4, 3, (8,)).params
    samples = ppo.samples_of(rollout, params, settings)
    valid = rollout.valid.reshape(-1)
    kept = np.asarray(samples.advantages)[valid]
    assert kept.mean() == pytest.approx(0, abs=1e-5)
    assert kept.std() == pytest.approx(1, abs=1e-4)
    last_value = np.asarray(ppo.policy_and_value(params, rollout.last_obs)[1])
    plain = plain_advantages(rollout, last_value, settings.gamma, settings.gae_lambda) + rollout.values
    np.testing.assert_allclose(np.asarray(samples.targets)[valid], plain.reshape(-1)[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 240])
def test_minibatches_hold_every_valid_row_once(batch_size):
    valid = random_rollout().valid.reshape(-1)
    rows, weights = ppo.minibatch_rows(jax.random.key(1), jnp.asarray(valid), batch_size)
    assert rows.shape == (math.ceil(240 / batch_size), batch_size)
    assert sorted(np.asarray(rows)[np.asarray(weights) > 0].tolist()) == np.flatnonzero(valid).tolist()
    sizes = np.asarray(weights).sum(axis=1)
    sizes = sizes[sizes > 0]
    assert set(sizes[:-1]) <= {batch_size}


def test_a_minibatch_without_samples_moves_nothing():
    settings, rollout = Settings(epochs=3), random_rollout()
    few = rollout._replace(valid=np.arange(240).reshape(40, 6) < 50)
    learner = ppo.new_learner(jax.random.key(0), 4, 3, (8,))
    moved, _ = ppo.update(learner, few, jax.random.key(1), 1e-3, settings=settings, batch_size=32)
    assert int(moved.updates) == 3 * 2


class Recorder:
    """Passes everything on to EnvPool and keeps its `elapsed_step`."""

    def __init__(self, pool):
        self._pool, self.elapsed, self.ends = pool, [], []

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def step(self, actions):
        result = self._pool.step(actions)
        self.elapsed.append(result[4]["elapsed_step"].copy())
        self.ends.append(result[2] | result[3])
        return result


def test_counts_agree_with_the_environments_own():
    session = open_session(num_envs=5, batch_size=33, rollout=32, epochs=2)
    session._pool = recorder = Recorder(session._pool)
    works = [session.step() for _ in range(6)] + [session.step(parts=4)]
    elapsed, ends = np.array(recorder.elapsed), np.array(recorder.ends)
    assert len(elapsed) == 6 * 32 + 8
    assert sum(work.env_steps for work in works) == (elapsed > 0).sum()
    assert sum(work.reset_rows for work in works) == (elapsed == 0).sum() > 0
    assert sum(work.episodes for work in works) == ends.sum()
    lengths = [length for work in works for length in work.lengths]
    assert lengths == elapsed[ends].tolist()
    assert [value for work in works for value in work.returns] == lengths  # CartPole pays 1 a step
    for work in works:
        assert work.samples == 2 * work.env_steps
        assert work.minibatches == 2 * math.ceil(work.env_steps / 33)
        assert set(work.seconds) == {"env", "infer", "transfer", "learn"}
    session.close()
    session.close()


def test_it_learns_cartpole():
    session = open_session(num_envs=32, batch_size=256, seed=1)
    assert session.effective["num_envs"] == 32
    assert session.effective["minibatches"] == 4
    assert session.peak_memory_bytes() is None
    returns, env_steps, first = [], 0, None
    while env_steps < 60_000:
        work = session.step()
        session.synchronize()
        env_steps += work.env_steps
        returns.extend(work.returns)
        first = first or (np.mean(returns) if returns else None)
    assert first < 60
    assert np.mean(returns[-100:]) > 250
    session.close()


def test_a_slice_fills_a_minibatch():
    session = open_session(num_envs=8, batch_size=64, rollout=12)
    rows = {parts: session._slice_rows(parts) for parts in (1, 2, 5, 100)}
    assert rows == {1: 12, 2: 12, 5: 12, 100: 12}
    session._point = Point(num_envs=8, batch_size=24)
    assert [session._slice_rows(parts) for parts in (1, 2, 3, 5, 100)] == [12, 6, 4, 3, 3]
    session.close()


def test_a_state_continues_at_another_point():
    session = open_session(schedule_horizon_steps=10_000)
    for _ in range(3):
        session.step()
    state = session.state()
    session.close()
    stored = SessionState(arrays=load(save(dict(state.arrays))), meta=json.loads(json.dumps(state.meta)))
    other = open_session(num_envs=3, batch_size=96, seed=5, schedule_horizon_steps=10_000)
    other.restore(stored)
    again = other.state()
    assert again.meta == state.meta
    assert again.arrays.keys() == state.arrays.keys()
    for name, array in state.arrays.items():
        assert array.dtype == again.arrays[name].dtype
        np.testing.assert_array_equal(array, again.arrays[name])
    assert other.effective["num_envs"] == 3
    work = other.step()
    assert work.env_steps + work.reset_rows == 96
    assert work.metrics["learning_rate"] == pytest.approx(1e-3 * (1 - state.meta["env_steps"] / 10_000))
    assert other.state().meta["env_steps"] == state.meta["env_steps"] + work.env_steps
    with pytest.raises(UsageError, match=r"hidden is \[64, 64\] there and \[32\] here"):
        open_session(hidden=[32]).restore(state)
    with pytest.raises(UsageError, match="env is 'CartPole-v1' there and 'Acrobot-v1' here"):
        open_session(env="Acrobot-v1").restore(state)
    with pytest.raises(UsageError, match=r"lacks params.actor.0.bias"):
        other.restore(SessionState(arrays={"key": state.arrays["key"]}, meta=state.meta))
    other.close()


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        ({"rollouts": 3}, "no hyperparameter 'rollouts'. Did you mean 'rollout'"),
        ({"rollout": 0}, "'rollout' .* is 0"),
        ({"learning_rate": float("nan")}, "'learning_rate' .* is nan"),
        ({"gamma": 1.5}, "'gamma' .* is 1.5"),
        ({"hidden": [64, -1]}, r"'hidden.1' .* is -1"),
        ({"epochs": "ten"}, "'epochs' .* is 'ten'"),
    ],
)
def test_bad_hyperparameters_are_named(hyperparameters, words):
    with pytest.raises(UsageError, match=words):
        CartpoleJaxWorkload(hyperparameters)


def test_bad_points_jobs_and_devices_are_named():
    workload = CartpoleJaxWorkload({"rollout": 16})
    workload.check(Point(num_envs=4, batch_size=64), [job()])
    with pytest.raises(UsageError, match=r"batch_size 65 .* 4 x 16 steps = 64"):
        workload.check(Point(num_envs=4, batch_size=65), [])
    with pytest.raises(UsageError, match="num_envs is 0"):
        workload.check(Point(num_envs=0, batch_size=1), [])
    with pytest.raises(UsageError, match="no knob precision"):
        workload.check(Point(num_envs=4, batch_size=8, extra=(("precision", "bf16"),)), [])
    with pytest.raises(UsageError, match="num_envs x rollout 1 makes every advantage 0"):
        CartpoleJaxWorkload({"rollout": 1}).check(Point(num_envs=1, batch_size=1), [])
    with pytest.raises(UsageError, match="seed -1"):
        workload.check(Point(num_envs=4, batch_size=8), [job(seed=-1)])
    with pytest.raises(UsageError, match="device 'mps'"):
        workload.open(Point(num_envs=4, batch_size=8), job(), "mps")
    with pytest.raises(DeviceError, match="'cpu:3' is not there"):
        ppo_session = __import__("autotune.workloads.cartpole_jax.session", fromlist=["find_device"])
        ppo_session.find_device("cpu:3")


def test_environments_are_checked_against_the_installed_ones():
    workload = CartpoleJaxWorkload({})
    workload.check_installed(POINT, [job(), job("Acrobot-v1"), job("LunarLander-v3")], "cpu")
    with pytest.raises(UsageError, match=r"no environment 'CartPol-v1'. Near: CartPole-v1"):
        workload.check_installed(POINT, [job("CartPol-v1")], "cpu")
    for env in ("Pendulum-v1", "FrozenLake-v1", "Breakout-v5"):
        with pytest.raises(UsageError, match=r"needs a vector and discrete actions.*: choose another environment"):
            workload.check_installed(POINT, [job(env)], "cpu")
    with pytest.raises(UsageError, match="KuhnPoker-v1 is for 2 players"):
        workload.check_installed(POINT, [job("KuhnPoker-v1")], "cpu")
    with pytest.raises(UsageError, match=r"EnvPool cannot make VizdoomCustom-v1: .* does not exist"):
        workload.check_installed(POINT, [job("VizdoomCustom-v1")], "cpu")


def test_what_the_user_set_in_the_environment_is_kept():
    with mock.patch.dict(os.environ, {"AUTOTUNE_MEMORY_FRACTION": "0.3", "AUTOTUNE_THREADS": "3"}, clear=True):
        set_environment("auto")
        assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.3"
        assert os.environ["NPROC"] == "3"
        assert "JAX_PLATFORMS" not in os.environ
    for device, threads in (("cpu", "1"), ("cuda", "3")):
        with mock.patch.dict(os.environ, {"AUTOTUNE_THREADS": "3"}, clear=True):
            set_environment(device, small=True)
            assert os.environ["NPROC"] == threads
    mine = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_CLIENT_MEM_FRACTION": "0.5",
        "AUTOTUNE_MEMORY_FRACTION": "0.3",
    }
    with mock.patch.dict(os.environ, mine, clear=True):
        set_environment("cpu")
        assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
        assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ
        assert os.environ["JAX_PLATFORMS"] == "cpu"


CHILD = """
import json, sys
from autotune import registry
from autotune.records import Budget, Job, Point
workload = registry.load("workload", "cartpole-jax")({"hidden": [8]})
early = [name for name in ("jax", "torch", "envpool") if name in sys.modules]
job = Job(id="a", env="CartPole-v1", seed=0, budget=Budget(unit="steps", amount=1))
session = workload.open(Point(num_envs=4, batch_size=16), job, "auto")
works = [session.step() for _ in range(3)]
learn_s = [work.seconds["learn"] for work in works]
print(json.dumps({"early": early, "torch": "torch" in sys.modules, "effective": session.effective, "learn_s": learn_s}))
"""


def test_a_child_loads_one_framework_with_the_memory_settings():
    settings = {"AUTOTUNE_MEMORY_FRACTION": "0.25", "AUTOTUNE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["early"] == []
    assert said["torch"] is False
    assert said["effective"]["preallocate"] is False
    assert said["effective"]["memory_fraction"] == 0.25
    assert said["effective"]["env_threads"] == 1
    assert said["effective"]["xla_threads"] == 1
    # The compile is part of the first iteration, so that a probe sees it.
    assert said["learn_s"][0] > max(said["learn_s"][1:])


@pytest.mark.parametrize("batch_size", [24, 32])
def test_a_loss_that_is_not_finite_names_update_and_term(batch_size):
    session = open_session(batch_size=batch_size, rollout=8, epochs=2)
    done = session.step().minibatches
    critic = session._learner.params["critic"]
    critic[-1] = critic[-1] | {"bias": jnp.array([jnp.inf])}
    with pytest.raises(WorkerError, match=rf"not finite at update {done + 1}: .*value_loss \((nan|inf)\)"):
        session.step()
    session.close()


def test_the_first_bad_update_is_counted_without_filling():
    settings, rollout = Settings(epochs=2, rollout=40), random_rollout()
    few = rollout._replace(valid=np.arange(240).reshape(40, 6) < 50)
    learner = ppo.new_learner(jax.random.key(0), 4, 3, (8,))
    for rate, first_bad in ((1e-3, 0), (jnp.nan, 2)):  # a step of NaN: the next loss is
        _, metrics = ppo.update(learner, few, jax.random.key(1), rate, settings=settings, batch_size=32)
        assert int(metrics["nonfinite_update"]) == first_bad
    _, metrics = ppo.update(learner, few, jax.random.key(1), jnp.nan, settings=settings, batch_size=64)
    assert int(metrics["nonfinite_update"]) == 2, "one update an epoch, the rest of it is filling"


class Broken:
    """An environment that breaks at its second step."""

    def __init__(self, pool, how):
        self._pool, self._how, self._steps = pool, how, 0

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def step(self, actions):
        obs, *rest = self._pool.step(actions)
        self._steps += 1
        if self._steps == 2 and self._how == "raise":
            raise ValueError("out of world")
        if self._steps == 2 and self._how == "exit":
            raise SystemExit(4)
        if self._steps == 2 and self._how == "reward":
            return obs, np.where(np.arange(len(obs)) == 1, np.inf, rest[0]), *rest[1:]
        if self._steps == 2:
            obs = np.zeros((len(obs), 7)) if self._how == "shape" else np.where(np.arange(4) == 3, np.nan, obs)
        return obs, *rest


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"CartPole-v1 raised ValueError after 8 steps: out of world"),
        ("exit", r"CartPole-v1 raised SystemExit after 8 steps: 4"),
        ("reward", r"CartPole-v1 returned a reward that is not finite in environment 1 after 8 steps"),
        ("shape", r"shape \(7,\), expected \(4,\), after 8 steps"),
        ("nan", r"not finite in environment 0 after 8 steps"),
    ],
)
def test_a_broken_environment_is_named(how, message):
    session = open_session()
    session._pool = Broken(session._pool, how)
    with pytest.raises(WorkerError, match=message):
        session.step()
    session.close()


def test_a_rollout_beyond_the_memory_is_refused(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_RAM_BYTES", "5000000")
    with pytest.raises(OutOfMemoryError, match=r"num_envs = 100000 needs .* use num_envs <= \d+ or a shorter rollout"):
        open_session(num_envs=100_000)


def test_equal_seeds_give_equal_metrics_and_a_state_continues_alike():
    def metrics(state=None, seed=3):
        session = open_session(seed=seed, deterministic=True)
        if state is not None:
            session.restore(state)
        found = [dict(session.step().metrics) for _ in range(3)], session.state()
        session.close()
        return found

    (first, state), (second, _) = metrics(), metrics()
    assert first == second != metrics(seed=4)[0]
    assert metrics(state)[0] == metrics(state)[0]


def test_deterministic_mode_tells_xla():
    with mock.patch.dict(os.environ, {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}):
        set_environment("cpu", deterministic=True)
        assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_a_state_is_refused_without_a_session_too():
    session = open_session()
    meta = session.state().meta
    session.close()
    CartpoleJaxWorkload({}).check_state(POINT, job(), meta)
    for workload, chosen, message in (
        (
            CartpoleJaxWorkload({}),
            job("Acrobot-v1"),
            r"env is 'CartPole-v1' there and 'Acrobot-v1' here; observation_size",
        ),
        (CartpoleJaxWorkload({"hidden": [32]}), job(), r"hidden is \[64, 64\] there and \[32\] here"),
    ):
        with pytest.raises(UsageError, match=message):
            workload.check_state(POINT, chosen, meta)


def test_the_rollout_and_the_learning_rate_follow_the_point():
    further = {"learning_rate": 1e-3, "learning_rate_scaling": "sqrt", "learning_rate_batch_size": 64}
    session = open_session(num_envs=8, batch_size=16, rollout=64, samples_per_update=[32, 128], **further)
    assert (session.effective["rollout"], session.effective["epochs"]) == (16, 10)
    assert session.effective["learning_rate"] == pytest.approx(5e-4)
    work = session.step()
    assert work.env_steps + work.reset_rows == 128
    assert work.metrics["learning_rate"] == pytest.approx(5e-4)
    session.close()
