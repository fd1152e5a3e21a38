"""How a training step computes: precision, scaling, clipping, accumulation, strata, learned weights, fine-tuning."""

import math
import shutil

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.augment import for_shape
from elucidiff.data import from_arrays
from elucidiff.objective import loss_at
from elucidiff.training import Trainer, TrainingError
from elucidiff.training.draws import Order, draw
from elucidiff.training.numerics import INITIAL_SCALE

TINY = ed.networks.MLP(width=16, depth=1)
SMALL = ed.networks.DDPMPP(channels=16, multipliers=(1, 2), blocks=1, attention=(4,))
LEARNED = ed.EDM.replace(objective=ed.Objective(weighting=ed.objective.Learned()))


def points(n: int = 512, std=0.8, seed: int = 0) -> ed.data.Dataset:
    """A 2-D Gaussian around (0.3, 0.3)."""
    x = 0.3 + np.random.default_rng(seed).normal(0, 1, (n, 2)) * np.asarray(std)
    return from_arrays(x.astype(np.float32), None, None, name="points")


def start(data=None, **changes) -> Trainer:
    config = ed.TrainConfig(network=TINY, batch=64, lr_ramp=100, ema_halflife=1000.0)
    return Trainer.start(config.replace(**changes), data or points())


def weights_of(module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def float16_works() -> bool:
    try:
        y = torch.nn.functional.linear(torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2, dtype=torch.float16))
    except RuntimeError:
        return False
    return bool((y == 2).all())


needs_float16 = pytest.mark.skipif(not float16_works(), reason="this torch multiplies no float16 matrices on the CPU")


# Precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), pytest.param("float16", torch.float16, marks=needs_float16)]
)
def test_only_the_networks_products_are_of_low_precision(precision, dtype):
    trainer, seen = start(precision=precision), {}
    trainer.model.register_forward_hook(lambda m, a, D: seen.update(D=D.dtype))
    trainer.model.network.blocks[0].register_forward_hook(lambda m, a, h: seen.update(hidden=h.dtype))
    trainer.model.network.linear_out.register_forward_hook(lambda m, a, F: seen.update(F=F.dtype))
    step = trainer.train_step()
    assert seen == {"D": torch.float32, "hidden": dtype, "F": dtype}
    assert step.losses.dtype == torch.float32
    for tensors in (trainer.parameters, [p.grad for p in trainer.parameters], trainer.ema.module.parameters()):
        assert {t.dtype for t in tensors} == {torch.float32}
    assert {t.dtype for state in trainer.optimizer.state.values() for t in state.values()} <= {torch.float32}


def test_bfloat16_gives_the_loss_of_float32_to_its_own_precision():
    exact, low = start().train_step(), start(precision="bfloat16").train_step()
    error = ((low.losses - exact.losses) / exact.losses).abs().max()
    assert 0 < error < 8 * 2**-8  # F is a small part of D at the start


@needs_float16
def test_float16_trains_and_leaves_out_steps_whose_gradients_overflow():
    trainer = start(precision="float16", lr=3e-3)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # the scaled gradient of F is beyond 65,504
    before, average = weights_of(trainer.model), weights_of(trainer.ema.module)
    step = trainer.train_step()
    assert math.isinf(step.grad_norm) or math.isnan(step.grad_norm)
    assert torch.equal(weights_of(trainer.model), before) and not trainer.optimizer.state
    assert torch.equal(weights_of(trainer.ema.module), average)
    assert trainer.scaler.get_scale() == 2.0**59 and math.isfinite(step.loss)
    assert step.skipped == "a gradient overflowed float16; the loss scale is 5.76461e+17 now"
    assert all(trainer.train_step().skipped for _ in range(11)) and not trainer.optimizer.state  # and none is an error
    assert trainer.skipped == 0
    hook = next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # 1 is still a scale, and half of it is none
    with pytest.raises(TrainingError, match=r"overflowed float16; the loss scale is 0.000976562 now \(10 steps"):
        for _ in range(20):
            trainer.train_step()
    hook.remove()

    data = points(std=(0.1, 1.5))
    trainer, plain = start(data, precision="float16", lr=3e-3), start(data, lr=3e-3)
    assert trainer.scaler.get_scale() == INITIAL_SCALE
    losses, expected = ([t.train_step().loss for _ in range(150)] for t in (trainer, plain))
    assert plain.train_step().skipped is trainer.train_step().skipped is None
    assert np.mean(expected[-20:]) < 0.8 * np.mean(expected[:5])  # it trains at all
    assert np.mean(losses[-20:]) == pytest.approx(np.mean(expected[-20:]), rel=0.02)


