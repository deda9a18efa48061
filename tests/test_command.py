from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from waiting import comes_true

from autotune.device.inspect import inspect_device
from autotune.errors import UsageError, WorkerError
from autotune.executors.isolated import IsolatedExecutor
from autotune.executors.stability import SEVERAL_TOTALS
from autotune.records import ENDED_EARLY, REFUSED, Budget, Job, Limits, MeasurePlan, Point, ProbeRequest
from autotune.worker.__main__ import classify
from autotune.workloads import command as command_module
from autotune.workloads.command import CommandSession, CommandWorkload, OutOfMemoryError, child_environment
from autotune.workloads.command_argv import fill, placeholders
from autotune.workloads.command_numbers import parse_number
from autotune.workloads.command_progress import ProgressCounter, ProgressRule, make_rule
from autotune.workloads.memory_words import tells_out_of_memory
from autotune.workloads.protocol import Finished, NoProgressError, RefusedError

DATA = Path(__file__).parent / "data"
POINT = Point(num_envs=4, batch_size=32, concurrency=1)
JOB = Job(id="run-1", env="CartPole-v1", seed=7, budget=Budget(unit="steps", amount=1000))
OWN = [sys.executable, str(DATA / "own_script.py"), "--num-envs", "{num_envs}", "--minibatch-size", "{batch_size}"]
COUNTER = r"steps: ([\d,]+)"


@pytest.fixture
def start() -> Any:
    """Opens sessions and closes them at the end."""
    sessions: list[CommandSession] = []

    def open_one(argv: list[str], point: Point = POINT, **hyperparameters: Any) -> CommandSession:
        sessions.append(CommandWorkload({"argv": argv} | hyperparameters).open(point, JOB, "cpu"))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code.replace("{", "{{").replace("}", "}}")]


def step_to_the_end(session: CommandSession) -> tuple[int, Exception]:
    steps = 0
    while True:
        try:
            steps += session.step().env_steps
        except (Finished, UsageError, WorkerError) as end:
            return steps, end


# --- numbers, placeholders and rules: pure functions


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1234", 1234),
        ("1,234,567", 1234567),
        ("1_234", 1234),
        ("80 586", 80586),
        ("1'080'586.5", 1080586.5),
        ("1\u2019080\u2019586", 1080586),
        ("80\u202f586", 80586),
        ("80\u00a0586 k", 80586e3),
        ("80 58", None),
        ("1 234'567", None),
        ("1.5e+06", 1.5e6),
        ("2E3", 2000),
        ("1.5k", 1500),
        ("2M", 2e6),
        ("3 k", 3000),
        (" 17, ", 17),
        ("12.", 12),
        (".5", 0.5),
        ("+8", 8),
        ("1,5", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("1.2.3", None),
        ("", None),
        ("0x10", None),
    ],
)
def test_numbers(text, number):
    assert parse_number(text) == number


def test_placeholders_and_literal_braces():
    argv = ["train", "--n={num_envs}", "{{literal}}", "{seed}:{env}:{job}", "{{{batch_size}}}"]
    assert placeholders(argv) == {"num_envs", "seed", "env", "job", "batch_size"}
    values = {"num_envs": 8, "batch_size": 32, "seed": 1, "env": "Pong", "job": "a"}
    assert fill(argv, values) == ["train", "--n=8", "{literal}", "1:Pong:a", "{32}"]


@pytest.mark.parametrize("argument", ["{", "}", '{"a": 1}', "{num envs}", "{1}", "{}"])
def test_stray_braces_are_refused(argument):
    with pytest.raises(UsageError, match=r"\{\{ and \}\} for literal braces"):
        CommandWorkload({"argv": ["train", argument]})


def test_unknown_placeholder_lists_the_known_ones():
    workload = CommandWorkload({"argv": [sys.executable, "{num_env}"]})
    with pytest.raises(UsageError, match=r"\{num_env\}.*\{num_envs\}, \{batch_size\}, \{concurrency\}.*\{seed\}"):
        workload.check(POINT, [JOB])


def test_extra_knob_is_a_placeholder():
    point = Point(num_envs=4, batch_size=32, extra=(("precision", "bf16"),))
    CommandWorkload({"argv": [sys.executable, "--precision={precision}"]}).check(point, [JOB])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"counter": "steps (", "rate": None}, "not a regular expression"),
        ({"counter": r"steps \d+"}, "needs parentheses"),
        ({"rate": r"fps \d+"}, "--rate .*needs parentheses"),
        ({"counter": r"(\d)", "rate": r"(\d)"}, "--counter and --rate were given together"),
        ({"counter": r"(\d)", "preset": "sb3"}, "choose one"),
        ({"preset": "rllib"}, "unknown --progress 'rllib'. There are: cleanrl, sb3"),
    ],
)
def test_impossible_rules_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        make_rule(**({"counter": None, "rate": None, "mark": None, "preset": None} | options))


def read(rule: ProgressRule, *lines: tuple[float, str]) -> list[float]:
    counter, steps = ProgressCounter(rule), []
    for t_s, line in lines:
        counter.read_line(line, t_s)
        steps.append(counter.steps)
    return steps


def rule_of(**options: str) -> ProgressRule:
    return make_rule(**({"counter": None, "rate": None, "mark": None, "preset": None} | options))


def test_counter_takes_every_match_and_survives_a_restart():
    rule = rule_of(counter=r"step (\S+)")
    lines = ["step 10", "nothing", "step 20, step 30", "step 5", "step 9", "step 0.04k"]
    assert read(rule, *enumerate(lines)) == [10, 10, 30, 30, 39, 70], "it is sure that it counts anew at the second"


@pytest.mark.parametrize("lines", [3, 4, 10, 100])
@pytest.mark.parametrize("first", [0, 1])
def test_a_total_that_begins_anew_every_epoch_goes_on(lines, first):
    told = [f"steps {256 * n}/{256 * lines}" for _ in range(20) for n in range(first, lines + first)]
    assert read(rule_of(counter=r"steps (\d+)/"), *enumerate(told))[-1] == 20 * 256 * (lines + first - 1)


