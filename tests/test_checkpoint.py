"""Checkpoints: exact, atomic, verified, never zero valid ones."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune import store
from autotune.errors import FileError, UsageError
from autotune.worker import checkpoint
from autotune.worker.checkpoint import (
    FORMAT,
    best_checkpoint,
    generations,
    load_checkpoint,
    load_training,
    newest_checkpoint,
    save_checkpoint,
)
from autotune.workloads.protocol import SessionState

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
]


def a_state(value: int = 7) -> SessionState:
    return SessionState(arrays={"w": np.full((3, 2), value, np.float32)}, meta={"value": value, "name": "ä", "n": None})


def steps_of(folder: Path) -> list[int]:
    return [generation.env_steps for generation in generations(folder)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_exact(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": (rng.normal(size=(4, 5)) * 100).astype(dtype),
        "scalar": np.asarray(1).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
        "transposed": np.arange(6).reshape(2, 3).astype(dtype).T,
        "every_other": np.arange(10).astype(dtype)[::2],
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, SessionState(arrays=arrays), env_steps=1))
    assert set(loaded.arrays) == set(arrays)
    for name, array in arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        assert loaded.arrays[name].shape == array.shape
        assert loaded.arrays[name].tobytes() == array.tobytes()
        assert loaded.arrays[name].flags.writeable


def test_nan_and_extreme_values_of_arrays_survive(tmp_path: Path) -> None:
    array = np.array([np.nan, np.inf, -0.0, np.finfo(np.float64).tiny], np.float64)
    loaded = load_checkpoint(save_checkpoint(tmp_path, SessionState(arrays={"a": array}), env_steps=1))
    assert loaded.arrays["a"].tobytes() == array.tobytes()


def test_meta_round_trips_and_no_arrays_is_fine(tmp_path: Path) -> None:
    meta = {"counts": [1, 2.5, None, True], "nested": {"ä": "ö\n"}}
    assert load_checkpoint(save_checkpoint(tmp_path, SessionState(arrays={}, meta=meta), env_steps=1)).meta == meta


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["text"]), np.array([1], np.complex128)])
def test_what_has_no_exact_form_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"array 'bad'.*dtype"):
        save_checkpoint(tmp_path, SessionState(arrays={"bad": array}), env_steps=1)
    with pytest.raises(UsageError, match="not JSON"):
        save_checkpoint(tmp_path, SessionState(arrays={}, meta={"a": float("nan")}), env_steps=1)
    assert generations(tmp_path) == []


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for steps, score in [(10, 1.0), (20, 9.0), (30, 2.0), (40, None), (50, 3.0), (60, 3.0)]:
        save_checkpoint(tmp_path, a_state(steps), env_steps=steps, keep=2, score=score)
    assert steps_of(tmp_path) == [20, 50, 60]
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert (load_checkpoint(best[0]).meta["value"], best[1]) == (20, 9.0)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest).meta["value"] == 60


def test_keep_one_never_leaves_none(tmp_path: Path) -> None:
    for steps in range(1, 5):
        save_checkpoint(tmp_path, a_state(steps), env_steps=steps, keep=0)
        assert steps_of(tmp_path) == [steps]


def test_every_truncation_is_detected_and_the_previous_generation_used(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(1), env_steps=100)
    newest = save_checkpoint(tmp_path, a_state(2), env_steps=200)
    whole = newest.read_bytes()
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        with pytest.raises(FileError, match="damaged"):
            load_checkpoint(newest)
    warnings: list[str] = []
    found = newest_checkpoint(tmp_path, warnings.append)
    assert found is not None and load_checkpoint(found).meta["value"] == 1
    assert len(warnings) == 2
    assert "env step 200" in warnings[0] and "continuing at env step 100" in warnings[1]
    assert not newest.exists() and newest.with_suffix(".damaged").exists()


def test_bit_flips_are_detected(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, a_state(), env_steps=1)
    whole, rng = path.read_bytes(), random.Random(0)
    flips = {(rng.randrange(len(whole)), rng.randrange(8)) for _ in range(1000)}
    for position, bit in flips:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="damaged"):
            load_checkpoint(path)


def test_all_damaged_stops_instead_of_starting_again(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, a_state(steps), env_steps=steps) for steps in (1, 2, 3)]
    for path in paths:
        path.write_bytes(b"\0" * path.stat().st_size)
    for _ in range(2):
        with pytest.raises(FileError, match=r"no valid checkpoint.*3 found, 3 failed"):
            newest_checkpoint(tmp_path)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_after_a_fallback_the_next_save_is_newest_whatever_its_steps(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(1), env_steps=100, keep=1)
    bad = save_checkpoint(tmp_path, a_state(2), env_steps=200, keep=2)
    bad.write_bytes(b"")
    save_checkpoint(tmp_path, a_state(3), env_steps=150, keep=1)
    found = newest_checkpoint(tmp_path)
    assert found is not None and load_checkpoint(found).meta["value"] == 3


def test_a_damaged_best_pointer_is_not_fatal(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(1), env_steps=1, score=5.0)
    (tmp_path / "best.json").write_text("{")
    assert best_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, a_state(2), env_steps=2, score=1.0)
    best = best_checkpoint(tmp_path)
    assert best is not None and best[1] == 1.0


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    raw = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    path = tmp_path / f"00000001-1-{store.content_hash(raw)}.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FileError, match="not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(FileError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ordinary errors sees it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Die before the `call`-th system call that changes what lies on the disk."""
    count = 0

    def guarded(original):
        def wrapper(*arguments, **options):
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            if count > call:  # the dead do nothing more, clean-up included
                raise Killed
            return original(*arguments, **options)

        return wrapper

    for owner, name in [(os, "fsync"), (os, "fdopen"), (Path, "replace"), (Path, "unlink"), (Path, "chmod")]:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    monkeypatch.setattr(store.tempfile, "mkstemp", guarded(store.tempfile.mkstemp))


