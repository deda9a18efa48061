"""Whole searches on recorded surfaces: plan, budget, failures, stopping, resuming."""

import math
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from analytic_surface import GIB, smooth_sps, write_surface
from optuna.trial import TrialState

from autotune.errors import FileError, InfeasibleError, UsageError
from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.records import PAUSED, REFUSED, Point, ProbeRequest, ProbeResult
from autotune.runs import Run, create_run
from autotune.search import trials
from autotune.search.result import economy, sentence
from autotune.search.running import SearchEvent
from autotune.search.sampler import IGNORED, history_of
from autotune.search.study import run_study
from autotune.search.trials import add_probe_trial, load_trials


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    return write_surface(tmp_path_factory.mktemp("surfaces") / "small.csv", noise=0.01)


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path, "small-1")


def memory() -> optuna.Study:
    return optuna.create_study(direction="maximize")


class Watched(ReplayExecutor):
    """A replay that records its requests, and can raise after some of them."""

    def __init__(self, path, seed=0, raise_at=None, error=KeyboardInterrupt):
        super().__init__(path, seed)
        self.requests: list[ProbeRequest] = []
        self._raise_at, self._error = raise_at, error

    def run(self, request: ProbeRequest) -> ProbeResult:
        self.requests.append(request)
        if len(self.requests) - 1 == self._raise_at:
            self._clock_s += 5.0
            raise self._error
        return super().run(request)


def search(surface, run, executor=None, *, budget_s=700.0, **options):
    return run_study(surface_recipe(surface), executor or Watched(surface), run, budget_s=budget_s, **options)


def best_stable(path, vram_fraction=0.9) -> float:
    rows = ReplayExecutor(path).surface.rows
    return max(row.sps for row in rows if row.sps and row.vram_bytes <= vram_fraction * 16 * GIB)


@pytest.mark.parametrize("name", ["a?b", "50%41", "{x}", "a#b", "a'b c"])
def test_a_study_lies_in_its_run_whatever_the_folders_name(tmp_path, monkeypatch, name):
    """In a URL a question mark ends the path: all runs below it shared one study beside them; a brace was an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    run = create_run(Path(name), "small-1")
    measured = ProbeResult(requested=Point(num_envs=8, batch_size=256), status="ok", grade="quick", sps=10.0)
    add_probe_trial(run, "grid", measured)
    assert [file.name for file in run.path.glob("study.db*")] == ["study.db"]
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(load_trials(run)) == 1


def test_a_budget_of_few_long_probes_looks_around_before_it_confirms(tmp_path, run):
    """Each takes 85 s of 5 minutes: more than a probe's usual share, and too much for a final window."""
    surface = write_surface(tmp_path / "slow.csv", startup_s=65.0)
    found = search(surface, run, Watched(surface), budget_s=300.0)
    assert [record.stage for record in found.trials] == ["baseline", "rule of thumb", "spread"]
    assert not found.skipped and "quick, one launch" in found.result.flags


def test_a_search_finds_confirms_and_says_so(surface, run):
    executor = Watched(surface)
    found = search(surface, run, executor, price=2.0)
    assert smooth_sps(
        *(found.point.knobs()[k] for k in ("num_envs", "batch_size", "concurrency"))
    ) >= 0.97 * best_stable(surface)
    stages = [record.stage for record in found.trials]
    assert stages[:2] == ["baseline", "rule of thumb"]
    assert stages[-1] == "final"
    assert found.result.grade == "final"
    assert found.rule_of_thumb.requested == Point(num_envs=32, batch_size=256, concurrency=1)
    assert found.counts["oom"] == found.counts["host_lost"] == 0
    assert found.result.goodput_per_usd(found.price_usd_per_hour) == pytest.approx(1800 * found.result.sps)
    text = sentence(found)
    assert text.startswith(found.point.label())
    assert f"best of the {found.points_measured} points measured" in text
    assert "launches), the only point measured in " in sentence(replace(found, points_measured=1))
    assert "x the baseline (num_envs=8 batch_size=256 concurrency=1;" in text
    assert found.spent_s == pytest.approx(executor.clock_s()) and found.spent_s <= 700
    assert run.state()["spent_s"] == pytest.approx(found.spent_s)
    for rung in found.ladder:
        assert found.point.dominates(rung.requested) and rung.sps > 0


