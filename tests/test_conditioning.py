"""Conditions: images beside the noisy sample, and vectors as labels, from data to samples."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import elucidiff as ed
from elucidiff import analysis
from elucidiff.analysis.recommend import recommend
from elucidiff.cli.main import main
from elucidiff.conditioning import Conditioning, Grey, LowRes, Paired
from elucidiff.errors import FormatError
from elucidiff.request import asked_by_data
from elucidiff.training.watching import heldout

MLP = ed.networks.MLP(width=128, depth=2)


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b) ** 2).mean().sqrt())


HALF = LowRes(2)


def conditioned(conditioning=HALF, shape=(1, 8, 8), **options) -> ed.Preconditioned:
    """An untrained network whose output is not 0, and depends on all that it is given."""
    network = ed.networks.MLP(width=32, depth=1)
    model = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=shape, conditioning=conditioning, **options)
    torch.manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


class Reversed(torch.nn.Module):
    """F = the input's channels in reverse order: shows at which place the condition comes in."""

    def forward(self, x, c_noise, labels=None):
        return x.flip(1).double()


# The conditions


@pytest.mark.parametrize(
    ("shape", "mode"), [((2, 12), "linear"), ((3, 8, 12), "bilinear"), ((1, 4, 8, 4), "trilinear")]
)
def test_lowres_is_area_averaging_and_interpolation(shape, mode):
    y = noise(2, *shape)
    pooled = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(shape) - 1](y, 4)
    assert torch.allclose(LowRes(4).reduced(y), pooled, atol=1e-12)
    smooth = functional.interpolate(pooled, scale_factor=4, mode=mode, align_corners=False)
    blocks = functional.interpolate(pooled, scale_factor=4, mode="nearest")
    assert torch.allclose(LowRes(4).of(y), smooth, atol=1e-12)
    assert torch.allclose(LowRes(4, "nearest").of(y), blocks, atol=1e-12)
    assert LowRes(4).channels(shape) == shape[0]


def test_lowres_takes_small_images_and_enlarged_ones():
    y, shape = noise(3, 1, 8, 8), (1, 8, 8)
    for c in (LowRes(2), LowRes(2, "nearest")):
        assert torch.equal(c.prepare(c.reduced(y), shape), c.of(y))
        assert torch.equal(c.prepare(c.of(y), shape), c.of(y))  # prepared once is prepared
        assert torch.equal(c.prepare(c.reduced(y)[0], shape), c.of(y)[:1])


def test_grey_is_the_luma():
    y = noise(2, 3, 4, 4)
    luma = 0.299 * y[:, :1] + 0.587 * y[:, 1:2] + 0.114 * y[:, 2:]
    assert torch.allclose(Grey().of(y), luma, atol=1e-15)
    assert torch.equal(Grey().prepare(y, (3, 4, 4)), Grey().of(y))
    same = torch.full((1, 3, 2, 2), 0.7, dtype=torch.float64)
    assert torch.allclose(Grey().of(same), same[:, :1])  # the weights sum to 1
    assert Grey().channels((3, 4, 4)) == 1


@pytest.mark.parametrize("bad", [lambda: LowRes(1), lambda: LowRes(2, "cubic"), lambda: Paired(0)])
def test_conditions_that_make_no_sense_cannot_exist(bad):
    with pytest.raises(ValueError, match="expected"):
        bad()


