"""Likelihood by the ODE: closed forms, quadrature over the plane, the statistics of the trace's estimator, bits."""

import json
import math

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.analysis.likelihood import denoised_and_trace, dequantised, quadrature_weights
from elucidiff.cli.main import main
from elucidiff.data import Dataset
from elucidiff.denoiser import FunctionDenoiser

F64 = torch.float64
LOW, HIGH = 0.05, 20.0
MEAN = torch.tensor([0.3, -0.5, 0.2], dtype=F64)
COVS = {
    "isotropic": torch.tensor(0.3, dtype=F64),
    "anisotropic": torch.tensor([1.0, 0.2, 0.05], dtype=F64),
    "full": torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.2]], dtype=F64),
}
FINE = ed.Sampler(solver=so.RK4(), steps=200, sigma_min=LOW, sigma_max=HIGH)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def matrix(cov):
    return cov if cov.ndim == 2 else torch.diag(cov.expand(3))


def samples(cov, n=8):
    return MEAN + normal(n, 3) @ torch.linalg.cholesky(matrix(cov)).T


def exact_log_density(x, cov, low=LOW, high=HIGH):
    """Of what the ODE of N(MEAN, C) makes of N(0, high^2 I): the map x -> MEAN + G (x - MEAN) is linear, so it is

    N(MEAN - G^-1 MEAN, high^2 G^-2), G = ((C + high^2)(C + low^2)^-1)^(1/2).
    """
    variances, basis = torch.linalg.eigh(matrix(cov))
    gain = ((variances + high**2) / (variances + low**2)).sqrt()
    inverse = basis @ torch.diag(1 / gain) @ basis.T
    return torch.distributions.MultivariateNormal(MEAN - inverse @ MEAN, high**2 * inverse @ inverse).log_prob(x)


# --- closed forms ---


@pytest.mark.parametrize("cov", COVS)
def test_gaussians_have_their_density(cov):
    C, x = COVS[cov], samples(COVS[cov])
    found = ed.log_likelihood(ed.GaussianDenoiser(MEAN, C), x, FINE, trace="exact")
    assert (found.values - exact_log_density(x, C)).abs().max() <= 1e-6
    assert torch.equal(found.errors, torch.zeros(8, dtype=F64))
    assert (found.sigma_min, found.sigma_max) == (LOW, HIGH)
    assert found.nfe == 4 * 199 + 200 and found.backward == 3 * 200
    # from a level high enough, where the prior is that of noisy data too, it is the noisy data's own density
    found = ed.log_likelihood(ed.GaussianDenoiser(MEAN, C), x, FINE.replace(sigma_max=2000.0), trace="exact")
    noisy = torch.distributions.MultivariateNormal(MEAN, matrix(C) + LOW**2 * torch.eye(3, dtype=F64)).log_prob(x)
    assert (found.values - noisy).abs().max() <= 2e-3


@pytest.mark.parametrize("schedule", [fm.EDM(), fm.VE(), fm.VP(), fm.Cosine(), fm.Flow()], ids=lambda s: s.kind)
@pytest.mark.parametrize(
    "scaling", [fm.Unscaled(), fm.VariancePreserving(), fm.FlowScaling()], ids=lambda s: s.kind
)  # fmt: skip
def test_the_density_is_the_same_under_every_schedule_and_scaling(schedule, scaling):
    C, x = COVS["full"], samples(COVS["full"], 4)
    sampler = ed.Sampler(schedule, scaling, ts.LogSNR(), so.RK4(), steps=160, sigma_min=LOW, sigma_max=HIGH)
    for to_zero in (True, False):
        found = ed.log_likelihood(ed.GaussianDenoiser(MEAN, C), x, sampler.replace(to_zero=to_zero), trace="exact")
        assert (found.values - exact_log_density(x, C)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (so.Euler(), 1),
        (so.Heun(), 2),
        (so.RK4(), 4),
        (so.DPMpp2M(), 2),
        (so.DPMpp3M(corrected=True, accurate_start=True), 3),
    ],
    ids=lambda v: getattr(v, "kind", str(v)),
)
def test_the_error_falls_at_the_order_of_the_solver(solver, order):
    C, x = COVS["full"], samples(COVS["full"])
    exact, errors = exact_log_density(x, C), []
    for intervals in (48, 96, 192, 384):
        sampler = FINE.replace(solver=solver, steps=intervals + 1, timesteps=ts.EDM(rho=4.0))
        found = ed.log_likelihood(ed.GaussianDenoiser(MEAN, C), x, sampler, trace="exact")
        errors.append((found.values - exact).norm())
    assert -torch.stack(errors).log2().diff()[-1] >= order - 0.1


