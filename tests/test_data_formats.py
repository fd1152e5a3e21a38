"""Formats of data: originals of CIFAR and MNIST, label tables, the hub, WebDataset shards, and what `inspect` says."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import struct
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import shared
from elucidiff import data, download
from elucidiff.cli.main import main
from elucidiff.data import shard_index, tars
from elucidiff.data.facts import facts
from elucidiff.data.shards import MEASURED, Shards
from elucidiff.errors import FormatError, MissingExtraError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing of a test lands in the home folder."""
    monkeypatch.setenv("ELUCIDIFF_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path, files, mode="w", format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, mode, format=format) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(source, *words, error=FormatError, path=True):
    with pytest.raises(error) as caught:
        data.load(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*([Path(source).name] if path else []), *words):
        assert word in message, message


# --- CIFAR ------------------------------------------------------------------------------------------


def short(text):
    return b"U" + bytes([len(text)]) + text.encode()


def python2_pickle(table):
    """A dictionary of texts, lists and arrays as Python 2 pickled it, protocol 2: strings are bytes, arrays have globals."""
    out = [b"\x80\x02}("]
    for name, value in table.items():
        out.append(short(name))
        if isinstance(value, str):
            out.append(short(value))
        elif isinstance(value, np.ndarray):
            raw = value.tobytes()
            out.append(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01")
            out.append(
                b"".join(b"M" + struct.pack("<H", n) for n in value.shape)
                + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            )
            out.append(
                b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
                + struct.pack("<i", len(raw))
                + raw
                + b"tb"
            )
        else:
            out.append(b"](" + b"".join(short(v) if isinstance(v, str) else b"K" + bytes([v]) for v in value) + b"e")
    return b"".join(out) + b"u."


NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(n=3):
    """Pixels and labels of the six batches, and the python version's files."""
    batches = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    pixels = {name: noise(n, 3072, seed=k) for k, name in enumerate(batches)}
    labels = {name: [(3 * k + i) % 10 for i in range(n)] for k, name in enumerate(batches)}
    files = {"batches.meta": python2_pickle({"label_names": NAMES_10})}
    for b in batches:
        names = [f"{b}_{i}.png" for i in range(n)]
        files[b] = python2_pickle({"batch_label": "batch", "labels": labels[b], "data": pixels[b], "filenames": names})
    return pixels, labels, files


def binary(pixels, labels):
    return b"".join(bytes(k) + p.tobytes() for k, p in zip(labels, pixels, strict=True))


def together(columns):
    return np.concatenate(list(columns)).reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("packing", ["folder", "parent", "tar"])
def test_cifar10_in_its_own_files(tmp_path, version, packing):
    pixels, labels, files = cifar10()
    folder = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[version]
    if version == "binary":
        files = {f"{b}.bin": binary(pixels[b], [[k] for k in labels[b]]) for b in pixels}
        files["batches.meta.txt"] = ("\n".join(NAMES_10) + "\n\n").encode()
    if packing == "tar":
        name = f"cifar-10-{version}.tar.gz"
        source = write_tar(tmp_path / name, {f"{folder}/{n}": c for n, c in files.items()}, "w:gz")
    else:
        source = write_folder(tmp_path / folder, files) if packing == "folder" else tmp_path
        write_folder(tmp_path / folder, files)
    train = list(pixels)[:5]
    for part, wanted in [("", train), (":train", train), (":test", ["test_batch"])]:
        loaded = data.load(f"{source}{part}")
        assert np.array_equal(loaded.values, together(pixels[b] for b in wanted))
        assert loaded.labels.tolist() == [k for b in wanted for k in labels[b]]
        assert loaded.classes == tuple(NAMES_10) and loaded.label_dim == 10
    assert loaded.names == (
        ("test_batch_0.png", "test_batch_1.png", "test_batch_2.png") if version == "python" else None
    )


def test_one_batch_of_cifar10(tmp_path):
    pixels, labels, files = cifar10()
    write_folder(tmp_path, {"data_batch_2": files["data_batch_2"]})
    loaded = data.load(tmp_path / "data_batch_2")
    assert np.array_equal(loaded.values, together([pixels["data_batch_2"]])) and loaded.classes is None
    assert loaded.labels.tolist() == labels["data_batch_2"] and loaded.label_dim == 10
    # The first pixel of a row is the red one of the upper left corner; the 1025th is the green one.
    assert loaded.values[1, 1, 0, 0] == pixels["data_batch_2"][1, 1024]


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_gives_fine_labels(tmp_path, version):
    pixels, fine, coarse = (
        {"train": noise(4, 3072), "test": noise(2, 3072, seed=1)},
        {"train": [99, 0, 5, 7], "test": [3, 98]},
        11,
    )
    names = [f"class {k}" for k in range(100)]
    files = {"meta": python2_pickle({"coarse_label_names": ["a"], "fine_label_names": names})}
    for part, x in pixels.items():
        files[part] = python2_pickle({"data": x, "fine_labels": fine[part], "coarse_labels": [coarse] * len(x)})
    if version == "binary":
        files = {f"{part}.bin": binary(x, [[coarse, k] for k in fine[part]]) for part, x in pixels.items()}
        files["fine_label_names.txt"] = "\n".join(names).encode()
    source = write_folder(tmp_path / "c", files)
    for part, expected in fine.items():
        loaded = data.load(f"{source}:{part}")
        assert loaded.labels.tolist() == expected and loaded.classes[99] == "class 99"
        assert np.array_equal(loaded.values, together([pixels[part]]))
    assert len(data.load(source / ("test" if version == "python" else "test.bin"))) == 2


def test_cifar_pickles_that_run_something_are_refused(tmp_path):
    evil = b"\x80\x02cos\nsystem\nU\x04true\x85R."
    refused(write_folder(tmp_path / "a", {"test_batch": evil}) / "test_batch", "os.system", "no part of plain weights")


def test_faults_of_cifar_files(tmp_path):
    pixels, labels, files = cifar10()
    x, y = pixels["test_batch"], labels["test_batch"]
    cases = {
        "labels: expected a list of 3": {"data": x, "labels": y[:2]},
        "labels: 0 to 10": {"data": x, "labels": [0, 10, 1]},
        "bytes (N, 3072)": {"data": x[:, :3071], "labels": y},
        "data: expected": {"labels": y},
    }
    for k, (word, table) in enumerate(cases.items()):
        refused(write_folder(tmp_path / f"{k}", {"test_batch": python2_pickle(table)}) / "test_batch", word)
    refused(write_folder(tmp_path / "list", {"test_batch": b"\x80\x02]."}) / "test_batch", "list")
    refused(write_folder(tmp_path / "bin", {"test_batch.bin": bytes(3072)}) / "test_batch.bin", "3,073")
    refused(write_folder(tmp_path / "big", {"test_batch.bin": b"\x0a" + bytes(3072)}) / "test_batch.bin", "10 to 10")
    refused(
        write_folder(tmp_path / "four", {n: c for n, c in files.items() if n != "data_batch_3"}),
        "data_batch_3 is missing",
    )
    meta = python2_pickle({"label_names": NAMES_10[:9]})
    refused(write_folder(tmp_path / "nine", files | {"batches.meta": meta}), "10 classes", path=False)


def test_tars_of_cifar_are_read_without_extracting(tmp_path, monkeypatch):
    _, _, files = cifar10()
    name = "cifar-10-python.tar.gz"
    refused(write_tar(tmp_path / name, {"../test_batch": files["test_batch"]}, "w:gz"), "leads outside")
    link = tarfile.TarInfo("data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.addfile(link)
    refused(tmp_path / name, "is a link")
    (tmp_path / name).write_bytes(b"nothing")
    refused(tmp_path / name, "not a tar file")
    monkeypatch.setattr(tars, "MAX_UNPACKED", 2**24)
    (tmp_path / name).write_bytes(gzip.compress(bytes(2**25)))
    refused(tmp_path / name, "unpacks to more than")
    big = tarfile.TarInfo("data_batch_1")
    big.size = 2**40
    (tmp_path / name).write_bytes(gzip.compress(big.tobuf() + bytes(2**20)))
    refused(tmp_path / name, "at most")


# --- MNIST ------------------------------------------------------------------------------------------


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["", ".gz"])
def mnist(request, tmp_path):
    pack = gzip.compress if request.param else bytes
    x = {"train": noise(5, 4, 3), "t10k": noise(2, 4, 3, seed=1)}
    y = {"train": np.array([3, 0, 9, 1, 1], np.uint8), "t10k": np.array([7, 8], np.uint8)}
    files = {}
    for part in x:
        files[f"{part}-images-idx3-ubyte{request.param}"] = pack(idx(x[part]))
        files[f"{part}-labels-idx1-ubyte{request.param}"] = pack(idx(y[part]))
    return write_folder(tmp_path / "mnist", files), x, y, request.param


def test_mnist_in_its_own_files(mnist):
    folder, x, y, ending = mnist
    for source, part in [
        (folder, "train"),
        (f"{folder}:test", "t10k"),
        (folder / f"t10k-images-idx3-ubyte{ending}", "t10k"),
    ]:
        loaded = data.load(source)
        assert np.array_equal(loaded.values[:, 0], x[part]) and np.array_equal(loaded.labels, y[part])
        assert loaded.name == part and loaded.shape == (1, 4, 3)
    (folder / f"train-labels-idx1-ubyte{ending}").unlink()
    assert data.load(folder).labels is None


def test_faults_of_idx_files(tmp_path):
    good = idx(noise(5, 4, 3))
    cases = {
        "holds more": good + b"\0",
        "but holds 59": good[:-1],
        "00 00 08 03": good.replace(b"\0\0\x08", b"\0\0\x0d", 1),
        "expected 00 00 08": b"\0\0",
        "more than it can hold": struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 2**31, 2**31),
        "is empty": idx(np.zeros((0, 4, 3), np.uint8)),
    }
    path = tmp_path / "train-images-idx3-ubyte"
    for word, content in cases.items():
        path.write_bytes(content)
        refused(path, word)
    zipped = tmp_path / "train-images-idx3-ubyte.gz"
    zipped.write_bytes(gzip.compress(good)[:-12])
    refused(zipped, "damaged gzip")
    path.write_bytes(good)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    refused(path, "4,", "5 samples", path=False)
    two = write_folder(tmp_path / "two", {"a-images-idx3-ubyte": good, "b-images-idx3-ubyte": good})
    refused(two, "name one of them")


# --- label tables -------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip"])
def collection(request, tmp_path):
    def write(files, name="set"):
        if request.param == "folder":
            return write_folder(tmp_path / name, files)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
        return tmp_path / f"{name}.zip"

    return write


def images(*names):
    return {name: png(noise(4, 4, seed=i)) for i, name in enumerate(names)}


TABLES = {
    "numbers": ("name,label\nb/2.png,0\na.png,12\n", [12, 0], None),
    "names": ("file,label\r\na.png,dog\r\nb/2.png,\"cat, grey\"\r\n", [1, 0], ("cat, grey", "dog")),
    "utf-8 mark": ("\ufefffilename,class\na.png, 1\nb/2.png, 0\n", [1, 0], None),
    "vectors": ("name,height,width\na.png,0.5,-1e3\nb/2.png,1,2\n", [[0.5, -1000], [1, 2]], None),
    "one number": ("name,v1\na.png,0.5\n\nb/2.png,1\n", [[0.5], [1]], None),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_labels_of_csv(collection, case):
    text, labels, classes = TABLES[case]
    loaded = data.load(collection(images("a.png", "b/2.png") | {"labels.csv": text.encode()}))
    assert loaded.labels.tolist() == labels and loaded.classes == classes and loaded.names == ("a.png", "b/2.png")


def test_labels_of_csv_within_the_common_folder_and_after_dataset_json(collection):
    files = images("set/x/1.png", "set/x/2.png") | {"set/labels.csv": b"name,label\nx/1.png,4\nx/2.png,2\n"}
    assert data.load(collection(files)).labels.tolist() == [4, 2]
    table = json.dumps({"labels": [["x/1.png", 1], ["x/2.png", 0]]}).encode()
    assert data.load(collection(files | {"set/dataset.json": table})).labels.tolist() == [1, 0]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_labels_of_csv_beside_the_data(collection, tmp_path, prefix):
    source = collection(images("x/1.png", "x/2.png"), "train")
    other = "test/x/9.png,3\n" if prefix else ""
    for inner in ("x/", ""):
        text = f"name,label\n{prefix}{inner}2.png,1\n{other}{prefix}{inner}1.png,0\n"
        (tmp_path / "labels.csv").write_text(text)
        assert data.load(source).labels.tolist() == [0, 1]
    (tmp_path / "labels.csv").write_text("name,label\nx/1.png,0\n")
    with pytest.raises(FormatError, match=r"labels.csv \(labels of train.*'x/2.png' has none"):
        data.load(source)


BAD_TABLES = {
    "missing": ("name,label\na.png,0\n", "'b.png' has none"),
    "unknown": ("name,label\na.png,0\nb.png,1\nc.png,1\n", "no image 'c.png'"),
    "twice": ("name,label\na.png,0\na.png,1\n", "row 3: 'a.png' occurs twice"),
    "ragged": ("name,v1,v2\na.png,0,1\nb.png,1\n", "row 3 has 2 cells; the header has 3"),
    "no number": ("name,v1\na.png,0\nb.png,x\n", "row 3: 'x' is no number"),
    "infinite": ("name,v1\na.png,0\nb.png,inf\n", "finite"),
    "negative": ("name,label\na.png,0\nb.png,-1\n", "'b.png' has -1"),
    "mixed": ("name,label\na.png,dog\nb.png,1\n", "'b.png' has the label '1'"),
    "fraction": ("name,label\na.png,0.5\nb.png,1\n", "'a.png' has the label '0.5'"),
    "no label": ("name,label\na.png,\nb.png,cat\n", "'a.png' has the label ''"),
    "header": ("a.png,0\nb.png,1\n", "the header is 'a.png,0'"),
    "both": ("name,label,v1\na.png,0,1\n", "'label' among others"),
    "empty": ("", "empty"),
    "quote": ('name,label\n"a.png,0\n', "comma-separated"),
    "latin": (b"name,label\na.png,caf\xe9\n", "UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_label_tables_are_checked(collection, case):
    text, word = BAD_TABLES[case]
    content = text if isinstance(text, bytes) else text.encode()
    refused(collection(images("a.png", "b.png") | {"labels.csv": content}), "labels.csv", word)


# --- the hub, through `datasets` ------------------------------------------------------------------------


class HubImage:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Table:
    """What `datasets.load_dataset` gives, as far as it is documented and used: features, length, columns, cast_column."""

    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name):
        feature = self.features[name]
        if isinstance(feature, HubImage) and feature.decode:
            raise AssertionError("the images must not be decoded by the package")
        return self.columns[name]

    def cast_column(self, name, feature):
        return Table(self.features | {name: feature}, self.columns)


@pytest.fixture
def hub(monkeypatch):
    """Instead of the package `datasets`: `hub.tables` by (name, split)."""
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.tables = HubImage, ClassLabel, {}

    def load_dataset(name, split):
        if (name, split) not in module.tables:
            raise ValueError(f'Unknown split "{split}".')
        return module.tables[name, split]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def cells(pixels):
    return [{"bytes": png(p), "path": None} for p in pixels]


def test_data_sets_of_the_hub(hub, tmp_path):
    pixels = noise(3, 5, 4, 3)
    (tmp_path / "b.png").write_bytes(png(pixels[1]))
    stored = cells(pixels)
    stored[1] = {"bytes": None, "path": str(tmp_path / "b.png")}
    hub.tables["me/pets", "train"] = Table(
        {"image": HubImage(), "label": ClassLabel(["cat", "dog"])}, {"image": stored, "label": [1, 0, 1]}
    )
    loaded = data.load("hf:me/pets")
    assert np.array_equal(loaded.values, pixels.transpose(0, 3, 1, 2)) and loaded.name == "pets-train"
    assert loaded.labels.tolist() == [1, 0, 1] and loaded.classes == ("cat", "dog")
    many = {
        "left": HubImage(),
        "right": HubImage(),
        "kind": Value(),
        "at": Value(),
        "a": ClassLabel("ab"),
        "b": ClassLabel("ab"),
    }
    hub.tables["me/two", "train[:3]"] = Table(
        many,
        {
            "left": cells(pixels),
            "right": cells(255 - pixels),
            "kind": ["z", "y", "z"],
            "at": [[0.5, 1], [2, 3], [4, 5]],
        },
    )
    loaded = data.load("hf:me/two:train[:3]:right:kind")
    assert np.array_equal(loaded.values, 255 - pixels.transpose(0, 3, 1, 2))
    assert loaded.labels.tolist() == [1, 0, 1] and loaded.classes == ("y", "z")
    assert data.load("hf:me/two:train[:3]:left:at").labels.tolist() == [[0.5, 1], [2, 3], [4, 5]]


def test_faults_of_the_hub(hub, monkeypatch):
    pixels = noise(2, 4, 4)
    two = {"left": HubImage(), "right": HubImage(), "a": ClassLabel("xy"), "b": ClassLabel("xy"), "n": Value()}
    columns = {"left": cells(pixels), "right": [{"bytes": b"hello"}] * 2, "a": [0, 1], "b": [0, -1], "n": [0, None]}
    hub.tables["me/two", "train"] = Table(two, columns)
    for source, word, error in [
        ("hf:me/two", "2 columns of images", ValueError),
        ("hf:me/two:train:left", "2 columns of class labels", ValueError),
        ("hf:me/two:train:lift", "did you mean 'left'", ValueError),
        ("hf:me/two:train:left:b", "-1 to 0", FormatError),
        ("hf:me/two:train:left:n", "row 1 has no label", FormatError),
        ("hf:me/two:train:right:a", "row 0: not a PNG", FormatError),
        ("hf:me/two:test", 'Unknown split "test"', FileNotFoundError),
        ("hf:", "expected hf:owner/name", ValueError),
        ("hf:a:b:c:d:e", "expected hf:owner/name", ValueError),
    ]:
        refused(source, word, error=error, path=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"elucidiff\[data\]"):
        data.load("hf:me/two")


# --- arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 2), (6, 3, 16), (6, 4, 8, 8), (6, 1, 4, 4, 4)], ids=str)
def test_latents_signals_points_and_volumes_stay_as_they_are(tmp_path, dtype, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.savez(tmp_path / "s.npz", latents=values, labels=np.arange(6) % 2)
    loaded = data.load(tmp_path / "s.npz")
    assert loaded.shape == shape[1:] and not loaded.is_image and loaded.label_dim == 2
    assert torch.equal(loaded.batch([4, 1])[0], torch.from_numpy(values[[4, 1]].astype(np.float32)))
    assert loaded.sigma_data() == pytest.approx(values.astype(np.float64).std(), rel=1e-6)


def test_whole_numbers_say_what_to_do(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 8, 8).astype(np.int32))
    refused(tmp_path / "a.npy", "int32 (4, 8, 8)", "astype('uint8')", "astype('float32')")
    np.save(tmp_path / "b.npy", np.arange(8).reshape(4, 2) * 1000)
    refused(tmp_path / "b.npy", "int64 (4, 2)", "astype('float32')")


# --- shards -----------------------------------------------------------------------------------------------


def sample_files(pixels, labels, start=0):
    files = {}
    for i, (p, k) in enumerate(zip(pixels, labels, strict=True), start):
        files[f"{i:06}.png"] = png(p)
        files[f"{i:06}.cls"] = str(k).encode()
    return files


@pytest.fixture
def three_shards(tmp_path):
    pixels, labels = noise(10, 6, 5, 3), np.arange(10) * 7 % 4
    for number, rows in enumerate((range(4), range(4, 7), range(7, 10))):
        write_tar(
            tmp_path / f"s-{number:06}.tar", sample_files(pixels[rows.start : rows.stop], labels[rows], rows.start)
        )
    return tmp_path, pixels.transpose(0, 3, 1, 2), labels


@pytest.mark.parametrize("name", ["s-{000000..000002}.tar", "s-*.tar", "s-00000[0-2].tar", ""])
def test_shards_are_a_data_set(three_shards, name):
    folder, pixels, labels = three_shards
    shards = data.load(str(folder / name) if name else folder)
    assert isinstance(shards, Shards) and (len(shards), shards.shape, shards.label_dim) == (10, (3, 6, 5), 4)
    memory = data.Dataset(pixels, labels)
    for rows in ([9, 0, 4, 4], range(10), np.array([-1]), torch.tensor([2, 8])):
        for got, want in zip(shards.batch(rows), memory.batch(np.asarray(rows)), strict=True):
            assert torch.equal(got, want)
    assert shards.is_image and torch.equal(shards.tensor(), memory.tensor())
    assert (shards.mean(), shards.sigma_data()) == (memory.mean(), memory.sigma_data())
    assert shards.names[4] == "s-000001.tar/000004.png"


def test_parts_of_shards_are_those_of_the_data_in_memory(three_shards):
    folder, pixels, labels = three_shards
    shards, memory = data.load(folder), data.Dataset(pixels, labels)
    for ours, theirs in zip(shards.split(0.3, seed=5), memory.split(0.3, seed=5), strict=True):
        assert isinstance(ours, Shards) and np.array_equal(ours.values, theirs.values)
        assert np.array_equal(ours.labels, theirs.labels) and ours.label_dim == 4
    for rows in ([10], [-11], np.array([True])):
        with pytest.raises(IndexError):
            shards.batch(rows)
    part = shards.subset([8, 1]).subset(np.array([True, False]))
    assert torch.equal(part.batch([0])[0], memory.batch([8])[0]) and part.names == ("s-000002.tar/000008.png",)


def test_fingerprint_of_shards_sees_names_contents_labels_and_order(three_shards, tmp_path):
    folder, pixels, labels = three_shards
    base = data.load(folder).fingerprint()
    assert data.load(str(folder / "s-*.tar")).fingerprint() == base
    prints = {
        base,
        data.load(folder).subset(range(9, -1, -1)).fingerprint(),
        data.load(folder).subset(range(9)).fingerprint(),
    }
    changed = pixels.copy()
    changed[5, 0, 0, 0] ^= 1
    variants = {
        "pixels": (changed, labels, 0),
        "labels": (pixels, (labels + (np.arange(10) == 3)) % 4, 0),
        "names": (pixels, labels, 50),
    }
    for name, (x, y, start) in variants.items():
        (tmp_path / name).mkdir()
        for number, rows in enumerate((range(4), range(4, 7), range(7, 10))):
            files = sample_files(x.transpose(0, 2, 3, 1)[rows.start : rows.stop], y[rows], start + rows.start)
            write_tar(tmp_path / name / f"s-{number:06}.tar", files)
        prints.add(data.load(tmp_path / name).fingerprint())
    assert len(prints) == 6


def test_labels_of_shards_in_json(tmp_path):
    for labels, expected, classes in [
        ([2, 0], [2, 0], None),
        (["dog", "cat"], [1, 0], ("cat", "dog")),
        ([[0.5, 1], [1, 2]], [[0.5, 1], [1, 2]], None),
        ([None, None], None, None),
    ]:
        files = {}
        for i, label in enumerate(labels):
            files |= {f"x/{i}.json": json.dumps({"label": label, "text": "?"}).encode(), f"x/{i}.txt": b"a caption"}
            files[f"x/{i}.png"] = png(noise(4, 4, seed=i))
        shards = data.load(write_tar(tmp_path / "s.tar", files, format=tarfile.PAX_FORMAT))
        assert (None if shards.labels is None else shards.labels.tolist()) == expected and shards.classes == classes


def test_shards_of_arrays_and_of_grey_among_colour(tmp_path):
    latents = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float16)
    shards = data.load(write_tar(tmp_path / "a.tar", {f"{i}.latent.npy": npy(x) for i, x in enumerate(latents)}))
    assert not shards.is_image and torch.equal(
        shards.batch([2, 0])[0], torch.from_numpy(latents[[2, 0]].astype(np.float32))
    )
    grey, colour = noise(4, 4), noise(4, 4, 3)
    for number, order in enumerate([(grey, colour), (colour, grey)]):
        shards = data.load(write_tar(tmp_path / f"b{number}.tar", {f"{i}.png": png(p) for i, p in enumerate(order)}))
        for value, pixels in zip(shards.values, order, strict=True):
            assert np.array_equal(value, np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def test_moments_of_many_samples_are_measured_on_some(tmp_path):
    values = np.random.default_rng(0).standard_normal((MEASURED + 500, 2)).astype(np.float32)
    shards = data.load(write_tar(tmp_path / "s.tar", {f"{i}.npy": npy(v) for i, v in enumerate(values)}))
    part = shards.measured()
    rows = [int(name.split("/")[1].removesuffix(".npy")) for name in part.names]
    assert len(set(rows)) == MEASURED and rows == sorted(rows) and np.array_equal(part.values, values[rows])
    assert shards.sigma_data() == pytest.approx(values[rows].astype(np.float64).std(), rel=1e-12)


BAD_SHARDS = {
    "outside": ({"../0.png": png(noise(4, 4))}, "leads outside"),
    "absolute": ({"/0.png": png(noise(4, 4))}, "leads outside"),
    "other format": ({"0.tiff": b"II*\0"}, "only PNG, JPEG, WebP and npy"),
    "nothing": ({"0.txt": b"hello"}, "no samples"),
    "no image": ({"0.cls": b"1", "1.png": png(noise(4, 4)), "1.cls": b"1"}, "'0' has a label, but no image"),
    "two images": ({"0.png": png(noise(4, 4)), "0.b.png": png(noise(4, 4))}, "two samples"),
    "twice": ([("0.png", png(noise(4, 4))), ("1.png", png(noise(4, 4))), ("0.png", png(noise(4, 4)))], "'0' occurs twice"),
    "some labels": ({"0.png": png(noise(4, 4)), "0.cls": b"1", "1.png": png(noise(4, 4))}, "1.png has no label"),
    "no class": ({"0.png": png(noise(4, 4)), "0.cls": b"cat"}, "0.cls: holds b'cat'"),
    "json": ({"0.png": png(noise(4, 4)), "0.json": b"{"}, "0.json: not JSON"),
    "deep": ({"0.png": png(noise(4, 4)), "0.json": b"[" * 100_000}, "0.json: not JSON"),
    "odd label": ({"0.png": png(noise(4, 4)), "0.json": b'{"label": true}'}, "expected a class"),
    "sizes": ({"0.png": png(noise(4, 4)), "1.png": png(noise(4, 5))}, "1.png is (1, 4, 5)"),
    "kinds": ({"0.png": png(noise(4, 4)), "1.npy": npy(np.zeros((1, 4, 4)))}, "mixed samples"),
    "no png": ({"0.png": b"GIF89a"}, "0.png: not a PNG"),
    "objects": ({"0.npy": npy(np.zeros(3, dtype="f4,i4"))}, "0.npy", "not read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_shards_that_cannot_be_data_are_refused(tmp_path, case):
    files, *words = BAD_SHARDS[case]
    refused(write_tar(tmp_path / "s.tar", files), *words)


def test_shards_that_are_cut_or_damaged_are_refused(tmp_path):
    good = write_tar(tmp_path / "s.tar", sample_files(noise(3, 40, 40), [0, 1, 2])).read_bytes()
    with tarfile.open(tmp_path / "s.tar") as archive:
        infos = archive.getmembers()
    ends = [infos[2].offset, infos[2].offset_data, infos[2].offset_data + 100, infos[2].offset + 3]
    for end in ends:  # at a header, after it, within a member, within a header
        (tmp_path / "s.tar").write_bytes(good[:end])
        refused(tmp_path / "s.tar")
    broken = bytearray(good)
    broken[infos[2].offset + 5] ^= 1  # a header's checksum: tarfile takes it for the end
    (tmp_path / "s.tar").write_bytes(broken)
    refused(tmp_path / "s.tar", "no end mark")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(link)
    refused(tmp_path / "s.tar", "is a link")
    refused(tmp_path / "t-{5..3}.tar", "upwards", error=ValueError, path=False)
    refused(tmp_path / "t-{0..1}.tar", "t-0.tar: no such file", error=FileNotFoundError)
    refused(tmp_path / "t-*.tar", "no file matches", error=FileNotFoundError)


def test_shards_changed_after_indexing_are_noticed(tmp_path):
    path = write_tar(tmp_path / "s.tar", sample_files(noise(2, 4, 4), [0, 1]))
    shards = data.load(path)
    with tarfile.open(path) as archive:
        place = archive.getmember("000001.png").offset_data
    content = bytearray(path.read_bytes())
    content[place + 50] ^= 1
    path.write_bytes(content)
    shards.batch([0])
    with pytest.raises(FormatError, match=r"s\.tar: 000001\.png: the tar has changed"):
        shards.batch([1])


def test_the_index_of_large_shards_is_kept(tmp_path, monkeypatch):
    pixels, labels = noise(4, 5, 4), [3, 1, 0, 2]
    path = write_tar(tmp_path / "s.tar", sample_files(pixels, labels))
    data.load(path)
    assert not (tmp_path / "cache").exists()  # small ones are read again
    monkeypatch.setattr(shard_index, "WORTH_KEEPING", 0)
    first = data.load(path)
    (kept,) = (p for p in (tmp_path / "cache" / "index").iterdir() if p.name[0] != ".")  # beside its lock
    with monkeypatch.context() as context:
        context.setattr(shard_index, "members", None)
        again = data.load(path)
    assert again.fingerprint() == first.fingerprint() and np.array_equal(again.values[:, 0], pixels)
    for damage in (b"", b"[[1]]", b"[]", b"{", b"[[" * 50_000):
        kept.write_bytes(damage)
        assert data.load(path).fingerprint() == first.fingerprint()
    write_tar(path, sample_files(pixels[::-1], labels))
    assert np.array_equal(data.load(path).values[:, 0], pixels[::-1])  # another date, another index


# --- shards of the web --------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; knows ranges; breaks off after `server.most` bytes of an answer, the first time."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append((self.path, self.headers.get("Range")))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        most, self.server.most = self.server.most, None
        self.wfile.write(content[start:][:most])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.files, running.most, running.asked = {}, None, []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        running.address = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


def test_shards_of_the_web_are_fetched_once(server, tmp_path, three_shards):
    folder, pixels, _ = three_shards
    server.files = {f"/d/{p.name}": p.read_bytes() for p in folder.glob("*.tar")}
    source = f"{server.address}/d/s-{{000000..000002}}.tar"
    assert np.array_equal(data.load(source).values, pixels) and len(server.asked) == 3
    assert np.array_equal(data.load(source).values, pixels) and len(server.asked) == 3
    assert not list((tmp_path / "cache").rglob("*.part")) and not list((tmp_path / "cache").rglob("*.tag"))
    refused(f"{server.address}/d/none.tar", "404", error=FileNotFoundError)
    refused("https://", "expected an address", path=False)


def test_a_transfer_that_breaks_off_is_gone_on_with(server, tmp_path, monkeypatch):
    content = bytes(noise(300_000))
    server.files, server.most = {"/x.tar": content}, 100_000
    assert download.fetched(f"{server.address}/x.tar", tmp_path).read_bytes() == content
    assert server.asked == [("/x.tar", None), ("/x.tar", "bytes=100000-")]
    monkeypatch.setattr(download, "TRIES", 1)
    server.files["/y.tar"], server.most = content, 100_000
    with pytest.raises(ConnectionError, match="begin again"):
        download.fetched(f"{server.address}/y.tar", tmp_path)
    assert not list(tmp_path.rglob("y.tar"))
    server.files["/y.tar"] = content[::-1]  # another file by now: none of the old may stay
    assert download.fetched(f"{server.address}/y.tar", tmp_path).read_bytes() == content[::-1]


# --- inspect --------------------------------------------------------------------------------------------------


def cli(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_facts_are_the_definitions():
    pixels = noise(40, 3, 6, 6)
    pixels[[7, 30]] = pixels[2]
    pixels[12] = pixels[11]
    labels = np.arange(40) % 3
    labels[[7, 30, 2]] = 1
    found = facts(data.Dataset(pixels, labels, ("a", "b", "c", "d"), names=tuple(f"{i}.png" for i in range(40))))
    seen = pixels / 127.5 - 1
    assert found["channels"]["mean"] == pytest.approx(seen.mean((0, 2, 3)), rel=1e-5)
    assert found["channels"]["std"] == pytest.approx(seen.std((0, 2, 3)), rel=1e-5)
    assert found["range"] == pytest.approx([seen.min(), seen.max()], abs=1e-5) and found["levels"] == [0, 255]
    assert found["samples a class"] == [*np.bincount(labels).tolist(), 0]
    assert found["duplicates"] == {
        "count": 3, "groups": 2, "conflicts": 1, "examples": [["2.png", "7.png", "30.png"], ["11.png", "12.png"]],
    }  # fmt: skip
    first = found["first"][1]
    assert (first["sample"], first["label"], first["class"]) == ("1.png", 1, "b")
    assert first["range"] == [pixels[1].min(), pixels[1].max()] and len(found["first"]) == 8
    assert first["mean"] == pytest.approx(pixels[1].mean(), rel=1e-5)


def test_duplicates_of_shards_are_the_same_files(tmp_path):
    files = sample_files(noise(5, 4, 4), range(5))
    files["000003.png"] = files["000001.png"]
    found = facts(data.load(write_tar(tmp_path / "s.tar", files)))
    assert (
        found["duplicates"]["examples"] == [["s.tar/000001.png", "s.tar/000003.png"]]
        and found["duplicates"]["conflicts"] == 1
    )
    assert found["samples"] == found["measured"] == 5


def test_inspect_prints_and_draws(capsys, tmp_path):
    source = write_folder(
        tmp_path / "pets", images("cat/1.png", "dog/1.png") | {"dog/2.png": images("cat/1.png")["cat/1.png"]}
    )
    code, out, _ = cli(capsys, "inspect", source, "--sheet", tmp_path / "sheet.png")
    assert (
        code == 0
        and "cat: 1, dog: 2" in out
        and "cat/1.png = dog/2.png" in out
        and "1 of them with several labels" in out
    )
    assert "dog/1.png" in out and "sigma_data" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = np.array(sheet)
    want = [np.kron(noise(4, 4, seed=i), np.ones((16, 16))) for i in range(2)]
    assert drawn.shape == (129, 129) and all(
        np.array_equal(drawn[:64, 65 * i : 65 * i + 64], want[i]) for i in range(2)
    )
    code, _, err = cli(capsys, "inspect", source, "--sheet", tmp_path / "sheet.png")
    assert code == 2 and "exists" in err
    np.save(tmp_path / "points.npy", np.random.default_rng(0).standard_normal((9, 2)))
    code, _, _ = cli(capsys, "inspect", tmp_path / "points.npy", "--sheet", tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert code == 0 and len(sheet.getcolors()) == 2  # dots on white
    assert "channels" in cli(capsys, "inspect", tmp_path / "points.npy")[1]


def test_inspect_takes_data_for_data_whatever_their_first_bytes(capsys, tmp_path):
    """A ZIP begins as a torch file does, CIFAR's batches are pickles, and a tar may begin with any letter."""
    _, _, files = cifar10()
    batch = write_folder(tmp_path / "c", {"data_batch_1": files["data_batch_1"]}) / "data_batch_1"
    np.savez(tmp_path / "a.npz", images=noise(3, 8, 8))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", png(noise(4, 4)))
    tar = write_tar(tmp_path / "s.tar", {"cat.png": png(noise(4, 4))})
    for source, count in [(batch, 3), (tmp_path / "a.npz", 3), (tmp_path / "z.zip", 1), (tar, 1)]:
        code, out, err = cli(capsys, "inspect", source, "--json")
        assert code == 0, err
        assert json.loads(out)["samples"] == count


# --- damage -----------------------------------------------------------------------------------------------------


def test_mutated_files_raise_nothing_but_format_errors(tmp_path):
    _, _, python = cifar10(1)
    pixels, labels = noise(2, 3072), [1, 2]
    wholes = {
        "c/test_batch": python["test_batch"],
        "b/test_batch.bin": binary(pixels, [[k] for k in labels]),
        "m/train-images-idx3-ubyte": idx(noise(3, 4, 4)),
        "g/train-images-idx3-ubyte.gz": gzip.compress(idx(noise(3, 4, 4))),
        "s/s.tar": write_tar(tmp_path / "s.tar", sample_files(noise(2, 4, 4), [0, 1])).read_bytes(),
        "p/p.tar": write_tar(tmp_path / "p.tar", {"x" * 120 + ".npy": npy(np.zeros(3))}, format=tarfile.PAX_FORMAT).read_bytes(),
        "t/cifar-10-python.tar.gz": write_tar(tmp_path / "t.tar.gz", {"c/test_batch": python["test_batch"]}, "w:gz").read_bytes(),
        "l/labels.csv": b"name,v1,v2\na.png,0.5,1\nb.png,3,\"4\"\n",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for name, good in wholes.items():
        path = tmp_path / name
        write_folder(path.parent, images("a.png", "b.png") if name.endswith(".csv") else {})
        path.parent.mkdir(exist_ok=True)
        for _ in range(100):
            mutated = bytearray(good)
            # Headers, where the harm is, get half of the blows.
            for position in rng.integers(
                0, len(good) if rng.random() < 0.5 else min(600, len(good)), rng.integers(1, 4)
            ):
                mutated[position] = rng.choice([rng.integers(256), 0, 255, mutated[position] ^ 1])
            path.write_bytes(mutated[: rng.integers(0, len(good))] if rng.random() < 0.2 else mutated)
            try:
                source = path.parent if name.endswith(".csv") else f"{path}:test" if name.startswith("t/") else path
                loaded = data.load(source)
                with contextlib.suppress(FormatError):
                    loaded.batch(range(len(loaded)))
                outcomes["read"] += 1
            except FormatError as error:
                outcomes["refused"] += 1
                assert path.name.split(".")[0] in str(error) and "\n" not in str(error)
    assert outcomes["refused"] > 300 and outcomes["read"] > 50


# --- the real data beside the project -----------------------------------------------------------------------------


def test_mnist_is_the_same_in_every_format(tmp_path):
    archive = shared("data/mnist-test.zip")
    whole = data.load(archive).subset(range(200))
    pixels, labels = whole.values[:, 0], whole.labels
    write_folder(tmp_path / "i", {"t10k-images-idx3-ubyte.gz": gzip.compress(idx(pixels), 1)})
    write_folder(tmp_path / "i", {"t10k-labels-idx1-ubyte": idx(labels.astype(np.uint8))})
    with zipfile.ZipFile(archive) as stored:
        for number in range(4):
            rows = range(number * 50, number * 50 + 50)
            files = {}
            for i in rows:
                files[f"{i:05}.png"] = stored.read(whole.names[i])
                files[f"{i:05}.json"] = json.dumps({"label": int(labels[i])}).encode()
            write_tar(tmp_path / f"mnist-{number}.tar", files)
    for source in (tmp_path / "i", f"{tmp_path}/mnist-{{0..3}}.tar"):
        loaded = data.load(source)
        assert np.array_equal(loaded.values, whole.values) and np.array_equal(loaded.labels, labels)
        assert torch.equal(loaded.batch(range(200))[0], whole.batch(range(200))[0])
        assert loaded.sigma_data() == whole.sigma_data()
