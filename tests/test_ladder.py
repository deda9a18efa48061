"""Sessions of a training as its events tell them, and the ladder that it steps down."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

from autotune.availability import availability
from autotune.device.inspect import inspect_device
from autotune.manifest import Manifest, build_manifest, manifest_hash
from autotune.manifest_schema import Stability
from autotune.records import Budget, Job, MeasurePlan, Point, ProbeResult, Recipe
from autotune.report.render import render_report
from autotune.report.training import load_training
from autotune.store import append_line
from autotune.train.events import Event, read_events
from autotune.train.folder import open_training_run
from autotune.train.ladder import choose_rung, rungs_of
from autotune.train.sessions import sessions_of
from autotune.train.supervise import supervise

HEAVY, MIDDLE, LIGHT = (Point(num_envs=n, batch_size=64, concurrency=1) for n in (32, 16, 8))
QUICK = {"rollout": 8, "env_s": 1e-5, "step_overhead_s": 1e-3, "learn_s": 0.0, "minibatch_overhead_s": 0.0}
PLAN = MeasurePlan(discard_s=0.1, discard_iterations=2)
START = datetime(2026, 1, 1, tzinfo=UTC)


def a_manifest(
    sps: float | None = 1000.0, ladder: tuple[tuple[Point, float | None], ...] = ((MIDDLE, 800.0), (LIGHT, 500.0))
) -> Manifest:
    recipe = Recipe(
        name="quick",
        workload="busywork",
        hyperparameters=QUICK,
        jobs=tuple(Job(id=f"job-{n}", env="busy", seed=n, budget=Budget(unit="steps", amount=2000)) for n in (1, 2)),
        knobs={},
        grid={},
        baseline=LIGHT,
    )
    result = ProbeResult(requested=HEAVY, status="ok", grade="final", sps=sps, job_sps=(sps,)) if sps else None
    return build_manifest(recipe, HEAVY, result=result, ladder=ladder)


class Story:
    """Writes the events of a training, minute by minute."""

    def __init__(self, manifest: Manifest, device: str = "here") -> None:
        self.manifest, self.device, self.events = manifest, device, list[dict[str, Any]]()
        self.minute, self.boot = 0.0, 0

    def add(self, kind: str, job: str | None = None, **facts: Any) -> None:
        time = (START + timedelta(minutes=self.minute)).isoformat()
        self.events.append({"kind": kind, "job": job, "time": time, "boot_id": f"boot-{self.boot}", **facts})

    def opening(self, **facts: Any) -> dict[str, Any]:
        return {"manifest": manifest_hash(self.manifest), "device": self.device, **facts}

    def open(self, point: Point = HEAVY) -> None:
        step = self.step()
        if step.stepped:
            self.add("stepped", point=step.rung.point.knobs(), detail=step.why)
        assert step.rung.point == point
        self.add("opened", **self.opening(point=point.knobs()))
        self.add("started", "job-1")

    def run(self, minutes: float, point: Point = HEAVY, *, ends: str = "", last: str = "saved") -> None:
        """Train so long, its last sign at the end; then `ends` is what happens to the job, if not to the machine."""
        self.open(point)
        self.minute += minutes
        self.add(last, "job-1", cost_s=1.0)
        if ends == "oom":
            self.add("crashed", "job-1", error="oom")
        elif ends:
            self.add(ends, "job-1", error="crashed")
        if ends:
            self.add("ended", state=ends, seconds=minutes * 60)

    def reboot(self, minutes: float = 3.0) -> None:
        self.minute, self.boot = self.minute + minutes, self.boot + 1

    def step(self) -> Any:
        time = (START + timedelta(minutes=self.minute)).isoformat()
        opening: Event = {"kind": "opened", "job": None, "time": time, "boot_id": f"boot-{self.boot}", **self.opening()}
        return choose_rung(self.manifest, self.events, opening)


def test_three_restarts_of_the_machine_in_eighteen_minutes_are_a_sixth_of_the_time() -> None:
    """Trained 5 minutes each and was down for 1, three times: 16.7 % of 18 minutes."""
    story = Story(a_manifest(ladder=()))
    for _ in range(3):
        story.run(5)
        story.reboot(1)
    story.open()
    found = sessions_of(story.events)
    assert [session.host_lost for session in found] == [True, True, True, False]
    down_s, trained_s = sum(each.down_s for each in found), sum(each.seconds for each in found)
    assert (trained_s, down_s) == (900, 180)
    assert down_s / (trained_s + down_s) == pytest.approx(0.1667, abs=0.002)
    assert found[0].saving_s == (1.0,) and found[0].point == HEAVY.knobs()


@pytest.mark.parametrize("ends", ["killed", "stopped", "crashed", "finished", "elsewhere", "idle"])
def test_what_is_no_failure_of_the_point_costs_no_rung(ends: str) -> None:
    """A supervisor that was killed, a training that ended before the reboot, another machine, nothing running."""
    story = Story(a_manifest())
    for n in range(4):
        story.run(5, ends=ends if ends in ("stopped", "crashed", "finished") else "")
        if ends == "idle":
            story.add("stopped", "job-1")
        if ends != "killed":
            story.reboot()
        if ends == "elsewhere":
            story.device = f"machine-{n}"
    step = story.step()
    assert step.rung.point == HEAVY and not step.stepped and not step.why
    assert step.rung.failures == 0


@pytest.mark.parametrize("fault", ["reboot", "oom"])
def test_a_rung_that_fails_twice_soon_is_left_for_a_lighter_one(fault: str) -> None:
    story = Story(a_manifest())
    for point in (HEAVY, MIDDLE):
        for _ in range(2):
            story.run(2, point, ends="" if fault == "reboot" else "oom")
            if fault == "reboot":
                story.reboot()
    step = story.step()
    assert step.stepped and step.rung.point == LIGHT
    words = "the machine went down 2 times" if fault == "reboot" else "a job ran out of memory 2 times"
    assert f"num_envs=16 batch_size=64 concurrency=1 is unstable: {words} in 4m of training" in step.why
    assert "steps down to num_envs=8" in step.why and "take the ladder out" in step.why
    for _ in range(5):
        story.run(2, LIGHT)
        story.reboot()
    assert story.step().rung.point == LIGHT, "there is no lighter one: it goes on, and never up"
    assert not story.step().stepped


def test_the_faster_of_lighter_rungs_is_taken_whatever_their_order() -> None:
    story = Story(a_manifest(ladder=((MIDDLE, 100.0), (LIGHT, 500.0))))
    for _ in range(2):
        story.run(2)
        story.reboot()
    assert story.step().rung.point == LIGHT


def test_hours_until_somebody_came_back_are_no_fault_of_the_point() -> None:
    """A rented session that ends every twelve hours, and goes on twelve later: slower training would change nothing."""
    story = Story(a_manifest())
    for _ in range(3):
        story.run(12 * 60)
        story.reboot(12 * 60)
    step = story.step()
    assert step.rung.failures == 3 and step.rung.point == HEAVY and not step.stepped
    assert step.rung.kept == pytest.approx(availability(3600 / (3.5 / 36), 600.0, 1.0, 60.0))


def test_failures_that_cost_less_than_a_lighter_rung_change_nothing() -> None:
    """Twice in 40 hours is 0.0625 an hour: nearly all the time is kept, a fifth of the speed would not be."""
    story = Story(a_manifest())
    for _ in range(2):
        story.run(20 * 60)
        story.reboot()
    step = story.step()
    assert step.rung.point == HEAVY and not step.stepped
    assert "is unstable: the machine went down 2 times" in step.why and "so training stays" in step.why
    interval_s = Stability().checkpoint_interval_s
    assert step.rung.kept == pytest.approx(availability(3600 / (2.5 / 40), 180.0, 1.0, interval_s))
    assert step.rung.goodput_sps == pytest.approx(1000.0 * step.rung.kept)
    slow = Story(a_manifest(ladder=((MIDDLE, 999.0),)))
    slow.events, slow.minute, slow.boot = [dict(event) for event in story.events], story.minute, story.boot
    for event in slow.events:
        event.update({"manifest": manifest_hash(slow.manifest)} if event["kind"] == "opened" else {})
    assert slow.step().rung.point == MIDDLE, "one that is as fast is worth it"


@pytest.mark.parametrize("sps", [(None, (None, None)), (1000.0, (None, None)), (None, (800.0, 500.0))])
def test_where_a_speed_is_unknown_it_is_one_rung_at_a_time(sps: Any) -> None:
    tuned, rungs = sps
    story = Story(a_manifest(tuned, tuple(zip((MIDDLE, LIGHT), rungs, strict=True))))
    for _ in range(2):
        story.run(2)
        story.reboot()
    assert story.step().rung.point == MIDDLE


def test_an_edited_manifest_is_judged_anew_and_one_without_a_ladder_stays() -> None:
    story = Story(a_manifest())
    for _ in range(2):
        story.run(2)
        story.reboot()
    story.run(60, MIDDLE, ends="stopped")
    story.manifest = a_manifest(ladder=())
    assert story.step().rung.point == HEAVY
    story.manifest = a_manifest(ladder=((MIDDLE, 900.0),))
    step = story.step()
    assert step.rung.point == MIDDLE and step.stepped, "what failed on this machine has failed, whatever else is edited"
    story.add("edited", **story.opening(point=MIDDLE.knobs()))
    story.open(MIDDLE)
    again = story.step()
    assert again.rung.point == MIDDLE and not again.stepped and "steps down to" in again.why, "said at every start"
    assert {rung.point: rung.hosts_lost for rung in rungs_of(story.manifest, story.events, "here")}[HEAVY] == 2


def test_training_goes_on_at_the_rung_and_the_report_tells_of_it(tmp_path: Path) -> None:
    """Through real workers: the machine went down twice at the tuned point, then the same command."""
    manifest, device, said = a_manifest(), inspect_device("cpu"), list[str]()
    run = open_training_run(tmp_path / "elsewhere.json", manifest, tmp_path)
    story = Story(manifest, device.fingerprint)
    for _ in range(2):
        story.run(10, last="warning")
        story.reboot(2)
    run.train_folder.mkdir(parents=True)
    for event in story.events:
        append_line(run.train_folder / "events.jsonl", event)
    result = supervise(manifest, run, device=device, plan=PLAN, warn=said.append)
    assert [job.status for job in result.jobs] == ["done", "done"] and result.predicted_sps == 800.0
    events = read_events(run)
    assert next(event for event in reversed(events) if event["kind"] == "opened")["point"] == MIDDLE.knobs()
    assert next(event for event in events if event["kind"] == "ready")["effective"]["num_envs"] == 16
    assert any("steps down to num_envs=16" in sentence for sentence in said)
    training = load_training(run)
    assert training is not None and training.hosts_lost == 2


def test_jobs_that_ran_out_of_memory_twice_go_on_at_a_lighter_rung_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, device, said = a_manifest(), inspect_device("cpu"), list[str]()
    heavy = manifest.workload.hyperparameters | {"fail": "oom", "fail_num_envs": 32}
    manifest = manifest.model_copy(update={"workload": manifest.workload.model_copy(update={"hyperparameters": heavy})})
    run = open_training_run(tmp_path / "elsewhere.json", manifest, tmp_path)
    result = supervise(manifest, run, device=device, plan=PLAN, warn=said.append)
    assert [job.status for job in result.jobs] == ["done", "done"], said
    kinds = [event["kind"] for event in read_events(run)]
    assert kinds.count("crashed") == 2 and kinds.count("stepped") == 1 and kinds.count("opened") == 2


def test_the_report_says_what_restarts_of_the_machine_cost(tmp_path: Path) -> None:
    """It said 'no crash' of a machine that went down every ten minutes, and left the time in between out."""
    run = make_run(tmp_path)
    story = Story(a_manifest())
    for _ in range(2):
        story.run(10)
        story.reboot(2)
    story.run(30, MIDDLE, ends="stopped")
    folder = run.train_folder / "jobs" / "job-1"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("time,seconds,env_steps,episodes,sps\nt,3000,20000,0,7\n")
    (run.train_folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in story.events))
    told = render_report(run, price=2.0).markdown.read_text()
    assert "- **The machine went down in training:** 2 times; see below." in told
    assert "The machine went down 2 times in 50m of training: about 3 times per hour, at most 7.55 (95 %)" in told
    assert "Until training went on 4m passed, 7.4 % of all the time: losing as much, the jobs cost" in told
    assert "with a checkpoint every 48s (now 1m: `checkpoint_interval_s`)" in told
    assert (
        "had the machine for 50m, 1.67 USD, each start to its last event; the machine was down for 4m, 0.13 USD" in told
    )
    unstable = "batch\\_size=64 concurrency=1 is unstable: the machine went down 2 times in 20m of training at it"
    assert "a part of it ran at a lighter point than the prediction's" in told
    assert f"- Stepped down: num\\_envs=32 {unstable}, which leaves 72% of its 1,000 SPS" in told
