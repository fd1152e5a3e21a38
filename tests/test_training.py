"""Training: counter-based draws, EMA in closed form, the loop, the loss, what a run directory holds."""

import json
import math

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.data import from_arrays
from elucidiff.seeds import Stream, permutation
from elucidiff.training import EMA, Trainer, ema_beta
from elucidiff.training.draws import Order, draw

TINY = ed.networks.MLP(width=16, depth=1)


def points(n: int = 200, std: float = 0.8) -> ed.data.Dataset:
    """A 2-D Gaussian with classes by quadrant."""
    x = np.random.default_rng(0).normal(0.3, std, (n, 2)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int64) + 2 * (x[:, 1] > 0)
    return from_arrays(x, labels, None, name="points")


def tiny_config(path, **changes) -> ed.TrainConfig:
    config = ed.TrainConfig(out=str(path), network=TINY, images=640, batch=64, lr_ramp=100, snapshots=1)
    return config.replace(**changes)


def test_a_sample_of_a_step_depends_on_seed_step_and_index_alone():
    data, noise = points(), ed.objective.LogNormal()
    whole = draw(data, Order(len(data), 3), noise, 7, 32)
    part = draw(data, Order(len(data), 3), noise, 7, 8)  # a smaller batch at another position of the epoch
    assert torch.equal(whole.sigma[:8], part.sigma) and torch.equal(whole.n[:8], part.n)
    assert not torch.equal(whole.n, draw(data, Order(len(data), 4), noise, 7, 32).n)
    assert not torch.equal(whole.n, draw(data, Order(len(data), 3), noise, 8, 32).n)
    expected = np.random.Generator(np.random.Philox(key=[3, Stream.NOISE], counter=[0, 5, 7, 0]))
    assert np.array_equal(whole.n[5].numpy(), expected.standard_normal(2, dtype=np.float32))


def test_every_sample_comes_once_an_epoch_wherever_one_starts():
    order = Order(10, 0)
    assert sorted(order.at(20, 10)) == list(range(10))
    assert list(order.at(17, 6)) == [*permutation(10, 0, 1)[7:], *permutation(10, 0, 2)[:3]]


