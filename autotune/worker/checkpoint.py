"""Checkpoints: safetensors with JSON in the header, atomic, verified, several generations.

A file is named ``<generation>-<env_steps>-<sha256>.safetensors``: the hash of the whole content
stands in the name, so one rename publishes both, and no unverified byte is ever parsed. The
generation counts up with every save, whatever the env steps do after a fallback. Nothing is
pickled. ``best.json`` points at the best generation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from autotune.errors import FileError, UsageError, WorkerError
from autotune.store import canonical_json, content_hash, durable_write, make_folder, read_json, sync_folder, write_json
from autotune.worker.totals import Progress, Totals
from autotune.workloads.protocol import Session, SessionState

_NAME = re.compile(r"(\d{8,})-(\d+)-([0-9a-f]{64})\.safetensors")
_BEST = "best.json"
_META = "autotune"
FORMAT = 1
"""Of what a training's checkpoint says beside its arrays; one of another number is not guessed at."""
_PROGRESS = {"env_steps", "episodes", "seconds", "best_return", "returns"}
_DTYPES = {"bool", "float16", "float32", "float64", "complex64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True, kw_only=True, order=True)
class Generation:
    """One checkpoint file, as its name describes it.

    Attributes:
        number: counts up with every save.
        env_steps: agent decisions trained when it was saved.
        path: where it lies.
    """

    number: int
    env_steps: int
    path: Path


def generations(folder: Path) -> list[Generation]:
    """Every checkpoint in a folder by its name alone, oldest first; unverified."""
    matches = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("*.safetensors")]
    found = [Generation(number=int(match[1]), env_steps=int(match[2]), path=path) for path, match in matches if match]
    return sorted(found)


def trained_env_steps(checkpoints: Mapping[str, str]) -> dict[str, int]:
    """By job, the agent decisions trained when its checkpoint was saved, by the name of a file that may be gone."""
    names = {job: _NAME.fullmatch(Path(str(file)).name) for job, file in checkpoints.items()}
    return {job: int(match[2]) for job, match in names.items() if match}


def restore_session(session: Session, path: Path) -> Mapping[str, Any]:
    """Put a training's state into a session; returns the checkpoint's `meta`.

    Raises:
        FileError: it is damaged.
        UsageError: it is of another environment or network, or another version of autotune wrote it.
    """
    state = load_training(path)
    session.restore(SessionState(arrays=state.arrays, meta=state.meta["session"]))
    return state.meta


def encode(state: SessionState) -> bytes:
    """The bytes of a checkpoint.

    Raises:
        UsageError: an array's dtype has no exact form in the file, or `meta` is not JSON.
    """
    for name, array in state.arrays.items():
        if np.asarray(array).dtype.name not in _DTYPES:
            raise UsageError(
                f"array {name!r} of the session's state has dtype {np.asarray(array).dtype}: a checkpoint holds "
                f"{', '.join(sorted(_DTYPES))}; let the workload's state() convert it"
            )
    try:
        meta = canonical_json(state.meta, indent=None)
    except (TypeError, ValueError) as error:
        raise UsageError(f"meta of the session's state is not JSON ({error}): let state() give plain values") from error
    arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()}
    return safetensors.numpy.save(arrays, metadata={_META: meta})


