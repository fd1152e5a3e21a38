"""The picture of an ablation: scores of configurations, each training seed a dot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import pictures


@pictures._quiet()
def ablation_plot(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], real: Mapping[str, float | None], xlabel: str
) -> bytes:
    """One panel a score: configurations side by side, a dot for each seed, a bar at their mean, a line at real data.

    panels: the label of the y axis -> configuration -> a value for each seed; None is left out. real: the same label ->
    the value of real data. A panel is logarithmic where its values span more than a factor of 3 and are no shares.
    """
    figure, first = pictures._axes(7.2, 0.4 + 3.4 * len(panels))
    first.remove()
    rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (ylabel, configurations) in zip(rows, panels.items(), strict=True):
        everything = []
        for i, values in enumerate(configurations.values()):
            known = [v for v in values if v is not None]
            everything += known
            spread = [i + 0.08 * (k - (len(known) - 1) / 2) for k in range(len(known))]
            axes.plot(spread, known, "o", color=pictures.SAMPLERS["edm"], markersize=5, alpha=0.75, zorder=3)
            if known:
                mean = sum(known) / len(known)
                axes.hlines(mean, i - 0.28, i + 0.28, color=pictures.SAMPLERS["edm"], linewidth=2)
                axes.annotate(f"{mean:.3g}", (i + 0.31, mean), va="center", fontsize=9, color=pictures.OTHERS[0])
        line = real.get(ylabel)
        if line is not None:
            everything.append(line)
            axes.axhline(line, color=pictures.OTHERS[0], linestyle="--", linewidth=1)
            axes.annotate("real data", (-0.45, line), va="bottom", fontsize=9, color=pictures.OTHERS[0])
        share = max(everything, default=0) <= 1
        if everything and not share and min(everything) > 0 and max(everything) > 3 * min(everything):
            pictures._log(axes, "y")
        axes.set_xticks(range(len(configurations)), list(configurations))
        axes.set_xlim(-0.5, len(configurations) - 0.3)
        axes.set_ylabel(ylabel)
    rows[-1].set_xlabel(xlabel)
    return pictures._png(figure)
