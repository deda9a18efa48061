"""Does a probe's SPS hold in training? The same point probed (final plan) and trained for 60 s, in turns.

Every training stands between two probes and is compared with their mean, since a shared host drifts by several
per cent within minutes; what is allowed is the mean of their half-widths plus 3 %.

    python reports/reference/agreement/run.py --rounds 3      # on a quiet machine; writes results.md

Both are checked against EnvPool's own `elapsed_step`, which counts executed steps independently.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tabulate import tabulate

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.manifest import build_manifest, save_manifest
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import Budget, MeasurePlan, Point, ProbeResult
from autotune.runs import create_run
from autotune.store import read_lines
from autotune.train.supervise import supervise

POINT = Point(num_envs=8, batch_size=256)
WARM_UP_S = 20.0
TRAINED_S = 60.0


def probe(recipe, executor, run) -> tuple[ProbeResult, float]:
    """A final probe, and EnvPool's count over that of the session, from the raw samples."""
    result = run_probe(recipe, POINT, executor, grade="final", run=run, label="probe")
    steps = [row for row in read_lines(run.path / "samples" / "probe.jsonl") if "env_steps" in row]
    return result, steps[-1]["metrics"]["elapsed_steps"] / sum(row["env_steps"] for row in steps)


def train(recipe, device, run) -> tuple[float, float, float]:
    """SPS from metrics.csv between 20 s and 80 s of wall time, the supervisor's figure, and EnvPool's count."""
    job = replace(recipe.jobs[0], budget=Budget(unit="hours", amount=(WARM_UP_S + TRAINED_S + 5) / 3600))
    manifest = build_manifest(replace(recipe, jobs=(job,)), POINT, device=device)
    save_manifest(run.manifest_file, manifest)
    trained = supervise(manifest, run, device=device, plan=MeasurePlan(discard_s=WARM_UP_S))
    with (run.train_folder / "jobs" / job.id / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["time"]).timestamp() for row in rows]
    steps = [int(row["env_steps"]) for row in rows]
    inside = [i for i, t in enumerate(times) if t - times[0] >= WARM_UP_S]
    first, last = inside[0], inside[-1]
    sps = (steps[last] - steps[first]) / (times[last] - times[first])
    return sps, trained.sps or 0.0, float(rows[-1]["elapsed_steps"]) / steps[-1]


def main() -> None:
    """Measure in turns and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipe = restrict_games(load_recipe("atari"), ["Breakout"])
    executor = IsolatedExecutor(inspect_device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        before, count = probe(recipe, executor, create_run(Path(folder), "probe-0"))
        for number in range(1, options.rounds + 1):
            own, supervised, trained_count = train(
                recipe, executor.device, create_run(Path(folder), f"train-{number}", command="train", finished=False)
            )
            after, count = probe(recipe, executor, create_run(Path(folder), f"probe-{number}"))
            probed = (before.sps + after.sps) / 2
            half = (before.sps_high - before.sps + after.sps_high - after.sps) / 2 / probed
            rows.append(
                [
                    number,
                    f"{before.sps:.1f}",
                    f"{own:.1f}",
                    f"{after.sps:.1f}",
                    f"{own / probed - 1:+.1%}",
                    f"{half + 0.03:.1%}",
                    "yes" if abs(own / probed - 1) <= half + 0.03 else "no",
                    f"{supervised:.1f}",
                    f"{count:.4f}",
                    f"{trained_count:.4f}",
                ]
            )
            print(rows[-1], flush=True)
            before = after
    headers = [
        "round",
        "probe before, SPS",
        "train, SPS",
        "probe after, SPS",
        "difference",
        "allowed",
        "within",
        "train as the supervisor says",
        "EnvPool's count / probe's",
        "EnvPool's count / train's",
    ]
    table = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
    where = f"Breakout, {POINT.label()}, {executor.device.fingerprint}."
    text = f"# Probe against training\n\n{(__doc__ or '').split('    python')[0].strip()}\n\n{where}\n"
    (Path(__file__).parent / "results.md").write_text(f"{text}\n{table}\n")


if __name__ == "__main__":
    main()
