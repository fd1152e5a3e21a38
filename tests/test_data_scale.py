"""Data at scale: prefetch, mapped images, unreadable files, memory that ends; none of them changes a bit."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff.cli.main import main
from elucidiff.data import BadDataWarning, Mapped, cache, decoding, sources
from elucidiff.data.sources import CacheWarning
from elucidiff.errors import FormatError
from elucidiff.training import OutOfMemory, Trainer, TrainingStopped, draws, memory, prefetch
from elucidiff.training.draws import Order, draw
from elucidiff.training.memory import MemoryWarning, is_out_of_memory
from elucidiff.training.ranks import Ranks
from test_resume import BASE, StopAfter, content, points

IMAGES = BASE.replace(images=320)  # ten steps


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing of a test lands in the home folder."""
    monkeypatch.setenv("ELUCIDIFF_CACHE", str(tmp_path / "cache"))


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """A PNG whose compressed pixels are cut short; its header is whole."""
    return content[: len(content) - 40]


def zip_of(path: Path, contents: list[bytes], labels: bool = True) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, each in enumerate(contents):
            archive.writestr(f"{i:03d}.png", each)
        if labels:
            pairs = [[f"{i:03d}.png", i % 3] for i in range(len(contents))]
            archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return path


def tar_of(path: Path, contents: list[bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for i, each in enumerate(contents):
            for name, part in ((f"{i:03d}.png", each), (f"{i:03d}.cls", str(i % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(part)
                archive.addfile(info, io.BytesIO(part))
    return path


def shards(tmp_path: Path, bad: tuple[int, ...] = ()) -> Path:
    """100 samples of 6 x 6 in shards of 25, of which some are damaged."""
    files = [png(each) for each in pixels(100, 6, 6)]
    for i in bad:
        files[i] = damaged(files[i])
    tmp_path.mkdir(exist_ok=True)
    for k in range(4):
        tar_of(tmp_path / f"s-{k}.tar", files[25 * k : 25 * k + 25])
    return tmp_path / "s-{0..3}.tar"


def workers_alive() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("elucidiff-draws")]


# ---- R17: the order


def test_order_is_a_function_of_seed_epoch_and_position_and_skips_at_once(monkeypatch):
    size, seed, made = 7, 3, []
    whole = np.concatenate([np.random.Generator(_philox(seed, 1, e)).permutation(size) for e in range(5)])
    order = Order(size, seed)
    assert order.at(0, 5 * size).tolist() == whole.tolist()  # by the definition, across epochs
    assert all(sorted(whole[size * e : size * e + size]) == list(range(size)) for e in range(5))
    for first, count in ((30, 5), (3, 9), (0, 0), (13, 1)):  # in any order of asking
        assert order.at(first, count).tolist() == whole[first : first + count].tolist()
    monkeypatch.setattr(draws, "permutation", lambda n, seed, epoch: made.append(epoch) or np.arange(n))
    assert Order(size, seed).at(size * 10**12 + 5, 3).tolist() == [5, 6, 0]
    assert made == [10**12, 10**12 + 1]  # no epoch before was visited


def _philox(seed: int, stream: int, step: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, 0, step, 0], np.uint64))


# ---- prefetch


@pytest.mark.parametrize("source", ["points", "shards"])
def test_workers_change_no_bit_also_when_a_run_goes_on(tmp_path, source):
    data = points() if source == "points" else ed.data.load(shards(tmp_path))
    config = IMAGES.replace(accumulate=2, checkpoint_every=96, label_dropout=0.2, stratified=True)
    ed.train(config.replace(out=str(tmp_path / "none"), workers=0), data=data)
    ed.train(config.replace(out=str(tmp_path / "three"), workers=3), data=data)
    assert workers_alive() == []
    parts = config.replace(out=str(tmp_path / "parts"))
    for step, workers in ((2, 1), (5, 2)):
        with pytest.raises(TrainingStopped):
            ed.train(parts.replace(workers=workers), data=data, watchers=[StopAfter(step)], resume=True)
        assert workers_alive() == []
    ed.train(parts, data=data, resume=True)
    whole = content(tmp_path / "none")
    for name in ("three", "parts"):
        other = content(tmp_path / name)
        assert [k for k in whole if whole[k] != other[k]] == []


def test_parts_are_drawn_ahead_each_once_and_not_beyond_the_end(monkeypatch):
    asked, real = [], prefetch.draws_of
    monkeypatch.setattr(prefetch, "draws_of", lambda trainer, *key: asked.append(key) or real(trainer, *key))
    trainer = Trainer.start(IMAGES.replace(images=160, accumulate=2, workers=2), points())
    with prefetch.prefetched(trainer):
        trainer.train_step()
        while len(asked) < 5:
            time.sleep(0.001)
        assert sorted(asked) == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 2)]  # three ahead of the last
        for _ in range(4):
            trainer.train_step()
    assert sorted(asked) == [(step, part, 2) for step in range(5) for part in range(2)]
    assert trainer.ahead is None and workers_alive() == []


