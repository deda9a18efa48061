"""What a session refuses to go on with: foreign checkpoints, broken environments, a rollout beyond the memory."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from autotune.errors import AutotuneError, UsageError, WorkerError
from autotune.units import format_bytes

RAM_VARIABLE = "AUTOTUNE_RAM_BYTES"
"""Host memory that this process may count on when it opens its session; the worker sets it."""


OTHERWISE = "choose another environment, or tune a trainer of your own: autotune search -- python train.py"
"""What to do about an environment that a bundled trainer cannot play."""


class OutOfMemoryError(WorkerError):
    """More memory is asked for than there is; known before anything is allocated."""


def require(workload: str, *packages: str) -> None:
    """Refuse to go on without packages that extras of the same names bring; none is imported.

    Raises:
        AutotuneError: names those that are not installed, and what installs them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise AutotuneError(
            f"workload {workload} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'gpu-autotune[{','.join(missing)}]'"
        )


def refuse_foreign_state(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another game or network.

    Args:
        theirs: what the checkpoint says of itself.
        ours: what the job needs, by the same names.

    Raises:
        UsageError: names every difference.
    """
    if theirs.get("workload") != ours["workload"]:  # nor does any other of the names say the same in both
        whose = f"workload {theirs['workload']!r}" if "workload" in theirs else "another workload"
        raise UsageError(
            f"this checkpoint is of {whose}, and the job's is {ours['workload']!r}: checkpoints of one mean nothing to "
            "the other. Name the workload that trained it, or start without the checkpoint"
        )
    differences = [f"{name} is {theirs.get(name)!r} there and {ours[name]!r} here" for name in ours]
    differences = [text for name, text in zip(ours, differences, strict=True) if theirs.get(name) != ours[name]]
    if differences:
        raise UsageError(
            f"this checkpoint does not fit the job: {'; '.join(differences)}. "
            "Use a checkpoint of the same job, or start without one"
        )


def first_environment_seed(seed: int, env_steps: int) -> int:
    """EnvPool's seed for a job's environments after so many env steps, below 2**31: environment i gets it plus i.

    Scattered, so that jobs of neighbouring seeds, which count as independent, have no environment in common, and a
    continued job sees other starts than its first steps did.
    """
    return int(np.random.SeedSequence([seed, env_steps]).generate_state(1)[0] >> 1)


def environment_made(make_spec: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Any:
    """EnvPool's specification of an environment that one player plays.

    Args:
        make_spec: EnvPool's.
        name: EnvPool's full name.
        options: EnvPool options, its defaults for the others.

    Raises:
        UsageError: EnvPool cannot make it, for want of a library or of memory or with these options, or it is for
            several players.
        TypeError: an option is not of its type.
    """
    try:
        spec = make_spec(name, **options)
        _ = spec.observation_space  # made when it is asked for: what no memory holds shows here
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        chosen = f" with the options {dict(options)}" if options else ""
        raise UsageError(
            f"EnvPool cannot make {name}{chosen}: {str(error).rstrip('.')}. Mend that, or {OTHERWISE}"
        ) from error
    if spec.config.max_num_players != 1:
        players = spec.config.max_num_players
        raise UsageError(f"{name} is for {players} players; this workload plays alone: {OTHERWISE}")
    return spec


def checked_observations(
    observations: np.ndarray[Any, Any], shape: tuple[int, ...], environment: str, env_steps: int
) -> np.ndarray[Any, Any]:
    """The observations (num_envs, *shape) of a vector step, as they are.

    Args:
        observations: as the environment returned them.
        shape: of one observation, as the environment announced it.
        environment: its name, for the message.
        env_steps: executed since it was opened, for the message.

    Raises:
        WorkerError: another shape, NaN or infinity.
    """
    if observations.shape[1:] != shape:
        raise WorkerError(
            f"{environment} returned observations of shape {observations.shape[1:]}, expected {shape}, after "
            f"{env_steps} steps; the environment changed its shape while running"
        )
    if observations.dtype.kind == "f" and not np.isfinite(observations).all():
        bad = np.flatnonzero(~np.isfinite(observations).reshape(len(observations), -1).all(axis=1))
        raise WorkerError(
            f"{environment} returned an observation that is not finite in environment {int(bad[0])} after "
            f"{env_steps} steps; the environment is broken"
        )
    return observations


def checked_rewards(rewards: np.ndarray[Any, Any], environment: str, env_steps: int) -> np.ndarray[Any, Any]:
    """The rewards (num_envs,) of a vector step, as they are.

    Raises:
        WorkerError: NaN or infinity.
    """
    finite = np.isfinite(rewards)
    if not finite.all():
        raise WorkerError(
            f"{environment} returned a reward that is not finite in environment {int(np.argmin(finite))} after "
            f"{env_steps} steps; the environment is broken"
        )
    return rewards


def broken_environment(environment: str, env_steps: int, error: BaseException) -> WorkerError:
    """What to raise for an exception of the environment's own."""
    why = f": {error}" if str(error) else ", and gave no reason"
    return WorkerError(f"{environment} raised {type(error).__name__} after {env_steps} steps{why}")


def free_ram_bytes() -> int | None:
    """Host memory that the session may count on, None when nobody said."""
    text = os.environ.get(RAM_VARIABLE, "")
    return int(text) if text.isdigit() else None


def check_memory(
    what: str, bytes_per_env: int, num_envs: int, free_bytes: int | None, *, or_else: str = "a shorter rollout"
) -> None:
    """Refuse what grows with the environments and cannot be held, before it is allocated.

    Args:
        what: needs it, for the message: ``rollout``.
        bytes_per_env: for one environment.
        num_envs: environments of this process.
        free_bytes: memory that it may take; None (unknown) refuses nothing.
        or_else: helps beside fewer environments.

    Raises:
        OutOfMemoryError: names both sizes and the largest num_envs that fits.
    """
    needed = bytes_per_env * num_envs
    if free_bytes is None or needed <= free_bytes:
        return
    fits = free_bytes // bytes_per_env
    remedy = f"num_envs <= {fits} or {or_else}" if fits else or_else
    raise OutOfMemoryError(
        f"num_envs = {num_envs} needs {format_bytes(needed)} for the {what}, and this process may count on "
        f"{format_bytes(free_bytes)}: use {remedy} (nothing was allocated)"
    )
