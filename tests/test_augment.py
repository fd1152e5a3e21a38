"""Augmentation: published examples, each transform against its own formula, chances, labels, training, the test for leaks."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import elucidiff as ed
from conftest import shared
from elucidiff.analysis.leak import compared, leak, moments, trained_with, transformed
from elucidiff.augment import (
    EDM,
    FULL,
    Anisotropic,
    Augment,
    Brightness,
    Contrast,
    Hue,
    LumaFlip,
    Rotate90,
    Rotation,
    Saturation,
    Scale,
    Shift,
    Transform,
    Translation,
    XFlip,
    YFlip,
    for_shape,
    named,
    warp,
)
from elucidiff.augment.resample import SYM6
from elucidiff.cli import parse
from elucidiff.cli.main import main
from elucidiff.data import from_arrays
from elucidiff.seeds import Stream
from elucidiff.training import Trainer
from elucidiff.training.draws import Order, draw

TAU = 2 * math.pi
# The filter is nearly symmetric about its tap 5.098: up delays by DELAY pixels, down advances by as much, and what lies
# between the two sees the picture so much aside.
TAPS = np.array(SYM6)
DELAY = (TAPS / TAPS.sum() @ np.arange(12) - 5) / 2


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64) - (n - 1) / 2


def blob(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth function of the plane, in pixels from the centre, that no symmetry leaves alone."""
    first = torch.exp(-((x - 5) ** 2 + (y + 2) ** 2) / 30)
    return (
        first + 0.5 * torch.exp(-((x + 3) ** 2 / 50 + (y - 4) ** 2 / 20)) - 0.3 * torch.exp(-(x**2 + (y + 6) ** 2) / 25)
    )


def picture(h: int, w: int, content=lambda x, y: (x, y)) -> torch.Tensor:
    y, x = torch.meshgrid(centred(h), centred(w), indexing="ij")
    return blob(*content(x, y))[None, None]


def through_the_filter(content):
    """The map of positions that content looks through when up and down are the filter's, to first order."""
    return lambda x, y: tuple(v - DELAY for v in content(x + DELAY, y + DELAY))


def given(*transforms: Transform, dims: int = 2, **parameters) -> tuple[Augment, dict]:
    return Augment(transforms, dims=dims), {k: torch.as_tensor(v, dtype=torch.float64) for k, v in parameters.items()}


def run(x, *transforms, dims: int = 2, **parameters) -> torch.Tensor:
    pipeline, parameters = given(*transforms, dims=dims, **parameters)
    return pipeline(x, parameters=parameters)[0]


def every_label(pipeline: Augment) -> dict[str, slice]:
    ends = np.cumsum([0] + [t.entries(pipeline.dims) for t in pipeline.transforms])
    return {t.kind: slice(a, b) for t, a, b in zip(pipeline.transforms, ends[:-1], ends[1:], strict=True)}


# Published examples


def golden_parameters(tensors, name, pipeline):
    labels = tensors[f"{name}.labels"].double()
    found = {}
    for kind, columns in every_label(pipeline).items():
        w = labels[:, columns]
        if kind == "rotation":
            w = torch.atan2(w[:, 1], w[:, 0] + 1)
        if kind == "anisotropic":
            w = torch.stack([tensors[f"{name}.aniso_w"], tensors[f"{name}.aniso_angle"]], 1)
        found[kind] = w
    return found


@pytest.mark.parametrize("name", [t.kind for t in EDM] + ["all_six", "all_six_20x28"])
def test_golden_images_and_labels(name):
    tensors = load_file(shared("data/golden/augment.safetensors"))
    pipeline = Augment([t for t in EDM if t.kind == name] or EDM)
    x = tensors["images_20x28" if "20x28" in name else "images"]
    x_new, labels = pipeline(x, parameters=golden_parameters(tensors, name, pipeline))
    assert x_new.dtype == torch.float32
    assert (x_new - tensors[f"{name}.images"]).abs().max() < 2e-5
    assert (labels - tensors[f"{name}.labels"]).abs().max() < 1e-6
    if name.endswith("flip"):
        assert torch.equal(x_new, tensors[f"{name}.images"])


# Each transform against its own formula


@pytest.mark.parametrize("size", [(1,), (2,), (7,), (8, 8), (5, 9), (1, 6), (4, 5, 3)])
def test_the_identity_as_a_resampling_returns_the_input(size):
    x = noise(3, 2, *size)
    eye = torch.eye(len(size) + 1, dtype=torch.float64).expand(3, -1, -1)
    assert (warp(x, eye) - x).abs().max() < 1e-10
    assert (warp(x.float(), eye) - x).abs().max() < 1e-5