@pytest.mark.parametrize("each", [1, 32, 2000])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_a_count_within_every_iteration_adds_nothing(each, count):
    """Minibatches or their samples, beside the env steps, and told by the same words."""
    inner = [f"step {each * n}" for n in range(1, count + 1)]
    told = [line for n in range(1, 100) for line in (*inner, f"step {8192 * n}")]
    steps = read(rule_of(counter=r"step (\d+)"), *enumerate(told))
    assert steps[-1] == pytest.approx(99 * 8192, abs=max(8192, 3 * each * count))
    assert max(steps) <= steps[-1] + each * count


@pytest.mark.parametrize("rarely", [2, 3, 10])
def test_a_count_within_iterations_adds_nothing_where_the_total_is_told_rarely(rarely):
    told = []
    for n in range(1, 100):
        told += [f"step {32 * k}" for k in range(1, 5)]
        told += [f"step {512 * n}"] * (n % rarely == 0)
    steps = read(rule_of(counter=r"step (\d+)"), *enumerate(told))
    assert steps[-1] == pytest.approx(512 * (99 // rarely * rarely), abs=2 * 512 * rarely)


def test_a_total_that_goes_on_from_a_checkpoint_counts_from_where_it_was():
    told = [f"step {100 * n}" for n in (*range(1, 30), *range(20, 60))]
    assert read(rule_of(counter=r"step (\d+)"), *enumerate(told))[-1] == 5900


def test_of_workers_at_different_speeds_the_fastest_counts_or_their_sum():
    turns = sorted((n / speed, who, n) for who, speed in enumerate((3.0, 3.1, 1.0, 1.1)) for n in range(1, 200))
    told = [f"worker {who}: steps {100 * n}" for at, who, n in turns if at <= 60]
    assert read(rule_of(counter=r"steps (\d+)"), *enumerate(told))[-1] == 18_600
    rule = rule_of(counter=r"worker (?P<worker>\d+): steps (\d+)")
    assert read(rule, *enumerate(told))[-1] == 18_600 + 18_000 + 6_000 + 6_600


def test_a_pattern_that_matches_every_number_stands_still():
    told = [f"steps: {256 * n} / 10000000 (elapsed {n} s)" for n in range(1, 100)]
    counter = ProgressCounter(rule_of(counter=r"(\d+)"))
    for t_s, line in enumerate(told):
        counter.read_line(line, t_s)
    assert counter.steps == counter.largest == 10_000_000
    assert counter.numbers == 297 and counter.smaller == 197


def test_a_worker_is_no_number():
    with pytest.raises(UsageError, match="needs parentheses"):
        rule_of(counter=r"worker (?P<worker>\d+): steps \d+")


@pytest.mark.parametrize("behind", [0.0, 0.5, 0.9, 0.99])
def test_of_several_totals_the_largest_counts(behind):
    """A learner that tells its own total, behind its actor's."""
    lines = [f"{who} step {int(share * 100 * n)}" for n in range(1, 50) for who, share in (("a", 1.0), ("l", behind))]
    assert read(rule_of(counter=r"step (\d+)"), *enumerate(lines))[-1] == 4900


def test_counter_ignores_what_is_no_number_and_colours():
    assert read(rule_of(counter=r"step:? (\S+)"), (0, "step one"), (1, "step: \x1b[32m7\x1b[0m")) == [0, 7]


def test_a_suffix_right_after_the_group_is_the_number_s():
    rule = rule_of(counter=r"step (\d+)")
    lines = ["step 1k", "step 2M steps", "step 3m20", "step 4 k", "step 5B"]
    assert read(rule, *enumerate(lines)) == [1e3, 2e6, 2e6, 2e6, 5e9]
    assert read(rule, (0, "step 7kg"), (1, "step 8")) == [7, 8]
    assert read(rule_of(counter=r"(\S+k) steps"), (0, "1.5k steps")) == [1500]


@pytest.mark.parametrize(
    ("pattern", "line", "number"),
    [
        (r"step (\d+)", "step 12,288 | loss 0.5", 12288),
        (r"step (\d+)", "step 1,234,567.", 1234567),
        (r"step (\d+)", "step 12'288, return 3", 12288),
        (r"step (\d+)", "step 12\u202f288", 12288),
        (r"step (\d+)", "step 1.5M", 1.5e6),
        (r"step ([\d.]+)", "step 1.2e+06", 1.2e6),
        (r"(\d+) steps", "done 12,288 steps", 12288),
        (r"(\d+)M/10M", "12% 1.25M/10M", 1.25e6),
        (r"(\d+)", "t=1,024/9,999", 9999),
        (r"^(\d+),", "12,288,0.5", 12),
        (r",(\d+),", "7,288,0.5", 288),
        (r"(\d+)", "12,288,0.5", 288),
        (r"step (\d+)", "step 12, 288 games", 12),
        (r"step (\d+)", "step 12 288", 12),
        (r"step (\d+)", "step 12.", 12),
        (r"step (\d+)", "step 12,28", 12),
        (r"step (\d+)", "step 12,2880", 12),
    ],
)
def test_a_number_of_which_the_group_is_a_part_is_read_whole(pattern, line, number):
    assert read(rule_of(counter=pattern), (0, line))[-1] == number


@pytest.mark.parametrize("end", ["", "time.sleep(600)"])
def test_what_was_matched_and_is_no_number_is_told(start, end):
    session = start(
        python(f"import time; print('at 80;586'); {end or 'pass'}"), counter="at (.*)", progress_timeout_s=0.5
    )
    assert "--counter 'at (.*)' matched '80;586', which is no number" in str(step_to_the_end(session)[1])


def test_rate_is_integrated_over_the_time_between_lines():
    rule = rule_of(rate=r"fps=([\d.]+)")
    assert read(rule, (10, "fps=100"), (12, "fps=150"), (12.5, "x"), (13, "fps=50")) == [0, 300, 300, 350]


def test_mark_holds_totals_back_until_the_end_of_the_iteration():
    rule = rule_of(preset="cleanrl")
    lines = [
        "global_step=400, episodic_return=[21.]",
        "global_step=480, episodic_return=[9.]",
        "SPS: 2301",
        "global_step=530, episodic_return=[13.]",
        "SPS: 2310",
    ]
    assert read(rule, *enumerate(lines)) == [0, 0, 480, 480, 530]


@pytest.mark.parametrize("game_steps", [30, 200, 1000])
@pytest.mark.parametrize("in_step", [False, True])
def test_iterations_of_equal_size_are_known_from_what_games_tell(game_steps, in_step):
    """Games tell of steps that were done long ago; iterations are told one by one."""
    envs, rollout, lines = 8, 128, list[str]()
    for step in range(1, 60 * rollout + 1):
        ends = [e for e in range(envs) if (step + (0 if in_step else e * game_steps // envs)) % game_steps == 0]
        lines += [f"global_step={step * envs}, episodic_return=[1.]"] * len(ends)
        lines += ["SPS: 1234"] * (step % rollout == 0)
    steps = read(rule_of(preset="cleanrl"), *enumerate(lines))
    marked = [done for line, done in zip(lines, steps, strict=True) if line.startswith("SPS")]
    late = np.diff(marked[20:])
    assert (late > 0).all() and late == pytest.approx(1024, rel=0.25)
    assert np.median(late) == pytest.approx(1024, rel=0.05) and marked[-1] == pytest.approx(60 * 1024, rel=0.08)


@pytest.mark.parametrize(("offset", "sizes"), [(10**6, [1000]), (0, [500, 2000, 1000])])
def test_totals_that_do_not_fit_iterations_of_equal_size_count_as_told(offset, sizes):
    """A program that goes on from its own checkpoint, and one whose iterations differ."""
    totals = [offset + sum(sizes[k % len(sizes)] for k in range(n)) for n in range(1, 60)]
    lines = [text for total in totals for text in (f"global_step={total}", "SPS: 1")]
    assert read(rule_of(preset="cleanrl"), *enumerate(lines))[-1] == totals[-1]


def test_stable_baselines_table():
    lines = [
        "| time/              |          |",
        "|    fps             | 1890     |",
        "|    total_timesteps | 2048     |",
    ]
    assert read(rule_of(preset="sb3"), *enumerate(lines)) == [0, 0, 2048]


def test_ticks_of_several_processes_add_up():
    counter = ProgressCounter(ProgressRule())
    for line in ("11 100", "12 7", "11 150", "12 9", "rubbish", "11 x", "12 3"):  # the last: process id used again
        counter.read_tick(line)
    assert counter.steps == 150 + 9 + 3


# --- what can never run


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        ({}, "'argv'"),
        ({"argv": []}, "'argv'.*at least 1"),
        ({"argv": "python train.py"}, "'argv'"),
        ({"argv": ["train", 3]}, "'argv"),
        ({"argv": ["train", "a\0b"]}, "NUL"),
        ({"argv": ["train"], "environment": {"A=B": "x"}}, "'A=B'.*impossible name"),
        ({"argv": ["train"], "environment": {"A": "x\0"}}, "NUL"),
        ({"argv": ["train"], "environment": {"N": "{num_envs}"}}, '"N={num_envs}"$'),
        ({"argv": ["train"], "shell": True}, "no hyperparameter 'shell'"),
    ],
)
def test_impossible_commands_are_refused(hyperparameters, words):
    with pytest.raises(UsageError, match=words):
        CommandWorkload(hyperparameters)


def test_missing_program_and_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'no-such-program' cannot be found"):
        CommandWorkload({"argv": ["no-such-program"]}).check(POINT, [JOB])
    with pytest.raises(UsageError, match="does not exist: correct cwd"):
        CommandWorkload({"argv": [sys.executable], "cwd": str(tmp_path / "gone")}).check(POINT, [JOB])
    (tmp_path / "train.sh").write_text("#!/bin/sh\n")
    workload = CommandWorkload({"argv": ["./train.sh"], "cwd": str(tmp_path)})
    with pytest.raises(UsageError, match="cannot be found or executed"):
        workload.check(POINT, [JOB])
    (tmp_path / "train.sh").chmod(0o755)
    workload.check(POINT, [JOB])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train.py", r"write its interpreter before it \(python train.py\), or check"),
        ("./train.py", r"write its interpreter before it \(python ./train.py\), or check"),
        ("ENVS={num_envs}", r"no shell is involved, so write env before it \(env ENVS=4 \.\.\.\), or check"),
        ("python train.py", "without quotes around all of it; check"),
    ],
)
def test_what_is_no_program_is_told_how_to_start(tmp_path, program, words):
    (tmp_path / "train.py").touch()
    with pytest.raises(UsageError, match=words):
        CommandWorkload({"argv": [program], "cwd": str(tmp_path)}).check(POINT, [JOB])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("python train.py\n", "its first line names no interpreter: write '#!/bin/sh'"),
        ("#!/bin/sh\r\necho\r\n", "interpreter .* is not there .*#!/bin/sh.*, of which the carriage return is a part"),
        ("#!/no/such/python\n", "the interpreter that its first line names is not there .*'#!/no/such/python'"),
    ],
)
def test_a_script_whose_interpreter_is_not_found_is_told_so(start, tmp_path, script, words):
    (tmp_path / "train.sh").write_bytes(script.encode())
    (tmp_path / "train.sh").chmod(0o755)
    with pytest.raises(UsageError, match=words):
        start(["./train.sh"], cwd=str(tmp_path))


