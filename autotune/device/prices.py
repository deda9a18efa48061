"""List prices of common machines, for when the user gives none: dated, sourced, and only typical."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from autotune.machine import DeviceInfo, GpuInfo


@dataclass(frozen=True, kw_only=True)
class ListedPrice:
    """A public on-demand price of a machine with one such GPU.

    Attributes:
        usd_per_hour: of the whole machine.
        sku: key in the table, such as ``a100-80gb``.
        date: when it was listed, ``2025-10``.
        source: the provider and its name for the machine.
    """

    usd_per_hour: float
    sku: str
    date: str
    source: str

    def describe(self) -> str:
        """One line that says what the figure is and is not."""
        return (
            f"{self.usd_per_hour:.2f} USD/h is a typical on-demand price for {self.sku} "
            f"({self.source}, {self.date}); check your own invoice and pass it with --price"
        )


@cache
def price_table() -> dict[str, dict[str, Any]]:
    """The bundled table by sku."""
    return tomllib.loads(Path(__file__).with_name("prices.toml").read_text(encoding="utf-8"))


def find_sku(gpu: GpuInfo) -> str | None:
    """The table's key for a GPU: its name, and its memory where a model has several.

    A MIG instance has none: it is part of a machine.
    """
    if gpu.mig_enabled:
        return None
    vram_gib = (gpu.vram_total_bytes or 0) / 2**30
    for sku, row in price_table().items():
        low, high = row.get("vram_gib", (0, float("inf")))
        if re.search(row["name"], gpu.name) and low <= vram_gib <= high:
            return sku
    return None


def listed_price(device: DeviceInfo) -> ListedPrice | None:
    """The listed price of the device in use, None when it is a CPU or not in the table."""
    row = price_table().get(device.sku or "")
    if row is None or device.sku is None:
        return None
    return ListedPrice(usd_per_hour=row["usd_per_hour"], sku=device.sku, date=row["date"], source=row["source"])
