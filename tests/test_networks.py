"""Networks: the formulas of single layers, initial weights, the call, sizes, and errors."""

import json
import math

import pytest
import torch

from elucidiff.networks import ADM, DDPMPP, EDM2, MLP, NCSNPP, DiT, Network, for_shape
from elucidiff.networks.blocks import Attention, ResidualBlock, Style
from elucidiff.networks.embedding import (
    Fourier,
    LateLabelEmbedding,
    NoiseEmbedding,
    positional_embedding,
    positional_embedding_exclusive,
)
from elucidiff.networks.layers import Conv, Linear, group_norm, heads_of, kaiming
from elucidiff.networks.resampling import DownConv, Downsample, Upsample


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


# ------------------------------------------------------------------ single layers, in float64


def explicit_attention(qkv, heads):
    """softmax(q k^T / sqrt(d)) v, one head after the other, from (B, 3C, pixels) in the order head, channel, (q, k, v)."""
    d = qkv.shape[1] // 3 // heads
    outputs = []
    for h in range(heads):
        q, k, v = (qkv[:, 3 * d * h + part : 3 * d * (h + 1) : 3] for part in range(3))
        logits = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(d)
        weights = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
        outputs.append(torch.einsum("bij,bcj->bci", weights, v))
    return torch.cat(outputs, dim=1)


ADM_STYLE = Style(eps=1e-5, k=1.0, scale_shift=True, head_channels=4, resample_skips=False, init=kaiming)


@pytest.mark.parametrize(("style", "heads", "k"), [(Style(), 1, math.sqrt(0.5)), (ADM_STYLE, 2, 1)])
def test_attention_formula(style, heads, k):
    layer = randomise(Attention(8, style).double())
    x = normal(2, 8, 3, 5)
    n = normalised_groups(x, 2, style.eps, layer.norm).flatten(2)
    qkv = torch.einsum("oc,bcp->bop", layer.qkv.weight[:, :, 0, 0], n) + layer.qkv.bias[:, None]
    a = explicit_attention(qkv, heads)
    a = torch.einsum("oc,bcp->bop", layer.proj.weight[:, :, 0, 0], a) + layer.proj.bias[:, None]
    torch.testing.assert_close(layer(x), (x + a.reshape(x.shape)) * k, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "heads"), [(32, 1), (64, 1), (96, 1), (128, 2), (192, 3), (200, 2), (448, 7), (768, 12)]
)
def test_heads_have_at_least_64_channels(channels, heads):
    assert heads_of(channels, 64) == heads


def normalised_groups(x, groups, eps, layer):
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, unbiased=False, keepdim=True) + eps).sqrt()
    return g.reshape(x.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (32, 8), (96, 24), (128, 32), (256, 32), (384, 32), (144, 16)]
)
def test_group_norm_formula(channels, groups):
    x = 3 * normal(2, channels, 4, 5) + 1
    for eps in (1e-6, 1e-5):
        layer = randomise(group_norm(channels, eps))
        torch.testing.assert_close(layer(x), normalised_groups(x, groups, eps, layer), rtol=0, atol=1e-10)


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
@pytest.mark.parametrize("size", [(6,), (6, 8), (4, 6, 2)])
def test_resampling_formula(layer, rows, taps, size):
    x = normal(2, 3, *size)
    wanted = x
    for axis in range(2, x.ndim):  # one axis at a time: the filter is separable
        wanted = rows(wanted.transpose(0, axis), taps).transpose(0, axis)
    torch.testing.assert_close(layer(taps, len(size)).double()(x), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4, 5, 1)])
