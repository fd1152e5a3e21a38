"""Inverse problems: operators and their adjoints, posteriors against closed forms, constraints, scores, the command."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff import posterior as po
from elucidiff import solvers as so
from elucidiff.analysis import reference_and_real
from elucidiff.citations import BIBTEX
from elucidiff.cli.main import main
from elucidiff.component import Component
from elucidiff.networks import MLP
from elucidiff.posterior.conjugate import conjugate_gradients
from elucidiff.posterior.operators import blur_matrix

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def covariance(d, seed=0, least=0.05):
    M = normal(d, d, seed=seed)
    return M @ M.T / d + least * torch.eye(d, dtype=F64)


def matrix_of(operator, shape):
    """A as a dense matrix (m, d), column by column."""
    d = math.prod(shape)
    return operator.apply(torch.eye(d, dtype=F64).reshape(d, *shape)).flatten(1).T


MATRIX = normal(3, 12, seed=5)
OPERATORS = [
    (po.Mask(po.Half("left")), (1, 8, 8)),
    (po.Mask(po.Half("bottom")), (3, 5, 6)),
    (po.Mask(po.Box(0.5)), (2, 7, 7, 7)),
    (po.Mask(po.Random(0.3, seed=4)), (10,)),
    (po.Mask.of(torch.tensor([True, False, True, True])), (2, 4)),
    (po.Blur(0.7), (1, 8, 8)),
    (po.Blur(1.5, "circular"), (3, 5, 6)),
    (po.Blur(9.0), (2, 7)),  # wider than the axis
    (po.Blur(9.0, "circular"), (7,)),
    (po.Blur(1.0), (1, 4, 5, 3)),
    (po.Downsample(2), (3, 4, 6)),
    (po.Downsample(3), (12,)),
    (po.Downsample(2), (2, 4, 4, 2)),
    (po.Linear.of_matrix(MATRIX), (12,)),
    (po.Linear.of_matrix(MATRIX, (3, 2, 2)), (3, 2, 2)),
]
ids = [f"{type(op).__name__}-{'x'.join(map(str, shape))}-{i}" for i, (op, shape) in enumerate(OPERATORS)]
every_operator = pytest.mark.parametrize(("operator", "shape"), OPERATORS, ids=ids)


# Operators


@every_operator
def test_the_transpose_is_the_adjoint(operator, shape):
    x = normal(4, *shape, seed=1)
    y = normal(4, *operator.output_shape(shape), seed=2)
    assert operator.apply(x).shape == y.shape
    left, right = (operator.apply(x) * y).flatten(1).sum(1), (x * operator.transpose(y)).flatten(1).sum(1)
    assert (left - right).abs().max() <= 1e-12


@every_operator
@pytest.mark.parametrize("damping", [0.3, torch.tensor([0.01, 0.2, 5.0], dtype=F64), 0.0])
def test_solve_is_the_damped_pseudo_inverse(operator, shape, damping):
    A = matrix_of(operator, shape)
    y = normal(3, *operator.output_shape(shape), seed=3)
    for k, row in enumerate(operator.solve(y, damping)):
        damp = float(damping if isinstance(damping, float) else damping[k])
        if damp:
            expected = A.T @ torch.linalg.solve(A @ A.T + damp * torch.eye(len(A), dtype=F64), y[k].reshape(-1))
        else:
            expected = torch.linalg.pinv(A, rtol=1e-6) @ y[k].reshape(-1)  # weaker modes are given up
        assert (row.reshape(-1) - expected).abs().max() <= 1e-9 * (1 + expected.abs().max())


@every_operator
def test_the_pseudo_inverse_solves_what_was_measured(operator, shape):
    y = operator.apply(normal(3, *shape, seed=6))
    assert (operator.apply(operator.solve(y)) - y).abs().max() <= (1e-5 if isinstance(operator, po.Blur) else 1e-10)
    assert operator.count(shape) == int((matrix_of(operator, shape).abs().sum(1) > 0).sum())


@pytest.mark.parametrize(("std", "n"), [(0.4, 6), (1.3, 5), (4.0, 3)])
@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_a_blur_is_the_convolution_of_the_continued_signal(std, n, boundary):
    x = normal(n, seed=1).tolist()
    period = [*x, *reversed(x)] if boundary == "reflect" else x  # dcba|abcd|dcba has period 2 n
    weights = {k: math.exp(-(k**2) / (2 * std**2)) for k in range(-200, 201)}
    expected = [sum(w * period[(i + k) % len(period)] for k, w in weights.items()) for i in range(n)]
    blurred = po.Blur(std, boundary).apply(torch.tensor([x], dtype=F64))[0] * sum(weights.values())
    assert (blurred - torch.tensor(expected, dtype=F64)).abs().max() <= 1e-12


def test_a_circular_blur_damps_a_wave_by_the_transform_of_its_kernel():
    n, std = 64, 2.0
    for frequency in (1, 5, 11):
        wave = torch.cos(2 * math.pi * frequency * torch.arange(n, dtype=F64) / n)[None]
        damped = po.Blur(std, "circular").apply(wave)
        factor = math.exp(-2 * (math.pi * frequency * std / n) ** 2)
        assert (damped - factor * wave).abs().max() <= 1e-12  # aliasing of the sampled Gaussian: exp(-2 pi^2 std^2)


def test_a_blur_keeps_constants_and_is_symmetric():
    for boundary in ("reflect", "circular"):
        matrix = blur_matrix(9, 1.7, boundary)
        assert (matrix.sum(1) - 1).abs().max() <= 1e-14 and (matrix - matrix.T).abs().max() <= 1e-15


def test_downsampling_is_average_pooling():
    x = normal(2, 3, 6, 9)
    assert torch.allclose(po.Downsample(3).apply(x), torch.nn.functional.avg_pool2d(x, 3), atol=1e-14, rtol=0)


def test_regions_are_what_their_names_say():
    assert po.Half("left").known((1, 2, 5)).tolist() == [[True, True, False, False, False]] * 2
    assert po.Half("right").known((3, 1, 5)).tolist() == [[False, False, False, True, True]]
    assert po.Half("top").known((1, 3, 2)).tolist() == [[True] * 2, [False] * 2, [False] * 2]
    assert po.Half("left").known((4,)).tolist() == [True, True, False, False]
    hole = ~po.Box(0.5).known((2, 8, 8))
    assert hole.sum() == 16 and bool(hole[2:6, 2:6].all())
    chosen = po.Random(0.25, seed=1).known((3, 8, 8))
    assert chosen.sum() == 16 and torch.equal(chosen, po.Random(0.25, seed=1).known((3, 8, 8)))
    assert not torch.equal(chosen, po.Random(0.25, seed=2).known((3, 8, 8)))


@pytest.mark.parametrize("flags", ["1", "10", "01", "0110", "1101001", "000001"])
def test_drawn_masks_come_back_from_run_lengths(flags):
    known = torch.tensor([c == "1" for c in flags])
    mask = po.Mask.of(known)
    assert torch.equal(mask.known((len(flags),)), known)
    assert torch.equal(mask.known((3, len(flags))), known.expand(3, -1))
    assert po.Operator.from_dict(json.loads(json.dumps(mask.to_dict()))) == mask


def test_operators_come_back_from_json():
    for operator in (po.Mask(po.Random(0.2, seed=3)), po.Blur(2.0, "circular"), po.Downsample(4)):
        assert po.Operator.from_dict(json.loads(json.dumps(operator.to_dict()))) == operator
    with pytest.raises(TypeError, match="no JSON form"):
        po.Linear.of_matrix(MATRIX).to_dict()
    assert {"mask", "blur", "downsample"} <= set(po.Operator.kinds())
    assert set(po.Region.kinds()) >= {"box", "half", "random", "drawn"}
    assert Component.kinds() == {}


def test_the_noise_of_a_measurement_depends_on_seed_and_row_alone():
    mask, x = po.Mask(po.Half("left")), torch.zeros(20_000, 4, dtype=F64)
    y = mask.measure(x, 0.3, seed=1)
    assert torch.equal(y[:7], mask.measure(x[:7], 0.3, seed=1))
    assert not torch.equal(y, mask.measure(x, 0.3, seed=2))
    assert float(y[:, 2:].abs().max()) == 0
    assert abs(float(y[:, :2].std()) - 0.3) <= 4 * 0.3 / math.sqrt(2 * 40_000)
    assert torch.equal(mask.measure(x + 1, 0.0), mask.apply(x + 1))


def test_conjugate_gradients_solve_each_row_by_itself():
    matrices = torch.stack([covariance(6, seed=s) for s in range(4)])
    b = normal(4, 6, seed=9)
    b[2] = 0

    def product(v):
        return (matrices @ v[..., None])[..., 0], 2 * v

    v, twice = conjugate_gradients(product, b, 50, 1e-14)
    assert (v - torch.linalg.solve(matrices, b)).abs().max() <= 1e-10
    assert (twice - 2 * v).abs().max() <= 1e-13 and float(v[2].abs().max()) == 0
    few, _ = conjugate_gradients(product, b, 2, 1e-14)
    other = b.clone()
    other[1:] = normal(3, 6, seed=11)
    again, _ = conjugate_gradients(product, other, 2, 1e-14)
    assert torch.equal(few[0], again[0])


def test_conjugate_gradients_keep_what_they_have_where_the_matrix_is_not_positive():
    M = torch.diag(torch.tensor([2.0, -1.0], dtype=F64))
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]], dtype=F64)
    v, _ = conjugate_gradients(lambda p: (p @ M, p), b, 20, 1e-12)
    assert torch.equal(v[0], torch.tensor([0.5, 0.0], dtype=F64))  # solved
    assert float(v[1].abs().max()) == 0  # negative at once
    # the first step, along b: |b|^2 / b'Mb = 1.25 / 1.75; the second direction is negative
    assert (v[2] - 1.25 / 1.75 * b[2]).abs().max() <= 1e-15


# D_y against closed forms


def closed_form(mean, C, A, noise, x, sigma, y):
    """E[x0 | x, y] of x0 ~ N(mean, C), x = x0 + sigma n, y = A x0 + noise n', from the joint Gaussian; one sample."""
    d, m = len(mean), len(A)
    H = torch.cat([torch.eye(d, dtype=F64), A])
    R = torch.diag(torch.tensor([sigma**2] * d + [noise**2] * m, dtype=F64))
    z = torch.cat([x, y]) - H @ mean
    return mean + C @ H.T @ torch.linalg.lstsq(H @ C @ H.T + R, z[:, None]).solution[:, 0]


