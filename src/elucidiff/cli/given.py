"""What samples are asked to follow, from files: vectors as labels, images as conditions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..denoiser import Denoiser

ConditionOption = Annotated[
    Path | None,
    typer.Option(
        "--condition",
        help="Images that the model follows: a file, a folder, a .zip, .npz or .npy; one for all, or one a seed. "
        "Low-resolution images, or full-size ones, reduced as in training.",
        show_default=False,
    ),
]
LABEL_FILES = (".npy", ".csv")


def label_rows(text: str, denoiser: Denoiser) -> Tensor | None:
    """Labels of a .npy or .csv file, or vectors "0.5,1;2,-3": (N, K), or classes (N,) of a file; None for other text.

    Raises FileNotFoundError, ValueError for what cannot be read or has another number of columns than the model.
    """
    import numpy as np
    import torch

    is_file = Path(text).suffix.lower() in LABEL_FILES
    if not is_file and not denoiser.vector_labels:
        return None
    rows = _label_file(Path(text)) if is_file else _vectors(text)
    K = denoiser.label_dim
    if rows.ndim == 1 and not denoiser.vector_labels and (rows == np.rint(rows)).all():
        return torch.from_numpy(rows.astype(np.int64))
    if rows.ndim == 1:
        rows = rows[:, None] if K == 1 else rows[None]
    if rows.ndim != 2 or rows.shape[1] != K or not len(rows):
        raise ValueError(f"labels: {text} holds {_size(rows)}; this model's labels are vectors of {K} numbers")
    if not np.isfinite(rows).all():
        raise ValueError(f"labels: {text} holds NaN or infinity; expected finite numbers")
    return torch.from_numpy(rows.astype(np.float32))


def _size(rows: np.ndarray) -> str:
    return f"{len(rows)} rows of {rows.shape[1]}" if rows.ndim == 2 else f"an array of shape {rows.shape}"


def _vectors(text: str) -> np.ndarray:
    import numpy as np

    try:
        return np.array([[float(number) for number in row.split(",")] for row in text.split(";")])
    except ValueError:
        raise ValueError(
            f"labels: cannot read {text!r}; this model's labels are vectors: expected numbers such as 0.5,1 "
            "(several: 0.5,1;2,-3), or a .npy or .csv file with one in a row"
        ) from None


def _label_file(path: Path) -> np.ndarray:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of labels")
    try:
        if path.suffix.lower() == ".npy":
            rows = np.load(path, allow_pickle=False)
        else:
            rows = np.loadtxt(path, delimiter=",", ndmin=2)
            rows = rows[:, 0] if rows.shape[1] == 1 else rows
        return np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"labels: {path} cannot be read as rows of numbers: {error}") from None


def read_condition(path: Path | None, n: int, denoiser: Denoiser) -> Tensor | None:
    """The condition (1 or n, K, *size) of n samples, as the network sees it; None for a model without.

    Raises ValueError for a condition that is missing, not due, or of a size or number that does not fit.
    """
    conditioning, shape = denoiser.conditioning, denoiser.shape or ()
    if conditioning is None:
        if path is not None:
            raise ValueError("--condition: this model was trained without; leave it out")
        return None
    if path is None:
        raise ValueError(
            f"--condition is needed: the model is conditioned by {conditioning}; expected a file or folder of images, "
            f"{conditioning.accepted(shape)}"
        )
    given = _images(path)
    if conditioning.from_data and tuple(given.shape[1:]) == tuple(shape):
        given = conditioning.of(given)
    if len(given) not in (1, n):
        raise ValueError(f"--condition: got {len(given)} images for {n} seeds; expected one for all, or one for each")
    return conditioning.prepare(given, shape)


def _images(path: Path) -> Tensor:
    """Images (N, C, H, W) in [-1, 1], or arrays as they are; of data with pairs the conditions, not the samples."""
    import torch

    from .. import data as datasets
    from ..data.images import SUFFIXES, decode, from_uint8

    if path.suffix.lower() in SUFFIXES and path.is_file():
        return from_uint8(torch.from_numpy(decode(path.read_bytes(), str(path)).copy()))[None]
    dataset = datasets.load(path)
    pairs = dataset.conditions(range(len(dataset)))
    return dataset.tensor() if pairs is None else pairs
