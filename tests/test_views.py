"""Tables and JSON objects for stdout."""

from report_run import make_run, result

from autotune.records import Budget, Job, JobResult, Point, TrainResult
from autotune.runs import Run, create_run
from autotune.store import make_folder
from autotune.train.status import JobSnapshot, Snapshot, write_snapshot
from autotune.units import brief
from autotune.views import probe_table, probe_text, show_status, status_text, train_text

GIB = 2**30
SMALL, LARGE = Point(num_envs=8, batch_size=256), Point(num_envs=16, batch_size=256)


def test_what_each_observer_saw_of_the_vram_stands_side_by_side():
    probes = [
        result(SMALL, 100.0, vram_peak_bytes=3 * GIB, framework_peak_bytes=GIB, vram_process_bytes=2 * GIB,
               vram_device_delta_bytes=3 * GIB, threads_peak=1200),
        result(LARGE, detail="ran out of memory\nTraceback"),
    ]  # fmt: skip
    header, _, first, second = probe_table(probes).splitlines()
    assert " ".join(header.split()) == (
        "num_envs batch_size concurrency status SPS 95 % VRAM framework by process device delta RAM threads cores "
        "limited by"
    )
    assert "3.0 GiB  1.0 GiB      2.0 GiB       3.0 GiB" in first
    assert "1,200" in first
    assert ("oom" in second, "unknown" in second, "ran out of memory Traceback" in second) == (True, True, True)


def test_a_reason_that_is_cut_says_so():
    told = "batch_size=1024 is more than a rollout of one process, num_envs=8 x rollout=32 = 256"
    cut = probe_table([result(SMALL, detail=told)])
    assert cut.endswith("num_envs=8 x rollout=32 …") and len(told) > 80
    assert probe_table([result(SMALL, detail=told[:80])]).endswith(told[:80])


def test_a_machine_without_a_gpu_has_no_columns_for_one():
    table = probe_table([result(SMALL, 100.0, vram_peak_bytes=None, flags=("one launch", "shared cpu"))])
    assert "framework" not in table
    assert "device delta" not in table
    header, _, row = table.splitlines()
    assert "marks" in header
    assert "shared cpu" in row
    assert "one launch" not in row


def test_marks_are_explained_below_the_table():
    probes = [result(SMALL, 100.0, flags=("one launch", "shared cpu")), result(LARGE, 100.0, flags=("one launch",))]
    *_, last = probe_text(probes, []).splitlines()
    assert last == "shared cpu: other processes kept much of the CPU busy meanwhile"
    assert probe_text(probes[1:], []) == probe_table(probes[1:])


def test_a_table_of_nothing_is_empty():
    assert probe_table([]) == ""


def test_a_knob_of_some_probes_only():
    wide = Point(num_envs=8, batch_size=256, extra=(("precision", "bf16"),))
    header, _, first, second = probe_table([result(SMALL, 100.0), result(wide, 90.0)]).splitlines()
    assert header.split()[3:5] == ["precision", "status"]
    assert "bf16" not in first
    assert "bf16" in second


def test_a_probe_says_which_games_it_did_not_measure():
    steps = Budget(unit="steps", amount=1)
    jobs = [Job(id=env, env=env, seed=1, budget=steps) for env in ("Breakout-v5", "Pong-v5", "Freeway-v5")]
    two = result(Point(num_envs=8, batch_size=256, concurrency=2), 100.0, envs=("Breakout-v5", "Pong-v5"))
    one = result(SMALL, 100.0, envs=("Breakout-v5",))
    assert probe_text([one, two], jobs).splitlines()[-1] == (
        "measured with Breakout-v5, Pong-v5, not with Freeway-v5: concurrency 2 runs the first 2 jobs only"
    )
    assert probe_text([one], jobs).endswith("not with Pong-v5, Freeway-v5: concurrency 1 runs the first job only")
    assert "measured with" not in probe_text([one, two], jobs[:2])


def a_job(name: str, status: str, detail: str = "") -> JobSnapshot:
    counts = {"env_steps": 1234, "episodes": 5, "seconds": 6.0, "fraction": 0.5}
    unknown = dict.fromkeys(("sps", "mean_return", "best_return", "vram_bytes", "ram_bytes", "eta_s"))
    return JobSnapshot(id=name, env="e", status=status, detail=detail, **counts, **unknown)


