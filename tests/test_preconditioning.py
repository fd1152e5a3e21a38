"""Preconditionings: Table 1's coefficients, exact conversion of every prediction, and finiteness (N5, N10)."""

import math

import pytest
import torch
from torch import nn

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import objective
from elucidiff import preconditioning as pc
from elucidiff.networks import MLP

F64 = torch.float64
SIGMA = torch.logspace(-4, 5, 37, dtype=F64)
KINDS = {
    "edm": pc.EDM(), "edm, sigma_data 1.7": pc.EDM(sigma_data=1.7), "vp": pc.VP(), "ve": pc.VE(), "iddpm": pc.IDDPM(),
    "flow": pc.Flow(), "epsilon": pc.Epsilon(), "v": pc.V(), "x0": pc.X0(), "v, cosine": pc.V(schedule=fm.Cosine()),
}  # fmt: skip
LEVELS = fm.iddpm_levels(1000, 0.001, 0.008)


def vp_time(sigma: float) -> float:
    return (math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(sigma**2)) - 0.1) / 19.9


def nearest(sigma: float) -> int:
    return min(range(1001), key=lambda j: abs(LEVELS[j].item() - sigma))


def edm(sigma_data):
    def coefficients(s):
        v = s**2 + sigma_data**2
        return sigma_data**2 / v, s * sigma_data / math.sqrt(v), 1 / math.sqrt(v), math.log(s) / 4

    return coefficients


