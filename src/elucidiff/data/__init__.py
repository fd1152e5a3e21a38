"""Data: the embedded digits, folders and archives of images, arrays of any rank, all in memory."""

from __future__ import annotations

from .arrays import from_arrays
from .dataset import Dataset, SigmaDataWarning, check_sigma_data
from .images import from_uint8, to_uint8
from .sources import load

__all__ = ["Dataset", "SigmaDataWarning", "check_sigma_data", "from_arrays", "from_uint8", "load", "to_uint8"]