def heldout_loss(trainer: Trainer, data: ed.data.Dataset) -> float:
    """Of the average, in float32, on noise that is the same for every run."""
    y, generator = data.tensor(), torch.Generator().manual_seed(1)
    y = y.repeat(8, 1)
    sigma = trainer.design.objective.noise.sample(len(y), generator)
    noise = torch.randn(y.shape, generator=generator)
    with torch.no_grad():
        return loss_at(trainer.ema.module, y, sigma, noise, trainer.design.objective.weighting).mean().item()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_bfloat16_ends_where_float32_does_within_the_spread_of_seeds():
    """Means over three seeds differ by less than three standard errors; weights rounded to bfloat16 each step do not."""
    rng = np.random.default_rng(0)
    modes = np.array([[-1.0, -1.0], [1.0, -0.5], [0.0, 1.2]])
    x = modes[rng.integers(3, size=2000)] + rng.normal(0, 0.15, (2000, 2))
    train, heldout = from_arrays(x.astype(np.float32), None, None, name="modes").split(0.2)

    def ends(precision: str, rounded: bool = False) -> np.ndarray:
        found = []
        for seed in range(3):
            trainer = start(train, network=ed.networks.MLP(width=64, depth=2), batch=256, seed=seed, lr=3e-4,
                            precision=precision, ema_halflife=5000.0)  # fmt: skip
            for _ in range(300):
                trainer.train_step()
                if rounded:
                    with torch.no_grad():
                        for p in trainer.parameters:
                            p.copy_(p.bfloat16())
            found.append(heldout_loss(trainer, heldout))
        return np.array(found)

    exact, low, rounded = ends("float32"), ends("bfloat16"), ends("float32", rounded=True)

    def standard_errors(other: np.ndarray) -> float:
        return abs(other.mean() - exact.mean()) / math.sqrt((other.var(ddof=1) + exact.var(ddof=1)) / 3)

    assert standard_errors(low) < 3 < standard_errors(rounded)


# One step


def test_four_parts_make_the_step_of_the_whole_batch():
    """A batch of 30 in parts of 8, 8, 7 and 7, with labels and augmentation; after three steps of Adam."""
    digits = ed.data.load("digits")
    augment = for_shape(digits.shape, p=0.5)
    whole, parts = (
        start(digits, network=SMALL, batch=30, augment=augment, accumulate=count, lr_ramp=0) for count in (1, 4)
    )
    before = weights_of(whole.model)
    for _ in range(3):
        one, other = whole.train_step(), parts.train_step()
        assert torch.equal(one.sigma, other.sigma) and torch.allclose(one.losses, other.losses, rtol=1e-3)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert other.loss == pytest.approx(one.losses.double().mean().item(), rel=1e-4)
        if whole.step == 1:  # later their weights differ by what Adam makes of rounding
            g, h = (torch.cat([p.grad.double().flatten() for p in t.parameters]) for t in (whole, parts))
            assert (g - h).norm() < 1e-6 * g.norm()
            assert (weights_of(whole.model) - weights_of(parts.model)).norm() < 1e-6 * before.norm()
    a, b = weights_of(whole.model), weights_of(parts.model)
    assert (a - b).norm() < 1e-6 * a.norm() or (a - b).norm() < 1e-3 * (a - before).norm()


