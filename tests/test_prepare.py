"""Preparing data: every pixel by a formula, labels kept, equal bytes for equal input, nothing overwritten or half written."""

import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from conftest import shared
from elucidiff import data
from elucidiff.cli.main import main
from elucidiff.data.resize import FILTERS, Resize, center, resized
from elucidiff.errors import FormatError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels) -> bytes:
    """A PNG of (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def classes_of_colour(path, n=3, side=6):
    """Two sub-folders of n random colour images each."""
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(n)]
    return folder_of(path, {name: png(noise(side, side, 3, seed=i)) for i, name in enumerate(names)})


def run(capsys, *argv):
    code = main(["prepare", *(str(a) for a in argv)])
    out, err = capsys.readouterr()
    return code, out, err


# Resizing


def test_box_by_whole_factors_is_the_mean_rounded_once():
    x = noise(3, 10, 12).astype(int)
    sums = x.reshape(3, 5, 2, 6, 2).sum(axis=(2, 4))
    assert np.array_equal(resized(x.astype(np.uint8), (6, 5), "box"), (sums + 2) // 4)
    sums = x[:1].reshape(1, 2, 5, 3, 4).sum(axis=(2, 4))
    found = resized(x[:1].astype(np.uint8), (3, 2), "box")
    assert np.array_equal(found, np.floor(sums / 20 + 0.5))


@pytest.mark.parametrize("resample", FILTERS)
def test_filters_do_not_alias_and_keep_a_ramp(resample):
    y, x = np.mgrid[:48, :48]
    board = (255 * ((x + y) % 2)).astype(np.uint8)[None]
    coarse = resized(board, (13, 13), resample)[0, 2:-2, 2:-2].astype(float)
    assert np.abs(coarse - 127.5).max() < 15  # 5 of 9 pixels: 14.2; the nearest would be 0 and 255
    ramp = resized((5 * x).astype(np.uint8)[None], (16, 16), resample)[0, :, 3:-3]
    centres = 5 * (3 * np.arange(3, 13) + 1)  # the middle of each three columns
    assert np.abs(ramp - centres).max() <= 1


@pytest.mark.parametrize(
    ("h", "w", "proportions", "rows", "columns"),
    [
        (5, 8, (1, 1), (0, 5), (1, 6)),  # a margin of 3: 1 left, 2 right
        (9, 4, (64, 64), (2, 6), (0, 4)),
        (7, 9, (2, 1), (1, 5), (0, 9)),  # 9 wide, 4.5 high: 4
        (4, 10, (3, 2), (0, 4), (2, 8)),
        (6, 6, (1, 1), (0, 6), (0, 6)),
    ],
)
def test_the_centre_is_cut_out(h, w, proportions, rows, columns):
    x = np.arange(h * w, dtype=np.uint8).reshape(1, h, w)
    assert np.array_equal(center(x, proportions), x[:, slice(*rows), slice(*columns)])


def test_the_crop_of_dhariwal_and_nichol():
    wide = np.broadcast_to((2 * np.arange(64)).astype(np.uint8), (3, 32, 64))
    crop = Resize((8, 8), "center-dhariwal")
    # 64x32 is halved twice to 16x8, each pixel the mean of four columns: 2 (4 j + 1.5); j = 4 ... 11 is the centre.
    expected = 8 * np.arange(4, 12) + 3
    assert np.array_equal(crop(wide), np.broadcast_to(expected, (3, 8, 8)))
    assert np.array_equal(crop(wide.transpose(0, 2, 1)), np.broadcast_to(expected[:, None], (3, 8, 8)))
    # 24x12 is too small to halve: the bicubic filter to 16x8 puts column j at 1.5 j + 0.25.
    ramp = np.broadcast_to((6 * np.arange(24)).astype(np.uint8), (1, 12, 24))
    assert np.abs(crop(ramp)[0] - (9 * np.arange(4, 12) + 1.5)).max() <= 1
    # Twice the target is halved by the box: a lone pixel gives a quarter of it (rounded per axis), and no ringing.
    dot = np.zeros((1, 16, 16), np.uint8)
    dot[0, 6, 6] = 100
    assert crop(dot).sum() == crop(dot)[0, 3, 3] == 25


def test_distortion_only_on_request(tmp_path):
    x = noise(8, 16)
    source = folder_of(tmp_path / "s", {"a.png": png(x)})
    data.prepare(source, tmp_path / "a.zip", Resize((4, 4), resample="box"))
    cut = x[:, 4:12].astype(int).reshape(4, 2, 4, 2).sum(axis=(1, 3))
    assert np.array_equal(data.load(tmp_path / "a.zip").values[0, 0], (cut + 2) // 4)
    data.prepare(source, tmp_path / "b.zip", Resize((4, 4), "none", "box"))
    whole = x.astype(int).reshape(4, 2, 4, 4).sum(axis=(1, 3))
    assert np.array_equal(data.load(tmp_path / "b.zip").values[0, 0], (whole + 4) // 8)
    made = data.prepare(source, tmp_path / "c.zip", Resize((12, 6)))
    assert made.shape == data.load(tmp_path / "c.zip").shape == (1, 6, 12)
    assert made.enlarged == 0 and data.prepare(source, tmp_path / "d.zip", Resize((16, 9))).enlarged == 1


# What is written


@pytest.mark.parametrize("kind", ["out.zip", "out.npz", "out"])
def test_values_labels_and_names_of_classes_come_back(tmp_path, kind):
    source = classes_of_colour(tmp_path / "source")
    before = data.load(source)
    made = data.prepare(source, tmp_path / kind)
    after = data.load(tmp_path / kind)
    assert after.fingerprint() == before.fingerprint()
    assert after.classes == made.classes == ("cat", "dog")
    assert (made.count, made.shape, made.label_dim, made.per_class) == (6, (3, 6, 6), 2, [3, 3])
    assert made.mean == pytest.approx(before.mean(), abs=1e-12)
    assert made.sigma_data == pytest.approx(before.sigma_data(), rel=1e-12)


@pytest.mark.parametrize("kind", ["out.zip", "out.npz"])
def test_vectors_as_labels_come_back(tmp_path, kind):
    vectors = [[0.1, -2.5], [1 / 3, 1e-7], [0.0, 3.0]]
    table = json.dumps({"labels": [[f"{i}.png", v] for i, v in enumerate(vectors)]}).encode()
    source = folder_of(
        tmp_path / "s", {f"{i}.png": png(noise(4, 5, seed=i)) for i in range(3)} | {"dataset.json": table}
    )
    made = data.prepare(source, tmp_path / kind)
    after = data.load(tmp_path / kind)
    assert np.array_equal(after.labels, np.float32(vectors)) and made.label_dim == 2 and made.per_class is None
    assert np.array_equal(after.values, data.load(source).values)


def test_the_layout_is_the_published_one_and_the_bytes_are_repeatable(tmp_path):
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    for path in (first, second):
        data.prepare("digits", path, max_images=1001)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    with zipfile.ZipFile(first) as archive:
        infos = archive.infolist()
        names = [i.filename for i in infos]
        table = json.loads(archive.read("dataset.json"))
    assert names[0] == "00000/img00000000.png" and names[1000:] == ["00001/img00001000.png", "dataset.json"]
    assert {(i.date_time, i.compress_type) for i in infos} == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}
    digits = data.load("digits")
    assert table["labels"] == [[n, int(k)] for n, k in zip(names, digits.labels[:1001], strict=False)]
    assert np.array_equal(data.load(first).values, digits.values[:1001])
    for path in (tmp_path / "a.npz", tmp_path / "b.npz"):
        data.prepare("digits", path, max_images=20)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["images"][..., 0], digits.values[:20, 0])


def test_compression_changes_the_size_alone(tmp_path):
    sizes = []
    for level in (0, 9):
        data.prepare("digits", tmp_path / f"{level}.zip", Resize((32, 32)), max_images=20, compress=level)
        sizes.append((tmp_path / f"{level}.zip").stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]
    assert data.load(tmp_path / "0.zip").fingerprint() == data.load(tmp_path / "9.zip").fingerprint()


def test_mnist_is_copied_to_the_pixel(tmp_path):
    source = shared("data/mnist-test.zip")
    data.prepare(source, tmp_path / "m.zip", max_images=200)
    with zipfile.ZipFile(source) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))[:200]
        pixels = np.stack([np.asarray(Image.open(archive.open(name))) for name in names])
        by_name = dict(json.loads(archive.read("dataset.json"))["labels"])
    copy = data.load(tmp_path / "m.zip")
    assert np.array_equal(copy.values[:, 0], pixels)
    assert copy.labels.tolist() == [by_name[name] for name in names]


@pytest.mark.parametrize("kind", ["out.zip", "out.npz", "out"])
def test_grey_among_colour_becomes_rgb_wherever_it_stands(tmp_path, kind):
    grey, colour = noise(4, 5, seed=1), noise(4, 5, 3, seed=2)
    source = folder_of(tmp_path / "s", {"a.png": png(grey), "b.png": png(colour), "c.png": png(grey)})
    assert data.prepare(source, tmp_path / kind).shape == (3, 4, 5)
    x = data.load(tmp_path / kind).values
    assert np.array_equal(x[0], np.stack([grey] * 3)) and np.array_equal(x[0], x[2])
    assert np.array_equal(x[1], colour.transpose(2, 0, 1))


def test_images_of_three_rows_are_not_taken_for_channels(tmp_path):
    x = noise(5, 3, 3, 4)
    np.save(tmp_path / "x.npy", x[..., :3])
    before = data.load(tmp_path / "x.npy")
    data.prepare(tmp_path / "x.npy", tmp_path / "y.npz")
    assert np.array_equal(data.load(tmp_path / "y.npz").values, before.values)


def test_float_arrays_are_copied_or_standardized(tmp_path):
    x = np.random.default_rng(0).normal([[[1.0], [-20.0]]], [[[3.0], [0.1]]], (50, 2, 7)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(50) % 4)
    made = data.prepare(tmp_path / "x.npz", tmp_path / "copy.npz")
    assert np.array_equal(data.load(tmp_path / "copy.npz").values, x)
    assert made.sigma_data == pytest.approx(x.astype(float).std(), rel=1e-12) and made.per_class == [13, 13, 12, 12]
    made = data.prepare(tmp_path / "x.npz", tmp_path / "z.npz", standardize=True, max_images=40)
    z = data.load(tmp_path / "z.npz")
    mean, std = x[:40].astype(float).mean(axis=(0, 2)), x[:40].astype(float).std(axis=(0, 2))
    assert np.allclose(z.values, (x[:40] - mean[:, None]) / std[:, None], atol=1e-6)
    assert made.sigma_data == pytest.approx(1, abs=1e-6) and np.array_equal(z.labels, np.arange(40) % 4)
    with np.load(tmp_path / "z.npz", allow_pickle=False) as stored:
        assert np.allclose(stored["mean"], mean, rtol=1e-12) and np.allclose(stored["std"], std, rtol=1e-12)


def test_shards_are_read_some_at_a_time_and_their_damage_is_named(tmp_path):
    x = noise(300, 4, 5)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, pixels in enumerate(x):
            for name, content in ((f"{i:04d}.png", png(pixels)), (f"{i:04d}.cls", str(i % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data.prepare(tmp_path / "x.tar", tmp_path / "x.zip")
    after = data.load(tmp_path / "x.zip")
    assert np.array_equal(after.values[:, 0], x) and after.labels.tolist() == [i % 3 for i in range(300)]
    content = (tmp_path / "x.tar").read_bytes()
    place = content.index(png(x[270])) + 33 + 10  # in the compressed pixels
    (tmp_path / "y.tar").write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    with pytest.raises(FormatError, match=r"0270\.png"):
        data.prepare(tmp_path / "y.tar", tmp_path / "y.zip")
    made = data.prepare(tmp_path / "y.tar", tmp_path / "y.zip", skip_bad=True)
    assert (made.count, made.skipped) == (299, 1)
    assert np.array_equal(data.load(tmp_path / "y.zip").values[:, 0], np.delete(x, 270, axis=0))


# What stops it


def damaged(tmp_path):
    good = png(noise(4, 4))
    return folder_of(
        tmp_path / "s",
        {
            "a/1.png": good,
            "a/2.png": good[:-30],
            "b/3.png": png(noise(4, 4, seed=3)),
            "b/4.bmp": b"BM",
            "b/5.png": good,
        },
    )


def test_unreadable_images_are_named_or_left_out(tmp_path):
    source = damaged(tmp_path)
    with pytest.raises(FormatError, match=r"b/4\.bmp: only PNG, JPEG and WebP"):
        data.prepare(source, tmp_path / "a.zip")
    (source / "b" / "4.bmp").rename(source / "b" / "4.png")
    with pytest.raises(FormatError, match=r"a/2\.png: damaged"):
        data.prepare(source, tmp_path / "a.zip")
    (source / "b" / "4.png").rename(source / "b" / "4.bmp")
    made = data.prepare(source, tmp_path / "a.zip", skip_bad=True)
    assert (made.count, made.skipped) == (3, 2) and "2.png" in made.reasons[0] and "4.bmp" in made.reasons[1]
    assert data.load(tmp_path / "a.zip").labels.tolist() == [0, 1, 1]
    only_bad = folder_of(tmp_path / "bad", {"x.png": b"no"})
    with pytest.raises(FormatError, match="none of 1 images can be read"):
        data.prepare(only_bad, tmp_path / "b.zip", skip_bad=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "bad", "s"]


def test_images_are_read_one_at_a_time(tmp_path):
    source = folder_of(tmp_path / "s", {"1.png": png(noise(4, 4)), "2.png": png(noise(4, 4)), "3.png": b"not reached"})
    assert data.prepare(source, tmp_path / "a.zip", max_images=2).count == 2


def test_transparency_and_sixteen_bits_are_refused_by_name(tmp_path):
    transparent = np.dstack([noise(4, 4, 3), np.full((4, 4), 9, np.uint8)])
    with pytest.raises(FormatError, match=r"t\.png: has transparent pixels"):
        data.prepare(folder_of(tmp_path / "t", {"t.png": png(transparent)}), tmp_path / "o.zip", Resize((2, 2)))
    with pytest.raises(FormatError, match=r"w\.png: 16 bits"):
        data.prepare(folder_of(tmp_path / "w", {"w.png": png(noise(4, 4).astype(np.uint16))}), tmp_path / "o.zip")


def test_mixed_sizes_need_a_resolution(tmp_path):
    source = folder_of(
        tmp_path / "s", {"1.png": png(noise(4, 6)), "2.png": png(noise(5, 6)), "3.png": png(noise(9, 9))}
    )
    with pytest.raises(FormatError, match=r"1\.png is 6x4, 2\.png is 6x5; .*--resolution"):
        data.prepare(source, tmp_path / "a.zip", skip_bad=True)
    assert not (tmp_path / "a.zip").exists()
    assert data.prepare(source, tmp_path / "a.zip", Resize((4, 4))).shape == (1, 4, 4)


@pytest.mark.parametrize("kind", ["out.zip", "out.npz", "out"])
def test_an_interruption_leaves_nothing(tmp_path, kind):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.prepare("digits", tmp_path / kind, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_comes_meanwhile_is_kept(tmp_path):
    def intrude(done, total):
        (tmp_path / "out.zip").write_text("mine")

    with pytest.raises(FileExistsError):
        data.prepare("digits", tmp_path / "out.zip", max_images=3, progress=intrude)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zip"] and (tmp_path / "out.zip").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": (0, 4)}, "resolution: got 0x4"),
        ({"resolution": (20_000, 4)}, "16,384 a side"),
        ({"crop": "centre"}, "unknown crop 'centre'; did you mean 'center'"),
        ({"resample": "nearest"}, "unknown filter 'nearest'"),
        ({"crop": "center-dhariwal"}, "square resolution"),
        ({"crop": "center-dhariwal", "resolution": (8, 4)}, "square resolution"),
    ],
)
def test_resizing_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        Resize(**options)


# The command


def test_the_command(capsys, tmp_path):
    source = classes_of_colour(tmp_path / "photos", side=9)
    out = tmp_path / "p.zip"
    code, text, _ = run(capsys, source, out, "--resolution", "4x6", "--filter", "box", "--crop", "none")
    assert code == 0 and "6 samples" in text and "(3, 6, 4)" in text and "2 classes of 3" in text
    assert f"next: elucidiff train {out} --out runs/p" in text
    code, text, _ = run(
        capsys, source, tmp_path / "q.npz", "--resolution=4", "--transform=center-crop-dhariwal", "--json"
    )
    assert code == 0 and json.loads(text)["shape"] == [3, 4, 4] and json.loads(text)["per_class"] == [3, 3]
    (source / "dog" / "0.png").write_bytes(b"no")
    code, text, _ = run(capsys, source, tmp_path / "r", "--skip-bad", "--max-images", 4, "--compress", 0)
    assert code == 0 and "1 could not be read" in text and "4 samples" in text and "1 to 3" in text


def test_wrong_use_gives_one_line_and_code_2(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    taken = tmp_path / "taken.zip"
    taken.write_text("mine")
    cases = [
        (("digits", taken), "would be overwritten"),
        (("digits", tmp_path / "o.png"), "expected a .zip, a .npz or a new folder"),
        (("digits", tmp_path / "o.zip", "--resolution", "64by64"), "WIDTHxHEIGHT such as 64x64"),
        (("digits", tmp_path / "o.zip", "--standardize"), "images of 256 levels"),
        ((tmp_path / "none", tmp_path / "o.zip"), "no such file"),
        ((tmp_path / "x.npy", tmp_path / "o.zip"), "only an .npz"),
        ((tmp_path / "x.npy", tmp_path / "o.npz", "--resolution", "4"), "cropped or resized"),
        ((tmp_path / "x.npy", tmp_path / "o.npz", "--standardize"), "channel 0 is constant"),
    ]
    for arguments, words in cases:
        code, _, err = run(capsys, *arguments)
        assert code == 2 and words in err and len(err.strip().splitlines()) <= 2, (arguments, err)
    assert taken.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["taken.zip", "x.npy"]