def test_the_default_needs_few_evaluations():
    C, x = COVS["full"], samples(COVS["full"])
    found = ed.log_likelihood(ed.GaussianDenoiser(MEAN, C), x, trace="exact")
    assert found.nfe == 4 * 31 + 32
    assert (found.values - exact_log_density(x, C, 0.002, 80.0)).abs().max() <= 1e-3


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_a_tolerance_is_kept(tolerance):
    C, x = COVS["full"], samples(COVS["full"])
    denoiser, sampler = ed.GaussianDenoiser(MEAN, C), FINE.replace(steps=4)
    found = ed.log_likelihood(denoiser, x, sampler, trace="exact", tolerance=tolerance)
    assert (found.values - exact_log_density(x, C)).abs().max() <= 60 * tolerance
    fixed = ed.log_likelihood(denoiser, x, FINE, probes=3, seed=4)
    adaptive = ed.log_likelihood(denoiser, x, sampler, probes=3, seed=4, tolerance=tolerance)
    assert (adaptive.values - fixed.values).abs().max() <= 60 * tolerance
    assert (adaptive.errors - fixed.errors).abs().max() <= 60 * tolerance
    assert (adaptive.latents - fixed.latents).abs().max() <= 60 * tolerance
    alone = ed.log_likelihood(denoiser, x[:1], sampler, trace="exact", tolerance=tolerance)
    assert torch.equal(alone.values, found.values[:1])


def test_one_point_is_a_bare_gaussian_and_labels_choose_it():
    """D = y whatever x: p(x; sigma_min) is what N(0, high^2) becomes, moved to y: N(y (1 - low/high), low^2 I)."""
    y, classes = normal(3, 2, 2, seed=5), torch.arange(3)
    denoiser, x = ed.EmpiricalDenoiser(y, classes), y + LOW * normal(3, 2, 2, seed=6)
    found = ed.log_likelihood(denoiser, x, FINE, labels=classes, trace="exact")
    expected = torch.distributions.Normal(y * (1 - LOW / HIGH), LOW).log_prob(x).sum((1, 2))
    assert (found.values - expected).abs().max() <= 1e-6
    assert found.latents.shape == (3, 2, 2)
    other = ed.log_likelihood(denoiser, x, FINE, labels=(classes + 1) % 3, trace="exact")
    assert (other.values < found.values - 10).all()


def test_latents_are_those_of_the_inversion_without_its_last_step():
    sampler = FINE.replace(to_zero=False)
    C, x = COVS["full"], samples(COVS["full"])
    denoiser = ed.GaussianDenoiser(MEAN, C)
    latents = ed.log_likelihood(denoiser, x, sampler).latents
    assert (latents - ed.invert(denoiser, x, sampler)).abs().max() <= 1e-12


def test_the_density_of_a_mixture_integrates_to_one_and_is_the_mixtures():
    means = torch.tensor([[-0.8, 0.3], [0.9, -0.4], [0.1, 1.0]], dtype=F64)
    stds, weights = torch.tensor([0.3, 0.25, 0.35], dtype=F64), torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    axis = torch.linspace(-3.2, 3.2, 65, dtype=F64)  # spacing 0.1: below half of every standard deviation
    x = torch.cartesian_prod(axis, axis)
    sampler = ed.Sampler(solver=so.RK4(), steps=64, sigma_min=0.02, sigma_max=1000.0)
    p = ed.log_likelihood(ed.GaussianMixtureDenoiser(means, stds, weights), x, sampler, trace="exact").values.exp()
    assert abs(p.sum() * 0.1**2 - 1) <= 2e-4
    variances = stds**2 + 0.02**2
    squares = ((x[:, None] - means) ** 2).sum(-1)
    expected = (weights / (2 * math.pi * variances) * (-0.5 * squares / variances).exp()).sum(1)
    assert (p - expected).abs().max() <= 1e-3 * expected.max()