def test_a_batch_that_does_not_come_names_its_files(tmp_path, monkeypatch, promise):
    data = ed.data.load(shards(tmp_path))
    monkeypatch.setattr(prefetch, "STALLED", 0.05)
    release, read = threading.Event(), type(data).read
    trainer = Trainer.start(IMAGES.replace(workers=1), data)
    monkeypatch.setattr(type(data), "read", lambda self, rows: (release.wait(), read(self, rows))[1])
    first = [data.names[i] for i in trainer.order.at(0, 3)]
    threading.Timer(0.3, release.set).start()
    told = pytest.warns(prefetch.ReadingWarning, match=f"step 0: still reading .*{first[0]}, {first[1]}")
    with told, prefetch.prefetched(trainer):
        trainer.train_step()
    promise("R9", stalled_batches=1, told=1, after_seconds_of_waiting=20)


# ---- R9: files that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_training_with_its_name(tmp_path, workers, promise):
    config = IMAGES.replace(out=str(tmp_path / "run"), workers=workers, sigma_data=0.5)
    data = ed.data.load(shards(tmp_path, bad=(61,)))
    with pytest.raises(FormatError, match=r"s-2\.tar: 011\.png: damaged image"):
        ed.train(config, data=data.subset(np.arange(100)[61:]))
    assert workers_alive() == []
    with pytest.raises(FormatError, match=r"a\.zip: 001\.png: damaged image"):
        ed.data.load(zip_of(tmp_path / "a.zip", [png(pixels(1, 5, 5)[0]), damaged(png(pixels(1, 5, 5)[0]))]))
    promise("R9", workers=workers, damaged_images=2, named=2)


@pytest.mark.filterwarnings("ignore::elucidiff.data.BadDataWarning")
def test_damaged_images_of_shards_are_replaced_and_counted(tmp_path, promise):
    config = IMAGES.replace(on_bad_data="skip", checkpoint_every=64, images=224)  # seven steps, more than two epochs
    name, bad = str(shards(tmp_path, bad=(61, 62, 99))), {61: 63, 62: 63, 99: 0}  # the next; after the last the first
    data = ed.data.load(name, on_bad_data="skip")
    good = ed.data.load(shards(tmp_path / "good"))
    order = Order(100, 0)
    for step in range(7):
        rows = order.at(32 * step, 32)
        expected = np.array([bad.get(row, row) for row in rows])
        found = [draw(data, order, ed.objective.LogNormal(), step, 32, rows=r) for r in (range(13), range(13, 32))]
        assert torch.equal(torch.cat([d.y for d in found]), good.batch(expected)[0])
        assert torch.equal(torch.cat([d.labels for d in found]), good.batch(expected)[1])
        assert torch.equal(torch.cat([d.replaced for d in found]), torch.from_numpy(rows != expected))
    ed.train(config.replace(out=str(tmp_path / "whole"), data=name, workers=0))
    parts = config.replace(out=str(tmp_path / "parts"), data=name, workers=2)
    with pytest.raises(TrainingStopped):
        ed.train(parts, watchers=[StopAfter(4)])
    ed.train(parts, resume=True)
    a, b = content(tmp_path / "whole"), content(tmp_path / "parts")
    assert [k for k in a if a[k] != b[k]] == []
    positions = order.at(0, 224)
    replaced = sum(line.get("replaced", 0) for line in a["metrics.jsonl"])
    assert replaced == int(np.isin(positions, list(bad)).sum()) > 3
    promise("R9", damaged_images=len(bad), times_replaced=replaced, counted=replaced, equal_when_resumed=1)


