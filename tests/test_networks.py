"""Networks: the published numbers, the formulas of single layers, sizes, and errors."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elucidiff.errors import FormatError
from elucidiff.networks import DDPMPP, MLP, Network, for_shape, from_published
from elucidiff.networks.layers import (
    Attention,
    Conv,
    Downsample,
    Linear,
    NoiseEmbedding,
    ResidualBlock,
    Upsample,
    group_norm,
    positional_embedding,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "data" / "golden"


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(module, seed=0):
    """Weights of ordinary size everywhere: at initialisation most of a network hides behind gains of 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return module.eval()


def small_unet(shape=(1, 8, 8), label_dim=0, **fields):
    network = DDPMPP(**{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)} | fields)
    return randomise(network.build(shape, label_dim))


def parameters(network, shape, label_dim=0):
    with torch.device("meta"):
        return sum(p.numel() for p in network.build(shape, label_dim).parameters())


# ------------------------------------------------------------------ the published network


def golden_case(name):
    if not GOLDEN.is_dir():
        pytest.skip(f"golden data not found at {GOLDEN}")
    case = json.loads((GOLDEN / "networks.json").read_text())[name]
    tensors = load_file(GOLDEN / f"network_{name}.safetensors")
    weights = {k.removeprefix("weights."): v.float() for k, v in tensors.items() if k.startswith("weights.")}
    arguments = case["arguments"]
    network = DDPMPP(
        channels=arguments["model_channels"],
        multipliers=arguments["channel_mult"],
        blocks=arguments["num_blocks"],
        attention=arguments["attn_resolutions"],
        dropout=arguments.get("dropout", 0.0),
        augment_dim=arguments.get("augment_dim", 0),
    )
    side = arguments["img_resolution"]
    module = network.build((arguments["img_channels"], side, side), arguments["label_dim"]).eval()
    module.load_state_dict(from_published(weights))
    return module, tensors, case["parameters"]


