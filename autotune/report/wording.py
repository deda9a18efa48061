"""How figures and other people's words are put: what a report may say, and safe Markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from tabulate import tabulate

from autotune.records import ENDED_EARLY
from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.report.projection import HOUR_S, Projection, Quantity, Savings
from autotune.search.result import ratio
from autotune.stats import GAMES_PER_ENV
from autotune.units import counted, format_count, format_duration, format_usd, shortened

UNKNOWN = "unknown"
MORE_GAMES = (
    f"{GAMES_PER_ENV:g} or more in each environment are needed: measure longer, with fewer environments "
    "(`--try num_envs=8,...`), or give budgets in steps (`--steps N`)"
)
_CENT_USD = 0.005
"""What is rounded up to a cent."""
_MARKDOWN = re.compile(r"([\\`*_\[\]|#!])")


def text(value: object, limit: int = 300) -> str:
    """Somebody else's words (job ids, device names, messages) as one line of inert Markdown."""
    line = shortened(_printable(value), limit)
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def code(value: object) -> str:
    """Somebody else's words as inline code."""
    return f"`{_printable(value).replace('`', chr(39)) or ' '}`"


def block(value: object, lines: int = 8, width: int = 160) -> str:
    """The last lines of a log as an indented code block: nothing in it is markup."""
    last = [_printable(line, squeeze=False)[:width] for line in str(value).splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in last)


def _printable(value: object, *, squeeze: bool = True) -> str:
    shown = "".join(character if character.isprintable() else " " for character in str(value))
    return " ".join(shown.split()) if squeeze else shown.rstrip()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    align = ["left" if column < numbers_from else "right" for column in range(len(headers))]
    return tabulate(rows, headers=list(headers), tablefmt="pipe", disable_numparse=True, colalign=align)


def percent(fraction: float | None) -> str:
    """``0.031`` -> ``3.1 %``; whole percents from 10 to 95, where a tenth says nothing."""
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    shown = abs(fraction) * 100
    digits = 0 if 9.95 <= shown < 95 or shown >= 100 else 1
    return f"{round(fraction * 100, digits) + 0.0:.{digits}f} %"  # 0.0 makes -0.0 positive


def signed_percent(fraction: float) -> str:
    """``0.031`` -> ``+3.1 %``."""
    return ("+" if fraction >= 0 else "") + percent(fraction)


def games(facts: Facts) -> str:
    """What the hours of budgets in episodes assume of the games' length; of which games it was measured."""
    counted_in = {job.env for job in facts.jobs if job.budget.unit == "episodes"}
    lengths = facts.game_lengths
    if all(lengths[env].measured for env in counted_in):  # else all of them stand in
        lengths = {env: length for env, length in lengths.items() if env in counted_in}
    own = sorted((length for length in lengths.values() if length.measured), key=lambda length: length.steps)
    span = " to ".join(dict.fromkeys(format_count(each.steps) for each in (own[0], own[-1])))
    most = "at most " if len(own) > 1 else ""
    error = most + percent(max(length.error_fraction for length in own))
    ended = counted(sum(length.games for length in own), "game")
    said = f"{span} env steps (± {error}; {ended} ended)"
    others = [env for env, length in lengths.items() if not length.measured]
    if not others:
        return f"if a game goes on taking {said} as measured"
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (
        f"if a game of {text(', '.join(others[:3]))}{more}, not measured, is as long as those of "
        f"{text(', '.join(env for env, length in lengths.items() if length.measured))}, which take {said}"
    )


