"""Pictures of a run: throughput over the knobs, and learning curves (matplotlib, Agg: no display needed)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.worker.totals import RETURNS_KEPT

_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000")  # Okabe & Ito 2008
_MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X")
_LINES = ("-", "--", ":", "-.")
"""Of lines of the same colour, where there are more lines than colours."""
_LEGEND_ROWS, _NAMED_MAX = 30, 90
"""Jobs in a column of the legend, and in all of it."""
_ROLE_COLORS = {"baseline": "#666666", "rule of thumb": "#a05a00"}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture.

    Attributes:
        name: file name without a suffix.
        section: the report's section that it stands under.
        caption: one sentence.
        png: the image.
    """

    name: str
    section: str
    caption: str
    png: bytes


def draw_plots(facts: Facts) -> tuple[Plot, ...]:
    """The pictures that the run's data allow."""
    plots = []
    if not facts.trials.empty and (facts.trials["status"] == "ok").any():
        caption = (
            "Throughput of every point measured, all jobs that run at once together, with 95 % intervals. "
            "Each point shows its best-graded launch."
        )
        plots.append(Plot(name="throughput", section="summary", caption=caption, png=_png(_throughput(facts))))
    curves = facts.training.curves if facts.training else {}
    if any(len(curve) > 1 for curve in curves.values()):
        caption = f"Episode return during training, mean of the last {RETURNS_KEPT} games."
        plots.append(Plot(name="training", section="training", caption=caption, png=_png(draw_returns(curves))))
    return tuple(plots)


def _figure(width_in: float = 9.0, height_in: float = 5.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def representative(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per point: the last of its best-graded launches that ended well, else its last failure."""
    order = trials.assign(_well=trials["status"] == "ok", _final=trials["grade"] == "final")
    order = order.sort_values(["_well", "_final", "number"])
    return order.drop_duplicates(["num_envs", "batch_size", "concurrency", "extra"], keep="last")


def _throughput(facts: Facts) -> Figure:
    figure, axes = _figure()
    points = representative(facts.trials)
    good = points[(points["status"] == "ok") & points["sps"].notna()]
    batches = sorted(points["batch_size"].unique())
    levels = sorted(points["concurrency"].unique())
    color = {batch: _COLORS[i % len(_COLORS)] for i, batch in enumerate(batches)}
    marker = {level: _MARKERS[i % len(_MARKERS)] for i, level in enumerate(levels)}
    for (batch, level, _), group in good.groupby(["batch_size", "concurrency", "extra"], sort=True):
        _line(axes, group.sort_values("num_envs"), color[batch], marker[level])
    top = _top(good)
    failed = points[points["status"] != "ok"]
    if len(failed):
        _failures(axes, failed, color)
    _references(axes, facts)
    _scales(axes, points, top)
    axes.legend(
        handles=_legend(color, marker, bool(len(failed)), facts),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
    )
    return figure


def _line(axes: Axes, group: pd.DataFrame, color: str, marker: str) -> None:
    x, y = [float(v) for v in group["num_envs"]], [float(v) for v in group["sps"]]
    low = [0.0 if v is None else max(0.0, mid - v) for v, mid in zip(group["sps_low"], y, strict=True)]
    high = [0.0 if v is None else max(0.0, v - mid) for v, mid in zip(group["sps_high"], y, strict=True)]
    axes.errorbar(x, y, yerr=[low, high], color=color, marker=marker, markersize=6, linewidth=1.2, capsize=3)


def _failures(axes: Axes, failed: pd.DataFrame, color: Mapping[int, str]) -> None:
    """Crosses on the floor, those of one num_envs side by side."""
    for num_envs, group in failed.groupby("num_envs"):
        for place, batch in enumerate(sorted(group["batch_size"])):
            x = float(num_envs) * 1.06 ** (place - (len(group) - 1) / 2)  # type: ignore[arg-type]
            axes.scatter([x], [0.0], marker="x", color=color[batch], s=55, zorder=5, clip_on=False)


def _top(good: pd.DataFrame) -> float:
    ends = [value for value in [*good["sps"], *good["sps_high"]] if value is not None]
    return max(ends, default=1.0)


def _references(axes: Axes, facts: Facts) -> None:
    for measured in (facts.baseline, facts.rule_of_thumb):
        if measured and measured.sps:
            axes.axhline(measured.sps.value, color=_ROLE_COLORS[measured.role], linewidth=1.2, linestyle=(0, (5, 3)))
    if facts.tuned and facts.tuned.sps:
        axes.scatter(
            [facts.tuned.point.num_envs],
            [facts.tuned.sps.value],
            s=260,
            facecolors="none",
            edgecolors="#c00060",
            linewidths=2,
            zorder=6,
        )


def _scales(axes: Axes, points: pd.DataFrame, top: float) -> None:
    sizes = sorted(int(value) for value in points["num_envs"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.35, sizes[-1] * 1.35)
    axes.set_ylim(0, top * 1.08)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("num_envs: environments in each process (log scale)")
    axes.set_ylabel("env steps per second, all jobs together")


def _legend(color: Mapping[int, str], marker: Mapping[int, str], failed: bool, facts: Facts) -> list[Line2D]:
    handles = [
        Line2D([], [], color=shade, linewidth=2.5, label=f"batch_size {batch}") for batch, shade in color.items()
    ]
    handles += [
        Line2D([], [], color="#333333", marker=shape, linestyle="none", label=f"{level} job{'s' * (level > 1)} at once")
        for level, shape in marker.items()
    ]
    handles += [_reference_handle(each) for each in (facts.baseline, facts.rule_of_thumb) if each and each.sps]
    if facts.tuned and facts.tuned.sps:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": "#c00060", "markersize": 13}
        handles.append(Line2D([], [], marker="o", linestyle="none", markeredgewidth=2, label=facts.tuned.role, **ring))
    if failed:
        handles.append(Line2D([], [], color="#333333", marker="x", linestyle="none", label="failed"))
    return handles


def _reference_handle(measured: Measured) -> Line2D:
    return Line2D([], [], color=_ROLE_COLORS[measured.role], linestyle=(0, (5, 3)), label=measured.role)


def draw_returns(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """The learning curves of the jobs, by id; the figure grows with its legend."""
    named = min(len(curves), _NAMED_MAX)
    columns = math.ceil(named / _LEGEND_ROWS)
    height_in = max(5.2, 0.22 * min(named, _LEGEND_ROWS) + 0.6)
    figure, axes = _figure(9.0 + 2.2 * (columns - 1), height_in)
    for index, (job, curve) in enumerate(sorted(curves.items())):
        name = job if len(job) <= 24 else job[:23] + "…"
        turn, shade = divmod(index, len(_COLORS))
        label = name.replace("$", r"\$") if index < named else None
        style = _LINES[turn % len(_LINES)]
        axes.plot(
            curve["env_steps"], curve["mean_return"], color=_COLORS[shade], linestyle=style, linewidth=1.6, label=label
        )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("env steps of the job")
    axes.set_ylabel(f"return per game, mean of the last {RETURNS_KEPT}")
    more = f"and {len(curves) - named} more" if len(curves) > named else None
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, ncols=columns, title=more)
    return figure
