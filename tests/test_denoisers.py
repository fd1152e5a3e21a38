"""Exact denoisers against their formulas, the wrapper of networks, and float32 under float64 (N3)."""

import math

import pytest
import torch
from torch import nn

import elucidiff as ed
from elucidiff import preconditioning as pc
from elucidiff.denoiser import FunctionDenoiser, as_denoiser, one_hot

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# a finite data set


def softmax_by_hand(x, sigma, data, weights=None):
    """D = sum_i w_i y_i with w_i proportional to weights_i exp(-||x - y_i||^2 / (2 sigma^2)), in loops."""
    weights = [1.0] * len(data) if weights is None else weights
    distances = [((x - y) ** 2).sum().item() for y in data]
    nearest = min(d for d, w in zip(distances, weights, strict=True) if w)
    w = [v * math.exp(-(d - nearest) / (2 * sigma**2)) for v, d in zip(weights, distances, strict=True)]
    return sum(a * y for a, y in zip(w, data, strict=True)) / sum(w)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4), (5, 2)])
@pytest.mark.parametrize("sigma", [1e-4, 0.3, 2.0, 80.0, 1e5])
def test_empirical_denoiser_is_the_softmax_over_the_data(shape, sigma):
    data, x = normal(7, *shape, seed=1), normal(4, *shape, seed=2)
    D = ed.EmpiricalDenoiser(data)(x, sigma)
    expected = torch.stack([softmax_by_hand(row, sigma, data) for row in x])
    assert (D - expected).abs().max() <= 1e-11


def test_empirical_denoiser_takes_a_level_for_every_sample():
    data, x = normal(7, 3, seed=1), normal(4, 3, seed=2)
    sigmas = [0.01, 0.5, 1.0, 10.0]
    D = ed.EmpiricalDenoiser(data)(x, torch.tensor(sigmas, dtype=F64))
    expected = torch.stack([softmax_by_hand(row, s, data) for row, s in zip(x, sigmas, strict=True)])
    assert (D - expected).abs().max() <= 1e-12


CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize("as_vectors", [False, True])
def test_empirical_denoiser_of_a_class_uses_the_samples_of_that_class(as_vectors):
    data, x = normal(7, 3, seed=1), normal(3, 3, seed=2)
    given = nn.functional.one_hot(CLASSES).double() if as_vectors else CLASSES
    denoiser = ed.EmpiricalDenoiser(data, given)
    asked = torch.tensor([2, 0, 1])
    asked_for = one_hot(asked, 3, 3) if as_vectors else asked
    D = denoiser(x, 0.7, labels=asked_for)
    expected = torch.stack([softmax_by_hand(row, 0.7, data[k == CLASSES]) for row, k in zip(x, asked, strict=True)])
    assert denoiser.label_dim == 3
    assert (D - expected).abs().max() <= 1e-12


def test_empirical_denoiser_weighs_soft_labels_and_ignores_empty_ones():
    data, x = normal(7, 3, seed=1), normal(2, 3, seed=2)
    labels = torch.tensor([[0.2, 0.0, 0.8], [0.0, 0.0, 0.0]], dtype=F64)
    D = ed.EmpiricalDenoiser(data, CLASSES)(x, 0.7, labels=labels)
    weighted = softmax_by_hand(x[0], 0.7, data, [labels[0, k].item() for k in CLASSES])
    assert (D[0] - weighted).abs().max() <= 1e-12
    assert (D[1] - softmax_by_hand(x[1], 0.7, data)).abs().max() <= 1e-12


def test_empirical_denoiser_refuses_what_cannot_be():
    data = normal(7, 3)
    with pytest.raises(ValueError, match="6 labels for 7 samples"):
        ed.EmpiricalDenoiser(data, CLASSES[:6])
    with pytest.raises(ValueError, match="no sample"):
        ed.EmpiricalDenoiser(data, CLASSES, label_dim=5)(data[:1], 1.0, labels=torch.tensor([4]))
    with pytest.raises(ValueError, match="without classes"):
        ed.EmpiricalDenoiser(data)(data[:1], 1.0, labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="n >= 1"):
        ed.EmpiricalDenoiser(data[:0])


# Gaussians