def test_every_measurement_is_in_the_study(surface, run):
    found = search(surface, run, price=2.0, budget_s=400.0)
    assert load_trials(run) == found.trials
    with sqlite3.connect(run.study_file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run.study_file}")
    assert len(study.trials) == len(found.trials)
    first = study.trials[0]
    assert first.params == {"num_envs": 8, "batch_size": 256, "concurrency": 1}
    assert first.value == pytest.approx(3600 * found.baseline.sps / 2.0)
    assert set(first.user_attrs["started"]) == {"boot_id", "pid", "time", "clock_s", "predicted_s"}


def test_commits_are_synchronous(run):
    study = trials.open_study(run)
    with study._storage._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_the_budget_binds_whatever_happens(tmp_path):
    words = iter(["ok", "timeout", "crashed", "host_lost"] * 100)
    fates: dict[tuple[int, int, int], str] = {}

    def fate(*knobs):
        return fates.setdefault(knobs, "ok" if knobs == (8, 256, 1) else next(words))

    path = write_surface(tmp_path / "hostile.csv", status=fate)
    for budget_s in (100.0, 333.0, 1000.0):
        executor = Watched(path)
        found = search(path, create_run(tmp_path, f"run-{budget_s:.0f}"), executor, budget_s=budget_s)
        assert executor.clock_s() <= budget_s
        assert found.spent_s == pytest.approx(executor.clock_s())
        assert all(request.plan.timeout_s <= budget_s for request in executor.requests)


def test_a_probe_cut_by_the_budget_blames_no_point(tmp_path):
    slow = write_surface(tmp_path / "slow.csv", status=lambda e, b, k: "ok" if (e, b, k) == (8, 256, 1) else "timeout")
    run = create_run(tmp_path, "run-1")
    found = search(slow, run, budget_s=150.0)
    cut = [record for record in found.trials if record.result.status == "timeout"]
    assert [record.counts for record in cut] == [False]
    assert found.counts["timeout"] == 0


@pytest.mark.parametrize(("pauses", "counted"), [(1, [False]), (99, [False, True])])
def test_a_probe_that_timed_out_while_the_search_stood_still_is_run_once_more(surface, run, pauses, counted):
    """Whoever presses Ctrl-Z condemns no point; one that hangs whenever it runs is condemned all the same."""
    baseline, left = surface_recipe(surface).baseline, [True] * pauses

    class Paused(Watched):
        def run(self, request):
            result = super().run(request)
            if request.point != baseline or not (left and left.pop()):
                return result
            return replace(result, status="timeout", sps=None, flags=(PAUSED,))

    found = search(surface, run, Paused(surface))
    told = [record for record in found.trials if record.result.requested == baseline]
    assert [record.counts for record in told if record.result.status == "timeout"] == counted
    assert found.counts["timeout"] == sum(counted)
    assert told[-1].result.ok == (pauses == 1)


def test_a_budget_too_short_for_two_probes_says_how_long_is_needed(surface, run):
    with pytest.raises(UsageError, match=r"--budget 50s is too short.*about 1m"):
        search(surface, run, budget_s=50.0)
    assert not run.study_file.exists()


def test_without_room_for_a_final_window_nothing_firmer_is_said(surface, run):
    found = search(surface, run, budget_s=110.0)
    assert found.result.grade == "quick"
    assert "quick, one launch" in found.result.flags
    assert "(quick, one launch)" in sentence(found)


def test_nothing_that_dominates_a_failure_or_breaks_the_limit_is_run(tmp_path):
    path = write_surface(tmp_path / "tight.csv", vram_limit=6 * GIB, ram_limit=14 * GIB, noise=0.01)
    executor = Watched(path)
    found = search(path, create_run(tmp_path, "run-1"), executor, budget_s=1800.0, study=memory())
    failed: list[Point] = []
    for record in found.trials:
        assert not any(record.result.requested.dominates(point) for point in failed)
        if not record.result.ok:
            failed.append(record.result.requested)
        else:
            assert record.result.vram_peak_bytes <= 0.9 * 6 * GIB
            assert record.result.ram_peak_bytes <= 0.9 * 14 * GIB
    assert failed == []