def test_parameters_of_zero_leave_the_bits():
    x = noise(4, 3, 8, 8)
    x_new, labels = Augment(FULL)(x, parameters={})
    assert torch.equal(x_new, x) and torch.equal(labels, torch.zeros(4, Augment(FULL).label_dim, dtype=torch.float64))


def test_filter_is_orthogonal_to_its_even_shifts():
    g = TAPS
    for k in range(6):
        assert abs(g[2 * k :] @ g[: len(g) - 2 * k] - (k == 0)) < 1e-11
    assert abs(g.sum() - math.sqrt(2)) < 1e-11
    for m in range(6):  # six vanishing moments of the wavelet (-1)^k g[11 - k]
        k = np.arange(12)
        assert abs(((-1.0) ** k * g[::-1] * (k - 5.5) ** m).sum()) < 1e-6


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rotation_by_quarters_is_rot90(k):
    x = picture(33, 33)
    turned = run(x, Rotation(), rotation=[k * math.pi / 2])
    assert (turned - torch.rot90(x, k, (2, 3))).abs().max() < 0.03
    quarters = (lambda x, y: (-y, x), lambda x, y: (-x, -y), lambda x, y: (y, -x))
    assert (picture(33, 33, quarters[k - 1]) - torch.rot90(x, k, (2, 3))).abs().max() < 1e-12
    assert (turned - picture(33, 33, through_the_filter(quarters[k - 1]))).abs().max() < 3e-3
    assert (turned - x).abs().max() > 0.3
    assert torch.equal(run(x, Rotate90(), rotate90=[float(k)]), torch.rot90(x, k, (2, 3)))


@pytest.mark.parametrize(
    ("transform", "parameters", "content"),
    [
        # where the content at (x, y) of the new picture lay in the old one, y down
        (Scale(), {"scale": [1.5]}, lambda x, y: (x / 2**0.3, y / 2**0.3)),
        (Scale(std=0.1), {"scale": [-2.0]}, lambda x, y: (x * 2**0.2, y * 2**0.2)),
        (
            Rotation(),
            {"rotation": [0.7]},
            lambda x, y: (x * math.cos(0.7) - y * math.sin(0.7), x * math.sin(0.7) + y * math.cos(0.7)),
        ),
        (Anisotropic(), {"anisotropic": [[1.2, 0.0]]}, lambda x, y: (x / 2**0.24, y * 2**0.24)),
        (Anisotropic(), {"anisotropic": [[1.2, math.pi / 2]]}, lambda x, y: (x * 2**0.24, y / 2**0.24)),
        (Translation(), {"translation": [[0.5, -0.25]]}, lambda x, y: (x - 0.0625 * 40, y + 0.03125 * 36)),
    ],
)
def test_smooth_content_moves_as_the_formula_says(transform, parameters, content):
    moved = run(picture(36, 40), transform, **parameters)
    wanted = picture(36, 40, through_the_filter(content))
    inside = (..., slice(6, -6), slice(6, -6))  # beyond the border the content is reflected instead
    assert (moved - wanted)[inside].abs().max() < 4e-3
    assert (picture(36, 40) - wanted)[inside].abs().max() > 0.05


def test_content_in_three_dimensions_scales_and_moves():
    def ball(z, y, x):
        return torch.exp(-((x - 2) ** 2 / 12 + (y + 1) ** 2 / 18 + z**2 / 10))

    grids = torch.meshgrid(centred(16), centred(18), centred(20), indexing="ij")
    w = [1.0, -0.5, 0.25]
    moved = run(ball(*grids)[None, None], Translation(std=0.1), dims=3, translation=[w])
    shifted = [g - 0.1 * wk * n for g, wk, n in zip(grids, reversed(w), (16, 18, 20), strict=True)]
    assert (moved[0, 0] - ball(*shifted))[3:-3, 3:-3, 3:-3].abs().max() < 6e-3
    larger = run(ball(*grids)[None, None], Scale(), dims=3, scale=[1.0])
    assert (larger[0, 0] - ball(*(g / 2**0.2 for g in grids)))[3:-3, 3:-3, 3:-3].abs().max() < 1.2e-2


