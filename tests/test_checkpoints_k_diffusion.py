"""Checkpoints of k-diffusion, against a minimal module of our own with its names and its formulas."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import elucidiff as ed
from elucidiff.adapters import k_diffusion
from elucidiff.analysis import truncation_error
from elucidiff.errors import FormatError
from elucidiff.networks import KDiffusionV1
from test_checkpoints import normal, randomise, worst

# ------------------------------------------------------------------ what k-diffusion computes


class Norm(nn.Module):
    """Group norm by its definition, scaled and shifted by what a linear layer makes of the condition."""

    def __init__(self, emb, c):
        super().__init__()
        self.mapper = nn.Linear(emb, 2 * c)

    def forward(self, x, cond):
        b, c = x.shape[:2]
        scale, shift = self.mapper(cond)[:, :, None, None].split(c, dim=1)
        groups = x.reshape(b, max(1, c // 32), -1)
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
        return ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape) * (1 + scale) + shift


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class Gelu(nn.Module):
    def forward(self, x):
        return gelu(x)


class Residual(nn.Module):
    def __init__(self, emb, c_in, c_mid, c_out):
        super().__init__()
        conv_in, conv_out = nn.Conv2d(c_in, c_mid, 3, padding=1), nn.Conv2d(c_mid, c_out, 3, padding=1)
        self.main = nn.ModuleList(
            [Norm(emb, c_in), Gelu(), conv_in, nn.Identity(), Norm(emb, c_mid), Gelu(), conv_out, nn.Identity()]
        )
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x, cond):
        h = self.main[2](gelu(self.main[0](x, cond)))
        return self.skip(x) + self.main[6](gelu(self.main[4](h, cond)))


class SelfAttention(nn.Module):
    def __init__(self, emb, c):
        super().__init__()
        self.norm_in, self.qkv_proj, self.out_proj = Norm(emb, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x, cond):
        b, c, h, w = x.shape
        n = max(1, c // 64)
        q, k, v = (t.reshape(b, n, c // n, h * w) for t in self.qkv_proj(self.norm_in(x, cond)).split(c, dim=1))
        weight = torch.einsum("bnct,bncs->bnts", q, k).div(math.sqrt(c // n)).softmax(-1)
        return x + self.out_proj(torch.einsum("bnts,bncs->bnct", weight, v).reshape(x.shape))


def mirrored(i, n):
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def halving(n):
    """The matrix (n / 2, n) of the filter [1, 3, 3, 1] / 8 at every second pixel."""
    matrix = torch.zeros(n // 2, n, dtype=torch.float64)
    for i in range(n // 2):
        for a, tap in enumerate((1, 3, 3, 1)):
            matrix[i, mirrored(2 * i + a - 1, n)] += tap / 8
    return matrix


def doubling(n):
    """The matrix (2 n, n): a new pixel is 3/4 of the old one it lies in and 1/4 of that one's neighbour."""
    matrix = torch.zeros(2 * n, n, dtype=torch.float64)
    for i in range(2 * n):
        matrix[i, i // 2] += 3 / 4
        matrix[i, mirrored(i // 2 + (1 if i % 2 else -1), n)] += 1 / 4
    return matrix


class Resampled(nn.Module):
    def __init__(self, matrix, gain):
        super().__init__()
        self.matrix = matrix
        taps = torch.tensor([[1.0, 3.0, 3.0, 1.0]]) * gain / 8
        self.register_buffer("kernel", taps.T @ taps)

    def forward(self, x, cond):
        rows, columns = (self.matrix(n).to(x.dtype) for n in x.shape[2:])
        return torch.einsum("ih,jw,bchw->bcij", rows, columns, x)


class Same(nn.Module):
    def forward(self, x, cond):
        return x


class Fourier(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.register_buffer("weight", torch.zeros(c // 2, 1))


class Nets(nn.Module):
    """u_net: two lists of lists."""

    def __init__(self, depths, channels, attends, emb):
        super().__init__()
        self.d_blocks, self.u_blocks = nn.ModuleList(), nn.ModuleList()

        def parts(depth, c_in, c, c_out, attends):
            out = []
            for j in range(depth):
                last = c_out if j == depth - 1 else c
                out.append(Residual(emb, c if j else c_in, c, last))
                out += [SelfAttention(emb, last)] if attends else []
            return out

        for i, (depth, c, attending) in enumerate(zip(depths, channels, attends, strict=True)):
            above, last = channels[max(i - 1, 0)], i == len(depths) - 1
            down, up = (Resampled(halving, 1), Resampled(doubling, 2)) if i else (Same(), Same())
            self.d_blocks.append(nn.ModuleList([down, *parts(depth, above, c, c, attending)]))
            self.u_blocks.insert(0, nn.ModuleList([*parts(depth, c if last else 2 * c, c, above, attending), up]))


class ImageV1(nn.Module):
    def __init__(self, model):
        super().__init__()
        p, c, emb = model["patch_size"], model["input_channels"], model["mapping_out"]
        self.p, self.variance = p, model["has_variance"]
        self.timestep_embed = Fourier(emb)
        conditions = 9 * model["augment_wrapper"] + model.get("mapping_cond_dim", 0)
        if conditions:
            self.mapping_cond = nn.Linear(conditions, emb, bias=False)
        self.mapping = nn.Sequential(nn.Linear(emb, emb), Gelu(), nn.Linear(emb, emb), Gelu())
        self.proj_in = nn.Conv2d(c * p * p, model["channels"][0], 1)
        self.proj_out = nn.Conv2d(model["channels"][0], c * p * p + self.variance, 1)
        self.u_net = Nets(model["depths"], model["channels"], model["self_attn_depths"], emb)

    def forward(self, x, sigma, condition=None):
        angle = 2 * math.pi * (sigma.log() / 4)[:, None] * self.timestep_embed.weight[:, 0]
        e = torch.cat([angle.cos(), angle.sin()], dim=1)
        cond = self.mapping(e if condition is None else e + self.mapping_cond(condition))
        h, skips = self.proj_in(F.pixel_unshuffle(x, self.p)), []
        for level in self.u_net.d_blocks:
            for part in level:
                h = part(h, cond)
            skips.append(h)
        for i, level in enumerate(self.u_net.u_blocks):
            skip = skips.pop()
            h = torch.cat([h, skip], dim=1) if i else h
            for part in level:
                h = part(h, cond)
        h = self.proj_out(h)
        return F.pixel_shuffle(h[:, :-1] if self.variance else h, self.p)


class Wrapped(nn.Module):
    """The augmentation wrapper: its name is in the checkpoint."""

    def __init__(self, model):
        super().__init__()
        self.inner_model = model

    def forward(self, x, sigma, condition=None):
        zeros = x.new_zeros(len(x), 9)
        return self.inner_model(x, sigma, zeros if condition is None else torch.cat([zeros, condition], dim=1))


def D_of(theirs, x, sigma, sigma_data, **conditions):
    s = sigma[:, None, None, None]
    variance = s**2 + sigma_data**2
    with torch.no_grad():
        out = theirs(x / variance.sqrt(), sigma, **conditions)
    return sigma_data**2 / variance * x + s * sigma_data / variance.sqrt() * out


BASE = {
    "type": "image_v1", "input_channels": 3, "input_size": [16, 16], "patch_size": 1, "mapping_out": 32,
    "depths": [1, 2], "channels": [32, 64], "self_attn_depths": [False, True], "cross_attn_depths": None,
    "has_variance": False, "dropout_rate": 0.05, "augment_wrapper": True, "augment_prob": 0.12, "sigma_data": 0.5,
    "sigma_min": 0.01, "sigma_max": 80, "loss_config": "karras",
    "sigma_sample_density": {"type": "lognormal", "mean": -1.2, "std": 1.2},
}  # fmt: skip
CASES = {
    "two levels": {},
    "three levels": {"depths": [2, 1, 3], "channels": [32, 64, 128], "self_attn_depths": [True, False, True]},
    "patches": {"patch_size": 2, "sigma_data": 0.6162},
    "patches of 4, wide": {"patch_size": 4, "input_size": [16, 32], "input_channels": 1},
    "variance": {"has_variance": True},
    "variance of patches": {"has_variance": True, "patch_size": 2},
    "no augmentation": {"augment_wrapper": False, "sigma_data": 1.0},
    "conditions": {"mapping_cond_dim": 5},
    "conditions alone": {"mapping_cond_dim": 5, "augment_wrapper": False},
    "one level": {"depths": [2], "channels": [16], "self_attn_depths": [True]},
    "attention below": {"depths": [1, 1], "channels": [128, 192], "self_attn_depths": [True, True]},
}


def configured(**changes):
    return {"model": BASE | changes, "dataset": {"type": "imagefolder", "location": "data"}}


def made(model, seed=0):
    module = ImageV1(model)
    frequencies = torch.randn(model["mapping_out"] // 2, 1, generator=torch.Generator().manual_seed(seed))
    module.timestep_embed.weight.copy_(frequencies)
    return randomise(Wrapped(module) if model["augment_wrapper"] else module, seed)


def checkpoint(config, theirs, averaged):
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.95, 0.999))
    return {"config": config, "model": theirs.state_dict(), "model_ema": averaged.state_dict(),
            "opt": optimizer.state_dict(), "sched": {"last_epoch": 3, "_step_count": 4}, "gns_stats": None,
            "ema_sched": {"last_epoch": 3}, "epoch": 0, "step": 3}  # fmt: skip


def written(path, seed=1, **changes):
    """(a file in `path`, its configuration, the module, the averaged module)."""
    config = configured(**changes)
    theirs, averaged = made(config["model"], seed), made(config["model"], seed + 1)
    torch.save(checkpoint(config, theirs, averaged), path / "model_00000003.pth")
    return path / "model_00000003.pth", config, theirs, averaged


# ------------------------------------------------------------------ the same function


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", CASES)
def test_the_denoiser_is_k_diffusion_s(tmp_path, case, dtype, tolerance):
    path, config, theirs, averaged = written(tmp_path, **CASES[case])
    model = config["model"]
    classes = model.get("mapping_cond_dim", 0)
    x = normal(4, model["input_channels"], *model["input_size"]).to(dtype)
    sigma = torch.tensor([0.01, 0.3, 2.0, 80.0], dtype=dtype)
    x = x * (1 + sigma[:, None, None, None])
    vectors = normal(4, classes).to(dtype)
    for ema, module in ((True, averaged), (False, theirs)):
        denoiser = k_diffusion.load(path, ema=ema).to(dtype)
        assert denoiser.shape == (model["input_channels"], *model["input_size"]) and denoiser.label_dim == classes
        given, condition = ({"labels": vectors}, {"condition": vectors}) if classes else ({}, {})
        D, wanted = denoiser(x, sigma, **given), D_of(module.to(dtype), x, sigma, model["sigma_data"], **condition)
        for got, want in zip(D, wanted, strict=True):
            assert worst(got, want) < tolerance
        # a network that ignored its weights would be off
        assert worst(D[2], D_of(made(model, 7).to(dtype), x, sigma, model["sigma_data"], **condition)[2]) > 1e-2
        assert sum(p.numel() for p in denoiser.parameters()) == sum(p.numel() for p in module.parameters())
        assert denoiser.info["imported"] == {"from": "k-diffusion", "ema": ema, "sigma_min": 0.01, "sigma_max": 80.0}


# D[1, 0, 3, :4] of k-diffusion 0.1.1.post1 itself (PyPI, run once) with the weights that `made` draws.
GOLDEN = {
    "three levels": [1.285203017334, 0.912947638099, 0.430763001577, 0.534566979837],
    "variance of patches": [-1.775462043392, 0.277114605593, -1.483073743203, 0.284710657249],
    "conditions": [0.378278397573, 0.178943872604, 0.206919638697, -0.010657431047],
}


@pytest.mark.parametrize("case", GOLDEN)
def test_what_k_diffusion_itself_computed(tmp_path, case):
    path, config, *_ = written(tmp_path, **CASES[case])
    classes = config["model"].get("mapping_cond_dim", 0)
    denoiser = k_diffusion.load(path, ema=False).double()
    labels = {"labels": normal(2, classes).double()} if classes else {}
    D = denoiser(normal(2, *denoiser.shape).double(), torch.tensor([0.3, 2.0]), **labels)
    torch.testing.assert_close(D[1, 0, 3, :4], torch.tensor(GOLDEN[case], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "fields", "parameters"),  # as k-diffusion 0.1.1.post1 counts its configurations of CIFAR-10 and MNIST
    [
        ((3, 32, 32), {}, 66_121_731),
        ((1, 28, 28), {"widths": (128, 128, 256), "attends": (False, False, True)}, 19_598_849),
    ],
)
def test_the_published_sizes(shape, fields, parameters):
    with torch.device("meta"):
        module = KDiffusionV1(augment_dim=9, **fields).build(shape, 0)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_augment_labels_are_zero_unless_given(tmp_path):
    path, _, _, averaged = written(tmp_path)
    denoiser, x, sigma = (
        k_diffusion.load(path).double(),
        normal(2, 3, 16, 16).double(),
        torch.tensor([0.5, 2.0]).double(),
    )
    labels = normal(2, 9).double()
    torch.testing.assert_close(denoiser(x, sigma), denoiser(x, sigma, augment_labels=0 * labels), rtol=0, atol=1e-12)
    wanted = D_of(averaged.double().inner_model, x, sigma, 0.5, condition=labels)
    got = denoiser(x, sigma, augment_labels=labels)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert (got - denoiser(x, sigma)).abs().max() > 1e-2


def test_the_variance_s_weights_do_not_matter(tmp_path):
    path, config, theirs, averaged = written(tmp_path, has_variance=True, patch_size=2)
    x, sigma = normal(2, 3, 16, 16), torch.tensor([0.5, 2.0])
    before = k_diffusion.load(path)(x, sigma)
    with torch.no_grad():
        averaged.inner_model.proj_out.weight[-1].add_(5)
    torch.save(checkpoint(config, theirs, averaged), tmp_path / "other.pth")
    assert torch.equal(k_diffusion.load(tmp_path / "other.pth")(x, sigma), before)


# ------------------------------------------------------------------ a model of ours from then on


CHANGES = {
    "small": {},
    "variance of patches": {"has_variance": True, "patch_size": 2},
    "classes": {"mapping_cond_dim": 5},
}


@pytest.mark.parametrize("case", CHANGES)
def test_it_samples_is_analysed_and_survives_saving(tmp_path, case):
    path, *_ = written(tmp_path, **CHANGES[case])
    denoiser = ed.load(path)
    sampler = ed.EDM.sampler.replace(steps=4)
    one, other = (ed.sample(denoiser, sampler, seeds=[0, 1]).x for _ in range(2))
    assert torch.equal(one, other) and bool(one.isfinite().all())
    errors = truncation_error(denoiser, sampler, seeds=[0, 1], accuracy=0.2)
    assert errors.error[:-1].min() > 0 and bool(errors.error.isfinite().all())
    ed.save(denoiser, tmp_path / "native")
    again = ed.load(tmp_path / "native")
    assert again.info == denoiser.info and again.network_config == denoiser.network_config
    before, after = denoiser.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(ed.sample(again, sampler, seeds=[0, 1]).x, one)


@pytest.mark.parametrize("case", CHANGES)
def test_fine_tuning_lowers_the_loss(tmp_path, case):
    """Adam on four images lowers the loss of Eq. 8 on the same images, noise and levels; without dropout."""
    path, *_ = written(tmp_path, **CHANGES[case])
    denoiser = ed.load(path).requires_grad_(True)
    y = torch.rand(4, *denoiser.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(4) if denoiser.label_dim else None

    def loss():
        generator = torch.Generator().manual_seed(1)
        return ed.loss(denoiser, y, ed.EDM.objective, labels=labels, generator=generator).mean()

    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    first = float(loss().detach())
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.9 * first


def test_dropout_is_for_training_only(tmp_path):
    path, *_ = written(tmp_path, dropout_rate=0.5, depths=[1, 1], self_attn_depths=[True, True])
    denoiser, x = ed.load(path), normal(2, 3, 16, 16)
    assert denoiser.network_config.dropout == 0.5
    assert torch.equal(denoiser(x, 1.0), denoiser(x, 1.0))
    denoiser.train()
    torch.manual_seed(0)
    assert not torch.equal(denoiser(x, 1.0), denoiser(x, 1.0))


def test_recomputed_activations_give_the_same_gradients(tmp_path):
    path, *_ = written(tmp_path)
    plain = k_diffusion.load(path).double().requires_grad_(True)
    config = plain.network_config.replace(checkpoint_activations=True)
    other = ed.Preconditioned(config, plain.preconditioning, shape=plain.shape).double().eval()
    other.load_state_dict(plain.state_dict())
    x = normal(2, 3, 16, 16).double()
    for denoiser in (plain, other):
        denoiser(x, 0.7).square().sum().backward()
    pairs = list(zip(plain.parameters(), other.parameters(), strict=True))
    assert all((a.grad is None and b.grad is None) or torch.allclose(a.grad, b.grad, rtol=1e-10) for a, b in pairs)
    assert sum(a.grad is not None for a, _ in pairs) > 20


# ------------------------------------------------------------------ a network of any rank


@pytest.mark.parametrize("size", [(8,), (8, 16), (8, 8, 8)])
@pytest.mark.parametrize("patch", [1, 2])
def test_mirrored_kernels_give_the_mirrored_output(size, patch):
    """Every operation along the last axis commutes with turning it round, patches and resampling's borders included."""
    network = KDiffusionV1(widths=(8, 16), depths=(1, 2), attends=(True, True), mapping=16, patch=patch)
    module = randomise(network.build((2, *size), 3).double())
    turned = copy.deepcopy(module)
    for name, p in turned.named_parameters():
        p.data = p.data.flip(-1) if p.ndim > 2 else p.data
        for layer, axis in (("stem.weight", 1), ("conv.weight", 0), ("conv.bias", 0)):
            if name == layer:  # channels of a patch: (2, patch, .., patch)
                split = p.data.unflatten(axis, (2, *[patch] * len(size)))
                p.data = split.flip(axis + len(size)).reshape(p.shape)
    x, c_noise, labels = normal(2, 2, *size).double(), normal(2).double(), torch.eye(3).double()[:2]
    out = module(x, c_noise, labels)
    assert out.shape == x.shape and (module(x.flip(-1), c_noise, labels) - out.flip(-1)).abs().max() > 1e-3
    torch.testing.assert_close(turned(x.flip(-1), c_noise, labels), out.flip(-1), rtol=0, atol=1e-9)


def test_one_level_for_the_batch_is_that_level_for_each():
    module = randomise(
        KDiffusionV1(widths=(8, 16), depths=(1, 1), attends=(False, True), mapping=16).build((1, 8, 8), 0)
    )
    x, c = normal(3, 1, 8, 8), torch.tensor(0.3)
    torch.testing.assert_close(module(x, c), module(x, c.expand(3)))


def test_a_new_module_starts_as_zero_and_its_frequencies_have_unit_variance():
    torch.manual_seed(0)
    module = KDiffusionV1(widths=(8,), depths=(1,), attends=(True,), mapping=2048, augment_dim=9).build((1, 4, 4), 2)
    assert module(normal(1, 1, 4, 4), torch.tensor(0.1)).abs().max() == 0
    assert 0.9 < module.embedding.fourier.freqs.std() < 1.1
    W = module.embedding.linear0.weight[:64]
    torch.testing.assert_close(W @ W.T, torch.eye(64), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (32,)}, "got 1, 3 and 3 levels"),
        ({"widths": (128, 250, 512)}, "multiples of 32"),
        ({"widths": (128, 160, 512), "attends": (False, True, True)}, None),
        ({"widths": (128, 224, 512), "attends": (False, True, True)}, "with attention"),
        ({"depths": (2, 0, 4)}, "depths"),
        ({"mapping": 33}, "mapping"),
        ({"patch": 0}, "patch"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    if message is None:
        assert KDiffusionV1(**fields).widths == fields["widths"]
        return
    with pytest.raises(ValueError, match=message):
        KDiffusionV1(**fields)


def test_shapes_and_labels_that_do_not_fit():
    network = KDiffusionV1(widths=(8, 8), depths=(1, 1), attends=(False, False), mapping=8, patch=2)
    for shape, message in (((1, 6, 8), "multiples"), ((1, 7, 8), "multiples of 4, patch = 2"), ((1, 4, 4), "at least 8"),
                           ((8,), "signals"), ((1, 8, 8, 8, 8), "signals")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            network.build(shape, 0)
    module = network.build((1, 8, 8), 0)
    for x, kwargs, message in ((normal(1, 2, 8, 8), {}, "this network takes"), (normal(1, 1, 8, 6), {}, "multiples"),
                               (normal(1, 1, 8, 8), {"labels": torch.ones(1, 2)}, "takes none"),
                               (normal(1, 1, 8, 8), {"augment_labels": torch.ones(1, 9)}, "takes none")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            module(x, torch.tensor(0.1), **kwargs)
    with pytest.raises(ValueError, match="one each"):
        module(normal(3, 1, 8, 8), torch.zeros(2))


# ------------------------------------------------------------------ where things lie


def test_where_the_configuration_is_found(tmp_path):
    config = configured()
    theirs, averaged = made(config["model"], 1), made(config["model"], 2)
    x = normal(1, 3, 16, 16)
    wanted = D_of(averaged, x, torch.tensor([2.0]), 0.5)
    without = checkpoint(config, theirs, averaged)
    del without["config"]
    path = tmp_path / "model.pth"
    torch.save(without, path)
    for load in (ed.load, k_diffusion.load):
        with pytest.raises(FormatError, match="model.pth: has no configuration, and none lies beside it; give it"):
            load(path)
    assert worst(k_diffusion.load(path, config)(x, 2.0), wanted) < 1e-5
    (tmp_path / "somewhere.json").write_text(json.dumps(config))
    assert worst(k_diffusion.load(path, tmp_path / "somewhere.json")(x, 2.0), wanted) < 1e-5
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["another project's"]}))
    with pytest.raises(FormatError, match="none lies beside"):
        ed.load(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert worst(ed.load(path)(x, 2.0), wanted) < 1e-5
    (tmp_path / "model.json").write_text(json.dumps(configured(sigma_data=1.0)))
    assert ed.load(path).preconditioning.sigma_data == 1.0
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(FormatError, match="model.json: is no configuration"):
        ed.load(path)
    with pytest.raises(FileNotFoundError):
        k_diffusion.load(path, tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        k_diffusion.load(tmp_path / "absent.pth")


def test_slim_checkpoints_in_half_precision(tmp_path):
    """A safetensors file has the averaged weights alone, and the configuration in its metadata."""
    config = configured()
    averaged = made(config["model"], 2).half()
    state = {name: tensor.contiguous() for name, tensor in averaged.state_dict().items()}
    save_file(state, tmp_path / "slim.safetensors", metadata={"config": json.dumps(config, indent=4)})
    denoiser, x = ed.load(tmp_path / "slim.safetensors"), normal(1, 3, 16, 16)
    assert all(p.dtype == torch.float32 for p in denoiser.parameters())
    assert worst(denoiser(x, 2.0), D_of(averaged.float(), x, torch.tensor([2.0]), 0.5)) < 1e-5
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(FormatError, match="has no configuration"):
        ed.load(tmp_path / "bare.safetensors")


def test_bare_parallel_and_compiled_state_dicts(tmp_path):
    config = configured()
    theirs = made(config["model"], 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    x = normal(1, 3, 16, 16)
    wanted = D_of(theirs, x, torch.tensor([2.0]), 0.5)
    for prefix in ("", "module.", "_orig_mod.module."):
        torch.save({prefix + k: v for k, v in theirs.state_dict().items()}, tmp_path / "state.pth")
        denoiser = ed.load(tmp_path / "state.pth")
        assert worst(denoiser(x, 2.0), wanted) < 1e-5 and denoiser.info["imported"]["ema"] is False


def test_defaults_are_k_diffusion_s(tmp_path):
    """A configuration may leave out what has a default: sigma_data is 1, and the wrapper is there."""
    left_out = ("patch_size", "has_variance", "augment_wrapper", "sigma_data", "dropout_rate", "cross_attn_depths")
    config = configured(sigma_data=1.0)
    averaged = made(config["model"], 2)
    brief = {"model": {k: v for k, v in config["model"].items() if k not in left_out}}
    torch.save(checkpoint(brief, made(config["model"]), averaged), tmp_path / "x.pth")
    x = normal(1, 3, 16, 16)
    assert worst(ed.load(tmp_path / "x.pth")(x, 2.0), D_of(averaged, x, torch.tensor([2.0]), 1.0)) < 1e-5


# ------------------------------------------------------------------ what is not read


def edited(edit, **changes):
    config = configured(**changes)
    module = made(config["model"])
    given = checkpoint(config, module, module)
    given["model_ema"] = dict(given["model_ema"])
    edit(given, given["model_ema"], given["config"]["model"])
    return given


PRE = "inner_model."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, s, m: m.update(type="image_transformer_v2"), "is an hourglass transformer .*supported is image_v1"),
        (lambda c, s, m: s.update({PRE + "down_levels.0.0.w": torch.zeros(1)}), "is an hourglass transformer"),
        (lambda c, s, m: m.update(type="image_v7"), "of type .*image_v7.*; supported is image_v1"),
        (lambda c, s, m: m.update(skip_stages=1), "skip_stages = 1, stages that are left out; not supported"),
        (lambda c, s, m: m.update(cross_cond_dim=768), "cross-attention; not supported"),
        (lambda c, s, m: m.update(unet_cond_dim=3), "an image as a condition; not supported"),
        (lambda c, s, m: s.pop(PRE + "proj_in.bias"), "stem.bias is missing"),
        (lambda c, s, m: s.pop(PRE + "u_net.d_blocks.1.0.kernel"), "d_blocks.1.0.kernel is missing"),
        (lambda c, s, m: s.update({PRE + "u_net.u_blocks.0.4.kernel": torch.ones(4, 4)}), r"is not the filter \[1, 3"),
        (lambda c, s, m: s.update({PRE + "extra.weight": torch.zeros(1)}), "extra.weight has no place"),
        (lambda c, s, m: s.update({"proj_in.bias": torch.zeros(32)}), "two of its tensors have the same place"),
        (lambda c, s, m: s.update({PRE + "extra.weight": torch.zeros(0, 2**40)}), "extra.weight .* is empty"),
        (lambda c, s, m: m.update(patch_size=2), "stem.weight has shape .*, not"),
        (lambda c, s, m: m.update(has_variance=True), "conv.* has shape"),
        (lambda c, s, m: m.update(augment_wrapper=False), "configuration says 0 augment labels"),
        (lambda c, s, m: m.update(mapping_cond_dim=2), "configuration says 9 augment labels and mapping_cond_dim = 2"),
        (lambda c, s, m: m.update(mapping_cond_dim="2"), "mapping_cond_dim: got 2; expected a whole number"),
        (lambda c, s, m: m.update(depths=[1, 10**9]), "more blocks than there are tensors"),
        (lambda c, s, m: m.update(channels=[2**40, 2**40]), "x.pth"),
        (lambda c, s, m: m.update(channels="wide"), "makes no network"),
        (lambda c, s, m: m.update(depths=[2, 2]), "is missing|has no place"),
        (lambda c, s, m: m.update(input_size=[16]), "input_size: got .*expected .height, width"),
        (lambda c, s, m: m.update(input_size=[16, 15]), "multiples of 2"),
        (lambda c, s, m: m.update(sigma_data=-1.0), "sigma_data"),
        (lambda c, s, m: m.update(mapping_out=31), "mapping"),
        (lambda c, s, m: m.pop("channels"), "channels"),
        (lambda c, s, m: m.update(sigma_min="low"), "could not convert"),
        (lambda c, s, m: c.update(config=[1]), "has no configuration"),
    ],
)
def test_checkpoints_that_are_not_read(tmp_path, edit, message):
    torch.save(edited(edit), tmp_path / "x.pth")
    for load in (k_diffusion.load, ed.load):
        with pytest.raises(FormatError, match=message) as error:
            load(tmp_path / "x.pth")
        assert str(error.value).startswith(str(tmp_path / "x.pth"))


def test_files_of_others(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(FormatError, match="do not belong to a network of k-diffusion"):
        k_diffusion.load(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "y.pth")
    with pytest.raises(FormatError, match="do not belong to a network of k-diffusion"):
        k_diffusion.load(tmp_path / "y.pth")


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save(edited(lambda c, s, m: c.update(opt=Trap())), tmp_path / "x.pth")
    with pytest.raises(FormatError, match="print"):
        k_diffusion.load(tmp_path / "x.pth")
    assert capsys.readouterr().out == ""