@pytest.mark.parametrize(
    ("conditioning", "shape"), [(LowRes(4), (1, 8, 6)), (LowRes(2), (2,)), (Grey(), (1, 8, 8)), (Grey(), (3,))]
)
def test_samples_without_such_a_condition_are_refused(conditioning, shape):
    with pytest.raises(ValueError, match=r"samples of shape"):
        ed.Preconditioned(MLP, ed.preconditioning.EDM(), shape=shape, conditioning=conditioning)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(2, 1, 4, 2), ValueError, r"lowres.*low-resolution images \(B, 1, 4, 4\), or enlarged ones \(B, 1, 8, 8\)"),
        (torch.zeros(2, 3, 4, 4), ValueError, "expected low-resolution"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "uint8.*floating"),
        ([[0.0]], TypeError, "list.*floating"),
        (torch.full((1, 1, 4, 4), math.nan), ValueError, "NaN"),
        (torch.zeros(3, 1, 4, 4), ValueError, "got 3 for 2 samples"),
        (None, ValueError, "condition= is needed.*lowres"),
    ],
)  # fmt: skip
def test_a_condition_that_does_not_fit_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        ed.sample(conditioned(), ed.EDM, seeds=[0, 1], condition=given)


# The model


def test_the_network_sees_the_condition_and_its_last_channels_are_dropped():
    x, c = noise(4, 2, 8), noise(4, 1, 8, seed=1).float()
    sigma = torch.tensor([0.1, 0.5, 2.0, 10.0], dtype=torch.float64)
    p = ed.preconditioning.EDM(0.5)
    model = ed.Preconditioned(Reversed(), p, shape=(2, 8), conditioning=Paired(1))
    c_skip, c_out, c_in, _ = (v[:, None, None].float() for v in p.coefficients(sigma))
    x = x.float()  # the dtype of a network without parameters
    F = torch.cat([c, c_in * x[:, 1:]], 1)  # of [x0, x1, c] reversed: [c, x1, x0], without its last channel
    assert torch.allclose(model(x, sigma, condition=c), c_skip * x + c_out * F, atol=1e-6)


def test_all_networks_are_built_for_the_channels_of_both():
    for name in ("ddpmpp", "ncsnpp", "adm", "dit", "edm2"):
        small = {"channels": 8, "multipliers": (1, 2), "blocks": 1} if name != "dit" else {"depth": 1, "width": 16}
        network = ed.networks.Network.of_kind(name)(**small)
        model = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(3, 16, 16), conditioning=Grey()).eval()
        assert sum(p.numel() for p in model.parameters()) > 0
        D = model(noise(2, 3, 16, 16), 1.0, condition=noise(1, 1, 16, 16))
        assert D.shape == (2, 3, 16, 16)
        assert D.isfinite().all(), name


def test_a_condition_is_neither_forgotten_nor_given_to_models_without():
    x = noise(2, 1, 8, 8)
    with pytest.raises(ValueError, match="condition= is needed"):
        conditioned()(x, 1.0)
    with pytest.raises(ValueError, match="trained without"):
        conditioned(None)(x, 1.0, condition=x)
    with pytest.raises(ValueError, match="trained without"):
        ed.sample(conditioned(None), ed.EDM, seeds=[0], condition=x[:1])


def test_batches_wrappers_and_drives_give_the_same_bits():
    model, seeds = ed.FixedBatch(conditioned(), 4), range(7)
    small = noise(7, 1, 4, 4, dtype=torch.float32)
    sampler = ed.EDM.sampler.replace(steps=4, stochasticity=ed.solvers.Churn(S_churn=10))
    whole = ed.sample(model, sampler, seeds=seeds, condition=small).x
    assert torch.equal(ed.sample(model, sampler, seeds=seeds, condition=small, batch_size=3).x, whole)
    assert torch.equal(ed.sample(model, sampler, seeds=[5], condition=small[5]).x, whole[5:6])
    assert not torch.allclose(ed.sample(model, sampler, seeds=[5], condition=small[4]).x, whole[5:6], atol=1e-3)
    same = ed.sample(model, sampler, seeds=seeds, condition=small[:1]).x
    assert torch.equal(same, ed.sample(model, sampler, seeds=seeds, condition=small[:1].repeat(7, 1, 1, 1)).x)
    assert torch.equal(ed.sample(conditioned(), sampler, seeds=seeds, condition=small, batch_size=4).x, whole)
    *_, last = ed.sample_states(model, sampler, seeds=seeds, condition=small)
    assert torch.equal(last.x, whole)
    for s in (sampler, ed.EDM.sampler.replace(solver=ed.solvers.RK45(rtol=0.1), steps=3)):  # adaptive: one by one
        drive = ed.Drive(s, seeds=range(3), shape=(1, 8, 8), sigma_min=model.sigma_min, sigma_max=model.sigma_max)
        while (call := drive.call) is not None:
            drive.answer(model(call.x, call.sigma, condition=small[:3][drive.rows]))
        assert torch.equal(drive.result.x, ed.sample(model, s, seeds=range(3), condition=small[:3]).x)


