import numpy as np
import pytest
from analytic_surface import GIB, memory_bytes, smooth_sps, write_surface

from autotune.errors import UsageError
from autotune.executors.replay import ReplayExecutor, load_surface, surface_recipe
from autotune.probe.run import run_probe
from autotune.records import Point, ProbeResult
from autotune.runs import create_run


def measure(executor, point, recipe, run, *, grade="quick", label="0", timeout_s=None) -> ProbeResult:
    return run_probe(recipe, point, executor, grade=grade, run=run, label=label, timeout_s=timeout_s)


@pytest.fixture
def surface(tmp_path):
    def fate(envs, batch, processes):
        words = {(256, 1024, 4): "oom", (256, 1024, 3): "crashed", (256, 512, 4): "timeout", (256, 256, 4): "host_lost"}
        return words.get((envs, batch, processes), "ok")

    return write_surface(tmp_path / "small.csv", status=fate, noise=0.05, startup_s=7.5)


def test_the_recipe_and_device_are_the_surfaces(surface):
    recipe, executor = surface_recipe(surface), ReplayExecutor(surface)
    assert recipe.name == "small"
    assert recipe.knobs == {
        "num_envs": (8, 16, 32, 64, 128, 256),
        "batch_size": (64, 128, 256, 512, 1024),
        "concurrency": (1, 2, 3, 4),
    }
    assert len(recipe.points) == 120
    assert len(recipe.jobs) == 4
    assert recipe.baseline == Point(num_envs=8, batch_size=256, concurrency=1)
    assert executor.device.vram_total_bytes == 16 * GIB
    assert executor.device.host.ram_limit_bytes == 32 * GIB
    assert executor.device.host.cpu_cores_allowed == 4
    assert executor.surface.price_usd_per_hour == 2.0


@pytest.mark.parametrize(
    ("knobs", "status", "grade", "cost_s"),
    [
        ((8, 64, 1), "ok", "quick", 27.5),
        ((8, 64, 1), "ok", "final", 57.5),
        ((256, 1024, 4), "oom", "quick", 7.5),
        ((256, 1024, 3), "crashed", "final", 7.5),
        ((256, 512, 4), "timeout", "quick", 300.0),
        ((256, 256, 4), "host_lost", "quick", 180.0),
    ],
)
def test_what_a_probe_costs_and_shows(surface, tmp_path, knobs, status, grade, cost_s):
    executor, run = ReplayExecutor(surface), create_run(tmp_path, "run-1")
    point = Point(num_envs=knobs[0], batch_size=knobs[1], concurrency=knobs[2])
    result = measure(executor, point, surface_recipe(surface), run, grade=grade)
    assert (result.status, result.cost_s, executor.clock_s()) == (status, cost_s, cost_s)
    if status == "ok":
        assert (result.vram_peak_bytes, result.ram_peak_bytes) == memory_bytes(*knobs)
        assert result.sps_low < result.sps < result.sps_high
    else:
        assert (result.sps, result.vram_peak_bytes, result.ram_peak_bytes) == (None, None, None)


@pytest.mark.parametrize(("grade", "window_s"), [("quick", 8.0), ("final", 30.0)])
def test_noise_is_normal_with_the_stated_deviation(surface, tmp_path, grade, window_s):
    recipe, executor, run = surface_recipe(surface), ReplayExecutor(surface, 3), create_run(tmp_path, "run-1")
    point = Point(num_envs=64, batch_size=256, concurrency=2)
    results = [measure(executor, point, recipe, run, grade=grade, label=str(n)) for n in range(800)]
    ratios = np.array([result.sps for result in results]) / smooth_sps(64, 256, 2)
    deviation = 0.05 * np.sqrt(10 / window_s)
    assert ratios.mean() == pytest.approx(1, abs=5 * deviation / np.sqrt(800))
    assert ratios.std() == pytest.approx(deviation, rel=0.12)
    covered = [result.sps_low <= smooth_sps(64, 256, 2) <= result.sps_high for result in results]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_the_same_seed_sees_the_same_and_another_does_not(surface, tmp_path):
    recipe, run = surface_recipe(surface), create_run(tmp_path, "run-1")
    point = Point(num_envs=64, batch_size=256)
    seen = [measure(ReplayExecutor(surface, seed), point, recipe, run).sps for seed in (1, 1, 2)]
    assert seen[0] == seen[1] != seen[2]


def test_a_point_off_the_grid_is_the_nearest_row(surface, tmp_path):
    executor, run = ReplayExecutor(surface), create_run(tmp_path, "run-1")
    result = measure(executor, Point(num_envs=100, batch_size=200, concurrency=9), surface_recipe(surface), run)
    assert result.requested == Point(num_envs=100, batch_size=200, concurrency=9)
    assert result.effective == {"num_envs": 128, "batch_size": 256, "concurrency": 4}


def test_a_cut_probe_is_a_timeout(surface, tmp_path):
    executor, run = ReplayExecutor(surface), create_run(tmp_path, "run-1")
    result = measure(executor, Point(num_envs=8, batch_size=64), surface_recipe(surface), run, timeout_s=12.0)
    assert (result.status, result.cost_s, executor.clock_s()) == ("timeout", 12.0, 12.0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_envs,batch_size", "envs,batch_size", "first line after the header must be num_envs,batch_size"),
        ("8,64,1,ok", "8,64,1,fine", "line 9.*status 'fine' must be one of ok, oom"),
        ("8,64,1,ok", "0,64,1,ok", "line 9.*num_envs '0'.*at least 1"),
        ("8,64,2,ok", "8,64,1,ok", "a point twice"),
        ("baseline: num_envs=8", "baseline: envs=8", "baseline.*must read num_envs=8"),
    ],
)
def test_a_malformed_surface_is_refused(surface, old, new, words):
    text = surface.read_text()
    assert old in text
    surface.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=words):
        surface_recipe(surface)


def test_a_missing_or_empty_surface_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_surface(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("# device: x\n")
    with pytest.raises(UsageError, match="first line after the header"):
        load_surface(tmp_path / "empty.csv")