def edm_coefficients(sigma, sigma_data=0.5):
    root = (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / root**2, sigma * sigma_data / root, 1 / root, sigma.log() / 4


def vp_coefficients(sigma, beta_d=19.9, beta_min=0.1, M=1000):
    t = ((beta_min**2 + 2 * beta_d * (sigma**2).log1p()).sqrt() - beta_min) / beta_d
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (M - 1) * t


@pytest.mark.parametrize("expected", ["D", "D_without_augment"])
@pytest.mark.parametrize(("name", "coefficients"), [("ddpmpp_edm", edm_coefficients), ("ddpmpp_vp", vp_coefficients)])
def test_golden(name, coefficients, expected):
    module, tensors, count = golden_case(name)
    assert sum(p.numel() for p in module.parameters()) == count
    c_skip, c_out, c_in, c_noise = coefficients(tensors["sigma"].double())
    c_skip, c_out, c_in = (c.reshape(-1, 1, 1, 1) for c in (c_skip, c_out, c_in))
    x = tensors["x"]
    augment_labels = tensors.get("augment_labels") if expected == "D" else None
    with torch.no_grad():
        F = module(c_in.float() * x, c_noise, tensors.get("labels"), augment_labels)
    D_golden = tensors[expected].double()
    assert worst(c_skip * x + c_out * F, D_golden) < 1e-5
    assert worst(F, (D_golden - c_skip * x) / c_out) < 2e-5


def worst(got, wanted):
    """The largest over images of max difference / max |wanted|."""
    return ((got - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1)).max().item()


def test_published_parameter_counts():
    cifar = DDPMPP(augment_dim=9)
    assert parameters(cifar, (3, 32, 32)) == 55_733_891
    assert parameters(cifar, (3, 32, 32), 10) == 55_735_299
    assert parameters(cifar.replace(multipliers=(1, 2, 2, 2)), (3, 64, 64)) == 61_805_571


@pytest.mark.parametrize(
    "name",
    [
        "model.enc.16x16_aux_conv.weight",
        "model.enc.8x8_block0.conv2.weight",
        "model.enc.8x8_conv.freqs",
        "model.map_noise.freqs",
        "model.dec.8x8_in2.conv0.weight",
        "u",
    ],
)
def test_a_name_of_another_network_is_an_error(name):
    with pytest.raises(FormatError, match="does not belong to a DDPM"):
        from_published({"model.enc.16x16_conv.weight": torch.zeros(1), name: torch.zeros(1)})


def test_an_output_at_every_level_is_an_error():
    names = ["dec.16x16_aux_conv.weight", "dec.8x8_aux_conv.weight"]
    with pytest.raises(FormatError, match="two of them have the same place"):
        from_published(dict.fromkeys(names, torch.zeros(1)))


# ------------------------------------------------------------------ single layers, in float64


def test_attention_formula():
    layer = randomise(Attention(8).double())
    x = normal(2, 8, 3, 5)
    n = layer.norm(x)
    qkv = torch.einsum("oc,bchw->bohw", layer.qkv.weight[:, :, 0, 0], n) + layer.qkv.bias[:, None, None]
    q, k, v = (qkv[:, part::3].flatten(2) for part in range(3))
    weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8)).softmax(dim=2)
    a = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    a = torch.einsum("oc,bchw->bohw", layer.proj.weight[:, :, 0, 0], a) + layer.proj.bias[:, None, None]
    torch.testing.assert_close(layer(x), (x + a) * math.sqrt(0.5), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (32, 8), (96, 24), (128, 32), (256, 32), (384, 32), (144, 16)]
)
def test_group_norm_formula(channels, groups):
    layer = randomise(group_norm(channels))
    x = 3 * normal(2, channels, 4, 5) + 1
    g = x.reshape(2, groups, -1)
    normalised = (g - g.mean(2, keepdim=True)) / (g.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    wanted = normalised.reshape(x.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)


def down_rows(x, taps):
    """y[i] = sum_a f[a] x[2 i + a - p] along the first axis."""
    n, p = x.shape[0], (len(taps) - 1) // 2
    y = torch.zeros(n // 2, *x.shape[1:], dtype=x.dtype)
    for i in range(n // 2):
        for a, f in enumerate(taps):
            if 0 <= 2 * i + a - p < n:
                y[i] += f / sum(taps) * x[2 * i + a - p]
    return y


def up_rows(x, taps):
    """y[2 i + a - p] += 2 f[a] x[i] along the first axis."""
    n, p = x.shape[0], (len(taps) - 1) // 2
    y = torch.zeros(2 * n, *x.shape[1:], dtype=x.dtype)
    for i in range(n):
        for a, f in enumerate(taps):
            if 0 <= 2 * i + a - p < 2 * n:
                y[2 * i + a - p] += 2 * f / sum(taps) * x[i]
    return y


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (3, 1), (1, 2, 3, 4, 5, 1)])
@pytest.mark.parametrize(("layer", "rows"), [(Downsample, down_rows), (Upsample, up_rows)])
def test_resampling_formula(layer, rows, taps):
    x = normal(2, 3, 6, 8)
    # One axis at a time: the filter is separable.
    wanted = rows(rows(x.permute(2, 3, 0, 1), taps).transpose(0, 1), taps).permute(2, 3, 1, 0)
    torch.testing.assert_close(layer(taps).double()(x), wanted, rtol=0, atol=1e-10)


def test_resampling_filters_are_checked():
    for taps in [(1,), (1, 2, 1), (1, -1)]:
        with pytest.raises(ValueError, match="even number of taps"):
            Downsample(taps)


def test_positional_embedding_formula():
    c_noise = torch.tensor([0.0, -1.55, 1.1, 999.0], dtype=torch.float64)
    got = positional_embedding(c_noise, 10)
    for row, c in zip(got.tolist(), c_noise.tolist(), strict=True):
        angles = [10000 ** (-i / 4) * c for i in range(5)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], rel=0, abs=1e-10)


