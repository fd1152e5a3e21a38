"""What an evaluation shows: samples beside their nearest neighbours, the best and the worst, scores on a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..files import folder_written_atomically
from .page import Page
from .pictures import GAP, LETTERS, QUIET, _check_images, _enlarged, _font, _pixels, _plain, _png_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..analysis.evaluation_neighbours import Beside, Ranked, Shown

LINE = round(1.3 * LETTERS)
SMALL = 18  # pixels of the numbers under pictures
COLUMNS = 8


def write_evaluation_pictures(folder: Path, shown: Shown) -> None:
    """nearest.png, best-worst.png and their numbers, shown.json, in a new folder."""
    with folder_written_atomically(folder) as new:
        (new / "nearest.png").write_bytes(nearest_picture(shown.nearest))
        (new / "shown.json").write_text(json.dumps(shown.to_dict(), indent=1) + "\n", encoding="utf-8")
        (new / "best-worst.png").write_bytes(best_worst_picture(shown.best, shown.worst, shown.of))


def nearest_picture(beside: Beside) -> bytes:
    """A row for each sample: it, its nearest training images by features, and those by pixels, with the distances."""
    _check_images("x", beside.x)
    sample = _column([_captioned(x[None], [name[-12:]]) for x, name in zip(beside.x, beside.names, strict=True)])
    groups = [("sample", sample)]
    for name, (y, distance) in (("nearest by features", beside.by_features), ("nearest by pixels", beside.by_pixels)):
        rows = [_captioned(images, [_plain(d) for d in ds.tolist()]) for images, ds in zip(y, distance, strict=True)]
        groups.append((name, _column(rows)))
    return _png_of(_beside(groups))


def best_worst_picture(best: Ranked, worst: Ranked, of: int) -> bytes:
    """The samples that look most real by their features, and the least, each with its realism."""
    groups = []
    for name, part in (("most real", best), ("least real", worst)):
        _check_images("x", part.x)
        cuts = range(0, len(part.x), COLUMNS)
        rows = [
            _captioned(part.x[i : i + COLUMNS], [_plain(r, 2) for r in part.realism[i : i + COLUMNS].tolist()])
            for i in cuts
        ]
        groups.append((f"{name} of {of:,}", _column(rows)))
    return _png_of(_beside(groups))


def _captioned(images: Tensor, texts: Sequence[str]) -> Image:
    """Images (k, C, H, W) side by side, a text under each."""
    from PIL import Image, ImageDraw

    from ..data.writing import contact_sheet

    row = _pixels(contact_sheet(_enlarged(images, None), len(images), GAP))
    page = Image.new("RGB", (row.width, row.height + SMALL + GAP), "white")
    page.paste(row, (0, 0))
    draw, pitch = ImageDraw.Draw(page), (row.width + GAP) / len(images)
    for i, text in enumerate(texts):
        middle = i * pitch + (pitch - GAP) / 2
        draw.text((middle, row.height + 1), text, fill=QUIET, font=_font().font_variant(size=SMALL), anchor="ma")
    return page


def _column(rows: Sequence[Image]) -> Image:
    from PIL import Image

    heights = [row.height + 2 * GAP for row in rows]
    page = Image.new("RGB", (max(row.width for row in rows), sum(heights)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, sum(heights[:i])))
    return page


def _beside(groups: Sequence[tuple[str, Image]]) -> Image:
    """Columns with a heading each, side by side."""
    from PIL import Image, ImageDraw

    font, apart = _font(), 2 * LETTERS
    widths = [max(image.width, round(font.getlength(name))) for name, image in groups]
    height = max(image.height for _, image in groups) + LINE + GAP
    page = Image.new("RGB", (sum(widths) + apart * (len(groups) + 1) - apart, height + LETTERS), "white")
    draw, left = ImageDraw.Draw(page), apart // 2
    for (name, image), width in zip(groups, widths, strict=True):
        draw.text((left, LETTERS // 2), name, fill=QUIET, font=font, anchor="la")
        page.paste(image, (left, LINE + LETTERS // 2))
        left += width + apart
    return page


def evaluation_section(page: Page, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """A section with the scores of evaluations and all that they depend on; nothing without any."""
    from ..publish import score_table

    if not evaluations:
        return
    page.section("Scores", "Each number beside the one that real data get in the place of the samples.")
    for found in evaluations:
        header, rows, note = score_table(found)
        page.table(header, rows, note=note, numeric={1, 2} if len(header) == 4 else {1, 2, 3})
