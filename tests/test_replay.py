import re
from dataclasses import replace

import numpy as np
import pytest
from analytic_surface import GIB, memory_bytes, smooth_sps, write_surface

from autotune.errors import UsageError
from autotune.executors.replay import ReplayExecutor, load_surface, surface_recipe
from autotune.executors.surface import surface_text
from autotune.probe.run import build_request, run_probe
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
        ((8, 64, 2), "ok", "final", 57.5),
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
        assert result.job_sps == pytest.approx([result.sps / knobs[2]] * knobs[2])
        request = build_request(surface_recipe(surface), point, grade=grade, run=run, label="next")
        assert (result.detail, result.startup_s, executor.predict_cost_s(request)) == ("", 7.5, cost_s)
    else:
        assert (result.sps, result.vram_peak_bytes, result.ram_peak_bytes) == (None, None, None)
        assert result.detail == f"recorded as {status}"


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


def test_an_interval_of_much_noise_ends_at_zero(tmp_path):
    noisy = write_surface(tmp_path / "noisy.csv", noise=0.9)
    run = create_run(tmp_path, "run-1")
    result = measure(ReplayExecutor(noisy), Point(num_envs=64, batch_size=256), surface_recipe(noisy), run)
    assert result.sps_low == 0 and result.sps_high > result.sps


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
        ("num_envs,batch_size", "envs,batch_size", "line 8: no column num_envs; a surface has num_envs,batch_size"),
        ("startup_s,vram", "startup_s,sps,vram", "line 8: column sps is there twice"),
        ("8,64,1,ok", "8,64,1,fine", "line 9.*status 'fine' must be one of ok, oom"),
        ("8,64,1,ok", "0,64,1,ok", "line 9.*num_envs '0'.*at least 1"),
        ("8,64,2,ok", "8,64,1,ok", "num_envs=8 batch_size=64 concurrency=1 twice, in lines 9 and 10"),
        ("8,64,1,ok,", "8,64,1,ok,1,", "line 9 has 10 cells for 9 columns; write numbers without commas"),
        ("8,64,1,ok", "8.5,64,1,ok", "line 9: num_envs '8.5' must be a whole number"),
        ("8,64,1,ok", "1e30,64,1,ok", "line 9: num_envs '1e30' must be a number of at least 1 and at most 2"),
        ("8,64,1,ok", "8,64,1000000,ok", "concurrency '1000000' must be a number of at least 1 and at most 10000"),
        ("8,64,1,ok", "8,64,1,unstable", "status 'unstable' must be one of ok, oom, crashed, host_lost, timeout"),
        ("8,64,1,ok", f'8,64,1,"{"x" * 200_000}"', "line 9 is no line of CSV"),
        ("cpu_cores: 4", "cpu_cores: four", "cpu_cores 'four' must be a number"),
        ("cpu_cores: 4", "cpu_cores: 0", "cpu_cores '0' must be a number"),
        ("cpu_cores: 4", "cpu_cores:", "cpu_cores '' must be a number"),
        ("vram_limit_bytes: ", "vram_limit_bytes: -", "vram_limit_bytes '-.*' must be a number"),
        ("ram_limit_bytes: ", "ram_limit_bytes: about ", "ram_limit_bytes 'about .*' must be a number"),
        (
            "price_usd_per_hour: 2",
            "price_usd_per_hour: cheap 2",
            "line 6: price_usd_per_hour 'cheap 2.0' must be a number",
        ),
        ("price_usd_per_hour: 2.0", "price_usd_per_hour: 0", r"at most 1e\+09; delete the line if it is not known"),
        ("baseline: num_envs=8", "baseline: num_envs=²", "baseline.*must read num_envs=8"),
        ("baseline: num_envs=8", "baseline: envs=8", "baseline.*must read num_envs=8"),
        ("baseline: num_envs=8", "baseline: num_envs=\uff18", "line 7: baseline.*delete the line if it is not known"),
        ("baseline: num_envs=8 ", "baseline: num_envs=8 num_envs=16 ", "baseline.*with every knob once"),
        ("num_envs=8 batch_size=256 concurrency=1", "", "line 7: baseline '' must read num_envs=8"),
        (
            "vram_limit_bytes: ",
            "vram_limit_byte: ",
            "line 3: '# vram_limit_byte: 17179869184' is no header; write '# vram_limit_bytes: 17179869184'",
        ),
        ("vram_limit_bytes: ", "VRAM_limit_bytes: ", "line 3: .*write '# vram_limit_bytes: 17179869184'"),
        ("vram_limit_bytes: ", "vram_limit_bytes = ", "line 3: .*write '# vram_limit_bytes: 17179869184'"),
        ("baseline: ", "basline: ", "line 7: .* is no header; write '# baseline: num_envs=8 .*for a comment"),
        ("cpu_cores: 4", "cpu_cores: 4\n # cpu_cores: 8", "cpu_cores is '4' in line 5 and '8' in line 6; delete one"),
        (
            "8,64,1,ok,",
            "8,64,1\n8,64,1,ok,",
            "line 9 has 3 cells for 9 columns; the line is cut off or a quote is open",
        ),
        ("8,64,1,ok,", '"8,64,1,ok,', "line 9 has one cell for 9 columns; the line is cut off or a quote is open"),
        (
            "8,64,1,ok,",
            "9,64,1,ok,0,0.05,7.5,,\n8,64,1,ok,",
            "line 9: sps '0' must be a number .*; where nothing ran, write the status crashed or timeout",
        ),
        ("8,64,1,ok,", "8,64,1,ok,1_", "line 9: sps '1_.*' must be a number"),
        ("8,64,1,ok,", "8,64,1,ok,\uff11", "line 9: sps '\uff11.*' must be a number"),
        (",0.05,", ",5%,", "line 9: sd_fraction '5%' must be .*; leave the cell empty if it is not known"),
    ],
)
def test_a_malformed_surface_is_refused(surface, old, new, words):
    text = surface.read_text()
    assert old in text
    surface.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=words):
        surface_recipe(surface)


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_cells_between_other_separators_are_refused(surface, separator, word):
    surface.write_text(surface.read_text().replace(",", separator))
    with pytest.raises(UsageError, match=f"line 8: the cells are separated by {word}; separate them by commas"):
        load_surface(surface)