def test_fused_down_convolution_formula(taps):
    """The convolution sees zeros around the image, and the filter what it says there; the bias comes last."""
    layer = randomise(DownConv(2, 3, taps))
    x, size, margin = normal(2, 2, 6, 8), (6, 8), 8
    padded = torch.nn.functional.pad(x, [margin + 1] * 4)
    wide = sum(  # at positions -margin .. size + margin - 1
        torch.einsum(
            "oc,bchw->bohw",
            layer.weight[:, :, i, j],
            padded[:, :, i : i + size[0] + 2 * margin, j : j + size[1] + 2 * margin],
        )
        for i in range(3)
        for j in range(3)
    )
    p, f = (len(taps) - 1) // 2, torch.tensor(taps, dtype=torch.float64) / sum(taps)
    wanted = sum(
        f[a] * f[b] * wide[:, :, margin + a - p :: 2, margin + b - p :: 2][:, :, :3, :4]
        for a in range(len(taps))
        for b in range(len(taps))
    )
    wanted = wanted + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)
    apart = Downsample(taps).double()(torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(layer(x)[inside], apart[inside], rtol=0, atol=1e-10)


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


def test_exclusive_positional_embedding_formula():
    c_noise = torch.tensor([0.0, -1.55, 999.0], dtype=torch.float64)
    got = positional_embedding_exclusive(c_noise, 10)
    for row, c in zip(got.tolist(), c_noise.tolist(), strict=True):
        angles = [10000 ** (-i / 5) * c for i in range(5)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], rel=0, abs=1e-10)


def test_fourier_formula_and_its_frequencies():
    layer = Fourier(4000).double()
    f = layer.freqs.tolist()
    assert torch.tensor(f).std().item() == pytest.approx(16, rel=0.05)
    assert torch.tensor(f).mean().item() == pytest.approx(0, abs=5 * 16 / math.sqrt(2000))
    got = layer(torch.tensor([0.3, -1.1], dtype=torch.float64))
    for row, c in zip(got.tolist(), (0.3, -1.1), strict=True):
        angles = [2 * math.pi * w * c for w in f]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], rel=0, abs=1e-10)
    assert "freqs" in layer.state_dict()  # drawn once: they belong to the weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fourier_frequencies_stay_exact_in_half_precision(dtype):
    for network in (NCSNPP(channels=8, multipliers=(1,), blocks=1), EDM2(channels=8, multipliers=(1,), blocks=1)):
        module = network.build((1, 8, 8), 0)
        freqs = module.embedding.fourier.freqs.clone()
        module.to(dtype)
        assert module.stem.weight.dtype == dtype
        assert torch.equal(module.embedding.fourier.freqs, freqs)
        assert module.double().embedding.fourier.freqs.dtype == torch.float64


def test_late_label_embedding_formula():
    layer = randomise(LateLabelEmbedding(6, 12, label_dim=4, augment_dim=3))
    c_noise, labels, augment_labels = normal(2), normal(2, 4, seed=1), normal(2, 3, seed=2)
    e = positional_embedding_exclusive(c_noise, 6) + augment_labels @ layer.augment.weight.T
    e = silu(e @ layer.linear0.weight.T + layer.linear0.bias) @ layer.linear1.weight.T + layer.linear1.bias
    wanted = silu(e + labels @ layer.label.weight.T)  # no sqrt(label_dim)
    torch.testing.assert_close(layer(c_noise, labels, augment_labels), wanted, rtol=0, atol=1e-10)


def test_embedding_with_fourier_features_formula():
    layer = randomise(NoiseEmbedding(6, 12, label_dim=4, fourier=Fourier(6))).double()
    c_noise, labels = normal(2), normal(2, 4, seed=1)
    angle = 2 * math.pi * c_noise[:, None] * layer.fourier.freqs
    e = torch.cat([angle.sin(), angle.cos()], dim=1) + 2 * labels @ layer.label.weight.T + layer.label.bias
    for linear in (layer.linear0, layer.linear1):
        e = silu(e @ linear.weight.T + linear.bias)
    torch.testing.assert_close(layer(c_noise, labels), e, rtol=0, atol=1e-10)


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


def test_residual_block_formula_of_adm():
    """Scale first, then shift; the resampled input is its own skip; sums are not scaled."""
    block = randomise(ResidualBlock(8, 8, emb_channels=6, resample=Downsample(), style=ADM_STYLE))
    x, emb = normal(2, 8, 6, 4), normal(2, 6, seed=1)
    v = (emb @ block.affine.weight.T + block.affine.bias)[..., None, None]
    h = conv(block.conv_in, halve(silu(normalised_groups(x, 2, 1e-5, block.norm_in))))
    h = silu(normalised_groups(h, 2, 1e-5, block.norm_out) * (1 + v[:, :8]) + v[:, 8:])
    torch.testing.assert_close(block(x, emb), halve(x) + conv(block.conv_out, h), rtol=0, atol=1e-10)


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


