"""sample(): a sample depends on its own seed alone (N8), the order of draws, records, provenance, refusals."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import preconditioning as pc
from elucidiff import solvers as so
from elucidiff.networks import DDPMPP, MLP
from elucidiff.seeds import Seeds

F64 = torch.float64


def networks(dropout=0.0, label_dim=0):
    """A small convolutional network and a small perceptron, float32, with weights that do something."""
    torch.manual_seed(0)
    conv = DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=(), dropout=dropout).build((1, 4, 4), label_dim)
    mlp = MLP(width=16, depth=1, dropout=dropout).build((5,), label_dim)
    for network in (conv, mlp):
        for p in network.parameters():
            p.data = p.data + 0.1 * torch.randn_like(p)
    return {
        "conv": ed.Preconditioned(conv, pc.EDM(), shape=(1, 4, 4), label_dim=label_dim),
        "mlp": ed.Preconditioned(mlp, pc.EDM(), shape=(5,), label_dim=label_dim),
    }


SMALL = ed.Sampler(steps=3)
CHURN = ed.Sampler(steps=3, stochasticity=so.Churn(S_churn=2))
GAUSSIAN = ed.GaussianDenoiser(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 0.3], dtype=F64))


def labelled() -> ed.EmpiricalDenoiser:
    g = torch.Generator().manual_seed(1)
    return ed.EmpiricalDenoiser(torch.randn(30, 2, generator=g, dtype=F64), torch.arange(30) % 3)


# N8


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_a_sample_depends_on_its_seed_alone(kind):
    """100 random batches for each network: sizes 1 to 40, subsets, orders, repetitions."""
    denoiser = networks(label_dim=3)[kind]
    exact = ed.FixedBatch(denoiser, 16)
    everyone = ed.sample(exact, CHURN, seeds=range(40)).x
    assert everyone.std(0).min() > 0.01
    draw = random.Random(0)
    for case in range(100):
        seeds = [draw.randrange(40) for _ in range(draw.randint(1, 40))]
        assert torch.equal(ed.sample(exact, CHURN, seeds=seeds).x, everyone[seeds])
        if case % 5 == 0:  # without padding, and in batches
            size = draw.randint(1, 45)
            x = ed.sample(denoiser, CHURN, seeds=seeds, batch_size=draw.choice([None, size])).x
            assert (x - everyone[seeds]).norm() <= 1e-5 * everyone[seeds].norm()


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_the_batch_size_does_not_matter_to_the_exact_denoiser(size):
    sampler = ed.Sampler(stochasticity=so.Ancestral(), steps=8)
    whole = ed.sample(labelled(), sampler, seeds=range(10), record=True)
    parts = ed.sample(labelled(), sampler, seeds=range(10), batch_size=size, record=True)
    assert (whole.x - parts.x).abs().max() <= 1e-12
    assert torch.equal(whole.labels, parts.labels) and whole.nfe == parts.nfe
    assert (whole.trajectory.x - parts.trajectory.x).abs().max() <= 1e-9
    assert whole.trajectory.denoised.shape == parts.trajectory.denoised.shape == (8, 10, 2)


# the order of draws


@pytest.mark.parametrize("given", [None, [2, 0, 1, 1], 2])
def test_draws_come_in_the_order_latent_label_noise(given):
    seeds = [3, 11, 4, 2**40]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latent = torch.stack([torch.randn(2, generator=g) for g in generators])  # float32
    drawn = torch.stack([torch.randint(3, (), generator=g) for g in generators])
    labels = drawn if given is None else torch.full((4,), given) if isinstance(given, int) else torch.tensor(given)
    denoiser, sigmas = labelled(), SMALL.sigmas().tolist()
    x, gamma = latent.double() * sigmas[0], 2**0.5 - 1
    for a, b in itertools.pairwise(sigmas):
        noise, hat = torch.stack([torch.randn(2, generator=g, dtype=F64) for g in generators]), a * (1 + gamma)
        x = x + (hat**2 - a**2) ** 0.5 * noise
        D = denoiser(x, hat, labels=labels)
        x = D + b / hat * (x - D)
    result = ed.sample(denoiser, CHURN.replace(solver=so.Euler()), seeds=seeds, labels=given)
    assert (result.x - x).abs().max() <= 1e-12
    assert result.labels.argmax(1).tolist() == labels.tolist()


def test_noise_is_drawn_in_the_dtype_of_the_state():
    generator = torch.Generator().manual_seed(7)
    latent, noise = torch.randn(2, generator=generator), torch.randn(2, generator=generator, dtype=torch.float32)
    sampler = ed.Sampler(stochasticity=so.Churn(), steps=1, solver=so.Euler(), sigma_max=2.0)
    seen = []

    def denoiser(x, sigma):
        seen.append(x)
        return x / 2

    result = ed.sample(denoiser, sampler, seeds=[7], shape=(2,), dtype=torch.float32)
    assert seen[0].dtype == torch.float32 and result.x.dtype == torch.float32
    assert torch.allclose(seen[0][0], 2 * latent + 2 * noise, rtol=1e-6)  # gamma = sqrt 2 - 1: variance 4 becomes 8


def test_a_float32_state_follows_the_float64_one():
    a, b = (ed.sample(GAUSSIAN, ed.EDM, seeds=range(8), dtype=d).x for d in (torch.float32, F64))
    assert a.dtype == torch.float32 and b.dtype == F64
    assert 0 < (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("sampler", [SMALL, CHURN], ids=["ode", "churn"])
def test_latents_equal_the_seeds_they_come_from(sampler):
    latents = Seeds(range(5)).normal((2,), torch.float32)
    expected = ed.sample(GAUSSIAN, sampler, seeds=range(5)).x
    assert torch.equal(ed.sample(GAUSSIAN, sampler, latents=latents, seeds=range(5)).x, expected)
    if sampler is SMALL:
        assert torch.equal(ed.sample(GAUSSIAN, sampler, latents=latents).x, expected)
    other = ed.sample(GAUSSIAN, sampler, latents=latents + 1, seeds=range(5)).x
    assert not torch.equal(other, expected)


def test_a_design_samples_with_its_sampler():
    assert torch.equal(ed.sample(GAUSSIAN, ed.VP, seeds=[1]).x, ed.sample(GAUSSIAN, ed.VP.sampler, seeds=[1]).x)


def test_the_global_state_is_neither_read_nor_changed():
    before = torch.get_rng_state()
    a = ed.sample(GAUSSIAN, CHURN, seeds=[1]).x
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(ed.sample(GAUSSIAN, CHURN, seeds=[1]).x, a)


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give seeds="),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1.5]}, "1.5"),
        ({"seeds": [-1]}, "-1"),
        ({"seeds": [True]}, "True"),
        ({"seeds": [0], "shape": (3,)}, r"shape: got \(3,\); expected \(2,\)"),
        ({"latents": torch.zeros(2, 3)}, r"latents: got samples of shape \(3,\)"),
        ({"latents": torch.zeros(2, 2), "seeds": [0]}, "1 for 2 latents"),
        ({"seeds": [0, 1], "labels": [0, 3]}, "the classes are 0 to 2"),
        ({"seeds": [0, 1], "labels": [-1, 0]}, "the classes are 0 to 2"),
        ({"seeds": [0, 1], "labels": 3}, "the classes are 0 to 2"),
        ({"seeds": [0, 1], "labels": [0]}, r"expected class indices \(2,\)"),
        ({"seeds": [0, 1], "labels": torch.ones(2, 4)}, r"or vectors \(2, 3\)"),
        ({"latents": torch.zeros(2, 2)}, "labels= is needed"),
        ({"seeds": [0], "batch_size": 0}, "batch_size: got 0"),
        ({"seeds": [0], "batch_size": -3}, "batch_size: got -3"),
        ({"seeds": [0], "record": "foo"}, "record: got .*foo"),
        ({"seeds": [0], "record": ["x", "foo"]}, "record: got"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ed.sample(labelled(), SMALL, **arguments)


@pytest.mark.parametrize("noise", [so.Churn(), so.Ancestral()], ids=lambda n: n.kind)
def test_latents_without_seeds_are_refused_where_noise_is_drawn(noise):
    with pytest.raises(ValueError, match="give seeds="):
        ed.sample(GAUSSIAN, SMALL.replace(stochasticity=noise), latents=torch.zeros(1, 2))


def test_labels_for_a_model_without_classes_and_missing_shapes_are_refused():
    with pytest.raises(ValueError, match="without classes"):
        ed.sample(GAUSSIAN, SMALL, seeds=[0], labels=[0])
    with pytest.raises(ValueError, match="shape= is needed"):
        ed.sample(lambda x, sigma: x, SMALL, seeds=[0])
    with pytest.raises(TypeError, match="got str"):
        ed.sample("model", SMALL, seeds=[0])


def test_a_range_outside_the_models_is_refused_and_a_wider_one_narrowed():
    class Narrow(ed.GaussianDenoiser):
        sigma_min, sigma_max = 0.1, 5.0

    denoiser = Narrow(torch.zeros(2), 1.0)
    assert SMALL.sigmas(denoiser)[[0, -2]].tolist() == [5.0, 0.1]
    with pytest.raises(ValueError, match="sigma_min=10, sigma_max=5"):
        ed.sample(denoiser, SMALL.replace(sigma_min=10.0, sigma_max=50.0), seeds=[0])


# records, callbacks, states


@pytest.mark.parametrize(
    ("record", "x", "denoised"),
    [("x", True, False), (["denoised"], False, True), (True, True, True), (["x", "denoised"], True, True)],
)
def test_the_trajectory_is_what_was_asked_for(record, x, denoised):
    sampler = CHURN.replace(schedule=fm.VP(), scaling=fm.VariancePreserving())
    result = ed.sample(GAUSSIAN, sampler, seeds=range(4), record=record)
    kept, states = result.trajectory, list(ed.sample_states(GAUSSIAN, sampler, seeds=range(4)))
    sigmas = sampler.sigmas()
    assert torch.equal(kept.sigmas, sigmas) and torch.equal(result.sigmas, sigmas)
    assert (fm.VP().sigma(kept.t) - sigmas).abs().max() <= 1e-10 and kept.t[-1] == 0
    assert (kept.sigma_hat / sigmas[:-1] - 2**0.5).abs().max() <= 1e-12
    assert (kept.x is not None, kept.denoised is not None) == (x, denoised)
    if x:
        start = Seeds(range(4)).normal((2,), torch.float32).double() * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
        assert (kept.x[0] - start).abs().max() <= 1e-14
        assert torch.equal(kept.x[1:], torch.stack([s.x for s in states])) and torch.equal(kept.x[-1], result.x)
    if denoised:
        assert torch.equal(kept.denoised, torch.stack([s.denoised for s in states]))


def test_denoised_is_the_first_d_of_each_step():
    result = ed.sample(GAUSSIAN, SMALL, seeds=range(4), record=True)
    for i, sigma in enumerate(SMALL.sigmas()[:-1]):
        assert (result.trajectory.denoised[i] - GAUSSIAN(result.trajectory.x[i], sigma)).abs().max() <= 1e-13


def test_nothing_is_recorded_unasked():
    assert ed.sample(GAUSSIAN, SMALL, seeds=[0]).trajectory is None
    assert ed.sample(GAUSSIAN, SMALL, seeds=[0], record=False).trajectory is None


def test_the_callback_sees_every_step():
    seen = []
    result = ed.sample(GAUSSIAN, SMALL, seeds=range(4), callback=seen.append)
    assert [(s.i, s.steps, s.nfe) for s in seen] == [(0, 3, 2), (1, 3, 4), (2, 3, 5)]
    assert [s.sigma for s in seen] == SMALL.sigmas()[1:].tolist()
    assert torch.equal(seen[-1].x, result.x)


def test_states_can_be_stopped_and_equal_the_samples():
    states = ed.sample_states(GAUSSIAN, CHURN, seeds=range(4))
    first = next(states)
    states.close()
    whole = list(ed.sample_states(GAUSSIAN, CHURN, seeds=range(4)))
    assert torch.equal(first.x, whole[0].x)
    assert torch.equal(whole[-1].x, ed.sample(GAUSSIAN, CHURN, seeds=range(4)).x)


# modules


def modes(module):
    return [m.training for m in module.modules()]


def test_the_network_is_evaluated_without_dropout_and_gets_its_modes_back():
    denoiser = networks(dropout=0.5)["mlp"]
    denoiser.train()
    denoiser.network.norm.eval()
    before = modes(denoiser)
    a, b = (ed.sample(denoiser, SMALL, seeds=[0, 1]).x for _ in range(2))
    assert torch.equal(a, b)
    assert modes(denoiser) == before and not all(before) and any(before)


def test_the_modes_come_back_after_an_exception_and_after_a_stopped_run():
    denoiser = networks(dropout=0.5)["mlp"].train()

    def fail(state):
        assert not any(modes(denoiser))
        raise KeyError

    with pytest.raises(KeyError):
        ed.sample(denoiser, SMALL, seeds=[0], callback=fail)
    assert all(modes(denoiser))
    states = ed.sample_states(denoiser, SMALL, seeds=[0])
    next(states)
    states.close()
    assert all(modes(denoiser))


def test_no_graph_is_kept_unless_asked():
    denoiser = networks()["mlp"]
    assert not ed.sample(denoiser, SMALL, seeds=[0]).x.requires_grad
    assert not next(ed.sample_states(denoiser, SMALL, seeds=[0])).x.requires_grad


@pytest.mark.parametrize("solver", [so.Heun(), so.DPMpp2M(), so.RK4()], ids=lambda s: s.kind)
def test_gradients_through_the_sampler_equal_finite_differences(solver):
    latents = torch.tensor([[0.4, -1.1]], dtype=F64)
    mixture = ed.GaussianMixtureDenoiser(torch.tensor([[-1.0, 0.2], [0.8, 0.5]]), 0.3)
    shift = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def value(z, c):
        result = ed.sample(lambda x, sigma: mixture(x, sigma) + c, SMALL.replace(solver=solver), latents=z, grad=True)
        return (result.x**2).sum()

    latents.requires_grad_()
    gradients = torch.autograd.grad(value(latents, shift), (latents, shift))
    eps = 1e-6
    for i in range(2):
        step = torch.zeros(1, 2, dtype=F64)
        step[0, i] = eps
        numeric = (value(latents + step, shift) - value(latents - step, shift)) / (2 * eps)
        assert abs(gradients[0][0, i].item() - numeric.item()) <= 1e-6 * (1 + abs(numeric.item()))
    numeric = (value(latents, shift + eps) - value(latents, shift - eps)) / (2 * eps)
    assert abs(gradients[1].item() - numeric.item()) <= 1e-6 * (1 + abs(numeric.item()))


class Conditioned(ed.Denoiser):
    """D = x / 2 + shift, one shift a sample."""

    shape = (2,)

    def denoise(self, x, sigma, shift=None):
        return x / 2 + shift[:, None]


def test_conditions_of_a_row_each_are_split_with_the_batch():
    shift = torch.linspace(-1, 1, 7, dtype=F64)
    whole = ed.sample(Conditioned(), SMALL, seeds=range(7), shift=shift).x
    parts = ed.sample(Conditioned(), SMALL, seeds=range(7), shift=shift, batch_size=3).x
    assert (whole - parts).abs().max() <= 1e-13
    single = ed.sample(Conditioned(), SMALL, seeds=[5], shift=shift[5:6]).x
    assert (single - whole[5]).abs().max() <= 1e-13


# results


def image_denoiser(channels=3):
    data = torch.rand(10, channels, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 - 1
    return ed.EmpiricalDenoiser(data, torch.arange(10) % 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_saved_as_png_with_their_provenance(tmp_path, channels):
    result = ed.sample(image_denoiser(channels), CHURN, seeds=[0, 7, 1234567], labels=[1, 0, 1])
    folder = result.save(tmp_path / "out", model="exact")
    names = {"000000.png", "000007.png", "1234567.png"}
    assert {p.name for p in folder.iterdir()} == {*names, "samples.json", "manifest.json"}
    for name, x in zip(sorted(names), result.x, strict=True):
        pixels = np.asarray(Image.open(folder / name)).reshape(8, 8, channels)
        expected = (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        assert (pixels == expected.numpy()).all()
    kept = json.loads((folder / "samples.json").read_text())
    assert kept["seeds"] == [0, 7, 1234567] and kept["nfe"] == 5 and kept["model"] == "exact"
    assert kept["sigmas"] == CHURN.sigmas().tolist() and kept["shape"] == [3, channels, 8, 8]


def test_the_provenance_reproduces_the_samples(tmp_path):
    sampler = CHURN.replace(schedule=fm.VP(), scaling=fm.VariancePreserving(), solver=so.RK2(alpha=0.6))
    result = ed.sample(image_denoiser(), sampler, seeds=range(4), dtype=torch.float32)
    kept = json.loads((result.save(tmp_path / "out") / "samples.json").read_text())
    again = ed.sample(
        image_denoiser(), ed.Sampler.from_dict(kept["sampler"]), seeds=kept["seeds"], shape=kept["shape"][1:],
        labels=torch.tensor(kept["labels"]), dtype=getattr(torch, kept["dtype"]),
    )  # fmt: skip
    assert torch.equal(again.x, result.x)


def test_a_seed_used_twice_gives_two_files(tmp_path):
    result = ed.sample(image_denoiser(), SMALL, seeds=[3, 3, 4, 3], labels=[0, 1, 0, 1])
    folder = result.save(tmp_path / "out")
    assert sorted(p.name for p in folder.glob("*.png")) == ["000003-1.png", "000003-2.png", "000003.png", "000004.png"]


def test_other_shapes_are_saved_as_arrays(tmp_path):
    result = ed.sample(GAUSSIAN, SMALL, seeds=range(4))
    folder = result.save(tmp_path / "a" / "b")
    assert np.load(folder / "samples.npz")["samples"].tolist() == result.x.tolist()


def test_nothing_is_overwritten(tmp_path):
    result = ed.sample(GAUSSIAN, SMALL, seeds=range(4))
    folder = result.save(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match="would be overwritten"):
        result.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert (result.save(tmp_path / "empty") / "samples.npz").exists()


def test_samples_along_an_sde_of_functions_can_be_saved_too(tmp_path):
    sampler = SMALL.replace(schedule=fm.SDE(f=torch.zeros_like, g=torch.ones_like))
    folder = ed.sample(GAUSSIAN, sampler, seeds=range(4)).save(tmp_path / "out")
    assert "SDE(" in str(json.loads((folder / "samples.json").read_text())["sampler"])


def test_every_sampler_runs_on_every_shape():
    for shape in [(1,), (5,), (2, 3), (2, 4, 4), (1, 2, 2, 2)]:
        result = ed.sample(lambda x, sigma: x / (1 + sigma**2), CHURN, seeds=range(3), shape=shape)
        flat = ed.sample(lambda x, sigma: x / (1 + sigma**2), CHURN, seeds=range(3), shape=(int(np.prod(shape)),))
        assert torch.equal(result.x.reshape(3, -1), flat.x)
