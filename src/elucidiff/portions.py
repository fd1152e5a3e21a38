"""A long piece of work in portions: which of them are this process's, and nobody waits for anybody."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .component import require


@dataclass(frozen=True)
class Portion:
    """The index-th of `count` processes that share a list of parts: every count-th part is its own, from `index` on.

    Interleaved, so that each has as many as any other, and late parts do not all fall to the last one. Raises
    ValueError for an index outside 0 .. count - 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        require(
            self.count >= 1 and 0 <= self.index < self.count,
            f"shard: got {self.index}/{self.count}; expected i/n with 0 <= i < n, as 0/4, 1/4, 2/4 and 3/4",
        )

    @classmethod
    def parse(cls, text: str) -> Portion:
        """Of "i/n", counted from 0."""
        index, slash, count = text.partition("/")
        require(
            bool(slash) and index.strip().isdecimal() and count.strip().isdecimal(),
            f"shard: got {text!r}; expected i/n with 0 <= i < n, as 0/4",
        )
        return cls(int(index), int(count))

    @classmethod
    def here(cls, shard: str | None = None) -> Portion:
        """The part of this process, where those that torchrun started divide each shard "i/n", or everything."""
        said = cls() if shard is None else cls.parse(shard)
        rank = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        return cls(said.index * rank.count + rank.index, said.count * rank.count)

    def of(self, parts: int) -> range:
        """The numbers of this one's parts, of so many."""
        return range(self.index, parts, self.count)


def own_device(device: str) -> str:
    """A GPU for each process that torchrun starts: cuda:LOCAL_RANK for cuda; others as they are."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def first_here() -> bool:
    """Whether this is the first of the processes on this machine: one bar a terminal."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
