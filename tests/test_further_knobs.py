"""Knobs beyond the standard three, from the recipe's text to the point, the grid and the manifest."""

from dataclasses import replace

import pytest

from autotune import cli
from autotune.device.inspect import inspect_device
from autotune.errors import ManifestError, UsageError
from autotune.executors.isolated import IsolatedExecutor
from autotune.manifest import build_manifest, check_manifest
from autotune.probe.grid import grid_points, run_grid
from autotune.probe.recipe import check_point, dump_recipe, load_recipe, parse_recipe
from autotune.probe.recipe_file import knob_points
from autotune.probe.run import run_probe
from autotune.records import Point
from autotune.runs import Run, create_run
from autotune.search.space import space_of
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.busywork import BusyworkWorkload
from autotune.workloads.cartpole_jax import CartpoleJaxWorkload

TEXT = """
workload = "atari"
[hyperparameters]
rollout = 128
env_threads = 3
[knobs]
num_envs = [8, 32]
batch_size = [256, 1024, 4096]
concurrency = [1, 2]
precision = ["fp32", "bf16"]
compile = [false, true]
rollout = [32, 128, 256]
env_threads = [1, 2]
sharing = ["time-slice", "cuda-mps"]
[baseline]
num_envs = 8
batch_size = 256
[[jobs]]
id = "a"
env = "Breakout-v5"
steps = 1000
[[jobs]]
id = "b"
env = "Pong-v5"
steps = 1000
"""


def recipe(*edits):
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return parse_recipe(text, source="x.toml", name="x")


def extra(**knobs):
    return tuple(sorted(knobs.items()))


BASE = extra(precision="fp32", compile=False, rollout=128, env_threads=1, sharing="time-slice")


def test_they_start_from_the_hyperparameter_of_their_name_else_from_the_first_value():
    """`env_threads = 3` is none of the values, so the first one counts; `rollout = 128` is one."""
    assert recipe().baseline == Point(num_envs=8, batch_size=256, concurrency=1, extra=BASE)
    stated = recipe(("batch_size = 256\n", 'batch_size = 256\nprecision = "bf16"\n'))
    assert dict(stated.baseline.extra)["precision"] == "bf16"
    assert parse_recipe(dump_recipe(recipe()), source="x.toml", name="x") == recipe()


def test_the_search_space_leaves_them_at_the_baseline():
    points = space_of(recipe()).points
    assert {point.extra for point in points} == {BASE}
    assert len(points) == 2 * 3 * 2 - 2  # 8 x 128 samples hold no minibatch of 4096


def test_a_minibatch_must_fit_the_rollout_of_its_own_point():
    longer = replace(recipe().baseline, batch_size=2048, extra=extra(**dict(BASE) | {"rollout": 256}))
    check_point(recipe(), longer)
    with pytest.raises(UsageError, match=r"larger than the rollout of 1024 samples \(num_envs 8 x rollout 128\)"):
        check_point(recipe(), replace(longer, extra=BASE))


def test_a_grid_takes_their_values_and_leaves_out_what_does_not_fit():
    points = grid_points(recipe(), {"rollout": (32, 128), "num_envs": (8,), "compile": (False, True)})
    found = {(dict(p.extra)["rollout"], dict(p.extra)["compile"], dict(p.extra)["precision"]) for p in points}
    assert found == {(rollout, compile, "fp32") for rollout in (32, 128) for compile in (False, True)}
    assert len(points) == 4
    short = grid_points(replace(recipe(), grid={**recipe().grid, "batch_size": (512,)}), {"rollout": (32, 128)})
    assert {(p.num_envs, dict(p.extra)["rollout"]) for p in short} == {(8, 128), (32, 32), (32, 128)}
    with pytest.raises(UsageError, match="precision=int8 is outside what recipe 'x' allows"):
        grid_points(recipe(), {"precision": ("int8",)})
    with pytest.raises(UsageError, match=rf"at most one process for each job, here {len(recipe().jobs)}\)"):
        grid_points(recipe(), {"concurrency": (10_000,)})
    unlisted = grid_points(recipe(), {"overlap": (False, True), "num_envs": (8,)})
    assert [dict(p.extra)["overlap"] for p in unlisted] == [False, True], "the workload says what it takes"