def test_all_failed_is_infeasible(tmp_path):
    path = write_surface(tmp_path / "dead.csv", status=lambda *_: "crashed")
    executor = Watched(path)
    with pytest.raises(InfeasibleError, match="no point of recipe 'dead' ran stably: 3 probes failed") as caught:
        search(path, create_run(tmp_path, "run-1"), executor)
    assert caught.value.exit_code == 3
    assert [r.point.label() for r in executor.requests] == [
        "num_envs=8 batch_size=256 concurrency=1",
        "num_envs=32 batch_size=256 concurrency=1",
        "num_envs=8 batch_size=64 concurrency=1",
    ]


def test_points_that_slowed_down_are_not_said_to_have_failed(tmp_path, run):
    path = write_surface(tmp_path / "hot.csv", baseline="num_envs=8 batch_size=64 concurrency=1")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line[0].isdigit() or line.startswith("8,64,1,")) + "\n")
    executor = SlowsDown(path)
    executor.victim = Point(num_envs=8, batch_size=64)
    words = "no point of recipe 'hot' is stable: num_envs=8 batch_size=64 concurrency=1 slowed down within the window"
    with pytest.raises(InfeasibleError, match=words) as caught:
        search(path, run, executor, budget_s=1800.0)
    assert "failed" not in str(caught.value)


def test_an_infeasible_surface_has_no_logs_but_a_recipe_does(tmp_path):
    path = write_surface(tmp_path / "dead.csv", status=lambda envs, *_: "oom" if envs == 8 else "crashed")
    with pytest.raises(InfeasibleError) as caught:
        search(path, create_run(tmp_path, "run-1"))
    assert "2 probes failed (2 oom). The surface has no point that ran among those that the" in str(caught.value)
    assert "logs" not in str(caught.value)
    recipe = replace(surface_recipe(path), workload="busywork")
    with pytest.raises(InfeasibleError, match=r"Look at the logs .*\(--baseline: a failed point forbids heavier ones"):
        run_study(recipe, ReplayExecutor(path), create_run(tmp_path, "run-2"), budget_s=600.0)


def test_what_is_refused_everywhere_is_no_matter_of_settings(tmp_path):
    """It was advised to begin with other settings, behind the last line that the program had printed."""
    path = write_surface(tmp_path / "dead.csv", status=lambda *_: "crashed")

    class Refusing(ReplayExecutor):
        def run(self, request: ProbeRequest) -> ProbeResult:
            detail = "the program ended with exit code 2; the last lines were:\nno such option"
            return replace(super().run(request), flags=(REFUSED,), detail=detail)

    recipe = replace(surface_recipe(path), workload="busywork")
    with pytest.raises(InfeasibleError) as caught:
        run_study(recipe, Refusing(path), create_run(tmp_path, "run-1"), budget_s=600.0)
    told = str(caught.value)
    assert "Each time the program ended by itself before it was measured: correct the command" in told
    assert "--baseline" not in told and told.endswith("the last lines were:\nno such option")


def test_a_sampler_that_proposes_only_what_is_refused_ends_the_search_but_not_its_finals(tmp_path, run):
    """Most of the surface is forbidden soon: all of the budget was said to be spent, and nothing was confirmed."""
    surface = write_surface(
        tmp_path / "narrow.csv",
        status=lambda envs, batch, processes: "ok" if envs * processes <= 8 and batch <= 256 else "oom",
        baseline="num_envs=8 batch_size=64 concurrency=1",
    )
    executor = Watched(surface)
    found = search(surface, run, executor, budget_s=1800.0, sampler="random")
    assert sum(record.stage == "refused" for record in found.trials) >= 30
    assert found.spent_s == executor.clock_s()
    assert found.result.grade == "final"
    assert found.ended == "known"


