"""The Inception-v3 of 2015: golden features, each peculiarity against its formula, and whose name is FID."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import shared
from elucidiff import files, metrics
from elucidiff.analysis import measures, score_samples
from elucidiff.cli.main import main
from elucidiff.cli.options import chosen_features
from elucidiff.data import Dataset, from_uint8
from elucidiff.errors import FormatError
from elucidiff.metrics import Inception, inception
from elucidiff.metrics import inception_network as net


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights by the rule of the golden features, from the names and shapes."""
    made = {}
    for i, (name, shape) in enumerate(sorted(net.published_shapes().items())):
        z = torch.from_numpy(np.random.default_rng([31, i]).standard_normal(shape).astype(np.float32))
        made[name] = z * math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1 * z
        if name.endswith("running_var"):
            made[name] = 1 + 0.1 * z.abs()
        elif name.endswith("bn.weight"):
            made[name] = 1 + 0.1 * z
    return made


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(tensors, path)
    return str(path)


def images(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


# --- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", net.LEVELS)
def test_golden_features(weights, level):
    golden = load_file(shared("data/golden/inception.safetensors"))
    with np.load(shared("data/cifar10-lossless-4000.npz"), allow_pickle=False) as file:
        cifar = torch.from_numpy(file["images"][:4]).permute(0, 3, 1, 2)
    for name, levels in (("cifar", cifar), ("large", golden["large.image"])):
        expected = golden[f"{name}.{level}"].double()
        found = Inception(weights, level).features(from_uint8(levels))
        assert found.dtype == torch.float64 and found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), name


def test_names_shapes_and_number_of_parameters():
    shapes = net.published_shapes()
    assert len(shapes) == 472 and len(net.InceptionNetwork().units()) == 94
    trained = {name: math.prod(s) for name, s in shapes.items() if "running" not in name}
    body = sum(n for name, n in trained.items() if not name.startswith("fc"))
    assert body == 21_785_568  # 23,834,568 with 1000 classes, less 2048 x 1000 + 1000
    assert sum(trained.values()) == body + 2049 * 1008
    golden = json.loads(shared("data/golden/inception.json").read_text())
    assert {name: tuple(s) for name, s in golden["tensors"].items()} == shapes


@pytest.mark.parametrize("level", net.LEVELS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 5, 9), (3, 1, 1), (1, 310, 299)])
def test_the_dimension_is_the_level_for_images_of_any_size(weights, level, channels, height, width):
    extractor = Inception(weights, level)
    assert extractor.dim((channels, height, width)) == level
    if level in (64, 2048) and height != 310:
        assert extractor.features(torch.zeros(1, channels, height, width)).shape == (1, level)


# --- the peculiarities, each against its formula in loops ----------------------------------------


@pytest.mark.parametrize(("height", "width", "side"), [(5, 8, 11), (9, 7, 4), (3, 3, 3), (1, 2, 5)])
def test_the_resize_is_linear_from_the_corner_without_antialiasing(height, width, side):
    x = np.random.default_rng(0).standard_normal((2, 3, height, width))
    expected = np.zeros((2, 3, side, side))
    for i in range(side):
        for j in range(side):
            (r, u), (c, v) = divmod(i * height, side), divmod(j * width, side)  # whole pixels, and the rest / side
            u, v, r_next, c_next = u / side, v / side, min(r + 1, height - 1), min(c + 1, width - 1)
            above = (1 - v) * x[..., r, c] + v * x[..., r, c_next]
            below = (1 - v) * x[..., r_next, c] + v * x[..., r_next, c_next]
            expected[..., i, j] = (1 - u) * above + u * below
    assert np.allclose(net.resized(torch.from_numpy(x), side).numpy(), expected, rtol=0, atol=1e-12)


def test_a_resize_to_the_same_size_changes_nothing_and_no_size_reads_beyond_the_picture():
    x = torch.from_numpy(images(1, size=299)).float()
    assert torch.equal(net.resized(x), x)
    for n in range(1, 700):
        ramp = net.resized(torch.arange(n, dtype=torch.float64).reshape(1, 1, 1, n).expand(1, 1, 2, n))
        assert ramp[0, 0, 0, -1] == pytest.approx(min(298 * n / 299, n - 1), rel=1e-12)


