"""What a point feeds the learner: rollouts within a range, learning rates that follow, what moves loudly."""

import tomllib

import numpy as np
import pytest
from fake_host import host

from autotune.errors import ManifestError, UsageError
from autotune.probe.grid import grid_points
from autotune.probe.recipe import check_point, parse_recipe, rule_of_thumb
from autotune.records import Budget, Job, Point, ProbeResult
from autotune.search.memory import MemoryLimits, safe_points
from autotune.search.space import counts, samples, space_of
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.atari.settings import PPOSettings
from autotune.workloads.cartpole_jax import CartpoleJaxWorkload
from autotune.workloads.learning import (
    Learning,
    LearningChange,
    Rollout,
    knobs_warning,
    learning_of,
    rollout_of,
    scaled_learning_rate,
)

JOB = Job(id="job", env="CartPole-v1", seed=1, budget=Budget(unit="steps", amount=100))
WORKLOADS = {"atari": AtariWorkload, "cartpole-jax": CartpoleJaxWorkload}
RECIPE = """
workload = "atari"
[hyperparameters]
rollout = 128
epochs = 4
{further}
[knobs]
num_envs = [1, 8, 64, 256, 512]
batch_size = [32, 256, 2048]
{knobs}
[baseline]
num_envs = 8
batch_size = 256
[[jobs]]
id = "a"
env = "Breakout-v5"
steps = 1000
"""


def recipe(further="", knobs=""):
    return parse_recipe(RECIPE.format(further=further, knobs=knobs), source="r.toml", name="r")


def at(num_envs, batch_size=32, **extra):
    return Point.from_knobs({"num_envs": num_envs, "batch_size": batch_size, "concurrency": 1, **extra})


@pytest.mark.parametrize(
    ("num_envs", "steps"),
    [(1, 512), (4, 128), (8, 128), (16, 128), (32, 64), (100, 20), (512, 4), (2048, 1)],
)
def test_the_rollout_is_the_nearest_that_stays_within(num_envs, steps):
    rule = Rollout(steps=128, samples_per_update=(512, 2048))
    assert rule.at(num_envs) == steps
    assert 512 <= rule.samples(num_envs) <= 2048


def test_the_rollout_is_never_changed_more_than_the_range_asks():
    rule = Rollout(steps=10, samples_per_update=(100, 300))
    for num_envs in range(1, 301):
        within = [steps for steps in range(1, 301) if 100 <= steps * num_envs <= 300]
        if not within:
            assert not rule.allows(num_envs)
        else:
            assert abs(rule.at(num_envs) - 10) == min(abs(steps - 10) for steps in within)


def test_without_a_range_every_point_keeps_its_rollout():
    assert {Rollout(steps=128).at(n) for n in (1, 7, 10**6)} == {128}
    assert space_of(recipe()).rollout == Rollout(steps=128)


@pytest.mark.parametrize(
    ("num_envs", "words"),
    [(512, ["num_envs 512", "[600, 1000]", "512", "1024", "widen"]), (1001, ["use num_envs <= 1000", "upper end"])],
)
def test_a_range_that_cannot_be_met_is_refused_in_words(num_envs, words):
    with pytest.raises(UsageError) as caught:
        Rollout(steps=8, samples_per_update=(600, 1000)).at(num_envs)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([512, 128], "smaller number first"),
        ([0, 128], "greater than or equal to 1"),
        ([128], "Field required"),
        ([1, 2, 3], "at most 2"),
        ("128", "tuple"),
        ([1.5, 3], "integer"),
        ([True, 3], "integer"),
    ],
)
def test_a_range_that_is_none_is_refused_by_the_workload(name, value, word):
    with pytest.raises(UsageError, match="samples_per_update") as caught:
        WORKLOADS[name]({"samples_per_update": value})
    assert word in str(caught.value)
    assert rollout_of({"rollout": 8, "samples_per_update": value}).samples_per_update is None


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_workloads_adapt_rollout_and_learning_rate(name):
    further = {"learning_rate_scaling": "sqrt", "learning_rate_batch_size": 64, "learning_rate": 1e-3}
    workload = WORKLOADS[name]({"rollout": 32, "samples_per_update": [256, 1024], **further})
    settings = workload.settings.in_effect(at(128, 256))
    assert settings.rollout == 8
    assert settings.learning_rate == pytest.approx(2e-3)
    assert settings.in_effect(at(128, 256)) == settings, "what is in effect stays"
    workload.check(at(128, 1024), [JOB])
    with pytest.raises(UsageError, match="1025"):
        workload.check(at(128, 1025), [JOB])
    with pytest.raises(UsageError, match="use num_envs <= 1024"):
        workload.check(at(2048, 64), [JOB])
    with pytest.raises(UsageError, match="num_envs"):
        workload.check(at(0, 64), [JOB])


