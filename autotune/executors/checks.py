"""The doctor's measurements, taken in a child process so that the parent never owns a CUDA context."""

from __future__ import annotations

from autotune.errors import AutotuneError
from autotune.executors.isolated import IsolatedExecutor
from autotune.machine import DeviceInfo
from autotune.records import Budget, Job, Point

FRAMEWORKS = ("torch", "jax")
_STEPS_MAX = 100
_JOB = Job(id="doctor", env="Breakout-v5", seed=0, budget=Budget(unit="steps", amount=1))
_POINT = Point(num_envs=64, batch_size=64)


def run_checks(device: DeviceInfo) -> tuple[dict[str, float], dict[str, str]]:
    """Measured rates by name, and what went wrong by check; one child for each framework.

    A child that fails as a whole (a broken framework, a lost GPU) is one more finding, not an error.
    """
    rates: dict[str, float] = {}
    errors: dict[str, str] = {}
    for framework in FRAMEWORKS:
        try:
            messages = IsolatedExecutor(device).ask(
                "steps", "doctor", {"framework": framework}, (_JOB,), _POINT, steps=_STEPS_MAX
            )
        except AutotuneError as error:
            errors[framework] = str(error)
            continue
        for message in messages:
            rates |= message.get("metrics", {})
        errors |= messages[-1]["effective"].get("errors", {})
    return rates, errors