LINEAR = {
    "mask": (po.Mask.of(torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]).bool()), 0.0),
    "mask, noise": (po.Mask(po.Half("left")), 0.3),
    "blur, noise": (po.Blur(1.0), 0.2),
    "downsample": (po.Downsample(2), 0.0),
    "matrix": (po.Linear.of_matrix(normal(3, 8, seed=8)), 0.1),
}


def rows_of(operator, d):
    """A without the rows that are 0, and which they are."""
    A = matrix_of(operator, (d,))
    seen = A.abs().sum(1) > 0
    return A[seen], seen


@pytest.mark.parametrize("problem", LINEAR)
@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 80.0, "each its own"])
def test_moment_matching_is_exact_for_gaussian_data(problem, sigma):
    (operator, noise), d, B = LINEAR[problem], 8, 5
    mean, C = normal(d, seed=1), covariance(d)
    A, seen = rows_of(operator, d)
    sigmas = [0.02, 0.2, 1.0, 5.0, 50.0] if isinstance(sigma, str) else [sigma] * B
    x0 = mean + normal(B, d, seed=2) @ torch.linalg.cholesky(C).T
    x = x0 + torch.tensor(sigmas, dtype=F64)[:, None] * normal(B, d, seed=3)
    y = operator.measure(x0, noise, seed=4)
    method = po.MomentMatching(ed.GaussianDenoiser(mean, C), operator, noise)
    D = method(x, torch.tensor(sigmas, dtype=F64) if isinstance(sigma, str) else sigma, measurement=y)
    for k in range(B):
        expected = closed_form(mean, C, A, noise, x[k], sigmas[k], y[k][seen])
        assert (D[k] - expected).abs().max() <= 1e-9


