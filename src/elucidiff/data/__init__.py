"""Data: the embedded digits, folders and archives of images, arrays of any rank in memory; shards on the disk."""

from __future__ import annotations

from .arrays import from_arrays
from .dataset import Dataset, SigmaDataWarning, check_sigma_data
from .images import from_uint8, to_uint8
from .prepare import Prepared, prepare
from .resize import Resize
from .shards import Shards
from .sources import load

__all__ = [
    "Dataset",
    "Prepared",
    "Resize",
    "Shards",
    "SigmaDataWarning",
    "check_sigma_data",
    "from_arrays",
    "from_uint8",
    "load",
    "prepare",
    "to_uint8",
]