@pytest.mark.parametrize("size", [(16,), (16, 24), (8, 16, 24)])
def test_translation_by_whole_pixels_is_a_roll_with_reflection(size):
    dims = len(size)
    x = noise(2, 3, *size)
    pixels = torch.tensor([[3, -2, 1][:dims], [0, 5, -4][:dims]])
    w = pixels / (0.125 * torch.tensor(size[::-1]))
    moved = run(x, Translation(), dims=dims, translation=w)
    for row in range(2):
        by_hand = x[row].numpy()
        for k in range(dims):
            axis, n = dims - k, size[dims - 1 - k]
            padded = np.pad(by_hand, [(n - 1, n - 1) if a == axis else (0, 0) for a in range(dims + 1)], mode="reflect")
            start = n - 1 - int(pixels[row, k])
            by_hand = padded.take(range(start, start + n), axis)
        assert np.abs(moved[row].numpy() - by_hand).max() < 1e-10
    assert (run(x, Shift(), dims=dims, shift=w) - moved).abs().max() < 1e-10


def test_beyond_one_reflection_there_is_nothing():
    x = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    assert (run(x, Translation(), translation=[[5.0, 0.0]]) - 1).abs().max() < 1e-10  # 10 pixels
    assert run(x, Translation(), translation=[[40.0, 0.0]]).abs().max() == 0  # 80


def test_maps_are_composed_into_one_in_their_order():
    """S R A T: content is moved last, so that translation does not depend on the rest."""
    w = {"scale": [0.5], "rotation": [0.4], "anisotropic": [[-0.8, 1.1]], "translation": [[0.3, -0.2]]}

    def rot(v):
        return np.array([[math.cos(v), -math.sin(v)], [math.sin(v), math.cos(v)]])

    stretch = rot(-1.1) @ np.diag([2**0.16, 2**-0.16]) @ rot(1.1)
    linear = 2**-0.1 * rot(0.4) @ stretch
    shift = 0.125 * np.array([0.3 * 40, -0.2 * 36])

    def content(x, y):
        p = np.stack([x.numpy() - shift[0], y.numpy() - shift[1]])
        return tuple(torch.from_numpy(np.einsum("ij,jhw->ihw", linear, p)))

    moved = run(picture(36, 40), *EDM[2:], **w)
    assert (moved - picture(36, 40, through_the_filter(content)))[..., 7:-7, 7:-7].abs().max() < 4e-3


def test_flips_mirror_one_axis_and_come_first():
    x = noise(2, 3, 4, 5, 6)
    pipeline = named("zflip,xflip,yflip", (3, 4, 5, 6))
    flipped = pipeline(x, parameters={"xflip": torch.tensor([1.0, 0]), "yflip": torch.tensor([0.0, 1])})[0]
    assert torch.equal(flipped, torch.stack([x[0].flip(-1), x[1].flip(-2)]))
    assert torch.equal(pipeline(x, parameters={"zflip": torch.ones(2)})[0], x.flip(2))
    x = noise(1, 1, 16, 16)
    both = Augment(EDM)(x, parameters={"xflip": torch.ones(1), "translation": torch.tensor([[1.0, 0.0]])})[0]
    assert (both - run(x.flip(-1), Translation(), translation=[[1.0, 0.0]])).abs().max() < 1e-12


def test_colours_against_their_formulas():
    x = noise(5, 3, 4, 4)
    w = torch.linspace(-1, 1, 5, dtype=torch.float64)
    per = w[:, None, None, None]
    grey = x.mean(1, keepdim=True).expand_as(x)
    cases = {
        "brightness": (Brightness(), x + 0.2 * per),
        "contrast": (Contrast(), x * 2 ** (0.5 * per)),
        "saturation": (Saturation(), grey + (x - grey) * 2**per),
    }
    for kind, (transform, wanted) in cases.items():
        assert (run(x, transform, **{kind: w}) - wanted).abs().max() < 1e-12
    assert (run(x, LumaFlip(), luma_flip=torch.ones(5)) - (x - 2 * grey)).abs().max() < 1e-12
    thirds = run(x, Hue(), hue=torch.full((5,), TAU / 3, dtype=torch.float64))
    assert (thirds - x.roll(1, 1)).abs().max() < 1e-12  # red to green to blue
    turned = run(x, Hue(), hue=w)
    assert (turned.norm(dim=1) - x.norm(dim=1)).abs().max() < 1e-12
    assert (turned.mean(1) - x.mean(1)).abs().max() < 1e-12
    one = noise(5, 1, 4, 4)
    assert (run(one, LumaFlip(), luma_flip=torch.ones(5)) + one).abs().max() < 1e-12
    after = run(x, Brightness(), Contrast(), brightness=w, contrast=w)
    assert (after - (x + 0.2 * per) * 2 ** (0.5 * per)).abs().max() < 1e-12