def test_moment_matching_is_exact_for_a_mixture_where_one_component_is_left():
    """Far from the others, D is that component's, and so is its Jacobian."""
    means, stds = torch.tensor([[0.0, 0.0, 0.0], [60.0, 0.0, 0.0]], dtype=F64), torch.tensor([0.5, 0.7, 1.0], dtype=F64)
    prior = ed.GaussianMixtureDenoiser(means, stds.expand(2, 3).clone())
    mask = po.Mask.of(torch.tensor([True, False, True]))
    x, y = normal(4, 3, seed=3) + means[1], mask.apply(normal(4, 3, seed=4) + means[1])
    D = po.MomentMatching(prior, mask, noise=0.2)(x, 0.8, measurement=y)
    A, seen = rows_of(mask, 3)
    for k in range(4):
        expected = closed_form(means[1], torch.diag(stds**2), A, 0.2, x[k], 0.8, y[k][seen])
        assert (D[k] - expected).abs().max() <= 1e-8


@pytest.mark.parametrize("problem", LINEAR)
@pytest.mark.parametrize("method", [po.PiGDM, po.MomentMatching])
def test_pseudoinverse_guidance_is_exact_for_round_gaussian_data(problem, method):
    (operator, noise), d, sigma, v = LINEAR[problem], 8, 0.7, 1.3
    mean = normal(d, seed=1)
    A, seen = rows_of(operator, d)
    x = mean + normal(3, d, seed=2)
    y = operator.measure(mean + normal(3, d, seed=5), noise)
    D = method(ed.GaussianDenoiser(mean, v), operator, noise, sigma_data=math.sqrt(v))(x, sigma, measurement=y)
    for k in range(3):
        expected = closed_form(mean, v * torch.eye(d, dtype=F64), A, noise, x[k], sigma, y[k][seen])
        assert (D[k] - expected).abs().max() <= 1e-9