# --- running programs


@pytest.mark.parametrize(
    ("options", "report"), [({}, "tick"), ({"counter": COUNTER}, "counter"), ({"rate": r"speed ([\d.]+)"}, "rate")]
)
def test_own_script_in_every_way_of_telling_progress(start, options, report):
    session = start([*OWN, "--report", report], **options)
    works = [session.step() for _ in range(3)]
    assert all(work.env_steps > 0 for work in works)
    assert session.effective["argv"][3:6:2] == ["4", "32"]
    if report != "rate":
        assert all(work.env_steps % (32 * 4) == 0 for work in works)


def test_all_steps_are_counted_until_it_ends(start):
    steps, end = step_to_the_end(start([*OWN, "--report", "counter", "--total-steps", "12800"], counter=COUNTER))
    assert (steps, type(end)) == (12800, Finished)
    assert "12,800 steps" in str(end)
    steps, end = step_to_the_end(start([*OWN, "--total-steps", "12800"]))
    assert (steps, type(end)) == (12800, Finished)


def test_knobs_seed_and_environment_reach_the_program(start, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "3")
    code = "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['COLOUR'], 'n=1')"
    argv = [*python(code), "{num_envs}", "{batch_size}", "{concurrency}", "{seed}", "{env}", "{job}"]
    session = start(argv, counter=r"n=(\d)", environment={"COLOUR": "red"})
    step_to_the_end(session)
    assert "['4', '32', '1', '7', 'CartPole-v1', 'run-1'] 3 red" in session._child.tail()


