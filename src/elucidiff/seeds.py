"""Randomness: per-sample streams for sampling, counter-based streams for training. Never the global state."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_SEED = 2**63 - 1


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as plain integers. Raises ValueError for anything but integers from 0 to MAX_SEED."""
    if not isinstance(seeds, Iterable):
        raise ValueError(f"seeds: got {seeds!r}; expected one integer a sample, such as range(16)")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seeds: got {seed!r}; expected integers from 0 to {MAX_SEED}")
    return tuple(int(seed) for seed in seeds)


def as_ranges(seeds: Sequence[int]) -> str:
    """Seeds in their order as people write them: "0-63,70"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class Seeds:
    """One CPU generator per sample, so that sample k depends on its own seed only.

    Draws come in the order of the published samplers: latent (float32), class label, then the
    solver's noise. They are made on the CPU, so that every device sees the same numbers.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = check_seeds(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers (B, *shape), row k from the stream of sample k."""
        rows = [torch.randn(tuple(shape), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(rows).to(device)

    def integers(self, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform integers (B,) in 0 .. high - 1."""
        rows = [torch.randint(high, (), generator=g) for g in self._generators]
        return torch.stack(rows).to(device)


def keyed(seed: int, stream: int, step: int = 0, index: int = 0) -> np.random.Generator:
    """The counter-based generator (Philox) of one draw site: a pure function of its four integers.

    Training draws everything from these, so a run can stop and resume at any step, and be split over
    processes, without a change in its numbers. Streams keep uses apart (see `Stream`).
    """
    generator = np.random.Generator(np.random.Philox())
    _seek(generator, seed, stream, step, index)
    return generator


def keyed_normal(seed: int, stream: int, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers (n, *shape) float32; row j depends on (seed, stream, step, indices[j]) only."""
    generator = np.random.Generator(np.random.Philox())
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        _seek(generator, seed, stream, step, index)
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


def keyed_uniform(seed: int, stream: int, step: int, indices: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers (n, *shape) float64 in [0, 1); row j depends on (seed, stream, step, indices[j]) only."""
    generator = np.random.Generator(np.random.Philox())
    rows = np.empty((len(indices), *shape))
    for j, index in enumerate(indices):
        _seek(generator, seed, stream, step, index)
        rows[j] = generator.random(tuple(shape))
    return torch.from_numpy(rows)


def _seek(generator: np.random.Generator, seed: int, stream: int, step: int, index: int) -> None:
    """Put a Philox generator at a key and counter: 4 microseconds, where making a new one costs 40."""
    generator.bit_generator.state = {
        "bit_generator": "Philox",
        # The lowest word of the 256-bit counter is left to the draws themselves.
        "state": {
            "counter": np.array([0, index, step, 0], dtype=np.uint64),
            "key": np.array([seed, stream], dtype=np.uint64),
        },
        "buffer": np.zeros(4, dtype=np.uint64),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }


class Stream:
    """Names of the training streams; the numbers are part of the file format and never change."""

    ORDER = 1  # permutation of the data, by epoch
    LEVEL = 2  # noise level of a sample
    NOISE = 3  # noise added to a sample
    LABEL = 4  # label dropout
    NETWORK = 5  # dropout inside the network
    INIT = 6  # initial weights
    SPLIT = 7  # held-out part of a data set
    AUGMENT = 8  # augmentation of a sample
    STRATUM = 9  # which part of the noise distribution a sample of the batch gets
    HELDOUT = 10  # levels and noise at which held-out data are measured during training
    PROBE = 20  # probe of a Jacobian's trace, by number and row
    DEQUANTISE = 21  # uniform noise within the levels of discrete data


@contextmanager
def torch_seeded(seed: int, stream: int, step: int = 0, index: int = 0) -> Iterator[None]:
    """Within the block torch's own generators are a function of (seed, stream, step, index); restored afterwards.

    For what torch draws by itself: initial weights and dropout masks.
    """
    value = int(keyed(seed, stream, step, index).integers(2**63 - 1))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(value)
        yield


def permutation(n: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of n samples in one epoch: each exactly once, a pure function of (n, seed, epoch)."""
    return keyed(seed, Stream.ORDER, epoch).permutation(n)
