from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from report_run import make_run

from autotune.report.facts import Facts, gather
from autotune.testing.section import SectionContract


class Bundled(SectionContract):
    def make_facts(self, folder: Path) -> Sequence[Facts]:
        return [*super().make_facts(folder), gather(make_run(folder, price=2.0))]


class TestSummary(Bundled):
    name = "summary"


class TestDevice(Bundled):
    name = "device"


class TestTrials(Bundled):
    name = "trials"


class TestBottleneck(Bundled):
    name = "bottleneck"


class TestStability(Bundled):
    name = "stability"


class TestCost(Bundled):
    name = "cost"


class TestTraining(Bundled):
    name = "training"
