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
from typing import Any

import torch

import elucidiff as ed
from elucidiff.training import TrainingStopped, loop
from elucidiff.training.checkpoint import State, stored


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
    began, taken, sizes = [], [], []
    gather, save = loop.whole_state, loop.save_state

    def timed_gather(*args: Any) -> State:
        began.append(time.perf_counter())
        return gather(*args)

    def timed_save(run: Path, *args: Any) -> None:
        save(run, *args)
        taken.append(time.perf_counter() - began[-1])
        sizes.append(sum(p.stat().st_size for p in stored(run)[-1].iterdir()))

    loop.whole_state, loop.save_state = timed_gather, timed_save
    with tempfile.TemporaryDirectory() as home:
        config = ed.recipes.recipe(given.recipe).replace(data=given.data, out=str(Path(home, "run")), grid_every=0)
        started = time.perf_counter()
        with contextlib.suppress(TrainingStopped):
            ed.train(config, time_limit=given.seconds)
        whole = time.perf_counter() - started
        last = json.loads((Path(home, "run", "metrics.jsonl")).read_text(encoding="utf-8").splitlines()[-1])
    paced = taken[:-1]  # the last one is that of the stop
    row = {"seconds": whole, "checkpoints": len(paced), "each": sum(paced) / len(paced), "share": sum(paced) / whole}
    print(
        f"{len(paced)} checkpoints of {sizes[0] / 1e6:.1f} MB in {whole:.0f} s, {1000 * row['each']:.0f} ms each: "
        f"{100 * row['share']:.3f} % of the time (target: below 1 %); {last['images'] / last['seconds']:.0f} images/s, "
        f"{config.images / last['images'] * last['seconds'] / 60:.1f} minutes for the recipe's {config.images:,}"
    )
    if given.json:
        given.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
