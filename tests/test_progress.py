from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autotune import progress


@pytest.fixture(autouse=True)
def fresh(monkeypatch) -> Iterator[None]:
    """Each test starts as a new process does, and writes every tick."""
    monkeypatch.delenv(progress.FIFO_VARIABLE, raising=False)
    monkeypatch.setattr(progress, "_MIN_PERIOD_S", 0.0)
    for name, value in {
        "_total_steps": 0.0,
        "_written_steps": 0,
        "_written_at_s": -math.inf,
        "_descriptor": None,
    }.items():
        monkeypatch.setattr(progress, name, value)
    yield
    if progress._descriptor is not None:
        os.close(progress._descriptor)


@pytest.fixture
def fifo(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "tick"
    os.mkfifo(path)
    monkeypatch.setenv(progress.FIFO_VARIABLE, str(path))
    return path


def open_reader(fifo: Path) -> int:
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


def read_lines(reader: int) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in os.read(reader, 2**20).decode().splitlines()]


def test_outside_a_probe_it_only_counts():
    progress.tick(3)
    progress.tick(4)
    assert (progress._total_steps, progress._descriptor) == (7, None)


def test_writes_running_totals(fifo):
    reader = open_reader(fifo)
    progress.tick(3)
    progress.tick(4)
    assert read_lines(reader) == [[os.getpid(), 3], [os.getpid(), 7]]
    os.close(reader)


def test_without_a_reader_nothing_is_lost(fifo):
    progress.tick(3)
    reader = open_reader(fifo)
    progress.tick(4)
    assert read_lines(reader) == [[os.getpid(), 7]]
    os.close(reader)


def test_a_reader_that_left_and_one_that_comes_later(fifo):
    reader = open_reader(fifo)
    progress.tick(1)
    os.close(reader)
    progress.tick(1)
    reader = open_reader(fifo)
    progress.tick(1)
    assert read_lines(reader) == [[os.getpid(), 3]]
    os.close(reader)


def test_full_pipe_neither_blocks_nor_loses(fifo):
    reader = open_reader(fifo)
    progress.tick(0)
    while True:  # fill it to the last byte through the same descriptor
        try:
            os.write(progress._descriptor, b"x")
        except BlockingIOError:
            break
    progress.tick(5)
    assert b"\n5" not in os.read(reader, 2**20)
    progress.tick(6)
    assert read_lines(reader) == [[os.getpid(), 11]]
    os.close(reader)


def test_fast_ticks_are_written_at_the_pipe_s_pace(fifo, monkeypatch):
    monkeypatch.setattr(progress, "_MIN_PERIOD_S", 3600.0)
    reader = open_reader(fifo)
    for _ in range(1000):
        progress.tick(2)
    progress._flush()
    assert read_lines(reader) == [[os.getpid(), 2], [os.getpid(), 2000]]
    os.close(reader)


def test_forked_child_counts_its_own_steps(fifo):
    reader = open_reader(fifo)
    code = (
        "import os, time, autotune; autotune.tick(100); child = os.fork()\n"
        "if child: os.waitpid(child, 0); time.sleep(0.01); autotune.tick(1)\n"
        "else: autotune.tick(7); os._exit(0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(60) == 0
    (parent, first), (child, second), last = read_lines(reader)
    assert (parent, first, second, last) == (process.pid, 100, 7, [process.pid, 101])
    assert child != parent
    os.close(reader)


def test_threads_lose_no_step():
    threads = [threading.Thread(target=lambda: [progress.tick(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress._total_steps == 8000


@pytest.mark.parametrize("steps", [np.int64(4), np.float32(4.0), True + 3, 4.0])
def test_numbers_of_any_kind_count(steps):
    progress.tick(steps)
    assert progress._total_steps == 4


def test_fractions_add_up():
    for _ in range(4):
        progress.tick(0.25)
    assert progress._total_steps == 1


@pytest.mark.parametrize("steps", [-1, math.nan, math.inf])
def test_impossible_steps_are_refused_in_and_out_of_a_probe(steps):
    with pytest.raises(ValueError, match=r"autotune.tick\(.*finite and not negative"):
        progress.tick(steps)
    assert progress._total_steps == 0


def test_other_file_of_that_name_is_not_written_to(tmp_path, monkeypatch):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    monkeypatch.setenv(progress.FIFO_VARIABLE, str(path))
    progress.tick(5)
    assert path.read_text() == "mine"


def test_missing_pipe_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.FIFO_VARIABLE, str(tmp_path / "gone"))
    progress.tick(5)
    assert progress._total_steps == 5


def test_last_steps_of_a_script_are_reported_at_its_end(fifo):
    reader = open_reader(fifo)
    code = "import autotune\nfor _ in range(10): autotune.tick(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_lines(reader)[-1][1] == 10
    os.close(reader)


def test_importing_it_is_light():
    code = "import sys, autotune; print(sorted({'numpy', 'click', 'pydantic', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