def test_no_shell_is_involved(start):
    session = start([*python("import sys; print(sys.argv[1], 'n=1')"), "$HOME; `ls` | {{x}} *"], counter=r"n=(\d)")
    step_to_the_end(session)
    assert "$HOME; `ls` | {x} * n=1" in session._child.tail()


def test_knob_without_a_placeholder_did_not_take_effect(start):
    session = start([*OWN[:4], "--report", "counter"], counter=COUNTER)
    assert (session.effective["num_envs"], session.effective["batch_size"]) == (4, None)


@pytest.mark.parametrize("how", ["oom", "crash"])
def test_failures_carry_the_last_lines(start, how):
    session = start([*OWN, "--fail-above", "2", "--fail-with", how])
    error = step_to_the_end(session)[1]
    assert type(error) is {"oom": OutOfMemoryError, "crash": RefusedError}[how]
    assert "exit code 1" in str(error) and {"oom": "CUDA out of memory", "crash": "NaN"}[how] in str(error)


def test_death_by_signal_is_told(start):
    error = step_to_the_end(start([*OWN, "--fail-above", "2", "--fail-with", "kill"]))[1]
    assert type(error) is WorkerError and "signal 9" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate",
        "MemoryError",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 PiB for an array with shape (1,)",
        "Error: Out of memory",
        "cuda error: CUDA_ERROR_OUT_OF_MEMORY",
        "ResourceExhaustedError: OOM when allocating tensor with shape[1,2]",
        "RuntimeError: cudaErrorMemoryAllocation",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. (Cannot allocate memory)",
    ],
)
def test_want_of_memory_in_any_framework_s_words(start, text):
    session = start(python(f"import sys; print({text!r}, file=sys.stderr); sys.exit(1)"))
    assert type(step_to_the_end(session)[1]) is OutOfMemoryError


TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 3, in f\n    step()\n'
WHILE = "\nDuring handling of the above exception, another exception occurred:\n\n"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            f"{TRACEBACK}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. If it is fragmented ...",
            True,
        ),
        (f"{TRACEBACK}MemoryError\n" + "wandb: synced\n" * 30, True),
        (f"[rank0]: {TRACEBACK}[rank0]: torch.OutOfMemoryError: CUDA out of memory\nsee the log", True),
        (f"{TRACEBACK}MemoryError\n{WHILE}{TRACEBACK}RuntimeError: the update failed", True),
        (f"{TRACEBACK}MemoryError\n{TRACEBACK}EOFError\n", True),
        (f"{TRACEBACK}x.OutOfMemoryError: no\n{TRACEBACK}torch.distributed.ChildFailedError: \ntrain.py FAILED", True),
        (f"CUDA out of memory: retrying with less\n{TRACEBACK}ValueError: batch_size must divide", False),
        (f"{TRACEBACK}MemoryError\nretrying with less\n{TRACEBACK}ValueError: batch_size must divide", False),
        (f"{TRACEBACK}MemoryError\n{WHILE}{TRACEBACK}ValueError: x\n{TRACEBACK}KeyError: 'y'", False),
        ("worker 3: out of memory, retrying\nValueError: batch_size must divide", False),
        ("hint: if you run out of memory, reduce num_envs\ntrain.py: error: batch_size must divide", False),
        ("To avoid a MemoryError use less\nrefused", False),
        ("CUDA out of memory, skipping\n" + "a line\n" * 30 + "refused", False),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("RuntimeError: jaxlib/gpu/solver_handle_pool.cc:37: operation gpusolverDnCreate(&handle) failed: x", True),
        ("jax.errors.JaxRuntimeError: INTERNAL: gpublasCreate(&handle) failed: cuBlas has not been initialized", True),
        ("E0000 cuda_blas.cc:207] failed to create cublas handle: the resource allocation failed", True),
        ("jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: Failed to allocate request for 1.22GiB (1310720000B)", True),
        ("ValueError: cannot create custom instance of the environment", False),
        ("psycopg.Error: the current allocation failed", False),
        ("RuntimeError: jaxlib/gpu/solver.cc:213: operation cusolverDnSyevd failed: cuSolver execution failed", False),
        ("RuntimeError: GET was unable to find an engine to execute this computation", True),
        ("RuntimeError: Unable to find a valid cuDNN algorithm to run convolution", True),
        ("XlaRuntimeError: INTERNAL: Failed to allocate 4294967296 bytes for new constant", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("", False),
    ],
)
def test_the_end_of_an_output_tells_whether_memory_ran_out(output, told):
    assert tells_out_of_memory(output) == told


def test_a_hint_on_memory_makes_no_later_failure_one_of_memory(start):
    code = "print('if you run out of memory, use less'); print('steps: 5', flush=True); raise SystemExit('refused')"
    error = step_to_the_end(start(python(code), counter=COUNTER))[1]
    assert type(error) is WorkerError and classify(error) == "crashed"


TORCHRUN = """[rank0]: Traceback (most recent call last):
[rank0]:   File "train.py", line 12, in <module>
[rank0]: AssertionError: batch 7 is not divisible by 4
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================"""