def test_guidance_inversion_and_likelihood_pass_the_condition_on():
    model, small = conditioned(label_dim=3), noise(2, 1, 4, 4)
    sampler = ed.EDM.sampler.replace(steps=6, sigma_max=2.0)
    guided = ed.guidance.ClassifierFree(model, 1.0)
    plain = ed.sample(model, sampler, seeds=[0, 1], labels=1, condition=small)
    assert torch.equal(ed.sample(guided, sampler, seeds=[0, 1], labels=1, condition=small).x, plain.x)
    with pytest.raises(ValueError, match="condition= is needed"):
        ed.sample(guided, sampler, seeds=[0, 1], labels=1)
    x = noise(2, 1, 8, 8, seed=2)
    both = ed.invert(model, x, sampler, labels=1, condition=small)
    assert torch.allclose(ed.invert(model, x, sampler, labels=1, condition=small, batch_size=1), both, atol=1e-4)
    assert not torch.allclose(ed.invert(model, x, sampler, labels=1, condition=small.flip(0)), both, atol=1e-2)
    nats = ed.log_likelihood(model, x, sampler, labels=1, condition=small, probes=2).values
    alone = ed.log_likelihood(model, x[:1], sampler, labels=1, condition=small[:1], probes=2).values
    other = ed.log_likelihood(model, x[:1], sampler, labels=1, condition=small[1:], probes=2).values
    assert torch.allclose(alone, nats[:1], rtol=1e-3)
    assert not torch.allclose(other, nats[:1], rtol=1e-2)


def test_a_conditioned_model_is_saved_and_read_back(tmp_path):
    model, x, small = conditioned(LowRes(2, "nearest")), noise(2, 1, 8, 8), noise(2, 1, 4, 4)
    ed.save(model, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "model.json").read_text())
    assert stored["conditioning"] == {"kind": "lowres", "factor": 2, "filter": "nearest"}
    back = ed.load(tmp_path / "model")
    assert back.conditioning == LowRes(2, "nearest")
    assert torch.equal(back(x, 1.0, condition=small), model(x, 1.0, condition=small))
    ed.save(back, tmp_path / "again")
    card = ed.model_card(back)
    assert "lowres(factor=2, filter=nearest)" in card
    assert "seeds=range(16), condition=condition)" in card
    assert "unconditional" not in card
    ed.save(conditioned(None), tmp_path / "plain")
    assert not {"conditioning", "vector_labels"} & set(json.loads((tmp_path / "plain" / "model.json").read_text()))
    assert Conditioning.from_dict(Paired(3).to_dict()) == Paired(3)


def test_a_model_file_with_an_unknown_condition_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LowRes, "to_dict", lambda self: {"kind": "lowress"})
    ed.save(conditioned(), tmp_path / "model")
    with pytest.raises(FormatError, match="unknown conditioning 'lowress'"):
        ed.load(tmp_path / "model")


# Training