def covariance(d, seed=3):
    a = normal(d, d, seed=seed)
    return a @ a.T + 0.1 * torch.eye(d, dtype=F64)


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("form", ["scalar", "diagonal", "matrix"])
def test_gaussian_denoiser_is_the_closed_form(form, sigma):
    mean, x = normal(2, 3, seed=1), normal(5, 2, 3, seed=2)
    C = {
        "scalar": 0.7 * torch.eye(6, dtype=F64),
        "diagonal": torch.diag(normal(6, seed=4) ** 2),
        "matrix": covariance(6),
    }
    given = {"scalar": 0.7, "diagonal": C["diagonal"].diag().reshape(2, 3), "matrix": C["matrix"]}
    gain = C[form] @ torch.linalg.inv(C[form] + sigma**2 * torch.eye(6, dtype=F64))
    expected = mean + ((x - mean).reshape(5, 6) @ gain.T).reshape(5, 2, 3)
    assert (ed.GaussianDenoiser(mean, given[form])(x, sigma) - expected).abs().max() <= 1e-12
    each = ed.GaussianDenoiser(mean, given[form])(x, torch.full((5,), sigma, dtype=F64))
    assert (each - expected).abs().max() <= 1e-12


def test_a_gaussian_without_variance_is_its_mean():
    mean = normal(3)
    assert torch.equal(ed.GaussianDenoiser(mean, 0.0)(normal(2, 3, seed=1), 1.0), mean.expand(2, 3))


@pytest.mark.parametrize("cov", [-1.0, torch.tensor([1.0, -0.1]), torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
                                 torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(3), torch.ones(3, 3)])  # fmt: skip
def test_what_is_no_covariance_is_refused(cov):
    with pytest.raises(ValueError, match="cov"):
        ed.GaussianDenoiser(torch.zeros(2), cov)


# mixtures


@pytest.mark.parametrize("stds", ["one", "per component", "per coordinate"])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 20.0])
def test_mixture_denoiser_follows_the_score(stds, sigma):
    """D = x + sigma^2 grad log p(x; sigma), p written out as a sum of densities."""
    means, weights, x = normal(3, 2, seed=1), torch.tensor([0.2, 0.5, 1.3], dtype=F64), normal(6, 2, seed=2)
    std = {"one": 0.4, "per component": torch.tensor([0.2, 0.5, 0.9], dtype=F64), "per coordinate": normal(3, 2, seed=5).abs() + 0.1}[stds]  # fmt: skip
    full = torch.as_tensor(std, dtype=F64)
    full = (full[:, None] if full.ndim == 1 else full).expand(3, 2)
    x.requires_grad_()
    variance = full**2 + sigma**2
    density = torch.exp(-0.5 * ((x[:, None] - means) ** 2 / variance).sum(-1)) / variance.prod(-1).sqrt()
    (score,) = torch.autograd.grad((density * weights / weights.sum()).sum(-1).log().sum(), x)
    D = ed.GaussianMixtureDenoiser(means, std, weights)(x.detach(), sigma)
    assert (D - (x.detach() + sigma**2 * score)).abs().max() <= 1e-10


def test_a_mixture_of_one_is_a_gaussian():
    mean, x = normal(1, 4, seed=1), normal(5, 4, seed=2)
    one = ed.GaussianMixtureDenoiser(mean, 0.8)(x, 1.3)
    assert (one - ed.GaussianDenoiser(mean[0], 0.64)(x, 1.3)).abs().max() <= 1e-13


def test_a_mixture_far_away_stays_finite():
    D = ed.GaussianMixtureDenoiser(normal(3, 2, seed=1), 1e-3)(1e6 * normal(2, 2), 1e-4)
    assert D.isfinite().all()


# networks


class Linear(nn.Module):
    """F(x; c_noise) = W x + labels summed, in a dtype."""

    def __init__(self, d, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(d, dtype=dtype))
        self.seen = {}

    def forward(self, x, c_noise, **conditions):
        self.seen = {"x": x, "c_noise": c_noise, **conditions}
        return x @ self.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_a_network_runs_in_its_own_dtype_and_answers_in_float32_or_wider(dtype):
    network = Linear(3, dtype)
    D = ed.Preconditioned(network, pc.EDM(), shape=(3,))(normal(2, 3), 1.0)
    assert network.seen["x"].dtype == dtype
    assert network.seen["c_noise"].dtype == F64 and network.seen["c_noise"].ndim == 0  # embedded once for the batch
    assert D.dtype == torch.promote_types(dtype, torch.float32)


def test_labels_reach_the_network_one_hot():
    network = Linear(3, torch.float32)
    denoiser = ed.Preconditioned(network, pc.EDM(), shape=(3,), label_dim=4)
    denoiser(normal(2, 3), 1.0, labels=torch.tensor([3, 0]))
    assert network.seen["labels"].tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    denoiser(normal(2, 3), 1.0)
    assert network.seen["labels"].tolist() == [[0.0] * 4] * 2
    denoiser(normal(2, 3), 1.0, labels=torch.tensor([[0.5, 0.5, 0, 0]] * 2))
    assert network.seen["labels"].tolist() == [[0.5, 0.5, 0, 0]] * 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.tensor([0, 4]), "0 to 4; the classes are 0 to 3"), (torch.tensor([-1, 0]), "-1 to 0"),
     (torch.tensor([0, 1, 2]), r"expected class indices \(2,\)"), (torch.zeros(2, 3), r"or vectors \(2, 4\)"),
     (torch.tensor([0.5, 1.0]), "float32")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(labels, message):
    denoiser = ed.Preconditioned(Linear(3, torch.float32), pc.EDM(), shape=(3,), label_dim=4)
    with pytest.raises(ValueError, match=message):
        denoiser(normal(2, 3), 1.0, labels=labels)


