"""Signals, images and volumes; the transformer; recomputed activations; precision, for every kind of network."""

import copy
import math

import pytest
import torch

from elucidiff.networks import ADM, DDPMPP, EDM2, MLP, NCSNPP, DiT
from elucidiff.networks.dit import DiTBlock, from_patches, positions, to_patches
from test_networks import explicit_attention, normal, randomise, silu

SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
UNETS = {
    "ddpmpp": DDPMPP(**SIZES),
    "ncsnpp": NCSNPP(**SIZES),
    "ncsnpp skip": NCSNPP(**SIZES, encoder="skip", decoder="skip"),
    "adm": ADM(**SIZES, head_channels=4, dropout=0.0),
    "edm2": EDM2(**SIZES, head_channels=4, logvar_channels=8),
}
ALL = UNETS | {"dit": DiT(width=24, depth=2, heads=2), "mlp": MLP(width=16, depth=2)}
unets = pytest.mark.parametrize("network", UNETS.values(), ids=UNETS)
every = pytest.mark.parametrize("network", ALL.values(), ids=ALL)


def built(network, shape, label_dim=3):
    return randomise(network.build(shape, label_dim).double())


def labels(n=2):
    return torch.eye(3, dtype=torch.float64)[:n]


# ------------------------------------------------------------------ one to three dimensions


@unets
@pytest.mark.parametrize("size", [(8,), (4, 8), (4, 2, 8)])
def test_mirrored_kernels_give_the_mirrored_output(network, size):
    """Every operation along the last axis commutes with turning it round, resampling included."""
    module = built(network, (2, *size))
    mirrored = copy.deepcopy(module)
    for parameter in mirrored.parameters():
        if parameter.ndim > 2:
            parameter.data = parameter.data.flip(-1)
    x, c_noise = normal(2, 2, *size), normal(2)
    F = module(x, c_noise, labels())
    assert F.shape == x.shape and F.abs().max() > 0.01
    torch.testing.assert_close(mirrored(x.flip(-1), c_noise, labels()), F.flip(-1), rtol=0, atol=1e-9)
    assert (module(x.flip(-1), c_noise, labels()) - F.flip(-1)).abs().max() > 1e-3


@unets
@pytest.mark.parametrize("axes", [(2, 3), (3, 4), (2, 4)])
def test_axes_of_a_volume_are_alike(network, axes):
    size = [4, 2, 8]
    turned_size = list(size)
    turned_size[axes[0] - 2], turned_size[axes[1] - 2] = size[axes[1] - 2], size[axes[0] - 2]
    module, turned = built(network, (1, *size)), built(network, (1, *turned_size))
    turned.load_state_dict(module.state_dict())
    for parameter in turned.parameters():
        if parameter.ndim > 2:
            parameter.data = parameter.data.transpose(*axes)
    x, c_noise = normal(2, 1, *size), normal(2)
    F = module(x, c_noise, labels()).transpose(*axes)
    assert F.abs().max() > 0.01
    torch.testing.assert_close(turned(x.transpose(*axes), c_noise, labels()), F, rtol=0, atol=1e-9)


