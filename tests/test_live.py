"""Bars of work in progress, on terminals of any width."""

import io
import re

import pytest
from report_run import result
from rich.console import Console

from autotune.live import ProbeView, SearchView, TrainView
from autotune.probe.grid import GridEvent
from autotune.records import Point
from autotune.search.running import SearchEvent
from autotune.train.status import JobSnapshot, Snapshot

POINT = Point(num_envs=256, batch_size=4096, concurrency=2)


def shown(view: ProbeView | SearchView | TrainView, columns: int) -> str:
    """What the bar looks like at a width."""
    file = io.StringIO()
    Console(file=file, width=columns).print(view.progress.get_renderable())
    return file.getvalue().rstrip("\n")


def a_search() -> SearchView:
    view = SearchView(600.0)
    best = result(POINT, 8000.0)
    view.update(SearchEvent(stage="spread", point=POINT, result=None, best=best, left_s=125.0, number=3))
    return view


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_the_note_gives_way_to_the_clock_and_the_name(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    line = shown(a_search(), columns)
    assert "\n" not in line and len(line) <= columns
    assert re.fullmatch(r"searching .* \d:\d\d:\d\d", line.rstrip())
    assert "2m 5s" in line and "…" in line


def test_one_estimate_of_what_is_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    job = JobSnapshot(
        id="a", env="e", status="running", env_steps=1, episodes=0, seconds=1.0, fraction=0.1, sps=5.0,
        mean_return=None, best_return=None, vram_bytes=None, ram_bytes=None, eta_s=43320.0,
    )  # fmt: skip
    view = TrainView()
    view.update(
        Snapshot(run="r", state="running", jobs=(job,), point="", sps=5.0, measured_sps=None, predicted_sps=None,
                 elapsed_s=1.0, updated="")
    )  # fmt: skip
    line = shown(view, 200)
    assert "12h 2m left" in line
    assert line.count(":") == 2, "the time elapsed alone beside it"
    grid = ProbeView(2)
    grid.update(GridEvent(number=0, total=2, point=POINT))
    assert "-:--:--" in shown(grid, 200), "a grid says it nowhere else"


def test_a_probe_has_the_number_that_reports_and_exports_give_it(capsys):
    a_search().update(
        SearchEvent(stage="spread", point=POINT, result=result(POINT, 8000.0), best=None, left_s=125.0, number=7)
    )
    ProbeView(2).update(GridEvent(number=0, total=2, point=POINT, result=result(POINT, 8000.0)))
    search, grid = capsys.readouterr().err.splitlines()
    assert search.startswith("[7] spread: num_envs=256") and search.endswith("(2m 5s left)")
    assert grid.startswith("[0] num_envs=256") and grid.endswith("(1 of 2)")
