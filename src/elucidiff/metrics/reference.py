"""Reference statistics in files: mean and covariance of a data set's features, ours and published ones."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from .. import foreign
from ..component import require
from ..errors import FormatError
from ..files import file_written_atomically
from .features import DigitFeatures, Features
from .frechet import Statistics

EXACT = 10**9  # samples that moments of an unknown number of them count as
MOMENTS = ("mu", "sigma")
LARGEST = 1 << 30  # bytes of a member: 11,000 dimensions


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of a data set's features, and what they are of.

    statistics: those of n samples, or as if of a billion where the file does not say how many. n: None then.
    extractor, sha256: the name of the extractor, and the hash of all that its features depend on (`extractor_hash`);
    None where the file does not say. data: what they were made of, as the maker noted it; None likewise.
    """

    statistics: Statistics
    n: int | None
    extractor: str | None
    sha256: str | None
    data: Mapping[str, Any] | None = None

    def check(self, extractor: Features) -> None:
        """Raise ValueError when the statistics are known to be of another extractor's features."""
        got, own = extractor_hash(extractor), self.sha256
        require(
            own in (None, got),
            f"these reference statistics are of features {self.extractor} ({(own or '')[:8]}), "
            f"the samples' of {extractor} ({got[:8]}); use the same for both",
        )


def extractor_hash(extractor: Features) -> str:
    """SHA-256 of an extractor's JSON form, with the hash of the weights that it reads and without where they lie."""
    from .digit_classifier import RECORD

    aside = {f.name for f in fields(extractor) if not f.compare}
    facts = {name: value for name, value in extractor.to_dict().items() if name not in aside}
    if isinstance(extractor, DigitFeatures):
        facts |= {"weights": json.loads(RECORD.read_text(encoding="utf-8"))["sha256"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_reference(
    path: str | Path, statistics: Statistics, extractor: Features, data: Mapping[str, Any] | None = None
) -> None:
    """Write mu (d,), sigma (d, d) over n - 1, both float64, n, extractor and sha256 to a new .npz file.

    `data`, JSON data about what the statistics are of, is added as text. Other tools read mu and sigma of the file.
    Raises FileExistsError, and ValueError for another suffix.
    """
    path = Path(path)
    require(path.suffix == ".npz", f"{path}: reference statistics are written as .npz files")
    arrays: dict[str, Any] = {
        "mu": statistics.mean.numpy(),
        "sigma": statistics.covariance.numpy(),
        "n": np.int64(statistics.n),
        "extractor": np.array(str(extractor)),
        "sha256": np.array(extractor_hash(extractor)),
    } | ({} if data is None else {"data": np.array(json.dumps(dict(data)))})
    with file_written_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_reference(path: str | Path, key: str | None = None) -> Reference:
    """The statistics that `save_reference` wrote, or published ones: mu and sigma in an .npz or a .pkl file.

    A pickle is read without executing anything (`elucidiff.foreign`). Where it holds several statistics by name,
    such as "fid" and "fd_dinov2", `key` names one. Raises FileNotFoundError, FormatError for files that hold no such
    thing, ValueError when `key` names none or is needed.
    """
    path = Path(path)
    with path.open("rb") as file:
        packed = file.read(2) == b"PK"
    require(key is None or not packed, f"key: got {key!r}; {path} is an npz file and holds one set of statistics")
    values = _npz(path) if packed else _chosen(foreign.read(path), key, path)
    if not all(name in values for name in MOMENTS):
        raise FormatError(f"{path}: no mu and sigma in it, only {', '.join(map(str, values)) or 'nothing'}")
    try:
        n = None if values.get("n") is None else int(values["n"])
        mu, sigma = (torch.from_numpy(np.array(values[name], dtype=np.float64)) for name in MOMENTS)
        statistics = Statistics.from_moments(mu, sigma, EXACT if n is None else n)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: not reference statistics ({error})") from error
    return Reference(statistics, n, _text(values.get("extractor")), _text(values.get("sha256")), _noted(values))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _noted(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What our own files say of their data; of a file by others it is not asked."""
    try:
        found = json.loads(str(values["data"])) if "data" in values and values.get("sha256") is not None else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _chosen(value: Any, key: str | None, path: Path) -> dict[str, Any]:
    """The dictionary with mu and sigma in what a pickle held."""
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds {foreign.clip(value)}; expected mu and sigma by name")
    named = {k: v for k, v in value.items() if isinstance(v, dict) and all(name in v for name in MOMENTS)}
    if all(name in value for name in MOMENTS) and key is None:
        return value
    if key is None and len(named) == 1:
        return next(iter(named.values()))
    require(
        key in named or not named,
        f"{path}: key: got {key!r}; it holds statistics of {', '.join(map(str, named))}: choose one",
    )
    return named.get(key, value)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            present = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = (*MOMENTS, "n", "extractor", "sha256", *(["data"] if "sha256" in present else []))
            return {name: _array(archive, present[name], path) for name in wanted if name in present}
    except FormatError:
        raise
    except Exception as error:  # zipfile, zlib and the header's parser raise half a dozen types on damaged archives
        raise FormatError(f"{path}: not an npz file, or a damaged one ({error})") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array; what its header declares is compared with what is there before any memory is taken."""
    with archive.open(info) as file:
        version = npy.read_magic(file)
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
        present = info.file_size - file.tell()
    if dtype.kind not in "iufU" or math.prod(shape) * dtype.itemsize != present or present > LARGEST:
        raise FormatError(f"{path}: {info.filename}: declares {dtype} {shape} in {present:,} bytes")
    with archive.open(info) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))