def test_super_resolution_follows_its_condition(tmp_path, capsys):
    settings = ["condition=lowres", "condition.filter=nearest", "network=mlp", "network.width=128", "network.depth=2"]
    settings += ["batch=64", "lr=0.003", "ema_halflife=4000", "heldout=0.1", "snapshots=1"]
    run = str(tmp_path / "run")
    assert main(["train", "digits", "--out", run, "--images", "24000", "--set", *settings]) == 0
    model = ed.load(run)
    assert model.conditioning == LowRes(4, "nearest")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["condition"] == model.conditioning.to_dict()
    truth = ed.data.load("digits").split(0.1)[1].tensor()[:64]
    small = model.conditioning.reduced(truth)
    x = ed.sample(model, ed.EDM, seeds=range(64), condition=small).x.float()
    off, by_chance = rms(model.conditioning.reduced(x), small), rms(model.conditioning.reduced(x), small.roll(1, 0))
    assert off < by_chance / 5, (off, by_chance)  # 0.03 and 0.28 as measured

    # the same from files: a folder of full-size images, low-resolution arrays, one picture for all
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = ((truth[i, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    np.save(tmp_path / "small.npy", small[:3].numpy())
    capsys.readouterr()
    for name, source in {"a": "images", "b": "small.npy", "c": "images/1.png"}.items():
        out = tmp_path / name
        argv = ["sample", run, "--out", str(out), "--seeds", "0-2", "--condition", str(tmp_path / source)]
        assert main(argv) == 0, capsys.readouterr().err
        pictures = [ed.data.load(out).tensor()]
        wanted = small[[1, 1, 1]] if name == "c" else small[:3]
        assert rms(model.conditioning.reduced(pictures[0]), wanted) < 0.1
        assert json.loads((out / "samples.json").read_text())["condition"].endswith(source)
    capsys.readouterr()
    for argv, message in {
        (): "--condition is needed",
        ("--condition", str(tmp_path / "small.npy")): "got 3 images for 2 seeds",
        ("--condition", str(tmp_path / "missing.png")): "no such file",
    }.items():
        assert main(["sample", run, "--out", str(tmp_path / "new"), "--seeds", "0-1", *argv]) == 2
        assert message in capsys.readouterr().err
    argv = ["sample", "exact:digits", "--out", str(tmp_path / "new"), "--condition", str(tmp_path / "small.npy")]
    assert main(argv) == 2
    assert "trained without" in capsys.readouterr().err


def test_the_loss_of_a_conditioned_model_makes_the_condition_itself():
    model, y = conditioned(LowRes(2)), noise(4, 1, 8, 8)

    def loss(**condition):
        return ed.loss(model, y, ed.EDM.objective, generator=torch.Generator().manual_seed(0), **condition)

    assert torch.equal(loss(), loss(condition=LowRes(2).of(y)))
    assert not torch.equal(loss(), loss(condition=LowRes(2).of(-y)))


def test_training_refuses_what_does_not_fit(tmp_path, capsys):
    ed.save(conditioned(), tmp_path / "model")
    for settings, message in {
        ("condition=grey",): "colour images",
        ("condition=lowres", "condition.factor=3"): "3 does not divide",
        ("condition=lowress",): "did you mean 'lowres'",
        ("condition=grey", f"init={tmp_path / 'model'}"): "has lowres",
    }.items():
        assert main(["train", "digits", "--out", str(tmp_path / "run"), "--images", "64", "--set", *settings]) == 2
        assert message in capsys.readouterr().err, message
    assert not (tmp_path / "run").exists()
    assert "condition" not in ed.TrainConfig().to_dict()


# Measurements: samples follow the data's own conditions


class Follows(ed.Denoiser):
    """D is the condition, whatever x is: every sample ends in it."""

    shape, conditioning = (1, 8, 8), HALF

    def denoise(self, x, sigma, condition=None, **conditions):
        return condition.to(x)


def test_samples_that_are_measured_follow_the_data(vector_run):
    data = ed.data.load("digits")
    asked = asked_by_data(conditioned(label_dim=10), data, [3, len(data) + 5])
    y, labels = data.batch([3, 5])
    assert torch.equal(asked["condition"], HALF.of(y)) and torch.equal(asked["labels"], labels)
    assert asked_by_data(ed.EmpiricalDenoiser(y, labels, 10), data, [3]) == {}  # a class can be drawn
    vectors = ed.data.load(vector_run.parent / "data.npz")
    asked = asked_by_data(ed.load(vector_run), vectors, [7, 8])
    assert set(asked) == {"labels"} and torch.equal(asked["labels"], vectors.batch([7, 8])[1])
    with pytest.raises(ValueError, match="digits: has no conditions, and the model is conditioned by paired"):
        asked_by_data(conditioned(Paired(1)), data, [0])
    with pytest.raises(ValueError, match="plain: has no labels, and the model's are vectors"):
        asked_by_data(ed.load(vector_run), ed.data.from_arrays(vectors.values, None, None, name="plain"), [0])


def test_comparisons_give_a_model_the_conditions_of_the_data_that_are_no_reference():
    data = ed.data.load("digits")
    samplers = {"heun": ed.Sampler()}
    found = analysis.compare(Follows(), data, samplers, [5], num=60, repeats=1, metrics=["fd"], first_seed=7)
    reference, rest = analysis.reference_and_real(data, 0.5)
    blurred = HALF.of(rest.batch(range(7, 67))[0]).double()
    (expected,) = analysis.score_samples(blurred, reference, rest, metrics=["fd"])
    assert found.points[0].scores["fd"].mean == pytest.approx(expected.value, rel=1e-9)
    assert found.points[0].scores["fd"].mean > 2 * found.real["fd"]


def test_loss_and_recommendation_give_each_sample_its_own_condition():
    data = ed.data.load("digits")
    y = data.batch(range(16))[0]
    sigma, weighting = torch.tensor([0.1, 2.0]), ed.EDM.objective.weighting
    profile = analysis.loss_profile(Follows(), data, weighting, sigma, samples=16)
    expected = weighting(sigma.double()) * (HALF.of(y) - y).double().square().mean()
    assert torch.allclose(profile.mean, expected, rtol=1e-5)
    (one,) = recommend(
        Follows(),
        [4],
        learning=range(12),
        fresh=range(40, 48),
        asked=lambda seeds: asked_by_data(Follows(), data, seeds),
    )
    assert one.error < 1e-6 < one.scale  # exact samples and the sampler's follow the same images


def test_scores_of_a_training_take_class_and_image_of_one_sample(tmp_path, monkeypatch):
    data, asked = ed.data.load("digits"), {}

    def remembered(*args, **given):
        asked.update(given)
        return ed.sample(*args, **given)

    monkeypatch.setattr(heldout, "sample", remembered)
    config = ed.TrainConfig(
        network=ed.networks.MLP(width=16, depth=1), condition=HALF, images=64, batch=64, heldout=0.1, scores=("fd",),
        score_num=60, snapshots=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    ed.train(config, data=data)
    y, labels = data.split(0.1)[1].batch(range(60))
    assert torch.equal(asked["condition"], HALF.of(y)) and torch.equal(asked["labels"], labels)


@pytest.mark.filterwarnings("ignore:.*samples for.*features")
def test_a_conditioned_model_is_analysed_with_the_conditions_of_the_data(tmp_path, capsys, vector_run):
    ed.save(conditioned(), tmp_path / "model")
    argv = ["analyze", str(tmp_path / "model"), "--nfe", "4", "--samples", "4", "--num", "48"]
    assert main([*argv[:2], "digits", *argv[2:], "--out", str(tmp_path / "out")]) == 0
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert {"recommendation", "truncation", "curvature", "denoised", "decided", "loss"} < set(numbers)
    assert [curve["name"] for curve in numbers["denoised"]["curves"]] == ["model"]  # the exact one has no condition
    _, rest = analysis.reference_and_real(ed.data.load("digits"))
    rows = [seed % len(rest) for seed in range(3000, 3004)]
    model, c = ed.load(tmp_path / "model"), HALF.of(rest.batch(rows)[0])
    direct = analysis.curvature(model, seeds=range(3000, 3004), condition=c).to_dict()
    other = analysis.curvature(model, seeds=range(3000, 3004), condition=c.roll(1, 0)).to_dict()
    assert numbers["curvature"] == json.loads(json.dumps(direct)) != json.loads(json.dumps(other))
    capsys.readouterr()
    assert main(argv) == 2
    assert "DATA is needed: samples of this model follow" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*samples for.*features")
def test_evaluate_gives_a_conditioned_model_the_conditions_of_the_data(tmp_path, capsys, vector_run):
    ed.save(conditioned(label_dim=10), tmp_path / "model")
    argv = ["evaluate", str(tmp_path / "model"), "digits", "--metrics", "fd", "--seeds", "895-904", "--steps", "2"]

    def drawn(name: str, *options: str) -> tuple[torch.Tensor, dict]:
        assert main([*argv, "--json", "--save", str(tmp_path / name), *options]) == 0
        return ed.data.load(tmp_path / name).tensor(), json.loads(capsys.readouterr().out)

    x, told = drawn("followed")
    rest = ed.data.load("digits").split(0.5)[0]  # the other part is the reference
    assert len(rest) == 899 and told["labels"] == told["condition"] == "of digits"
    y, labels = rest.batch([seed % 899 for seed in range(895, 905)])
    small, classes = HALF.reduced(y), ",".join(str(int(row.argmax())) for row in labels)
    np.save(tmp_path / "small.npy", small.numpy())
    named, said = drawn("named", "--condition", str(tmp_path / "small.npy"), "--labels", classes)
    assert torch.equal(x, named) and said["labels"] == classes
    np.save(tmp_path / "other.npy", small.roll(1, 0).numpy())
    assert not torch.equal(x, drawn("other", "--condition", str(tmp_path / "other.npy"), "--labels", classes)[0])
    assert main([*argv, "--labels", classes]) == 2  # classes of one's own have no images in the data
    assert "--condition is needed" in capsys.readouterr().err

    points = vector_run.parent / "data.npz"
    assert main(["evaluate", str(vector_run), str(points), "--metrics", "fd", "--num", "9", "--steps", "2"]) == 0
    assert "seeds 0-8, labels of data" in capsys.readouterr().out


# Pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Digits, each paired with its mirror image and a channel that says nothing."""
    images = ed.data.load("digits").values
    rest = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    np.savez(path, images=images, condition=np.concatenate([images[..., ::-1], rest], 1))
    return path


def test_image_to_image_follows_the_pairs_of_the_data(pairs, tmp_path, capsys):
    settings = ["condition=paired", "network=mlp", "network.width=128", "network.depth=2", "batch=64", "lr=0.003"]
    settings += ["ema_halflife=4000", "heldout=0.1", "accumulate=2", "snapshots=1"]
    run = str(tmp_path / "run")
    assert main(["train", str(pairs), "--out", run, "--images", "24000", "--set", *settings]) == 0
    model, heldout = ed.load(run), ed.data.load(pairs).split(0.1)[1]
    assert model.conditioning == Paired(2)
    truth = heldout.tensor()[:64]
    x = ed.sample(model, ed.EDM, seeds=range(64), condition=heldout.conditions(range(64))).x
    assert rms(x, truth) < rms(x, truth.roll(1, 0)) / 3, (rms(x, truth), rms(x, truth.roll(1, 0)))
    np.savez(tmp_path / "some.npz", images=heldout.values[:3], condition=heldout.condition[:3])
    argv = ["sample", run, "--out", str(tmp_path / "out"), "--seeds", "0-2", "--condition", str(tmp_path / "some.npz")]
    assert main(argv) == 0, capsys.readouterr().err
    written = ed.data.load(tmp_path / "out").tensor()
    assert rms(written, x[:3].clamp(-1, 1).float()) < 0.01
    for bad, message in {("condition.K=1",): "(N, 1, 8, 8)", ("augment=xflip",): "augment: would move"}.items():
        argv = ["train", str(pairs), "--out", str(tmp_path / "new"), "--images", "64", "--set", *settings, *bad]
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "digits", "--out", str(tmp_path / "new"), "--images", "64", "--set", "condition=paired"]) == 2
    assert "got none" in capsys.readouterr().err


def test_pairs_stay_with_their_samples(pairs, tmp_path):
    data = ed.data.load(pairs)
    for part in (data.subset([5, 2]), *data.split(0.3)):
        rows = torch.arange(len(part))
        assert torch.equal(part.conditions(rows)[:, :1], part.batch(rows)[0].flip(-1))
    plain = ed.data.Dataset(data.values)
    assert plain.conditions([0]) is None
    assert (
        len(
            {data.fingerprint(), plain.fingerprint(), ed.data.Dataset(data.values, condition=data.values).fingerprint()}
        )
        == 3
    )
    np.savez(tmp_path / "bad.npz", images=data.values[:3], condition=data.condition[:3, :, :4])
    with pytest.raises(FormatError, match=r"condition: got uint8 \(3, 2, 4, 8\)"):
        ed.data.load(tmp_path / "bad.npz")


def test_points_may_have_numbers_beside_them(tmp_path):
    y = noise(500, 2, dtype=torch.float32)
    np.savez(tmp_path / "points.npz", data=y.numpy(), condition=y.sum(1).numpy())
    data = ed.data.load(tmp_path / "points.npz")
    model = ed.Preconditioned(MLP, ed.preconditioning.EDM(), shape=(2,), conditioning=Paired(1))
    assert data.conditions([0, 1]).shape == (2, 1)
    assert model(y[:4], 1.0, condition=data.conditions(range(4))).shape == (4, 2)


# Vectors as labels


A = torch.tensor([[0.5, -0.3], [0.2, 0.4]])


@pytest.fixture(scope="module")
def vector_run(tmp_path_factory):
    """y = A v + 0.1 n with labels v in [-1, 1]^2: a regression on two numbers."""
    folder = tmp_path_factory.mktemp("vectors")
    v = 2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 1
    y = v @ A.T + 0.1 * noise(4000, 2, seed=1, dtype=torch.float32)
    np.savez(folder / "data.npz", data=y.numpy(), labels=v.numpy())
    config = ed.TrainConfig(
        data=str(folder / "data.npz"), out=str(folder / "run"), network=ed.networks.MLP(width=64, depth=2), images=100_000,
        batch=256, lr=5e-3, ema_halflife=10_000.0,
    )  # fmt: skip
    return ed.train(config)


def test_the_mean_depends_on_the_vector_as_in_the_data(vector_run):
    model = ed.load(vector_run)
    assert (model.label_dim, model.vector_labels) == (2, True)
    for v in ([0.8, 0.5], [-0.6, 0.9], [0.0, -0.9]):
        x = ed.sample(model, ed.EDM, seeds=range(256), labels=torch.tensor(v)).x.float()  # one vector for all
        assert torch.allclose(x.mean(0), A @ torch.tensor(v), atol=0.05), (v, x.mean(0))
        assert torch.allclose(x.std(0), torch.tensor(0.1), atol=0.03), x.std(0)
    v = noise(6, 2, dtype=torch.float32).clamp(-1, 1)
    each = ed.sample(ed.FixedBatch(model, 4), ed.EDM, seeds=range(6), labels=v)
    assert torch.equal(each.labels, v)
    alone = ed.sample(ed.FixedBatch(model, 4), ed.EDM, seeds=[4], labels=v[4:5])
    assert torch.equal(alone.x, each.x[4:5])
    ed.save(model, vector_run / "copy")
    assert ed.load(vector_run / "copy").vector_labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels= is needed.*vectors"),
        (1, "labels are vectors"),
        ([0, 1, 1], "labels are vectors"),
        (torch.zeros(3, 4), r"expected class indices|vectors \(3, 2\)"),
        (torch.tensor([0.1, math.inf]), "infinity"),
    ],
)
def test_labels_that_are_no_vectors_are_refused(vector_run, labels, message):
    with pytest.raises(ValueError, match=message):
        ed.sample(ed.load(vector_run), ed.EDM, seeds=range(3), labels=labels)


