"""Checkpoints of guided-diffusion and score_sde, against minimal modules of our own with their names and their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elucidiff as ed
from elucidiff import foreign
from elucidiff.adapters import guided_diffusion, score_sde
from elucidiff.errors import FormatError


def randomise(module, seed=0):
    """Weights that matter everywhere, and stay of order one through the layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        fan = p[0].numel() if p.ndim > 1 else 25
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(fan) + (1.0 if is_norm(name, p) else 0.0))
    return module.eval()


def is_norm(name, p):
    return p.ndim == 1 and name.endswith("weight")


def worst(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def halved(x):
    return F.avg_pool2d(x, 2)


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


# ------------------------------------------------------------------ guided-diffusion


class GuidedBlock(nn.Module):
    def __init__(self, c_in, c, emb, change=None):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(c, c, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c else nn.Conv2d(c_in, c, 1)
        self.change = change or (lambda x: x)

    def forward(self, x, emb):
        h = self.in_layers[2](self.change(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self.change(x)) + h


class GuidedAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x, emb):
        b, c = x.shape[:2]
        flat = x.reshape(b, c, -1)
        heads = c // 64
        q, k, v = self.qkv(self.norm(flat)).reshape(b * heads, 3 * 64, -1).split(64, dim=1)
        weight = torch.einsum("bct,bcs->bts", q, k).div(8).softmax(-1)
        a = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
        return (flat + self.proj_out(a)).reshape(x.shape)


class Guided(nn.Module):
    """U-Net with residual resampling, scale and shift, heads of 64 channels."""

    def __init__(self, side, multipliers, blocks, attention, classes=0, c=128, out=6):
        super().__init__()
        emb = 4 * c
        self.c = c
        self.time_embed = nn.Sequential(nn.Linear(c, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes:
            self.label_emb = nn.Embedding(classes, emb)
        width = c * multipliers[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        skips = [width]
        for level, m in enumerate(multipliers):
            attends = [GuidedAttention] if side >> level in attention else []
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList([GuidedBlock(width, c * m, emb), *(a(c * m) for a in attends)]))
                width = c * m
                skips.append(width)
            if level < len(multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([GuidedBlock(width, width, emb, halved)]))
                skips.append(width)
        self.middle_block = nn.ModuleList(
            [GuidedBlock(width, width, emb), GuidedAttention(width), GuidedBlock(width, width, emb)]
        )
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                parts = [GuidedBlock(width + skips.pop(), c * m, emb)]
                width = c * m
                if side >> level in attention:
                    parts.append(GuidedAttention(width))
                if level and i == blocks:
                    parts.append(GuidedBlock(width, width, emb, doubled))
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x, timesteps, y=None):
        half = self.c // 2
        angle = timesteps[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = self.input_blocks[0][0](x)
        skips = [h]
        for place in self.input_blocks[1:]:
            for part in place:
                h = part(h, emb)
            skips.append(h)
        for part in self.middle_block:
            h = part(h, emb)
        for place in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for part in place:
                h = part(h, emb)
        return self.out(h)


GUIDED = {
    "conditional": dict(side=16, multipliers=(1, 2), blocks=1, attention=(8,), classes=5),
    "variance fixed": dict(side=16, multipliers=(1, 1, 2), blocks=2, attention=(8, 4), out=3),
    "no attention": dict(side=8, multipliers=(1, 1), blocks=3, attention=()),
    "one level": dict(side=8, multipliers=(2,), blocks=2, attention=(8,)),
}


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_guided_diffusion(tmp_path, case, schedule):
    theirs = randomise(Guided(**GUIDED[case]))
    path = tmp_path / "checkpoint.pt"
    torch.save(theirs.state_dict(), path)
    side, classes = GUIDED[case]["side"], GUIDED[case].get("classes", 0)
    denoiser = guided_diffusion.load(path, resolution=side, noise_schedule=schedule)
    assert denoiser.shape == (3, side, side) and denoiser.label_dim == classes
    if schedule == "linear":
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    else:
        steps = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        alpha_bar = np.cumprod(1 - np.minimum(1 - steps[1:] / steps[:-1], 0.999))
    x, y = normal(4, 3, side, side), torch.tensor([0, 1, 2, 4])
    t = torch.tensor([0, 10, 500, 990])
    abar = torch.from_numpy(alpha_bar)[t].float().reshape(-1, 1, 1, 1)
    sigma = ((1 - torch.from_numpy(alpha_bar)[t]) / torch.from_numpy(alpha_bar)[t]).sqrt()
    with torch.no_grad():
        eps = theirs(x, t, y if classes else None)[:, :3]
        wanted = (x - (1 - abar).sqrt() * eps) / abar.sqrt()  # the predicted image, of Ho et al. 2020
        D = denoiser(x / abar.sqrt(), sigma, **({"labels": y} if classes else {}))
    for got, want in zip(D, wanted, strict=True):
        assert worst(got, want) < 1e-4
    assert denoiser.sigma_min == pytest.approx(math.sqrt(1 / alpha_bar[0] - 1))
    assert denoiser.sigma_max == pytest.approx(math.sqrt(1 / alpha_bar[-1] - 1))


def test_guided_diffusion_through_ed_load(tmp_path):
    theirs = randomise(Guided(side=64, multipliers=(1, 1), blocks=1, attention=(32,)))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    denoiser = ed.load(tmp_path / "x.pt")
    assert denoiser.shape == (3, 64, 64) and denoiser.info["imported"] == {
        "from": "guided-diffusion",
        "noise_schedule": "cosine",
    }
    ed.save(denoiser, tmp_path / "model")
    again, x = ed.load(tmp_path / "model"), normal(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x, 1.0), denoiser(x, 1.0))


def guided_state(**changes):
    return Guided(**({"side": 8, "multipliers": (1, 1), "blocks": 1, "attention": (4,)} | changes)).state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: guided_state() | {"extra.weight": torch.zeros(1)}, "1 of its tensors have no place"),
        (lambda: {k: v for k, v in guided_state().items() if k != "out.0.bias"}, "out.0.bias is missing"),
        (lambda: {k: v for k, v in guided_state().items() if not k.startswith("middle_block.2")}, "the middle is not"),
        (lambda: guided_state(c=64), "supported are multiples of 64 from 128 on"),
        (lambda: guided_state() | {"input_blocks.2.0.op.weight": torch.zeros(1)}, "resblock_updown"),
        (
            lambda: guided_state() | {"input_blocks.1.0.emb_layers.1.weight": torch.zeros(128, 512)},
            "use_scale_shift_norm",
        ),
        (lambda: guided_state() | {"out.2.weight": torch.zeros(4, 128, 3, 3)}, "do not fit the network"),
        (lambda: guided_state() | {"out.0.bias": torch.zeros(0, 2**40)}, "out.0.bias .* is empty"),
        (lambda: guided_state() | {"label_emb.weight": torch.zeros(2, 3, 4)}, "makes no network"),
        (lambda: guided_state() | {"time_embed.0.weight": torch.zeros(())}, "time_embed.0.weight is missing"),
        (lambda: {"w": torch.zeros(1)}, "do not belong to a U-Net of guided-diffusion"),
    ],
)
def test_guided_diffusion_that_is_not_read(tmp_path, state, message):
    torch.save(state(), tmp_path / "x.pt")
    with pytest.raises(FormatError, match=message):
        guided_diffusion.load(tmp_path / "x.pt", resolution=8)


