"""From a run's folder to ``report.md``, ``report.html`` and ``plots/``."""

from __future__ import annotations

import base64
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import markdown
from markupsafe import Markup

from autotune import __version__, registry, resources
from autotune.device.prices import listed_price
from autotune.report.facts import Facts, Price, gather
from autotune.report.plots import Plot, draw_plots
from autotune.report.wording import text
from autotune.runs import Run
from autotune.store import durable_write, make_folder

TITLES = {
    "summary": "Summary",
    "cost": "Time and cost",
    "bottleneck": "What limits it",
    "stability": "Stability",
    "training": "Learning and training",
    "trials": "All probes",
    "device": "Device",
}


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """What was written.

    Attributes:
        markdown: ``report.md``.
        html: ``report.html``, one self-contained page.
        plots: PNG files.
        facts: what they say.
    """

    markdown: Path
    html: Path
    plots: tuple[Path, ...]
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Section:
    """One rendered section with its pictures."""

    name: str
    title: str
    markdown: str
    html: Markup
    plots: tuple[dict[str, str], ...]


def render_report(run: Run, *, price: float | None = None) -> ReportFiles:
    """Write a run's report.

    Args:
        run: a search, a probe, a training, or any mixture.
        price: US dollars per hour of the whole machine; None takes what the search was given,
            else the dated list price of the device, else hours alone are shown.

    Raises:
        FileError: a file of the run is damaged, or the folder cannot be written to.
    """
    facts = priced_facts(run, price=price)
    plots = draw_plots(facts)
    sections = render_sections(facts, plots)
    if plots:
        make_folder(run.path / "plots")
    files = [run.path / "plots" / f"{plot.name}.png" for plot in plots]
    for file, plot in zip(files, plots, strict=True):
        durable_write(file, plot.png)
    page = run.report_file.with_suffix(".html")
    durable_write(run.report_file, _fill("report.md.jinja", facts, sections))
    durable_write(page, _fill("report.html.jinja", facts, sections))
    return ReportFiles(markdown=run.report_file, html=page, plots=tuple(files), facts=facts)


def priced_facts(run: Run, *, price: float | None = None) -> Facts:
    """A run's facts with the price to use: given, else the search's, else the list price of the device."""
    facts = gather(run, Price(usd_per_hour=price, note="given with --price") if price is not None else None)
    listed = listed_price(facts.device) if facts.device and facts.price is None else None
    return replace(facts, price=Price(usd_per_hour=listed.usd_per_hour, note=listed.describe())) if listed else facts


def render_sections(facts: Facts, plots: tuple[Plot, ...] = ()) -> list[Section]:
    """Every section that has something to say, the bundled ones in reading order, installed ones after."""
    names = [*TITLES, *(name for name in registry.names("section") if name not in TITLES)]
    sections = []
    for name in names:
        body = _body(name, facts)
        own = tuple(
            {"name": p.name, "caption": p.caption, "base64": base64.b64encode(p.png).decode()}
            for p in plots
            if p.section == name
        )
        if body or own:
            title = TITLES.get(name, name)
            sections.append(Section(name=name, title=title, markdown=body, html=to_html(body), plots=own))
    return sections


def _body(name: str, facts: Facts) -> str:
    """A section's Markdown; an installed one that fails says so in its place, and costs nobody the report."""
    try:
        with redirect_stdout(sys.stderr):  # stdout is for data
            return str(registry.load("section", name)(facts)).strip()
    except (Exception, SystemExit) as error:
        if name in TITLES:
            raise
        return text(f"This section could not be written: {type(error).__name__}: {error}")


def to_html(source: str) -> Markup:
    """HTML of a section's Markdown; raw HTML in it stays text."""
    converter = markdown.Markdown(extensions=["tables", "sane_lists"], output_format="html")
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    return Markup(converter.convert(source))


def _fill(template: str, facts: Facts, sections: list[Section]) -> str:
    loader = jinja2.FileSystemLoader(resources.folder("reports/templates"))
    environment = jinja2.Environment(
        loader=loader,
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    page = template.startswith("report.html")
    title = f"{facts.run.name}: what to run, how long, what it costs"
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    footer = f"Written {written} by autotune {__version__} from the run {text(facts.run.name)}"
    values: dict[str, Any] = {
        "title": title if page else text(title),
        "sections": sections,
        "footer": footer + ".",
        "footer_html": to_html(footer + "."),
    }
    return environment.get_template(template).render(values)
