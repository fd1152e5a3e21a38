"""EDM2: magnitude-preserving operations against their formulas, unit variance, forced weight normalisation."""

import math

import pytest
import torch

from elucidiff.networks import EDM2, normalize_weights
from elucidiff.networks.edm2 import MPBlock, MPEmbedding, Uncertainty
from elucidiff.networks.magnitude import (
    MPAttention,
    MPFourier,
    MPLayer,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weight,
    pixel_norm,
)
from elucidiff.networks.resampling import Downsample, Upsample
from test_networks import explicit_attention, halve, normal, silu


def double(module, seed=0, gain=None):
    """A module in float64 with weights that are not normalised, and gains as given."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for parameter in module.parameters():
        parameter.data = 3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        if parameter.ndim == 0 and gain is not None:
            parameter.data = torch.tensor(gain, dtype=torch.float64)
    return module.eval()


def small(shape=(2, 8, 8), label_dim=3, **fields):
    sizes = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "logvar_channels": 16}
    return EDM2(**sizes | fields).build(shape, label_dim)


def unit_rows(w):
    """Each output's weights over 1e-4 + their root mean square, entry by entry."""
    rows = [[v / (1e-4 + math.sqrt(sum(u * u for u in r) / len(r))) for v in r] for r in w.flatten(1).tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(w.shape)


def effective(layer, gain=1.0):
    n = layer.weight[0].numel()
    return gain * unit_rows(layer.weight) / math.sqrt(n)


def by_pixel(w, x):
    """A 1 x 1 convolution."""
    return torch.einsum("oc,bc...->bo...", w.flatten(1), x)


def convolve(w, x):
    return torch.nn.functional.conv2d(x, w, padding=w.shape[-1] // 2)


def hand_silu(x):
    return silu(x) / 0.596


def hand_sum(a, b, t):
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def hand_norm(x):
    return x / (1e-4 + (x**2).mean(1, keepdim=True).sqrt())


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


# ------------------------------------------------------------------ formulas, in float64


def test_normalize_formula():
    w = 3 * normal(4, 3, 2, 2)
    close(normalize_weight(w), unit_rows(w))
    x = normal(2, 5, 3, 4)
    close(pixel_norm(x), hand_norm(x))
    close(normalize(x, (3,)), x / (1e-4 + (x**2).mean(3, keepdim=True).sqrt()))
    assert not normalize_weight(torch.zeros(3, 4)).any()


def test_half_precision_norms_do_not_overflow():
    x = torch.full((1, 64, 2, 2), 3e4, dtype=torch.float16)  # the sum of squares is 5.8e10, float16 ends at 65504
    assert torch.equal(pixel_norm(x), torch.ones_like(x))


def test_mp_silu_formula():
    x = normal(100)
    close(mp_silu(x), hand_silu(x))
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = (-(grid**2) / 2).exp() / math.sqrt(2 * math.pi)
    assert torch.trapezoid(mp_silu(grid) ** 2 * density, grid).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_formula(t):
    a, b = normal(4, 5), normal(4, 5, seed=1)
    close(mp_sum(a, b, t), hand_sum(a, b, t))
    close(mp_sum(a, b[:1], t), hand_sum(a, b[:1], t))


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_mp_cat_formula(t):
    a, b = normal(2, 6, 3), normal(2, 2, 3, seed=1)
    K = math.sqrt(8 / ((1 - t) ** 2 + t**2))
    wanted = torch.cat([a * K * (1 - t) / math.sqrt(6), b * K * t / math.sqrt(2)], dim=1)
    close(mp_cat(a, b, t), wanted)
    # Unit mean square over all channels, and at t = 1/2 each side contributes half of it, however many channels.
    share = mp_cat(torch.ones(1, 6), torch.ones(1, 2), t).square()
    assert share.mean().item() == pytest.approx(1)
    assert share[0, 6:].sum().item() / 8 == pytest.approx(t**2 / ((1 - t) ** 2 + t**2))


def test_layer_formulas():
    linear = double(MPLayer(5, 3))
    x = normal(4, 5)
    close(linear(x, 0.7), x @ effective(linear, 0.7).T)
    for dims in (1, 2, 3):
        layer = double(MPLayer(2, 3, *[3] * dims))
        x = normal(2, 2, *[4] * dims)
        shifted = torch.nn.functional.pad(x, [1, 1] * dims)
        wanted = torch.zeros(2, 3, *[4] * dims, dtype=torch.float64)
        for offset in torch.cartesian_prod(*[torch.arange(3)] * dims).reshape(-1, dims).tolist():
            window = shifted[(..., *(slice(o, o + 4) for o in offset))]
            wanted += torch.einsum("oc,bc...->bo...", effective(layer)[(..., *offset)], window)
        close(layer(x), wanted)


def test_fourier_formula():
    layer = MPFourier(20_000).double()
    f, phase = layer.freqs, layer.phases
    assert f.std().item() == pytest.approx(2 * math.pi, rel=0.03)  # the 2 pi is in what is stored
    assert phase.min() >= 0 and phase.max() <= 2 * math.pi
    assert phase.std().item() == pytest.approx(2 * math.pi / math.sqrt(12), rel=0.03)
    got = layer(torch.tensor([0.3, -1.1], dtype=torch.float64))
    for row, c in zip(got.tolist(), (0.3, -1.1), strict=True):
        wanted = [math.sqrt(2) * math.cos(w * c + p) for w, p in zip(f.tolist(), phase.tolist(), strict=True)]
        assert row == pytest.approx(wanted, rel=0, abs=1e-10)
    assert got.square().mean().item() == pytest.approx(1, abs=0.02)


def test_embedding_formula():
    layer = double(MPEmbedding(6, 12, 4, 2))
    c_noise, labels, augment_labels = normal(3), normal(3, 4, seed=1), normal(3, 2, seed=2)
    noise = layer.fourier(c_noise) @ effective(layer.noise).T
    e = hand_sum(noise, 2 * labels @ effective(layer.label).T, 0.5)
    close(layer(c_noise, labels), hand_silu(e))
    close(layer(c_noise), hand_silu(hand_sum(noise, torch.zeros_like(noise), 0.5)))
    close(layer(c_noise, labels, augment_labels), hand_silu(e + augment_labels @ effective(layer.augment).T))
    plain = double(MPEmbedding(6, 12, 0, 0))
    close(plain(c_noise), hand_silu(plain.fourier(c_noise) @ effective(plain.noise).T))


@pytest.mark.parametrize(("heads", "head_channels"), [(1, 8), (2, 4)])
def test_attention_formula(heads, head_channels):
    layer = double(MPAttention(8, head_channels, 2, 0.3))
    x = normal(2, 8, 3, 5)
    qkv = by_pixel(effective(layer.qkv), x).flatten(2)
    d = 8 // heads
    by_head = qkv.reshape(2, heads, d, 3, 15)
    by_head = by_head / (1e-4 + (by_head**2).mean(2, keepdim=True).sqrt())  # each of q, k, v over its head's channels
    a = explicit_attention(by_head.reshape(2, 24, 15), heads)
    wanted = hand_sum(x, by_pixel(effective(layer.proj), a).reshape(x.shape), 0.3)
    close(layer(x), wanted)


def modulated(block, y, emb):
    c = 1 + emb @ effective(block.affine, block.gain.item()).T
    return convolve(effective(block.conv_out), hand_silu(y * c[..., None, None]))


def block_of(c_in, c_out, encodes, resample):
    return double(
        MPBlock(c_in, c_out, emb_channels=6, head_channels=4, dims=2, encodes=encodes, resample=resample), gain=0.7
    )


@pytest.mark.parametrize(("c_out", "resample"), [(8, None), (4, None), (4, Downsample())])
def test_encoder_block_formula(c_out, resample):
    block = block_of(4, c_out, True, resample)
    x, emb = normal(2, 4, 6, 4), normal(2, 6, seed=1)
    x_hat = halve(x) if resample else x
    x_hat = hand_norm(by_pixel(effective(block.skip), x_hat) if c_out != 4 else x_hat)
    y = modulated(block, convolve(effective(block.conv_in), hand_silu(x_hat)), emb)
    close(block(x, emb), hand_sum(x_hat, y, 0.3))


@pytest.mark.parametrize(("c_out", "resample"), [(8, None), (4, None), (4, Upsample())])
def test_decoder_block_formula(c_out, resample):
    block = block_of(4, c_out, False, resample)
    x, emb = normal(2, 4, 6, 4), normal(2, 6, seed=1)
    x_hat = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample else x
    y = modulated(block, convolve(effective(block.conv_in), hand_silu(x_hat)), emb)
    skip = by_pixel(effective(block.skip), x_hat) if c_out != 4 else x_hat
    close(block(x, emb), hand_sum(skip, y, 0.3))


def test_blocks_clip_at_256():
    block = block_of(4, 4, False, None)
    x, emb = normal(2, 4, 6, 4), normal(2, 6, seed=1)
    y = block(1e4 * x, emb)
    assert y.abs().max().item() == 256
    assert block(x, emb).abs().max().item() < 256


def test_uncertainty_formula():
    layer = double(Uncertainty(16))
    c_noise = normal(3)
    features = math.sqrt(2) * (c_noise[:, None] * layer.fourier.freqs + layer.fourier.phases).cos()
    close(layer(c_noise), features @ effective(layer.linear)[0])
    assert layer(torch.tensor(0.3)).shape == (1,)
    assert small(logvar_channels=0).uncertainty is None


def test_the_input_has_a_last_channel_of_ones_and_the_output_a_gain():
    module = double(small(label_dim=0), gain=0.5)
    x, seen = normal(2, 2, 8, 8), []
    module.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    F = module(x, torch.tensor(0.1))
    close(seen[0], torch.cat([x, torch.ones(2, 1, 8, 8, dtype=torch.float64)], dim=1))
    module.gain.data *= 3
    close(module(x, torch.tensor(0.1)), 3 * F)
    module.gain.data.zero_()
    assert not module(x, torch.tensor(0.1)).any()


# ------------------------------------------------------------------ magnitudes


def root_mean_square(x):
    return x.square().mean().sqrt().item()


def test_layers_keep_unit_variance():
    torch.manual_seed(0)
    x = torch.randn(64, 32, 8, 8)
    inner = (..., slice(1, -1), slice(1, -1))  # at the border zeros come in
    for scale in (1.0, 7.0):  # whatever the size of the weights
        for layer in (MPLayer(32, 48, 3, 3), MPLayer(32, 48, 1, 1)):
            layer.weight.data *= scale
            assert root_mean_square(layer(x)[inner]) == pytest.approx(1, abs=0.03)
    assert root_mean_square(mp_silu(x)) == pytest.approx(1, abs=0.01)
    assert root_mean_square(mp_sum(x, torch.randn_like(x), 0.3)) == pytest.approx(1, abs=0.01)
    assert root_mean_square(mp_cat(x, torch.randn(64, 5, 8, 8))) == pytest.approx(1, abs=0.01)
    assert root_mean_square(pixel_norm(5 * x)) == pytest.approx(1, abs=1e-3)
    c_noise = torch.randn(4096)
    e = MPLayer(64, 96)(MPFourier(64)(c_noise))
    assert root_mean_square(e) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("encodes", [True, False])
def test_a_block_keeps_unit_variance(encodes):
    torch.manual_seed(0)
    block = MPBlock(48, 64, emb_channels=64, head_channels=64, dims=2, encodes=encodes)
    with torch.no_grad():
        y = block(torch.randn(8, 48, 32, 32), torch.randn(8, 64))
    assert root_mean_square(y[..., 2:-2, 2:-2]) == pytest.approx(1, abs=0.03)


def test_all_blocks_keep_variance_at_initialisation():
    """Two effects are left: zeros at the borders, and attention, which averages values that are independent yet."""
    torch.manual_seed(0)
    module = EDM2(channels=64, multipliers=(1, 2), blocks=2, attention=(8,)).build((3, 16, 16), 10)
    measured = {}
    for name, part in module.named_modules():
        if isinstance(part, (MPBlock, MPEmbedding)) or name == "stem":
            part.register_forward_hook(lambda _, __, y, name=name: measured.update({name: root_mean_square(y)}))
    module.gain.data.fill_(1)
    x, labels = torch.randn(16, 3, 16, 16), torch.eye(10)[torch.arange(16) % 10]
    with torch.no_grad():
        F = module(x, torch.randn(16), labels)
    assert len(measured) == 2 + 5 + 2 + 7  # stem and embedding, encoder, middle, decoder
    assert {name: rms for name, rms in measured.items() if not 0.8 < rms < 1.1} == {}
    assert 0.75 < root_mean_square(F) < 1.1


# ------------------------------------------------------------------ forced weight normalisation


@pytest.mark.parametrize("training", [False, True])
def test_forward_changes_no_weight(training):
    module = double(small(dropout=0.1)).train(training)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    F = module(normal(2, 2, 8, 8), normal(2), torch.eye(3, dtype=torch.float64)[:2])
    F.square().sum().backward()
    module.uncertainty(normal(2)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_normalize_weights_is_the_formula_and_keeps_the_function():
    module = double(small())
    x, c_noise = normal(2, 2, 8, 8), normal(2)
    before, F = {n: t.clone() for n, t in module.state_dict().items()}, module(x, c_noise)
    module.normalize_weights()
    layers = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, MPLayer)}
    assert len(layers) > 20
    for name, tensor in module.state_dict().items():
        close(tensor, unit_rows(before[name]) if name in layers else before[name])
        if name in layers:  # 1e-4 short of 1, from the constant in the denominator
            rms = tensor.flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=2e-4)
    assert F.abs().max() > 0.1
    torch.testing.assert_close(module(x, c_noise), F, rtol=5e-3, atol=5e-3)


def test_normalize_weights_reaches_layers_anywhere():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), double(MPLayer(3, 4)))
    plain, weight = module[0].weight.clone(), module[1].weight.clone()
    normalize_weights(module)
    assert torch.equal(module[0].weight, plain)
    close(module[1].weight, unit_rows(weight))


def test_gradients_are_orthogonal_to_normalised_weights():
    """The function is blind to the length of a weight, so a step of the optimiser can only turn it."""
    module = double(small(label_dim=0))
    module(normal(2, 2, 8, 8), normal(2)).square().sum().backward()
    w, g = (t.flatten(1) for t in (module.stem.weight, module.stem.weight.grad))
    cosine = (w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1))
    assert g.norm(dim=1).min() > 1e-3
    assert cosine.abs().max() < 1e-3  # exactly 0 but for the 1e-4
