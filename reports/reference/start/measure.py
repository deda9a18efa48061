"""Where the seconds of a start go: `python measure.py [--launches 7] [--before FOLDER] [--device cuda]`.

Launches one worker of each recipe again and again, cases interleaved, and writes `starts.csv` (a row for each
launch and stage) and `starts.md` (medians). Cases: ``before`` (FOLDER holds an older `autotune/`:
`git archive REVISION autotune | tar -x -C FOLDER`; no compile caches), ``first`` (nothing compiled yet) and ``again``.
`--profile RECIPE` prints the functions that opening a session in this process spends its time in, and the first step.
"""

import argparse
import cProfile
import os
import pstats
import re
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd

from autotune import registry
from autotune.device.inspect import inspect_device
from autotune.executors.environment import worker_environment
from autotune.executors.process import WorkerProcess
from autotune.probe.recipe import load_recipe
from autotune.records import Point
from autotune.worker.protocol import WorkerTask

HERE = Path(__file__).parent
RECIPES = ("atari", "cartpole-jax", "busywork")
POINT = Point(num_envs=8, batch_size=256)
STEPS = 4
IMPORT = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
PACKAGES = ("torch._dynamo", "torch", "envpool", "jax", "scipy", "sympy", "numpy", "pydantic", "autotune")


def task_of(name: str, device: str) -> WorkerTask:
    """A quick probe's task at a small point, with all cores."""
    recipe = load_recipe(name)
    return WorkerTask(
        mode="measure",
        workload=recipe.workload,
        hyperparameters=recipe.hyperparameters,
        point=POINT,
        jobs=recipe.jobs[:1],
        threads=max(1, int(inspect_device("cpu").host.cpu_cores_allowed)),
        device=device,
    )


def launch(task: WorkerTask, environment: dict[str, str], log: Path) -> dict[str, float]:
    """Seconds by stage of one start."""
    compiled = {"PYTHONDONTWRITEBYTECODE": ""}  # as on a user's machine
    started_s = time.monotonic()
    worker = WorkerProcess(task, log, environment=compiled | environment)
    stages, steps = dict[str, float](), []
    while len(steps) < STEPS:
        for message in worker.receive(1.0):
            if message["type"] == "ready":
                stages["launch to ready"] = time.monotonic() - started_s
                stages["of which open"] = message["open_s"]
                released_s = time.monotonic()
                worker.send("go")
            elif message["type"] == "step":
                steps.append(message)
            else:
                raise SystemExit(str(message))
    worker.kill(grace_s=0.0)
    stages["go to first step"] = steps[0]["t"] - released_s
    stages["later step"] = steps[-1]["t"] - steps[-1]["started"]
    stages["launch to first step"] = stages["launch to ready"] + stages["go to first step"]
    return stages


def imports(log: Path) -> dict[str, float]:
    """Seconds of imports by package, from the lines of `python -X importtime`."""
    seconds: dict[str, float] = defaultdict(float)
    for self_us, module in IMPORT.findall(log.read_text()):
        group = next((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), None)
        group = "jax" if module.startswith("jaxlib") else group
        seconds[f"import {group or 'other'}"] += int(self_us) / 1e6
    return dict(seconds)


def cases_of(before: str | None, folder: str) -> dict[str, dict[str, str]]:
    """Environment of each case."""
    found = {"before": {"PYTHONPATH": before, "JAX_ENABLE_COMPILATION_CACHE": "0"}} if before else {}
    return found | {case: {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{case}"} for case in ("first", "again")}


def measure_round(
    task: WorkerTask, recipe: str, number: int, before: str | None, folder: str
) -> list[tuple[str, str, int, str, float]]:
    """A row for each case and stage; one round in three also times imports, in a launch of their own."""
    rows = list[tuple[str, str, int, str, float]]()
    for case, environment in cases_of(before, folder).items():
        log = Path(folder) / f"{recipe}-{number}-{case}"
        shutil.rmtree(f"{folder}/first", ignore_errors=True)
        if case == "again" and number == 0:
            launch(task, environment, log)
        stages = launch(task, environment, log)
        if number % 3 == 0 and case == "again":
            launch(task, {**environment, "PYTHONPROFILEIMPORTTIME": "1"}, log)
            stages |= imports(log)
        rows += [(recipe, case, number, stage, round(value, 4)) for stage, value in stages.items()]
    return rows


def measure(recipes: list[str], device: str, before: str | None, launches: int) -> pd.DataFrame:
    """Rounds of all recipes, interleaved."""
    tasks = {recipe: task_of(recipe, device) for recipe in recipes}
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            measure_round(task, recipe, number, before, folder)
            for number in range(launches)
            for recipe, task in tasks.items()
        ]
    rows = [row for each in rounds for row in each]
    return pd.DataFrame(rows, columns=["recipe", "case", "launch", "stage", "seconds"])


def table(rows: pd.DataFrame) -> str:
    """Medians by recipe, stage and case."""
    wide = rows.pivot_table(index=["recipe", "stage"], columns="case", values="seconds", aggfunc="median", sort=False)
    wide = wide[list(dict.fromkeys(rows["case"]))].round(3)
    return str(wide.reset_index().fillna("").to_markdown(index=False, disable_numparse=True))


def profile(task: WorkerTask) -> None:
    """Print where opening a session and its first step spend their time, imports included."""
    os.environ.update(worker_environment(task))
    profiler = cProfile.Profile()
    with profiler:
        workload = registry.load("workload", task.workload)(task.hyperparameters)
        session = workload.open(task.point, task.jobs[0], task.device)
        session.step()
        session.synchronize()
    session.close()
    pstats.Stats(profiler).strip_dirs().sort_stats("cumulative").print_stats(60).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=7)
    parser.add_argument("--before", help="folder with an older package")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names, with commas between")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--profile", metavar="RECIPE", help="profile this recipe's start instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(task_of(arguments.profile, arguments.device))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.recipes.split(","), arguments.device, arguments.before, arguments.launches)
    rows.to_csv(arguments.out / "starts.csv", index=False)
    (arguments.out / "starts.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
