"""Signals as a wish to stop."""

from __future__ import annotations

import os
import signal
import time

import pytest

from autotune.signals import Interrupted, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_asks_to_stop_and_a_second_interrupts_with_its_own_exit_code(number: signal.Signals) -> None:
    with StopSignals("work is saved") as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.exit_code == 128 + number
        with pytest.raises(Interrupted, match="work is saved") as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143 and stop.exit_code == 128 + number


def test_what_ends_at_the_first_signal_has_its_exit_code_too() -> None:
    with pytest.raises(Interrupted, match="work is saved") as caught, StopSignals("work is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt
    assert caught.value.exit_code == 143


class Finalized:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_within_a_finalizer_interrupts_too(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals("work is saved") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="work is saved") as caught:
            del [Finalized()][0]  # Python would show the interrupt as ignored
            time.sleep(5.0)
        assert caught.value.exit_code == 143 and stop.exit_code == 130
    assert "Traceback" not in capfd.readouterr().err


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_to_a_terminal_that_hung_up_is_no_error() -> None:
    keeper, terminal = os.openpty()
    mine = os.dup(2)
    os.dup2(terminal, 2)
    try:
        with StopSignals():
            os.close(keeper)
            os.kill(os.getpid(), signal.SIGHUP)
            assert os.write(2, b"stopping") == 8
    finally:
        os.dup2(mine, 2)
        os.close(mine)
        os.close(terminal)
