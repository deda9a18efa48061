"""The contract of a report section."""

from __future__ import annotations

from typing import Protocol

from autotune.report.facts import Facts


class Section(Protocol):
    """One part of the report: a function from a run's facts to Markdown.

    It writes the section's body; the report sets the heading above it. Empty where it has nothing to say of this run,
    which may be a search, a probe, a training or any mixture: what is not there is None or empty in the facts.
    A pure function: it neither changes the facts nor writes files. What others wrote (details, names) goes through
    `autotune.report.wording.text` or ``code``.
    """

    def __call__(self, facts: Facts, /) -> str:
        """Markdown of the section's body."""
        ...
