"""Data that are in memory already: arrays, tensors, pairs of samples and labels, data sets of torch."""

from __future__ import annotations

import os
from typing import Any, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from ..component import require
from .arrays import from_arrays
from .dataset import Dataset
from .sources import load

# What people hold data in.
DataLike: TypeAlias = Union[
    Dataset, str, "os.PathLike[str]", np.ndarray, Tensor, "tuple[Any, Any]", "TorchDataset[Any]"
]
EXPECTED = (
    "an ed.data.Dataset, what ed.data.load reads, an array or tensor (N, *), a pair (samples, labels), or a data set "
    "of torch with a length"
)


def dataset_of(data: DataLike) -> Dataset:
    """A data set from whatever people hold it in; a Dataset as it is.

    - a name or path: `load`;
    - an array or tensor (N, *): `from_arrays`, so uint8 of rank 3 or 4 are images, floating numbers stay;
    - a pair (samples, labels) of these;
    - a data set of torch with a length, whose items are a sample, or a sample and its label: all are read into memory;
      a picture of Pillow is taken as its levels, a tensor as it is (a picture that was scaled to [0, 1] keeps that
      range).

    Raises TypeError for anything else, and FormatError as `from_arrays`.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, os.PathLike)):
        return load(os.fspath(data))
    if isinstance(data, (np.ndarray, Tensor)):
        return from_arrays(_array(data))
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, (np.ndarray, Tensor)) for part in data):
        return from_arrays(_array(data[0]), _array(data[1]))
    if isinstance(data, TorchDataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        return _stacked(data)
    hint = ": give its .dataset" if isinstance(data, DataLoader) else ""
    raise TypeError(f"data: got {type(data).__name__}{hint}; expected {EXPECTED}")


def _array(data: Any) -> np.ndarray:
    """A tensor of any device as an array; numbers that NumPy does not have (bfloat16) as float32."""
    if not isinstance(data, Tensor):
        return np.asarray(data)
    data = data.detach().cpu()
    return (data.float() if data.dtype == torch.bfloat16 else data).numpy()


def _stacked(data: Any) -> Dataset:
    name = type(data).__name__
    require(len(data) > 0, f"data: got an empty {name}")
    samples: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for i in range(len(data)):
        item = data[i]
        x, *rest = item if isinstance(item, (tuple, list)) else (item,)
        if len(rest) > 1 or isinstance(x, (dict, str)):
            kind = f"{len(rest) + 1} things" if len(rest) > 1 else type(x).__name__
            raise TypeError(f"data: an item of {name} is {kind}; expected a sample, or a sample and its label")
        samples.append(_array(x))
        labels.extend(_array(label) for label in rest)
        require(
            samples[-1].shape == samples[0].shape,
            f"data: item {i} of {name} has shape {samples[-1].shape}, the first {samples[0].shape}; expected one size",
        )
        require(len(labels) in (0, len(samples)), f"data: item {i} of {name} differs from the first in having a label")
    return from_arrays(np.stack(samples), np.stack(labels) if labels else None, name=name)