# Drawing


def test_chances_and_distributions():
    n, p = 20_000, 0.3
    pipeline = Augment(FULL, p)
    drawn = pipeline.draw(0, 0, range(n))

    def near(value, expected, variance):
        assert abs(float(value) - expected) < 4 * math.sqrt(variance / n)

    for kind, w in drawn.items():
        chance = {"xflip": 0.5, "yflip": p / 2, "luma_flip": p / 2, "rotate90": 0.75 * p}.get(kind, p)
        near((w != 0).any(1).double().mean(), chance, chance * (1 - chance))
    for kind in ("scale", "translation", "brightness", "contrast", "saturation"):
        for w in drawn[kind].T:
            m = int((w != 0).sum())
            applied = w[w != 0]
            assert abs(applied.mean()) < 4 / math.sqrt(m) and abs(applied.var() - 1) < 4 * math.sqrt(2 / m)
    for kind in ("rotation", "hue"):
        a = drawn[kind][drawn[kind] != 0]
        assert a.abs().max() <= math.pi
        assert abs(a.cos().mean()) < 4 * math.sqrt(0.5 / len(a)) and abs(a.sin().mean()) < 4 * math.sqrt(0.5 / len(a))
    w, r = drawn["anisotropic"].T
    near(((r == 0) & (w != 0)).double().mean(), p / 2, p / 2 * (1 - p / 2))
    assert drawn["shift"].abs().max() < 1 and abs(drawn["shift"][:, 0].var() - p / 3) < 0.01
    # transforms are applied independently of one another
    both = (drawn["scale"] != 0) & (drawn["rotation"] != 0)
    near(both.double().mean(), p * p, p * p * (1 - p * p))


def test_p_of_a_transform_replaces_that_of_the_pipeline():
    drawn = Augment((XFlip(p=0.0), YFlip(), Scale(p=1.0)), p=0.0).draw(0, 0, range(200))
    assert not drawn["xflip"].any() and not drawn["yflip"].any() and bool((drawn["scale"] != 0).all())


def test_labels_follow_from_parameters():
    pipeline = Augment(FULL)
    parameters = Augment(FULL, p=1.0).draw(3, 1, range(50))
    columns, labels = every_label(pipeline), pipeline.labels(parameters, 50)
    assert labels.shape == (50, pipeline.label_dim) and pipeline.label_dim == 19 and Augment().label_dim == 9
    for kind in (
        "xflip",
        "yflip",
        "shift",
        "scale",
        "translation",
        "brightness",
        "contrast",
        "luma_flip",
        "saturation",
    ):
        assert torch.equal(labels[:, columns[kind]], parameters[kind])
    for kind, unit in (("rotation", 1.0), ("hue", 1.0), ("rotate90", math.pi / 2)):
        a = unit * parameters[kind][:, 0]
        wanted = torch.stack([a.cos() - 1, a.sin()], 1)
        assert (labels[:, columns[kind]] - wanted).abs().max() < 1e-12
    w, r = parameters["anisotropic"].T
    assert (labels[:, columns["anisotropic"]] - torch.stack([w * r.cos(), w * r.sin()], 1)).abs().max() < 1e-12
    untouched = Augment(p=0.0).draw(0, 0, range(20))
    untouched["xflip"] *= 0
    assert not Augment().labels(untouched, 20).any()


def test_parameters_depend_on_seed_step_and_sample_alone():
    pipeline = Augment(p=0.5)
    whole = pipeline.draw(5, 9, range(64))
    parts = [pipeline.draw(5, 9, rows) for rows in (range(10), range(10, 64))]
    for kind, w in whole.items():
        assert torch.equal(w, torch.cat([part[kind] for part in parts]))
    assert not torch.equal(whole["scale"], pipeline.draw(5, 10, range(64))["scale"])
    assert not torch.equal(whole["scale"], pipeline.draw(6, 9, range(64))["scale"])
    u = np.random.Generator(np.random.Philox(key=[5, Stream.AUGMENT], counter=[0, 7, 9, 0])).random(pipeline.numbers)
    again = pipeline.from_uniform(torch.from_numpy(u)[None])
    assert all(torch.equal(w[0], whole[kind][7]) for kind, w in again.items())


def test_results_do_not_depend_on_the_split_of_the_batch():
    x, pipeline = noise(12, 2, 9, 12), Augment(p=0.6)
    parameters = pipeline.draw(1, 0, range(12))
    whole = pipeline(x, parameters=parameters)[0]
    alone = [pipeline(x[i : i + 1], parameters={k: w[i : i + 1] for k, w in parameters.items()})[0] for i in range(12)]
    assert (whole - torch.cat(alone)).abs().max() < 1e-12
    assert (whole - x).abs().max() > 0.1