def test_replacement_keeps_the_rest_of_d():
    prior, mask = ed.GaussianDenoiser(normal(6), covariance(6)), po.Mask(po.Half("left"))
    x, y = normal(3, 6, seed=1), normal(3, 6, seed=2)
    D = po.Replacement(prior, mask)(x, 0.5, measurement=y)
    assert torch.equal(D[:, 3:], prior(x, 0.5)[:, 3:]) and (D[:, :3] - y[:, :3]).abs().max() <= 1e-15
    pooled = po.Replacement(prior, po.Downsample(2))(x, 0.5, measurement=y[:, :3])
    blocks = (pooled - prior(x, 0.5)).reshape(3, 3, 2)
    assert (pooled.reshape(3, 3, 2).mean(2) - y[:, :3]).abs().max() <= 1e-14
    assert (blocks[..., 0] - blocks[..., 1]).abs().max() <= 1e-14
    # with noise: the mean of N(D, r^2) and N(y, noise^2)
    noise, v, s2 = 0.4, 0.25, 0.25
    r2 = s2 * v / (s2 + v)
    damped = po.Replacement(prior, mask, noise)(x, 0.5, measurement=y)[:, :3]
    expected = (noise**2 * prior(x, 0.5)[:, :3] + r2 * y[:, :3]) / (noise**2 + r2)
    assert (damped - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("sigma", [0.3, 4.0])
def test_dps_follows_the_gradient_of_the_residual(sigma):
    prior = ed.GaussianMixtureDenoiser(normal(3, 6, seed=1), 0.4)
    operator, zeta = po.Linear.of_matrix(normal(4, 6, seed=2)), 0.7
    x, y = normal(2, 6, seed=3), normal(2, 4, seed=4)

    def residual(x):
        return (y - operator.apply(prior(x, sigma))).norm(dim=1)

    D = po.DPS(prior, operator, noise=0.1, zeta=zeta)(x, sigma, measurement=y)
    h = 1e-5
    for i in range(6):
        e = torch.zeros(6, dtype=F64)
        e[i] = h
        slope = (residual(x + e) - residual(x - e)) / (2 * h)
        expected = prior(x, sigma)[:, i] - zeta * sigma * math.sqrt(4) * slope
        assert (D[:, i] - expected).abs().max() <= 1e-8


def test_where_the_measurement_is_met_nothing_is_changed():
    prior, mask = ed.GaussianDenoiser(normal(4), covariance(4)), po.Mask(po.Half("left"))
    x = normal(2, 4, seed=2)
    D = prior(x, 0.7)
    for method in po.METHODS.values():
        assert torch.equal(method(prior, mask, noise=0.1)(x, 0.7, measurement=D), D)


# samples of a Gaussian posterior

CHURN = so.Churn(S_churn=20)
SAMPLERS = {
    "heun": ed.EDM.sampler.replace(steps=48),
    "heun + churn": ed.EDM.sampler.replace(steps=64, stochasticity=CHURN),
    "heun, vp": ed.Sampler(
        schedule=ed.formulation.VP(),
        scaling=ed.formulation.VariancePreserving(),
        steps=64,
        sigma_min=0.002,
        sigma_max=80,
    ),
    "ancestral": ed.EDM.sampler.replace(steps=96, stochasticity=so.Ancestral()),
    "dpmpp_2m_sde": ed.EDM.sampler.replace(steps=96, solver=so.DPMpp2MSDE()),
}


def posterior_moments(mean, C, A, noise, y):
    K = C @ A.T @ torch.linalg.inv(A @ C @ A.T + noise**2 * torch.eye(len(A), dtype=F64))
    return mean + K @ (y - A @ mean), C - K @ A @ C


@pytest.mark.parametrize(
    ("sampler", "problem"),
    [
        *itertools.product(("heun", "heun + churn"), ("mask", "mask, noise", "blur, noise", "matrix")),
        ("heun, vp", "mask"),
        ("ancestral", "mask, noise"),
        ("dpmpp_2m_sde", "mask, noise"),
    ],
)
def test_samples_have_mean_and_covariance_of_the_posterior(sampler, problem):
    """Within 4 standard errors, for fresh latents, one measurement for all."""
    (operator, noise), d, n = LINEAR[problem], 8, 2500
    mean, C = 0.5 * normal(d, seed=1), covariance(d)
    A, seen = rows_of(operator, d)
    y = operator.measure(mean + normal(1, d, seed=2) @ torch.linalg.cholesky(C).T, noise, seed=3)
    expected, S = posterior_moments(mean, C, A, noise, y[0][seen])
    method = po.MomentMatching(ed.GaussianDenoiser(mean, C), operator, noise)
    X = ed.sample(method, SAMPLERS[sampler], seeds=range(n), measurement=y).x
    variances = S.diagonal().clamp(min=0)
    assert ((X.mean(0) - expected).abs() <= 4 * (variances / n).sqrt() + 1e-9).all()
    error = ((variances[:, None] * variances + S**2) / n).sqrt()
    assert ((X.T.cov() - S).abs() <= 4 * error + 1e-9).all()


def test_replacement_misses_that_posterior():
    """The test above can fail: what is unknown keeps too much of the prior."""
    d, n, mask = 8, 3000, LINEAR["mask"][0]
    C = covariance(d)
    prior = ed.GaussianDenoiser(torch.zeros(d, dtype=F64), C)
    y = mask.apply(normal(1, d, seed=2) @ torch.linalg.cholesky(C).T)
    A, seen = rows_of(mask, d)
    expected, S = posterior_moments(torch.zeros(d, dtype=F64), C, A, 0.0, y[0][seen])
    X = ed.sample(po.Replacement(prior, mask), SAMPLERS["heun"], seeds=range(n), measurement=y).x
    assert ((X.mean(0) - expected).abs() > 4 * (S.diagonal().clamp(min=0) / n).sqrt() + 1e-9).any()


# every sampler, and what stays exact

ROUNDS = {
    "euler": ed.EDM.sampler.replace(solver=so.Euler(), steps=6),
    "heun": ed.EDM.sampler.replace(steps=6),
    "heun + churn": ed.EDM.sampler.replace(steps=6, stochasticity=so.Churn(S_churn=40, S_noise=1.007)),
    "dpmpp_2m": ed.EDM.sampler.replace(solver=so.DPMpp2M(), steps=6),
    "unipc": ed.EDM.sampler.replace(solver=so.UniPC(), steps=6),
    "dpmpp_2m_sde": ed.EDM.sampler.replace(solver=so.DPMpp2MSDE(), steps=6),
    "pc": ed.EDM.sampler.replace(solver=so.PC(), steps=6),
    "ancestral": ed.EDM.sampler.replace(solver=so.Euler(), stochasticity=so.Ancestral(), steps=6),
    "vp": ed.VP.sampler.replace(steps=6),
    "ve": ed.VE.sampler.replace(steps=6),
    "iddpm": ed.IDDPM.sampler.replace(steps=6),
    "vp, heun": ed.VP.sampler.replace(steps=6, solver=so.Heun()),
    "cosine, dpmpp_3m": ed.VP.sampler.replace(steps=6, schedule=ed.formulation.Cosine(), solver=so.DPMpp3M()),
}


def network(shape=(2, 3), label_dim=0):
    """A network whose answers are not those of an untrained one, which are nearly linear in x."""
    made = ed.Preconditioned(MLP(width=16, depth=2), ed.preconditioning.EDM(), shape=shape, label_dim=label_dim)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(0.3 * normal(*p.shape, seed=i))
    return made


@pytest.mark.parametrize("sampler", ROUNDS)
@pytest.mark.parametrize("method", po.METHODS)
def test_known_coordinates_are_kept_by_every_sampler(sampler, method):
    """1e-6 is asked; VE's and VP's last Euler step, and the networks' float32, do not cost more than rounding."""
    for denoiser in (ed.GaussianMixtureDenoiser(normal(3, 2, 3), 0.3), network()):
        mask = po.Mask.of(torch.tensor([[True, False, True], [False, False, True]]))
        y = mask.apply(normal(4, 2, 3, seed=7))
        chosen = ROUNDS[sampler]
        X = ed.sample(po.METHODS[method](denoiser, mask), chosen, seeds=range(4), measurement=y).x
        assert (mask.apply(X) - y).abs().max() <= 1e-12 and bool(X.isfinite().all())


@pytest.mark.parametrize("operator", [po.Downsample(2), po.Blur(0.5), po.Linear.of_matrix(normal(3, 8, seed=1))])
def test_other_measurements_without_noise_are_met_too(operator):
    prior = ed.GaussianMixtureDenoiser(normal(3, 8), 0.3)
    y = operator.apply(normal(4, 8, seed=7))
    for method, sampler in itertools.product(po.METHODS.values(), ("heun + churn", "ve")):
        X = ed.sample(method(prior, operator), ROUNDS[sampler], seeds=range(4), measurement=y).x
        assert (operator.apply(X) - y).abs().max() <= 1e-9


def test_streaming_keeps_known_coordinates_and_a_run_that_ends_above_zero_is_left_alone():
    prior, mask = ed.GaussianDenoiser(normal(6), covariance(6)), po.Mask(po.Half("left"))
    y, method = normal(3, 6, seed=5), po.MomentMatching(prior, mask)
    states = list(ed.sample_states(method, ROUNDS["ve"], seeds=range(3), measurement=y))
    assert (states[-1].x - y)[:, :3].abs().max() <= 1e-12
    assert torch.equal(states[-1].x, ed.sample(method, ROUNDS["ve"], seeds=range(3), measurement=y).x)
    noisy = ed.sample(method, ROUNDS["ve"].replace(to_zero=False), seeds=range(3), measurement=y)
    assert (noisy.x - y)[:, :3].abs().max() > 1e-3  # its noise stays in it


def test_a_measurement_with_noise_is_not_imposed():
    prior, mask = ed.GaussianDenoiser(torch.zeros(6, dtype=F64), 1.0), po.Mask(po.Half("left"))
    y = normal(2, 6, seed=5)
    X = ed.sample(po.MomentMatching(prior, mask, noise=0.5), ROUNDS["heun"], seeds=range(2), measurement=y).x
    assert (X - y)[:, :3].abs().min() > 1e-3


def test_what_a_mask_does_not_see_is_not_read():
    prior, mask = ed.GaussianDenoiser(normal(6), covariance(6)), po.Mask(po.Half("left"))
    y = normal(2, 6, seed=5)
    marked = y.clone()
    marked[:, 3:] = math.nan
    for method in po.METHODS.values():
        X, Z = (ed.sample(method(prior, mask), ROUNDS["heun"], seeds=range(2), measurement=m).x for m in (y, marked))
        assert torch.equal(X, Z)


def test_one_measurement_serves_all_samples():
    method = po.PiGDM(network((1, 4, 4)), po.Mask(po.Half("left")))
    y = normal(1, 1, 4, 4, seed=5)
    one, many = (
        ed.sample(ed.FixedBatch(method, 4), ROUNDS["heun"], seeds=range(6), measurement=m, batch_size=b).x
        for m, b in ((y, None), (y.expand(6, -1, -1, -1), 3))
    )
    assert torch.equal(one, many)


@pytest.mark.parametrize("method", po.METHODS)
def test_a_sample_does_not_depend_on_its_batch(method):
    wrapped = ed.FixedBatch(po.METHODS[method](network((1, 4, 4), 3), po.Blur(0.6), noise=0.1), 4)
    y, labels, sampler = normal(7, 1, 4, 4, seed=5), torch.arange(7) % 3, ROUNDS["heun + churn"]
    whole = ed.sample(wrapped, sampler, seeds=range(7), labels=labels, measurement=y).x
    parts = ed.sample(wrapped, sampler, seeds=range(7), labels=labels, measurement=y, batch_size=2).x
    alone = ed.sample(wrapped, sampler, seeds=[5], labels=labels[5:6], measurement=y[5:6]).x
    assert torch.equal(whole, parts) and torch.equal(whole[5:6], alone)


@pytest.mark.parametrize("method", po.METHODS)
def test_gradients_stay_inside(method):
    denoiser = network()
    before = torch.ones_like(next(denoiser.parameters()))
    next(denoiser.parameters()).grad = before.clone()
    wrapped = po.METHODS[method](denoiser, po.Mask(po.Half("left")))
    x = normal(3, 2, 3).requires_grad_()
    with torch.no_grad():
        D = wrapped(x, 0.5, measurement=normal(3, 2, 3, seed=1))
    assert not D.requires_grad and D.grad_fn is None and x.grad is None
    X = ed.sample(wrapped, ROUNDS["heun"], seeds=range(3), measurement=normal(3, 2, 3, seed=1)).x
    assert X.grad_fn is None
    assert torch.equal(next(denoiser.parameters()).grad, before)
    assert all(p.grad is None for p in list(denoiser.parameters())[1:])
    assert all(p.requires_grad for p in denoiser.parameters())
    with torch.inference_mode():
        again = ed.sample(wrapped, ROUNDS["heun"], seeds=range(3), measurement=normal(3, 2, 3, seed=1)).x
    assert torch.equal(again, X)


@pytest.mark.parametrize("method", po.METHODS)
def test_samples_can_be_differentiated(method):
    """grad=True: the derivative of a sample by its latent, second derivatives of D included, against differences."""
    prior, mask = ed.GaussianMixtureDenoiser(normal(3, 4), 0.5), po.Mask(po.Half("left"))
    wrapped = po.METHODS[method](prior, mask, noise=0.2)
    y, z, way, h = normal(1, 4, seed=5), normal(1, 4, seed=6), normal(1, 4, seed=7), 1e-6
    sampler = ed.EDM.sampler.replace(steps=4, sigma_max=2.0)

    def total(z):
        return (ed.sample(wrapped, sampler, latents=z, measurement=y, grad=True).x * way).sum()

    latent = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(total(latent), latent)
    differences = [(total(z + h * e) - total(z - h * e)).detach() / (2 * h) for e in torch.eye(4, dtype=F64)[:, None]]
    assert (g[0] - torch.stack(differences)).abs().max() <= 1e-6


def test_discrete_levels_and_range_are_those_of_the_denoiser():
    inner = ed.Preconditioned(MLP(width=8, depth=1), ed.preconditioning.VP(), shape=(4,))
    method = po.Replacement(inner, po.Mask(po.Half("left")))
    sigma = torch.tensor([0.03, 1.0, 40.0], dtype=F64)
    assert torch.equal(method.round_sigma(sigma), inner.round_sigma(sigma))
    assert (method.sigma_min, method.sigma_max, method.shape) == (inner.sigma_min, inner.sigma_max, (4,))


def test_networks_are_trusted_less_than_formulas():
    assert po.MomentMatching(ed.GaussianDenoiser(torch.zeros(4), 1.0), po.Blur(1.0)).trust == po.EXACT
    assert po.MomentMatching(network(), po.Blur(1.0)).trust == po.LEARNED
    assert po.PiGDM(ed.FixedBatch(network()), po.Blur(1.0)).sigma_data == 0.5
    tight = po.Trust(iterations=3, bound=0.01)
    prior, x = ed.GaussianDenoiser(torch.zeros(4, dtype=F64), 1.0), normal(3, 4)
    method = po.MomentMatching(prior, po.Mask(po.Half("left")), noise=0.1, sigma_data=1.0, trust=tight)
    moved = method(x, 2.0, measurement=5 * normal(3, 4, seed=1)) - prior(x, 2.0)
    r = 2 / math.sqrt(5)
    assert (moved.square().mean(1).sqrt() - 0.01 * r).abs().max() <= 1e-12


# scores


def test_the_energy_score_is_least_for_the_true_distribution():
    """N(0, 1) in one dimension: E|X - x0| - E|X - X'| / 2 for X ~ N(m, s^2) by the folded normal's mean."""
    n, k = 4000, 8

    def expected(m, s):
        total = math.sqrt(1 + s * s)
        folded = total * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * total**2)) + m * math.erf(
            m / total / math.sqrt(2)
        )
        return folded - s / math.sqrt(math.pi)

    truth, Z = normal(n, 1, seed=1), normal(n, k, 1, seed=2)
    found = {}
    for m, s in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.3), (0.0, 1.8)):
        score = po.score_restorations((m + s * Z).flatten(0, 1), truth, po.Blur(1.0))
        assert abs(score.energy - expected(m, s)) <= 4 * score.energy_error
        found[m, s] = score.energy
    assert min(found, key=found.get) == (0.0, 1.0)


