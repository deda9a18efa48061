"""Cost of looking: `python looking.py` runs tests/benchmarks/test_cost_of_looking.py and writes looking.md.

A share is seconds a call x calls a second: as many as iterations, though no more messages than `REPORT_PERIOD_S`
allows, or as many as readings. A worker's own calls are a share of its time; the parent's run beside it and are a share
of all cores.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import tabulate

from autotune.device.inspect import inspect_device

HERE = Path(__file__).parent
BENCHMARKS = Path(__file__).parents[3] / "tests" / "benchmarks" / "test_cost_of_looking.py"
ITERATIONS_S = {"0.01 s": 0.01, "0.02 s": 0.02, "0.1 s": 0.1, "1 s": 1.0}
"""Of the bundled recipes CartPole in JAX has the shortest: 0.019 s with 4 environments on a Zen 3, two cores."""


LIMIT = 0.002


def shares(found: dict, cores: int) -> list[float]:
    """Share that a benchmark's calls take of iterations of each length; empty for what happens once a probe."""
    info, seconds = found["extra_info"], found["stats"]["median"]
    share = 1 / cores if info.get("in_parent") else 1.0
    if at_most := info.get("times_per_s_at_most"):
        return [share * min(1 / each, at_most) * seconds for each in ITERATIONS_S.values()]
    return [share * info["times_per_s"] * seconds] * len(ITERATIONS_S) if "times_per_s" in info else []


def cells(found: dict, cores: int) -> list[str]:
    """One row: what, where, seconds a call, how often, share of iterations of several lengths."""
    info, seconds = found["extra_info"], found["stats"]["median"]
    name = found["name"].removeprefix("test_").replace("_", " ").replace("[", ": ").rstrip("]")
    call = f"{1e6 * seconds:,.1f} µs" if seconds < 0.01 else f"{1e3 * seconds:,.0f} ms"
    if limit_s := info.get("limit_s"):
        return [name, call, f"at most {1e3 * limit_s:.0f} ms: {'kept' if seconds <= limit_s else 'MISSED'}"]
    taken = [f"{share:.3%}" for share in shares(found, cores)]
    if not taken:
        return [name, call, "once a probe, in the parent"]
    where = "in the parent" if info.get("in_parent") else "in the worker"
    at_most = info.get("times_per_s_at_most")
    often = f"{info['times_per_s']} a second" if at_most is None else "1 an iteration"
    if at_most and math.isfinite(at_most):
        often += f" or {at_most:g} a second"
    return [name, call, f"{often}, {where}", *taken]


def together(benchmarks: list[dict], cores: int) -> list[str]:
    """The sum, and whether it is kept."""
    sums = [sum(column) for column in zip(*filter(None, (shares(each, cores) for each in benchmarks)), strict=True)]
    told = [f"{value:.3%}: {'kept' if value <= LIMIT else 'MISSED'}" for value in sums]
    return ["**together**", "", f"at most {LIMIT:.1%}", *told]


def main() -> None:
    """Measure and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        options = [
            "-o",
            "addopts=--import-mode=importlib",
            "-q",
            "--benchmark-only",
            "-k",
            "not start",
            f"--benchmark-json={file}",
        ]
        subprocess.run([sys.executable, "-m", "pytest", *options, str(BENCHMARKS)], check=True)
        results = json.loads(file.read_text())
    headers = ["what", "one call", "how often", *(f"share of {name}" for name in ITERATIONS_S)]
    cores = inspect_device("cpu").host.cpu_cores_allowed
    rows = [cells(found, cores) for found in results["benchmarks"]]
    rows.append(together(results["benchmarks"], cores))
    table = tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    brand = results["machine_info"]["cpu"].get("brand_raw", "unknown processor")
    head = f"Medians on {brand}, {cores:g} cores. Written by `looking.py` (beside), which defines the shares.\n\n"
    (HERE / "looking.md").write_text(f"# Cost of looking\n\n{head}{table}\n")


if __name__ == "__main__":
    main()