def test_large_batches_are_done_in_parts(monkeypatch):
    x, M = noise(5, 2, 8, 8), torch.eye(3, dtype=torch.float64).repeat(5, 1, 1)
    M[:, 0, 2] = torch.linspace(-2, 2, 5)
    whole = warp(x, M)
    monkeypatch.setattr("elucidiff.augment.resample.ELEMENTS", 1)
    assert (warp(x, M) - whole).abs().max() < 1e-12


def test_a_generator_gives_the_same_twice_and_moves_on():
    x, pipeline = noise(16, 1, 8, 8), Augment(p=0.8)
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    a, b = pipeline(x, first), pipeline(x, second)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(pipeline(x, first)[1], a[1])
    assert not torch.equal(pipeline(x)[1], pipeline(x)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_the_samples_is_kept(dtype):
    x = noise(6, 3, 8, 8)
    parameters = Augment(p=1.0).draw(0, 0, range(6))
    exact, _ = Augment()(x, parameters=parameters)
    rounded, labels = Augment()(x.to(dtype), parameters=parameters)
    assert rounded.dtype == labels.dtype == dtype
    assert (rounded.double() - exact).abs().max() < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("shape", "kinds"), [
    ((3, 16), ["xflip", "translation"]),
    ((1, 8, 8), [t.kind for t in EDM]),
    ((1, 6, 7, 8), ["xflip", "yflip", "zflip", "translation"]),
])  # fmt: skip
def test_the_pipeline_for_a_shape(shape, kinds):
    pipeline = for_shape(shape, 0.9)
    assert [t.kind for t in pipeline.transforms] == kinds and pipeline.p == 0.9
    x_new, labels = pipeline(noise(10, *shape), torch.Generator().manual_seed(0))
    assert x_new.shape == (10, *shape) and labels.shape == (10, pipeline.label_dim)
    assert pipeline.label_dim == {1: 2, 2: 9, 3: 6}[len(shape) - 1]
    assert bool(x_new.isfinite().all())


def test_json_round_trip():
    pipeline = Augment((XFlip(), Scale(std=0.3, p=0.5), Hue()), p=0.2)
    assert Augment.from_dict(json.loads(json.dumps(pipeline.to_dict()))) == pipeline
    config = ed.TrainConfig(augment=pipeline)
    assert ed.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert "augment" not in ed.TrainConfig().to_dict()  # files of runs without it are what they were


def test_all_kinds_cite_their_papers():
    from elucidiff.citations import BIBTEX

    assert set(Transform.kinds()) == {t.kind for t in FULL} | {"zflip"}
    assert all(set(t.references) <= set(BIBTEX) for t in Transform.kinds().values())


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment(p=1.2), r"augment.p: got 1.2; expected a chance"),
        (lambda: Augment(()), "augment.transforms: got none"),
        (lambda: Augment((XFlip(), XFlip())), "got xflip, xflip; each may come once"),
        (lambda: Augment((Scale(), XFlip())), "moves of pixels come first, then of positions, then colours: xflip, scale"),
        (lambda: Augment(dims=1), r"yflip is not defined for 1 spatial axes, only 2 or 3; ed.augment.for_shape"),
        (lambda: Augment((XFlip(),), dims=4), "augment.dims: got 4"),
        (lambda: Scale(std=0.0), "scale.std: got 0.0; expected a number above 0"),
        (lambda: Shift(max=-1.0), "shift.max: got -1.0"),
        (lambda: Anisotropic(std=math.inf), "anisotropic.std: got inf"),
        (lambda: YFlip(p=-0.1), r"yflip.p: got -0.1; expected a chance in \[0, 1\]"),
        (lambda: for_shape((2,)), r"got samples of shape \(2,\); expected channels and 1 to 3 spatial axes"),
        (lambda: named("xflop", (1, 8, 8)), "unknown transform or pipeline 'xflop'; did you mean 'xflip'"),
        (lambda: Transform.from_dict({"kind": "zoom"}), "unknown transform 'zoom'"),
        (lambda: Augment()(noise(2, 3, 8)), r"got samples of shape \(3, 8\); expected channels and 2 spatial axes"),
        (lambda: Augment()(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), "got torch.uint8; expected floating point"),
        (lambda: run(noise(1, 2, 8, 8), Hue(), hue=[1.0]), "hue: got samples of 2 channels; expected 3"),
        (lambda: run(noise(1, 2, 8, 9), Rotate90(), rotate90=[1.0]), "rotate90: got images of 8 x 9; expected square"),
        (lambda: run(noise(2, 1, 8, 8), Scale(), scale=[1.0]), r"parameters of scale: got shape \(1, 1\); expected \(2, 1\)"),
        (lambda: run(noise(1, 1, 8, 8), Scale(), scale=[math.nan]), "parameters of scale: some are NaN or infinite"),
        (lambda: run(noise(1, 1, 8, 8), Scale(), scal=[1.0]), "unknown transform of this pipeline 'scal'; did you mean 'scale'"),
        (
            lambda: Augment()(noise(1, 1, 8, 8), torch.Generator(), parameters={}),
            "got a generator and parameters; give one",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Training


NET = ed.networks.DDPMPP(channels=16, multipliers=(1,), blocks=1, attention=())


def digits(n: int = 200) -> ed.data.Dataset:
    return ed.data.load("digits").subset(range(n))


def config(path, **changes) -> ed.TrainConfig:
    base = ed.TrainConfig(
        out=str(path), network=NET, images=128, batch=16, lr_ramp=50, snapshots=1, augment=Augment(p=0.5)
    )
    return base.replace(**changes)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.network.state_dict().items()}


