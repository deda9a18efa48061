"""Everything that wants a GPU, in one go and in the order of its worth, within some minutes.

    python reports/reference/gpu/collect.py --minutes 9 --out runs/gpu     # again: goes on with what is left
    python reports/reference/gpu/collect.py --device cpu --search 2m --out /tmp/trial      # a trial run on a CPU

A search, a training from its manifest, the report, the trainer beside its own parts (`../trainer/gpu.py`), how
processes share the device, Pong to 18, where a launch's seconds go, the doctor, and the tests marked `gpu`. Each step
has a log, and ``steps.json`` says how it ended; a step that does not fit into what is left is left for the next call.
At the end all of it but weights is packed as ``<out>.tar.gz``.
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
        stops: whether it is meant to be interrupted, as a training is.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    stops: bool = False


def steps(out: Path, options: argparse.Namespace) -> tuple[Step, ...]:
    """What is to be done, the most valuable first."""
    device = ("--device", options.device)
    runs = ("--runs", str(out / "runs"))
    tune = ("-m", "autotune")
    breakout = ("search", "atari", "--games", "Breakout")
    price = ("--price", str(options.price))
    tests = ("-m", "pytest", "-m", "gpu", "-v", "-o", "addopts=--import-mode=importlib")
    sharing = ("--knob", "sharing=time-slice,cuda-mps") if options.device != "cpu" else ()
    grid = ("--num-envs", "64", "--batch-size", "1024", "--concurrency", "1,2,4")
    pong = ("--game", "Pong", "--target", "18", "--steps", "20000000", "--num-envs", "128", "--batch-size", "1024")
    rule = ("--set", "learning_rate=5e-4", "--set", "clip=0.2", "--set", "rollout=64", "--set", "overlap=true")
    manifest = str(out / "runs" / "search" / "manifest.json")
    search_s = parse_duration(options.search)
    start = ("reports/reference/start/measure.py", *(device if options.device == "cpu" else ("--device", "cuda")))
    start += ("--recipes", "atari")
    trainer = ("reports/reference/trainer/gpu.py", *device, "--points", options.points, "--seconds", "3")
    return (
        Step(
            name="search",
            command=(*tune, *breakout, "--budget", options.search, *price, "--name", "search", *device, *runs),
            seconds=search_s + 30,
        ),
        Step(name="train", command=(*tune, "train", manifest, *device, *runs), seconds=options.train, stops=True),
        Step(name="report", command=(*tune, "report", "search", *price, *runs), seconds=60),
        Step(name="trainer", command=(*trainer, "--out", str(out / "trainer")), seconds=240),
        Step(
            name="sharing",
            command=(*tune, "probe", "atari", *grid, *sharing, "--name", "sharing", *device, *runs),
            seconds=240,
        ),
        Step(
            name="pong",
            command=("reports/reference/learning/run_atari.py", *pong, *rule, "--scratch", str(out / "pong"), *device),
            seconds=options.pong,
            stops=True,
        ),
        Step(name="start", command=(*start, "--out", str(out / "start"), "--launches", "2"), seconds=180),
        Step(name="start-profile", command=(*start, "--profile", "atari"), seconds=60),
        Step(name="doctor", command=(*tune, "doctor", *device), seconds=90),
        Step(name="tests", command=tests, seconds=500),
    )  # fmt: skip


def carry_out(step: Step, log: Path) -> str:
    """Run a step; says how it ended."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *step.command], cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout=step.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return "killed: it did not stop"
            return "done" if step.stops else f"too slow: stopped after {step.seconds:.0f} s"
    return "done" if code == 0 else f"exit code {code}"


def main() -> None:
    """Do what is left and fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--search", default="4m", help="budget of the search")
    parser.add_argument("--train", type=float, default=60.0, help="seconds of training from its manifest")
    parser.add_argument("--pong", type=float, default=480.0, help="seconds of learning Pong")
    parser.add_argument("--only", help="names of steps, with commas between")
    parser.add_argument("--points", default="256/2048", help="of the trainer's table")
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