def test_tries_come_first_and_impossible_ones_are_refused(surface, run):
    tried = Point(num_envs=16, batch_size=128, concurrency=2)
    found = search(surface, run, tries=[tried], budget_s=300.0)
    assert [(record.stage, record.result.requested) for record in found.trials][2] == ("try", tried)
    with pytest.raises(UsageError, match="more than the 4 jobs"):
        search(surface, run, tries=[replace(tried, concurrency=5)])


def test_an_unsafe_rule_of_thumb_waits_until_it_is_known_to_fit(tmp_path):
    path = write_surface(tmp_path / "big.csv", cores=32, vram_limit=10 * GIB, ram_limit=16 * GIB)
    found = search(path, create_run(tmp_path, "run-1"), budget_s=1800.0, study=memory())
    stages = [record.stage for record in found.trials]
    assert stages[1] == "spread"
    assert found.rule_of_thumb is None or stages.index("rule of thumb") > 1
    assert found.counts["oom"] == found.counts["host_lost"] == 0


def test_events_tell_a_viewer_what_goes_on(surface, run):
    events: list[SearchEvent] = []
    search(surface, run, budget_s=300.0, on_event=events.append)
    assert [event.result is None for event in events[:4]] == [True, False, True, False]
    assert (events[0].stage, events[0].best, events[0].left_s, events[0].number) == ("baseline", None, 300.0, 0)
    assert events[1].result.requested == events[1].best.requested == events[0].point
    assert events[-1].left_s == pytest.approx(300.0 - sum(e.result.cost_s for e in events if e.result))


def test_stopping_keeps_the_best_so_far(surface, run):
    asked = iter([False] * 4 + [True])
    found = search(surface, run, should_stop=lambda: next(asked))
    assert found.interrupted
    assert len(found.trials) == 4
    assert found.result.sps == max(record.result.sps for record in found.trials)


def test_an_interrupted_probe_blames_no_point_and_the_search_goes_on(surface, tmp_path):
    run = create_run(tmp_path, "run-1")
    executor = Watched(surface, raise_at=3)
    found = search(surface, run, executor)
    assert found.interrupted and len(found.trials) == 3
    events: list[SearchEvent] = []
    more = search(surface, run, Watched(surface), on_event=events.append)
    assert not more.interrupted
    ran = [record for record in more.trials[3:] if record.stage != "refused"]
    assert [event.number for event in events if event.result] == [record.number for record in ran]
    assert events[0].number == 4, "the interrupted probe has a number, too"
    assert [record.result for record in more.trials[:3]] == [record.result for record in found.trials]
    assert more.counts["crashed"] == 0
    assert [r.result.requested for r in more.trials][3] == executor.requests[3].point


def test_a_resumed_search_gets_what_was_left(surface, tmp_path):
    run = create_run(tmp_path, "run-1")
    first = search(surface, run, Watched(surface, raise_at=8), budget_s=600.0)
    executor = Watched(surface)
    second = search(surface, run, executor, budget_s=600.0)
    assert executor.clock_s() <= 600.0 - first.spent_s
    assert second.spent_s == pytest.approx(first.spent_s + executor.clock_s())
    idle = Watched(surface)
    third = search(surface, run, idle, budget_s=600.0)
    assert third.point == second.point and idle.clock_s() <= 600 - second.spent_s


@pytest.mark.parametrize("sampler", ["autotune", "tpe", "random", "grid", "hillclimb"])
def test_a_resumed_sampler_proposes_what_an_uninterrupted_one_does(surface, tmp_path, sampler):
    whole = search(surface, create_run(tmp_path, "whole"), budget_s=360.0, sampler=sampler, seed=5)
    run = create_run(tmp_path, "parts")
    asked = iter([False] * 7 + [True])
    search(surface, run, budget_s=360.0, sampler=sampler, seed=5, should_stop=lambda: next(asked))
    parts = search(surface, run, budget_s=360.0, sampler=sampler, seed=5)
    assert [r.result.requested for r in parts.trials] == [r.result.requested for r in whole.trials]
    assert parts.result == whole.result


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def kill_at(surface, run: Run, number: int, boot_id: str | None = None) -> Watched:
    executor = Watched(surface, raise_at=number, error=Killed)
    with pytest.raises(Killed):
        search(surface, run, executor)
    return executor


