"""Data: the embedded digits, folders and archives of images, arrays of any rank; shards on the disk, mapped images."""

from __future__ import annotations

from .arrays import from_arrays
from .cache import Mapped
from .dataset import Dataset, SigmaDataWarning, check_sigma_data
from .images import from_uint8, to_uint8
from .memory import DataLike, dataset_of
from .prepare import Prepared, prepare
from .resize import Resize
from .shards import Shards
from .skipping import BadDataWarning
from .sources import load

__all__ = [
    "BadDataWarning",
    "DataLike",
    "Dataset",
    "Mapped",
    "Prepared",
    "Resize",
    "Shards",
    "SigmaDataWarning",
    "check_sigma_data",
    "dataset_of",
    "from_arrays",
    "from_uint8",
    "load",
    "prepare",
    "to_uint8",
]