@pytest.mark.parametrize(("encoding", "line"), [("utf-16", 1), ("latin-1", 5)])
def test_another_encoding_is_refused(surface, encoding, line):
    surface.write_bytes(surface.read_text().replace("cpu_cores: 4", "cpu_cores: ¼").encode(encoding))
    with pytest.raises(UsageError, match=f"line {line} is no text in UTF-8; save it as UTF-8"):
        load_surface(surface)


def test_header_lines_may_stand_anywhere_beside_comments(surface):
    plain, lines = load_surface(surface), surface.read_text().splitlines()
    notes = [
        "# note: vram_limit_bytes = 1",
        "# vram_limit_gib: 1",
        "# a device of ours",
        "#",
        " # cpu_cores: 4",
        "# 40 GB: the device",
    ]
    surface.write_text("\n".join([*lines[7:], *notes, *(f" {line}" for line in lines[:7])]))
    assert (load_surface(surface).rows, load_surface(surface).header) == (plain.rows, plain.header)


def test_every_cell_may_be_quoted(surface):
    plain, lines = load_surface(surface), surface.read_text().splitlines()
    quoted = [line if line.startswith("#") else '"' + line.replace(",", '","') + '"' for line in lines]
    surface.write_text("\n".join(quoted))
    assert load_surface(surface).rows == plain.rows


def test_only_line_ends_end_a_line(surface):
    device = "a\x0bb\x85c\u2028d"
    surface.write_text(surface.read_text().replace("Test GPU", device), encoding="utf-8")
    assert load_surface(surface).header.device == device