FORMULAS = {
    "edm": edm(0.5),
    "edm, sigma_data 1.7": edm(1.7),
    "vp": lambda s: (1, -s, 1 / math.sqrt(s**2 + 1), 999 * vp_time(s)),
    "ve": lambda s: (1, s, 1, math.log(s / 2)),
    "iddpm": lambda s: (1, -s, 1 / math.sqrt(s**2 + 1), 999 - nearest(s)),
    "flow": lambda s: (1 / (1 + s), -s / (1 + s), 1 / (1 + s), s / (1 + s)),
    "epsilon": lambda s: (1, -s, 1 / math.sqrt(s**2 + 1), 999 * vp_time(s)),
    "v": lambda s: (1 / (s**2 + 1), -s / math.sqrt(s**2 + 1), 1 / math.sqrt(s**2 + 1), 999 * vp_time(s)),
    "x0": lambda s: (0, 1, 1 / math.sqrt(s**2 + 1), 999 * vp_time(s)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_coefficients_are_the_formulas_of_table_1(name):
    own = KINDS[name].coefficients(SIGMA)
    expected = torch.tensor([FORMULAS[name](s) for s in SIGMA.tolist()], dtype=F64).T
    # the naive inverse of VP above loses digits at small sigma, hence 1e-5 in c_noise there
    for c, wanted, tolerance in zip(own, expected, (1e-14, 1e-14, 1e-14, 1e-5), strict=True):
        assert ((c - wanted).abs() <= tolerance * wanted.abs() + 1e-300).all()


class Oracle(nn.Module):
    """A network that answers with a given tensor and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.register_parameter("dtype_of_the_network", nn.Parameter(torch.zeros(1, dtype=F64)))
        self.answer = answer

    def forward(self, x, c_noise, **conditions):
        self.x, self.c_noise = x, c_noise
        return self.answer


def data(B=64, d=5):
    generator = torch.Generator().manual_seed(0)
    y, n = (torch.randn(B, d, generator=generator, dtype=F64) for _ in range(2))
    sigma = 10 ** (torch.rand(B, generator=generator, dtype=F64) * 5 - 3)  # 1e-3 .. 100
    return y, n, sigma


def column(v):
    return v[:, None]


TARGETS = {  # the prediction of a perfect network that is told y and n
    "vp": lambda y, n, s: n,
    "ve": lambda y, n, s: -n,
    "iddpm": lambda y, n, s: n,
    "epsilon": lambda y, n, s: n,
    "v": lambda y, n, s: (n - s * y) / (1 + s**2).sqrt(),  # alpha n - alpha sigma y
    "v, cosine": lambda y, n, s: (n - s * y) / (1 + s**2).sqrt(),
    "x0": lambda y, n, s: y,
    "flow": lambda y, n, s: n - y,
    "edm": lambda y, n, s: (y - 0.25 / (s**2 + 0.25) * (y + s * n)) / (0.5 * s / (s**2 + 0.25).sqrt()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_prediction_converts_exactly_to_the_clean_sample(name):
    y, n, sigma = data()
    network = Oracle(TARGETS[name](y, n, column(sigma)))
    D = ed.Preconditioned(network, KINDS[name], shape=(5,))(y + column(sigma) * n, sigma)
    assert ((D - y).abs() / (1 + column(sigma))).max() <= 1e-13


INPUTS = {
    "flow": lambda y, n, t: (1 - t) * y + t * n,  # t = sigma / (1 + sigma)
    "v": lambda y, n, t: (y + t / (1 - t) * n) / (1 + (t / (1 - t)) ** 2).sqrt(),
    "ve": lambda y, n, t: y + t / (1 - t) * n,
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_network_sees_the_interpolated_sample(name):
    y, n, sigma = data()
    network = Oracle(y)
    ed.Preconditioned(network, KINDS[name], shape=(5,))(y + column(sigma) * n, sigma)
    expected = INPUTS[name](y, n, column(sigma / (1 + sigma)))
    assert ((network.x - expected).abs() / (1 + expected.abs())).max() <= 1e-13


# N5


@pytest.mark.parametrize("name", KINDS)
def test_10_000_random_levels_give_finite_denoised_samples(name):
    torch.manual_seed(0)
    denoiser = ed.Preconditioned(MLP(width=16, depth=1).build((3,), 0), KINDS[name], shape=(3,))
    generator = torch.Generator().manual_seed(1)
    sigma = 10 ** (torch.rand(10_000, generator=generator, dtype=F64) * 9 - 4)
    x = sigma[:, None] * torch.randn(10_000, 3, generator=generator, dtype=F64)
    with torch.no_grad():
        assert denoiser(x, sigma).isfinite().all()
        for k in range(0, 10_000, 200):  # one level for a batch: another way to the coefficients
            a, b = denoiser(x[k : k + 2], sigma[k]), denoiser(x[k : k + 2], sigma[k].expand(2))
            assert a.isfinite().all() and ((a - b).norm() <= 1e-5 * b.norm() + 1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", KINDS)
def test_at_level_0_the_sample_comes_back_exactly(name, dtype):
    denoiser = ed.Preconditioned(MLP(width=16, depth=1).build((3,), 0), KINDS[name], shape=(3,))
    x = torch.randn(4, 3, dtype=dtype, generator=torch.Generator().manual_seed(2))
    for sigma in (0, 0.0, torch.tensor(0.0), torch.zeros(4, dtype=F64)):
        assert torch.equal(denoiser(x, sigma), x)
    mixed = denoiser(x, torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=F64))
    assert torch.equal(mixed[::2].to(dtype), x[::2])
    assert torch.allclose(mixed[1:2].to(dtype), denoiser(x[1:2], 1.0).to(dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, -1e-12, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_batch", [False, True])
@pytest.mark.parametrize(
    "denoiser",
    [ed.Preconditioned(Oracle(torch.zeros(2, 3)), pc.EDM(), shape=(3,)), ed.GaussianDenoiser(torch.zeros(3), 1.0),
     ed.FixedBatch(ed.EmpiricalDenoiser(torch.zeros(2, 3)), 4)],
    ids=["preconditioned", "gaussian", "fixed batch"],
)  # fmt: skip
def test_impossible_levels_are_refused(denoiser, bad, as_batch):
    sigma = torch.tensor([1.0, bad], dtype=F64) if as_batch else bad
    with pytest.raises(ValueError, match="sigma: got"):
        denoiser(torch.zeros(2, 3, dtype=F64), sigma)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1)])
def test_levels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"sigma: got shape .*\(2, 3\).*expected \(\) or \(2,\)"):
        ed.GaussianDenoiser(torch.zeros(3), 1.0)(torch.zeros(2, 3), torch.ones(shape))


# N10


@pytest.mark.parametrize(
    ("preconditioning", "weighting"),
    [(pc.EDM(0.5), objective.EDM(0.5)), (pc.EDM(1.7), objective.EDM(1.7)), (pc.VP(), objective.InverseVariance()),
     (pc.VE(), objective.InverseVariance()), (pc.IDDPM(), objective.InverseVariance()),
     (pc.X0(), objective.UniformWeighting())],
    ids=["edm", "edm 1.7", "vp", "ve", "iddpm", "x0"],
)  # fmt: skip
def test_the_effective_weight_is_1_at_every_level(preconditioning, weighting):
    c_out = preconditioning.coefficients(SIGMA)[1]
    assert (weighting(SIGMA) * c_out**2 - 1).abs().max() <= 1e-14


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_input_and_target_of_edm_have_unit_variance(sigma, sigma_data):
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    y = sigma_data * torch.randn(n, generator=generator, dtype=F64)
    x = y + sigma * torch.randn(n, generator=generator, dtype=F64)
    c_skip, c_out, c_in, _ = pc.EDM(sigma_data).coefficients(sigma)
    error = 4 * math.sqrt(2 / n)  # 4 standard errors of a variance
    assert abs((c_in * x).var().item() - 1) <= error
    assert abs(((y - c_skip * x) / c_out).var().item() - 1) <= error


def test_c_skip_of_edm_minimises_c_out():
    # c_out^2 = (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2 is the variance of y - c_skip x
    sigma = torch.logspace(-2, 2, 9, dtype=F64)
    c_skip, c_out, _, _ = pc.EDM().coefficients(sigma)

    def variance(c):
        return (1 - c) ** 2 * 0.25 + c**2 * sigma**2

    assert ((c_out**2 - variance(c_skip)).abs() / c_out**2).max() <= 1e-12
    assert (variance(c_skip * 1.01) > c_out**2).all() and (variance(c_skip * 0.99) > c_out**2).all()


# levels


def test_c_noise_of_vp_is_float64_also_for_float32_levels():
    sigma = torch.tensor([1.0005e-3, 2e-3, 0.05], dtype=torch.float32)
    c_noise = pc.VP().coefficients(sigma)[3]
    expected = [999 * (math.sqrt(0.01 + 39.8 * math.log1p(s**2)) - 0.1) / 19.9 for s in sigma.double().tolist()]
    assert c_noise.dtype == F64
    assert torch.allclose(c_noise, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma", [1e-9, 0.003, 0.0033, 0.0064254, 0.5, 80.0, 81.3, 1e5])
def test_round_sigma_of_iddpm_is_the_nearest_of_all_1001_levels(sigma):
    j = nearest(sigma)
    assert pc.IDDPM().round_sigma(sigma).item() == LEVELS[j].item()
    assert pc.IDDPM().coefficients(sigma)[3].item() == 999 - j


def test_round_sigma_reaches_level_0():
    u = LEVELS[999].item()
    assert pc.IDDPM().round_sigma(0.49 * u).item() == 0  # j = M, u_M = 0
    assert pc.IDDPM().round_sigma(0.51 * u).item() == u
    assert pc.IDDPM().coefficients(0.49 * u)[3].item() == -1


def test_the_denoiser_of_iddpm_does_not_round_c_in_and_c_out():
    y, n, _ = data(B=8)
    sigma = torch.linspace(0.01, 60, 8, dtype=F64)  # none of these is in the table
    network = Oracle(n)
    denoiser = ed.Preconditioned(network, pc.IDDPM(), shape=(5,))
    x = y + column(sigma) * n
    assert ((denoiser(x, sigma) - y).abs().max()) <= 1e-12
    assert torch.allclose(network.x, x / (column(sigma) ** 2 + 1).sqrt(), rtol=1e-13)
    assert network.c_noise.tolist() == [999 - nearest(s) for s in sigma.tolist()]


def test_ranges_are_those_of_the_training_noise():
    vp = fm.VP()
    assert (pc.VP().sigma_min, pc.VP().sigma_max) == (vp.sigma(1e-5).item(), vp.sigma(1.0).item())
    assert (pc.VE().sigma_min, pc.VE().sigma_max) == (0.02, 100)
    assert (pc.IDDPM().sigma_min, pc.IDDPM().sigma_max) == (LEVELS[999].item(), LEVELS[0].item())
    assert (pc.EDM().sigma_min, pc.EDM().sigma_max) == (0, math.inf)


@pytest.mark.parametrize(
    "make",
    [lambda: pc.EDM(sigma_data=0), lambda: pc.EDM(sigma_data=math.inf), lambda: pc.VE(sigma_min=2, sigma_max=1),
     lambda: pc.VP(beta_d=-1), lambda: pc.VP(M=1), lambda: pc.VP(eps_t=0), lambda: pc.IDDPM(M=0),
     lambda: pc.IDDPM(C1=-1), lambda: pc.Flow(time_scale=math.inf), lambda: pc.V(time_scale=0)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