def test_training_draws_augmentation_apart_from_the_rest():
    data, levels = digits(), ed.objective.LogNormal()
    plain = draw(data, Order(200, 1), levels, 3, 16)
    with_it = draw(data, Order(200, 1), levels, 3, 16, augment=Augment())
    assert plain.augment is None and all(torch.equal(a, b) for a, b in zip(plain[:4], with_it[:4], strict=True))
    smaller = draw(data, Order(200, 1), levels, 3, 5, augment=Augment())
    assert all(torch.equal(w[:5], smaller.augment[kind]) for kind, w in with_it.augment.items())


def test_training_shows_the_network_transformed_data_and_their_labels(tmp_path, monkeypatch):
    trainer = Trainer.start(config(tmp_path / "run"), digits())
    assert trainer.model.network_config.augment_dim == 9
    seen = {}

    def spy(model, y, sigma, n, weighting, **conditions):
        seen.update(y=y, **conditions)
        return model(y, sigma, **conditions).square().sum((1, 2, 3))

    monkeypatch.setattr("elucidiff.training.trainer.loss_at", spy)
    trainer.train_step()
    trainer.train_step()
    clean, labels = digits().batch(Order(200, 0).at(16, 16))
    y, augment_labels = Augment(p=0.5)(clean, parameters=Augment(p=0.5).draw(0, 1, range(16)))
    assert torch.equal(seen["y"], y) and torch.equal(seen["augment_labels"], augment_labels)
    assert torch.equal(seen["labels"], labels) and (y - clean).abs().max() > 0.1


def test_training_has_the_same_bits_each_time_and_when_it_goes_on_from_the_middle(tmp_path):
    data, first = digits(), Trainer.start(config(tmp_path / "run"), digits())
    losses = [first.train_step().loss for _ in range(3)]
    middle, state = weights(first), first.optimizer.state_dict()
    state = {"param_groups": state["param_groups"], "state": {
        k: {n: v.clone() for n, v in s.items()} for k, s in state["state"].items()}}  # fmt: skip
    losses += [first.train_step().loss for _ in range(3)]
    resumed = Trainer.start(config(tmp_path / "run"), data)
    resumed.model.network.load_state_dict(middle)
    resumed.optimizer.load_state_dict(state)
    resumed = dataclasses.replace(resumed, step=3)
    assert [resumed.train_step().loss for _ in range(3)] == losses[3:]
    again = Trainer.start(config(tmp_path / "run"), data)
    assert [again.train_step().loss for _ in range(6)] == losses
    for other in (resumed, again):
        assert all(torch.equal(v, weights(first)[k]) for k, v in weights(other).items())
    another = Trainer.start(config(tmp_path / "run", seed=1), data)
    assert another.train_step().loss != losses[0]