def test_a_missing_or_empty_surface_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_surface(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("# device: x\n")
    with pytest.raises(UsageError, match="has no rows; it needs a line of column names and a line for each point"):
        load_surface(tmp_path / "empty.csv")


def test_a_surface_from_a_spreadsheet_is_read(surface):
    text = surface.read_text().replace(",ok,", ", ok ,")
    spaced = surface.with_name("spaced.csv")
    spaced.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_surface(spaced).rows == load_surface(surface).rows
    assert load_surface(spaced).header == load_surface(surface).header


@pytest.mark.parametrize("unknown", ["nan", "NaN", "None", "null", "NA"])
def test_an_optional_cell_may_say_in_words_that_it_is_not_known(surface, unknown):
    optional = re.compile(r",[\d.]+,[\d.]+,\d+,\d+$", re.MULTILINE)
    empty, told = (
        load_surface(write(surface.with_name(f"{name}.csv"), optional.sub(f",{cell}" * 4, surface.read_text())))
        for name, cell in (("empty", ""), ("told", unknown))
    )
    assert told.rows == empty.rows
    first = told.rows[0]
    assert (first.sd_fraction, first.startup_s, first.vram_bytes, first.ram_bytes) == (0, 0, None, None)


def write(path, text):
    path.write_text(text)
    return path


def test_a_baseline_off_the_grid_is_the_nearest_row(surface):
    surface.write_text(
        surface.read_text().replace("baseline: num_envs=8 batch_size=256", "baseline: num_envs=11 batch_size=200")
    )
    assert load_surface(surface).baseline == Point(num_envs=8, batch_size=256, concurrency=1)
    assert surface_recipe(surface).baseline in surface_recipe(surface).points


@pytest.mark.parametrize(("sps", "noise"), [(0.0123, 0.2), (0.75, 1.7), (7.654, 0.01), (12345.6, 0.0)])
def test_a_recorded_surface_can_be_replayed_however_slow_or_noisy_the_program_was(surface, tmp_path, sps, noise):
    """Below 0.05 steps a second it was written as 0.0, and noise above 1 as it is: reading refused the whole file."""
    recipe, device = surface_recipe(surface), ReplayExecutor(surface).device
    slow = ProbeResult(requested=recipe.baseline, status="ok", grade="quick", sps=sps, noise_fraction=noise)
    written = tmp_path / "recorded.csv"
    written.write_text(surface_text([slow], recipe, device, None))
    row = load_surface(written).row(recipe.baseline)
    assert row.sps == pytest.approx(sps, rel=1e-3)
    assert row.sd_fraction == min(noise, 1.0)


def test_a_recorded_probe_is_replayed_as_long_as_it_was(surface, tmp_path):
    recipe, device = surface_recipe(surface), ReplayExecutor(surface).device
    ran = [
        ProbeResult(requested=point, status=status, grade=grade, sps=sps, cost_s=cost_s, vram_peak_bytes=7)
        for point, status, grade, sps, cost_s in zip(
            (recipe.points[n] for n in (0, 0, 1, 2, 3)),
            ("crashed", "ok", "ok", "oom", "unstable"),
            ("quick", "quick", "final", "quick", "quick"),
            (None, 12345.6, 100.04, None, 5.0),
            (9.0, 45.0, 75.5, 12.5, 40.0),
            strict=True,
        )
    ]
    written = write(tmp_path / "recorded.csv", surface_text(ran, recipe, device, 1.5))
    executor, run = ReplayExecutor(written), create_run(tmp_path, "run-1")
    assert [(row.status, row.sps, row.vram_bytes) for row in executor.surface.rows] == [
        ("ok", 12345.6, 7),
        ("ok", 100.0, 7),
        ("oom", None, 7),
    ]
    assert executor.surface.price_usd_per_hour == 1.5
    for result in ran[1:4]:
        again = measure(executor, result.requested, recipe, run, grade=result.grade)
        assert (again.status, again.cost_s) == (result.status, result.cost_s)


def test_a_surface_without_a_header_is_of_an_unknown_machine(surface):
    surface.write_text("\n".join(line for line in surface.read_text().splitlines() if not line.startswith("#")))
    executor = ReplayExecutor(surface)
    machine = executor.device
    assert (machine.kind, machine.host.cpu_cores_allowed, machine.vram_total_bytes) == ("cpu", 1, None)
    assert executor.surface.baseline == executor.surface.rows[0].point
    assert [(job.id, job.seed) for job in surface_recipe(surface).jobs] == [(f"job-{n}", n) for n in (1, 2, 3, 4)]


def test_an_answer_is_to_the_point_that_was_asked_for(surface, tmp_path):
    """An installed executor that told what took effect instead was asked for the same point until the budget ended."""

    class Loose(ReplayExecutor):
        def run(self, request):
            return replace(super().run(request), requested=Point(num_envs=1, batch_size=1), grade="quick")

    recipe, run = surface_recipe(surface), create_run(tmp_path, "small-1")
    result = measure(Loose(surface), recipe.baseline, recipe, run, grade="final")
    assert (result.requested, result.grade) == (recipe.baseline, "final")
