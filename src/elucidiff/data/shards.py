"""WebDataset shards: more samples than fit into memory, decoded when a batch asks for them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import FormatError
from ..seeds import Stream, keyed
from .archives import Progress
from .arrays import check_memory
from .dataset import Dataset, names_at, rows_of
from .labels import labels_in_order
from .lazy import Lazy
from .shard_index import Entry, content_at, decode_member, index_of

MEASURED = 2048  # samples that mean and sigma_data are measured on


class Places(NamedTuple):
    """Where N samples are: the number of the tar, offset, size and CRC-32 in it, all (N,), and their names."""

    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    names: tuple[str, ...]

    def at(self, chosen: np.ndarray) -> Places:
        """Those at these indices, or where a mask is true."""
        tar, offset, size, crc = (array[chosen] for array in self[:4])
        return Places(tar, offset, size, crc, names_at(self.names, chosen) or ())


class Shards(Lazy):
    """Samples in tar files, which stay there: a Dataset whose values are read when a batch asks for them.

    In memory are place, size, CRC-32 and name of every sample, and the labels. A batch opens its tars, reads its
    members, compares their CRC-32 and decodes them; nothing else is kept, so that threads and processes may share one.

    mean and sigma_data are measured on 2,048 samples drawn by a fixed seed (all, where there are fewer): of 20,000
    images of MNIST sigma_data is then 0.3 % off, of CIFAR-10 0.1 %.
    The fingerprint is the SHA-256 of shape, names, sizes and CRC-32 of the files, and of the labels. `values` and
    `tensor()` decode everything into memory, and raise FormatError where that is more than the machine has.
    """

    def __init__(
        self, paths: Sequence[Path], places: Places, shape: tuple[int, ...], image: bool, **fields: Any
    ) -> None:
        self._paths, self._places, self._shape, self._image = tuple(paths), places, shape, image
        super().__init__(**({"name": "shards"} | fields | {"names": places.names}))

    def __len__(self) -> int:
        return len(self._places.names)

    @property
    def is_image(self) -> bool:
        """Whether the samples are images of 256 levels."""
        return self._image

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample as a tensor: (C, H, W) for images."""
        return self._shape

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """The samples of these rows, decoded: uint8 (B, C, H, W), or float32 (B, *)."""
        dtype = np.dtype(np.uint8 if self.is_image else np.float32)
        check_memory(len(chosen) * int(np.prod(self._shape)) * dtype.itemsize, self.source)
        values = np.empty((len(chosen), *self._shape), dtype)
        places = self._places.at(chosen)
        for tar in np.unique(places.tar):
            path, rows = self._paths[tar], np.flatnonzero(places.tar == tar)
            with path.open("rb") as file:
                for row in rows[np.argsort(places.offset[rows], kind="stable")]:
                    _, offset, size, crc = (int(column[row]) for column in places[:4])
                    where = f"{path}: {places.names[row].removeprefix(f'{path.name}/')}"
                    sample = decode_member(content_at(file, offset, size, crc, where), where)
                    # Grey among colour becomes RGB; other differences were refused when the tar was indexed.
                    if sample.shape != self._shape and sample.shape != (1, *self._shape[1:]):
                        raise FormatError(f"{where}: shape {sample.shape}; expected {self._shape}")
                    values[row] = sample
        return values

    def _measure(self) -> tuple[float, float]:
        return self.measured().moments()

    def measured(self) -> Dataset:
        """The samples, at most 2,048, that mean and sigma_data are measured on, in memory."""
        rows = np.arange(len(self))
        if len(rows) > MEASURED:
            rows = np.sort(keyed(0, Stream.SPLIT, 2).permutation(len(rows))[:MEASURED])
        if self.skips:
            rows, *_ = self.batch_read(rows)
        fields = {name: value for name, value in self.fields_at(rows).items() if name != "skips"}
        return Dataset(self.read(rows), **fields)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the shape, of names, sizes and CRC-32 of the files, and of the labels."""
        digest = hashlib.sha256(json.dumps([list(self.shape), self.is_image, list(self._places.names)]).encode())
        for array in (self._places.size, self._places.crc, self.labels):
            header = None if array is None else [array.dtype.name, list(array.shape)]
            digest.update(json.dumps(header).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def duplicates(self) -> list[list[int]]:
        """Groups of two or more indices whose files are the same: by size and CRC-32, and of those by SHA-256."""
        keys = list(zip(self._places.size.tolist(), self._places.crc.tolist(), strict=True))
        counts = Counter(keys)
        groups: dict[tuple[int, bytes], list[int]] = {}
        for i, key in enumerate(keys):
            if counts[key] > 1:
                tar, offset, size, crc = (int(column[i]) for column in self._places[:4])
                with self._paths[tar].open("rb") as file:
                    content = content_at(file, offset, size, crc, str(self._paths[tar]))
                groups.setdefault((size, hashlib.sha256(content).digest()), []).append(i)
        return [group for group in groups.values() if len(group) > 1]

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Dataset:
        """The samples at these indices, in this order; nothing is read."""
        chosen = rows_of(indices, len(self))
        fields = self.fields_at(chosen)
        return Shards(self._paths, self._places.at(chosen), self._shape, self._image, **fields)


def read_shards(
    paths: Sequence[Path], source: str, cache: Path | None = None, progress: Progress | None = None
) -> Shards:
    """The samples of tars in this order: KEY.png, .jpg, .webp or .npy, with the class in KEY.cls or KEY.json ("label").

    A label in JSON may be a whole number, the name of a class (numbered in sorted order) or a vector. Each tar is read
    once, at the speed of the disk; an index of larger ones is kept in the folder `cache`. Raises FormatError naming
    tar and member for everything that could not be read later, but damage within an image.
    """
    total, before = sum(path.stat().st_size for path in paths), 0
    numbers: list[int] = []
    entries: list[Entry] = []
    for number, path in enumerate(paths):
        report = None if progress is None else _shifted(progress, before, total)
        found = index_of(path, cache, report)
        _check_alike([*entries[:1], *found], str(path))
        numbers += [number] * len(found)
        entries += found
        before += path.stat().st_size
    names = [f"{paths[number].name}/{entry.name}" for number, entry in zip(numbers, entries, strict=True)]
    labels, classes = _labels([entry.label for entry in entries], names, source)
    places = Places(
        np.array(numbers, np.int32),
        np.array([entry.offset for entry in entries], np.int64),
        np.array([entry.size for entry in entries], np.int64),
        np.array([entry.crc for entry in entries], np.uint32),
        tuple(names),
    )
    shape = max((entry.shape for entry in entries), key=lambda shape: shape[:1])
    name = paths[0].name.removesuffix(".tar")
    fields = {"labels": labels, "classes": classes, "name": name, "source": source}
    return Shards(paths, places, shape, entries[0].image, **fields)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """Progress within one tar as progress within all, in MiB."""
    return lambda done, _: progress((before + done) >> 20, max(1, total >> 20))


def _check_alike(entries: Iterable[Entry], where: str) -> None:
    """All samples are images of one size, or arrays of one shape; grey images may stand among colour."""
    first, *others = entries
    for entry in others:
        same = entry.shape == first.shape or (entry.image and entry.shape[1:] == first.shape[1:])
        if not same or entry.image != first.image:
            raise FormatError(f"{where}: mixed samples: {first.name} is {first.shape}, {entry.name} is {entry.shape}")


def _labels(values: list[Any], names: list[str], where: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    if all(value is None for value in values):
        return None, None
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise FormatError(f"{where}: {name} has no label, but others have")
    classes = None
    if all(isinstance(value, str) for value in values):
        classes = tuple(sorted(set(values)))
        index = {name: k for k, name in enumerate(classes)}
        values = [index[value] for value in values]
    return labels_in_order(dict(zip(names, values, strict=True)), names, where), classes