def test_what_is_skipped_is_said_and_all_damaged_is_an_error(tmp_path):
    data = ed.data.load(shards(tmp_path, bad=(7,)), on_bad_data="skip")
    with pytest.warns(BadDataWarning, match=r"s-0\.tar: 007\.png: damaged .*next sample stands in its place"):
        data.batch([7])
    with pytest.raises(FormatError, match="none of 1 samples can be read"):
        data.subset([7]).batch([0])
    with pytest.raises(ValueError, match="unknown on_bad_data 'skp'; did you mean 'skip'"):
        ed.data.load(tmp_path / "s-0.tar", on_bad_data="skp")


@pytest.mark.parametrize("kept", ["off", "cache"])
def test_damaged_images_of_a_zip_are_left_out(tmp_path, kept):
    files = [png(each) for each in pixels(9, 4, 4, 3)]
    broken = zip_of(tmp_path / "a.zip", [damaged(f) if i in (0, 4, 8) else f for i, f in enumerate(files)])
    place = "off" if kept == "off" else tmp_path / "kept"
    for _ in range(2):  # decoded, and as it was kept
        with pytest.warns(BadDataWarning, match=r"3 of 9 images .*left out: .*a\.zip: 000\.png"):
            data = ed.data.load(broken, cache=place, on_bad_data="skip")
        whole = ed.data.load(zip_of(tmp_path / "b.zip", files), cache="off").subset([1, 2, 3, 5, 6, 7])
        assert data.fingerprint() == whole.fingerprint() and data.names == whole.names and data.left_out == 3
    with pytest.raises(FormatError, match=r"a\.zip: 000\.png: damaged"):
        ed.data.load(broken, cache=place)
    none = zip_of(tmp_path / "c.zip", [damaged(f) for f in files])
    with pytest.raises(FormatError, match="none of 9 images can be read"):
        ed.data.load(none, cache=place, on_bad_data="skip")


# ---- R10: memory that ends


def only_so_many(monkeypatch, most: int, error: Exception, after: int = 0) -> None:
    """From a step on, parts of more samples than these raise."""
    losses = Trainer._losses

    def limited(self, drawn):
        if self.step >= after and len(drawn.y) > most:
            raise error
        return losses(self, drawn)

    monkeypatch.setattr(Trainer, "_losses", limited)


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
def test_out_of_memory_says_what_to_change(monkeypatch, error, promise):
    only_so_many(monkeypatch, 8, error)
    with pytest.raises(OutOfMemory) as raised:
        Trainer.start(BASE, points()).train_step()
    text = str(raised.value)
    for part in ("batch=32 in accumulate=1", "32 samples of 2", "parameters", "accumulate=2", "oom=halve", "batch=16"):
        assert part in text
    assert "precision=bfloat16" in text and "resolution" in text and "\n" not in text
    promise("R10", error=type(error).__name__, injected=1, told=1)


