"""Memory of a cartpole-jax process that compiles, and of one that reads what another compiled: `python compiled.py`.

Prints a line for each start: no cache; the cache for everything (what the session forbids is allowed again); the
cache for opening alone, as it is.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from warm import SMALL, environment, memory_mib

from autotune import registry
from autotune.probe.recipe import load_recipe

CASES = ("none", "everything", "opening")
ITERATIONS = 61


def child(case: str) -> None:
    """Open, step, tell."""
    recipe = load_recipe("cartpole-jax")
    session = registry.load("workload", recipe.workload)(recipe.hyperparameters).open(SMALL, recipe.jobs[0], "cpu")
    if case == "everything":
        import jax
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    for _ in range(ITERATIONS):
        session.step()
        session.synchronize()
    largest = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert largest
    print(f"{case}: proportional set {memory_mib()[0]:.0f} MiB, largest resident set {int(largest[1]) / 1024:.0f} MiB")


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1:
        return child(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for case in ("everything", *CASES * 3):  # the first fills the cache
            values = environment() | {"JAX_COMPILATION_CACHE_DIR": folder}
            values |= {"JAX_ENABLE_COMPILATION_CACHE": "0"} if case == "none" else {}
            subprocess.run([sys.executable, __file__, case], env=values, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