def test_gradients_are_scaled_to_the_clip_and_their_norm_is_that_before():
    free = start()
    norm = free.train_step().grad_norm
    expected = torch.cat([p.grad.double().flatten() for p in free.parameters])
    assert norm == pytest.approx(expected.norm().item(), rel=1e-6)
    for clip, factor in ((norm / 3, 1 / 3), (norm * 3, 1.0)):
        clipped = start(clip=clip)
        assert clipped.train_step().grad_norm == pytest.approx(norm, rel=1e-6)
        found = torch.cat([p.grad.double().flatten() for p in clipped.parameters])
        assert found.norm().item() == pytest.approx(min(clip, norm), rel=1e-5)
        assert torch.allclose(found, expected * factor, rtol=1e-5, atol=0)


def test_each_stratum_is_hit_once_and_each_samples_level_is_uniform():
    data, noise, batch, steps = points(), ed.objective.LogNormal(P_mean=-1.0, P_std=0.7), 64, 300
    order, normal, u = Order(len(data), 5), torch.distributions.Normal(-1.0, 0.7), []
    for step in range(steps):
        sigma = draw(data, order, noise, step, batch, stratified=True).sigma
        u.append(normal.cdf(sigma.log()))
        assert sorted((u[-1] * batch).long().tolist()) == list(range(batch))
    u = torch.stack(u)
    within = u * batch - (u * batch).floor()
    tolerance = 4.5 / math.sqrt(12)  # of the mean of n uniform numbers: 1 / sqrt(12 n)
    assert (u.mean(0) - 0.5).abs().max() < tolerance / math.sqrt(steps)  # no sample has levels of its own
    assert abs(within.mean() - 0.5) < tolerance / math.sqrt(steps * batch)
    assert not torch.equal(u[0].argsort(), u[1].argsort())
    plain = draw(data, order, noise, 0, batch).sigma
    assert len({*(normal.cdf(plain.log()) * batch).long().tolist()}) < batch  # of independent levels some share one


def test_channels_last_changes_the_order_of_memory_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    colour = from_arrays(pixels, None, None, name="noise")
    plain, last = (start(colour, network=SMALL, batch=16, channels_last=on) for on in (False, True))
    seen = []
    last.model.network.register_forward_pre_hook(
        lambda m, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    for _ in range(2):
        one, other = plain.train_step(), last.train_step()
        assert torch.allclose(one.losses, other.losses, rtol=1e-4)
    assert seen == [True, True]
    for module in (last.model, last.ema.module):
        weights = [p for p in module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports deprecated parts of torch
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiling_changes_no_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, compiled = start(), start(compile=True)
    for _ in range(3):
        assert compiled.train_step().loss == pytest.approx(eager.train_step().loss, rel=1e-5)
    assert compiled.model.network._compiled_call_impl is not None
    assert [*compiled.ema.module.state_dict()] == [*eager.ema.module.state_dict()]  # no name tells of it


# Learned weighting


def test_the_learned_uncertainty_becomes_the_logarithm_of_the_loss():
    """A Gaussian with deviations 0.2 and 1.5: the best loss per entry is lambda times the mean posterior variance."""
    std = (0.2, 1.5)
    data = points(4000, std)
    network = ed.networks.MLP(width=32, depth=1)
    trainer = start(data, network=network, design=LEARNED, batch=256, lr=1e-2, lr_decay=10_000)
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.2], dtype=torch.float64)

    def u() -> torch.Tensor:
        with torch.no_grad():
            return trainer.uncertainty(sigma.log() / 4).double()

    first = u()
    for _ in range(500):
        step = trainer.train_step()
    s = torch.tensor(std, dtype=torch.float64)[:, None]
    variance = (s**2 * sigma**2 / (s**2 + sigma**2)).mean(0)
    d = trainer.design.objective.weighting.sigma_data
    assert d == pytest.approx(data.tensor().double().std(correction=0).item(), rel=1e-6)
    expected = ((sigma**2 + d**2) / (sigma * d) ** 2 * variance).log()
    assert expected.max() - expected.min() > 0.3  # it is no constant
    assert (first - expected).abs().max() > 0.5
    assert (u() - expected).abs().max() < 0.12
    assert step.loss != pytest.approx(step.losses.mean().item(), rel=1e-3)  # what is minimised has u in it


