"""What equal bits cost: steps of several processes, with sums in one fixed order and by all-reduce.

    torchrun --nproc-per-node=2 benchmarks/determinism.py [--rounds 15] [--json FILE]

Each row trains the digits' network on batches of 64, shared by the processes: with the gradients gathered and added in
the order of `ranks.TreeSum` (the package's way, any number of processes gives the same bits), and with all-reduce, as
DistributedDataParallel has them. Taking turns; medians, and the median ratio of the rounds. With one process (python
benchmarks/determinism.py) the rows are one part of the batch and four, which is what accumulation costs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import elucidiff as ed
from elucidiff.training import Trainer, weights
from elucidiff.training.ranks import Ranks, together


def reduced(parts: Sequence[Sequence[Tensor]], ranks: Ranks) -> list[Tensor]:
    """As `ranks.summed`, by all-reduce of one flat tensor."""
    mine: list[Tensor] = []
    for part in parts:
        mine = [*torch._foreach_add(mine, part)] if mine else list(part)
    flat = torch.cat([t.flatten() for t in mine])
    dist.all_reduce(flat)
    for piece, t in zip(flat.split([t.numel() for t in mine]), mine, strict=True):
        t.copy_(piece.view_as(t))
    return mine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, tree = ed.data.load("digits"), weights.summed
    with together("cpu") as (ranks, _):
        several = ranks.size > 1
        config = ed.TrainConfig(data="digits", out="unused", batch=64, workers=0)
        rows: dict[str, tuple[Trainer, Callable]] = {}
        for name, parts, way in (
            [("fixed order", ranks.size, tree), ("all-reduce", ranks.size, reduced)]
            if several
            else [("one part", 1, tree), ("four parts", 4, tree)]
        ):
            rows[name] = Trainer.start(config.replace(accumulate=parts), data, ranks), way
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(given.rounds + 2):
            for name, (one, way) in rows.items():
                weights.summed = way
                began = time.perf_counter()
                one.train_step()
                times[name].append(time.perf_counter() - began)
    if os.environ.get("RANK", "0") != "0":
        return
    first, second = (values[2:] for values in times.values())
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    found = {name: statistics.median(values[2:]) for name, values in times.items()}
    for name, seconds in found.items():
        print(f"{name:12} {1000 * seconds:7.1f} ms a step")
    print(f"{' / '.join(found)}: {ratio:.3f} ({ranks.size} process{'es' * several})")
    if given.json:
        given.json.write_text(json.dumps(found | {"ratio": ratio, "processes": ranks.size}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
