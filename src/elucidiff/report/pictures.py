"""Pictures for a page, as PNG bytes: sheets of samples pixel by pixel, and plots in one quiet style."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.images import to_uint8
from ..data.writing import contact_sheet
from ..errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Numbers = Sequence[float] | Tensor

PLOT_DPI = 150
SHEET_DPI = 192  # two pixels of the sheet to a CSS pixel, so that the lettering is crisp on dense screens
LETTERS = 24  # pixels: 12 CSS pixels
GAP = 4
INK, QUIET, FAINT = "#24292e", "#626a73", "#c9ced4"

# Okabe and Ito's palette, told apart by all kinds of colour vision.
SAMPLERS = {"iddpm": "#CC79A7", "edm": "#0072B2", "vp": "#D55E00", "ve": "#009E73"}
OTHERS = ("#4D4D4D", "#E69F00", "#56B4E9", "#B8A900", "#8A6BBE")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": PLOT_DPI,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


# --- sheets -----------------------------------------------------------------------------------------


def sample_sheet(
    images: Tensor, columns: int, row_labels: Sequence[str] | None = None, scale: int | None = None
) -> bytes:
    """Images (B, C, H, W) in [-1, 1], C = 1 or 3, row by row; optionally a label at the left of each row.

    scale: pixels of the sheet for each pixel of an image; when None, so many that an image is about
    96 high, and 1 for images above that. Raises ValueError for other shapes, NaN, or labels that
    are not one for each row.
    """
    _check_images("images", images)
    sheet = _pixels(contact_sheet(_enlarged(images, scale), min(columns, len(images)), GAP))
    if row_labels is None:
        return _png_of(sheet)
    rows = -(-len(images) // columns)
    if len(row_labels) != rows:
        raise ValueError(f"row_labels: got {len(row_labels)}; the sheet has {rows} rows")
    pitch = (sheet.height + GAP) / rows
    return _png_of(_labelled(sheet, [(row_labels[i], i * pitch + (pitch - GAP) / 2) for i in range(rows)]))


def trajectory_sheet(
    x: Tensor, denoised: Tensor, sigmas: Tensor, columns: int = 9, rows: int = 3, scale: int | None = None
) -> bytes:
    """How samples come out of noise: the state x above the denoiser's answer D, noise falling to the right.

    x: states (N + 1, B, C, H, W) as recorded, scaled or not. denoised: (N, B, C, H, W). sigmas:
    (N + 1,), the last 0, where no D exists. Each x is shown at the RMS of the samples over its
    level's own RMS, which is 1 / sqrt(sigma^2 + sigma_data^2) up to a constant for every s(t): noise
    then looks like noise instead of saturating.
    """
    if len(x) != len(sigmas) or len(denoised) != len(x) - 1 or x.shape[1:] != denoised.shape[1:]:
        raise ValueError(
            f"x, denoised, sigmas: got shapes {tuple(x.shape)}, {tuple(denoised.shape)}, {tuple(sigmas.shape)}; "
            "expected (N + 1, B, C, H, W), (N, B, C, H, W), (N + 1,)"
        )
    _check_images("x[-1]", x[-1])
    steps = torch.linspace(0, len(x) - 1, min(columns, len(x))).round().long().tolist()
    rms = x.detach().cpu().double().square().mean(dim=tuple(range(1, x.ndim))).sqrt().clamp_min(1e-12)
    blank = torch.ones_like(x[-1])
    pairs = []
    for k in range(min(rows, x.shape[1])):
        states = [x[i, k].cpu() * (rms[-1] / rms[i]) for i in steps]
        answers = [(denoised[i, k] if i < len(denoised) else blank[k]).cpu() for i in steps]
        pairs.append(_pixels(contact_sheet(_enlarged(torch.stack(states + answers), scale), len(steps), GAP)))
    return _png_of(_trajectory(pairs, [_plain(float(sigmas[i]), 3 if sigmas[i] >= 100 else 2) for i in steps]))


def _check_images(name: str, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise ValueError(f"{name}: got shape {tuple(x.shape)}; expected images (B, C, H, W) with C = 1 or 3")


def _enlarged(x: Tensor, scale: int | None) -> Tensor:
    scale = scale or 2 * round(48 / x.shape[-2]) or 1  # even: exact also where two pixels become one
    return x.detach().cpu().repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _pixels(x: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(to_uint8(x).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _labelled(sheet: Image, labels: Sequence[tuple[str, float]], top: int = 0) -> Image:
    """The sheet with texts (text, y of its middle) at its left and `top` free pixels above."""
    from PIL import Image, ImageDraw

    font = _font()
    lines = [(" ".join(text.split()), y) for text, y in labels]
    left = round(max((font.getlength(text) for text, _ in lines), default=0)) + LETTERS
    page = Image.new("RGB", (left + sheet.width, top + sheet.height), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    for text, y in lines:
        draw.text((left - LETTERS // 2, top + y), text, fill=QUIET, font=font, anchor="rm")
    return page


def _trajectory(pairs: Sequence[Image], headings: Sequence[str], names: Sequence[str] = ("x", "D")) -> Image:
    """Sheets of some rows each, one below the other: a name at the left of every row, a heading over every column."""
    from PIL import Image, ImageDraw

    width, height, apart, top = pairs[0].width, pairs[0].height, 4 * GAP, round(1.6 * LETTERS)
    sheet = Image.new("RGB", (width, len(pairs) * (height + apart) - apart), "white")
    labels = [("σ", -0.9 * LETTERS)]
    for k, pair in enumerate(pairs):
        y = k * (height + apart)
        sheet.paste(pair, (0, y))
        labels += [(name, y + (i + 0.5) * height / len(names)) for i, name in enumerate(names)]
    page = _labelled(sheet, labels, top)
    draw, pitch = ImageDraw.Draw(page), (width + GAP) / len(headings)
    for i, heading in enumerate(headings):
        middle = page.width - width + i * pitch + (pitch - GAP) / 2
        draw.text((middle, top - 0.9 * LETTERS), heading, fill=QUIET, font=_font(), anchor="mm")
    return page


def _font() -> FreeTypeFont:
    """DejaVu Sans, as Matplotlib ships it: Pillow's own font lacks σ and everything beyond ASCII."""
    from PIL import ImageFont

    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), LETTERS)