def test_embedding_formula():
    layer = randomise(NoiseEmbedding(6, 12, label_dim=4, augment_dim=3))
    c_noise, labels, augment_labels = normal(2), normal(2, 4, seed=1), normal(2, 3, seed=2)
    e = positional_embedding(c_noise, 6) + 2 * labels @ layer.label.weight.T + layer.label.bias
    e = e + augment_labels @ layer.augment.weight.T
    for linear in (layer.linear0, layer.linear1):
        e = silu(e @ linear.weight.T + linear.bias)
    torch.testing.assert_close(layer(c_noise, labels, augment_labels), e, rtol=0, atol=1e-10)


def halve(x):
    return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def silu(x):
    return x * x.sigmoid()


def conv(layer, x):
    return torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding="same")


def test_residual_block_formula():
    block = randomise(ResidualBlock(4, 8, emb_channels=6, resample=Downsample()))
    x, emb = normal(2, 4, 6, 4), normal(2, 6, seed=1)
    h = (
        conv(block.conv_in, halve(silu(block.norm_in(x))))
        + (emb @ block.affine.weight.T + block.affine.bias)[..., None, None]
    )
    h = conv(block.conv_out, silu(block.norm_out(h)))
    wanted = (conv(block.skip, halve(x)) + h) * math.sqrt(0.5)
    torch.testing.assert_close(block(x, emb), wanted, rtol=0, atol=1e-10)


# ------------------------------------------------------------------ initial weights


@pytest.mark.parametrize(
    ("make", "fans", "gain"),
    [
        (lambda: Conv(64, 32, 3), 9 * 96, 1),
        (lambda: Linear(200, 100), 300, 1),
        (lambda: Attention(64).qkv, 4 * 64, math.sqrt(0.2)),
        (lambda: Attention(128).proj, 2 * 128, 1e-5),
        (lambda: ResidualBlock(64, 64, emb_channels=8).conv_out, 9 * 128, 1e-5),
        (lambda: DDPMPP(channels=64, blocks=1, multipliers=(1,)).build((3, 8, 8), 0).conv, 9 * 67, 1e-5),
        (lambda: MLP(width=128).build((64,), 0).linear_out, 192, 1e-5),
    ],
)
def test_initial_weights(make, fans, gain):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = make()
    bound = gain * math.sqrt(6 / fans)
    weight = layer.weight.detach()
    assert 0.98 * bound < weight.abs().max().item() <= 1.0001 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not layer.bias.any()


def test_initial_weights_follow_the_seed():
    def weights(seed):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = for_shape((1, 8, 8)).build((1, 8, 8), 3)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# ------------------------------------------------------------------ the call


def unet_and_images():
    return small_unet(label_dim=3, augment_dim=2), normal(4, 1, 8, 8)


def mlp_and_points():
    return randomise(MLP(width=16, depth=2, augment_dim=2).build((5,), 3)), normal(4, 5)


both = pytest.mark.parametrize("make", [unet_and_images, mlp_and_points])


@both
@pytest.mark.parametrize("labelled", [False, True])
def test_a_scalar_noise_level_equals_one_per_sample(make, labelled):
    module, x = make()
    labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]] if labelled else None
    c_noise = torch.tensor(0.37, dtype=torch.float64)
    expanded = module(x, c_noise.expand(4), labels)
    assert expanded.abs().max() > 0.01
    torch.testing.assert_close(module(x, c_noise, labels), expanded, rtol=0, atol=1e-12)
    torch.testing.assert_close(module(x, c_noise[None], labels), expanded, rtol=0, atol=1e-12)


def test_a_scalar_noise_level_is_embedded_once():
    module, x = unet_and_images()
    rows = []
    module.embedding.register_forward_hook(lambda _, __, emb: rows.append(emb.shape[0]))
    module(x, torch.tensor(0.1))
    module(x, torch.tensor([0.1]))
    module(x, torch.full((4,), 0.1))
    assert rows == [1, 1, 4]


