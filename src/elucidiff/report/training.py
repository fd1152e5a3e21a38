"""How a run of training went, from the files of its directory: one picture for all, and the loss by noise level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError
from ..files import write_atomically
from .pictures import INK, QUIET, SAMPLERS, _axes, _log, _png, _quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = list[dict[str, Any]]

BLUE, ORANGE = SAMPLERS["edm"], SAMPLERS["vp"]
SPANS = 5  # the last half of the run, the quarter before it, the eighth before that, ...
ENOUGH = 40  # samples that a point of a curve has at least


def write_training_picture(run: Path) -> Path:
    """Draw RUN/training.png anew from what the run has written so far, and return its path."""
    path = run / "training.png"
    write_atomically(path, training_picture(run))
    return path


@_quiet()
def training_picture(run: Path) -> bytes:
    """Loss on training and held-out data, loss by noise level over time, learning rate, norm of the gradients.

    Raises FormatError when the directory has no log of a training run.
    """
    metrics, levels, scores = (_lines(run / f"{name}.jsonl") for name in ("metrics", "loss_by_sigma", "scores"))
    if not metrics or not levels:
        raise FormatError(f"{run}: no metrics.jsonl and loss_by_sigma.jsonl; expected the directory of a training run")
    figure, first = _axes(11, 7)
    first.remove()
    (loss, by_sigma), (rate, norm) = figure.subplots(2, 2, height_ratios=(3, 2))
    _loss(loss, levels, scores)
    _by_sigma(by_sigma, levels, scores)
    images = [line["images"] for line in metrics]
    rate.plot(images, [line["lr"] for line in metrics], color=BLUE)
    rate.set(title="learning rate", ylim=(0, None))
    norms = [line["grad_norm"] for line in metrics]
    norm.plot(images, norms, color=BLUE, linewidth=1.2)
    norm.set_title("norm of the gradients")
    if 0 < 5 * min(norms) < max(norms):
        _log(norm, "y")
    else:
        norm.set_ylim(bottom=0)
    for axes in (loss, rate, norm):
        _over_images(axes)
    return _png(figure)


@_quiet()
def loss_by_sigma_plot(run: Path) -> bytes:
    """The loss by noise level in the halves of a run, from light to dark. Raises FormatError without its file."""
    levels = _lines(run / "loss_by_sigma.jsonl")
    if not levels:
        raise FormatError(f"{run}: no loss_by_sigma.jsonl; expected the directory of a training run")
    figure, axes = _axes(6.4, 3.8)
    _by_sigma(axes, levels, [])
    axes.set(title="", ylabel="loss λ(σ) |D − y|², per entry")
    return _png(figure)


def _lines(path: Path) -> Lines:
    """The lines of a file, none when there is no file; a last one that is still being written is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _loss(axes: Axes, levels: Lines, scores: Lines) -> None:
    images, mean = np.array([line["images"] for line in levels]), np.array([_mean(line) for line in levels])
    width = max(1, len(mean) // 25)
    axes.plot(images, mean, color=BLUE, alpha=0.25 if width > 1 else 1.0, linewidth=1.2)
    smooth = np.convolve(mean, np.ones(width) / width, "valid")
    axes.plot(images[width - 1 :], smooth, color=BLUE, label="in training")
    if scores:
        at = [line["images"] for line in scores]
        error = [line["heldout_error"] for line in scores]
        axes.plot(
            at, [line["training"] for line in scores], "s--", color=QUIET, label="averaged weights, training data"
        )
        axes.errorbar(at, [line["heldout"] for line in scores], error, fmt="o-", color=ORANGE, capsize=3,
                      label="averaged weights, held-out data")  # fmt: skip
    axes.set_title("loss λ|D − y|² per entry, over all noise levels")
    axes.legend(loc="upper right")


def _mean(line: dict[str, Any]) -> float:
    return float(np.average(line["loss"], weights=line["count"]))


def _by_sigma(axes: Axes, levels: Lines, scores: Lines) -> None:
    spans = _spans(levels)
    for i, (first, last, part) in enumerate(spans):
        sigma, loss = _pooled(part)
        colour = _shade_of(i, len(spans))
        axes.plot(sigma, loss, color=colour, label=f"{_short(first)} to {_short(last)} images")
    if scores:
        axes.plot(scores[-1]["sigma"], scores[-1]["heldout_by_sigma"], "o--", color=ORANGE, label="held-out data, last")
    _log(axes, "x")
    axes.set(title="loss per entry by noise level", xlabel="noise level σ", ylim=(0, None))
    axes.legend(loc="best", fontsize=8.5, labelcolor=INK)


def _spans(levels: Lines) -> list[tuple[int, int, Lines]]:
    """(first, last, lines) of the last half of the run, the quarter before and so on, the earliest first."""
    total, found, end = levels[-1]["images"], [], levels[-1]["images"]
    for i in range(1, SPANS + 1):
        start = 0 if i == SPANS else total // 2**i
        part = [line for line in levels if start < line["images"] <= end]
        if part:
            earlier = any(line["images"] <= start for line in levels)
            found.append((start if earlier else 0, end, part))
            end = start
    return found[::-1]


def _pooled(lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of each bin over several lines, for the bins that have enough samples, or the fullest one."""
    sums: dict[float, np.ndarray] = {}
    for line in lines:
        for sigma, loss, count in zip(line["sigma"], line["loss"], line["count"], strict=True):
            sums[sigma] = sums.get(sigma, np.zeros(2)) + np.array([loss * count, count])
    enough = min(ENOUGH, max(count for _, count in sums.values()))
    kept = sorted((sigma, total / count) for sigma, (total, count) in sums.items() if count >= enough)
    return np.array([sigma for sigma, _ in kept]), np.array([mean for _, mean in kept])


def _shade_of(i: int, count: int) -> tuple[float, float, float]:
    """From pale to full blue."""
    from matplotlib.colors import to_rgb

    pale = 0.75 * (1 - (i + 1) / count)
    red, green, blue = (c + (1 - c) * pale for c in to_rgb(BLUE))
    return red, green, blue


def _short(images: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if images >= size:
            return f"{images / size:.3g}{unit}"
    return str(images)


def _over_images(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("images seen")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
