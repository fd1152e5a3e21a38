"""How fast data come: the time and memory that loading takes, and images a second of training with threads that draw.

    python benchmarks/loading.py DATA.zip [--rounds 5] [--steps 8] [--batch 32] [--json FILE]

Loading: each row in processes of its own, in an order rotated from round to round: seconds, those of the processor,
and the memory that a process has written, beyond that of importing the package, when all images were used; medians.
The first row decodes in one thread into memory, "mapped, first" into the cache, "mapped" finds it there.

Training: a small network on images in memory, mapped, and in a shard, one thread for the network, 0, 1 and 2 that draw.
In each round every row makes `--steps` steps, in an order rotated by one from round to round; ratios are medians of the
rounds' ratios to the first row, images in memory and no thread, with the least and the greatest. All rows compute the
same bits. `--size` enlarges the images for shards, whose decoding then takes longer.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import elucidiff as ed
from elucidiff.training import Trainer
from elucidiff.training.prefetch import prefetched

LOAD = """
import sys, time
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
from PIL import Image
from elucidiff import data
from elucidiff.data import decoding, sources
if sys.argv[3] == "1":
    sources.threads_here = lambda: 1
before, started, busy = private(), time.perf_counter(), time.process_time()
found = data.load(sys.argv[1], cache=sys.argv[2])
took, busy = time.perf_counter() - started, time.process_time() - busy
for start in range(0, len(found), 256):
    found.batch(range(start, min(start + 256, len(found))))
print(took, busy, private() - before)
"""
KINDS = ("memory", "mapped", "shard")
THREADS = (0, 1, 2)


def loading(source: Path, rounds: int, folder: Path) -> list[list[str]]:
    """Rows (name, seconds, ratio, of the processor, MiB): medians."""
    rows = {"memory, one thread": ("off", "1"), "memory": ("off", "0")}
    names = [*rows, "mapped, first", "mapped"]
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for k in range(rounds):
        rows |= {"mapped, first": (str(folder / f"cache{k}"), "0"), "mapped": (str(folder / "cache"), "0")}
        if k == 0:
            _load(source, *rows["mapped"])
        for name in names[k % len(names) :] + names[: k % len(names)]:
            found[name].append(_load(source, *rows[name]))
    first = found[names[0]]
    table = []
    for name, values in found.items():
        ratio = statistics.median(a[0] / b[0] for a, b in zip(first, values, strict=True))
        seconds, busy, mib = (statistics.median(column) for column in zip(*values, strict=True))
        table.append([name, f"{seconds:.2f}", f"{ratio:.2f}x", f"{busy:.2f}", f"{mib:.0f}"])
    return table


def _load(source: Path, cache: str, threads: str) -> tuple[float, ...]:
    command = [sys.executable, "-c", LOAD, str(source), cache, threads]
    return tuple(map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def datasets(source: Path, folder: Path, size: int | None, count: int) -> dict[str, ed.data.Dataset]:
    """The same images three times: in memory, mapped, in a shard; enlarged where asked."""
    whole = ed.data.load(source, cache="off").subset(range(count))
    archive, shard = folder / "part.zip", folder / "part.tar"
    with zipfile.ZipFile(archive, "w") as zipped, tarfile.open(shard, "w") as tar:
        for i, pixels in enumerate(whole.values):
            image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0).squeeze()))
            buffer = io.BytesIO()
            (image if size is None else image.resize((size, size))).save(buffer, "PNG")
            zipped.writestr(f"{i:06d}.png", buffer.getvalue())
            info = tarfile.TarInfo(f"{i:06d}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    mapped = ed.data.load(archive, cache=folder / "part")
    return {"memory": ed.data.load(archive, cache="off"), "mapped": mapped, "shard": ed.data.load(shard)}


def training(data: dict[str, ed.data.Dataset], rounds: int, steps: int, batch: int) -> list[list[str]]:
    """Rows (name, images/s, ratio, least and greatest ratio)."""
    network = ed.networks.DDPMPP(channels=4, multipliers=(1, 1), blocks=1, attention=())
    base = ed.TrainConfig(network=network, batch=batch, images=10**9, sigma_data=data["memory"].sigma_data())
    trainers = {
        f"{kind}, workers={workers}": Trainer.start(base.replace(workers=workers), data[kind])
        for kind in KINDS
        for workers in THREADS
    }
    for trainer in trainers.values():
        trainer.train_step()
    names = list(trainers)
    found: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            trainer, started = trainers[name], time.perf_counter()
            with prefetched(trainer):
                for _ in range(steps):
                    trainer.train_step()
                found[name].append(time.perf_counter() - started)
    table = []
    for name, seconds in found.items():
        ratios = [a / b for a, b in zip(found[names[0]], seconds, strict=True)]
        own = [a / b for a, b in zip(found[name.partition(",")[0] + ", workers=0"], seconds, strict=True)]
        speed = steps * batch / statistics.median(seconds)
        row = [name, f"{speed:,.0f}", f"{statistics.median(ratios):.2f}x", f"{statistics.median(own):.2f}x"]
        table.append([*row, f"{min(own):.2f} to {max(own):.2f}"])
    return table


def show(header: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=2000, help="images to train on")
    parser.add_argument("--size", type=int, help="enlarge them to this many pixels a side")
    parser.add_argument("--parts", default="loading,training")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    with tempfile.TemporaryDirectory() as name:
        if "loading" in given.parts:
            header = ["loading", "seconds", "faster", "of the processor", "own MiB"]
            tables["loading"] = loading(given.data, given.rounds, Path(name))
            show(header, tables["loading"])
        if "training" in given.parts:
            data = datasets(given.data, Path(name), given.size, given.count)
            tables["training"] = training(data, given.rounds, given.steps, given.batch)
            print(f"\n{data['memory'].shape}, batch {given.batch}, {os.cpu_count()} cores")
            show(["training", "images/s", "to the first", "to no thread", "least, greatest"], tables["training"])
    if given.json:
        given.json.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
