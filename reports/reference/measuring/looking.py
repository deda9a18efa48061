"""Cost of looking: `python looking.py` runs tests/benchmarks/test_cost_of_looking.py and writes looking.md.

A share is seconds a call x calls / seconds of an iteration, for readings seconds a call x calls a second. A
worker's own calls are a share of its iteration; the parent's run beside it and are a share of all cores.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tabulate

from autotune.device.inspect import inspect_device

HERE = Path(__file__).parent
BENCHMARKS = Path(__file__).parents[3] / "tests" / "benchmarks" / "test_cost_of_looking.py"
ITERATIONS_S = {"0.01 s": 0.01, "0.1 s": 0.1, "1 s": 1.0}
"""CartPole on a CPU takes 0.01 s, Breakout with 8 environments 1.3 s."""


def cells(found: dict, cores: int) -> list[str]:
    """One row: what, where, seconds a call, how often, share of iterations of several lengths."""
    info, seconds = found["extra_info"], found["stats"]["median"]
    name = found["name"].removeprefix("test_").replace("_", " ").replace("[", ": ").rstrip("]")
    call = f"{1e6 * seconds:,.1f} µs" if seconds < 0.01 else f"{1e3 * seconds:,.0f} ms"
    if limit_s := info.get("limit_s"):
        return [name, call, f"at most {1e3 * limit_s:.0f} ms: {'kept' if seconds <= limit_s else 'MISSED'}"]
    share = 1 / cores if info.get("in_parent") else 1.0
    where = ", in the parent" if info.get("in_parent") else ", in the worker"
    if calls := info.get("calls_per_iteration"):
        shares = [f"{share * calls * seconds / each:.3%}" for each in ITERATIONS_S.values()]
        return [name, call, f"{calls} an iteration{where}", *shares]
    if calls := info.get("calls_per_s"):
        return [name, call, f"{calls} a second{where}", *[f"{share * calls * seconds:.3%}"] * len(ITERATIONS_S)]
    return [name, call, "once a probe, in the parent"]


def main() -> None:
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
    table = tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    brand = results["machine_info"]["cpu"].get("brand_raw", "unknown processor")
    head = f"Medians on {brand}, {cores:g} cores. Written by `looking.py` (beside), which defines the shares.\n\n"
    (HERE / "looking.md").write_text(f"# Cost of looking\n\n{head}{table}\n")


if __name__ == "__main__":
    main()
