"""What every test begins with."""

import functools
import signal

import pytest

from autotune.device.inspect import inspect_device


@functools.cache
def has_gpu():
    """Whether there is an NVIDIA GPU to test on."""
    return inspect_device().kind == "cuda"


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(autouse=True, scope="session")
def hangups_end_processes():
    """SIGHUP is what it is on a terminal, also where the tests themselves run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