def times(value: float | None) -> str:
    """``2.345`` -> ``2.35x``; fewer digits for large factors."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:,.0f}x"


def hours(value: Quantity | None, *, interval: bool = True) -> str:
    """Hours as ``7d 5h (6d 22h to 7d 12h)``."""
    if value is None:
        return UNKNOWN
    shown = format_duration(value.value * HOUR_S)
    if not interval or value.low is None or value.high is None:
        return shown
    low, high = format_duration(value.low * HOUR_S), format_duration(value.high * HOUR_S)
    return shown if low == high else f"{shown} ({low} to {high})"


def plan_hours(plan: Projection, *, interval: bool = True) -> str:
    """Hours of all jobs; from the least to the most where the speed of those left at the end was not measured."""
    if plan.open_end and plan.least and plan.hours:
        return " to ".join(format_duration(end * HOUR_S) for end in _reach(plan.least, plan.hours, interval))
    return hours(plan.hours, interval=interval)


def plan_dollars(plan: Projection, *, interval: bool = True) -> str:
    """What all jobs cost, as `plan_hours`."""
    if plan.open_end and plan.least_usd and plan.usd and plan.usd.value >= _CENT_USD:
        least, most = (f"{end:,.2f}" for end in _reach(plan.least_usd, plan.usd, interval))
        return money(plan.usd.value) if least == most else f"{least} to {most} USD"
    return dollars(plan.usd, interval=interval)


def took(facts: Facts, seconds: float) -> str:
    """Seconds of the machine, and what they cost where its price is known: ``50m, 1.67 USD``."""
    usd = f", {money(seconds / HOUR_S * facts.price.usd_per_hour)}" if facts.price else ""
    return f"{format_duration(seconds)}{usd}"


def about(plan: Projection, amount: str) -> str:
    """An amount of a plan in words: ``about`` it where no interval is known, but for ``under 0.01 USD``."""
    exact = plan.hours is not None and plan.hours.high is not None
    return amount if exact or amount.startswith("under") else f"about {amount}"


def _reach(least: Quantity, most: Quantity, interval: bool) -> tuple[float, float]:
    """From the least to the most, each with its own interval where that is wanted and known."""
    if not interval or least.low is None or most.high is None:
        return least.value, most.value
    return least.low, most.high


def money(usd: float) -> str:
    """``346.67 USD``, never a rounded-off ``0.00 USD``."""
    return "under 0.01 USD" if 0 < usd < _CENT_USD else format_usd(usd)


def dollars(value: Quantity | None, *, interval: bool = True) -> str:
    """Dollars as ``346.67 USD (330.00 to 362.00)``."""
    if value is None:
        return UNKNOWN
    if not interval or value.low is None or value.high is None or value.value < _CENT_USD:
        return money(value.value)
    low, high = f"{value.low:,.2f}", f"{value.high:,.2f}"
    return money(value.value) if low == high else f"{format_usd(value.value)} ({low} to {high})"


def interval(value: Quantity | None) -> str:
    """The 95 % interval of a speed as ``40,100 to 42,300``."""
    if value is None or value.low is None or value.high is None:
        return "no interval"
    return f"{format_count(value.low)} to {format_count(value.high)}"


def plus_minus(value: Quantity | None) -> str:
    """A speed as ``41,200 ± 3.0 %``."""
    if value is None:
        return UNKNOWN
    width = value.half_width_fraction
    return f"{format_count(value.value)} {'(no interval)' if width is None else f'± {percent(width)}'}"


def launched(measured: Measured) -> str:
    """``3 launches`` or ``one launch, quick windows``."""
    launches = counted(measured.launches, "launch", "launches")
    return launches if measured.result.grade == "final" else f"{launches}, quick windows"


def speed(measured: Measured) -> str:
    """A point's aggregate speed, with what stands behind it: ``95 %, this machine, 3 launches`` or weaker words."""
    if measured.sps is None:
        return f"no speed: {measured.result.status.replace('_', ' ')}"
    width = measured.sps.half_width_fraction
    ends = f" ± {percent(width)} (" if measured.firm and width is not None else f" ({interval(measured.sps)}; "
    return f"{format_count(measured.sps.value)} SPS{ends}95 %, this machine, {launched(measured)})"


def comparison(tuned: Measured, reference: Measured) -> str:
    """How the tuned point's aggregate speed stands to a reference, a tie said as a tie."""
    if reference.sps is None or tuned.sps is None:
        return UNKNOWN
    compared = ratio(tuned.result, reference.result)
    if compared is None or tuned.sps.low is None or reference.sps.low is None:
        return f"{times(tuned.sps.value / reference.sps.value)} its SPS, but tied: no interval is known"
    value, low, high = compared
    tie = "tied: " if low <= 1 <= high else ""
    return f"{tie}{times(value)} its SPS ({times(low)} to {times(high)})"


def saving(saved: Savings) -> str:
    """What is saved in hours and dollars; a tie and a loss are said as such."""
    low, high = saved.fraction.low, saved.fraction.high
    least, most = percent(low), percent(high)
    ends = f"; {least} to {most}" if UNKNOWN not in (least, most) and least != most else ""
    if saved.tied:
        return f"no saving shown ({percent(saved.fraction.value)}{ends})"
    amount = format_duration(abs(saved.hours.value) * HOUR_S)
    if saved.usd is not None:
        amount = f"{money(abs(saved.usd.value))} and {amount}"
    if saved.hours.value < 0:
        return f"nothing, it takes {amount} **more** ({percent(-saved.fraction.value)} more)"
    return f"{amount} ({percent(saved.fraction.value)}{ends})"


def against(facts: Facts, reference: Measured) -> str:
    """The tuned point against one reference: saving and speed, or why there is none."""
    tuned = facts.tuned
    if tuned is not None and reference.point == tuned.point:
        return "nothing: these are the same settings"
    if reference.sps is None:
        if ENDED_EARLY in reference.result.flags:
            return f"unknown: at the {reference.role} the program ended before it was measured"
        return f"unknown: the {reference.role} failed ({reference.result.status.replace('_', ' ')})"
    saved = facts.saved(reference)
    speeds = comparison(tuned, reference) if tuned else UNKNOWN
    return f"{saving(saved)}; {speeds}" if saved else speeds