HYDRA = """Could not override 'envs'.
To append to your config use +envs=8
Key 'envs' is not in struct

Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."""

TYPER = """Usage: train.py [OPTIONS]
╭─ Error ──────────────────────╮
│ No such option: --envs       │
╰──────────────────────────────╯"""


@pytest.mark.parametrize(
    ("output", "first"),
    [
        (TORCHRUN, "the program ended with exit code 1 ([rank0]: AssertionError: batch 7 is not divisible by 4); "),
        (
            "ResourceExhaustedError: Graph error:\nOOM when allocating\n [Op:train_123]",
            "(ResourceExhaustedError: Graph er",
        ),
        ("Traceback (most recent call last):\nValueError: no such game", "exit code 1; the last lines were:"),
        ("ValueError: tried another game\nsteps: 5\nSegmentation fault", "exit code 1; the last lines were:"),
        ("ChildFailedError: worker 3\n====", "exit code 1 (ChildFailedError: worker 3); the last lines were:"),
        ("no such game", "exit code 1; the last lines were:"),
        (HYDRA, "exit code 1 (Could not override 'envs'.); the last lines were:"),
        (TYPER, "exit code 1 (No such option: --envs); the last lines were:"),
        (
            "FATAL Flags parsing error: Unknown command line flag 'envs'\nPass --helpshort to see help.",
            "exit code 1 (FATAL Flags parsing error: Unknown command line flag 'envs'); the last lines were:",
        ),
    ],
)
def test_the_exception_is_told_first_where_it_is_not_in_the_last_line(start, output, first):
    _, error = step_to_the_end(start(python(f"import sys; print({output!r}); sys.exit(1)"), counter=COUNTER))
    assert first in str(error).splitlines()[0]
    assert str(error).splitlines()[-1] == output.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("input('Overwrite? ')", {"counter": COUNTER}),
        ("import sys; print('Overwrite? [y/N]', end=' '); sys.stdin.readline() or sys.exit('Aborted!')", {}),
        ("import sys; print('Overwrite? (yes/no)', end=' '); sys.stdin.readline()", {"counter": COUNTER}),
    ],
)
def test_a_question_that_nobody_answers_is_told_as_such(start, code, options):
    told = str(step_to_the_end(start(python(code), **options))[1])
    words = "it asked a question, and its standard input is empty here: let an option or a variable of it answer"
    assert words in told.splitlines()[0]


def test_a_question_long_ago_is_no_reason(start):
    code = "print('Go on? [y/n]'); print('building'); print('compiling'); raise ValueError('no such game')"
    assert "a question" not in str(step_to_the_end(start(python(code), counter=COUNTER))[1])


def test_killed_by_the_kernel_for_memory(start, monkeypatch):
    counts = iter([5, 6])
    monkeypatch.setattr("autotune.workloads.command_child.count_oom_kills", lambda: next(counts))
    session = start(python("import os; os.kill(os.getpid(), 9)"))
    assert type(step_to_the_end(session)[1]) is OutOfMemoryError


def test_hang_before_any_progress_names_the_pattern(start):
    session = start(
        python("import time; print('epoch one'); time.sleep(600)"), counter=r"stpes (\d+)", progress_timeout_s=0.5
    )
    with pytest.raises(WorkerError, match=r"no line matched --counter 'stpes .*within 0.5s.*\nepoch one") as told:
        session.step()
    assert "(a bar may be drawn on a terminal only)" in str(told.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('epoch one')", r"no line matched --counter .* give it a larger --budget\. .*:\nepoch one"),
        ("pass", "printed no whole line"),
    ],
)
def test_before_a_probe_is_cut_by_the_budget_a_program_without_progress_is_told_of(start, code, words):
    session = start(python(f"import time; {code}; time.sleep(600)"), counter=r"stpes (\d+)")
    session.hurry(time.monotonic() + command_module._TOLD_S + 1.0)
    with pytest.raises(NoProgressError, match=words) as told:
        session.step()
    assert "larger --budget" in str(told.value)


def test_a_probe_takes_silence_for_a_hang_soon_and_a_training_does_not(start, monkeypatch):
    monkeypatch.setattr(command_module, "_SILENCE_MIN_S", 0.5)
    code = "import time; print('steps: 5'); time.sleep(2); print('steps: 6'); time.sleep(600)"
    patient, hurried = start(python(code), counter=COUNTER), start(python(code), counter=COUNTER)
    hurried.hurry()
    assert (patient.step().env_steps, patient.step().env_steps) == (5, 1)
    monkeypatch.setattr(command_module, "_SILENCE_GAPS", 0)
    hurried.step()
    with pytest.raises(WorkerError, match=r"no progress was told within 0.5s \(hang_timeout_s .*:\nsteps: 5"):
        for _ in range(3):
            hurried.step()