def test_label_dropout_zeroes_the_asked_fraction():
    data = points(4000)
    drawn = draw(data, Order(len(data), 0), ed.objective.LogNormal(), 0, 4000, label_dropout=0.3)
    dropped = (drawn.labels.sum(1) == 0).double().mean().item()
    assert abs(dropped - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_noise_levels_follow_the_distribution():
    drawn = draw(points(), Order(200, 0), ed.objective.LogNormal(P_mean=-1.0, P_std=0.7), 0, 20_000)
    z = (drawn.sigma.log() + 1.0) / 0.7
    assert abs(z.mean()) < 4 / math.sqrt(20_000) and abs(z.var() - 1) < 4 * math.sqrt(2 / 20_000)


def test_ema_beta_is_the_formula():
    assert ema_beta(64, 500_000, 2_000_000, 0.05) == pytest.approx(0.5 ** (64 / 100_000), rel=1e-14)
    assert ema_beta(64, 500_000, 1e9, 0.05) == pytest.approx(0.5 ** (64 / 500_000), rel=1e-14)
    assert ema_beta(64, 500_000, 0, 0.05) == 0.0
    assert ema_beta(64, 64, 0, None) == 0.5


def test_ema_is_the_weighted_sum_in_closed_form():
    module = torch.nn.Linear(3, 2).double()
    ema, weights, betas = EMA(module), [module.weight.detach().clone()], []
    for k in range(1, 21):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3, dtype=torch.float64))
        betas.append(ema_beta(10, 40.0, 10 * k))
        weights.append(module.weight.detach().clone())
        ema.update(betas[-1])
    expected = weights[0] * math.prod(betas)
    for k in range(20):
        expected += weights[k + 1] * (1 - betas[k]) * math.prod(betas[k + 1 :])
    assert (ema.module.weight - expected).abs().max() < 1e-12


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    data = points()
    first, second, other = (
        ed.load(ed.train(tiny_config(tmp_path / name, seed=seed), data=data))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_training_leaves_the_global_random_state_alone(tmp_path):
    before = torch.random.get_rng_state()
    ed.train(tiny_config(tmp_path / "run", network=TINY.replace(dropout=0.2)), data=points())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_trained_model_denoises_a_gaussian_like_the_exact_one(tmp_path):
    data = points(2000)
    config = tiny_config(tmp_path / "run", network=ed.networks.MLP(width=64, depth=2), images=100_000, batch=256,
                         ema_halflife=10_000.0, conditional=False, lr=2e-3)  # fmt: skip
    model = ed.load(ed.train(config, data=data))
    y = data.tensor().double()
    exact = ed.GaussianDenoiser(y.mean(0), torch.cov(y.T))
    noise = torch.randn(512, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for sigma in (0.2, 0.6, 2.0):
        x = y[:512] + sigma * noise
        error = (model(x, sigma) - exact(x, sigma)).norm() / (y[:512] - exact(x, sigma)).norm()
        assert error < 0.15  # of the error that even the exact denoiser cannot avoid


def test_sigma_data_is_measured_used_and_written(tmp_path):
    data = points(std=1.7)
    model = ed.load(ed.train(tiny_config(tmp_path / "run"), data=data))
    assert model.preconditioning.sigma_data == pytest.approx(data.values.std(dtype=np.float64), rel=1e-6)
    assert model.info["design"]["objective"]["weighting"]["sigma_data"] == model.preconditioning.sigma_data


def test_a_wrong_sigma_data_is_used_with_a_warning(tmp_path):
    with pytest.warns(ed.data.SigmaDataWarning, match=r"sigma_data is set to 0\.5"):
        trainer = Trainer.start(tiny_config(tmp_path, sigma_data=0.5), points(std=1.0))
    assert trainer.model.preconditioning.sigma_data == 0.5


def test_the_run_directory(tmp_path):
    run = ed.train(tiny_config(tmp_path / "run", images=4000, snapshots=2), data=points())
    assert ed.TrainConfig.load(run / "config.json").images == 4000
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["images"] == math.ceil(4000 / 64) * 64 and lines[0]["loss"] > 0
    assert [p.name for p in sorted((run / "snapshots").iterdir())] == ["000002", "000004"]
    with pytest.raises(FileExistsError, match="would be overwritten"):
        ed.train(tiny_config(run), data=points())


def test_the_held_out_part_is_not_trained_on(tmp_path):
    data = points()
    run = ed.train(tiny_config(tmp_path / "run", heldout=0.25), data=data)
    assert ed.load(run).info["data"]["fingerprint"] == data.split(0.25)[0].fingerprint()


@pytest.mark.parametrize(
    "bad", [{"images": 0}, {"batch": 0}, {"lr": 0.0}, {"heldout": 1.0}, {"label_dropout": 1.5}, {"seed": -1}]
)
def test_invalid_configurations_cannot_exist(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ed.TrainConfig(**bad)


@pytest.mark.parametrize("name", ["VP", "VE", "IDDPM", "EDM"])
def test_the_loss_is_a_sum_over_pixels_with_the_designs_weight(name):
    design = getattr(ed, name)
    y = torch.randn(6, 3, 4, dtype=torch.float64)
    seen = {}

    def halve(x, sigma):
        seen["x"], seen["sigma"] = x, sigma
        return x / 2

    losses = ed.loss(
        ed.denoiser.FunctionDenoiser(halve), y, design.objective, generator=torch.Generator().manual_seed(0)
    )
    sigma = seen["sigma"]
    lam = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 if name == "EDM" else 1 / sigma**2
    expected = lam * ((seen["x"] / 2 - y) ** 2).sum((1, 2))
    assert losses.shape == (6,) and torch.allclose(losses, expected, rtol=1e-12)


def test_monte_carlo_loss_equals_quadrature_on_a_gaussian():
    std, n = 0.7, 40_000
    objective = ed.Objective(noise=ed.objective.LogNormal(), weighting=ed.objective.EDM())
    generator = torch.Generator().manual_seed(0)
    y = std * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    losses = ed.loss(ed.GaussianDenoiser(torch.zeros(1), std**2), y, objective, generator=generator)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    sigma = (-1.2 + 1.2 * z).exp()
    lam = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    posterior = std**2 * sigma**2 / (std**2 + sigma**2)  # E |D - y|^2 of the exact denoiser
    density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
    expected = torch.trapezoid(lam * posterior * density, z)
    assert abs(losses.mean() - expected) < 3 * losses.std() / math.sqrt(n)


def test_augment_labels_reach_the_network():
    network = TINY.replace(augment_dim=2)
    model = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(2,))
    y = torch.randn(5, 2)
    seen = []
    model.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["augment_labels"]), with_kwargs=True
    )
    ed.loss(model, y, ed.Objective(), augment=lambda y, g: (-y, torch.ones(len(y), 2)))
    assert torch.equal(seen[0], torch.ones(5, 2))


def test_magnitude_preserving_weights_are_normalised_once_a_step(tmp_path):
    """EDM2: whatever Adam has left, at the loss every output's weights have unit RMS."""
    from elucidiff.networks.magnitude import MPLayer

    network = ed.networks.EDM2(channels=16, multipliers=(1,), blocks=1, attention=(8,))
    config = ed.TrainConfig(data="digits", out=str(tmp_path), images=16, batch=16, network=network, lr=1e-12)
    trainer = Trainer.start(config, ed.data.load("digits"))
    layers = [module for module in trainer.model.modules() if isinstance(module, MPLayer)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(3)
    trainer.train_step()
    rms = torch.cat([layer.weight.detach().flatten(1).square().mean(1).sqrt() for layer in layers])
    assert len(layers) > 5 and float((rms - 1).abs().max()) < 1e-3