def test_a_run_without_augmentation_is_not_changed_by_the_option(tmp_path):
    """The published network has augment labels; trained without any, its term is left out."""
    data = digits()
    plain = Trainer.start(config(tmp_path, augment=None), data)
    never = Trainer.start(config(tmp_path, augment=Augment((XFlip(p=0.0),), p=0.0), network=NET), data)
    assert plain.model.network_config.augment_dim == 0 and never.model.network_config.augment_dim == 1
    kept = Trainer.start(config(tmp_path, augment=None, network=NET.replace(augment_dim=9)), data)
    before = weights(kept)["embedding.augment.weight"]
    kept.train_step()
    assert torch.equal(weights(kept)["embedding.augment.weight"], before)
    other = {k: v for k, v in weights(never).items() if "augment" not in k}
    plain.model.network.load_state_dict(other)
    assert plain.train_step().loss == pytest.approx(never.train_step().loss, rel=1e-6)


def test_a_trained_model_samples_without_augment_labels_as_with_zeros(tmp_path):
    run = ed.train(config(tmp_path / "run"), data=digits())
    model = ed.load(run)
    assert trained_with(model) == Augment(p=0.5)
    assert model.network_config.augment_dim == 9 and model.network.embedding.augment.weight.abs().max() > 0
    absent = ed.sample(model, ed.EDM.sampler.replace(steps=4), seeds=range(4))
    zeros = ed.sample(model, ed.EDM.sampler.replace(steps=4), seeds=range(4), augment_labels=torch.zeros(4, 9))
    others = ed.sample(model, ed.EDM.sampler.replace(steps=4), seeds=range(4), augment_labels=torch.ones(4, 9))
    assert torch.equal(absent.x, zeros.x) and (absent.x - others.x).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 12), (1, 6, 6, 6)])
def test_signals_and_volumes_train_with_augmentation(tmp_path, shape):
    data = from_arrays(noise(40, *shape).float().numpy(), None, None, name="waves")
    trainer = Trainer.start(
        config(tmp_path, augment=for_shape(shape, 0.5), network=ed.networks.MLP(width=16, depth=1)), data
    )
    first = trainer.model.network.embedding.augment.weight.clone()
    trainer.train_step()
    assert not torch.equal(trainer.model.network.embedding.augment.weight, first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": NET.replace(augment_dim=4)},
            "network.augment_dim: got 4, but the augmentation has 9 label entries",
        ),
        ({"augment": for_shape((1, 8))}, r"got samples of shape \(1, 8, 8\); expected channels and 1 spatial axes"),
        ({"augment": Augment(FULL)}, "hue: got samples of 1 channels; expected 3"),
    ],
)
def test_training_refuses_what_does_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ed.train(config(tmp_path / "run", **changes), data=digits())
    assert not (tmp_path / "run").exists()


def test_settings_of_the_command_line():
    data = digits()

    def of(*settings):
        return parse.apply_training_settings(ed.TrainConfig(), settings, data).augment

    assert of() is None and of("augment=none") is None
    assert of("augment.p=0.15") == Augment(p=0.15)
    assert of("augment=edm") == Augment()
    assert of("augment.p=0.2", "augment=translation,xflip") == Augment((XFlip(), Translation()), p=0.2)
    assert of('augment={"transforms": [{"kind": "scale", "std": 0.4}], "p": 1}') == Augment((Scale(std=0.4),), p=1.0)
    signal = from_arrays(np.zeros((4, 2, 16), dtype=np.float32), None, None, name="signal")
    assert parse.apply_training_settings(ed.TrainConfig(), ["augment.p=0.3"], signal).augment == for_shape((2, 16), 0.3)
    for bad, message in (("augment=xflop", "unknown transform"), ("augment.q=1", "unknown"), ("augment=full", None)):
        if message is None:
            assert of(bad) == Augment(FULL)
        else:
            with pytest.raises(ValueError, match=message):
                of(bad)


# Leaks


def thirds() -> list[torch.Tensor]:
    y = ed.data.load("digits").tensor()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    return [y[order[k : k + 500]] for k in (0, 500, 1000)]


def test_moments_against_direct_formulas():
    x = torch.full((1, 1, 5, 5), -1.0)
    x[0, 0, 1, 3] = x[0, 0, 2, 4] = 1.0  # two equal masses at (x, y) = (0.5, -0.5), (1, 0)
    m = moments(x, -1.0, 1.0)[0]
    background, k = 1e-3 * 2, 25
    total = 2 * 2 + background * k
    assert m[0] == pytest.approx(math.log(total), rel=1e-12)
    assert m[1:3].tolist() == pytest.approx([-2 * 0.5 / total, 2 * 1.5 / total], rel=1e-9)  # y, x
    assert moments(x.flip(-1), -1.0, 1.0)[0, 2] == pytest.approx(-float(m[2]), rel=1e-9)
    assert moments(x.flip(-1), -1.0, 1.0)[0, 6] == pytest.approx(-float(m[6]), rel=1e-9)
    assert m.shape == (8,) and m[7] > 0.5 and moments(x.flip(-1), -1.0, 1.0)[0, 7] < -0.5


