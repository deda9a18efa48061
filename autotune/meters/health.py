"""What goes wrong with a GPU while it works: XID errors, memory errors, another partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from autotune.meters.base import GpuMeter

XID = "xid_"
"""Begins the name of an error's readings; its number ends it."""


class HealthMeter(GpuMeter):
    """``xids`` (how many since `start`, None where they are not told), ``xid_<n>`` (how many of each),
    ``ecc_uncorrected`` (a counter), ``vram_total_bytes``, ``mig_enabled`` (0 or 1).

    All but the XID errors are read at the start and at the end only.
    """  # noqa: D205

    def open(self) -> None:
        """Open the GPU and have its XID errors recorded."""
        super().open()
        self._counts: Counter[int] = Counter()
        self._begun = False
        if self.gpu:
            self.gpu.watch_xids()

    def read(self) -> Mapping[str, float | None]:
        """Values now."""
        seen = self.gpu.take_xids() if self.gpu else None
        self._counts.update(seen or ())
        values: dict[str, float | None] = {"xids": None if seen is None else self._counts.total()}
        values |= {f"{XID}{number}": float(count) for number, count in self._counts.items()}
        if self._begun and not self._stopping.is_set():
            return values
        self._begun = True
        return values | {
            "ecc_uncorrected": self.gpu.ecc_uncorrected() if self.gpu else None,
            "vram_total_bytes": self.gpu.total_bytes() if self.gpu else None,
            "mig_enabled": self.gpu.mig_enabled() if self.gpu else None,
        }