def test_initial_weights_of_adm():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = ADM(channels=64, multipliers=(1,), blocks=1).build((3, 8, 8), 2000)
    block = module.encoder[0].blocks[0]
    for weight, fan_in in [(block.conv_in.weight, 9 * 64), (block.affine.weight, 256), (block.conv_in.bias, 9 * 64)]:
        assert weight.abs().max().item() <= 1 / math.sqrt(fan_in)  # sqrt(3 / fan in) of Kaiming's times sqrt(1/3)
        assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.25 if weight.ndim == 1 else 0.05)
    assert module.embedding.label.weight.std().item() == pytest.approx(1, rel=0.02)
    for zero in (block.conv_out, module.middle[0].attention.proj, module.conv):
        assert not zero.weight.any() and not zero.bias.any()


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


@pytest.mark.parametrize(
    "network",
    [
        DDPMPP(),
        DDPMPP(channels=32, attention=(), augment_dim=9),
        MLP(dropout=0.1),
        NCSNPP(encoder="skip", decoder="skip", taps=(1, 1)),
        ADM(doubled_output=True, checkpoint_activations=True),
        EDM2(logvar_channels=0),
        DiT(patch=4),
    ],
)
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
    ((1, 99), MLP(width=512)),
    ((2, 12), MLP(width=128)),
    ((1, 100), DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(50,))),
    ((1, 1024), DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=())),
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
        (lambda: DDPMPP().build((32,), 0), "ddpmpp takes signals .* use mlp instead"),
        (lambda: EDM2().build((3, 8, 8, 8, 8), 0), "edm2 takes signals"),
        (lambda: DDPMPP().build((3, 30), 0), "image of 30: 2 halvings .* pad it to 32"),
        (lambda: NCSNPP(encoder="residuals"), "encoder: got 'residuals'; expected one of standard, residual, skip"),
        (lambda: NCSNPP(decoder="residual"), "decoder: got 'residual'; expected one of standard, skip"),
        (lambda: NCSNPP(taps=(1, 2, 1)), "resampling filter"),
        (lambda: NCSNPP(channel_mult_noise=0), "channel_mult_noise: got 0"),
        (lambda: NCSNPP(channel_mult_emb=0), "channel_mult_emb: got 0"),
        (lambda: ADM(head_channels=0), "head_channels: got 0"),
        (lambda: ADM(channel_mult_emb=0), "channel_mult_emb: got 0"),
        (lambda: EDM2(channels=0), "channels: got 0; expected 1, 2, 3"),
        (lambda: EDM2(head_channels=0), "head_channels: got 0"),
        (lambda: EDM2(logvar_channels=-1), "logvar_channels: got -1"),
        (lambda: DiT(width=10, heads=4), "width: got 10 with 4 heads; expected a multiple"),
        (lambda: DiT(depth=0), "depth: got 0"),
        (lambda: DiT(patch=0), "patch: got 0"),
        (lambda: DiT(mlp_ratio=0), "mlp_ratio: got 0"),
        (lambda: DiT(width=4, heads=1).build((1, 8, 8, 8), 0), "3 axes need at least 6"),
        (lambda: DiT().build((8,), 0), "dit takes"),
        (lambda: DiT(patch=4).build((1, 6, 8), 0), "6 x 8: sides must be multiples of patch = 4; pad it to 8 x 8"),
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


def test_a_patched_network_is_the_inner_one_between_fold_and_unfold():
    config = DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=(), patch=2)
    module = config.build((3, 8, 12), 0).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Channel c p^2 + i p + j of the folded image is pixel (i, j) of each square of channel c.
    folded = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], dim=1)
    F, inner = module(x, torch.tensor(0.3)), module.inner(folded, torch.tensor(0.3))
    assert F.shape == x.shape and inner.abs().max() > 0.01
    assert torch.equal(F[:, 1, 1::2, 0::2], inner[:, 1 * 4 + 1 * 2 + 0])
    with pytest.raises(ValueError, match=r"patch: got 2 for samples of shape \(3, 7, 8\)"):
        config.build((3, 7, 8), 0)