@pytest.mark.parametrize(("part", "leaking"), [(0.0, False), (0.5, True), (1.0, True)])
def test_the_fraction_is_the_share_of_augmented_samples(part, leaking):
    """In a mixture of kernels mean embeddings mix linearly, so the projection is the share."""
    samples, data, others = thirds()
    pipeline = Augment(p=0.5)
    count = round(part * len(samples))
    samples = torch.cat([transformed(samples[:count], pipeline, 7), samples[count:]]) if count else samples
    found = compared(samples, data, transformed(others, pipeline, 0), permutations=199)
    assert abs(found.fraction - part) < 4 * found.error and found.error < 0.1
    assert found.leaks is leaking
    assert (found.p_data > 0.01) is (not leaking) and (found.p_augmented > 0.01) is (part == 1.0)


def test_the_energy_distance_is_its_definition():
    samples, data, others = (x[:20] for x in thirds())
    found = compared(samples, data, others, permutations=9)
    f, g = moments(samples, -1, 1), moments(data, -1, 1)
    f, g = f / g.std(0), g / g.std(0)
    cross = np.mean([[float((a - b).norm()) for b in g] for a in f])
    within = [np.mean([float((h[i] - h[j]).norm()) for i in range(20) for j in range(20) if i != j]) for h in (f, g)]
    assert found.samples_data == pytest.approx(2 * cross - sum(within), rel=1e-9)


def test_permutation_test_of_equal_distributions_is_uniform():
    from elucidiff.analysis.leak import _p_value

    values = [
        _p_value(noise(20, 2, seed=k), noise(20, 2, seed=1000 + k), 49, torch.Generator().manual_seed(k))
        for k in range(200)
    ]
    assert abs(np.mean(values) - 0.51) < 4 * math.sqrt(1 / 12 / 200)
    far = _p_value(noise(20, 2), noise(20, 2, seed=9) + 3, 49, torch.Generator().manual_seed(0))
    assert far == pytest.approx(1 / 50)


def test_what_cannot_be_told_is_not_told():
    samples, data, _ = thirds()
    found = compared(samples[:10], data[:10], data[10:20], permutations=19)
    assert found.leaks is None and json.dumps(found.to_dict(), allow_nan=False)


def test_leak_of_models_that_do_and_do_not_leak():
    data = ed.data.load("digits").subset(range(800))
    pipeline = Augment(p=0.5)
    sampler = ed.EDM.sampler.replace(steps=10)
    exact = ed.EmpiricalDenoiser(data.tensor())
    clean = leak(exact, data, sampler, pipeline, num=300, permutations=99)
    assert clean.leaks is False and clean.n == 300
    leaking = ed.EmpiricalDenoiser(transformed(data.tensor(), pipeline, 3))
    found = leak(leaking, data, sampler, pipeline, num=300, permutations=99)
    assert found.leaks is True and abs(found.fraction - 1) < 4 * found.error


def test_errors_of_the_test_for_leaks():
    data = digits(40)
    exact = ed.EmpiricalDenoiser(data.tensor())
    with pytest.raises(ValueError, match="trained without augmentation; say which one"):
        leak(exact, data, ed.EDM.sampler)
    with pytest.raises(ValueError, match=r"data have shape \(1, 8, 8\), the model \(2,\)"):
        leak(ed.EmpiricalDenoiser(noise(5, 2)), data, ed.EDM.sampler, Augment())
    with pytest.raises(ValueError, match="at least 8 are needed"):
        leak(exact, data.subset(range(7)), ed.EDM.sampler, Augment())
    with pytest.raises(ValueError, match="got shapes"):
        compared(noise(5, 1, 4, 4), noise(5, 1, 4, 5), noise(5, 1, 4, 4))


def test_the_command(capsys):
    assert (
        main(
            [
                "leak",
                "exact:digits",
                "digits",
                "--augment",
                "xflip,translation",
                "--num",
                "40",
                "--steps",
                "5",
                "--json",
            ]
        )
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["n"] == 40 and [t["kind"] for t in facts["augment"]["transforms"]] == ["xflip", "translation"]
    assert main(["leak", "exact:digits", "digits", "--augment", "edm", "--num", "40", "--steps", "5"]) == 0
    assert "samples and augmented data" in capsys.readouterr().out
    assert main(["leak", "exact:digits", "digits"]) == 2
    assert "--augment edm" in capsys.readouterr().err
