"""Pictures of quality: scores over the number of evaluations or a parameter, with spread and with what is ideal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours of `pictures` first, then four that stay apart from them.
PALETTE = (*pictures.SAMPLERS.values(), *pictures.OTHERS, "#A6413C", "#1B7F9E", "#7A9A01", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "d")
DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Curve:
    """A named curve: x and mean (K,), and the standard deviation of each (None: no band). None is left out of it."""

    name: str
    x: Sequence[float]
    mean: Sequence[float | None]
    std: Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """A horizontal line with a text on it, and a band around it where it has a spread."""

    text: str
    value: float
    std: float | None = None


@pictures._quiet()
def quality_plot(
    panels: Mapping[str, Sequence[Curve]],
    lines: Mapping[str, Sequence[Line]] | None = None,
    xlabel: str = "network evaluations a sample (NFE)",
    ticks: Sequence[float] | None = None,
    logx: bool = True,
) -> bytes:
    """One panel below the other for each score, with the same curves: mean, and a band of one standard deviation.

    panels: the label of the y axis -> its curves; lines: the same label -> its lines, dashed. A panel is
    logarithmic where all means are above 0 and span more than a factor of 3. A curve of one point is a marker.
    Raises ValueError when there is nothing to draw.
    """
    if not any(any(m is not None for m in c.mean) for curves in panels.values() for c in curves):
        raise ValueError("quality_plot: got no curve with a value; expected at least one")
    figure, first = pictures._axes(7.2, 0.9 + 3.9 * len(panels))
    first.remove()
    styles = curve_styles(list(dict.fromkeys(c.name for curves in panels.values() for c in curves)))
    rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (ylabel, curves) in zip(rows, panels.items(), strict=True):
        own = (lines or {}).get(ylabel, ())
        for curve in curves:
            _draw(axes, curve, *styles[curve.name])
        means = [m for c in curves for m in c.mean if m is not None] + [line.value for line in own]
        if min(means) > 0 and max(means) > 3 * min(means):
            pictures._log(axes, "y")
            low = 1.6 if own else 1.25  # room for the text of a line
            axes.set_ylim(min(means) / low, max(means) * 1.25)  # a band that reaches towards 0 would flatten the rest
        _lines(axes, own)
        if logx:
            pictures._log(axes, "x")
        axes.set_ylabel(ylabel)
        if ticks is not None:
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.set_xticks([], minor=True)
    rows[-1].set_xlabel(xlabel)
    figure.align_ylabels(list(rows))
    handles = {label: line for axes in rows for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, 95 // (max(map(len, handles)) + 6))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns)
    return pictures._png(figure)


def curve_styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, all different up to 13; EDM, VP, VE and iDDPM have their own colours."""
    fixed = {name: colour for name in names if (colour := pictures.SAMPLERS.get(name.lower()))}
    free = [colour for colour in (*pictures.OTHERS, *PALETTE) if colour not in fixed.values()]
    free = list(dict.fromkeys(free))
    others = [name for name in names if name not in fixed]
    colours = fixed | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: (colours[name], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _draw(axes: Axes, curve: Curve, colour: str, marker: str) -> None:
    """The points with a value, joined over gaps; the band where there is a spread."""
    known = [(x, m, s) for x, m, s in zip(curve.x, curve.mean, curve.std, strict=True) if m is not None]
    if not known:
        return
    x, mean, std = zip(*known, strict=True)
    axes.plot(x, mean, color=colour, marker=marker, label=curve.name, markersize=5.5, zorder=3)
    if all(s is not None for s in std):
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        if len(x) == 1:
            axes.errorbar(x, mean, yerr=std, color=colour, capsize=3, zorder=3)
        elif min(mean) > 0:  # a logarithmic axis has no room for a band below 0
            low = [max(v, 1e-3 * m) for v, m in zip(low, mean, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _lines(axes: Axes, lines: Sequence[Line]) -> None:
    for i, line in enumerate(lines):
        dash, left = DASHES[i % len(DASHES)], i % 2 == 0  # texts of close lines beside each other, not on each other
        axes.axhline(line.value, color=pictures.INK, linewidth=1.2, linestyle=dash, zorder=2)
        if line.std and math.isfinite(line.std):
            axes.axhspan(line.value - line.std, line.value + line.std, color=pictures.FAINT, alpha=0.4, linewidth=0)
        axes.annotate(
            f"{line.text}: {pictures._plain(line.value)}",
            (0.01 if left else 0.99, line.value),
            (0, -3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="top",
            ha="left" if left else "right",
            fontsize=9,
            color=pictures.INK,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
            zorder=4,
        )
