"""Everything that wants a GPU, in one go and in the order of its worth, within some minutes.

    python reports/reference/gpu/collect.py --minutes 9 --out runs/gpu     # again: goes on with what is left
    python reports/reference/gpu/collect.py --device cpu --search 2m --out /tmp/trial      # a trial run on a CPU

The trainer beside its own parts (`../trainer/gpu.py`), how processes share the device, where a launch's seconds go,
Pong to 18 and Breakout to 200 side by side (the settings with which a CPU learnt Pong), a search, a training from its
manifest, the report, the doctor, and the tests marked `gpu`. Each step has a log, and ``steps.json`` says how it ended;
a step that does not fit into what is left is left for the next call, and learning goes on there. At the end all of it
but weights is packed as ``<out>.tar.gz``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from autotune.units import parse_duration

REPOSITORY = Path(__file__).parents[3]
GRACE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        name: of its log.
        command: after ``python``.
        seconds: that it may take; then it is interrupted, and killed if it does not end.
        stopped: how it has then ended, where that is meant to be; all but "done" is gone on with by the next call.
        beside: a further command, run at the same time.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    stopped: str | None = None
    beside: tuple[str, ...] = ()


def steps(out: Path, options: argparse.Namespace) -> tuple[Step, ...]:
    """What is to be done, the most valuable first."""
    device = ("--device", options.device)
    runs = ("--runs", str(out / "runs"))
    tune = ("-m", "autotune")
    breakout = ("search", "atari", "--games", "Breakout")
    price = ("--price", str(options.price))
    tests = ("-m", "pytest", "-m", "gpu", "-v", "-o", "addopts=--import-mode=importlib", "-k")
    graphs, done = "replayed or recorded", "search_then_train"  # the latter are steps of their own
    four = ("probe", "atari", "--games", "Breakout", "--seeds", "4", "--num-envs", "64", "--batch-size", "1024")
    mps = ("--concurrency", "4", "--knob", "sharing=cuda-mps") if options.device != "cpu" else ("--concurrency", "4")
    learn = ("reports/reference/learning/run_atari.py", "--scratch", str(out / "learn"), "--curves", str(out), *device)
    learn += ("--steps", "20000000")
    rule = ("--num-envs", "64", "--batch-size", "256")
    for setting in ("rollout=32", "learning_rate=5e-4", "clip=0.2", "lanes=2", "env_threads=8"):
        rule += ("--set", setting)
    breakout_rule = (*rule, "--set", "value_clip=false")
    manifest = str(out / "runs" / "search" / "manifest.json")
    search_s = parse_duration(options.search)
    start = ("reports/reference/start/measure.py", *(device if options.device == "cpu" else ("--device", "cuda")))
    start += ("--recipes", "atari")
    trainer = ("reports/reference/trainer/gpu.py", *device, "--points", options.points, "--seconds", "2.5")
    trainer += ("--ways", options.ways)
    return (
        Step(name="trainer", command=(*trainer, "--out", str(out / "trainer")), seconds=260),
        Step(
            name="time-slice",
            command=(*tune, *four, "--concurrency", "1,2,4", "--name", "time-slice", *device, *runs),
            seconds=140,
        ),
        Step(name="mps", command=(*tune, *four, *mps, "--name", "mps", *device, *runs), seconds=70),
        Step(name="start-profile", command=(*start, "--profile", "atari"), seconds=60),
        Step(
            name="learn",
            command=(*learn, "--game", "Pong", "--target", "18", *rule),
            beside=(*learn, "--game", "Breakout", "--target", "200", *breakout_rule),
            seconds=options.learn,
            stopped="not there yet",
        ),
        Step(
            name="search",
            command=(*tune, *breakout, "--budget", options.search, *price, "--name", "search", *device, *runs),
            seconds=search_s + 30,
        ),
        Step(name="train", command=(*tune, "train", manifest, *device, *runs), seconds=options.train, stopped="done"),
        Step(name="report", command=(*tune, "report", "search", *price, *runs), seconds=60),
        Step(name="start", command=(*start, "--out", str(out / "start"), "--launches", "2"), seconds=180),
        Step(name="doctor", command=(*tune, "doctor", *device), seconds=90),
        Step(name="tests-graphs", command=(*tests, graphs), seconds=300),
        Step(name="tests", command=(*tests, f"not ({graphs} or {done})"), seconds=480),
    )  # fmt: skip


def carry_out(step: Step, log: Path) -> str:
    """Run a step; says how it ended."""
    until_s = time.monotonic() + step.seconds
    with log.open("a") as output:
        running = [
            subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
            for command in (step.command, step.beside)
            if command
        ]
        codes, interrupted, killed = [], False, False
        for process in running:
            try:
                codes.append(process.wait(timeout=max(0.0, until_s - time.monotonic())))
            except subprocess.TimeoutExpired:
                interrupted = True
                process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                killed = True
                process.kill()
    if killed:
        return "killed: it did not stop"
    if interrupted:
        return step.stopped or f"too slow: stopped after {step.seconds:.0f} s"
    return "done" if not any(codes) else f"exit codes {codes}"


def main() -> None:
    """Do what is left and fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--search", default="4m", help="budget of the search")
    parser.add_argument("--train", type=float, default=60.0, help="seconds of training from its manifest")
    parser.add_argument("--learn", type=float, default=400.0, help="seconds of learning Pong and Breakout")
    parser.add_argument("--only", help="names of steps, with commas between")
    parser.add_argument("--points", default="256/2048,512/4096", help="of the trainer's table")
    parser.add_argument("--ways", default="4,6,7,9,10,11", help="of the trainer's table")
    parser.add_argument("--price", type=float, default=3.0)
    options = parser.parse_args()
    out, deadline_s = options.out.resolve(), time.monotonic() + 60 * options.minutes
    out.mkdir(parents=True, exist_ok=True)
    ended_file = out / "steps.json"
    ended = json.loads(ended_file.read_text()) if ended_file.exists() else {}
    for step in steps(out, options):
        wanted = options.only is None or step.name in options.only.split(",")
        if not wanted or ended.get(step.name, {}).get("ended") == "done":
            continue
        if step.seconds + GRACE_S > deadline_s - time.monotonic():
            print(f"{step.name}: left for the next call")
            continue
        started_s = time.monotonic()
        how = carry_out(step, out / f"{step.name}.log")
        ended[step.name] = {"ended": how, "seconds": round(time.monotonic() - started_s, 1)}
        ended_file.write_text(json.dumps(ended, indent=2) + "\n")
        print(f"{step.name}: {how}, {ended[step.name]['seconds']} s", flush=True)
    with tarfile.open(f"{out}.tar.gz", "w:gz") as archive:
        archive.add(out, out.name, filter=lambda file: None if file.name.endswith(".safetensors") else file)
    print(f"packed {out}.tar.gz")


if __name__ == "__main__":
    main()
