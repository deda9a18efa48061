"""What holds the tuned point back, and where its time goes beside the references'."""

from __future__ import annotations

from autotune.records import PHASES
from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.report.wording import UNKNOWN, percent, table, text
from autotune.units import format_count

_NAMES = {"env": "env stepping", "infer": "inference", "transfer": "transfer", "learn": "learning"}


def render(facts: Facts) -> str:
    """The limiting sentence, then seconds by phase, cores and utilisation."""
    measured = [each for each in facts.measured if each.sps is not None]
    if not measured:
        return ""
    parts = []
    if facts.tuned is not None and facts.tuned.result.limited_by:
        parts.append(f"The {facts.tuned.role} point: {text(facts.tuned.result.limited_by)}.".replace("..", "."))
    rows = [[_NAMES[phase], *(_phase(each, phase) for each in measured)] for phase in PHASES if _ran(measured, phase)]
    unit = "microseconds per env step (share)" if rows else ""
    rows += [[name, *cells] for name, cells in _machine(facts, measured) if any(cell != UNKNOWN for cell in cells)]
    if ceilings := _ceilings(facts):
        parts.append(ceilings)
    if rows:
        parts.append(table([unit, *(each.role for each in measured)], rows))
    if settings := _settings(facts):
        parts.append(settings)
    return "\n\n".join(parts)


def _ceilings(facts: Facts) -> str:
    """What the parts can do alone, and the share of their serial bound that the tuned point reaches.

    Serial bound = 1 / sum(1 / rate): the parts taking turns. Overlapped or in several processes they may exceed it.
    """
    found = facts.state.get("ceilings") or {}
    rates = {name: rate for name, rate in (found.get("sps") or {}).items() if rate > 0}
    if not rates:
        return ""
    alone = ", ".join(f"{_NAMES.get(name, name)} {format_count(rate)}" for name, rate in rates.items())
    bound = 1 / sum(1 / rate for rate in rates.values())
    settings = " ".join(f"{name}={value}" for name, value in found["point"].items() if name != "concurrency")
    words = f"Alone, the parts make these env steps per second at `{settings}`: {alone}"
    words += f"; taking turns, {format_count(bound)}."
    if facts.tuned is not None and facts.tuned.result.sps:
        share = facts.tuned.result.sps / bound
        words += f" The {facts.tuned.role} point reaches {percent(share)} of that."
        if share > 1:
            words += " (More than all: its environments, minibatch and processes are others than those.)"
    return words


def _settings(facts: Facts) -> str:
    """Whether several processes pay, and what was found of each further knob."""
    if facts.search is None:
        return ""
    sharing = facts.search.sharing.sentence if facts.search.sharing else ""
    sentences = [sharing[:1].upper() + sharing[1:]] if sharing else []
    sentences += [decision.sentence for decision in facts.search.knobs]  # they begin with a knob's name, kept as it is
    return "\n".join(f"- {text(sentence)}." for sentence in sentences)


def _ran(measured: list[Measured], phase: str) -> bool:
    return any(each.result.phase_seconds.get(phase) for each in measured)


def _phase(measured: Measured, phase: str) -> str:
    seconds = measured.result.phase_seconds
    total = sum(seconds.values())
    if phase not in seconds or total <= 0:
        return "-"
    return f"{format_count(seconds[phase] * 1e6)} ({percent(seconds[phase] / total)})"


def _machine(facts: Facts, measured: list[Measured]) -> list[tuple[str, list[str]]]:
    allowed = f" of {facts.device.host.cpu_cores_allowed:g}" if facts.device else ""
    results = [each.result for each in measured]
    return [
        ("CPU cores busy", [UNKNOWN if r.cpu_cores is None else f"{r.cpu_cores:.1f}{allowed}" for r in results]),
        ("GPU utilisation", [percent(r.gpu_utilisation) for r in results]),
        ("power", [UNKNOWN if r.power_w is None else f"{format_count(r.power_w)} W" for r in results]),
        ("rows spent on resets", [percent(r.reset_fraction) for r in results]),
    ]