def test_vectors_on_the_command_line(vector_run, tmp_path, capsys):
    rows = torch.tensor([[0.8, 0.5], [-0.6, 0.9]])
    np.save(tmp_path / "labels.npy", rows.numpy())
    (tmp_path / "labels.csv").write_text("0.8,0.5\n-0.6,0.9\n")
    (tmp_path / "wide.csv").write_text("0.8,0.5,1\n")
    (tmp_path / "words.csv").write_text("red,green\n")
    wanted = ed.sample(ed.load(vector_run), ed.EDM, seeds=range(4), labels=rows[[0, 1, 0, 1]]).labels
    for name, given in {"a": tmp_path / "labels.npy", "b": tmp_path / "labels.csv", "c": "0.8,0.5;-0.6,0.9"}.items():
        argv = ["sample", str(vector_run), "--out", str(tmp_path / name), "--seeds", "0-3", f"--labels={given}"]
        assert main(argv) == 0, capsys.readouterr().err
        stored = json.loads((tmp_path / name / "samples.json").read_text())
        assert torch.allclose(torch.tensor(stored["labels"]), wanted)
        with np.load(tmp_path / name / "samples.npz") as arrays:
            mean = arrays["samples"][1]
        assert np.abs(mean - (A @ rows[1]).numpy()).max() < 0.5
    capsys.readouterr()
    for given, message in {
        "3": "1 rows of 1; this model's labels are vectors of 2",
        "a,b": "expected numbers such as",
        str(tmp_path / "wide.csv"): "1 rows of 3",
        str(tmp_path / "words.csv"): "cannot be read as rows of numbers",
        str(tmp_path / "none.npy"): "no such file",
        "nan,1": "NaN",
    }.items():
        assert (
            main(["sample", str(vector_run), "--out", str(tmp_path / "new"), "--seeds", "0", f"--labels={given}"]) == 2
        )
        assert message in capsys.readouterr().err, given
    assert main(["sample", str(vector_run), "--out", str(tmp_path / "new"), "--seeds", "0"]) == 2
    assert "labels= is needed" in capsys.readouterr().err