def decode(raw: bytes) -> SessionState:
    """The inverse of `encode`, for verified bytes.

    Raises:
        ValueError: not a checkpoint.
    """
    try:
        arrays = {name: array.copy() for name, array in safetensors.numpy.load(raw).items()}  # writable
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return SessionState(arrays=arrays, meta=json.loads(header["__metadata__"][_META]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint: {error}") from error


def refuse_nonfinite(state: SessionState) -> None:
    """Refuse a state with NaN or infinity in an array: it must not push good generations out.

    Raises:
        WorkerError: names the array; nothing was saved.
    """
    for name, array in state.arrays.items():
        if np.asarray(array).dtype.kind in "fc" and not np.isfinite(array).all():
            raise WorkerError(
                f"{name} is not finite any more: nothing was saved; lower learning_rate or use precision = 'fp32'"
            )


def save_checkpoint(
    folder: Path,
    state: SessionState,
    *,
    env_steps: int,
    keep: int = 3,
    score: float | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a new generation durably, then remove those beyond the newest `keep` and the best.

    Args:
        folder: of the job's checkpoints; one writer at a time.
        state: what to save.
        env_steps: agent decisions trained so far.
        keep: newest generations to keep, at least 1.
        score: how good this state is (higher is better); the best scored generation is kept too.
        warn: takes the sentence that the best generation could not be noted: the new one is safe all the same.

    Returns:
        The new file, on the disk when this returns.

    Raises:
        FileError: the folder is missing, read-only or full; older generations are untouched.
        UsageError: the state cannot be written exactly.
    """
    raw = encode(state)
    make_folder(folder)
    for leftover in (*folder.glob(".*.safetensors.*"), *folder.glob(f".{_BEST}.*")):  # of a writer that was killed
        leftover.unlink(missing_ok=True)
    number = max((generation.number for generation in generations(folder)), default=0) + 1
    path = folder / f"{number:08d}-{env_steps}-{content_hash(raw)}.safetensors"
    durable_write(path, raw)
    best = best_checkpoint(folder)
    _rotate(folder, keep, best[0] if best else None)  # makes room first
    if score is not None and (best is None or score >= best[1]):
        try:
            write_json(folder / _BEST, {"file": path.name, "score": score})
        except FileError as error:
            warn(f"the checkpoint is saved, but not noted as the best one: {error}")
        else:
            _rotate(folder, keep, path)
    return path


def _rotate(folder: Path, keep: int, best: Path | None) -> None:
    for generation in generations(folder)[: -max(1, keep)]:
        if generation.path != best:
            generation.path.unlink(missing_ok=True)
    sync_folder(folder)


def best_checkpoint(folder: Path) -> tuple[Path, float] | None:
    """The best scored generation and its score, None when there is none (or its pointer is damaged)."""
    try:
        data: Any = read_json(folder / _BEST)
        path, score = folder / Path(data["file"]).name, float(data["score"])
    except (FileError, KeyError, TypeError, ValueError):
        return None
    return (path, score) if path.is_file() else None


def load_checkpoint(path: Path) -> SessionState:
    """Read one checkpoint, verified against the hash in its name.

    Raises:
        FileError: missing, truncated or altered.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise FileError(f"{path} is not a checkpoint: expected <generation>-<env_steps>-<sha256>.safetensors")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}. Check that it exists.") from error
    if content_hash(raw) != match[3]:
        raise FileError(
            f"{path} is damaged: its SHA-256 is not the one in its name ({len(raw)} bytes, env step {match[2]}). "
            "Restore it from a backup, or move it away."
        )
    try:
        return decode(raw)
    except ValueError as error:
        raise FileError(f"{path} is {error}. Move it away.") from error


def load_training(path: Path) -> SessionState:
    """`load_checkpoint` of one that a training wrote: its `meta` has what a training goes on from.

    Raises:
        FileError: missing, truncated or altered.
        UsageError: another version of autotune wrote it, or something else.
    """
    state = load_checkpoint(path)
    if unknown := _unknown(state.meta):
        raise UsageError(
            f"{path} is whole, but not of a training by this version of autotune, which writes format {FORMAT}: "
            f"{unknown}. Go on with the version that wrote it, or move it away: then the generation before it is used"
        )
    return state


def _unknown(meta: Any) -> str:
    """What keeps a training from going on from a checkpoint's `meta`; empty when nothing does."""
    if not isinstance(meta, Mapping):
        return f"it holds {type(meta).__name__} where an object is expected"
    if meta.get("format", FORMAT) != FORMAT:
        return f"it is of format {meta['format']!r}"
    row = meta.get("row") or {"totals": {}, "span_s": 0.0}
    totals = row.get("totals") if isinstance(row, Mapping) else None
    parts: dict[str, Any] = {
        "session": meta.get("session"),
        "progress": meta.get("progress"),
        "row": row,
        "row.totals": totals,
    }
    if absent := [name for name, part in parts.items() if not isinstance(part, Mapping)]:
        return f"its {absent[0]} is no object"
    known = {"progress": (Progress, _PROGRESS), "row.totals": (Totals, set())}
    for name, (record, needed) in known.items():
        found = set(parts[name])
        if wrong := (found - {field.name for field in fields(record)}) | (needed - found):
            return f"its {name} has other names: {', '.join(sorted(wrong))}"
    return ""


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None] | None = None, *, set_aside: bool = True
) -> Path | None:
    """The newest valid generation; damaged ones are set aside (renamed ``.damaged``) and named to `warn`.

    Args:
        folder: of the job's checkpoints.
        warn: takes sentences for the user.
        set_aside: whether damaged ones are renamed; without, nothing in the folder changes.

    Returns:
        None when the folder holds no checkpoint at all.

    Raises:
        FileError: there are checkpoints and every one is damaged: progress is never thrown away silently.
    """
    found = generations(folder)[::-1]
    broken: list[Generation] = []
    for generation in found:
        try:
            load_checkpoint(generation.path)
        except FileError as error:
            broken.append(generation)
            if warn:
                warn(str(error))
            continue
        for bad in broken if set_aside else ():
            bad.path.rename(bad.path.with_suffix(".damaged"))
        if broken and warn:
            warn(f"continuing at env step {generation.env_steps} from {generation.path}")
        return generation.path
    lost = len(found) + len(list(folder.glob("*.damaged")))
    if lost:
        raise FileError(
            f"no valid checkpoint in {folder} ({lost} found, {lost} failed SHA-256). "
            "Restore a backup, or train from the beginning in a new run with --new."
        )
    return None


def lost_checkpoints(folder: Path, job: str, env_steps: int) -> FileError:
    """What to raise for a job that has saved, at `env_steps`, and whose checkpoints are gone."""
    return FileError(
        f"job {job} saved at env step {env_steps:,}, but there is no checkpoint in {folder}. "
        "Restore a backup, or train from the beginning in a new run with --new"
    )