def test_labels_for_a_model_without_classes_are_refused():
    denoiser = ed.Preconditioned(Linear(3, torch.float32), pc.EDM(), shape=(3,))
    with pytest.raises(ValueError, match="without classes"):
        denoiser(normal(2, 3), 1.0, labels=torch.tensor([0, 1]))


def test_the_range_of_a_preconditioned_network_is_its_preconditionings():
    denoiser = ed.Preconditioned(Linear(3, torch.float32), pc.VE(sigma_min=0.1, sigma_max=7), shape=(3,))
    assert (denoiser.sigma_min, denoiser.sigma_max, denoiser.shape, denoiser.label_dim) == (0.1, 7, (3,), 0)


@pytest.mark.parametrize("preconditioning", [pc.EDM(), pc.VP(), pc.Flow()], ids=lambda p: p.kind)
def test_one_level_and_a_level_for_each_sample_are_the_same(preconditioning):
    denoiser = ed.Preconditioned(Linear(3, F64), preconditioning, shape=(3,))
    x = normal(4, 3)
    assert (denoiser(x, 0.3) - denoiser(x, torch.full((4,), 0.3, dtype=F64))).abs().max() <= 1e-15


# FixedBatch


@pytest.mark.parametrize("n", [1, 3, 4, 5, 11])
def test_fixed_batch_calls_with_one_size_and_changes_nothing(n):
    sizes = []
    inner = ed.EmpiricalDenoiser(normal(7, 3), CLASSES)

    def spy(x, sigma, labels):
        sizes.append((len(x), sigma.shape, len(labels)))
        return inner(x, sigma, labels=labels)

    x, labels = normal(n, 3, seed=2), torch.arange(n) % 3
    for sigma in (torch.tensor(0.7, dtype=F64), torch.linspace(0.1, 2, n, dtype=F64)):
        sizes.clear()
        D = ed.FixedBatch(FunctionDenoiser(spy), 4)(x, sigma, labels=labels)
        assert sizes == [(4, (4,) if sigma.ndim else (), 4)] * math.ceil(n / 4)
        assert (D - inner(x, sigma, labels=labels)).abs().max() <= 1e-13


def test_fixed_batch_passes_on_what_the_denoiser_is():
    inner = ed.Preconditioned(Linear(3, torch.float32), pc.IDDPM(), shape=(3,), label_dim=4)
    outer = ed.FixedBatch(inner, 4)
    assert (outer.shape, outer.label_dim, outer.sigma_min) == ((3,), 4, inner.sigma_min)
    assert outer.round_sigma(torch.tensor(0.003, dtype=F64)) == inner.round_sigma(torch.tensor(0.003, dtype=F64))
    with pytest.raises(ValueError, match="size: got 0"):
        ed.FixedBatch(inner, 0)


def test_functions_are_denoisers_and_other_things_are_not():
    assert as_denoiser(lambda x, sigma: x / 2)(torch.ones(1, 1), 1.0).item() == 0.5
    with pytest.raises(TypeError, match="got int"):
        as_denoiser(3)


# N3


class Gaussian32(ed.Denoiser):
    """The exact denoiser of a diagonal Gaussian, computed in float32 from float32."""

    shape = (8,)

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.variance = mean.float(), variance.float()

    def denoise(self, x, sigma):
        return self.mean + self.variance / (self.variance + sigma.float() ** 2) * (x.float() - self.mean)


@pytest.mark.parametrize("steps", [18, 64, 256])
@pytest.mark.parametrize("design", [ed.EDM, ed.VP], ids=["edm", "vp"])
def test_a_float32_network_under_a_float64_state_loses_at_most_2e_6(design, steps):
    mean, variance = normal(8, seed=1), normal(8, seed=2) ** 2 + 0.05
    sampler = design.sampler.replace(steps=steps)
    exact = ed.sample(ed.GaussianDenoiser(mean, variance), sampler, seeds=range(8)).x
    rounded = ed.sample(Gaussian32(mean, variance), sampler, seeds=range(8)).x
    assert rounded.dtype == F64
    assert 0 < (rounded - exact).norm() <= 2e-6 * exact.norm()
