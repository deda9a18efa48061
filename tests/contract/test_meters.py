from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

from autotune import registry
from autotune.device.inspect import inspect_device
from autotune.machine import DeviceInfo
from autotune.meters.protocol import Meter
from autotune.testing.meter import MeterContract

this_device: Callable[[], DeviceInfo] = functools.cache(inspect_device)


class Bundled(MeterContract):
    name: ClassVar[str]

    def make_meter(self, pids: Callable[[], Sequence[int]], period_s: float) -> Meter:
        return registry.load("meter", self.name)(this_device(), pids, period_s)


class TestVram(Bundled):
    name = "vram"
    asks_for_processes = this_device().gpu is not None


class TestPower(Bundled):
    name = "power"
    asks_for_processes = False


class TestHost(Bundled):
    name = "host"
    asks_for_processes = True
