"""What checkpoints cost a training run at default settings, in time.

    python benchmarks/checkpoints.py DATA [--recipe mnist] [--seconds 180] [--threads 2] [--json FILE]

Trains the recipe for so long (at least three checkpoints are written at 60 seconds each), with the time of every write
taken, and prints what part of the run's time they were. Target: below 1 %. The same part for a checkpoint that takes
a second: `Pace` waits 100 times as long as the last one took.
"""

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path

import torch

import elucidiff as ed
from elucidiff.training import TrainingStopped, loop
from elucidiff.training.checkpoint import State


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="mnist")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    taken: list[float] = []
    sizes: list[int] = []

    def timed_write(run: Path, images: int, state: State) -> Path:
        began = time.perf_counter()
        folder = write(run, images, state)
        taken.append(time.perf_counter() - began)
        sizes.append(sum(p.stat().st_size for p in folder.iterdir()))
        return folder

    write, loop.write = loop.write, timed_write
    with tempfile.TemporaryDirectory() as home:
        config = ed.recipe(given.recipe).replace(data=given.data, out=str(Path(home, "run")), grid_every=0)
        began = time.perf_counter()
        with contextlib.suppress(TrainingStopped):
            ed.train(config, time_limit=given.seconds)
        whole = time.perf_counter() - began
    paced = taken[:-1]  # the last one is that of the stop
    row = {"seconds": whole, "checkpoints": len(paced), "each": sum(paced) / len(paced), "share": sum(paced) / whole}
    print(
        f"{len(paced)} checkpoints of {sizes[0] / 1e6:.1f} MB in {whole:.0f} s, {1000 * row['each']:.0f} ms each: "
        f"{100 * row['share']:.3f} % of the time (target: below 1 %)"
    )
    if given.json:
        given.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