def test_killed_at_a_probe_it_loses_only_that_one(surface, run):
    lost = kill_at(surface, run, 4).requests[4].point
    assert len(load_trials(run)) == 4
    found = search(surface, run)
    record = found.trials[4]
    assert (record.result.requested, record.result.status, record.result.flags) == (lost, "crashed", (IGNORED,))
    assert found.counts["crashed"] == 0
    assert lost in [r.result.requested for r in found.trials[5:]]  # one more chance


def test_a_point_that_kills_the_search_twice_is_not_tried_again(surface, run):
    lost = kill_at(surface, run, 4).requests[4].point
    second = Watched(surface, raise_at=0, error=Killed)
    with pytest.raises(Killed):
        search(surface, run, second)
    assert second.requests[0].point == lost
    executor = Watched(surface)
    found = search(surface, run, executor)
    assert found.counts["crashed"] == 1
    assert not any(request.point.dominates(lost) for request in executor.requests)


def test_a_point_that_ran_between_two_kills_is_not_condemned(surface, run, tmp_path):
    """Kills that hit one point by chance forbade it, and the finalist with it."""
    whole = search(surface, create_run(tmp_path, "whole"))
    at = [record.result.requested for record in whole.trials].index(whole.point)
    assert kill_at(surface, run, at).requests[at].point == whole.point
    second = Watched(surface)
    measure = second.run

    def killed_at_its_second_probe(request):
        if whole.point in [earlier.point for earlier in second.requests] and request.point == whole.point:
            raise Killed
        return measure(request)

    second.run = killed_at_its_second_probe
    with pytest.raises(Killed):
        search(surface, run, second)
    found = search(surface, run)
    assert found.counts["crashed"] == 0
    assert found.point == whole.point


def test_a_restarted_machine_condemns_the_point(surface, run):
    lost = kill_at(surface, run, 4).requests[4].point
    executor = Watched(surface)
    executor.device = replace(executor.device, host=replace(executor.device.host, boot_id="another"))
    found = search(surface, run, executor)
    assert found.trials[4].result.status == "host_lost"
    assert found.counts["host_lost"] == 1
    assert not any(request.point.dominates(lost) for request in executor.requests)


def kill_after(monkeypatch, module, name, calls):
    """From then on a killed process: the call is carried out, and nothing after it."""
    original, left = getattr(module, name), iter(range(calls - 1, -1, -1))

    def carried_out(*arguments, **options):
        returned = original(*arguments, **options)
        if next(left) == 0:
            raise Killed
        return returned

    monkeypatch.setattr(module, name, carried_out)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("boot_id", [None, "another"])
def test_a_probe_that_was_measured_but_not_told_is_not_lost(surface, run, monkeypatch, boot_id):
    """Killed, or the power lost, in the moment between: the point is neither tried again nor condemned."""
    executor = Watched(surface)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, trials, "constraints", 4)
        search(surface, run, executor)
    assert len(load_trials(run)) == 3
    resumed = Watched(surface)
    if boot_id:
        resumed.device = replace(resumed.device, host=replace(resumed.device.host, boot_id=boot_id))
    found = search(surface, run, resumed)
    assert [trial.result for trial in found.trials[:4]] == [trial.result for trial in load_trials(run)[:4]]
    assert found.trials[3].result.ok and found.trials[3].result.requested == executor.requests[3].point
    assert (found.counts["crashed"], found.counts["host_lost"]) == (0, 0)
    assert found.spent_s == pytest.approx(sum(trial.result.cost_s for trial in found.trials))


def test_a_kill_before_the_seconds_are_noted_gives_none_back(surface, run, monkeypatch):
    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, trials, "finish", 2)
            search(surface, run, Watched(surface))
    spent_s = sum(trial.result.cost_s for trial in load_trials(run))
    executor = Watched(surface)
    found = search(surface, run, executor)
    assert found.spent_s == pytest.approx(spent_s + executor.clock_s())


def test_a_lost_probe_is_charged(surface, run):
    executor = kill_at(surface, run, 4)
    before_s = executor.clock_s() - 5.0
    clock = Watched(surface)
    clock._clock_s = executor.clock_s() + 60.0
    found = search(surface, run, clock, budget_s=before_s + 35.0 + 31.0)
    assert found.trials[4].result.cost_s == pytest.approx(30.0, abs=6.0)
    assert len(found.trials) <= 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "hillclimb"])