def test_the_uncertainty_has_weights_of_unit_magnitude_at_every_loss():
    trainer = start(design=LEARNED)
    with torch.no_grad():
        trainer.uncertainty.linear.weight.mul_(3)
    trainer.train_step()
    weight = trainer.uncertainty.linear.weight.detach()
    assert float(weight.square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


# Fine-tuning


def saved(path, data: ed.data.Dataset, **changes) -> str:
    model = ed.Preconditioned(TINY, ed.preconditioning.EDM(0.7), shape=data.shape, **changes)
    return str(ed.models.save(model, path))


def test_fine_tuning_starts_from_the_models_weights_and_keeps_its_preconditioning(tmp_path):
    data = points(std=0.4)
    init = saved(tmp_path / "model", data)
    trainer = start(data, network=None, init=init)
    given = weights_of(ed.load(init))
    assert torch.equal(weights_of(trainer.model), given) and torch.equal(weights_of(trainer.ema.module), given)
    assert trainer.model.preconditioning == ed.preconditioning.EDM(0.7)
    assert trainer.design.objective.weighting.sigma_data == 0.7
    drawn = draw(data, trainer.order, trainer.design.objective.noise, 0, 64)
    expected = loss_at(ed.load(init), drawn.y, drawn.sigma, drawn.n, ed.objective.EDM(0.7))
    step = trainer.train_step()
    assert torch.allclose(step.losses, expected, rtol=1e-5) and step.grad_norm > 0
    moved = (weights_of(trainer.model) - given).abs()
    assert 0 < moved.max() <= 1.01 * trainer.config.lr_at(64)  # one step of Adam
    assert torch.equal(weights_of(ed.load(init)), given)


def test_a_fine_tuned_run_is_a_run(tmp_path):
    data = points()
    init = saved(tmp_path / "model", data)
    config = ed.TrainConfig(out=str(tmp_path / "run"), images=640, batch=64, snapshots=1, init=init, grid_every=0)
    run = ed.train(config, data=data)
    assert ed.load(run).preconditioning.sigma_data == 0.7
    assert ed.TrainConfig.load(run / "config.json").init == init


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": TINY}, "network: got one, but init="),
        ({"sigma_data": 0.5}, "sigma_data: got one, but init="),
        ({"data": from_arrays(np.zeros((8, 3), np.float32), None, None)}, r"the model has shape \(2,\) and 3 classes"),
        ({"conditional": False}, r"and 3 classes; expected those of the data, \(2,\) and 0"),
        ({"init": "exact:digits"}, "exact:digits is no network that can be trained on"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path, changes, message):
    x = points(60).values
    data = changes.pop("data", from_arrays(x, np.arange(60) % 3, None, name="points"))
    init = saved(tmp_path / "model", points(), label_dim=3)
    with pytest.raises(ValueError, match=message):
        start(data, **{"network": None, "init": init, **changes})


def test_an_augmentation_that_the_model_was_not_told_of_is_refused(tmp_path):
    digits = ed.data.load("digits")
    model = ed.Preconditioned(SMALL, ed.preconditioning.EDM(0.7), shape=digits.shape)
    init = str(ed.models.save(model, tmp_path / "model"))
    with pytest.raises(ValueError, match=r"augment: has 9 label entries, the network of .* takes 0"):
        start(digits, network=None, init=init, augment=for_shape(digits.shape))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"precision": "bf16"}, "bf16"),
        ({"accumulate": 65}, "accumulate: got 65 parts of a batch of 64"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"lr_decay": 0}, "lr_decay: got 0"),
    ],
)
def test_numbers_and_names_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        ed.TrainConfig(batch=64, **bad)


def test_an_update_that_overflows_ends_training_before_an_average_has_it(monkeypatch):
    trainer = start()
    trainer.train_step()
    before = weights_of(trainer.ema.module)
    step, name = trainer.optimizer.step, trainer.weights.names[2]

    def overflowing(*given, **named):
        step(*given, **named)
        with torch.no_grad():
            trainer.parameters[2].view(-1)[-1] = math.inf

    monkeypatch.setattr(trainer.optimizer, "step", overflowing)
    with pytest.raises(TrainingError, match=f"step 1: {name} is not finite after the update; lower lr"):
        trainer.train_step()
    assert torch.equal(weights_of(trainer.ema.module), before)