def test_what_memory_errors_are():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**61, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(2**61, np.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_halving_goes_on_with_the_same_bits_as_more_parts_would_have(tmp_path, monkeypatch, promise):
    network = BASE.network.replace(dropout=0.0)  # parts draw their own masks
    config = BASE.replace(network=network, checkpoint_every=64, images=320, oom="halve")
    other = config.replace(out=str(tmp_path / "asked"), oom="raise")
    with pytest.raises(TrainingStopped):
        ed.train(other, data=points(), watchers=[StopAfter(3)])
    ed.train(other.replace(accumulate=4), data=points(), resume=True, allow_changes=True)
    only_so_many(monkeypatch, 8, ERRORS[0], after=3)
    halved = config.replace(out=str(tmp_path / "halved"))
    with pytest.warns(MemoryWarning) as warned, pytest.raises(TrainingStopped):
        ed.train(halved, data=points(), watchers=[StopAfter(6)])
    said = [str(w.message) for w in warned]
    assert len(said) == 2 and "step 3: " in said[0] and "accumulate=2" in said[0] and "accumulate=4" in said[1]
    ed.train(halved, data=points(), resume=True)  # in four parts from its first step on: nothing is said
    a, b = content(tmp_path / "asked"), content(tmp_path / "halved")
    assert b["metrics.jsonl"][-1].pop("accumulate") == 4
    assert b["facts"]["accumulate"] == 4 and [k for k in a if a[k] != b[k] and k != "facts"] == []
    stored = json.loads((tmp_path / "halved" / "config.json").read_text())
    assert "accumulate" not in stored  # what was asked for
    promise("R10", halved=2, equal=1)


def test_halving_ends_at_one_sample_and_follows_other_ranks(monkeypatch):
    only_so_many(monkeypatch, 0, ERRORS[0])
    trainer = Trainer.start(BASE.replace(oom="halve", batch=6, images=6), points())
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemory, match="accumulate=6 parts, 1 samples of 2") as raised:
        trainer.train_step()
    assert "accumulate=12" not in str(raised.value) and "oom=halve" not in str(raised.value)
    monkeypatch.undo()

    told = iter([1, 0])
    alone = Trainer.start(BASE.replace(oom="halve"), points())
    monkeypatch.setattr(Ranks, "highest", lambda self, value, device="cpu": max(value, next(told)))
    with pytest.warns(MemoryWarning, match="on another rank"):
        alone.train_step()
    assert alone.config.accumulate == 2 and alone.step == 1
    assert [memory.more_parts(a, 10, Ranks(0, 4)) for a in (4, 8)] == [8, 8]  # a multiple of the ranks


# ---- decoded images in files


def same(a: ed.data.Dataset, b: ed.data.Dataset) -> bool:
    numbers = a.fingerprint() == b.fingerprint() and a.moments() == b.moments() and a.duplicates() == b.duplicates()
    fields = all(getattr(a, name) == getattr(b, name) for name in ("names", "classes", "shape", "label_dim", "source"))
    return numbers and fields and np.array_equal(a.values, b.values) and torch.equal(a.tensor(), b.tensor())


def test_mapped_images_are_those_in_memory(tmp_path, monkeypatch):
    x = pixels(150, 12, 10, 3)
    x[7] = x[90]
    source = zip_of(tmp_path / "a.zip", [png(each) for each in x])
    plain = ed.data.load(source, cache="off")
    monkeypatch.setattr("elucidiff.data.dataset.CHUNK", 5000)  # several pieces
    monkeypatch.setattr(cache, "CHUNK", 5000)
    mapped = ed.data.load(source, cache=tmp_path / "kept")
    assert type(plain) is ed.data.Dataset and isinstance(mapped, Mapped) and same(plain, mapped)
    for rows in ([3, 3, -1], np.arange(150) % 2 == 0, range(5)):
        assert same(plain.subset(rows).subset([0, 2]), mapped.subset(rows).subset([0, 2]))
    for one, other in zip(plain.split(0.2), mapped.split(0.2), strict=True):
        assert isinstance(other, Mapped) and same(one, other)
    for one, other in zip(plain.batch([4, 0, -2]), mapped.batch([4, 0, -2]), strict=True):
        assert torch.equal(one, other)
    monkeypatch.setattr("elucidiff.data.decoding.decode", None)  # would raise
    assert same(plain, ed.data.load(source, cache=tmp_path / "kept"))


