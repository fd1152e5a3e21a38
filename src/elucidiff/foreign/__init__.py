"""Other people's weights, read without executing anything of theirs."""

from __future__ import annotations

from .reading import Inspection, inspect, is_foreign, read, state_dict, tensors, walk
from .records import Global, Key, Record, Storage, clip

__all__ = ["Global", "Inspection", "Key", "Record", "Storage", "clip", "inspect", "is_foreign", "read", "state_dict",
           "tensors", "walk"]  # fmt: skip
