"""Reading a published-form snapshot of 50 million parameters: this package, and pickle.load of the same file.

    python benchmarks/foreign.py [--repeats 7]

pickle.load has what it needs to succeed: our own stand-ins for the modules that the file names, which make each object
and execute nothing. Both read the file from the page cache, take turns in one process, and the medians are shown.
"""

import argparse
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import foreign_files
from elucidiff import foreign
from elucidiff.foreign import published

STAND_IN = "class Layer:\n    pass\n"


def weights() -> dict[str, torch.Tensor]:
    """The names and shapes of the CIFAR-10 DDPM++ network as published: 55.7 million numbers, 470 tensors."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator)

    def block(name: str, c_in: int, c: int, skip: bool) -> None:
        add(f"{name}.norm0", c_in)
        add(f"{name}.conv0", c, c_in, 3, 3)
        add(f"{name}.affine", c, 512)
        add(f"{name}.norm1", c)
        add(f"{name}.conv1", c, c, 3, 3)
        if skip:
            add(f"{name}.skip", c, c_in, 1, 1)

    add("model.map_layer0", 512, 128)
    add("model.map_layer1", 512, 512)
    add("model.enc.32x32_conv", 128, 3, 3, 3)
    for i, side in enumerate((32, 16, 8)):
        if i:
            block(f"model.enc.{side}x{side}_down", 256, 256, True)
        for b in range(4):
            block(f"model.enc.{side}x{side}_block{b}", 128 if b + i == 0 else 256, 256, b + i == 0)
    for b in range(2):
        block(f"model.dec.8x8_in{b}", 256, 256, False)
    for side in (8, 16, 32):
        for b in range(5):
            block(f"model.dec.{side}x{side}_block{b}", 512, 256, True)
        if side < 32:
            block(f"model.dec.{2 * side}x{2 * side}_up", 256, 256, True)
    return state


def stand_in(meta: dict) -> torch.nn.Module:
    """The object without its source."""
    made = foreign_files.Persistent.__new__(foreign_files.Persistent)
    made.__dict__.update(meta["state"])
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pkl"
        state = weights()
        numbers = sum(t.numel() for t in state.values())
        arguments = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet"}
        foreign_files.Persistent.source = STAND_IN * 400
        path.write_bytes(foreign_files.snapshot("EDMPrecond", arguments, state))
        bare = Path(folder) / "state.pkl"
        bare.write_bytes(pickle.dumps(state, protocol=4))
        zipped = Path(folder) / "state.pt"
        torch.save(state, zipped)
        plain = Path(folder) / "old.pth"
        torch.save(state, plain, _use_new_zipfile_serialization=False)
        rows = [
            ("snapshot", path, lambda: published.modules(path), lambda: load_pickle(path)),
            ("pickled state dict", bare, lambda: foreign.read(bare), lambda: load_pickle(bare)),
            ("torch zip", zipped, lambda: foreign.read(zipped), lambda: torch.load(zipped, weights_only=False)),
            ("torch, old format", plain, lambda: foreign.read(plain), lambda: torch.load(plain, weights_only=False)),
        ]
        print(f"{numbers / 1e6:.1f} million numbers in {len(state)} tensors, {os.path.getsize(path) / 1e6:.0f} MB")
        print(f"{'file':20} {'elucidiff':>12} {'unpickling':>12} {'ratio':>7} {'of CPU time':>13}")
        foreign_files._reconstruct_persistent_obj = stand_in
        stand_in.__module__, stand_in.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
        for name, _, ours, theirs in rows:
            times, cpu = ([], []), ([], [])
            for _ in range(repeats + 1):
                for function, seen, spent in zip((ours, theirs), times, cpu, strict=True):
                    begin, worked = time.perf_counter(), time.process_time()
                    value = function()
                    seen.append(time.perf_counter() - begin)
                    spent.append(time.process_time() - worked)
                    del value
            a, b = (statistics.median(seen[1:]) for seen in times)
            c, d = (statistics.median(spent[1:]) for spent in cpu)
            print(f"{name:20} {a * 1e3:9.0f} ms {b * 1e3:9.0f} ms {a / b:7.2f} {c / d:13.2f}")


def load_pickle(path: Path) -> object:
    """What the reference does, with stand-ins that execute nothing."""
    with foreign_files.fake_modules(), path.open("rb") as file:
        return pickle.load(file)


if __name__ == "__main__":
    main()
