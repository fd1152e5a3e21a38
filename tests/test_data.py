"""Data: what is read is what was stored; what cannot be read is refused by name."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elucidiff import data
from elucidiff.errors import FormatError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, suffix=".png", mode=None, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    image.save(buffer, {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix], **options)
    return buffer.getvalue()


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile's own remark on duplicate names
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, content)
    return path


def table(labels, **more):
    return json.dumps({"labels": labels, **more}).encode()


def refused(source, *words):
    with pytest.raises(FormatError) as caught:
        data.load(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in (Path(source).name, *words):
        assert word in message, message


# --- the range the network sees -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_256_levels_survive(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.from_uint8(levels, dtype)), levels)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_all_256_levels_survive_write_and_read(tmp_path, suffix):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.stack([levels, levels.T, 255 - levels], axis=2)
    (tmp_path / f"a{suffix}").write_bytes(encoded(colour, suffix, **({"lossless": True} if suffix == ".webp" else {})))
    loaded = data.load(tmp_path)
    assert np.array_equal(loaded.values[0].transpose(1, 2, 0), colour)
    assert np.array_equal(data.to_uint8(loaded.batch([0])[0])[0].numpy().transpose(1, 2, 0), colour)


def test_to_uint8_is_the_published_formula():
    x = torch.tensor([-1.5, -1.0, 0.0, 1 / 255, 1.0, 1.5], dtype=torch.float64)
    assert data.to_uint8(x).tolist() == [0, 0, 128, 128, 255, 255]
    assert torch.equal(data.from_uint8(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_to_uint8_refuses_numbers_that_are_none(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        data.to_uint8(torch.tensor([0.0, bad]))


# --- Dataset --------------------------------------------------------------------------------------


def test_digits_are_the_embedded_default():
    digits = data.load("digits")
    assert (len(digits), digits.shape, digits.label_dim, digits.is_image) == (1797, (1, 8, 8), 10, True)
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(np.unique(digits.values)) == 17 and digits.values.max() == 255
    assert digits.values[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert digits.fingerprint().startswith("acc9ca6f")
    assert digits.sigma_data() == pytest.approx(0.7517718, abs=1e-7)


def test_batch_gives_the_range_of_the_network_and_one_hot_labels():
    digits = data.load("digits")
    y, labels = digits.batch([3, 0, 5])
    assert y.dtype == labels.dtype == torch.float32 and labels.shape == (3, 10)
    assert labels.argmax(1).tolist() == digits.labels[[3, 0, 5]].tolist() and labels.sum() == 3
    assert torch.allclose(y, torch.from_numpy(digits.values[[3, 0, 5]]) / 127.5 - 1, atol=1e-7)
    assert torch.equal(y, digits.tensor()[[3, 0, 5]])
    assert torch.equal(digits.batch(torch.tensor([3, 0, 5]))[0], y)


def test_soft_labels_and_absent_labels():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    soft = np.full((4, 2), 0.5, dtype=np.float32)
    assert torch.equal(data.from_arrays(x, soft).batch([1])[1], torch.full((1, 2), 0.5))
    plain = data.from_arrays(x)
    assert plain.batch([1])[1] is None and plain.label_dim == 0
    assert torch.equal(plain.batch([1, 2])[0], torch.from_numpy(x[[1, 2]]))


@pytest.mark.parametrize("kind", ["levels", "floats"])
def test_mean_and_sigma_data_equal_the_definition(kind):
    values = noise(3000, 3, 16, 16) if kind == "levels" else np.float32(1e3) + noise(3000, 3, 16, 16).astype(np.float32)
    measured = data.from_arrays(values)
    reference = values / 127.5 - 1 if kind == "levels" else values.astype(np.float64)
    assert measured.mean() == pytest.approx(reference.mean(), rel=1e-12, abs=1e-12)
    assert measured.sigma_data() == pytest.approx(reference.std(), rel=1e-12)


def test_check_sigma_data_warns_beyond_ten_percent():
    data.check_sigma_data(0.5, 0.54)
    data.check_sigma_data(0.5, 0.46)
    with pytest.warns(data.SigmaDataWarning, match=r"0\.5,.*0\.7518"):
        data.check_sigma_data(0.5, 0.7518)
    with pytest.warns(data.SigmaDataWarning):
        data.check_sigma_data(0.5, 0.45)


def test_split_is_a_pure_function_of_seed_and_loses_nothing():
    digits = data.load("digits")
    train, heldout = digits.split(0.5)
    again, _ = digits.split(0.5)
    other, _ = digits.split(0.5, seed=1)
    assert (len(train), len(heldout)) == (899, 898)
    assert train.fingerprint() == again.fingerprint() != other.fingerprint()
    together = data.from_arrays(
        np.concatenate([train.values, heldout.values]), np.concatenate([train.labels, heldout.labels])
    )
    assert sorted(map(bytes, together.values)) == sorted(map(bytes, digits.values))
    assert together.sigma_data() == pytest.approx(digits.sigma_data(), rel=1e-12)


@pytest.mark.parametrize("heldout", [0, 1, -0.1, 1.5, float("nan"), 1e-6])
def test_split_refuses_empty_parts(heldout):
    with pytest.raises(ValueError, match="heldout"):
        data.load("digits").split(heldout)


def test_subset_keeps_the_classes_of_the_whole():
    digits = data.load("digits")
    zeros = digits.subset(np.flatnonzero(digits.labels == 0))
    assert len(zeros) == 178 and zeros.label_dim == 10 and zeros.batch([0])[1].shape == (1, 10)


def test_fingerprint_sees_every_part():
    x = noise(5, 1, 4, 4)
    labels = np.arange(5)
    base = data.from_arrays(x, labels).fingerprint()
    changed = x.copy()
    changed[4, 0, 3, 3] ^= 1
    variants = [
        data.from_arrays(changed, labels),
        data.from_arrays(x, labels[::-1]),
        data.from_arrays(x),
        data.from_arrays(x.reshape(5, 1, 2, 8), labels),
        data.from_arrays(x.astype(np.float32), labels),
    ]
    prints = {base, *(v.fingerprint() for v in variants)}
    assert len(prints) == 6
    assert data.from_arrays(x.copy(), labels.astype(np.int32), name="other").fingerprint() == base


def test_dataset_refuses_parts_that_do_not_fit():
    x = noise(5, 1, 4, 4)
    for arguments, message in [
        ((x.astype(np.int32),), "values"),
        ((x[:0],), "holds nothing"),
        ((x, np.arange(4)), "4 for 5 samples"),
        ((x, np.arange(5), ("a", "b")), "0 to 1"),
        ((x, np.arange(5) - 1), "-1"),
        ((x, np.arange(5.0)), "labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.Dataset(*arguments)


# --- folders and archives -------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip"])
def collection(request, tmp_path):
    def write(files):
        if request.param == "folder":
            return write_folder(tmp_path / "set", files)
        return write_zip(tmp_path / "set.zip", files)

    return write


def test_labels_of_dataset_json(collection):
    pixels = noise(3, 8, 6, 3)
    files = {f"00000/img{i}.png": encoded(p) for i, p in enumerate(pixels)}
    files["dataset.json"] = table(
        [["00000/img2.png", 0], ["00000/img0.png", 2], ["00000/img1.png", 1]], classes=list("abc")
    )
    loaded = data.load(collection(files))
    assert np.array_equal(loaded.values, pixels.transpose(0, 3, 1, 2))
    assert loaded.labels.tolist() == [2, 1, 0] and loaded.classes == ("a", "b", "c") and loaded.name == "set"


def test_vector_labels_and_null_labels(collection):
    files = {f"{i}.png": encoded(noise(4, 4)) for i in range(2)}
    files["dataset.json"] = table([["0.png", [0.25, 0.75]], ["1.png", [1, 0]]])
    assert data.load(collection(files)).labels.tolist() == [[0.25, 0.75], [1, 0]]


def test_sub_folders_are_classes_unless_the_table_says_no(collection):
    files = {f"set/{name}/{i}.png": encoded(noise(4, 4)) for name in ("dog", "cat") for i in range(2)}
    loaded = data.load(collection(files))
    assert loaded.classes == ("cat", "dog") and loaded.labels.tolist() == [0, 0, 1, 1]
    assert data.load(collection(files | {"dataset.json": table(None)})).labels is None


@pytest.mark.parametrize(
    "names",
    [("a.png", "b/c.png"), ("00000/a.png", "00001/b.png"), ("all/a.png", "all/b.png")],
    ids=["some", "shards", "one"],
)
def test_sub_folders_that_are_no_classes(collection, names):
    loaded = data.load(collection({name: encoded(noise(4, 4)) for name in names}))
    assert len(loaded) == 2 and loaded.labels is None


def test_grey_stays_one_channel_and_mixed_becomes_colour(collection):
    grey, colour = noise(4, 4), noise(4, 4, 3, seed=1)
    for first, second in [(grey, colour), (colour, grey)]:
        loaded = data.load(collection({"a.png": encoded(first), "b.png": encoded(second)}))
        assert loaded.shape == (3, 4, 4)
        got = dict(zip("ab", loaded.values, strict=True))
        for name, pixels in zip("ab", (first, second), strict=True):
            want = np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            assert np.array_equal(got[name], want)
    assert data.load(collection({"a.png": encoded(grey), "b.png": encoded(grey)})).shape == (1, 4, 4)


def test_pixel_formats_that_convert_exactly(tmp_path):
    grey, colour = noise(4, 4), noise(4, 4, 3)
    palette = Image.fromarray(colour).quantize(16)
    opaque = np.dstack([colour, np.full((4, 4), 255, np.uint8)])
    cases = {
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "rgba": (encoded(opaque), colour),
        "la": (encoded(Image.fromarray(np.dstack([grey, np.full((4, 4), 255, np.uint8)]), "LA")), grey[..., None]),
        "bits": (encoded(Image.fromarray(grey).convert("1", dither=0)), np.where(grey > 127, 255, 0)[..., None]),
    }
    for name, (content, expected) in cases.items():
        loaded = data.load(write_folder(tmp_path / name, {"a.png": content}))
        assert np.array_equal(loaded.values[0].transpose(1, 2, 0), expected), name


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.repeat(np.repeat(noise(2, 1, 3), 16, 0), 16, 1)  # 32 high, 16 wide
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    loaded = data.load(
        write_folder(tmp_path / "s", {"a.jpg": encoded(pixels, ".jpg", exif=exif.tobytes(), quality=95)})
    )
    assert loaded.shape == (3, 16, 32)


def png_with_header(width, height, bits=8, colour=2):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def transparent_palette():
    image = Image.fromarray(noise(4, 4, 3)).quantize(8)
    image.info["transparency"] = 0
    return encoded(image, transparency=int(np.asarray(image)[0, 0]))


def animation():
    frames = [Image.fromarray(noise(8, 8, 3, seed=k)) for k in range(3)]
    return encoded(frames[0], save_all=True, append_images=frames[1:])


BAD_IMAGES = {
    "sixteen-grey": (lambda: encoded(Image.fromarray(noise(4, 4).astype(np.uint16) * 257)), "16 bits"),
    "sixteen-rgb": (lambda: png_with_header(2, 2, bits=16), "16 bits"),
    "transparent": (lambda: encoded(noise(4, 4, 4)), "transparent"),
    "palette-key": (transparent_palette, "transparent"),
    "cmyk": (lambda: encoded(Image.fromarray(noise(8, 8, 4), "CMYK"), ".jpg"), "CMYK"),
    "animation": (animation, "animation"),
    "wide": (lambda: png_with_header(16_385, 1), "16,384"),
    "many": (lambda: png_with_header(10_000, 10_000), "10000x10000"),
    "huge": (lambda: png_with_header(2**31 - 1, 2**31 - 1), "pixels"),
    "none": (lambda: png_with_header(0, 5), "pixels"),
    "truncated": (lambda: encoded(noise(32, 32, 3))[:1500], "damaged"),
    "short": (lambda: encoded(noise(4, 4))[:20], "damaged"),
    "half-jpeg": (lambda: encoded(noise(64, 64, 3), ".jpg")[:900], "damaged"),
    "text": (lambda: b"hello", "not a PNG"),
    "empty": (lambda: b"", "not a PNG"),
    "gif": (lambda: b"GIF89a" + bytes(50), "not a PNG"),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_would_be_read_wrongly_are_refused_by_name(collection, case):
    make, word = BAD_IMAGES[case]
    refused(collection({"ok.png": encoded(noise(4, 4)), "sub/odd.png": make()}), "odd.png", word)


def test_mixed_sizes_name_both_files(collection):
    files = {"a.png": encoded(noise(4, 6)), "b.png": encoded(noise(4, 6)), "c.png": encoded(noise(5, 6))}
    refused(collection(files), "a.png is 6x4", "c.png is 6x5")


def test_other_image_formats_are_not_passed_over(collection):
    refused(collection({"a.png": encoded(noise(4, 4)), "b.tiff": b"II*\0"}), "b.tiff")


def test_text_files_beside_the_images_do_not_matter(collection):
    assert len(data.load(collection({"a.png": encoded(noise(4, 4)), "readme.txt": b"hello", ".hidden.png": b""}))) == 1


BAD_TABLES = {
    "not json": (b"{", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "list": (b"[]", '"labels"'),
    "no labels": (b"{}", '"labels"'),
    "no pairs": (table([1, 2]), "labels[0]"),
    "no list": (table("abc"), "list of"),
    "negative": (table([["a.png", -1], ["b.png", 0]]), "'a.png' has -1"),
    "too large": (table([["a.png", 0], ["b.png", 10**6]]), "'b.png' has 1000000"),
    "fraction": (table([["a.png", 0], ["b.png", 1.5]]), "'b.png' has 1.5"),
    "bool": (table([["a.png", True], ["b.png", 1]]), "'a.png' has True"),
    "text": (table([["a.png", "1"], ["b.png", 1]]), "'a.png' has '1'"),
    "none": (table([["a.png", None], ["b.png", 1]]), "'a.png' has None"),
    "missing": (table([["a.png", 0]]), "'b.png' has none"),
    "extra": (table([["a.png", 0], ["b.png", 0], ["c.png", 0]]), "'c.png'"),
    "twice": (table([["a.png", 0], ["a.png", 1], ["b.png", 1]]), "twice"),
    "ragged": (table([["a.png", [0, 1]], ["b.png", [1]]]), "'b.png' has [1]"),
    "mixed": (table([["a.png", [0, 1]], ["b.png", 1]]), "'b.png' has 1"),
    "empty vector": (table([["a.png", []], ["b.png", []]]), "'a.png'"),
    "nan": (table([["a.png", [float("nan")]], ["b.png", [1]]]), "finite"),
    "beyond float32": (table([["a.png", [1e300]], ["b.png", [1]]]), "finite"),
    "long integer": (table([["a.png", [10**400]], ["b.png", [1]]]), "finite"),
    "classes short": (table([["a.png", 0], ["b.png", 3]], classes=["x", "y"]), "label 3"),
    "classes odd": (table([["a.png", 0], ["b.png", 1]], classes=[1, 2]), '"classes"'),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_label_tables_are_checked_as_a_schema(collection, case):
    content, word = BAD_TABLES[case]
    files = {"a.png": encoded(noise(4, 4)), "b.png": encoded(noise(4, 4)), "dataset.json": content}
    refused(collection(files), "dataset.json", word)


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png", "C:/a.png", "x\\..\\a.png"])
def test_archive_names_that_lead_outside_are_refused(tmp_path, name):
    refused(write_zip(tmp_path / "s.zip", {name: encoded(noise(4, 4))}), "leads outside")


def test_archives_that_attack_are_refused(tmp_path):
    ok = encoded(noise(4, 4))
    refused(write_zip(tmp_path / "twice.zip", [("a.png", ok), ("a.png", ok)]), "'a.png' occurs twice")
    bomb = {"a.png": ok, "dataset.json": b" " * 10_000_000}
    refused(write_zip(tmp_path / "bomb.zip", bomb, zipfile.ZIP_DEFLATED), "dataset.json", "200-fold")
    refused(write_zip(tmp_path / "odd.zip", {"a.png": ok}, zipfile.ZIP_BZIP2), "compression")
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    refused(write_zip(tmp_path / "link.zip", [(link, b"/etc/passwd")]), "is a link")


def test_archives_whose_directory_lies_are_refused(tmp_path):
    path = write_zip(tmp_path / "s.zip", {"a.png": encoded(noise(8, 8))})
    good = path.read_bytes()
    directory = good.rfind(b"PK\1\2")
    for offset, word in [(20, "overlap"), (24, "at most")]:  # compressed size, then size
        lying = bytearray(good)
        lying[directory + offset : directory + offset + 4] = struct.pack("<I", 2**31)
        path.write_bytes(lying)
        refused(path, word)


def test_damaged_archives_are_refused(tmp_path):
    path = write_zip(tmp_path / "s.zip", {f"{i}.png": encoded(noise(8, 8)) for i in range(3)}, zipfile.ZIP_DEFLATED)
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    refused(path, "damaged")
    path.write_bytes(b"")
    refused(path, "not a ZIP")
    flipped = bytearray(good)
    flipped[60] ^= 0x10  # inside the first member: its CRC tells
    path.write_bytes(flipped)
    refused(path, "0.png")


def test_mutated_archives_raise_nothing_but_format_errors(tmp_path):
    files = {f"{i}.png": encoded(noise(6, 6, seed=i)) for i in range(2)} | {
        "dataset.json": table([["0.png", 0], ["1.png", 1]])
    }
    good = write_zip(tmp_path / "s.zip", files).read_bytes()
    rng = np.random.default_rng(0)
    path, outcomes = tmp_path / "m.zip", {"read": 0, "refused": 0}
    for _ in range(400):
        mutated = bytearray(good)
        for position in rng.integers(0, len(good), rng.integers(1, 4)):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated[: rng.integers(1, len(good))] if rng.random() < 0.2 else mutated)
        try:
            loaded = data.load(path)
            outcomes["read"] += 1
            assert len(loaded) <= 2
        except FormatError as error:
            outcomes["refused"] += 1
            assert "m.zip" in str(error)
    assert outcomes["refused"] > 300


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        data.load(tmp_path / "absent")
    assert "\n" not in str(caught.value) and "absent" in str(caught.value)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no PNG, JPEG or WebP images")
    refused(write_zip(tmp_path / "empty.zip", {}), "no PNG, JPEG or WebP images")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    refused(tmp_path / "model.pkl", ".npz")


def test_progress_reaches_the_total(tmp_path):
    content = encoded(noise(2, 2))
    path = write_zip(tmp_path / "s.zip", {f"{i:03}.png": content for i in range(150)})
    seen = []
    data.load(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 150), (128, 150), (150, 150)]


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["images", "data", "x", "arr_0"])
def test_npz_keys_and_layouts(tmp_path, key):
    nhwc, labels = noise(4, 5, 6, 3), np.array([0, 2, 1, 2], dtype=np.uint8)
    path = tmp_path / "s.npz"
    for stored, expected in [
        (nhwc, nhwc.transpose(0, 3, 1, 2)),
        (nhwc.transpose(0, 3, 1, 2), nhwc.transpose(0, 3, 1, 2)),
        (nhwc[..., :1], nhwc[..., :1].transpose(0, 3, 1, 2)),
        (nhwc[..., 0], nhwc[:, None, :, :, 0]),
        (np.asfortranarray(nhwc), nhwc.transpose(0, 3, 1, 2)),
        (noise(4, 3, 6, 3), noise(4, 3, 6, 3)),  # ambiguous: channels first
    ]:
        np.savez_compressed(path, **{key: stored, "y": labels, "other": np.arange(3)})
        loaded = data.load(path)
        assert np.array_equal(loaded.values, expected) and loaded.values.flags.c_contiguous
        assert loaded.labels.tolist() == [0, 2, 1, 2] and loaded.label_dim == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 3, 9), (7, 1, 4, 4, 4)])
def test_floating_arrays_of_any_rank(tmp_path, dtype, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.save(tmp_path / "s.npy", values)
    loaded = data.load(tmp_path / "s.npy")
    assert loaded.values.dtype == np.float32 and not loaded.is_image
    assert loaded.shape == (shape[1:] or (1,))
    assert np.array_equal(loaded.values.reshape(shape), values.astype(np.float32))


def bad(**arrays):
    return {"images": noise(4, 8, 8), **arrays}


BAD_ARRAYS = {
    "nan": (dict(x=np.array([[1.0], [np.nan]])), "values", "1 of 2 numbers"),
    "inf": (dict(x=np.array([[1.0], [np.inf]])), "values", "infinite"),
    "overflow": (dict(x=np.array([[1.0], [1e300]])), "values", "beyond float32"),
    "int64": (dict(x=np.arange(12).reshape(4, 3)), "values", "astype('float32')"),
    "bool": (dict(x=np.ones((4, 3), bool)), "values", "bool"),
    "complex": (dict(x=np.ones((4, 3), complex)), "values", "complex"),
    "uint8 rank 2": (dict(x=noise(4, 3)), "values", "uint8 (4, 3)"),
    "scalar": (dict(x=np.float32(1)), "values", "shape ()"),
    "no samples": (dict(x=np.zeros((0, 3))), "values", "shape (0, 3)"),
    "objects": (dict(x=np.array([{}], dtype=object)), "x", "object"),
    "records": (dict(x=np.zeros(3, dtype="f4,i4")), "x", "not read"),
    "transparent": (dict(x=noise(4, 8, 8, 4)), "values", "transparent"),
    "two values": (bad(x=noise(4, 8, 8)), "images and x", "keep one"),
    "two labels": (bad(labels=np.arange(4), y=np.arange(4)), "labels and y", "keep one"),
    "no values": (dict(labels=np.arange(4)), "no array", "images"),
    "count": (bad(labels=np.arange(5)), "labels", "4 samples"),
    "negative": (bad(labels=np.arange(4) - 1), "labels", "-1 to 2"),
    "large": (bad(labels=np.arange(4) * 10**6), "labels", "999,999"),
    "fractions": (bad(labels=np.arange(4.0)), "labels", "whole numbers"),
    "nan labels": (bad(labels=np.full((4, 2), np.nan)), "labels", "8 of 8"),
    "rank 3": (bad(labels=np.zeros((4, 1, 1))), "labels", "(4, K)"),
    "names": (bad(labels=np.array(list("abcd"))), "labels", "whole numbers"),
    "classes": (bad(labels=np.arange(4), classes=np.array(["a", "b"])), "classes", "out of range"),
    "odd classes": (bad(labels=np.arange(4), classes=np.arange(4)), "classes", "names"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_data_are_refused(tmp_path, case):
    arrays, *words = BAD_ARRAYS[case]
    np.savez(tmp_path / "s.npz", **arrays)
    refused(tmp_path / "s.npz", *words)


def test_integer_vectors_and_columns_as_labels():
    x = np.zeros((3, 2))
    assert data.from_arrays(x, np.array([[2], [0], [1]])).labels.tolist() == [2, 0, 1]
    assert data.from_arrays(x, np.eye(3, dtype=np.int64)).labels.dtype == np.float32


def test_class_names_of_npz(tmp_path):
    np.savez(
        tmp_path / "s.npz", images=noise(2, 8, 8), labels=np.array([1, 0]), classes=np.array(["no", "yes", "maybe"])
    )
    loaded = data.load(tmp_path / "s.npz")
    assert loaded.classes == ("no", "yes", "maybe") and loaded.label_dim == 3


def test_npy_headers_are_checked_before_reading(tmp_path):
    path = tmp_path / "s.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    good = path.read_bytes()
    for old, new in [
        (b"(4, 4)", b"(9, 9)"),
        (b"(4, 4)", b"(-4,4)"),
        (b"'<f4'", b"'|O8'"),
        (b"'<f4'", b"'<U0'"),
        (b"'descr'", b"'descx'"),
        (b"\x93NUMPY", b"\x93NUMPX"),
        (b"NUMPY\x01", b"NUMPY\x03"),
    ]:
        assert old in good
        path.write_bytes(good.replace(old, new))
        refused(path)
    path.write_bytes(good[:-1])
    refused(path, "holds 63 bytes")
    path.write_bytes(good.replace(b"(4, 4), }         ", b"(10000000000000,)}"))
    refused(path)


def test_mutated_npz_raise_nothing_but_format_errors(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, images=noise(2, 4, 4), labels=np.array([0, 1]))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(400):
        mutated = bytearray(good)
        for position in rng.integers(0, len(good), 2):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            data.load(path)
        except FormatError as error:
            refusals += 1
            assert "m.npz" in str(error)
    assert refusals > 200


# --- the real data beside the project ---------------------------------------------------------------


def test_cifar_archive():
    cifar = data.load(shared("cifar10-test.zip"))
    assert (len(cifar), cifar.shape, cifar.label_dim) == (10_000, (3, 32, 32), 10)
    assert cifar.classes[:2] == ("airplane", "automobile") and np.bincount(cifar.labels).tolist() == [1000] * 10
    assert cifar.sigma_data() == pytest.approx(0.5, abs=0.005)


def test_mnist_archive():
    mnist = data.load(shared("mnist-test.zip"))
    assert (len(mnist), mnist.shape) == (10_000, (1, 28, 28))
    assert np.bincount(mnist.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_lossless_cifar_arrays():
    with np.load(shared("cifar10-lossless-4000.npz")) as stored:
        images, labels = stored["images"], stored["labels"]
    loaded = data.load(SHARED / "cifar10-lossless-4000.npz")
    assert np.array_equal(loaded.values, images.transpose(0, 3, 1, 2)) and np.array_equal(loaded.labels, labels)