def test_silence_before_the_first_line_is_told_as_such(start):
    session = start(python("import time; time.sleep(600)"), counter=COUNTER, progress_timeout_s=0.5)
    with pytest.raises(WorkerError, match=r"printed no whole line within 0.5s.*progress_timeout_s") as told:
        session.step()
    assert "a bar that is drawn on a terminal only, print it or call autotune.tick(steps)" in str(told.value)


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[1msteps\x1b(B\x1b[m: 5",
        "steps: \x1b[38:5:1m5\x1b[m",
        "\x1b]8;;https://example.org/1\x1b\\steps\x1b]8;;\x1b\\: 5",
        "steps: \x1b]0;training\x075",
        "steps: \x1b7\x1b[>4m5\x1b8",
    ],
)
def test_no_escape_sequence_hides_a_number(line):
    counter = ProgressCounter(make_rule(counter=r"steps: (\d+)", rate=None, mark=None, preset=None))
    counter.read_line(line, 0.0)
    assert counter.steps == 5


def test_output_without_line_ends_is_told_as_such(start):
    code = "import time\nfor n in range(600): print('steps:', n, end=' ... ', flush=True); time.sleep(0.1)"
    session = start(python(code), counter=COUNTER, progress_timeout_s=1.5)
    with pytest.raises(
        NoProgressError, match=r"no whole line within 1.5s.* end each line.* after 'steps: 0 \.\.\. steps"
    ):
        session.step()


@pytest.mark.parametrize("option", ["counter", "rate"])
def test_lines_that_match_no_more_are_told_as_such(start, option):
    """The pattern takes no commas: it hears of less than a thousand games only."""
    code = "import time\nfor n in (500, 900): print('total', n, 'games'); time.sleep(0.1)\n"
    code += "for n in range(1000, 9000, 500): print(f'total {n:,} games'); time.sleep(0.05)\ntime.sleep(600)"
    session = start(python(code), hang_timeout_s=1.5, **{option: r"total (\d+) games"})
    with pytest.raises(NoProgressError, match=r"no progress was told within 1.5s") as told:
        while True:
            session.step()
    assert rf"no line matched --{option} 'total (\d+) games' since, of 16 that it printed" in str(told.value)


def test_a_program_that_neither_prints_nor_ticks_is_told_of_the_tick(start):
    session = start(python("import time; time.sleep(600)"), progress_timeout_s=0.5)
    with pytest.raises(
        WorkerError, match=r"autotune.tick\(steps\) was not called within 0.5s; .*\n.*printed nothing"
    ) as told:
        session.step()
    assert "give or correct --counter, --rate or --progress" in str(told.value)


@pytest.mark.parametrize("then", ["", "time.sleep(600)"])
def test_ticks_beside_a_pattern_that_matches_nothing_are_told_of(start, then):
    session = start(python(f"import time, autotune; autotune.tick(8); {then}"), counter=COUNTER, progress_timeout_s=2)
    told = str(step_to_the_end(session)[1])
    assert "no line matched --counter" in told and "autotune.tick was called and counts only without --counter" in told


def test_ticks_beside_a_pattern_that_matches_add_nothing(start):
    code = "import time, autotune\nfor n in (5, 9): autotune.tick(100); print('steps:', n, flush=True); time.sleep(0.1)"
    assert step_to_the_end(start(python(code), counter=COUNTER))[0] == 9


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("raise AssertionError('batch too large')", True),
        ("print('steps: 5', flush=True); raise AssertionError", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("import sys; sys.exit(137)", False),
        ('raise RuntimeError("can\'t start new thread")', False),
        ("raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')", False),
    ],
)
def test_an_exit_code_before_the_first_step_is_a_refusal(start, code, refused):
    _, end = step_to_the_end(start(python(code), counter=COUNTER))
    assert isinstance(end, RefusedError) == refused


def test_a_failure_after_the_last_step_is_told(start):
    session = start(python("import sys, time; print('steps: 5'); time.sleep(0.5); sys.exit(3)"), counter=COUNTER)
    assert session.step().env_steps == 5
    assert "see whether all is saved: the program ended with exit code 3" in session.finish()


def test_hang_after_progress_says_so(start):
    code = "import time; print('steps: 5'); time.sleep(600)"
    session = start(python(code), counter=COUNTER, hang_timeout_s=1.0)
    assert session.step().env_steps == 5
    with pytest.raises(WorkerError, match=r"no progress was told within 1.0s"):
        session.step()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"counter": r"stpes (\d+)"}, "no line matched --counter"),
        ({"rate": r"steps: (\d+)"}, "stayed at zero"),
        ({"counter": COUNTER, "mark": "done"}, "stayed at zero"),
        ({}, r"autotune.tick\(steps\) was not called"),
    ],
)
def test_good_end_without_progress_is_misuse(start, options, words):
    error = step_to_the_end(start(python("print('steps: 5')"), **options))[1]
    assert type(error) is UsageError and re.search(words, str(error))


@pytest.mark.parametrize("then", ["pass", "time.sleep(600)"])
def test_totals_that_no_mark_lets_count_are_told_as_such(start, then):
    """A CleanRL-like script that prints its speed in other words: its totals were read, and a hang was told."""
    code = f"import time; print('global_step=400 SPS=12', flush=True); {then}"
    session = start(python(code), progress="cleanrl", progress_timeout_s=0.5)
    told = str(step_to_the_end(session)[1])
    assert "stayed at zero" in told and r"no line matched the mark 'SPS:\s*\d', at which progress counts" in told
    assert r"with --counter 'global_step=(\d+)' in place of preset and mark every line counts" in told
    assert "hang_timeout_s" not in told and told.endswith("global_step=400 SPS=12")


@pytest.mark.parametrize(
    ("line", "preset"),
    [
        ("global_step=400, episodic_return=[21.]\nSPS: 567", "cleanrl"),
        ("|    total_timesteps     | 2048        |", "sb3"),
        ("global_step=400", None),  # without a line that ends an iteration the preset would find nothing
        ("steps: 5", None),
    ],
)
@pytest.mark.parametrize("then", ["", "import time; time.sleep(600)"])
def test_a_preset_that_the_lines_match_is_named(start, line, preset, then):
    session = start(python(f"print({line!r}, flush=True); {then}"), progress_timeout_s=1.5)
    remedy = f"its lines match --progress {preset}: give that" if preset else "correct --counter, --rate or --progress"
    assert remedy in str(step_to_the_end(session)[1])


def test_last_lines_without_newline_or_with_carriage_returns(start):
    code = r"import sys; sys.stdout.write('steps: 10\rsteps: 20\rsteps: 30')"
    assert step_to_the_end(start(python(code), counter=COUNTER))[0] == 30


def test_progress_in_a_burst_is_told_before_the_next(start):
    code = "import time; print('steps: 5'); time.sleep(0.05); print('steps: 9'); time.sleep(0.003)\n"
    session = start(python(code + "print('steps: 11'); time.sleep(600)"), counter=COUNTER, hang_timeout_s=60.0)
    begin_s, steps = time.monotonic(), 0
    while steps < 11:
        steps += session.step().env_steps
    assert time.monotonic() - begin_s < 30


def test_restarted_counter_goes_on(start):
    code = "import time\nfor n in (10, 20, 4, 8): print('steps:', n); time.sleep(0.1)"
    assert step_to_the_end(start(python(code), counter=COUNTER))[0] == 28