def status_of(root, state: str, *jobs: JobSnapshot, **facts) -> str:
    run = create_run(root, f"r{len(list(root.iterdir()))}", command="train", **facts)
    if jobs:
        make_folder(run.train_folder)
        figures = {"sps": None, "measured_sps": None, "predicted_sps": None, "elapsed_s": 1.0, "updated": ""}
        write_snapshot(run, Snapshot(run=run.name, state=state, jobs=jobs, point="num_envs=8", **figures))
    return status_text(run)


def test_status_says_why_a_job_is_not_running(tmp_path):
    crashed = a_job("a", "crashed", "CartPole-v1 raised RuntimeError after 2684 steps: boom\nTraceback\nlast line")
    text = status_of(tmp_path, "crashed", crashed, a_job("b", "done"))
    assert "detail" in text
    assert "CartPole-v1 raised RuntimeError after 2684 steps: boom last line" in text
    assert "detail" not in status_of(tmp_path, "done", a_job("a", "done"))
    killed = status_of(tmp_path, "running", a_job("a", "running"))
    assert "its supervisor was killed; the same command resumes" in killed


def test_status_says_that_a_run_was_rolled_back(tmp_path):
    text = status_of(tmp_path, "", training="rolled back")
    assert f"rolled back; what was trained lies in {tmp_path / 'r0' / 'rolled-back'}" in text


def test_watching_wraps_no_table_where_there_is_no_terminal(tmp_path, capsys):
    status_of(tmp_path, "crashed", a_job("a", "crashed", "boom " * 30))
    run = Run(tmp_path / "r0")
    show_status(run, stderr=False)
    assert capsys.readouterr().out == f"{status_text(run)}\n"


def test_a_finished_search_without_a_stable_point_has_none_yet_to_come(tmp_path):
    run = make_run(tmp_path, [("baseline", result(SMALL, status="oom"))], tuned=None)
    assert status_text(run).endswith("none stable")
    run.update(finished=False)
    assert status_text(run).endswith("none stable yet")


def test_a_finished_search_tells_what_it_recommends_and_not_its_luckiest_probe(tmp_path):
    quick = [("baseline", result(SMALL, 100.0)), ("model", result(LARGE, 140.0))]
    finals = [("final", result(LARGE, sps, width=0.02, grade="final", window_s=30.0)) for sps in (119.0, 121.0)]
    run = make_run(tmp_path, [*quick, *finals])
    assert f"recommended {LARGE.label()}: 120 SPS" in status_text(run)
    run.update(finished=False)
    assert f"fastest {LARGE.label()}: 140 SPS" in status_text(run)


def test_a_long_training_in_which_too_few_ran_at_once_is_not_called_short(tmp_path):
    counts = {"env_steps": 9, "episodes": 1, "seconds": 3600.0, "sps": 9.0, "mean_return": None, "best_return": None}
    job = JobResult(id="a", status="done", **counts)
    result = TrainResult(run="r", jobs=(job,), sps=None, predicted_sps=10.0, seconds=3600.0)
    assert "or fewer ran than the point has places" in train_text(result, create_run(tmp_path, "r", command="train"))


def test_a_training_tells_of_a_crashed_job_what_the_program_said(tmp_path):
    counts = {"env_steps": 0, "episodes": 0, "seconds": 0.0, "sps": None, "mean_return": None, "best_return": None}
    said = "the program ended with exit code 2; the last lines were:\nUsage: x\nno such option"
    job = JobResult(id="a", status="crashed", detail=said, **counts)
    result = TrainResult(run="r", jobs=(job,), sps=None, predicted_sps=None, seconds=1.0)
    told = train_text(result, create_run(tmp_path, "r", command="train"))
    assert "the program ended with exit code 2; the last lines were: no such option" in told


def test_a_detail_in_short_ends_with_a_line_that_says_something():
    assert brief("it ended; the last lines were:\n╭─ Error ─╮\n│ No such option │\n╰─────────╯\n====") == (
        "it ended; the last lines were: │ No such option │"
    )