def convolved(x, unit, stride, above, left):
    """relu(w * x + b) of one image (C, H, W), zeros above, below, left and right: sums over positions."""
    w, b = unit.weight.detach().numpy(), unit.bias.detach().numpy()
    (_, height, width), (_, _, rows, columns) = x.shape, w.shape
    out_h, out_w = (height + 2 * above - rows) // stride + 1, (width + 2 * left - columns) // stride + 1
    out = np.tile(b[:, None, None], (1, out_h, out_w))
    for i in range(out_h):
        for j in range(out_w):
            for u in range(rows):
                for v in range(columns):
                    r, c = i * stride + u - above, j * stride + v - left
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += w[:, :, u, v] @ x[:, r, c]
    return np.maximum(out, 0)


def pooled(x, stride, margin, of):
    """`of` (a mean, a maximum) of the pixels of each 3x3 window that are in the picture."""
    _, height, width = x.shape
    out_h, out_w = ((n + 2 * margin - 3) // stride + 1 for n in (height, width))
    out = np.zeros((len(x), out_h, out_w))
    for i in range(out_h):
        for j in range(out_w):
            r, c = i * stride - margin, j * stride - margin
            out[:, i, j] = of(x[:, max(r, 0) : r + 3, max(c, 0) : c + 3], axis=(1, 2))
    return out


def block(*arguments, **options):
    made = net.Mixed(*arguments, **options).double()
    generator = torch.Generator().manual_seed(1)
    for p in made.parameters():
        nn.init.normal_(p, generator=generator)
    return made


@torch.no_grad()
def output(made, x):
    return made(torch.from_numpy(x)[None])[0].numpy()


def test_a_block_pads_each_axis_by_its_kernel_and_averages_without_the_padding():
    x = np.random.default_rng(2).standard_normal((3, 5, 6))
    chains = {"one": [(2, 1)], "seven": [(2, 1), (3, (1, 7)), (2, (7, 1))], "five": [(2, 5)]}
    made = block(3, chains, net._average(), 4)
    first = convolved(x, made.seven_1, 1, 0, 0)
    expected = [
        convolved(x, made.one, 1, 0, 0),
        convolved(convolved(first, made.seven_2, 1, 0, 3), made.seven_3, 1, 3, 0),
        convolved(x, made.five, 1, 2, 2),
        convolved(pooled(x, 1, 1, np.mean), made.branch_pool, 1, 0, 0),
    ]
    assert made.width == 10
    assert np.allclose(output(made, x), np.concatenate(expected), rtol=0, atol=1e-12)


def test_a_block_that_halves_has_no_padding_at_its_last_convolutions():
    x = np.random.default_rng(3).standard_normal((3, 7, 9))
    made = block(3, {"short": [(2, 3)], "long": [(2, 1), (3, 3), (2, 3)]}, nn.MaxPool2d(3, 2), halve=True)
    inner = convolved(convolved(x, made.long_1, 1, 0, 0), made.long_2, 1, 1, 1)
    expected = [
        convolved(x, made.short, 2, 0, 0),
        convolved(inner, made.long_3, 2, 0, 0),
        pooled(x, 2, 0, np.max),
    ]
    assert made.width == 7 and output(made, x).shape == (7, 3, 4)
    assert np.allclose(output(made, x), np.concatenate(expected), rtol=0, atol=1e-12)


def test_a_fork_ends_in_two_convolutions_of_the_same_maps_and_the_last_block_pools_the_maximum():
    x = np.random.default_rng(4).standard_normal((2, 4, 5))
    made = block(2, {"fork": [(3, 1), (2, [(1, 3), (3, 1)])]}, nn.MaxPool2d(3, stride=1, padding=1), 2)
    middle = convolved(x, made.fork_1, 1, 0, 0)
    expected = [
        convolved(middle, made.fork_2a, 1, 0, 1),
        convolved(middle, made.fork_2b, 1, 1, 0),
        convolved(pooled(x, 1, 1, np.max), made.branch_pool, 1, 0, 0),
    ]
    assert np.allclose(output(made, x), np.concatenate(expected), rtol=0, atol=1e-12)


def test_the_published_blocks_are_made_of_these():
    """Beside the golden features, and where those are absent."""
    stages, units = net.InceptionNetwork().stages, net.InceptionNetwork().units()
    for name, unit in units.items():
        rows, columns = unit.kernel_size
        valid = unit.stride == (2, 2) or name in ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
        assert unit.padding == ((0, 0) if valid else ((rows - 1) // 2, (columns - 1) // 2)), name
    halving = {"Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3", "Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"}  # fmt: skip
    assert {name for name, unit in units.items() if unit.stride == (2, 2)} == halving
    blocks = {name: m for stage in stages.values() for name, m in stage.named_children() if name.startswith("Mixed")}
    averaged = {name for name, m in blocks.items() if isinstance(m.pool, nn.AvgPool2d)}
    assert averaged == set(blocks) - {"Mixed_6a", "Mixed_7a", "Mixed_7c"}
    assert not any(blocks[name].pool.count_include_pad for name in averaged)
    assert (blocks["Mixed_7c"].pool.stride, blocks["Mixed_7c"].pool.padding) == (1, 1)


def test_batch_norm_is_folded_with_epsilon_a_thousandth(tensors):
    name = "Mixed_6c.branch7x7_2"
    unit = net.network_of(tensors, "rule").units()[name]
    part = {k.removeprefix(name + "."): t.double().numpy() for k, t in tensors.items() if k.startswith(name + ".")}
    x = np.random.default_rng(5).standard_normal((160, 2, 5))
    plain = unit.__class__(160, 160, (1, 7)).double()
    plain.weight.data, plain.bias.data = torch.from_numpy(part["conv.weight"]), torch.full((160,), 1e6).double()
    convolution = convolved(x, plain, 1, 0, 3) - 1e6  # the large bias: no ReLU yet
    columns = {k: v[:, None, None] for k, v in part.items() if k.startswith("bn.")}
    normed = (convolution - columns["bn.running_mean"]) / np.sqrt(columns["bn.running_var"] + 0.001)
    expected = np.maximum(columns["bn.weight"] * normed + columns["bn.bias"], 0)
    assert np.allclose(unit(torch.from_numpy(x)[None].float())[0].numpy(), expected, rtol=0, atol=1e-5)


# --- images --------------------------------------------------------------------------------------


def test_grey_images_are_read_as_colour_of_three_equal_channels(weights):
    grey, extractor = from_uint8(torch.from_numpy(images(2, 1))), Inception(weights)
    features = extractor.features(grey)
    assert torch.equal(features, extractor.features(grey.expand(-1, 3, -1, -1)))
    assert features.std() > 0 and not torch.allclose(features[0], features[1])


def test_samples_are_rounded_to_256_levels(weights):
    x, extractor = from_uint8(torch.from_numpy(images(2))).double(), Inception(weights, 192)
    features = extractor.features(x)
    assert torch.equal(features, extractor.features(x + 0.4 / 127.5)) and not x.add(0.4 / 127.5).equal(x)
    assert torch.equal(extractor.features(torch.full_like(x, 3.0)), extractor.features(torch.ones_like(x)))


@pytest.mark.parametrize("level", [192, 2048])
def test_features_do_not_depend_on_the_batch(weights, level):
    x, extractor = from_uint8(torch.from_numpy(images(6))), Inception(weights, level)
    features = extractor.features(x)
    for part in (slice(0, 1), slice(2, 5), slice(4, 6)):
        assert torch.equal(features[part], extractor.features(x[part]))


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_too(tensors, weights, tmp_path, zipped):
    path, x = tmp_path / "weights.pth", from_uint8(torch.from_numpy(images(1)))
    counted = tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(7)}
    torch.save(counted, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(Inception(str(path)).features(x), Inception(weights).features(x))
    assert chosen_features(str(path)) == Inception(str(path))


def test_the_hash_is_recorded_and_another_file_is_refused(weights, tmp_path):
    digest = files.sha256(files.Path(weights))
    made = Inception(weights, 768)
    assert made.sha256 == digest and str(made) == f"inception 768 {digest[:8]}"
    assert made.to_dict() == {
        "kind": "inception",
        "weights": weights,
        "level": 768,
        "sha256": digest,
        "published": False,
    }
    assert metrics.Features.from_dict(made.to_dict()) == made == Inception(weights, 768, sha256=digest.upper())
    assert made != Inception(weights, 192) and made == Inception(weights, 768, published=True)
    for given in (inception.PUBLISHED, digest[:8]):
        with pytest.raises(FormatError, match=f"is {digest}, not {given}"):
            Inception(weights, sha256=given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.bias"), r"it lacks fc.bias \(1 differences"),
        (lambda t: t.update({"fc.weight": torch.zeros(1000, 2048)}), r"fc.weight is \(1000, 2048\) where it is \(1008"),
        (lambda t: t.update({"AuxLogits.fc.bias": torch.zeros(3)}), "AuxLogits.fc.bias does not belong"),
        (lambda t: t["fc.bias"].fill_(math.nan), "fc.bias holds other than finite"),
        (lambda t: t.update({"fc.bias": torch.zeros(1008, dtype=torch.int64)}), "fc.bias holds other than finite"),
    ],
)
def test_weights_of_another_network_are_refused(tensors, change, message):
    changed = tensors | {"fc.bias": tensors["fc.bias"].clone()}
    change(changed)
    with pytest.raises(FormatError, match="a.pth: not the Inception-v3 of 2015, the FID's: " + message):
        net.network_of(changed, "a.pth")


def test_bad_arguments_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="level: got 1000; expected 64, 192, 768, 2048"):
        Inception(weights, 1000)
    with pytest.raises(FileNotFoundError, match="none.pth: no such file of weights; the published one is at https"):
        Inception(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(FormatError, match=r"text.pth: is none of these"):
        Inception(str(tmp_path / "text.pth"))
    for shape in ((2, 8, 8), (3, 64), (4,)):
        with pytest.raises(ValueError, match="'inception' read grey or RGB images"):
            Inception(weights).features(torch.zeros(1, *shape))


# --- whose name is FID ---------------------------------------------------------------------------


def test_only_the_last_level_of_the_published_weights_is_called_fid(weights, monkeypatch):
    own = Inception(weights)
    assert not own.is_fid and own.fd_name == metrics.Pyramid().fd_name == "Fréchet distance"
    assert own.replace(published=True).fd_name == "FID"
    assert own.replace(published=True, level=768).fd_name == "Fréchet distance"
    monkeypatch.setattr(inception, "PUBLISHED", own.sha256)
    assert own.fd_name == "FID" and own.replace(level=768).fd_name == "Fréchet distance"


def test_scores_have_the_name_and_the_hash(weights, monkeypatch):
    reference, real = (Dataset(images(6, seed=s), name="noise") for s in (1, 2))
    samples = from_uint8(torch.from_numpy(images(4, seed=3)))
    monkeypatch.setattr(measures, "frechet_distance", lambda a, b: 5.0)  # in 2048 dimensions it takes its seconds
    for extractor, name in ((Inception(weights, published=True), "FID"), (Inception(weights), "Fréchet distance")):
        (score,) = score_samples(samples, reference, real, metrics=["fd"], extractor=extractor)
        assert (score.name, score.features) == (name, f"inception 2048 {extractor.sha256[:8]}")


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_the_command_line(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.delenv("ELUCIDIFF_INCEPTION", raising=False)
    np.savez(tmp_path / "noise.npz", images=images(24))
    evaluate = ["evaluate", f"exact:{tmp_path / 'noise.npz'}", tmp_path / "noise.npz", "--num", "5", "--steps", "3"]
    wanted = ["--metrics", "kd", "--features", f"inception:{weights},level=64", "--json"]
    code, out, _ = run(capsys, *evaluate, *wanted)
    found = json.loads(out)
    assert code == 0 and found["features"] == Inception(weights, 64).to_dict()
    assert found["scores"][0]["features"] == str(Inception(weights, 64))
    for features, message in (
        ("inception", "inception:FILE, or FILE in ELUCIDIFF_INCEPTION"),
        (f"inception:{weights},level=65", "level: got 65"),
        (f"inception:{weights},sha256={inception.PUBLISHED}", "it is another file"),
        (f"inception:{weights},layer=64", "layer"),
        (tmp_path / "none.pth", "none.pth: no such file of weights"),
    ):
        code, out, err = run(capsys, *evaluate, "--features", features)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) <= 2, err
    monkeypatch.setenv("ELUCIDIFF_INCEPTION", weights)
    assert chosen_features("inception") == Inception(weights)
    assert chosen_features("inception:,published=true").is_fid