def test_a_knob_is_adapted_as_the_hyperparameter_is():
    settings = PPOSettings(samples_per_update=(1024, 4096))
    assert settings.at(at(8, 32, rollout=64)).rollout == 128
    assert settings.at(at(64, 32, rollout=64)).rollout == 64


def test_learning_rates_follow_the_minibatch_as_declared():
    asked = {"meant_for": 256, "batch_size": 1024}
    assert scaled_learning_rate(1e-3, scaling="none", **asked) == 1e-3
    assert scaled_learning_rate(1e-3, scaling="linear", **asked) == pytest.approx(4e-3)
    assert scaled_learning_rate(1e-3, scaling="sqrt", **asked) == pytest.approx(2e-3)
    assert PPOSettings(learning_rate=1e-3).at(at(8, 32)).learning_rate == 1e-3


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"learning_rate_scaling": "linear"}, "needs the batch_size that learning_rate is meant for"),
        ({"learning_rate_scaling": "cubic"}, "'linear'"),
        ({"learning_rate_scaling": "sqrt", "learning_rate_batch_size": 0}, "greater than or equal to 1"),
    ],
)
def test_an_impossible_scaling_is_refused(name, values, word):
    with pytest.raises(UsageError, match="learning_rate_") as caught:
        WORKLOADS[name](values)
    assert word in str(caught.value)


def test_a_recipe_leaves_out_what_cannot_stay_within():
    ranged = recipe("samples_per_update = [1024, 16384]")
    space = space_of(ranged)
    assert {point.batch_size for point in space.points if point.num_envs == 1} == {32, 256}, "1024 samples at most"
    assert space.rollout.samples_per_update == (1024, 16384)
    check_point(ranged, at(512, 2048))
    narrow = recipe("samples_per_update = [600, 1000]")
    assert {point.num_envs for point in space_of(narrow).points} == {1, 8, 64, 256}
    with pytest.raises(UsageError, match="num_envs 512 cannot stay within"):
        check_point(narrow, at(512, 32))
    assert all(point.num_envs != 512 for point in grid_points(narrow, {"num_envs": (64, 512)}))
    with pytest.raises(UsageError, match="lower it or raise samples_per_update"):
        check_point(narrow, at(64, 2048))
    assert rule_of_thumb(narrow, host(cpu_cores_allowed=64.0)).num_envs == 256, "512 have no rollout"


def test_a_baseline_beyond_the_range_is_refused_with_the_recipe():
    with pytest.raises(ManifestError, match="num_envs 8 cannot stay within samples_per_update"):
        recipe("samples_per_update = [2, 4]")
    text = RECIPE.format(further="samples_per_update = [64, 128]", knobs="").replace("rollout = 128", "")
    with pytest.raises(ManifestError, match=r"needs hyperparameters\.rollout"):
        parse_recipe(text, source="r.toml", name="r")
    assert "rollout" in tomllib.loads(RECIPE.format(further="", knobs=""))["hyperparameters"]


