"""What a process that is used again for another point would save, and what it would cost in honesty.

Each child opens, steps and closes a sequence of points, releasing memory in between (garbage collection, JAX's
caches, `malloc_trim`), and tells seconds to open, PSS after the same number of steps, and seconds per env step.
`python warm.py [--repeats 5]` writes `warm.csv` and the table `warm.md`.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from autotune import registry
from autotune.executors.environment import worker_environment
from autotune.probe.recipe import load_recipe
from autotune.records import Point

HERE = Path(__file__).parent
SMALL, BIG = Point(num_envs=8, batch_size=256), Point(num_envs=128, batch_size=1024)
SEQUENCES = {"fresh": [SMALL], "after an equal point": [SMALL, SMALL], "after a bigger point": [BIG, SMALL]}
RECIPES = ("atari", "cartpole-jax")
STEPS = {"atari": 4, "cartpole-jax": 100}


def memory_mib() -> tuple[float, float]:
    """Proportional set size of this process, and its anonymous part (library pages depend on who else maps them)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    pss, anonymous = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("Pss", "Pss_Anon"))
    assert pss and anonymous
    return int(pss[1]) / 1024, int(anonymous[1]) / 1024


def release() -> None:
    """Give back what a closed session held."""
    gc.collect()
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def visit(name: str, point: Point, started_s: float) -> dict[str, float]:
    """Open, step and close one point."""
    recipe = load_recipe(name)
    session = registry.load("workload", recipe.workload)(recipe.hyperparameters).open(point, recipe.jobs[0], "cpu")
    opened_s, slices = time.monotonic(), 4 if point == BIG else 1
    pss = anonymous = env_steps = 0.0
    for _ in range(2 if point == BIG else STEPS[name]):
        begun_s = time.monotonic()
        env_steps = session.step(slices).env_steps
        session.synchronize()
        ended_s = time.monotonic()
        pss, anonymous = (max(pair) for pair in zip((pss, anonymous), memory_mib(), strict=True))
    session.close()
    del session
    closing_s = time.monotonic()
    release()
    return {
        "start_s": opened_s - started_s,
        "release_s": time.monotonic() - closing_s,
        "pss_mib": pss,
        "anonymous_mib": anonymous,
        "left_anonymous_mib": memory_mib()[1],
        "us_per_env_step": 1e6 * (ended_s - begun_s) / env_steps,
    }


def child(name: str, sequence: str, started_s: float) -> None:
    """The figures of the last point of a sequence, as JSON."""
    figures = {}
    for point in SEQUENCES[sequence]:
        figures = visit(name, point, started_s)
        started_s = time.monotonic()
    print(json.dumps(figures))


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        with contextlib.suppress(BrokenPipeError):
            child(*arguments.child, float(sys.stdin.readline()))
        return
    rows = []
    for _ in range(arguments.repeats):
        for name in RECIPES:
            for sequence in SEQUENCES:
                done = subprocess.run(
                    [sys.executable, __file__, "--child", name, sequence],
                    input=f"{time.monotonic()}\n", capture_output=True, text=True, check=True, env=environment(),
                )  # fmt: skip
                rows.append({"recipe": name, "process": sequence} | json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(HERE / "warm.csv", index=False, float_format="%.3f")
    medians = frame.groupby(["recipe", "process"], sort=False).median().round(2).reset_index()
    (HERE / "warm.md").write_text(str(medians.to_markdown(index=False)) + "\n")


def environment() -> dict[str, str]:
    """A worker's environment, with two threads."""
    from measure import task_of

    return worker_environment(task_of("atari"), {"PYTHONDONTWRITEBYTECODE": ""})


if __name__ == "__main__":
    main()
