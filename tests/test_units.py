"""What people type and read: durations, sizes, prices."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import UsageError
from autotune.units import (
    brief,
    counted,
    format_bytes,
    format_count,
    format_duration,
    format_usd,
    how_often,
    parse_duration,
    parse_price,
    shortened,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("0.5h", 1800),
        (" 30M ", 1800),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "m",
        "-5m",
        "5 minutes",
        "0s",
        "1h30",
        "30m!",
        "3 0m",
        "30 m",
        "1h, 30m",
        "nan",
        "1e3s",
        "9" * 400 + "h",
    ],
)
def test_bad_durations_name_the_value_and_the_remedy(text):
    with pytest.raises(UsageError, match="such as 90s, 30m or 2h") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_compound_durations_add_up(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


@pytest.mark.parametrize(("text", "price"), [("2.0", 2.0), (0.35, 0.35), ("1e1", 10.0)])
def test_prices(text, price):
    assert parse_price(text) == price


@pytest.mark.parametrize("text", ["0", "-2", "nan", "inf", "two", "", "$2", math.nan, -1.0])
def test_bad_prices(text):
    with pytest.raises(UsageError, match=r"above zero, such as --price 2.0"):
        parse_price(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
        (0, "0.0s"),
        (2e-6, "under 0.1s"),
        (9.94, "9.9s"),
        (95, "1m 35s"),
        (59.6, "1m"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (90061, "1d 1h"),
        (89940, "1d 1h"),
        (86399, "1d"),
        (-95, "-1m 35s"),
        (14646 * 86400, "14,646d"),
    ],
)
def test_durations_are_shown_with_two_units(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(10, 86399))
def test_shown_durations_are_within_their_last_unit(seconds):
    shown = parse_duration(format_duration(seconds))
    assert abs(shown - seconds) <= (30 if seconds >= 3600 else 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (0, "0 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**41, "2.0 TiB"), (2**51, "2048.0 TiB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (math.nan, "unknown"), (41234.4, "41,234"), (3.14159, "3.14"), (-1234.5, "-1,234"), (0, "0")],
)
def test_counts(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(None, "unknown"), (15600, "15,600.00 USD"), (0.004, "0.004 USD"), (1e-6, "0.000001 USD"), (0, "0.00 USD")],
)
def test_money(amount, text):
    assert format_usd(amount) == text


def test_words():
    assert [counted(1, "launch", "launches"), counted(0, "launch", "launches")] == ["one launch", "0 launches"]
    assert [counted(1200, "step"), how_often(1), how_often(1200)] == ["1,200 steps", "once", "1,200 times"]
    assert [shortened("four", 4), shortened("four", 3)] == ["four", "fo…"]
    assert brief("exit 1\n  File 7\nValueError: no\n-----\n") == "exit 1 ValueError: no"
    assert brief("all of it") == "all of it"
