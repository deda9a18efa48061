"""The doctor's measurements, taken in a child process so that the parent never owns a CUDA context."""

from __future__ import annotations

from pathlib import Path

from autotune.errors import AutotuneError
from autotune.executors.isolated import IsolatedExecutor
from autotune.records import Budget, DeviceInfo, Job, Point

_STEPS_MAX = 100


def run_checks(device: DeviceInfo, choice: str = "auto") -> tuple[dict[str, float], dict[str, str]]:
    """Measured rates by name, and what went wrong by check.

    A child that fails as a whole (a broken framework, a lost GPU) is one more finding, not an error.
    """
    job = Job(id="doctor", env="Breakout-v5", seed=0, budget=Budget(unit="steps", amount=1))
    point = Point(num_envs=64, batch_size=64)
    try:
        messages = IsolatedExecutor(device).ask(
            "steps", "doctor", {}, (job,), point, device=choice, steps=_STEPS_MAX, log=Path("/dev/null")
        )
    except AutotuneError as error:
        return {}, {"worker": str(error)}
    metrics = {name: value for m in messages if m["type"] == "step" for name, value in m["metrics"].items()}
    return metrics, dict(messages[-1]["effective"].get("errors", {}))