# --- the trace ---


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_known_variance(trace):
    """Rows of one x have probes of their own. For M = int C (C + s^2)^-1 d ln s the variance is 2 |M|^2 over all

    elements for normal probes, over those off the diagonal for random signs.
    """
    C, n = COVS["full"], 4000
    x = samples(C, 1).expand(n, 3)
    sampler = FINE.replace(steps=30)
    denoiser = ed.GaussianDenoiser(MEAN, C)
    exact = ed.log_likelihood(denoiser, x[:1], sampler, trace="exact").values
    estimates = ed.log_likelihood(denoiser, x, sampler, trace=trace).values
    lam, Q = torch.linalg.eigh(C)
    M = Q @ torch.diag(math.log(HIGH / LOW) - 0.5 * ((lam + HIGH**2) / (lam + LOW**2)).log()) @ Q.T
    variance = 2 * (M**2).sum() - (0 if trace == "gaussian" else 2 * (M.diagonal() ** 2).sum())
    assert abs(estimates.mean() - exact) <= 4 * (variance / n) ** 0.5
    assert float(estimates.var()) == pytest.approx(float(variance), rel=0.12 if trace == "gaussian" else 0.08)


def test_the_error_bar_covers():
    """Student's t with 15 degrees of freedom has 95 % within 2.13 standard errors, 99 % within 2.95."""
    factor, n = normal(20, 20, seed=8) / 20**0.5, 1500
    x = normal(1, 20, seed=9).expand(n, 20)
    denoiser = ed.GaussianDenoiser(torch.zeros(20, dtype=F64), factor @ factor.T)
    sampler = FINE.replace(steps=12)
    exact = ed.log_likelihood(denoiser, x[:1], sampler, trace="exact").values
    found = ed.log_likelihood(denoiser, x, sampler, probes=16, trace="gaussian", seed=3)
    z = ((found.values - exact) / found.errors).abs()
    assert 0.93 <= (z <= 2.13).double().mean() <= 0.97
    assert 0.98 <= (z <= 2.95).double().mean() <= 0.998


def test_random_signs_are_exact_for_a_diagonal_jacobian():
    C = COVS["anisotropic"]
    denoiser, x = ed.GaussianDenoiser(MEAN, C), samples(C)
    exact = ed.log_likelihood(denoiser, x, FINE, trace="exact").values
    found = ed.log_likelihood(denoiser, x, FINE, probes=2)
    assert (found.values - exact).abs().max() <= 1e-9 and found.errors.max() <= 1e-9


def test_the_trace_is_that_of_the_jacobian():
    denoiser = ed.GaussianMixtureDenoiser(normal(4, 2, 3), torch.tensor(0.4, dtype=F64))
    x, sigma = normal(5, 2, 3, seed=1), torch.tensor(0.5, dtype=F64)
    D, trace = denoised_and_trace(denoiser, x, sigma, None, {})
    assert torch.equal(D, denoiser(x, sigma)) and not D.requires_grad
    for k in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda y: denoiser(y, sigma), x[k : k + 1]).reshape(6, 6)
        assert abs(trace[k, 0] - jacobian.trace()) <= 1e-12
        v = normal(5, 2, 6, seed=2)
        found = denoised_and_trace(denoiser, x, sigma, v, {})[1]
        assert (found[k] - torch.einsum("ki,ij,kj->k", v[k], jacobian, v[k])).abs().max() <= 1e-12


def test_probes_follow_the_seed_the_row_and_their_number_alone():
    denoiser, x = ed.GaussianDenoiser(MEAN, COVS["full"]), samples(COVS["full"])
    sampler = FINE.replace(steps=12)
    two = ed.log_likelihood(denoiser, x, sampler, probes=2, seed=5)
    one = ed.log_likelihood(denoiser, x, sampler, probes=1, seed=5)
    assert one.errors is None
    # mean and error of two numbers are half their sum and half their difference: the first is that of one probe
    assert ((two.values - one.values).abs() - two.errors).abs().max() <= 1e-12
    assert torch.equal(two.values, ed.log_likelihood(denoiser, x, sampler, probes=2, seed=5).values)
    assert (two.values - ed.log_likelihood(denoiser, x, sampler, probes=2, seed=6).values).abs().max() > 0.1
    parts = ed.log_likelihood(denoiser, x, sampler, probes=2, seed=5, batch_size=3)
    assert (two.values - parts.values).abs().max() <= 1e-12 and (two.errors - parts.errors).abs().max() <= 1e-12
    shorter = ed.log_likelihood(denoiser, x[:5], sampler, probes=2, seed=5)
    assert (two.values[:5] - shorter.values).abs().max() <= 1e-12


