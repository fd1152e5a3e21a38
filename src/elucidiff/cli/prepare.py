"""The command that makes a data set of one size from pictures as they lie around."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .options import JsonOption

if TYPE_CHECKING:
    from ..data import Prepared, Resize


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder or .zip of images, .npz, .npy, anything DATA can be.", show_default=False
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="New .zip, .npz or folder.", show_default=False)],
    resolution: Annotated[
        str | None, typer.Option("--resolution", metavar="WxH", help="Resize to this many pixels: 64x64, or 64.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            "--transform",
            help="Before resizing: center, center-dhariwal (ImageNet), none (distort). Default: center.",
            show_default=False,
        ),
    ] = None,
    resample: Annotated[str, typer.Option("--filter", help="lanczos, bicubic, bilinear or box.")] = "lanczos",
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="Only the first so many, by name.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    compress: Annotated[int, typer.Option("--compress", min=0, max=9, help="Of PNG files: 0 none, 9 smallest.")] = 1,
    standardize: Annotated[
        bool, typer.Option("--standardize", help="Float arrays: mean 0 and deviation 1 in each channel.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a data set for training: images cropped, resized and packed with their labels, one at a time.

    Labels are the source's: its sub-folders, dataset.json, arrays. Without --resolution all images need one size.

    Example: elucidiff prepare photos photos-64.zip --resolution 64x64
    """
    from .. import data as datasets
    from ..progress import bar

    resize = datasets.Resize(_resolution(resolution), crop, resample)
    with bar("preparing") as report:
        made = datasets.prepare(
            source,
            dest,
            resize,
            max_images=max_images,
            skip_bad=skip_bad,
            compress=compress,
            standardize=standardize,
            progress=report,
        )
    if as_json:
        show.as_json(made.to_dict())
    else:
        _print(made, resize)


def _resolution(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", text)
    if not match:
        raise ValueError(f"--resolution: cannot read {text!r}; expected WIDTHxHEIGHT such as 64x64, or one number")
    return int(match[1]), int(match[2] or match[1])


def _print(made: Prepared, resize: Resize) -> None:
    print(
        f"{made.path}: {made.count:,} samples, shape {made.shape}, {_classes(made)}, sigma_data {made.sigma_data:.4f}"
    )
    if resize.resolution or resize.crop != "none":
        print(f"  {resize}" + (f"; {made.enlarged:,} were smaller and are enlarged" if made.enlarged else ""))
    if made.skipped:
        print(f"  {made.skipped:,} could not be read and are left out; the first: {made.reasons[0]}")
    print(f"next: elucidiff train {made.path} --out {Path('runs') / made.path.stem}")


def _classes(made: Prepared) -> str:
    if not made.label_dim:
        return "no labels"
    if made.per_class is None:
        return f"labels of {made.label_dim} numbers"
    fewest, most, empty = min(made.per_class), max(made.per_class), made.per_class.count(0)
    each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{made.label_dim:,} classes of {each}" + (f" ({empty:,} without any)" if empty else "")