def test_a_value_that_the_device_cannot_take_is_a_row_of_the_grid(tmp_path):
    """Half precision on a CPU: the other values are measured all the same."""
    executor, run = IsolatedExecutor(inspect_device("cpu")), create_run(tmp_path, "run")
    points = [Point(num_envs=8, batch_size=256, extra=extra(precision="fp16"))]
    rows = run_grid(recipe(), points, executor, run, grade="quick", record=lambda row: None)
    assert [(row.status, "'fp16' is not native on cpu" in row.detail) for row in rows] == [("crashed", True)]
    bare = replace(recipe(), hyperparameters={"precision": "fp16"})
    with pytest.raises(UsageError, match="'fp16' is not native on cpu"):
        run_grid(bare, [Point(num_envs=8, batch_size=256)], executor, run, grade="quick", record=lambda row: None)


def test_a_surface_has_one_value_of_each_further_knob(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["record", "busywork", "--device", "cpu", "--out", "x.csv", "--knob", "rollout=16,32"]
    assert cli.main(command) == 2
    assert "give each --knob one value" in capsys.readouterr().err


def test_every_value_is_shown_to_the_workload_beforehand():
    changed = [dict(point.extra) for point in knob_points(recipe())]
    assert [next((k, v) for k, v in c.items() if dict(BASE)[k] != v) for c in changed] == [
        ("precision", "bf16"),
        ("compile", True),
        ("rollout", 32),
        ("rollout", 256),
        ("env_threads", 2),
        ("sharing", "cuda-mps"),
    ]
    for point in knob_points(recipe()):
        AtariWorkload({}).check(point, recipe().jobs)
    with pytest.raises(UsageError, match="no hyperparameter 'turbo'"):
        AtariWorkload({}).check(Point(num_envs=8, batch_size=64, extra=extra(turbo=True)), ())


@pytest.mark.parametrize(
    "edit",
    [
        ('["time-slice", "cuda-mps"]', '["mps"]'),
        ("batch_size = 256\n", 'batch_size = 256\nsharing = "mps"\n'),
        ("env_threads = 3", 'sharing = "mps"\n[grid]\nsharing = ["mps"]'),
    ],
)
def test_mps_in_a_recipe_is_refused_since_it_means_apples(edit):
    with pytest.raises(ManifestError, match=r"x\.toml: sharing = 'mps' .*means Apple's.*write time-slice or cuda-mps"):
        recipe(edit)
    with pytest.raises(UsageError, match="means Apple's"):
        grid_points(recipe(), {"sharing": ("mps",)})


def test_a_manifest_keeps_them_and_refuses_mps():
    jobs = recipe().jobs
    point = Point(num_envs=8, batch_size=256, concurrency=2, extra=extra(sharing="cuda-mps", precision="bf16"))
    manifest = build_manifest(replace(recipe(), jobs=jobs), point)
    check_manifest(manifest)
    assert manifest.point.record() == point
    wrong = build_manifest(recipe(), replace(point, extra=extra(sharing="mps")))
    with pytest.raises(ManifestError, match="point: sharing = 'mps'"):
        check_manifest(wrong)


@pytest.mark.parametrize("workload", [AtariWorkload, BusyworkWorkload, CartpoleJaxWorkload])
def test_workloads_leave_sharing_to_the_executor(workload):
    workload({}).check(Point(num_envs=8, batch_size=64, concurrency=2, extra=extra(sharing="cuda-mps")), ())


def test_a_device_that_cannot_share_so_is_a_failed_probe_with_the_reason(tmp_path):
    busywork = load_recipe("busywork")
    point = Point(num_envs=8, batch_size=64, concurrency=2, extra=extra(sharing="cuda-mps"))
    executor = IsolatedExecutor(inspect_device("cpu"))
    result = run_probe(busywork, point, executor, grade="quick", run=Run(tmp_path), label="t")
    assert result.status == "crashed"
    assert result.detail.startswith("CUDA MPS cannot be started: it needs an NVIDIA GPU")
    assert not list(tmp_path.rglob("*.log"))