def test_other_samplers_run_under_the_same_rules(surface, run, sampler):
    found = search(surface, run, sampler=sampler)
    assert found.counts["oom"] == found.counts["host_lost"] == 0
    assert found.result.grade == "final"
    values = surface_recipe(surface).knobs
    for record in found.trials:
        assert all(value in values[name] for name, value in record.result.requested.knobs().items())


def test_an_unknown_sampler_lists_those_there_are(surface, run):
    with pytest.raises(UsageError, match=r"unknown sampler 'anneal'.*There are: autotune, tpe"):
        search(surface, run, sampler="anneal")


def test_probe_rows_are_trials_too(surface, run):
    result = ProbeResult(requested=Point(num_envs=5, batch_size=100), status="ok", grade="quick", sps=10.0)
    failed = ProbeResult(requested=Point(num_envs=500, batch_size=100), status="oom", grade="quick")
    add_probe_trial(run, "probe", result)
    add_probe_trial(run, "probe", failed)
    assert [(r.number, r.stage, r.result) for r in load_trials(run)] == [(0, "probe", result), (1, "probe", failed)]
    study = trials.open_study(run)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert history_of(study.trials) == [result, failed]


def test_a_damaged_study_is_a_message(surface, run):
    run.study_file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(FileError, match=r"cannot use .*study\.db: .*not a database"):
        search(surface, run)
    with pytest.raises(FileError, match="cannot use"):
        load_trials(run)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [("v3.0.0.d", r"`optuna storage upgrade --storage sqlite:///\S*/study\.db`"), ("v9.0.0.a", "updating optuna")],
)
def test_a_study_of_another_version_of_optuna_is_a_message(surface, run, version, remedy):
    search(surface, run)
    with sqlite3.connect(run.study_file) as database:
        assert database.execute("UPDATE alembic_version SET version_num = ?", [version]).rowcount == 1
    database.close()
    for use in (load_trials, lambda run: search(surface, run)):
        with pytest.raises(FileError, match=rf"cannot use .*study\.db: .*{remedy}.* Or leave it alone"):
            use(run)


@pytest.mark.parametrize("left", [None, b""])
def test_a_study_that_is_gone_is_not_begun_anew_in_silence(surface, run, left):
    search(surface, run, Watched(surface, raise_at=3))
    run.study_file.unlink()
    if left is not None:
        run.study_file.write_bytes(left)
    with pytest.raises(FileError, match=r"study\.db is (missing|empty), .* spent on it: restore it, .* --new"):
        search(surface, run)
    assert load_trials(run) == ()
    assert not run.study_file.exists() or not run.study_file.stat().st_size, "reading makes no study"


def test_a_run_without_a_study_has_no_trials(run):
    assert load_trials(run) == ()


def test_a_timeout_grows_with_the_prediction_and_never_beyond_the_budget(tmp_path):
    """A probe that is known to take 220 s gets three times that, where 300 s are the rule."""
    path = write_surface(tmp_path / "slow.csv", startup_s=200.0)
    executor = Watched(path)
    found = search(path, create_run(tmp_path, "run-1"), executor, budget_s=2000.0, study=memory())
    patience_s = [request.plan.timeout_s for request in executor.requests]
    predicted_s = [record.started["predicted_s"] for record in found.trials]
    assert patience_s[:2] == pytest.approx([660.0, 660.0]) and predicted_s[0] == 220.0
    spent_s = 0.0
    for asked_s, expected_s, record in zip(patience_s, predicted_s, found.trials, strict=True):
        assert asked_s == pytest.approx(min(max(300.0, 3 * expected_s), 2000.0 - spent_s))
        spent_s += record.result.cost_s
    assert found.counts["timeout"] == 0