def test_flood_of_output_never_blocks_it_and_is_bounded(start, capfd):
    code = (
        "import sys\nline = b'\\xff\\x00garbage' * 100 + b'\\n'\n"
        "for _ in range(20000): sys.stdout.buffer.write(line)\n"  # 18 MB
        "sys.stdout.buffer.write(b'y' * 3_000_000 + b'\\n')\nprint('steps: 9')"
    )
    session = start(python(code), counter=COUNTER)
    steps, end = step_to_the_end(session)
    assert (steps, type(end)) == (9, Finished)
    assert 2**22 < len(capfd.readouterr().out) < 2**25
    assert len(session._child.tail()) <= 200 * 4097


def test_progress_is_read_from_long_lines_and_their_beginning_is_kept(start, capfd):
    code = "import json; print(json.dumps(dict(config='x' * 20_000, env_steps=9)))"
    assert step_to_the_end(start(python(code), counter=r'"env_steps": (\d+)'))[0] == 9
    assert 2**12 <= len(capfd.readouterr().out) < 2**13


def test_output_is_copied_to_the_log(start, capfd):
    step_to_the_end(start(python("import sys; print('steps: 3'); print('oh', file=sys.stderr)"), counter=COUNTER))
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "oh", "steps: 3"]


def test_descendant_that_keeps_the_output_open_does_not_hold_up_the_end(start):
    code = (
        "import subprocess, sys; print('steps: 3'); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])"
    )
    session = start(python(code), counter=COUNTER)
    begin_s = time.monotonic()
    assert step_to_the_end(session)[0] == 3
    assert time.monotonic() - begin_s < 25


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("deaf", [[], ["--deaf"]])
def test_closing_ends_it_and_all_its_descendants(start, deaf):
    session = start([*OWN, "--report", "counter", "--child", *deaf], counter=COUNTER, grace_s=0.3)
    session.step()
    helper = int(re.search(r"helper (\d+)", session._child.tail())[1])
    program = session._child.pid
    assert not gone(program) and not gone(helper)
    assert os.getpgid(program) == os.getpgid(0) != os.getpgid(helper)
    session.close()
    session.close()
    assert comes_true(lambda: gone(program) and gone(helper))