@both
def test_samples_of_a_batch_do_not_mix(make):
    module, x = make()
    c_noise, labels, augment_labels = normal(4), normal(4, 3, seed=1), normal(4, 2, seed=2)
    alone = [module(x[i : i + 1], c_noise[i], labels[i : i + 1], augment_labels[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(module(x, c_noise, labels, augment_labels), torch.cat(alone), rtol=0, atol=1e-12)


@both
def test_absent_labels_are_zeros(make):
    module, x = make()
    c_noise = normal(4)
    absent = module(x, c_noise)
    zeros = module(x, c_noise, torch.zeros(4, 3), torch.zeros(4, 2))
    torch.testing.assert_close(absent, zeros, rtol=0, atol=1e-12)
    assert (module(x, c_noise, torch.ones(4, 3)) - absent).abs().max() > 1e-3
    assert (module(x, c_noise, None, torch.ones(4, 2)) - absent).abs().max() > 1e-3


@pytest.mark.parametrize(
    "make", [lambda: small_unet(dropout=0.3), lambda: randomise(MLP(width=16, dropout=0.3).build((1, 8, 8), 0))]
)
def test_dropout_follows_torchs_generator_in_training_only(make):
    module, x = make(), normal(4, 1, 8, 8)

    def output(seed):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return module(x, torch.tensor(0.1))

    assert torch.equal(output(1), output(2))
    module.train()
    assert torch.equal(output(1), output(1))
    assert not torch.equal(output(1), output(2))


def test_attention_levels_of_a_rectangle_go_by_its_larger_side():
    square, flat = small_unet((1, 8, 8)), small_unet((1, 4, 8))
    flat.load_state_dict(square.state_dict())
    x = normal(2, 1, 4, 8)
    assert torch.equal(flat(x, torch.tensor(0.1)), square(x, torch.tensor(0.1)))
    lists = {name.rpartition(".attention")[0] for name in square.state_dict() if ".attention" in name}
    assert lists == {"encoder.1.blocks.0", "middle.0", "decoder.0.blocks.1"}


def test_a_network_made_on_the_meta_device_is_filled_by_its_state():
    network = DDPMPP(channels=8, multipliers=(1, 2), blocks=1)
    whole = randomise(network.build((1, 8, 8), 2))
    with torch.device("meta"):
        empty = network.build((1, 8, 8), 2).eval()
    empty.load_state_dict(whole.state_dict(), assign=True)
    x = normal(2, 1, 8, 8)
    assert torch.equal(empty(x, torch.tensor(0.1)), whole(x, torch.tensor(0.1)))


@pytest.mark.parametrize("shape", [(2,), (5, 7), (1, 16), (2, 3, 4), (2, 3, 4, 5)])
def test_mlp_sees_any_shape_as_a_vector(shape):
    network = MLP(width=16, depth=2)
    module, flat = randomise(network.build(shape, 0)), randomise(network.build((math.prod(shape),), 0))
    x, c_noise = normal(3, *shape), normal(3, seed=1)
    F = module(x, c_noise)
    assert F.shape == x.shape
    assert torch.equal(F.flatten(1), flat(x.flatten(1), c_noise))


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize("network", [DDPMPP(), DDPMPP(channels=32, attention=(), augment_dim=9), MLP(dropout=0.1)])
def test_configurations_survive_json(network):
    assert Network.from_dict(json.loads(json.dumps(network.to_dict()))) == network


SIZES = [
    ((1, 8, 8), DDPMPP(channels=32, multipliers=(1, 2), blocks=1, attention=(4,))),
    ((1, 7, 7), DDPMPP(channels=32, multipliers=(2,), blocks=1, attention=(7,))),
    ((3, 16, 12), DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8,))),
    ((1, 28, 28), DDPMPP(channels=64, multipliers=(1, 2, 2), blocks=2, attention=(14,))),
    ((3, 32, 32), DDPMPP(channels=64, multipliers=(1, 2, 2), blocks=2, attention=(16,))),
    ((3, 30, 32), DDPMPP(channels=64, multipliers=(2, 2), blocks=2, attention=(16,))),
    ((3, 64, 64), DDPMPP(multipliers=(1, 2, 2, 2), attention=(16,))),
    ((3, 256, 256), DDPMPP(multipliers=(1, 1, 1, 2, 2, 2), attention=(16,))),
    ((3, 255, 255), DDPMPP(multipliers=(2,), attention=())),
    ((2,), MLP(width=128)),
    ((1, 100), MLP(width=512)),
    ((3, 8, 8, 8), MLP(width=1024)),
]


@pytest.mark.parametrize(("shape", "network"), SIZES)
def test_sizes_by_shape(shape, network):
    assert for_shape(shape) == network
    assert for_shape(shape, dropout=0.1) == network.replace(dropout=0.1)
    with torch.device("meta"):
        x = torch.empty(2, *shape)
        assert network.build(shape, 10)(x, torch.empty(()), torch.empty(2, 10)).shape == x.shape


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPMPP(channels=30), "channels: got 30; expected 4, 8, 12"),
        (lambda: DDPMPP(multipliers=()), "multipliers"),
        (lambda: DDPMPP(blocks=0), "blocks: got 0"),
        (lambda: DDPMPP(channel_mult_emb=0), "channel_mult_emb: got 0"),
        (lambda: DDPMPP(dropout=1.0), r"dropout: got 1.0; expected a probability in \[0, 1\)"),
        (lambda: DDPMPP(augment_dim=-1), "augment_dim: got -1"),
        (lambda: MLP(width=7), "width: got 7; expected 4, 6, 8"),
        (lambda: MLP(depth=0), "depth: got 0"),
        (lambda: for_shape((3, 0, 8)), "expected positive sizes"),
        (lambda: for_shape((2,), channels=8), "unknown field of MLP 'channels'"),
        (
            lambda: DDPMPP().build((3, 30, 32), 0),
            "30 x 32: 2 halvings need sides that are multiples of 4; pad it to 32 x 32",
        ),
        (lambda: DDPMPP().build((3, 32), 0), "takes images"),
        (lambda: MLP().build((), 0), "expected positive sizes"),
        (lambda: MLP().build((2,), -1), "label_dim: got -1"),
    ],
)
def test_configurations_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


c = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: net(x[:, :, :7], c), "7 x 8: 1 halvings need sides that are multiples of 2; pad it to 8 x 8"),
        (
            lambda net, x: net(x.expand(4, 3, 8, 8), c),
            r"got shape \(4, 3, 8, 8\); this network takes \(batch, 1, height",
        ),
        (lambda net, x: net(x[0], c), r"got shape \(1, 8, 8\)"),
        (lambda net, x: net(x, c, torch.zeros(4, 5)), r"labels: got shape \(4, 5\); expected \(batch, 3\)"),
        (lambda net, x: net(x, c, torch.zeros(4)), r"labels: got shape \(4,\)"),
        (
            lambda net, x: net(x, c, None, torch.zeros(4, 9)),
            r"augment_labels: got shape \(4, 9\); expected \(batch, 2\)",
        ),
    ],
)
def test_calls_that_do_not_fit_the_unet(call, message):
    with pytest.raises(ValueError, match=message):
        call(*unet_and_images())


@both
def test_one_noise_level_and_label_for_each_sample(make):
    module, x = make()
    with pytest.raises(ValueError, match="got 1 samples with 4 noise levels or labels; expected one each"):
        module(x[:1], c.expand(4))
    with pytest.raises(ValueError, match="got 4 samples with 2 noise levels or labels"):
        module(x, c, torch.zeros(2, 3))


def test_calls_that_do_not_fit_the_mlp():
    module = MLP(width=8).build((2, 3), 0)
    with pytest.raises(ValueError, match=r"got shape \(4, 6\); this network takes \(batch, 2, 3\)"):
        module(torch.zeros(4, 6), c)
    with pytest.raises(ValueError, match="this network takes none; leave labels out"):
        module(torch.zeros(4, 2, 3), c, torch.zeros(4, 10))