def _png_of(image: Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG", dpi=(SHEET_DPI, SHEET_DPI), optimize=True)
    return content.getvalue()


def _plain(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−", 1) if value < 0 else f"{value:.{digits}g}"


# --- plots ------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Matplotlib's defaults with STYLE over them, whatever the user's own settings are."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    with matplotlib.style.context(["default", STYLE]):
        yield


@_quiet()
def levels_plot(levels: Mapping[str, Numbers]) -> bytes:
    """The noise levels each sampler visits: sigma (log) over the fraction of its steps; the final 0 is left out."""
    figure, axes = _axes(6.4, 3.8)
    for (name, sigmas), colour, marker in zip(levels.items(), colours(levels), _markers(levels), strict=True):
        sigma = _array(sigmas)
        fraction = torch.linspace(0, 1, len(sigma)).numpy()
        above = sigma > 0
        axes.plot(fraction[above], sigma[above], color=colour, marker=marker, label=name)
    _log(axes, "y")
    axes.set(xlabel="fraction of the steps", ylabel="noise level σ", xlim=(-0.02, 1.02))
    return _png(figure, legend=True)


@_quiet()
def loss_plot(
    sigmas: Numbers,
    losses: Mapping[str, tuple[Numbers, Numbers]],
    density: tuple[Numbers, Numbers] | None = None,
    ylabel: str = "loss λ(σ) |D − y|², per dimension",
) -> bytes:
    """The loss at each noise level, with a band of one standard error.

    sigmas: (K,). losses: name -> (mean, sem), each (K,). density: (sigmas, p) of the training noise,
    shaded behind on its own scale from 0.
    """
    figure, axes = _axes(6.4, 3.8)
    x = _array(sigmas)
    for (name, (mean, sem)), colour, marker in zip(losses.items(), colours(losses), _markers(losses), strict=True):
        middle, error = _array(mean), _array(sem)
        axes.plot(x, middle, color=colour, marker=marker, label=name)
        axes.fill_between(x, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
    _log(axes, "x")
    axes.set(xlabel="noise level σ", ylabel=ylabel, xlim=(x.min(), x.max()))
    axes.set_ylim(bottom=0)
    if density is not None:
        _shade(axes, _array(density[0]), _array(density[1]))
    return _png(figure, legend=True)


@_quiet()
def training_plot(images: Sequence[int], loss: Numbers, ylabel: str = "training loss") -> bytes:
    """The loss over the number of images seen."""
    from matplotlib.ticker import EngFormatter

    figure, axes = _axes(6.4, 3.2)
    axes.plot(_array(images), _array(loss), color=SAMPLERS["edm"])
    axes.set(xlabel="images seen", ylabel=ylabel)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    return _png(figure)


@_quiet()
def score_plot(
    scores: Sequence[tuple[str, float, float | None]],
    real: float | None = None,
    label: str = "distance to held-out data (lower is better)",
    title: str = "",
) -> bytes:
    """Scores (name, value, error or None) as dots, the first on top, the values written at the right.

    real: the same score of real data against real data, marked by a line; below it no score means anything.
    The axis is logarithmic, except that it is linear around 0 when a score is 0 or below, as an
    unbiased kernel distance may be.
    """
    figure, axes = _axes(6.4, 1.3 + 0.36 * len(scores))
    names = [name for name, _, _ in scores]
    for row, ((_, value, error), colour) in enumerate(zip(scores, colours(names), strict=True)):
        axes.errorbar(value, row, xerr=error, fmt="o", markersize=7, color=colour, capsize=3)
        text = _plain(value) if error is None else f"{_plain(value)} ± {_plain(error, 2)}"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center")
    if real is not None:
        axes.axvline(real, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        text = f"real against real: {_plain(real)}"
        axes.annotate(text, (real, 1), (0, 4), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      ha="center", va="bottom", annotation_clip=False)  # fmt: skip
    _score_axis(axes, [value for _, value, _ in scores] + ([] if real is None else [real]))
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.grid(False, axis="y")
    if title:
        axes.set_title(title, pad=22 if real is not None else 6)
    return _png(figure)


@_quiet()
def curves_plot(
    x: Numbers, curves: Mapping[str, Numbers], xlabel: str, ylabel: str, logx: bool = False, logy: bool = False
) -> bytes:
    """Curves over the same x, each with its name."""
    figure, axes = _axes(6.4, 3.8)
    for (name, y), colour, marker in zip(curves.items(), colours(curves), _markers(curves), strict=True):
        axes.plot(_array(x), _array(y), color=colour, marker=marker, label=name)
    for letter, wanted in (("x", logx), ("y", logy)):
        if wanted:
            _log(axes, letter)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return _png(figure, legend=True)


def colours(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """A colour for each name: a name that begins with EDM, VP, VE or iDDPM has always the same."""
    free = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    first_words = (re.split(r"[^a-z]", name.lower(), maxsplit=1)[0] for name in names)
    return [SAMPLERS.get(word) or next(free) for word in first_words]


def _markers(names: Mapping[str, Any]) -> list[str]:
    return [MARKERS[i % len(MARKERS)] for i in range(len(names))]


def _array(values: Numbers | Sequence[int]) -> np.ndarray:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))  # not pyplot: no window system, nothing kept open
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _log(axes: Axes, letter: str) -> None:
    """A logarithmic axis with plain numbers: at the powers of ten, and at 2 and 5 where those are fewer than three."""
    (axes.set_xscale if letter == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if letter == "x" else axes.yaxis

    def between(value: float, _: float) -> str:
        low, high = axis.get_view_interval()
        return _plain(value) if high < 100 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter(lambda value, _: _plain(value))
    axis.set_minor_formatter(between)


def _score_axis(axes: Axes, values: Sequence[float]) -> None:
    values = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = min(values), max(values)
    if low > 0:
        _log(axes, "x")
        axes.set_xlim(low / 1.8, high * 1.8)
        return
    from matplotlib.ticker import NullLocator

    linear = 10.0 ** math.ceil(math.log10(min((abs(v) for v in values if v), default=1.0)))
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_xlim(min(low, -linear) * 1.8, max(high, linear) * 1.8)
    axes.xaxis.set_major_formatter(lambda value, _: _plain(value))
    axes.xaxis.set_minor_locator(NullLocator())


def _shade(axes: Axes, sigma: np.ndarray, p: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    behind = axes.twinx()
    behind.fill_between(sigma, 0, p, color=FAINT, alpha=0.45, linewidth=0)
    behind.set_ylim(0, 1.15 * p.max())
    behind.set_ylabel("shaded: training noise p(ln σ)", color=QUIET, labelpad=8)
    behind.yaxis.set_major_locator(MaxNLocator(4))
    behind.tick_params(axis="y", length=0, labelcolor=QUIET)
    behind.grid(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _png(figure: Figure, legend: bool = False) -> bytes:
    """The figure as PNG, a legend above its axes where it covers nothing."""
    if legend:
        longest = max(len(label) for label in figure.axes[0].get_legend_handles_labels()[1])
        figure.legend(loc="outside upper left", ncols=max(1, 66 // (longest + 6)))
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