def test_scores_are_over_the_unknown_part():
    truth = torch.zeros(2, 4, dtype=F64)
    samples = torch.tensor([[9.0, 9, 3, 4]] * 2 + [[9.0, 9, 0, 2]] * 2, dtype=F64)
    score = po.score_restorations(samples, truth, po.Mask(po.Half("left")))
    assert score.rmse == pytest.approx(math.sqrt((25 + 4) / 4)) and score.rmse_of_mean == pytest.approx(score.rmse)
    assert score.energy == pytest.approx((5 + 2) / 2 / math.sqrt(2)) and (score.measurements, score.samples) == (2, 2)
    assert score.psnr == pytest.approx(20 * math.log10(2 / score.rmse))
    single = po.score_restorations(samples[::2], truth, po.Mask(po.Half("left")))
    assert math.isnan(single.energy) and single.to_dict()["energy"] is None


def test_every_method_is_cited():
    for method in po.METHODS.values():
        assert method.references and all(key in BIBTEX for key in method.references)


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: po.Box(0.0), r"Box.size: got 0.0; expected a fraction in \(0, 1\]"),
        (lambda: po.Half("middle"), "Half.side: got 'middle'; expected one of left"),
        (lambda: po.Random(1.5), r"Random.fraction: got 1.5; expected a fraction"),
        (lambda: po.Random(0.5, seed=-1), "Random.seed: got -1"),
        (lambda: po.Half("top").known((4,)), "needs two spatial axes"),
        (lambda: po.Half().known((3, 1, 1)), "axis of at least 2"),
        (lambda: po.Mask.of(torch.zeros(4).bool()), "nothing is known"),
        (lambda: po.Mask.of(torch.ones(4).bool()).known((2, 5)), r"drawn for shape \(4,\)"),
        (lambda: po.Mask(po.Box(1.0)).known((1, 3, 3)), "leaves nothing known"),
        (lambda: po.Drawn((4,), (1, 2)), r"add up to 3; the shape \(4,\) has 4"),
        (lambda: po.Drawn((4,), (-1, 5)), "negative length"),
        (lambda: po.Blur(0.0), "Blur.std: got 0.0; expected a number of pixels above 0"),
        (lambda: po.Blur(1.0, "zero"), "Blur.boundary: got 'zero'; expected one of reflect, circular"),
        (lambda: po.Downsample(0), "Downsample.factor: got 0; expected at least 1"),
        (lambda: po.Downsample(3).output_shape((1, 9, 8)), r"3 does not divide the spatial axes .* \(1, 9, 8\)"),
        (lambda: po.Linear.of_matrix(torch.ones(3)), r"matrix: got shape \(3,\); expected \(m, d\)"),
        (lambda: po.Linear.of_matrix(torch.ones(2, 5), (2, 3)), r"have 6 elements"),
        (lambda: po.Linear(lambda x: 2 * x, lambda y: y).check((4,)), "expected the adjoint"),
        (lambda: po.Blur(1.0).measure(torch.zeros(1, 4), noise=-1), "noise: got -1"),
        (lambda: po.Trust(iterations=0), "Trust.iterations: got 0"),
        (lambda: po.Trust(tolerance=1.0), "Trust.tolerance: got 1.0"),
        (lambda: po.Trust(damping=-0.1), "Trust.damping: got -0.1"),
        (lambda: po.Trust(bound=0.0), "Trust.bound: got 0.0"),
        (lambda: po.Replacement(network(), po.Blur(1.0), noise=-1), "noise: got -1; expected a standard deviation"),
        (lambda: po.PiGDM(network(), po.Blur(1.0), sigma_data=0), "sigma_data: got 0; expected a number above 0"),
        (lambda: po.DPS(network(), po.Blur(1.0), zeta=0), "zeta: got 0; expected a number above 0"),
        (lambda: po.MomentMatching(network(), po.Downsample(2)), "does not divide"),
        (lambda: po.score_restorations(torch.zeros(5, 4), torch.zeros(2, 4), po.Blur(1.0)), r"expected \(n k, \*\)"),
        (lambda: po.unknown_part(po.Mask(po.Random(1.0)), (4,)), "nothing is left to restore"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (None, r"measurement: got NoneType; expected a tensor of B rows \(2, 3\), as in ed.sample"),
        ([1.0], "got list"),
        (torch.zeros(3, 2, 4), r"got shape \(3, 2, 4\); expected \(3, \*\) or \(1, \*\) with \* = \(2, 3\)"),
        (torch.zeros(2, 3), r"got shape \(2, 3\)"),
        (torch.zeros(2, 2, 3), r"got shape \(2, 2, 3\)"),
        (torch.full((3, 2, 3), math.nan), "NaN or infinite"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused(measurement, message):
    method = po.MomentMatching(network(), po.Mask(po.Half("left")))
    conditions = {} if measurement is None else {"measurement": measurement}
    with pytest.raises(ValueError, match=message):
        ed.sample(method, ed.EDM, seeds=range(3), **conditions)


def test_types_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="operator: got 'blur'; expected one of ed.posterior"):
        po.DPS(network(), "blur")
    with pytest.raises(TypeError, match="mask: got torch.float32; expected torch.bool"):
        po.Mask.of(torch.ones(3))


def test_a_linear_operator_of_functions_is_checked():
    po.Linear(lambda x: x.cumsum(1), lambda y: y.flip(1).cumsum(1).flip(1)).check((5,))


# the command


def restore(capsys, *argv):
    code = main(["restore", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


COMMON = ("exact:digits", "digits", "--num", "3", "--each", "2", "--steps", "4")


def test_restore_writes_images_arrays_a_sheet_and_scores(tmp_path, capsys):
    folder = tmp_path / "out"
    code, out, _ = restore(capsys, *COMMON, "--method", "pigdm,replacement", "--mask", "half:top", "--out", folder)
    assert code == 0 and "pigdm" in out and "replacement" in out and str(folder.name) in out.replace("\n", "")
    facts = json.loads((folder / "restore.json").read_text())
    assert facts["operator"] == {"kind": "mask", "region": {"kind": "half", "side": "top"}} and facts["noise"] == 0
    arrays = np.load(folder / "arrays.npz", allow_pickle=False)
    heldout = reference_and_real(ed.data.load("digits"))[0].tensor().double().numpy()
    last = len(heldout) - 1
    assert np.array_equal(arrays["truth"], heldout[[0, last // 2, last]])
    for name in ("pigdm", "replacement"):
        x = arrays[name].reshape(3, 2, 1, 8, 8)
        assert np.abs(x[..., :4, :] - arrays["truth"][:, None, :, :4]).max() <= 1e-6
        rmse = np.sqrt(np.mean((x[..., 4:, :] - arrays["truth"][:, None, :, 4:]) ** 2))
        assert facts["methods"][name]["rmse"] == pytest.approx(rmse, rel=1e-12)
        assert facts["methods"][name]["nfe"] == 7 and len(list((folder / name).glob("*.png"))) == 6
    for name in ("truth/0002.png", "degraded/0000.png", "pigdm/0001-1.png", "sheet.png"):
        with Image.open(folder / name) as image:
            image.load()
    code, _, err = restore(capsys, *COMMON, "--out", folder)
    assert code == 2 and "exists" in err


@pytest.mark.parametrize(
    ("task", "operator", "noise"),
    [
        (["deblur", "--blur", "0.8"], {"kind": "blur", "std": 0.8, "boundary": "reflect"}, 0.05),
        (["superres", "--factor", "4", "--noise", "0.1"], {"kind": "downsample", "factor": 4}, 0.1),
        (["inpaint", "--mask", "random:0.25", "--seed", "3"],
         {"kind": "mask", "region": {"kind": "random", "fraction": 0.25, "seed": 3}}, 0),
        (["inpaint", "--mask", "box"], {"kind": "mask", "region": {"kind": "box", "size": 0.5}}, 0),
    ],
)  # fmt: skip
def test_restore_prints_json_for_every_task(tmp_path, capsys, task, operator, noise):
    argv = (*COMMON, "--task", *task, "--method", "replacement", "--json", "--out", tmp_path / "out")
    code, out, _ = restore(capsys, *argv)
    facts = json.loads(out)
    assert code == 0 and facts["operator"] == operator and facts["noise"] == noise
    assert set(facts["methods"]) == {"replacement"}


def test_restore_takes_arrays_too(tmp_path, capsys):
    np.save(tmp_path / "points.npy", normal(40, 6).float().numpy())
    data = str(tmp_path / "points.npy")
    code, _, err = restore(capsys, f"exact:{data}", data, "--steps", "3", "--num", "4", "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["arrays.npz", "manifest.json", "restore.json"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "momnt"], "unknown method 'momnt'; did you mean 'moment'"),
        (["--task", "colour"], "unknown task 'colour'"),
        (["--mask", "circle"], "unknown mask 'circle'"),
        (["--mask", "box:big"], "--mask: got 'box:big'; expected a fraction after the colon"),
        (["--mask", "half:up"], "Half.side: got 'up'"),
        (["--task", "superres", "--factor", "3"], "does not divide"),
        (["--noise", "-1"], "noise: got -1"),
    ],
)
def test_restore_refuses_what_does_not_fit(tmp_path, capsys, argv, message):
    code, _, err = restore(capsys, *COMMON, *argv, "--out", tmp_path / "out")
    assert code == 2 and message in err and not (tmp_path / "out").exists()


# a trained model


def test_moment_matching_beats_replacement_on_held_out_digits(digits_run):
    """100 held-out digits, left half known: the energy score of the right half, digit by digit, and known pixels."""
    denoiser, mask, each = ed.load(digits_run), po.Mask(po.Half("left")), 4
    heldout, _ = reference_and_real(ed.data.load("digits"))
    truth, labels = heldout.batch(torch.linspace(0, len(heldout) - 1, 100).long())
    truth, unknown = truth.double(), ~mask.known((1, 8, 8)).reshape(-1)
    y, told = mask.apply(truth).repeat_interleave(each, 0), labels.repeat_interleave(each, 0)
    for stochasticity in (so.Deterministic(), so.Churn(S_churn=20)):
        sampler, energy = ed.EDM.sampler.replace(stochasticity=stochasticity), {}
        for name in ("moment", "replacement"):
            method = po.METHODS[name](denoiser, mask)
            X = ed.sample(method, sampler, seeds=range(400), labels=told, measurement=y, batch_size=100).x
            assert (mask.apply(X) - y).abs().max() <= 1e-6
            samples = X.flatten(1)[:, unknown].unflatten(0, (100, each))
            energy[name] = po.energy_scores(samples, truth.flatten(1)[:, unknown])
        gain = energy["replacement"] - energy["moment"]
        assert gain.mean() > 2 * gain.std() / math.sqrt(100)