def test_the_search_counts_with_the_rollout_of_each_point():
    rule = Rollout(steps=128, samples_per_update=(1024, 4096))
    points = [at(1, 2048), at(8, 2048), at(256, 4096)]
    assert counts(points, rule)[:, 1].tolist() == [1024, 1024, 4096]
    assert samples(np.array([1.0, 8.0, 256.0]), rule).tolist() == [1024, 1024, 4096]
    assert samples(np.array([1.0, 8.0]), Rollout(steps=128)).tolist() == [128, 1024]
    assert samples(np.array([1.0, 8.0]), None).tolist() == [1, 8]


def test_memory_that_samples_take_is_not_hidden_by_a_floor():
    """Up to 32 environments hold 4096 samples, 256 hold 32,768: what looked flat is eight times as much."""
    rule = Rollout(steps=128, samples_per_update=(4096, 32768))

    def held(point):
        return 100 + rule.samples(point.num_envs)

    history = [
        ProbeResult(requested=p, status="ok", grade="quick", sps=1.0, vram_peak_bytes=held(p), threads_peak=20)
        for p in map(at, (1, 2, 4, 8, 16, 32))
    ]
    limits = MemoryLimits(vram_bytes=2.0 * held(at(8)))
    assert safe_points([at(16), at(256)], history, limits, rule).tolist() == [True, False]
    assert safe_points([at(256)], history, limits, Rollout(steps=128)).tolist() == [True], "what num_envs alone says"
    assert safe_points([at(256)], history, MemoryLimits(threads=30.0), rule).tolist() == [True]


def test_what_a_point_feeds_the_learner():
    hyperparameters = {"rollout": 128, "epochs": 4, "samples_per_update": [1024, 2048]}
    assert learning_of(at(8, 256), hyperparameters, {}) == Learning(samples_per_update=1024, updates_per_step=4 / 256)
    adapted = learning_of(at(64, 256), hyperparameters, {})
    assert adapted.samples_per_update == 2048
    assert learning_of(at(64, 256), hyperparameters, {"rollout": 16}).samples_per_update == 1024, "what ran counts"
    assert learning_of(at(8), {"epochs": 4}, {}) is None
    assert learning_of(at(8, 256), {"rollout": 4, "epochs": 1}, {}).updates_per_step == 1 / 32


@pytest.mark.parametrize(("num_envs", "batch_size", "minibatches"), [(3, 256, 2), (7, 500, 2), (8, 1023, 2)])
def test_a_smaller_last_minibatch_is_an_optimizer_step_too(num_envs, batch_size, minibatches):
    fed = learning_of(at(num_envs, batch_size), {"rollout": 128, "epochs": 4}, {})
    assert fed.updates_per_step == 4 * minibatches / (num_envs * 128)


def test_the_knobs_alone_are_loud_where_no_more_is_known():
    assert knobs_warning(at(16, 512), at(8, 256)) is None
    far = knobs_warning(at(256, 2048), at(8, 256))
    assert far == "32 times more environments and 8 times more samples per minibatch"
    assert knobs_warning(at(8, 32), at(8, 256)) == "8 times fewer samples per minibatch"


def test_only_a_change_of_more_than_twice_is_loud():
    base = Learning(samples_per_update=1024, updates_per_step=4 / 256)
    twice = Learning(samples_per_update=2048, updates_per_step=4 / 512)
    assert LearningChange(tuned=twice, baseline=base).warning is None
    far = Learning(samples_per_update=16384, updates_per_step=4 / 64)
    change = LearningChange(tuned=far, baseline=base)
    assert change.samples_ratio == 16 and change.updates_ratio == 4
    assert change.warning == "16 times more samples per update and 4 times more optimizer steps per env step"
    back = LearningChange(tuned=base, baseline=far)
    assert back.warning == "16 times fewer samples per update and 4 times fewer optimizer steps per env step"
