"""Averages of weights: both formulas, the reconstruction of any width after training, the sweep; learning-rate decay."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import elucidiff as ed
from conftest import shared
from elucidiff.analysis import reference_and_real, score_samples
from elucidiff.cli import parse
from elucidiff.cli.main import main
from elucidiff.data import from_arrays
from elucidiff.errors import FormatError
from elucidiff.training import EMA, HalfLife, Power, Trainer, ema_beta, reconstruct, sweep
from elucidiff.training.posthoc import coefficients, gamma_of, plan, sigma_rel_of, stored_averages
from elucidiff.training.profiles import inner_products, profile_error

WIDTHS = (0.05, 0.10)
TINY = ed.networks.MLP(width=16, depth=1)


def points(n: int = 200) -> ed.data.Dataset:
    """A 2-D Gaussian."""
    return from_arrays(np.random.default_rng(0).normal(0.3, 0.8, (n, 2)).astype(np.float32), None, None, name="points")


def config(path, **changes) -> ed.TrainConfig:
    base = ed.TrainConfig(out=str(path), network=TINY, images=8000, batch=50, lr_ramp=100, snapshots=4, ema=(Power(),))
    return base.replace(**changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ed.train(config(tmp_path_factory.mktemp("ema") / "run"), data=points())


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


# the formulas


def test_golden_coefficients_and_betas():
    golden = json.loads(shared("data/golden/posthoc_ema.json").read_text())
    times, gammas = golden["snapshot_images"], [gamma_of(s) for s in golden["snapshot_sigma_rel"]]
    for width, expected in golden["targets"].items():
        X = coefficients(times, gammas, golden["target_images"], gamma_of(float(width)))
        assert np.abs(X - np.array(expected)).max() < 1e-12, width
    for case in golden["beta"]:
        beta = Power(case["sigma_rel"]).beta(case["batch"], case["images_after_step"])
        assert beta == pytest.approx(case["beta"], rel=1e-12)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558), (0.20, 1.826)])
def test_widths_and_exponents_of_the_paper(width, gamma):
    assert gamma_of(width) == pytest.approx(gamma, abs=5e-4)


@pytest.mark.parametrize("width", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    gamma = gamma_of(width)
    assert sigma_rel_of(gamma) == pytest.approx(width, rel=1e-12)
    x, w = np.polynomial.legendre.leggauss(200)
    u, w = (x + 1) / 2, w / 2
    p = u**gamma / (w @ u**gamma)  # tau / T = u
    if width >= 0.01:  # narrower ones slip between the nodes
        mean = w @ (p * u)
        exact = 1e-9 if gamma > 1 else 1e-5  # a fractional power below 1 is rough at 0
        assert math.sqrt(w @ (p * (u - mean) ** 2)) == pytest.approx(width, rel=exact)


def quadrature(t, n=400):
    """Nodes and weights on [0, max t], by pieces that end where a profile does."""
    ends = [0.0, *sorted(set(t))]
    x, w = np.polynomial.legendre.leggauss(n)
    pieces = [((b - a) / 2 * x + (a + b) / 2, (b - a) / 2 * w) for a, b in itertools.pairwise(ends)]
    return np.concatenate([x for x, _ in pieces]), np.concatenate([w for _, w in pieces])


def profile(tau, gamma, T):
    return np.where(tau <= T, (gamma + 1) * (np.minimum(tau, T) / T) ** gamma / T, 0.0)


TIMES, GAMMAS = [1.0, 1.0, 2.0, 2.0, 3.5, 3.5], [gamma_of(0.05), gamma_of(0.10)] * 3


def test_inner_products_equal_quadrature():
    tau, w = quadrature([*TIMES, 3.0])
    T, gamma = np.array([*TIMES, 3.0]), np.array([*GAMMAS, 2.5])
    P = np.stack([profile(tau, g, t) for g, t in zip(gamma, T, strict=True)])
    A = inner_products(T[:, None], gamma[:, None], T, gamma)
    assert np.abs(A / ((P * w) @ P.T) - 1).max() < 1e-9


@pytest.mark.parametrize("target", [0.03, 0.07, 0.15, 0.25])
@pytest.mark.parametrize("T", [3.5, 3.0])
def test_coefficients_are_the_least_squares_fit_of_sampled_profiles(target, T):
    gamma = gamma_of(target)
    tau, w = quadrature([*TIMES, T])
    P = np.stack([profile(tau, g, t) for g, t in zip(GAMMAS, TIMES, strict=True)], 1) * np.sqrt(w)[:, None]
    wanted = profile(tau, gamma, T) * np.sqrt(w)
    expected = np.linalg.lstsq(P, wanted, rcond=None)[0]
    expected /= expected.sum()
    X = coefficients(TIMES, GAMMAS, T, gamma)
    assert np.abs(X - expected).max() < 1e-9
    error = np.linalg.norm(P @ X - wanted) / np.linalg.norm(wanted)
    assert profile_error(X, TIMES, GAMMAS, T, gamma) == pytest.approx(error, rel=1e-9)


def test_the_unit_of_time_does_not_matter_and_stored_averages_have_weight_one():
    X = coefficients(TIMES, GAMMAS, 3.5, 3.0)
    assert np.abs(coefficients([1e9 * t for t in TIMES], GAMMAS, 3.5e9, 3.0) - X).max() < 1e-12
    assert X.sum() == pytest.approx(1, abs=1e-14)
    assert coefficients(TIMES, GAMMAS, 2.0, GAMMAS[1]).tolist() == [0, 0, 0, 1, 0, 0]


# averages along a known trajectory

STEPS, BATCH = 512, 10


def trajectory(theta: torch.Tensor, averagings) -> list[list[torch.Tensor]]:
    """The averages after every step of a module whose weights take the values theta (STEPS, d) in turn."""
    module = torch.nn.Linear(theta.shape[1], 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(module.weight, 1e6)  # the weights before the first step must leave no trace
    averages = [(averaging, EMA(module)) for averaging in averagings]
    found: list[list[torch.Tensor]] = [[] for _ in averages]
    for k, value in enumerate(theta, 1):
        module.weight.data[0] = value
        for (averaging, ema), kept in zip(averages, found, strict=True):
            ema.update(averaging.beta(BATCH, k * BATCH))
            kept.append(ema.module.weight[0].detach().clone())
    return found


@pytest.fixture(scope="module")
def noise():
    """Weights independent from step to step, and their averages of many widths."""
    theta = torch.randn(STEPS, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    widths = (*WIDTHS, 0.03, 0.07, 0.15, 0.20)
    return theta, dict(zip(widths, trajectory(theta, [Power(w) for w in widths]), strict=True))


@pytest.mark.parametrize("width", [0.05, 0.10, 0.20])
def test_power_average_is_the_integral_of_its_profile(noise, width):
    theta, averages = noise
    gamma, k = gamma_of(width), torch.arange(STEPS + 1, dtype=torch.float64)
    for n in (1, 2, 100, STEPS):
        w = (k[1 : n + 1] / n) ** (gamma + 1) - (k[:n] / n) ** (gamma + 1)  # of the profile between steps k - 1 and k
        assert (averages[width][n - 1] - w @ theta[:n]).abs().max() < 1e-12


def test_half_life_average_is_the_weighted_sum():
    theta = torch.randn(100, 5, dtype=torch.float64)
    (kept,) = trajectory(theta, [HalfLife(300.0, 0.2)])
    betas = [0.5 ** (BATCH / min(300.0, 0.2 * BATCH * k)) if k else 0.0 for k in range(100)]
    w = torch.tensor([(1 - betas[k]) * math.prod(betas[k + 1 :]) for k in range(100)], dtype=torch.float64)
    assert (kept[-1] - w @ theta).abs().max() < 1e-12


def fit(count: int, width: float):
    """Steps of `count` snapshots, the (step, width) of all that is stored, and the weights of a target at the end."""
    steps = [STEPS * (i + 1) // count for i in range(count)]
    pairs = [(n, w) for n in steps for w in WIDTHS]
    return pairs, coefficients(
        [n * BATCH for n, _ in pairs], [gamma_of(w) for _, w in pairs], STEPS * BATCH, gamma_of(width)
    )


@pytest.mark.parametrize("width", [0.03, 0.15])
def test_reconstruction_equals_the_quadrature_of_the_fitted_profile(noise, width):
    theta, averages = noise
    pairs, X = fit(8, width)
    rebuilt = sum(x * averages[w][n - 1] for (n, w), x in zip(pairs, X, strict=True))
    u, q = np.polynomial.legendre.leggauss(40)
    tau = np.arange(STEPS)[:, None] + (u + 1) / 2  # within every step
    density = sum(x * profile(tau, gamma_of(w), n) for (n, w), x in zip(pairs, X, strict=True))
    expected = torch.from_numpy(density @ (q / 2)) @ theta
    assert (rebuilt - expected).abs().max() < 1e-9


def relative_error(noise, count: int, width: float) -> float:
    _, averages = noise
    pairs, X = fit(count, width)
    true = averages[width][-1]
    rebuilt = sum(x * averages[w][n - 1] for (n, w), x in zip(pairs, X, strict=True))
    return ((rebuilt - true).norm() / true.norm()).item()


@pytest.mark.parametrize("width", [0.07, 0.15, 0.20])
def test_the_error_on_independent_weights_is_the_profile_error(noise, width):
    for count in (4, 8):
        pairs, X = fit(count, width)
        predicted = profile_error(X, [n for n, _ in pairs], [gamma_of(w) for _, w in pairs], STEPS, gamma_of(width))
        assert relative_error(noise, count, width) == pytest.approx(predicted, rel=0.05)  # 4 sigma of 4000 numbers


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15])
def test_reconstruction_converges_with_the_number_of_snapshots(noise, width):
    errors = [relative_error(noise, count, width) for count in (4, 16, 64)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 6  # order 2 in the distance, once it is small
    for stored in WIDTHS:
        assert relative_error(noise, 8, stored) == 0


# what a run keeps


def test_a_run_of_old_is_the_same_in_bits_and_json(tmp_path):
    old = config(tmp_path / "old", ema=(), images=1000, ema_halflife=300.0)
    assert not {"ema", "lr_decay"} & set(old.to_dict()) and old.to_dict()["ema_halflife"] == 300.0
    assert set(old.replace(ema=(Power(),), lr_decay=9).to_dict()) - set(old.to_dict()) == {"ema", "lr_decay"}
    for images in (0, 50, 12345):
        assert HalfLife(300.0, 0.2).beta(50, images + 50) == ema_beta(50, 300.0, images, 0.2)
    one = ed.load(ed.train(old, data=points()))
    asked = old.replace(out=str(tmp_path / "new"), ema=(HalfLife(300.0), Power()), ema_halflife=7.0)
    two = ed.load(ed.train(asked, data=points()))
    assert torch.equal(parameters(one), parameters(two))
    assert "ema" not in one.info["training"] and one.info["training"]["config"] == old.to_dict()
    assert two.info["training"]["ema"] == {"kind": "half_life", "halflife": 300.0, "ramp": 0.05}


def test_a_config_with_averages_survives_its_file(tmp_path):
    value = config(tmp_path, ema=(HalfLife(500.0, None), Power((0.05, 0.1, 0.2)), Power(0.15)), lr_decay=700)
    value.save(tmp_path / "config.json")
    assert ed.TrainConfig.load(tmp_path / "config.json") == value
    assert [a.name for a in value.averages] == ["halflife-500", "0.050", "0.100", "0.200", "0.150"]


def test_snapshots_hold_both_averages(run):
    names = sorted(p.name for p in (run / "snapshots").iterdir())
    assert names == [f"{k:06d}{end}" for k in (2, 4, 6, 8) for end in ("", "-0.100")]
    newest = ed.load(run)
    assert torch.equal(parameters(newest), parameters(ed.load(run / "snapshots/000008")))
    assert newest.info["training"]["ema"] == {"kind": "power", "sigma_rel": 0.05}
    assert newest.info["training"]["images_seen"] == 8000
    assert ed.load(run / "snapshots/000008-0.100").info["training"]["ema"]["sigma_rel"] == 0.10
    assert [(s.images, s.sigma_rel) for s in stored_averages(run)] == [
        (n, w) for n in (2000, 4000, 6000, 8000) for w in WIDTHS
    ]


def test_training_keeps_the_averages_of_its_weights():
    trainer = Trainer.start(config("unused", images=500), points())
    seen = []
    for _ in range(10):
        trainer.train_step()
        seen.append(parameters(trainer.model))
    for width, (_, ema) in zip(WIDTHS, trainer.averages, strict=True):
        gamma, k = gamma_of(width), torch.arange(11, dtype=torch.float64) / 10
        w = k[1:] ** (gamma + 1) - k[:-1] ** (gamma + 1)
        assert (parameters(ema.module) - w @ torch.stack(seen)).abs().max() < 1e-6  # weights are float32


# reconstruction


def test_reconstructed_models(run):
    for width in WIDTHS:
        stored = next(s for s in stored_averages(run) if s.images == 6000 and s.sigma_rel == width)
        model = reconstruct(run, width, at=6000)
        assert torch.equal(parameters(model), parameters(ed.load(stored.folder)))
        assert model.info["training"]["ema"] == {"kind": "power", "sigma_rel": width}
    found = plan(run, 0.15)
    expected = sum(x * parameters(ed.load(s.folder)) for s, x in zip(found.stored, found.weights, strict=True))
    model = reconstruct(run, 0.15)
    assert (parameters(model) - expected).abs().max() < 1e-6 * expected.abs().max()
    average = model.info["training"]["ema"]
    assert average["reconstructed"] == {"snapshots": 8, "profile_error": found.error} and 0 < found.error < 0.2
    x = torch.randn(4, 2)
    assert not torch.equal(model(x, 1.0), ed.load(run)(x, 1.0)) and not model.training


def test_a_wider_average_is_near_the_one_kept_in_training(tmp_path):
    kept = ed.train(
        config(tmp_path / "run", ema=(Power((0.05, 0.10, 0.20)),), snapshots=8, images=16_000), data=points()
    )
    pair = [s.folder for s in stored_averages(kept) if s.sigma_rel < 0.2]
    true = parameters(reconstruct(kept, 0.20))
    rebuilt, narrow = (parameters(reconstruct(pair, width)) for width in (0.20, 0.10))
    assert (rebuilt - true).norm() < 0.1 * (narrow - true).norm()


NETWORKS = {
    "mlp": (ed.networks.MLP(width=8, depth=1), (3,)),
    "ddpmpp": (ed.networks.DDPMPP(channels=32, multipliers=(1, 2), blocks=1, attention=(4,)), (1, 8, 8)),
    "ncsnpp": (ed.networks.NCSNPP(channels=32, multipliers=(1, 2), blocks=1, attention=(4,)), (1, 8, 8)),
    "edm2": (ed.networks.EDM2(channels=64, multipliers=(1, 2), blocks=1, attention=(4,)), (1, 8, 8)),
    "dit": (ed.networks.DiT(patch=2, width=32, depth=1, heads=2), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_reconstructed(tmp_path, name):
    network, shape = NETWORKS[name]
    model = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=shape, label_dim=3)
    weights = []
    for images, width in ((1000, 0.05), (1000, 0.10), (2000, 0.05), (2000, 0.10)):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        weights.append(parameters(model))
        info = {"training": {"images_seen": images, "ema": {"kind": "power", "sigma_rel": width}}}
        ed.save(model, tmp_path / f"{images}-{width}", info=info)
    rebuilt = reconstruct(sorted(tmp_path.iterdir()), 0.13)
    X = coefficients([1000, 1000, 2000, 2000], [gamma_of(w) for w in WIDTHS * 2], 2000, gamma_of(0.13))
    assert (parameters(rebuilt) - torch.from_numpy(X) @ torch.stack(weights)).abs().max() < 1e-6
    for (key, one), (_, two) in zip(rebuilt.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(one, two), key
    assert rebuilt(torch.randn(2, *shape), 1.0).isfinite().all()
    ed.save(rebuilt, tmp_path / "saved")
    assert torch.equal(parameters(ed.load(tmp_path / "saved")), parameters(rebuilt))


def test_the_average_up_to_a_time_uses_nothing_that_came_later(run):
    for at, used in ((6000, 6000), (5999, 6000), (4001, 6000), (100, 2000)):
        found = plan(run, 0.12, at)
        assert max(s.images for s in found.stored) == used and found.at == at
    assert reconstruct(run, 0.12, at=5000).info["training"]["images_seen"] == 5000
    folders = [run / "snapshots" / name for name in ("000002", "000002-0.100", "000004", "000004-0.100")]
    assert torch.equal(parameters(reconstruct(folders, 0.12)), parameters(reconstruct(run, 0.12, at=4000)))


@pytest.mark.parametrize("width", [0, -0.1, 0.3, math.nan])
def test_widths_that_no_profile_has(width, run):
    with pytest.raises(ValueError, match=r"sigma_rel: got .*expected a number in \(0, 0.2887\]"):
        gamma_of(width)
    with pytest.raises(ValueError, match="sigma_rel"):
        reconstruct(run, width)


def test_mistakes_are_named(run, tmp_path):
    for at in (0, 8001, -5):
        with pytest.raises(ValueError, match="reach from 2,000 to 8,000 images"):
            reconstruct(run, 0.1, at=at)
    with pytest.raises(FileNotFoundError, match="not a run directory with snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match="no model directories"):
        reconstruct([], 0.1)
    with pytest.raises(FormatError, match="not a model directory"):
        reconstruct([tmp_path], 0.1)
    other = ed.train(config(tmp_path / "other", ema=(), images=500), data=points())
    with pytest.raises(ValueError, match=r"no power-function average.*--set ema=power"):
        reconstruct(other, 0.1)
    made = ed.save(reconstruct(run, 0.2), tmp_path / "made")
    with pytest.raises(ValueError, match="not a power-function average kept in training"):
        reconstruct([run / "snapshots/000008", made], 0.1)
    wider = ed.train(config(tmp_path / "wider", network=TINY.replace(width=24), images=500), data=points())
    with pytest.raises(ValueError, match="is another network than"):
        reconstruct([run / "snapshots/000008", *(wider / "snapshots").iterdir()], 0.1)
    with pytest.raises(ValueError, match="comes twice"):
        reconstruct([run / "snapshots/000008"] * 2, 0.1)
    with pytest.raises(ValueError, match="1 times and 2 exponents"):
        coefficients([1.0], [2.0, 3.0], 1.0, 1.0)
    with pytest.raises(ValueError, match="times: got"):
        coefficients([-1.0], [2.0], 1.0, 1.0)
    with pytest.raises(ValueError, match="gammas: got"):
        coefficients([1.0], [-0.5], 1.0, 1.0)
    with pytest.raises(ValueError, match="gamma: got -1"):
        sigma_rel_of(-1.0)


def test_averages_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="expected at least one"):
        Power(())
    with pytest.raises(ValueError, match=r"sigma_rel: got 0\.4"):
        Power((0.05, 0.4))
    with pytest.raises(ValueError, match=r"ask each of members\(\)"):
        Power().beta(10, 100)
    with pytest.raises(ValueError, match="halflife: got 0"):
        HalfLife(0.0)
    with pytest.raises(ValueError, match="ramp: got -1"):
        HalfLife(10.0, -1.0)
    with pytest.raises(ValueError, match=r"two averages are called 0\.100"):
        config(tmp_path, ema=(Power(), Power(0.10001)))
    with pytest.raises(ValueError, match="lr_decay: got 0"):
        config(tmp_path, lr_decay=0)
    with pytest.raises(ValueError, match="lr_cooldown: got 0; expected 1 image or more, or none"):
        config(tmp_path, lr_cooldown=0)


# the learning rate


def test_learning_rate_ramps_and_decays(tmp_path):
    value = config(tmp_path, lr=0.01, lr_ramp=200, lr_decay=600, images=2000)
    assert value.lr_at(100) == pytest.approx(0.005, rel=1e-14)
    assert value.lr_at(200) == value.lr_at(600) == 0.01
    assert value.lr_at(2400) == pytest.approx(0.01 / 2, rel=1e-14)
    assert value.replace(lr_decay=None).lr_at(1e9) == 0.01
    assert value.replace(lr_decay=50).lr_at(100) == pytest.approx(0.01 * 0.5 / math.sqrt(2), rel=1e-14)
    trainer = Trainer.start(value, points())
    for k in range(1, 31):
        trainer.train_step()
        t = 50 * k
        expected = 0.01 * min(t / 200, 1) / math.sqrt(max(t / 600, 1))
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-14)


def test_learning_rate_cools_down_to_nothing(tmp_path):
    """Batches of 50: the step after t images has (2000 - t)/400 of the rate within the last 400, the last one 50/400."""
    value = config(tmp_path, lr=0.01, lr_ramp=200, lr_decay=600, images=1990, lr_cooldown=400)
    plain = value.replace(lr_cooldown=None)
    assert value.steps == 40
    for k in range(1, 41):
        factor = min((2000 - 50 * (k - 1)) / 400, 1)
        assert value.lr_at(50 * k) == pytest.approx(plain.lr_at(50 * k) * factor, rel=1e-14)
    assert value.lr_at(1650) == plain.lr_at(1650) and value.lr_at(1700) < plain.lr_at(1700)
    straight = value.replace(lr_decay=None, lr_ramp=0, lr_cooldown=2000)
    assert [straight.lr_at(t) for t in (50, 1050, 2000)] == pytest.approx([0.01, 0.005, 0.01 / 40], rel=1e-14)
    trainer = Trainer.start(value, points())
    for k in range(1, 41):
        trainer.train_step()
        assert trainer.optimizer.param_groups[0]["lr"] == value.lr_at(50 * k)


# the command line


def test_settings_name_averages():
    base, data = ed.TrainConfig(), points()
    given = ["ema=half_life,power", "ema_halflife=1000", "lr_decay=5000"]
    made = parse.apply_training_settings(base, given, data)
    assert made.ema == (HalfLife(1000.0, 0.05), Power()) and made.lr_decay == 5000
    explicit = parse.apply_training_settings(base, ['ema=[{"kind": "power", "sigma_rel": [0.05, 0.1, 0.2]}]'], data)
    assert explicit.ema == (Power((0.05, 0.1, 0.2)),)
    with pytest.raises(ValueError, match=r"averaging.*power"):
        parse.apply_training_settings(base, ["ema=powr"], data)


SWEEP = ["--widths", "0.20,0.05,0.15,0.10", "--num", "100", "--repeat", "2", "--steps", "6"]


def test_the_sweep_scores_what_reconstruct_makes(run, tmp_path, capsys):
    np.savez(tmp_path / "points.npz", data=points().values)
    arguments = ["ema", str(run), str(tmp_path / "points.npz"), *SWEEP, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--save", str(tmp_path / "best"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out/ema.json").read_text()) == printed
    assert (tmp_path / "out/ema.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [w["sigma_rel"] for w in printed["widths"]] == [0.05, 0.10, 0.15, 0.20]
    assert [w["profile_error"] == 0 for w in printed["widths"]] == [True, True, False, False]
    assert printed["at"] == 8000 and len(printed["stored"]) == 8

    data = ed.data.load(tmp_path / "points.npz")
    reference, real = reference_and_real(data)
    sampler = ed.EDM.sampler.replace(steps=6)
    for row in printed["widths"]:
        model = reconstruct(run, row["sigma_rel"])
        for r, value in enumerate(row["scores"]["fd"]["values"]):
            x = ed.sample(model, sampler, seeds=range(100 * r, 100 * r + 100)).x
            (score,) = score_samples(x, reference, real, metrics=["fd"])
            assert value == pytest.approx(score.value, rel=1e-4) and row["nfe"] == 11
            assert printed["real"]["fd"] == pytest.approx(score.real, rel=1e-9)
    means = {w["sigma_rel"]: w["scores"]["fd"]["mean"] for w in printed["widths"]}
    best = min(means, key=means.get)
    assert printed["best"]["fd"] == best
    values = {w["sigma_rel"]: w["scores"]["fd"]["values"] for w in printed["widths"]}
    for row in printed["widths"]:  # of the same seeds, one by one
        expected = [a - b for a, b in zip(values[row["sigma_rel"]], values[best], strict=True)]
        assert row["behind_best"]["fd"]["values"] == pytest.approx(expected, abs=1e-12)
    assert torch.equal(parameters(ed.load(tmp_path / "best")), parameters(reconstruct(run, best)))

    lines = (tmp_path / "out/ema.jsonl").read_text().splitlines()
    assert main(arguments) == 0  # nothing is measured again
    out, err = capsys.readouterr()
    assert (tmp_path / "out/ema.jsonl").read_text().splitlines() == lines and "going on from" in err
    row = next(line for line in out.splitlines() if f" {best:g} " in line)
    assert "best" in row and "stored" in out and "real data" in out and out.count("best │") == 1


def test_the_sweep_at_an_earlier_time(run):
    found = sweep(run, points(), [0.1], at=4000, num=50, sampler=ed.EDM.sampler.replace(steps=3))
    assert found.facts["at"] == 4000 and found.best("fd") is found.widths[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--widths", "0.05,wide"], "--widths: cannot read '0.05,wide'"),
        (["--widths", "0.4"], "sigma_rel: got 0.4"),
        (["--at", "9999"], "at: got 9,999 images"),
        (["--metrics", "beauty"], "metric"),
        (["--save", "RUN"], "would be overwritten"),
        (["--out", "RUN"], "would be overwritten"),
    ],
)
def test_wrong_use_is_said_in_one_line(run, tmp_path, capsys, more, message):
    np.savez(tmp_path / "points.npz", data=points().values)
    more = [str(run) if word == "RUN" else word for word in more]
    assert main(["ema", str(run), str(tmp_path / "points.npz"), "--num", "20", *more]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) <= 2


def test_a_sweep_wants_widths_of_the_shape_of_the_data(run):
    with pytest.raises(ValueError, match="widths: got none"):
        sweep(run, points(), [])
    with pytest.raises(ValueError, match="repeats: got 0"):
        sweep(run, points(), [0.1], repeats=0)
    lines = from_arrays(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), None, None, name="lines")
    with pytest.raises(ValueError, match=r"shape \(2,\), the data \(3,\)"):
        sweep(run, lines, [0.1], num=20)