def test_a_changed_source_is_decoded_anew_and_the_old_one_removed(tmp_path):
    one, two = ([png(each) for each in pixels(5, 6, 6, seed=k)] for k in range(2))
    kept = tmp_path / "kept"
    folder = tmp_path / "images"
    folder.mkdir()
    for source in ("zip", "folder"):
        places = []
        for files in (one, two):
            for i, each in enumerate(files):
                (folder / f"{i}.png").write_bytes(each)
                os.utime(folder / f"{i}.png", ns=(0, 10**9 * len(places)))
            path = zip_of(tmp_path / "a.zip", files, labels=False) if source == "zip" else folder
            data = ed.data.load(path, cache=kept)
            assert np.array_equal(data.values, ed.data.load(path, cache="off").values)
            places.append(data.place)
        assert places[0] != places[1] and not places[0].exists() and places[1].is_dir()


def test_damage_of_kept_images_is_noticed(tmp_path):
    source = zip_of(tmp_path / "a.zip", [png(each) for each in pixels(20, 6, 6)])
    plain = ed.data.load(source, cache="off")
    place = ed.data.load(source, cache=tmp_path / "kept").place
    for file, change in (
        ("images.npy", lambda b: b[:-1]),
        ("crc32.npy", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("facts.json", lambda b: b[1:]),
        ("manifest.json", lambda b: b""),
    ):
        (place / file).write_bytes(change((place / file).read_bytes()))
        assert same(plain, ed.data.load(source, cache=tmp_path / "kept"))  # decoded again
    broken = bytearray((place / "images.npy").read_bytes())
    broken[-36 * 3 + 5] ^= 4  # a pixel of the last image but two
    (place / "images.npy").write_bytes(broken)
    data = ed.data.load(source, cache=tmp_path / "kept").skipping()
    data.batch([16, 18])
    with pytest.raises(OSError, match=r"images\.npy: image 17 is not what was written .* remove"):
        data.batch([16, 17])


def test_grey_among_colour_and_mixed_sizes(tmp_path):
    grey, colour = pixels(3, 6, 6), pixels(2, 6, 6, 3)
    source = zip_of(tmp_path / "a.zip", [png(each) for each in (*grey, *colour, *grey)])
    mapped = ed.data.load(source, cache=tmp_path / "kept")
    assert mapped.shape == (3, 6, 6) and same(ed.data.load(source, cache="off"), mapped)
    mixed = zip_of(tmp_path / "b.zip", [png(grey[0]), png(pixels(1, 6, 7)[0])])
    with pytest.raises(FormatError, match=r"mixed sizes: 000.png is 6x6, 001.png is 7x6"):
        ed.data.load(mixed, cache=tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept" / "decoded").iterdir() if p.suffix != ".lock"] == [
        mapped.place.name
    ]  # nothing half


def test_when_images_are_kept_unasked(tmp_path, monkeypatch):
    source = zip_of(tmp_path / "a.zip", [png(each) for each in pixels(20, 6, 6)])
    plain = ed.data.load(source)
    assert type(plain) is ed.data.Dataset and not (tmp_path / "cache").exists()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(ed.data.load(source), Mapped) and type(ed.data.load(source, cache="off")) is ed.data.Dataset
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(sources, "LARGE", 20 * 36)
    assert type(ed.data.load(source)) is ed.data.Dataset
    monkeypatch.setattr(sources, "LARGE", 20 * 36 - 1)
    assert ed.data.load(source).place.parent == tmp_path / "cache" / "decoded"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ELUCIDIFF_CACHE", str(tmp_path / "file"))
    with pytest.warns(CacheWarning, match="decoded images are not kept there"):
        assert same(plain, ed.data.load(source))
    monkeypatch.delenv("ELUCIDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert sources.home() == Path("/x/elucidiff")


COUNTED = """
import sys
from elucidiff import data
from elucidiff.data import decoding
real, count = decoding.decode, []
decoding.decode = lambda *given: count.append(1) or real(*given)
found = data.load(sys.argv[1], cache=sys.argv[2])
print(len(count), found.fingerprint())
"""


def test_of_processes_that_start_at_once_one_decodes(tmp_path):
    source = zip_of(tmp_path / "a.zip", [png(each) for each in pixels(400, 32, 32)])
    command = [sys.executable, "-c", COUNTED, str(source), str(tmp_path / "kept")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts, prints = zip(*(p.communicate(timeout=120)[0].split() for p in started), strict=True)
    assert sorted(map(int, counts)) == [0, 0, 400]
    assert set(prints) == {ed.data.load(source, cache="off").fingerprint()}


def test_a_run_on_mapped_images_has_the_bits_of_one_in_memory(tmp_path, capsys):
    source = zip_of(tmp_path / "a.zip", [png(each) for each in pixels(60, 6, 6)])
    shared = ["network=mlp", "network.width=16", "batch=32", "heldout=0.2", "grid_every=0", "checkpoint_every=0"]
    for name, more in (("memory", ["cache=off"]), ("mapped", [f"cache={tmp_path / 'kept'}", "workers=2", "oom=halve"])):
        arguments = ["train", str(source), "--out", str(tmp_path / name), "--images", "96", "--set", *shared, *more]
        assert main([*arguments, "on_bad_data=skip", "--json"]) == 0
    assert "decoded images are kept in" in capsys.readouterr().err
    a, b = (
        {p.name: json.loads((p / "manifest.json").read_text())["sha256"]["model.safetensors"] for p in found.iterdir()}
        for found in (tmp_path / "memory" / "snapshots", tmp_path / "mapped" / "snapshots")
    )
    assert a == b and len(a) > 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"workers": -1}, "workers: got -1; expected"),
        ({"on_bad_data": "ignore"}, "unknown on_bad_data 'ignore'"),
        ({"oom": "half"}, "unknown oom 'half'; did you mean 'halve'"),
    ],
)
def test_what_cannot_be_configured(wrong, message):
    with pytest.raises(ValueError, match=message):
        ed.TrainConfig(**wrong)