def test_killed_between_any_two_steps_leaves_a_valid_generation(tmp_path: Path) -> None:
    outcomes = set()
    for call in range(1, 40):
        folder = tmp_path / str(call)
        for steps in (1, 2):
            save_checkpoint(folder, a_state(steps), env_steps=steps, keep=1, score=float(steps))
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_at(monkeypatch, call)
            try:
                save_checkpoint(folder, a_state(3), env_steps=3, keep=1, score=3.0)
            except Killed:
                killed = True
            else:
                killed = False
        found = newest_checkpoint(folder)
        assert found is not None
        assert load_checkpoint(found).meta["value"] in ((2, 3) if killed else (3,))
        outcomes.add((killed, load_checkpoint(found).meta["value"]))
        save_checkpoint(folder, a_state(4), env_steps=4, keep=1, score=4.0)
        assert steps_of(folder) == [4]
        assert not list(folder.glob(".*")), "leftovers of the killed writer are swept"
    assert outcomes == {(True, 2), (True, 3), (False, 3)}


def test_a_full_disk_leaves_the_older_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, a_state(1), env_steps=1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match="No space left"):
            save_checkpoint(tmp_path, a_state(2), env_steps=2)
    assert steps_of(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_best_pointer_that_cannot_be_written_is_a_warning_and_room_is_made_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (1, 2):
        save_checkpoint(tmp_path, a_state(steps), env_steps=steps, keep=1, score=float(steps))
    left, warnings = list[list[int]](), list[str]()

    def full(*_: object) -> None:
        left.append(steps_of(tmp_path))
        raise FileError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", full)
        save_checkpoint(tmp_path, a_state(3), env_steps=3, keep=1, score=3.0)
        save_checkpoint(tmp_path, a_state(4), env_steps=4, keep=1, score=4.0, warn=warnings.append)
    assert left == [[2, 3], [2, 4]] and steps_of(tmp_path) == [2, 4], "the best that is noted, and the newest"
    assert warnings == ["the checkpoint is saved, but not noted as the best one: No space left on device"]
    save_checkpoint(tmp_path, a_state(5), env_steps=5, keep=1, score=5.0)
    best = best_checkpoint(tmp_path)
    assert best is not None and best[1] == 5.0 and steps_of(tmp_path) == [5]


def a_training(**changes: Any) -> dict[str, Any]:
    progress = {"env_steps": 1, "episodes": 0, "seconds": 0.5, "best_return": None, "returns": []}
    return {"session": {"count": 1}, "progress": progress, **changes}


def test_a_checkpoint_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    newer = {**a_training()["progress"], "median": 1.0}
    for number, (meta, words) in enumerate(
        [
            (a_training(format=FORMAT + 1), f"writes format {FORMAT}: it is of format {FORMAT + 1}. Go on with the"),
            (a_training(progress=newer), "its progress has other names: median"),
            (a_training(progress={"env_steps": 1}), "its progress has other names: best_return, episodes"),
            (a_training(row={"totals": {"losses": 1}, "span_s": 1.0}), "its row.totals has other names: losses"),
            (a_training(row=[1]), "its row is no object"),
            (a_training(session=None), "its session is no object"),
            ([1], "it holds list where an object is expected"),
        ]
    ):
        path = save_checkpoint(tmp_path, SessionState(arrays={}, meta=meta), env_steps=number)  # type: ignore[arg-type]
        assert newest_checkpoint(tmp_path) == path, "it is whole: nothing older is used in silence"
        with pytest.raises(UsageError, match=re.escape(words)):
            load_training(path)


def test_what_a_training_wrote_is_loaded(tmp_path: Path) -> None:
    row = {"totals": {"env_steps": 1, "seconds": {"env": 0.1}}, "span_s": 1.0}
    for meta in (a_training(), a_training(format=FORMAT, row=row), a_training(row=None, job="a")):
        path = save_checkpoint(tmp_path, SessionState(arrays={}, meta=meta), env_steps=1)
        assert load_training(path).meta == meta