def test_environment_of_the_program(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")
    settings = CommandWorkload({"argv": ["x"], "environment": {"MKL_NUM_THREADS": "1"}}).settings
    environment = child_environment(settings)
    assert (environment["PYTHONUNBUFFERED"], environment["OMP_NUM_THREADS"]) == ("1", "2")
    assert environment["MKL_NUM_THREADS"] == "1"


# --- through the executor, as a probe runs it


def probe(
    folder: Path,
    point: Point,
    argv: list[str],
    plan: MeasurePlan,
    *,
    steps_heard: bool = False,
    ran_before: bool = False,
    **hyperparameters: Any,
):
    request = ProbeRequest(
        workload="command",
        hyperparameters={"argv": argv} | hyperparameters,
        point=point,
        jobs=(JOB,) * point.concurrency,
        grade="quick",
        plan=plan,
        limits=Limits(ram_fraction=1.0),
        log_folder=str(folder),
        label="probe",
        steps_heard=steps_heard,
        ran_before=ran_before,
    )
    return IsolatedExecutor(inspect_device("cpu")).run(request)


PLAN = MeasurePlan(discard_s=0.2, discard_iterations=2, window_s=0.5, window_iterations=4, timeout_s=60.0)


def test_probe_of_the_own_script(tmp_path):
    result = probe(tmp_path, Point(num_envs=8, batch_size=64, concurrency=2), OWN, PLAN)
    assert result.ok, result.detail
    assert result.sps > 1000 and len(result.job_sps) == 2
    assert result.effective["num_envs"] == 8


def test_a_program_that_ends_within_its_window_is_measured_by_what_it_did(tmp_path):
    code = "import time\nfor n in range(1, {last}): print('steps:', 100 * n, flush=True); time.sleep(0.05)"
    plan = replace(PLAN, window_s=4.0)
    result = probe(tmp_path, POINT, python(code.replace("{last}", "50")), plan, counter=COUNTER)
    assert result.ok and result.window_s < 3.0 and result.reset_fraction is None
    assert result.sps == pytest.approx(2000, rel=0.3)
    slow = "import time\nfor n in range(1, 8): print('steps:', 100 * n, flush=True); time.sleep(0.5)"
    late = probe(tmp_path, POINT, python(slow), replace(PLAN, window_s=2.6, window_iterations=4), counter=COUNTER)
    assert late.ok and late.window_s == pytest.approx(2.0, abs=0.3), "it ended when its window was due and not complete"
    short = probe(tmp_path, POINT, python(code.replace("{last}", "10")), plan, counter=COUNTER)
    assert short.status == "crashed" and REFUSED in short.flags, "it forbids nothing heavier"
    assert ENDED_EARLY in short.flags, "it says nothing about the point"
    assert "the program ended after 900 steps, too early to be measured: while it is tuned let it do" in short.detail


@pytest.mark.parametrize(
    ("words", "status", "flags"),
    [("not supported", "crashed", (REFUSED,)), ("CUDA out of memory, giving up", "oom", ())],
)
def test_a_good_end_without_steps_is_an_answer_about_the_settings_once_steps_were_heard(tmp_path, words, status, flags):
    code = python(f"print({words!r})")
    result = probe(tmp_path, POINT, code, PLAN, counter=COUNTER, steps_heard=True)
    assert (result.status, result.flags) == (status, flags) and words in result.detail
    if status == "crashed":
        assert "one that goes on from a checkpoint of its own may have had nothing left to do" in result.detail
        again = probe(tmp_path, POINT, code, PLAN, counter=COUNTER, steps_heard=True, ran_before=True)
        assert again.flags == (REFUSED, ENDED_EARLY), "at a point that ran before it says nothing about it"
        with pytest.raises(UsageError, match="no line matched --counter"):
            probe(tmp_path, POINT, code, PLAN, counter=COUNTER)


def test_a_wrong_pattern_is_told_within_a_short_budget_until_steps_were_heard(tmp_path):
    argv, plan = python("import time; print('steps 5', flush=True); time.sleep(600)"), replace(PLAN, timeout_s=8.0)
    with pytest.raises(UsageError, match=r"no line matched --counter 'stpes"):
        probe(tmp_path, POINT, argv, plan, counter=r"stpes (\d+)")
    slow = probe(tmp_path, POINT, argv, plan, counter=r"stpes (\d+)", steps_heard=True)
    assert slow.status == "timeout" and "no complete window after" in slow.detail


def test_a_probe_of_several_totals_is_marked_and_one_that_stands_still_is_explained(tmp_path):
    code = "import time\nfor n in range(10**6):\n  for w in range(3): print(f'{w} steps: {100 * n}', flush=True)\n"
    several = probe(tmp_path, POINT, python(code + "  time.sleep(0.02)"), PLAN, counter=COUNTER)
    assert several.ok and SEVERAL_TOTALS not in several.flags, "the same total told three times"
    code = code.replace("100 * n", "100 * n // (1 + w)")
    several = probe(tmp_path, POINT, python(code + "  time.sleep(0.02)"), PLAN, counter=COUNTER)
    summed = probe(tmp_path, POINT, python(code + "  time.sleep(0.02)"), PLAN, counter=rf"(?P<worker>\d) {COUNTER}")
    assert SEVERAL_TOTALS in several.flags and SEVERAL_TOTALS not in summed.flags
    assert summed.sps == pytest.approx(several.sps * (1 + 1 / 2 + 1 / 3), rel=0.3)


def test_a_pattern_for_every_number_is_told_to_match_one(start):
    code = "import time\nfor n in range(10**6): print(f'{n} of 5000', flush=True); time.sleep(0.01)"
    session = start(python(code), counter=r"(\d+)", hang_timeout_s=0.5)
    _, end = step_to_the_end(session)
    assert "the largest total read was 5,000, and later ones are smaller. Let --counter match one total only" in str(
        end
    )


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(1.0)
    open(sys.argv[1], 'w').write('saved')
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
for n in range(10**6): print('steps:', n, flush=True); time.sleep(0.01)
"""


def test_in_training_a_program_has_time_to_save_and_it_is_told_when_that_was_not_enough(start, tmp_path):
    argv = [*python(SAVES), str(tmp_path / "model")]
    for seconds, saved in ((0.2, False), (30.0, True)):
        session = start(argv, counter=COUNTER, grace_s=0.1, save_grace_s=seconds)
        session.step()
        told = session.stop()
        assert session.stop_s == seconds and (tmp_path / "model").exists() == saved
        assert told is None if saved else "did not end within 0.2s of SIGTERM and was killed" in str(told)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon escapes")
def test_a_program_that_saved_and_ended_is_not_taken_for_one_whose_helper_was_killed(start):
    helper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        f"helper = subprocess.Popen([sys.executable, '-uc', {helper!r}], stdout=subprocess.PIPE)\n"
        "helper.stdout.readline()\nprint('steps: 5')\ntime.sleep(600)"
    )
    session = start(python(code), counter=COUNTER, save_grace_s=1.0)
    session.step()
    told = session.stop()
    assert told and "the program ended, but what it had started did not within 1.0s of SIGTERM and was killed" in told


def test_a_daemon_ends_with_the_probe(tmp_path):
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "for n in range(10**6): print('steps:', n, flush=True); time.sleep(0.01)\n"
    )
    result = probe(tmp_path, POINT, python(code), PLAN, counter=COUNTER)
    assert result.ok, result.detail
    assert comes_true(lambda: gone(int((tmp_path / "pid").read_text())))


def test_in_a_probe_a_program_has_time_to_end_its_own_processes(tmp_path):
    result = probe(tmp_path, POINT, [*python(SAVES), str(tmp_path / "model")], PLAN, counter=COUNTER)
    assert result.ok and (tmp_path / "model").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon escapes")
def test_what_is_started_while_a_probe_ends_ends_too(tmp_path):
    """A daemon that hears no SIGTERM goes on to start processes in sessions of their own."""
    mark = str(987_000_000 + os.getpid())
    code = (
        "import os, signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        f"        subprocess.Popen(['sleep', '{mark}'], start_new_session=True); time.sleep(0.02)\n"
        "for n in range(10**6): print('steps:', n, flush=True); time.sleep(0.01)\n"
    )
    begin_s = time.monotonic()
    result = probe(tmp_path, POINT, python(code), PLAN, counter=COUNTER, grace_s=0.5)
    assert result.ok and time.monotonic() - begin_s < 40
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def test_probe_of_the_own_script_running_out_of_memory(tmp_path):
    result = probe(tmp_path, POINT, [*OWN, "--fail-above", "2"], PLAN)
    assert result.status == "oom" and "CUDA out of memory" in result.detail + result.log_tail


def test_the_log_of_a_program_that_failed_ends_with_its_own_lines(tmp_path):
    """What raised the answer in the worker says nothing to the program's owner, and a report shows the log's end."""
    result = probe(
        tmp_path, POINT, python("print('building'); raise ValueError('no such game')"), PLAN, counter=COUNTER
    )
    assert result.log_tail.endswith("ValueError: no such game")
    assert "autotune/w" not in result.log_tail and "RefusedError" not in result.log_tail


def test_probe_of_a_third_party_trainer(tmp_path):
    pytest.importorskip("stable_baselines3")
    plan = MeasurePlan(discard_s=0.0, discard_iterations=1, window_s=1.0, window_iterations=2, timeout_s=120.0)
    argv = [
        sys.executable,
        str(DATA / "sb3_cartpole.py"),
        "--num-envs",
        "{num_envs}",
        "--minibatch-size",
        "{batch_size}",
    ]
    result = probe(tmp_path, Point(num_envs=4, batch_size=64), argv, plan, progress="sb3")
    assert result.ok, result.detail
    assert result.sps > 0