def test_a_network_with_attention_has_a_likelihood_and_is_left_as_it_was():
    torch.manual_seed(0)
    network = ed.networks.DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=(4,)).build((1, 4, 4), 3)
    for p in network.parameters():
        p.data = p.data + 0.05 * torch.randn_like(p)
    denoiser = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(1, 4, 4), label_dim=3).train()
    x, labels = 0.5 * normal(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    state = torch.random.get_rng_state()
    sampler = ed.Sampler(steps=10)
    exact = ed.log_likelihood(denoiser, x, sampler, labels=labels, trace="exact")
    found = ed.log_likelihood(denoiser, x, sampler, labels=labels, probes=64, batch_size=2)
    assert ((found.values - exact.values).abs() <= 5 * found.errors).all() and found.errors.max() <= 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert denoiser.training and all(p.grad is None for p in denoiser.parameters())
    with torch.inference_mode():
        inside = ed.log_likelihood(denoiser, x, sampler, labels=labels, probes=64)
    assert (inside.values - found.values).abs().max() <= 1e-3


def test_conditions_are_split_with_the_batch():
    x, centres = normal(5, 3, seed=1), normal(5, 3, seed=2)
    denoiser = FunctionDenoiser(lambda x, sigma, centre: centre + (x - centre) / (1 + sigma**2))
    whole = ed.log_likelihood(denoiser, x, FINE, trace="exact", centre=centres).values
    parts = ed.log_likelihood(denoiser, x, FINE, trace="exact", centre=centres, batch_size=2).values
    joint = ed.log_likelihood(denoiser, x, FINE, trace="exact", centre=centres, tolerance=1e-8).values
    # N(c, I) at level low, with the prior N(0, high^2): x - c grows by the gain
    gain = math.sqrt((1 + HIGH**2) / (1 + LOW**2))
    prior = torch.distributions.Normal(0, torch.tensor(HIGH, dtype=F64))
    expected = prior.log_prob(centres + gain * (x - centres)).sum(1) + 3 * math.log(gain)
    for found in (whole, parts, joint):
        assert (found - expected).abs().max() <= 1e-6


# --- quadrature ---


def test_the_quadrature_is_exact_for_cubics_inside_and_parabolas_everywhere():
    u = torch.cumsum(torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.3, 0)
    w = quadrature_weights(u.tolist())
    for k in range(3):
        assert float(w @ u**k) == pytest.approx(float(u[-1] ** (k + 1) - u[0] ** (k + 1)) / (k + 1), rel=1e-12)
    values = [(quadrature_weights(torch.linspace(0, 3, n, dtype=F64).tolist()), n) for n in (17, 33, 65)]
    errors = [abs(float(w @ torch.linspace(0, 3, n, dtype=F64).exp()) - math.expm1(3)) for w, n in values]
    assert math.log2(errors[1] / errors[2]) >= 3.8
    assert quadrature_weights([1.0, 3.0]).tolist() == [1.0, 1.0]
    assert quadrature_weights([0.0, 1.0, 1.01, 2.0]).abs().max() <= 2  # the near neighbours do not make it swing


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": ed.Sampler(stochasticity=so.Ancestral())}, "'ancestral' draws noise"),
        ({"sampler": ed.Sampler(steps=1)}, "needs 2 levels"),
        ({"trace": "hutchinson"}, "trace.*hutchinson.*rademacher"),
        ({"probes": 0}, "probes: got 0"),
        ({"tolerance": 0.0}, "tolerance: got 0"),
        ({"x": torch.zeros(2, 4)}, r"x: got shape \(2, 4\); expected samples \(B, 3\)"),
        ({"x": torch.full((2, 3), math.inf)}, "NaN or infinity"),
        ({"labels": 1}, "model without classes"),
    ],
)
def test_the_likelihood_refuses(arguments, message):
    given = {"x": samples(COVS["full"]), "sampler": FINE.replace(steps=4)} | arguments
    with pytest.raises(ValueError, match=message):
        ed.log_likelihood(ed.GaussianDenoiser(MEAN, COVS["full"]), given.pop("x"), given.pop("sampler"), **given)


