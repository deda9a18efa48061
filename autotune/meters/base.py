"""What meters share: a thread that reads at a fixed rate and hands the readings over, and a GPU to read."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.device.live_gpu import LiveGpu
from autotune.machine import DeviceInfo
from autotune.records import Reading

_PATIENCE_S = 5.0  # a driver call can hang; starting and stopping a meter must not
_STOP_PATIENCE_S = 3.0


def say_silent(meter: object, error: Exception) -> None:
    """Say that a meter has failed, which ends no probe."""
    sys.stderr.write(f"meter {type(meter).__name__} fell silent: {type(error).__name__}: {error}\n")


class SampledMeter:
    """Reads `read` every `period_s` seconds in a thread of its own between `start` and `stop`.

    One thread a meter, so that a hung driver silences the device and not the host.
    """

    def __init__(self, device: DeviceInfo, pids: Callable[[], Sequence[int]], period_s: float = 0.5) -> None:
        """Prepare; nothing is opened before `start`.

        Args:
            device: whose readings.
            pids: gives the probe's processes at the moment of asking, all descendants included.
            period_s: seconds between readings.
        """
        self.device = device
        self.pids = pids
        self.period_s = period_s
        self._readings: list[Reading] = []
        self._lock = threading.Lock()
        self._first = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Mapping[str, float | None]:
        """One value for each name; None where the device cannot tell, absent when not read this time."""
        raise NotImplementedError

    def open(self) -> None:
        """Get ready to read; called in the meter's thread."""

    def close(self) -> None:
        """Let go of what `open` took; called in the meter's thread."""

    def _sample(self) -> None:
        t_s = time.monotonic()
        values = self.read()
        with self._lock:
            self._readings += [Reading(t_s=t_s, name=name, value=value) for name, value in values.items()]
        self._first.set()

    def _loop(self) -> None:
        try:
            self.open()
            try:
                self._read_until_stopped()
            finally:
                self.close()
        except Exception as error:  # noqa: BLE001 - the end of a thread: the probe goes on without this meter
            say_silent(self, error)
        finally:
            self._first.set()  # nobody waits for one that failed

    def _read_until_stopped(self) -> None:
        self._sample()
        due_s = time.monotonic() + self.period_s
        while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
            self._sample()
            due_s = max(due_s + self.period_s, time.monotonic())
        self._sample()

    def start(self) -> None:
        """Begin; the first reading is taken before this returns (the state before the probe)."""
        self._first.clear()
        self._stopping.clear()
        thread = threading.Thread(target=self._loop, name=type(self).__name__, daemon=True)
        thread.start()
        self._thread = thread
        self._first.wait(_PATIENCE_S)

    def take(self) -> tuple[Reading, ...]:
        """The readings since the last `take`."""
        with self._lock:
            taken, self._readings = tuple(self._readings), []
        return taken

    def stop(self) -> tuple[Reading, ...]:
        """Take a last reading, end, and return every reading not yet taken, in order of time."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_PATIENCE_S)
            self._thread = None
        return self.take()


class GpuMeter(SampledMeter):
    """Reads the GPU in use, `gpu` while it runs; None where there is none."""

    def __init__(
        self, device: DeviceInfo, pids: Callable[[], Sequence[int]], period_s: float = 0.5, *, pynvml: Any = None
    ) -> None:
        """See `SampledMeter`; `pynvml` is the NVML binding, ``nvidia-ml-py`` by default."""
        super().__init__(device, pids, period_s)
        self._pynvml = pynvml
        self.gpu: LiveGpu | None = None

    def open(self) -> None:
        """Open the GPU."""
        self.gpu = LiveGpu(self.device.gpu, self._pynvml) if self.device.gpu else None

    def close(self) -> None:
        """Let the GPU go."""
        if self.gpu:
            self.gpu.close()
