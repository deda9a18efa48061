"""The one place that writes files: atomic, durable, canonical, and clear about what went wrong."""

import errno
import math
import os
from pathlib import Path

import pytest

from autotune.errors import FileError
from autotune.store import (
    append_line,
    canonical_json,
    content_hash,
    durable_write,
    make_folder,
    read_json,
    read_lines,
    write_json,
)


def test_json_is_canonical():
    assert canonical_json({"b": 1, "a": [1.5, None, "é"]}, indent=None) == '{"a": [1.5, null, "é"], "b": 1}'
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_holds_no_nan(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"sps": value})


def test_hash_is_sha256():
    assert content_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash("é") == content_hash("é".encode())


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"n": 1})
    write_json(file, {"n": [2]})
    assert read_json(file) == {"n": [2]}
    assert file.read_text().endswith("}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    file = tmp_path / "a.json"
    durable_write(file, "old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), refuse)
    with pytest.raises(FileError, match=r"cannot write .*a.json: No space left on device. Check that .* --runs"):
        durable_write(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    durable_write(file, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable_write(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (calls.append("replace"), replace(path, target))[1])
    durable_write(tmp_path / "a", "data")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(FileError, match=r"cannot create the folder .*runs/x"):
        make_folder(tmp_path / "runs" / "x")
    with pytest.raises(FileError, match="cannot write"):
        durable_write(tmp_path / "runs" / "x", "data")
    with pytest.raises(FileError, match="cannot append to"):
        append_line(tmp_path / "runs" / "x", {})
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none.json: No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"a": 1')
    with pytest.raises(FileError, match=r"torn.json is not valid JSON .* may be truncated"):
        read_json(tmp_path / "torn.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "binary.json")


def test_lines_come_back_in_order(tmp_path):
    file = tmp_path / "a.jsonl"
    assert read_lines(file) == []
    for number in range(3):
        append_line(file, {"n": number, "text": "a\nb"}, sync=number == 1)
    assert read_lines(file) == [{"n": number, "text": "a\nb"} for number in range(3)]


def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"n": 1}, {"n": 2, "text": "é"}]
    for row in rows:
        append_line(file, row)
    whole = file.read_bytes()
    start = whole.index(b"\n") + 1
    for length in range(start, len(whole) + 1):
        file.write_bytes(whole[:length])
        kept = rows if length >= len(whole) - 1 else rows[:1]
        assert read_lines(file) == kept
        append_line(file, {"n": 3})
        assert read_lines(file) == [*kept, {"n": 3}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(FileError, match="line 2 is damaged"):
        read_lines(file)


def test_a_damaged_last_line_that_was_ended_goes_the_same_way(tmp_path):
    """Whether the disk lost its middle or a bit of it, what is left out when read is no stumbling block later."""
    file = tmp_path / "a.jsonl"
    for number in (1, 2):
        append_line(file, {"n": number, "text": "x" * 70_000 * number})
    whole = file.read_bytes()
    for damage in (b"\0" * 100, b"\xff"):
        file.write_bytes(whole[:-200] + damage + whole[-200 + len(damage) :])
        kept = read_lines(file)
        assert [row["n"] for row in kept] == [1]
        append_line(file, {"n": 3})
        assert read_lines(file) == [*kept, {"n": 3}]