@pytest.mark.parametrize("tolerance", [None, 1e-4])
def test_a_denoiser_without_derivative_is_refused_and_not_given_a_trace_of_zero(tolerance):
    @torch.no_grad()
    def frozen(x, sigma):
        return x / (1 + sigma**2)

    with pytest.raises(ValueError, match="no derivative by x"):
        ed.log_likelihood(frozen, samples(COVS["full"]), FINE.replace(steps=4), tolerance=tolerance)


# --- bits per dimension ---


def images(n=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 3, 3)).astype(np.uint8)


def test_bits_of_uniform_images_under_a_wide_gaussian():
    """Against the probability of every level under N(0, v + low^2), by the error function."""
    v, data = 0.64, Dataset(images())
    denoiser = ed.GaussianDenoiser(torch.zeros(1, 3, 3, dtype=F64), torch.tensor(v, dtype=F64))
    sampler = ed.Sampler(solver=so.RK4(), steps=80, sigma_min=0.01, sigma_max=200.0)
    found = ed.bits_per_dim(denoiser, data, sampler)  # random signs are exact for this one
    levels, std = torch.arange(256, dtype=F64), math.sqrt(v + 0.01**2)
    edges = [((levels + e) / 127.5 - 1) / (std * math.sqrt(2)) for e in (-0.5, 0.5)]
    bits = -torch.log2(0.5 * (torch.erf(edges[1]) - torch.erf(edges[0])))
    expected = bits[torch.from_numpy(data.values).long()].flatten(1).mean(1)
    assert (found.each - expected).abs().max() <= 0.02  # what one draw within the levels changes
    assert abs(found.value - expected.mean()) <= 2e-3
    assert found.value == pytest.approx(float(found.each.mean()), rel=1e-12)
    assert found.error == pytest.approx(float(found.each.std()) / 40**0.5, rel=1e-12)
    assert (found.n, found.levels) == (40, 256)
    uniform = 8.0  # no model of uniform levels is shorter than their entropy
    assert found.value > uniform


def test_dequantised_levels_fill_their_intervals():
    data = Dataset(images(400))
    x = dequantised(data, data.tensor(), 256, seed=1)
    assert x.dtype == F64
    u = (x + 1) * 127.5 - torch.from_numpy(data.values) + 0.5
    assert u.min() >= 0 and u.max() < 1 + 1e-9
    assert abs(u.mean() - 0.5) <= 4 / math.sqrt(12 * u.numel()) and abs(u.var() - 1 / 12) <= 0.005
    assert torch.equal(x[:7], dequantised(data, data.tensor()[:7], 256, seed=1))
    assert (x - dequantised(data, data.tensor(), 256, seed=2)).abs().mean() > 1e-3
    assert torch.equal(ed.data.images.to_uint8(x), torch.from_numpy(data.values))  # a written file holds the level


def test_the_digits_have_17_levels():
    digits = ed.data.load("digits").subset(range(50))
    x = dequantised(digits, digits.tensor(), 17, seed=0)
    k = np.rint(digits.values * (16 / 255))
    assert np.abs((x.numpy() + 1) * 8 - k).max() <= 0.5
    denoiser = ed.GaussianDenoiser(torch.zeros(1, 8, 8, dtype=F64), torch.tensor(0.5, dtype=F64))
    sampler = ed.Sampler(solver=so.RK4(), steps=40, sigma_min=0.01, sigma_max=100.0)
    wide = torch.distributions.Normal(0, math.sqrt(0.5 + 0.01**2))
    for levels in (17, 256):
        x = dequantised(digits, digits.tensor(), levels, seed=3)
        expected = -wide.log_prob(x).flatten(1).mean(1) / math.log(2) + math.log2((levels - 1) / 2)
        found = ed.bits_per_dim(denoiser, digits, sampler, levels=levels, seed=3)
        assert (found.each - expected).abs().max() <= 1e-3 and found.levels == levels