IN_RANKS = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import elucidiff as ed
from elucidiff.training import Trainer
from test_data_scale import ERRORS, IN_RANKS_CONFIG
losses = Trainer._losses
def limited(self, drawn):  # memory ends on the last rank alone
    if self.step >= 2 and len(drawn.y) > 4 and self.ranks.rank == self.ranks.size - 1:
        raise ERRORS[0]
    return losses(self, drawn)
Trainer._losses = limited
ed.train(IN_RANKS_CONFIG.replace(data=sys.argv[1], out=sys.argv[2]))
"""
IN_RANKS_CONFIG = BASE.replace(
    network=BASE.network.replace(dropout=0.0), accumulate=4, checkpoint_every=64, images=224, on_bad_data="skip",
    oom="halve", workers=1,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", ["shards", "zip"])
def test_two_ranks_skip_halve_and_share_images_as_one_does(tmp_path, source):
    files = [png(each) for each in pixels(80, 6, 6)]
    files[3], files[50] = damaged(files[3]), damaged(files[50])
    data = shards(tmp_path, bad=(61, 62, 99)) if source == "shards" else zip_of(tmp_path / "a.zip", files)
    script = tmp_path / "script.py"
    script.write_text(IN_RANKS.format(tests=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    for name, before in (("one", []), ("two", launch)):
        command = [sys.executable, *before, str(script), str(data), str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    a, b = content(tmp_path / "one"), content(tmp_path / "two")
    assert a.keys() == b.keys() and [k for k in a if a[k] != b[k]] == []
    assert a["facts"]["accumulate"] == 8 and a["metrics.jsonl"][-1]["accumulate"] == 8
    assert ("replaced" if source == "shards" else "left_out") in a["metrics.jsonl"][-1]
    assert len(list((tmp_path / "cache").rglob("images.npy"))) == (source == "zip")


def test_images_that_nobody_waits_for_leave_no_thread():
    """A generator that is dropped may be closed by any thread, which cannot wait for itself."""
    images = decoding.Images(["a.png", "b.png"], lambda i: png(pixels(1, 5, 5, 3)[0]), "here")
    before = threading.active_count()
    found = decoding.in_order(images, None, 2)
    assert next(found).shape == (3, 5, 5)
    assert threading.active_count() == before
    found.close()