def test_classes_from_a_file(tmp_path, capsys):
    np.save(tmp_path / "classes.npy", np.array([3, 7]))
    argv = ["sample", "exact:digits", "--out", str(tmp_path / "out"), "--seeds", "0-2", "--labels", str(tmp_path / "classes.npy")]  # fmt: skip
    assert main(argv) == 0, capsys.readouterr().err
    stored = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert torch.tensor(stored["labels"]).argmax(1).tolist() == [3, 7, 3]


def test_vectors_of_a_picture_folder_train(tmp_path):
    """dataset.json with a vector for each file: soft classes where there are class names, else plain vectors."""
    for classes, vectors in ((None, True), (["dark", "light"], False)):
        folder = tmp_path / f"{vectors}"
        folder.mkdir()
        labels = []
        for i in range(4):
            Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(folder / f"{i}.png")
            labels.append([f"{i}.png", [1 - i / 4, i / 4]])
        (folder / "dataset.json").write_text(json.dumps({"labels": labels} | ({"classes": classes} if classes else {})))
        config = ed.TrainConfig(data=str(folder), out=str(folder / "run"), network=MLP, images=64, batch=32)
        model = ed.load(ed.train(config))
        assert (model.label_dim, model.vector_labels) == (2, vectors)
        x = ed.sample(model, ed.EDM, seeds=range(2), labels=torch.tensor([0.5, 0.5])).x
        assert x.shape == (2, 1, 8, 8)


def test_the_readme_s_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    block = next(b for b in blocks if "condition=superres" in b)
    block = block.replace("condition=superres", "condition=superres, images=128, network=ed.networks.MLP(width=32)")
    scope = {"ed": ed}
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["small"].shape == (16, 1, 2, 2)
