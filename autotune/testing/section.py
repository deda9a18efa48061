"""The contract of a report section, as tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from autotune import registry
from autotune.records import Point, ProbeResult
from autotune.report.facts import Facts, gather
from autotune.report.protocol import Section
from autotune.report.render import to_html
from autotune.runs import create_run
from autotune.search.trials import add_probe_trial


class SectionContract:
    """Subclass it, name it ``Test...``, and say which section.

    Attributes:
        name: in the registry.
    """

    name: ClassVar[str]

    def make_facts(self, folder: Path) -> Sequence[Facts]:
        """Runs that the section must cope with: one without anything, and one with a measured and a failed point."""
        empty, probed = create_run(folder, "empty-1", command="probe"), create_run(folder, "probed-1", command="probe")
        point = Point(num_envs=8, batch_size=64)
        good = ProbeResult(
            requested=point, status="ok", grade="quick", sps=400.0, sps_low=390.0, sps_high=410.0, job_sps=(400.0,)
        )
        add_probe_trial(probed, "grid", good)
        detail = "<b>out of memory</b> | of *the* device"
        add_probe_trial(probed, "grid", ProbeResult(requested=point, status="oom", grade="quick", detail=detail))
        return gather(empty), gather(probed)

    @pytest.fixture
    def written(self, tmp_path: Path) -> list[tuple[str, str]]:
        """What the section says of each, asked twice."""
        section: Section = registry.load("section", self.name)
        return [(section(facts), section(facts)) for facts in self.make_facts(tmp_path)]

    def test_it_is_text(self, written: list[tuple[str, str]]) -> None:
        """Markdown of a section's body, empty where there is nothing to say; the report sets the heading."""
        for body, _ in written:
            assert isinstance(body, str)
            assert not any(line.startswith(("# ", "## ")) for line in body.splitlines())

    def test_it_says_the_same_of_the_same_facts(self, written: list[tuple[str, str]]) -> None:
        """And leaves them as they are."""
        assert all(first == again for first, again in written)

    def test_what_others_wrote_stays_text(self, written: list[tuple[str, str]]) -> None:
        """Details and names come from other programs: no HTML of theirs reaches the page."""
        assert all("<b>" not in to_html(body) for body, _ in written)