def test_guided_diffusion_arguments(tmp_path):
    torch.save(guided_state(), tmp_path / "x.pt")
    for arguments in ({"noise_schedule": "sqrt"}, {"diffusion_steps": 1}, {"resolution": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            guided_diffusion.load(tmp_path / "x.pt", **arguments)


# ------------------------------------------------------------------ score_sde


class Nin(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(c, c)), nn.Parameter(torch.zeros(c))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


def score_norm(c):
    return nn.GroupNorm(min(c // 4, 32), c, eps=1e-6)


def fir_down(x):
    k = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2)[None, None].expand(x.shape[1], 1, 4, 4) / 64
    return F.conv2d(F.pad(x, [1, 1, 1, 1]), k, stride=2, groups=x.shape[1])


def fir_up(x):
    b, c, h, w = x.shape
    spread = torch.zeros(b, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = x
    k = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2)[None, None].expand(c, 1, 4, 4) / 16
    return F.conv2d(F.pad(spread, [2, 1, 2, 1]), k, groups=c)


class ScoreBlock(nn.Module):
    def __init__(self, c_in, c, emb, change=None):
        super().__init__()
        self.GroupNorm_0, self.Conv_0 = score_norm(c_in), nn.Conv2d(c_in, c, 3, padding=1)
        self.Dense_0, self.GroupNorm_1 = nn.Linear(emb, c), score_norm(c)
        self.Conv_1 = nn.Conv2d(c, c, 3, padding=1)
        if c_in != c or change:
            self.Conv_2 = nn.Conv2d(c_in, c, 1)
        self.change = change or (lambda x: x)

    def forward(self, x, temb):
        h = self.Conv_0(self.change(F.silu(self.GroupNorm_0(x)))) + self.Dense_0(F.silu(temb))[..., None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self.change(x)
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class ScoreAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.GroupNorm_0 = score_norm(c)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (Nin(c) for _ in range(4))

    def forward(self, x, temb):
        h = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        w = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(x.shape[1])
        w = w.flatten(3).softmax(-1).reshape(w.shape)
        return (x + self.NIN_3(torch.einsum("bhwij,bcij->bchw", w, v))) / math.sqrt(2)


class Frequencies(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(n), requires_grad=False)


class PyramidDown(nn.Module):
    """The image, filtered, then convolved at every second pixel."""

    def __init__(self, c_in, c):
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(c_in, c, 3)

    def forward(self, x):
        k = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2)[None, None].expand(x.shape[1], 1, 4, 4) / 64
        filtered = F.conv2d(F.pad(x, [2, 2, 2, 2]), k, groups=x.shape[1])
        return F.conv2d(filtered, self.Conv2d_0.weight, self.Conv2d_0.bias, stride=2)


class Combine(nn.Module):
    def __init__(self, c_in, c):
        super().__init__()
        self.Conv_0 = nn.Conv2d(c_in, c, 1)


class Score(nn.Module):
    """all_modules, in the order in which they are made and used."""

    def __init__(self, multipliers=(1, 2), blocks=1, attends=(1,), c=32, fourier=True, aux="", skip_out=False):
        super().__init__()
        self.settings = multipliers, blocks, attends, fourier, aux, skip_out
        self.c = c
        self.all_modules = nn.ModuleList()
        add, emb = self.all_modules.append, 4 * c
        down, up = (fir_down, fir_up) if fourier else (halved, doubled)
        if fourier:
            add(Frequencies(c))
        add(nn.Linear(2 * c if fourier else c, emb))
        add(nn.Linear(emb, emb))
        add(nn.Conv2d(3, c, 3, padding=1))
        width, skips, pyramid = c, [c], 3
        for level, m in enumerate(multipliers):
            for _ in range(blocks):
                add(ScoreBlock(width, c * m, emb))
                width = c * m
                if level in attends:
                    add(ScoreAttention(width))
                skips.append(width)
            if level < len(multipliers) - 1:
                add(ScoreBlock(width, width, emb, down))
                if aux == "residual":
                    add(PyramidDown(pyramid, width))
                    pyramid = width
                if aux == "skip":
                    add(Combine(3, width))
                skips.append(width)
        add(ScoreBlock(width, width, emb))
        add(ScoreAttention(width))
        add(ScoreBlock(width, width, emb))
        for level, m in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                add(ScoreBlock(width + skips.pop(), c * m, emb))
                width = c * m
            if level in attends:
                add(ScoreAttention(width))
            if skip_out:
                add(score_norm(width))
                add(nn.Conv2d(width, 3, 3, padding=1))
            if level:
                add(ScoreBlock(width, width, emb, up))
        if not skip_out:
            add(score_norm(width))
            add(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x, time):
        """time is log sigma (of images in [0, 1]) under VE, 999 t under VP."""
        multipliers, blocks, attends, fourier, aux, skip_out = self.settings
        modules = iter(self.all_modules)
        if fourier:
            angle = 2 * math.pi * time[:, None] * next(modules).W
        else:
            half = self.c // 2
            angle = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
        temb = next(modules)(torch.cat([angle.sin(), angle.cos()], dim=1))
        temb = next(modules)(F.silu(temb))
        image, h = x, next(modules)(x)
        skips = [h]
        for level in range(len(multipliers)):
            for _ in range(blocks):
                h = next(modules)(h, temb)
                if level in attends:
                    h = next(modules)(h, temb)
                skips.append(h)
            if level < len(multipliers) - 1:
                h = next(modules)(h, temb)
                if aux == "residual":
                    image = h = (next(modules)(image) + h) / math.sqrt(2)
                if aux == "skip":
                    image = fir_down(image)
                    h = next(modules).Conv_0(image) + h
                skips.append(h)
        for _ in range(3):
            h = next(modules)(h, temb)
        out = None
        for level in reversed(range(len(multipliers))):
            for _ in range(blocks + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), temb)
            if level in attends:
                h = next(modules)(h, temb)
            if skip_out:
                r = next(modules)(h)
                r = next(modules)(F.silu(r))
                out = r if out is None else fir_up(out) + r
            if level:
                h = next(modules)(h, temb)
        if not skip_out:
            h = next(modules)(h)
            out = next(modules)(F.silu(h))
        assert next(modules, None) is None
        return out


SCORES = {
    "NCSN++": dict(aux="residual"),
    "NCSN++ of three levels": dict(multipliers=(1, 2, 2), blocks=2, attends=(1, 2), aux="residual"),
    "skips": dict(multipliers=(1, 2, 2), aux="skip", skip_out=True),
    "Fourier alone": dict(blocks=2, attends=()),
    "DDPM++": dict(fourier=False),
    "DDPM++ of one level": dict(fourier=False, multipliers=(2,), attends=(0,)),
}


def checkpoint(theirs, averaged=None):
    state = {"module.sigmas": torch.linspace(50, 0.01, 10)} | {f"module.{k}": v for k, v in theirs.state_dict().items()}
    shadows = [p.detach().clone() for p in (averaged or theirs).parameters() if p.requires_grad]
    return {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "model": state, "step": 7,
            "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadows}}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_score_sde(tmp_path, case):
    theirs = randomise(Score(**SCORES[case]))
    fourier = SCORES[case].get("fourier", True)
    torch.save(checkpoint(theirs), tmp_path / "x.pth")
    denoiser = score_sde.load(tmp_path / "x.pth", resolution=16)
    x = normal(3, 3, 16, 16)
    with torch.no_grad():
        if fourier:
            sigma = torch.tensor([0.05, 1.0, 40.0])
            # Images in [0, 1] have half the noise; score = output / sigma, and the network sees 2 image - 1.
            image = (x + 1) / 2
            wanted = 2 * (image + (sigma / 2).reshape(-1, 1, 1, 1) * theirs(2 * image - 1, (sigma / 2).log())) - 1
        else:
            t = torch.tensor([0.001, 0.3, 0.9], dtype=torch.float64)
            log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
            mean, std = log_mean.exp(), (1 - (2 * log_mean).exp()).sqrt()
            sigma = std / mean
            mean, std = (v.float().reshape(-1, 1, 1, 1) for v in (mean, std))
            score = -theirs(mean * x, (999 * t).float()) / std
            wanted = (mean * x + std**2 * score) / mean
        D = denoiser(x, sigma)
    for got, want in zip(D, wanted, strict=True):
        assert worst(got, want) < 2e-4
    assert type(denoiser.network_config).__name__ == ("NCSNPP" if fourier else "DDPMPP")


def test_score_sde_averages(tmp_path):
    theirs, averaged = randomise(Score(), seed=1), randomise(Score(), seed=2)
    averaged.all_modules[0].W.data = theirs.all_modules[0].W.data
    torch.save(checkpoint(theirs, averaged), tmp_path / "x.pth")
    x = normal(1, 3, 16, 16)
    for ema, module in ((True, averaged), (False, theirs)):
        denoiser = score_sde.load(tmp_path / "x.pth", ema=ema, resolution=16, sigma_max=50.0)
        with torch.no_grad():
            wanted = x + 2 * module(x, torch.tensor([0.0]))
            assert worst(denoiser(x, 2.0), wanted) < 1e-4
        assert denoiser.info["imported"] == {"from": "score_sde", "ema": ema} and denoiser.sigma_max == 50


def test_score_sde_through_ed_load(tmp_path):
    torch.save(checkpoint(Score(aux="residual")), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    denoiser = ed.load(tmp_path / "x.pth")
    assert denoiser.shape == (3, 32, 32) and denoiser.preconditioning == ed.preconditioning.VE(0.02, 100)


def score_parts(edit):
    given = checkpoint(Score())
    edit(given)
    return given


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["ema"]["shadow_params"].pop(), "no list of [0-9]+ averaged weights"),
        (lambda c: c["ema"]["shadow_params"].reverse(), "has another shape"),
        (lambda c: c["model"].update({"module.extra": torch.zeros(1)}), "module.extra has no place"),
        (lambda c: c["model"].pop("module.all_modules.3.bias") is None or c.pop("ema"), "stem.bias is missing"),
        (lambda c: c.update(model={"module.all_modules.0.weight": torch.zeros(1)}, ema=None), "missing|no decoder"),
        (lambda c: c.update(model={"other": torch.zeros(1)}), "do not belong"),
        (lambda c: c.update(model={"all_modules.0.W": torch.zeros(2)}, ema=None), "ends too early"),
    ],
)
def test_score_sde_that_is_not_read(tmp_path, edit, message):
    torch.save(score_parts(edit), tmp_path / "x.pth")
    with pytest.raises(FormatError, match=message):
        score_sde.load(tmp_path / "x.pth", resolution=16)


# ------------------------------------------------------------------ files of nobody we know


def test_files_of_unknown_networks(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match=r"tensors \(layer.weight, ...\) of no network that this reads"):
        ed.load(path)
    path.unlink()
    torch.save({"a": {"w": torch.zeros(1)}, "b": {"w": torch.zeros(1)}}, path)
    with pytest.raises(FormatError, match="holds several state dicts: a"):
        ed.load(path)
    path.unlink()
    path.write_text("words")
    with pytest.raises(FormatError, match="a file that is no model; expected a model directory"):
        ed.load(path)
    assert foreign.is_foreign(path) is False