@unets
@pytest.mark.parametrize("dims", [1, 2])
def test_a_network_in_more_dimensions_contains_the_one_in_fewer(network, dims):
    """An image that is one pixel high meets only the middle rows of the kernels."""
    network = network.replace(multipliers=(1,), attention=(8,))
    low, high = (2, *[8] * dims), (2, 1, *[8] * dims)
    module, larger = built(network, low), built(network, high)
    for small, large in zip(module.state_dict().values(), larger.state_dict().values(), strict=True):
        if large.ndim <= 2:
            large.copy_(small)
        elif isinstance(network, EDM2) and large.shape[2] == 3:  # three times the entries in ||w|| / sqrt(n)
            large.zero_()[:, :, 1] = small * math.sqrt(3)
        else:
            large[:, :, large.shape[2] // 2] = small
    x, c_noise = normal(2, *low), normal(2)
    F = module(x, c_noise, labels())
    assert F.abs().max() > 0.01
    torch.testing.assert_close(larger(x.unsqueeze(2), c_noise, labels()).squeeze(2), F, rtol=0, atol=1e-9)


@unets
def test_channels_of_images_are_free_and_sizes_may_change(network):
    module = built(network, (5, 4, 8))
    for size in [(4, 8), (8, 8), (2, 6)]:
        assert module(normal(2, 5, *size), normal(2), labels()).shape == (2, 5, *size)
    with pytest.raises(ValueError, match=r"this network takes \(batch, 5, height, width\)"):
        module(normal(2, 4, 4, 8), normal(2))
    for axes, size in [("length", (8,)), ("depth, height, width", (4, 4, 4))]:
        with pytest.raises(ValueError, match=rf"this network takes \(batch, 2, {axes}\)"):
            built(network, (2, *size))(normal(2, 3, *size), normal(2))
    with pytest.raises(ValueError, match="image of 7: 1 halvings need sides that are multiples of 2; pad it to 8"):
        built(network, (2, 8))(normal(2, 2, 7), normal(2))


@unets
def test_attention_is_where_the_larger_side_is_listed(network):
    def attending(shape):
        return {name.rpartition(".attention")[0] for name, _ in built(network, shape).named_modules() if "qkv" in name}

    encoder, decoder = "encoder.1.blocks.0", "decoder.0.blocks.1"
    everywhere = {encoder, "middle.0", decoder}
    if network.kind in ("adm", "edm2"):  # in all blocks of the decoder's level, not the last alone
        everywhere |= {"decoder.0.blocks.0"}
    assert attending((1, 8, 4)) == attending((1, 8)) == attending((1, 2, 8, 4)) == everywhere
    assert attending((1, 16, 4)) == {"middle.0"}


def test_the_skip_decoder_adds_the_outputs_of_all_levels():
    module = built(UNETS["ncsnpp skip"], (1, 8, 8))
    x, c_noise, seen = normal(2, 1, 8, 8), normal(2), {}
    hooks = [
        part.register_forward_hook(lambda _, inputs, y, name=name: seen.update({name: (inputs[0], y)}))
        for name, part in module.named_modules()
        if name in ("heads.0", "conv", "encoder.1.aux.skip", "encoder.1.down")
    ]
    F = module(x, c_noise)
    assert len(seen) == len(hooks) == 4
    wanted = seen["conv"][1] + module.image_up(seen["heads.0"][1])
    torch.testing.assert_close(F, wanted, rtol=0, atol=1e-12)
    assert torch.equal(seen["encoder.1.aux.skip"][0], module.encoder[1].aux.down(x))  # aux stays an image
    assert seen["encoder.1.aux.skip"][1].shape == seen["encoder.1.down"][1].shape


def test_the_residual_encoder_passes_its_sum_on():
    network = NCSNPP(**SIZES | {"multipliers": (1, 2, 2)})
    module = built(network, (1, 8, 8))
    sums, inputs = [], []

    def path(_, given, output):
        inputs.append(given[1])
        sums.append(output[0])

    def block(_, given):
        inputs.append(given[0])

    for level in module.encoder[1:]:
        level.aux.register_forward_hook(path)
        level.blocks[0].register_forward_pre_hook(block)
    x = normal(2, 1, 8, 8)
    module(x, normal(2))
    assert torch.equal(inputs[0], x)
    assert [id(t) for t in inputs[1:]] == [id(t) for t in (sums[0], sums[0], sums[1])]  # main, auxiliary, main


# ------------------------------------------------------------------ the transformer


def test_patches_are_those_of_unfold():
    x = normal(2, 3, 4, 6)
    tokens = to_patches(x, 2)
    torch.testing.assert_close(tokens, torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2), rtol=0, atol=0)
    for shape, patch in [((2, 3, 4, 6), 2), ((2, 1, 6), 3), ((2, 2, 2, 4, 6), 2), ((1, 2, 2, 2, 4, 2), 2)]:
        x = normal(*shape)
        grid = [n // patch for n in shape[2:]]
        assert torch.equal(from_patches(to_patches(x, patch), shape[1], grid, patch), x)


def test_positions_formula():
    got = positions([2, 3], 9)
    for token, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        wanted = [f(i * w) for i in (row, column) for f in (math.sin, math.cos) for w in (1, 10000**-0.5)]
        assert got[token].tolist() == pytest.approx([*wanted, 0], abs=1e-12)


def modulate(h, shift, scale):
    centred = h - h.mean(2, keepdim=True)
    return centred / (h.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def test_transformer_block_formula():
    block = randomise(DiTBlock(DiT(width=8, heads=2, mlp_ratio=3)))
    h, emb = normal(2, 5, 8), normal(2, 8, seed=1)
    a1, b1, g1, a2, b2, g2 = (linear(block.modulation, emb)[:, None, 8 * i : 8 * i + 8] for i in range(6))
    qkv = linear(block.qkv, modulate(h, a1, b1)).transpose(1, 2)
    wanted = h + g1 * linear(block.proj, explicit_attention(qkv, 2).transpose(1, 2))
    y = linear(block.linear1, modulate(wanted, a2, b2))
    y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
    wanted = wanted + g2 * linear(block.linear2, y)
    torch.testing.assert_close(block(h, emb), wanted, rtol=0, atol=1e-10)


def test_transformer_formula():
    module = built(DiT(width=24, depth=1, heads=2, patch=2), (3, 4, 6))
    x, c_noise = normal(2, 3, 4, 6), normal(2)
    emb = module.embedding(c_noise, labels())
    tokens = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    h = module.blocks[0](linear(module.linear_in, tokens) + positions([2, 3], 24), emb)
    shift, scale = linear(module.modulation, emb)[:, None, :24], linear(module.modulation, emb)[:, None, 24:]
    y = linear(module.linear_out, modulate(h, shift, scale)).transpose(1, 2)
    wanted = torch.nn.functional.fold(y, (4, 6), 2, stride=2)
    torch.testing.assert_close(module(x, c_noise, labels()), wanted, rtol=0, atol=1e-10)
    assert module(normal(2, 3, 8, 2), c_noise).shape == (2, 3, 8, 2)
    for shape, message in [((2, 3, 5, 6), "5 x 6: sides must be multiples of patch = 2"), ((2, 3, 4), "with 2 axes")]:
        with pytest.raises(ValueError, match=message):
            module(normal(*shape), c_noise)


def test_the_transformer_starts_as_zero_and_its_blocks_as_the_identity():
    module = DiT(width=24, depth=2, heads=2).build((1, 4, 4), 3).double()
    assert not module(normal(2, 1, 4, 4), normal(2), labels()).any()
    h = normal(2, 5, 24)
    assert torch.equal(module.blocks[0](h, silu(normal(2, 24))), h)
    for layer in (module.embedding.linear0, module.embedding.label):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2)


# ------------------------------------------------------------------ recomputed activations


@every
def test_recomputed_activations_change_neither_output_nor_gradients(network):
    network = network.replace(dropout=0.3, augment_dim=2)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = network.replace(checkpoint_activations=recompute).build((2, 4, 8), 3)
        randomised = {n: 0.3 * torch.randn(p.shape) for n, p in module.named_parameters()}
        module.load_state_dict(randomised, strict=False)
        module.train()
        torch.manual_seed(1)
        x = torch.randn(3, 2, 4, 8, requires_grad=True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: (saved.append(t.numel()), t)[1], lambda t: t
        ):
            F = module(x, torch.randn(3), torch.eye(3), torch.randn(3, 2))
        F.square().sum().backward()
        results.append((F, x.grad, sum(saved), [p.grad for p in module.parameters()]))
    plain, recomputed = results
    assert plain[0].abs().max() > 0.01
    assert torch.equal(plain[0], recomputed[0]) and torch.equal(plain[1], recomputed[1])
    for a, b in zip(plain[3], recomputed[3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert recomputed[2] < 0.7 * plain[2]  # what the graph holds between forward and backward


# ------------------------------------------------------------------ precision


@every
def test_gradients_are_those_of_finite_differences(network):
    """Holds in float64 only if no step on the way is taken in float32."""
    module = built(network, (1, 4, 4), 0).requires_grad_(False)
    weights = [
        p for n, p in module.named_parameters() if n.endswith(("affine.weight", "proj.weight", "linear_out.weight"))
    ]
    x = normal(2, 1, 4, 4).requires_grad_()
    first = weights[0].requires_grad_()

    def F(x, weight):
        return torch.func.functional_call(module, {names[id(first)]: weight}, (x, c_noise))

    names = {id(p): n for n, p in module.named_parameters()}
    c_noise = normal(2)
    assert torch.autograd.gradcheck(F, (x, first), fast_mode=True, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_agree(network, dtype):
    module = built(network, (2, 4, 8))
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype).double()  # the same weights in both
    x, c_noise = normal(4, 2, 4, 8).to(dtype), normal(4)
    exact = module(x.double(), c_noise)
    rough = module.to(dtype)(x, c_noise)
    assert rough.dtype == dtype
    error = (rough.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (2e-5 if dtype == torch.float32 else 0.1)


@every
def test_the_state_is_complete(network):
    """Another module with the same state is the same network: nothing that is drawn is left out."""
    a, b = (network.build((2, 4, 8), 3).double() for _ in range(2))
    randomise(a)
    b.load_state_dict(a.state_dict())
    b.eval()
    x, c_noise = normal(2, 2, 4, 8), normal(2)
    assert torch.equal(a(x, c_noise, labels()), b(x, c_noise, labels()))
    with torch.device("meta"):
        empty = network.build((2, 4, 8), 3).eval()
    empty.load_state_dict(a.state_dict(), assign=True)
    assert torch.equal(a(x, c_noise, labels()), empty(x, c_noise, labels()))