def test_other_data_have_the_bits_of_their_density():
    C = COVS["full"]
    data = Dataset(samples(C, 30).float().numpy())
    found = ed.bits_per_dim(ed.GaussianDenoiser(MEAN, C), data, FINE, trace="exact")
    expected = -exact_log_density(data.tensor(F64), C) / (3 * math.log(2))
    assert (found.each - expected).abs().max() <= 1e-6 and found.levels is None
    assert ed.bits_per_dim(ed.GaussianDenoiser(MEAN, C), data.subset([0]), FINE).error is None


def test_classes_are_asked_for_with_the_labels_of_the_data():
    labels = np.arange(6) % 3
    data = Dataset(images(6, seed=4), labels)
    denoiser = ed.EmpiricalDenoiser(data.tensor(), torch.from_numpy(labels), 3)
    found = ed.bits_per_dim(denoiser, data, FINE.replace(steps=20), batch_size=4)
    x = dequantised(data, data.tensor(), 256, 0)
    given = ed.log_likelihood(denoiser, x, FINE.replace(steps=20), labels=labels.tolist())
    assert (found.likelihood.values - given.values).abs().max() <= 1e-9
    with pytest.raises(ValueError, match="the model has classes"):
        ed.bits_per_dim(denoiser, Dataset(images(6)), FINE)


@pytest.mark.parametrize("levels", [1, 17, 255, 300])
def test_levels_that_the_data_are_not_on_are_refused(levels):
    denoiser = ed.GaussianDenoiser(torch.zeros(1, 3, 3, dtype=F64), torch.tensor(0.5, dtype=F64))
    with pytest.raises(ValueError, match=f"levels: got {levels}"):
        ed.bits_per_dim(denoiser, Dataset(images()), FINE, levels=levels)


def test_floats_on_levels_may_say_so():
    k = np.random.default_rng(0).integers(0, 5, (20, 6))
    data = Dataset((k / 2 - 1).astype(np.float32))
    denoiser = ed.GaussianDenoiser(torch.zeros(6, dtype=F64), torch.tensor(0.5, dtype=F64))
    assert ed.bits_per_dim(denoiser, data, FINE, levels=5).levels == 5
    with pytest.raises(ValueError, match="or None for a density"):
        ed.bits_per_dim(denoiser, Dataset((k / 2.1 - 1).astype(np.float32)), FINE, levels=5)


# --- the command and a trained model ---


def cli(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_both_halves(capsys, tmp_path):
    file = tmp_path / "points.npy"
    np.save(file, samples(COVS["full"], 60).float().numpy())
    argv = ["likelihood", f"exact:{file}", file, "--num", 6, "--steps", 10, "--exact"]
    code, out, _ = cli(capsys, *argv)
    assert code == 0 and "held out" in out and "rest" in out and "6 of 30" in out and "density" in out
    code, out, _ = cli(capsys, *argv, "--json", "--sampler", "ve", "--set", "solver=heun")
    facts = json.loads(out)
    assert code == 0 and set(facts["parts"]) == {"held out", "rest"}
    part = facts["parts"]["held out"]
    assert part["nfe"] == 2 * 9 + 10 and part["products"] == 30 and part["sigma_max"] == 100 and part["n"] == 6
    nats_to_bits = -part["nats"] / (3 * math.log(2))
    assert part["bits_per_dim"] == pytest.approx(nats_to_bits, rel=1e-9) and part["probe_error_nats"] == 0
    code, _, err = cli(capsys, *argv, "--levels", "7")
    assert code == 2 and "levels: got 7" in err
    code, _, err = cli(capsys, *argv, "--sampler", "edm", "--set", "stochasticity=churn")
    assert code == 2 and "draws noise" in err


@pytest.mark.slow
def test_a_trained_model_finds_its_training_digits_more_probable(digits_run, capsys):
    argv = ["likelihood", digits_run, "digits", "--levels", 17, "--num", 100, "--probes", 2, "--steps", 24, "--json"]
    code, out, _ = cli(capsys, *argv)
    parts = json.loads(out)["parts"]
    assert code == 0 and set(parts) == {"held out", "training"}
    heldout, training = parts["held out"], parts["training"]
    for part in parts.values():
        assert 1 < part["bits_per_dim"] < math.log2(17) and 0 < part["error"] < 0.1
    apart = heldout["bits_per_dim"] - training["bits_per_dim"]
    assert apart > 3 * math.hypot(heldout["error"], training["error"])  # 900 digits, 750,000 weights: it remembers
