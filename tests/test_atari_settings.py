"""What the atari workload refuses before it loads a framework, and which precision a device gets."""

import importlib.util
import tomllib

import pytest

from autotune.errors import AutotuneError, DeviceError, UsageError, WorkerError
from autotune.records import Budget, Job, Point
from autotune.resources import find
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.atari.settings import PPOSettings

JOBS = [Job(id="job", env="Breakout-v5", seed=1, budget=Budget(unit="episodes", amount=10))]


def point(num_envs=8, batch_size=256, concurrency=1, **extra):
    return Point(num_envs=num_envs, batch_size=batch_size, concurrency=concurrency, extra=tuple(sorted(extra.items())))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (point(num_envs=0), "num_envs is 0; it must be at least 1"),
        (point(batch_size=-3), "batch_size is -3; it must be at least 1"),
        (point(concurrency=0), "concurrency is 0; it must be at least 1"),
        (
            point(batch_size=4096),
            "batch_size 4096 is larger than the rollout, which has num_envs 8 x 128 steps = 1024 samples; "
            "use batch_size <= 1024 or num_envs >= 32",
        ),
        (point(batch_size=1024, rollout=64), "use batch_size <= 512 or num_envs >= 16"),
        (point(presicion="bf16"), "'presicion'. Did you mean 'precision'"),
        (point(precision="int8"), "precision"),
        (point(epochs=0), "epochs"),
    ],
)
def test_impossible_points_are_refused(bad, message):
    with pytest.raises(UsageError) as refusal:
        AtariWorkload({}).check(bad, JOBS)
    assert message in str(refusal.value)


def test_possible_points_pass_up_to_the_whole_rollout():
    workload = AtariWorkload({"rollout": 16})
    for good in (point(1, 1), point(8, 128), point(3, 48), point(8, 256, rollout=32, precision="bf16")):
        workload.check(good, JOBS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1e-3}, "'learning_rat'. Did you mean 'learning_rate'"),
        ({"frame_skip": 2}, "An option of EnvPool's own belongs in a table: env_options = { frame_skip = ... }."),
        ({"gamma": 1.5}, "gamma"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"rollout": 12.5}, "rollout"),
        ({"rollout": "128"}, "rollout"),
        ({"anneal": 1}, "anneal"),
        ({"env_threads": 10**6}, "'env_threads' of workload 'atari' is 1000000: Input should be less than"),
        ({"env_options": {"frame_skip": 0}}, "env_options"),
        ({"env_options": {"stack_num": -1}}, "stack_num = -1 must be at least 1"),
        ({"env_options": {"noop_max": 0}}, "noop_max = 0 must be at least 1"),
        ({"env_options": {"repeat_action_probability": 25}}, "repeat_action_probability = 25 must be at least 0 and"),
        ({"env_options": {"repeat_action_probability": 1.0}}, "repeat_action_probability = 1.0 must be at least 0 and"),
        ({"env_options": {"repeat_action_probability": -0.1}}, "repeat_action_probability = -0.1 must be at least 0"),
    ],
)
def test_impossible_hyperparameters_are_refused(values, message):
    with pytest.raises(UsageError) as refusal:
        AtariWorkload(values)
    assert message in str(refusal.value)


def test_knobs_override_settings():
    settings = PPOSettings(rollout=64).at(point(precision="bf16", env_threads=3))
    assert (settings.rollout, settings.precision, settings.env_threads) == (64, "bf16", 3)


def test_recipes_hold_valid_hyperparameters_and_the_campaign():
    recipes = {name: tomllib.loads(find("probes", name).read_text()) for name in ("atari", "cartpole")}
    for recipe in recipes.values():
        workload = AtariWorkload(recipe["hyperparameters"])
        workload.check(Point.from_knobs(recipe["baseline"]), JOBS)
    games = {job["env"]: job["episodes"] for job in recipes["atari"]["jobs"]}
    assert sum(games.values()) == 156_000
    assert len(games) == 10
    assert (games["MsPacman-v5"], games["Pong-v5"]) == (30_000, 3_000)


@pytest.mark.parametrize("lacking", [("torch",), ("envpool",), ("torch", "envpool")])
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch, lacking):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else there(name))
    with pytest.raises(AutotuneError) as refusal:
        AtariWorkload({}).check_installed(point(), JOBS, "cpu")
    assert f"workload atari needs {' and '.join(lacking)}" in str(refusal.value)
    assert f"pip install 'gpu-autotune[{','.join(lacking)}]'" in str(refusal.value)


torch = pytest.importorskip("torch")
from autotune.workloads.atari.model import compiled  # noqa: E402
from autotune.workloads.atari.precision import choose_device, choose_precision, native_precisions  # noqa: E402

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "auto", "refused"),
    [
        ((6, 1), "fp32", ["bf16", "fp16", "tf32"]),
        ((7, 5), "fp16", ["bf16", "tf32"]),
        ((8, 0), "bf16", []),
        ((9, 0), "bf16", []),
    ],
)
def test_precision_by_compute_capability(monkeypatch, capability, auto, refused):
    """A T4 (7.5) claims bf16 and emulates it: it gets fp16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    native = native_precisions(CUDA)
    assert choose_precision("auto", native, "cuda:0") == auto
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        if precision in refused:
            with pytest.raises(UsageError, match=f"'{precision}' is not native on cuda:0, which has"):
                choose_precision(precision, native, "cuda:0")
        else:
            assert choose_precision(precision, native, "cuda:0") == precision


@pytest.mark.parametrize(("has_bf16", "native"), [(True, ("bf16", "fp32")), (False, ("fp32",))])
def test_precision_on_a_cpu(monkeypatch, has_bf16, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16}, raising=False)
    found = native_precisions(torch.device("cpu"))
    assert found == native
    assert choose_precision("auto", found, "cpu") == native[0]
    if not has_bf16:
        with pytest.raises(UsageError, match="'bf16' is not native on cpu"):
            choose_precision("bf16", found, "cpu")


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (False, False)])
def test_precision_on_a_cpu_with_a_torch_that_lists_no_capabilities(monkeypatch, amx, avx512):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert native_precisions(torch.device("cpu")) == (("bf16", "fp32") if amx or avx512 else ("fp32",))


def test_compiling_without_a_compiler_is_refused_in_words(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkerError, match=r"compile = true needs a C\+\+ compiler, and there is no 'g\+\+'"):
        compiled(torch.nn.Linear(1, 1), torch.device("cpu"))


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda:0"), (False, True, "mps"), (False, False, "cpu")],
)
def test_device_order(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(choose_device("auto")) == expected
    assert str(choose_device("cpu")) == "cpu"


def test_absent_and_unknown_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert str(choose_device("cuda:0")) == "cuda:0"
    with pytest.raises(DeviceError, match=r"'cuda:1' was asked for, but torch .* sees 1 cuda"):
        choose_device("cuda:1")
    with pytest.raises(DeviceError, match="'mps' was asked for"):
        choose_device("mps")
    for name in ("gpu", "cuda:x", ""):
        with pytest.raises(UsageError, match="is not known"):
            choose_device(name)
