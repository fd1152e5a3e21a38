"""Pictures of what the instruments of `analysis` measured, as PNG bytes, in the style of the other pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..analysis import Curvature, Decided, Denoised, GlobalError, Straightness, Trajectories, TruncationError
from ..component import require
from ..data.writing import contact_sheet
from .pictures import (
    FAINT,
    GAP,
    INK,
    QUIET,
    SAMPLERS,
    _array,
    _axes,
    _check_images,
    _enlarged,
    _log,
    _markers,
    _pixels,
    _plain,
    _png,
    _png_of,
    _quiet,
    _shade,
    _trajectory,
    colours,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@_quiet()
def truncation_plot(errors: Mapping[str, TruncationError]) -> bytes:
    """The error of every step over the level it starts from, with a band of one standard error.

    Where the exact solution is uncertain by a tenth of an error or more, its mark is hollow.
    """
    require(len(errors) > 0, "errors: got none; expected a name and a TruncationError each")
    figure, axes = _axes(6.4, 3.8)
    for (name, one), colour, marker in zip(errors.items(), colours(errors), _markers(errors), strict=True):
        sigma, error, spread = _array(one.sigmas[:-1]), _array(one.error), _array(one.standard_error)
        unclear = _array(one.reference_error) >= 0.1 * error
        axes.plot(sigma, error, color=colour, marker=marker, label=name)
        axes.plot(sigma[unclear], error[unclear], color=colour, marker=marker, markerfacecolor="white", linestyle="")
        axes.fill_between(sigma, error - spread, error + spread, color=colour, alpha=0.2, linewidth=0)
    _log(axes, "x")
    _errors(axes)
    axes.set(xlabel="noise level σ at the beginning of the step", ylabel="local error, RMS per dimension")
    return _png(figure, legend=True)


@_quiet()
def global_error_plot(result: GlobalError) -> bytes:
    """The error of the samples over the number of evaluations; the observed order stands beside the name."""
    figure, axes = _axes(6.4, 3.8)
    names = [curve.name for curve in result.curves]
    markers = _markers(dict.fromkeys(names))
    for curve, colour, marker in zip(result.curves, colours(names), markers, strict=True):
        label = curve.name if curve.order is None else f"{curve.name} (order {_plain(curve.order, 2)})"
        axes.plot(_array(curve.nfe), _array(curve.error), color=colour, marker=marker, label=label)
    _log(axes, "x")
    _errors(axes)
    axes.set(xlabel="evaluations a sample", ylabel="error of the samples, RMS per dimension")
    return _png(figure, legend=True)


@_quiet()
def curvature_plot(result: Curvature) -> bytes:
    """Where the paths of each design turn, and what Euler's step does wrong, over the noise level.

    Left: degrees for each halving of sigma, the total beside the name. Right: the error of the step that halves sigma.
    """
    figure, (left, right) = _panels(9.2, 3.7, 2)
    names = [one.name for one in result.designs]
    per_halving = len(result.sigmas) - len(result.jump_sigmas)
    for one, colour in zip(result.designs, colours(names), strict=True):
        turned = one.turned.unfold(0, per_halving, 1).sum(1)
        left.plot(_array(result.jump_sigmas), _array(turned), color=colour, label=_straightness(one))
        right.plot(_array(result.jump_sigmas), 100 * _array(one.jumps), color=colour)
    left.set(ylabel="degrees turned", title="Turning of the path while σ halves")
    right.set(ylabel="% of the noise removed", title="Error of the Euler step that halves σ")
    for axes in (left, right):
        _log(axes, "x")
        axes.set(xlabel="noise level σ at the beginning")
        axes.set_ylim(bottom=0)
    return _png(figure, legend=True)


def _straightness(one: Straightness) -> str:
    return f"{one.name}: turns {one.turning:.0f}°, {_plain(100 * one.stretch, 2)} % longer than its chord"


@_quiet()
def trajectory_picture(panels: Sequence[Trajectories]) -> bytes:
    """The paths of a one-dimensional model under each design over its time, the density behind them.

    In black the tangents, each as long in time as an Euler step, with a dot where that lands.
    """
    require(len(panels) > 0, "panels: got none; expected what analysis.trajectories returns")
    figure, many = _panels(3.3 * len(panels), 3.3, len(panels))
    names = [panel.name for panel in panels]
    for axes, panel, colour in zip(many, panels, colours(names), strict=True):
        _trajectory_panel(axes, panel, colour)
    many[0].set_ylabel("scaled state x(t)")
    return _png(figure)


def _trajectory_panel(axes: Axes, panel: Trajectories, colour: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    t, x = _array(panel.t), _array(panel.x)
    shades = LinearSegmentedColormap.from_list("density", ["white", "#d5d9de"])
    density = _array(panel.density.T)
    axes.pcolormesh(
        _array(panel.grid_t), _array(panel.grid_x), density, cmap=shades, vmin=0, vmax=1, shading="nearest",
        rasterized=True, zorder=0,
    )  # fmt: skip
    axes.plot(t, x, color=colour, linewidth=1.2)
    for j in panel.tangents.tolist():
        end = max(t[j] - panel.reach, 0.0)
        landed = x[j] + (end - t[j]) * _array(panel.slope[j])
        axes.plot([t[j], end], [x[j], landed], color=INK, linewidth=0.7, alpha=0.8)
        axes.plot([end] * len(landed), landed, color=INK, linestyle="", marker="o", markersize=1.6, clip_on=end > 0)
    top = float(panel.grid_x[-1])
    axes.set(title=panel.name, xlabel="time t", xlim=(0, t[0]), ylim=(-top, top))
    axes.grid(False)


def denoised_sheet(result: Denoised, columns: int = 9, rows: int = 2, scale: int | None = None) -> bytes:
    """What each denoiser makes of images under growing noise, one group of rows an image: the input, then the answers.

    Each noisy image is shown at the RMS of the clean one, so that noise looks like noise instead of saturating.
    Raises ValueError for data that are no images.
    """
    _check_images("clean", result.clean)
    at = torch.linspace(0, len(result.sigmas) - 1, min(columns, len(result.sigmas))).round().long().tolist()
    groups = []
    for k in range(min(rows, len(result.clean))):
        clean = result.clean[k].square().mean().sqrt()
        inputs = [result.noisy[i, k] * (clean / result.noisy[i, k].square().mean().sqrt().clamp_min(1e-12)) for i in at]
        answers = [curve.outputs[i, k] for curve in result.curves for i in at]
        images = torch.stack([image.detach().cpu() for image in inputs + answers])
        groups.append(_pixels(contact_sheet(_enlarged(images, scale), len(at), GAP)))
    headings = [_plain(float(result.sigmas[i]), 3 if result.sigmas[i] >= 100 else 2) for i in at]
    return _png_of(_trajectory(groups, headings, ["y + σn", *(curve.name for curve in result.curves)]))


@_quiet()
def denoised_plot(result: Denoised) -> bytes:
    """How far D is from the clean data (solid) and from the nearest data point (dashed), over the noise level."""
    figure, axes = _axes(6.4, 3.8)
    names = [curve.name for curve in result.curves]
    sigma = _array(result.sigmas)
    for curve, colour in zip(result.curves, colours(names), strict=True):
        axes.plot(sigma, _array(curve.error), color=colour, label=f"{curve.name}: to y")
        if curve.nearest is not None:
            label = f"{curve.name}: to the nearest data"
            axes.plot(sigma, _array(curve.nearest), color=colour, linestyle=(0, (4, 2)), label=label)
    axes.axhline(result.spread, color=QUIET, linewidth=1)
    axes.annotate("spread of the data", (sigma[0], result.spread), (2, 3), textcoords="offset points", color=QUIET)
    _log(axes, "x")
    axes.set(xlabel="noise level σ", ylabel="distance of D, RMS per dimension", xlim=(sigma[0], sigma[-1]))
    axes.set_ylim(bottom=0)
    return _png(figure, legend=True)


@_quiet()
def decided_plot(result: Decided, training: Tensor | None = None) -> bytes:
    """What is decided at each level, and below it where that happens.

    training (L,): p(ln sigma) of the training noise at the same levels (`training_density`), shaded.
    """
    figure, (above, below) = _panels(6.4, 5.4, 2, stacked=True)
    sigma, blue, green = _array(result.sigmas), SAMPLERS["edm"], SAMPLERS["ve"]
    above.plot(sigma, _array(result.decided), color=blue, label="decided, whatever noise follows")
    above.plot(sigma, _array(result.foreseen), color=SAMPLERS["vp"], label="shown by D on the sample's own path")
    if result.agreement is not None:
        above.plot(sigma, _array(result.agreement), color=green, label="samples whose class has settled")
    above.axhline(0.5, color=FAINT, linewidth=1)
    lowest = min(float(result.decided.min()), float(result.foreseen.min()), 0.0)
    above.set(ylabel="share", ylim=(max(lowest, -0.5), 1.03), xlim=(sigma[-1], sigma[0]))
    below.plot(sigma, _array(result.density), color=blue)
    below.set(xlabel="noise level σ", ylabel="decided per unit of ln σ", xlim=(sigma[-1], sigma[0]))
    below.set_ylim(bottom=min(0.0, float(result.density.min())))
    for axes in (above, below):
        _log(axes, "x")
    if training is not None:
        _shade(below, sigma, _array(training))
    return _png(figure, legend=True)


def _errors(axes: Axes) -> None:
    """A logarithmic axis of errors: small powers of ten as such."""
    _log(axes, "y")

    def label(value: float, _: float) -> str:
        power = round(math.log10(value)) if value > 0 else 0
        return f"10{str(power).translate(RAISED)}" if power < -3 else _plain(value)

    axes.yaxis.set_major_formatter(label)


def _panels(width: float, height: float, count: int, stacked: bool = False) -> tuple[Figure, list[Axes]]:
    figure, axes = _axes(width, height)
    axes.remove()
    shape = (count, 1) if stacked else (1, count)
    return figure, list(figure.subplots(*shape, squeeze=False).flat)