def test_points_too_costly_to_measure_are_listed(tmp_path):
    """From 3 processes on a start takes 100 s: more than 15 % of ten minutes."""
    path = write_surface(tmp_path / "small.csv", noise=0.01)
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines if line[0].isdigit()]
    for row in rows:
        row[6] = str(10.0 + 45.0 * max(0, int(row[2]) - 1))
    path.write_text("\n".join([line for line in lines if not line[0].isdigit()] + [",".join(row) for row in rows]))
    found = search(path, create_run(tmp_path, "run-1"), budget_s=600.0)
    assert found.skipped and {point.concurrency for point, _ in found.skipped} <= {3, 4}
    assert all(predicted_s > 0.15 * 600.0 for _, predicted_s in found.skipped)
    assert f"{len(found.skipped)} points were left out: each would take over 15 % of the budget" in economy(found)


def test_what_remains_of_the_budget_soaks_the_winner(surface, run):
    found = search(surface, run, budget_s=1800.0, price=2.0, study=memory())
    soaks = [record for record in found.trials if record.stage == "soak"]
    assert len(soaks) >= 2 and {record.result.grade for record in soaks} == {"final"}
    assert soaks[-1].result.requested == found.point
    own = [r.result for r in found.trials if r.result.requested == found.point]
    assert found.observed_s == pytest.approx(sum(r.cost_s - r.startup_s for r in own))
    assert 1800.0 - found.spent_s < 60.0 + 1e-6, "less is left than another window takes"
    assert f"at most {-math.log(0.05) / (found.observed_s / 3600):.3g} per hour" in economy(found)


def test_the_references_get_a_final_window_where_the_budget_has_room(surface, run):
    found = search(surface, run, budget_s=1800.0, study=memory())
    assert found.baseline.grade == found.rule_of_thumb.grade == "final"


class SlowsDown(Watched):
    """One point slows down within each of its final windows."""

    def run(self, request: ProbeRequest) -> ProbeResult:
        result = super().run(request)
        if request.grade == "final" and request.point == self.victim:
            return replace(result, flags=(*result.flags, "slowing"))
        return result


def test_a_point_that_slows_down_in_two_launches_is_not_recommended(surface, tmp_path):
    first = search(surface, create_run(tmp_path, "run-1"), budget_s=1800.0, study=memory())
    executor = SlowsDown(surface)
    executor.victim = first.point
    second = search(surface, create_run(tmp_path, "run-2"), executor, budget_s=1800.0, study=memory())
    assert second.point != first.point
    assert sum("slowing" in r.result.flags for r in second.trials) == 2, "it is not measured a third time"


def test_a_recorded_probe_takes_what_the_others_took_however_slow_its_steps(tmp_path, run):
    """At 0.1 SPS 64 environments would take ten minutes an iteration; a surface says what its probes take."""
    path = write_surface(tmp_path / "small.csv", noise=0.01, baseline="num_envs=64 batch_size=256 concurrency=1")
    lines = [line for line in path.read_text().splitlines() if not line[0].isdigit() or line.startswith("64,")]
    path.write_text(re.sub(r",ok,([0-9.]+),", r",ok,\1e-6,", "\n".join(lines)))
    found = search(path, run, budget_s=900.0, study=memory())
    assert not found.skipped
    slow_sps = 1e-6 * smooth_sps(found.point.num_envs, found.point.batch_size, found.point.concurrency)
    assert slow_sps >= 0.95 * best_stable(path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE trial_user_attributes SET value_json = substr(value_json, 1, 40) || char(7)",
        "UPDATE trial_user_attributes SET value_json = replace(value_json, 'requested', 'Requested')",
        "UPDATE trial_user_attributes SET value_json = '3' WHERE key = 'result'",
        "UPDATE trials SET state = 'COMPLETF'",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trial_values SET value_type = 'FINITF'",
        "UPDATE trials SET datetime_start = 'yesterday'",
        "UPDATE trial_values SET value = NULL",
    ],
)
def test_a_study_with_a_flipped_bit_is_a_message(surface, run, damage):
    search(surface, run, Watched(surface, raise_at=3))
    with sqlite3.connect(run.study_file) as database:
        assert database.execute(damage).rowcount > 0
    database.close()
    for use in (load_trials, lambda run: search(surface, run)):
        with pytest.raises(FileError, match=r"cannot use .*study\.db: .*damaged"):
            use(run)
