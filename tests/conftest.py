"""What every test begins with."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def hangups_end_processes():
    """SIGHUP is what it is on a terminal, also where the tests themselves run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
