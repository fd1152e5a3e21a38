"""Time steps: golden lists, the formulas written out, end points and refusals (N7)."""

import math
import warnings

import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import timesteps as ts
from elucidiff.sampler import Sampler

F64 = torch.float64
RULES = {
    "edm": ts.EDM(),
    "edm, rho 3": ts.EDM(rho=3.0),
    "vp": ts.VP(),
    "ve": ts.VE(),
    "iddpm": ts.IDDPM(),
    "logsnr": ts.LogSNR(),
    "uniform": ts.Uniform(),
    "uniform, quadratic": ts.Uniform(power=2.0),
    "uniform, flow": ts.Uniform(schedule=fm.Flow()),
    "cosine": ts.Cosine(),
}
GOLDEN_EDM = [
    80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822, 1.923340, 1.088171,
    0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002, 0,
]  # fmt: skip


def test_golden_list_of_edm():
    sigmas = ts.EDM()(18, 0.002, 80)
    assert (sigmas - torch.tensor(GOLDEN_EDM, dtype=F64)).abs().max() <= 5e-7


@pytest.mark.parametrize("n", [1, 2, 18, 1000])
@pytest.mark.parametrize("name", RULES)
def test_steps_fall_strictly_from_exactly_sigma_max_over_sigma_min_to_0(name, n):
    rule = RULES[name]
    low, high = rule.range()
    n = 900 if name == "iddpm" and n == 1000 else n
    sigmas = rule(n, low, high)
    assert sigmas.dtype == F64 and sigmas.shape == (n + 1,)
    assert (sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] == 0
    u = fm.iddpm_levels(1000, 0.001, 0.008)
    ends = (u[999].item(), u[8].item()) if name == "iddpm" else (low, high)  # the outermost entries of the table
    assert sigmas[0].item() == ends[1]
    if n > 1:
        assert sigmas[-2].item() == ends[0]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.02, 100.0), (0.01, 10.0)])
def test_steps_fall_strictly_on_other_ranges(name, low, high):
    sigmas = RULES[name](18, low, high)
    assert (sigmas[1:] < sigmas[:-1]).all() and sigmas[-2] >= low and sigmas[0] <= high
    if name != "iddpm":
        assert (sigmas[0].item(), sigmas[-2].item()) == (high, low)


def vp_levels(n, low, high):
    """t_i = 1 + i/(N-1) (eps_s - 1) and sigma(t) with the betas of section 3, in plain Python."""
    eps, a, b = 1e-3, math.log(low**2 + 1), math.log(high**2 + 1)
    beta_d = 2 * (a / eps - b) / (eps - 1)
    beta_min = b - beta_d / 2
    times = [1 + i / (n - 1) * (eps - 1) for i in range(n)]
    return [math.sqrt(math.exp(beta_d * t * t / 2 + beta_min * t) - 1) for t in times]


def ve_levels(n, low, high):
    return [math.sqrt(high**2 * (low**2 / high**2) ** (i / (n - 1))) for i in range(n)]


def edm_levels(n, low, high, rho=7):
    return [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]


def cosine_levels(n, low, high):
    start = math.atan(math.tan(0.5 * math.pi * 0.008 / 1.008))

    def inverse(sigma):  # cos(angle) = cos(start) / sqrt(1 + sigma^2)
        return math.acos(math.cos(start) / math.sqrt(1 + sigma**2)) / (0.5 * math.pi / 1.008) - 0.008

    a, b = inverse(high), inverse(low)
    angles = [0.5 * math.pi * (a + i / (n - 1) * (b - a) + 0.008) / 1.008 for i in range(n)]
    return [math.sqrt((math.cos(start) / math.cos(x)) ** 2 - 1) for x in angles]


def uniform_levels(power):
    def levels(n, low, high):
        def inverse(sigma):
            return (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9

        a, b = inverse(high) ** (1 / power), inverse(low) ** (1 / power)
        times = [(a + i / (n - 1) * (b - a)) ** power for i in range(n)]
        return [math.sqrt(math.exp(19.9 * t * t / 2 + 0.1 * t) - 1) for t in times]

    return levels


@pytest.mark.parametrize(
    ("name", "formula"),
    [("vp", vp_levels), ("ve", ve_levels), ("logsnr", ve_levels), ("edm", edm_levels), ("cosine", cosine_levels),
     ("edm, rho 3", lambda n, a, b: edm_levels(n, a, b, rho=3)), ("uniform", uniform_levels(1)),
     ("uniform, quadratic", uniform_levels(2))],
)  # fmt: skip
@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize("span", [(0.02, 100.0), (0.002, 80.0)])
def test_levels_are_the_formula(name, formula, n, span):
    expected = torch.tensor(formula(n, *span), dtype=F64)
    assert ((RULES[name](n, *span)[:-1] - expected).abs() / expected).max() <= 1e-9


def test_vp_keeps_the_column_of_table_1_at_its_own_range():
    vp = fm.VP()
    sigmas = ts.VP()(10, *ts.VP().range())[:-1]
    times = 1 + torch.arange(10, dtype=F64) / 9 * (1e-3 - 1)
    assert ((sigmas - vp.sigma(times)).abs() / sigmas).max() <= 1e-11


@pytest.mark.parametrize(
    ("n", "low", "high"), [(10, 0.002, 81.0), (256, 0.002, 81.0), (50, 0.02, 60.0), (992, 0.002, 81.0)]
)
def test_iddpm_takes_every_kth_entry_of_its_table(n, low, high):
    u = fm.iddpm_levels(1000, 0.001, 0.008).tolist()
    inside = [x for x in u[:1000] if low <= x <= high]
    expected = [inside[round(i * (len(inside) - 1) / (n - 1))] for i in range(n)]
    assert ts.IDDPM()(n, low, high).tolist() == [*expected, 0.0]


def test_iddpm_is_the_formula_of_table_1():
    # j = nearest integer to j0 + (M-1-j0) i/(N-1), j0 = 8
    u = fm.iddpm_levels(1000, 0.001, 0.008).tolist()
    expected = [u[round(8 + 991 * i / 17)] for i in range(18)]
    assert ts.IDDPM()(18, 0.002, 81).tolist() == [*expected, 0.0]


def test_more_steps_than_iddpm_has_levels_are_refused():
    with pytest.raises(ValueError, match=r"steps=1000.*992 levels"):
        ts.IDDPM()(1000, 0.002, 81)


def test_default_ranges_are_those_of_the_papers():
    vp = fm.VP()
    expected = {
        "vp": (vp.sigma(1e-3).item(), vp.sigma(1.0).item()), "ve": (0.02, 100.0), "iddpm": (0.002, 81.0),
        "edm": (0.002, 80.0),
    }  # fmt: skip
    assert {name: RULES[name].range() for name in expected} == expected


# refusals

BAD_RANGES = [
    (80.0, 0.002),
    (1.0, 1.0),
    (0.0, 80.0),
    (-1.0, 80.0),
    (0.002, math.inf),
    (math.nan, 80.0),
    (0.002, math.nan),
]


@pytest.mark.parametrize(("low", "high"), BAD_RANGES)
@pytest.mark.parametrize("name", RULES)
def test_impossible_ranges_are_refused(name, low, high):
    with pytest.raises(ValueError, match="sigma_min"):
        RULES[name](18, low, high)


@pytest.mark.parametrize(("low", "high"), BAD_RANGES)
def test_a_sampler_with_an_impossible_range_cannot_be_made(low, high):
    with pytest.raises(ValueError, match="sigma_m"):
        Sampler(sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, math.nan, math.inf, "18", None])
def test_impossible_numbers_of_steps_are_refused(n):
    with pytest.raises((ValueError, TypeError), match="steps"):
        ts.EDM()(n, 0.002, 80)
    with pytest.raises((ValueError, TypeError), match="steps"):
        Sampler(steps=n)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf])
def test_impossible_parameters_are_refused(bad):
    for make in (lambda: ts.EDM(rho=bad), lambda: ts.VP(eps_s=bad), lambda: ts.Uniform(power=bad)):
        with pytest.raises(ValueError, match="expected a number"):
            make()


def test_a_rho_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"rho: got 0\.01"):
        Sampler(timesteps=ts.EDM(rho=0.01), sigma_max=1e6)


def test_a_fit_of_the_vp_steps_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sigmas = ts.VP()(18, 0.002, 80)  # its beta_min is -0.0048
    assert sigmas[-2] == 0.002


# fixed lists


@pytest.mark.parametrize("end", [(), (0.0,)])
def test_a_fixed_list_is_used_as_it_is(end):
    levels = (14.6, 3.0, 0.7, 0.03)
    rule = ts.Fixed(levels + end)
    assert rule(4, 0.03, 14.6).tolist() == [*levels, 0.0]
    assert rule(4, 0.001, 100.0).tolist() == [*levels, 0.0]  # a wider range changes nothing
    assert rule.range() == (0.03, 14.6)


@pytest.mark.parametrize(("n", "low", "high"), [(3, 0.03, 14.6), (5, 0.03, 14.6), (4, 0.1, 14.6), (4, 0.03, 10.0)])
def test_a_fixed_list_is_never_remapped(n, low, high):
    with pytest.raises(ValueError, match="4 levels"):
        ts.Fixed((14.6, 3.0, 0.7, 0.03))(n, low, high)


def test_a_sampler_whose_steps_do_not_fit_its_list_cannot_be_made():
    with pytest.raises(ValueError, match="3 levels.*steps=18"):
        Sampler(timesteps=ts.Fixed((10.0, 1.0, 0.1)))
    assert Sampler(timesteps=ts.Fixed((10.0, 1.0, 0.1)), steps=3).sigmas().tolist() == [10, 1, 0.1, 0]


@pytest.mark.parametrize("sigmas", [(), (0.0,), (1.0, 2.0), (1.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (1.0, 0.0, 0.0)])
def test_lists_that_do_not_fall_are_refused(sigmas):
    with pytest.raises(ValueError, match="strictly decreasing"):
        ts.Fixed(sigmas)


class Rising(ts.TimeSteps):
    """A faulty rule."""

    def levels(self, n, sigma_min, sigma_max):
        return torch.linspace(sigma_min, sigma_max, n, dtype=F64)


def test_a_rule_of_the_users_that_does_not_fall_is_refused():
    with pytest.raises(ValueError, match="fall strictly"):
        Sampler(timesteps=Rising())


def test_a_fixed_list_brings_its_number_of_steps_when_it_replaces_others():
    listed = ts.Fixed((80.0, 1.0, 0.1))
    assert Sampler().replace(timesteps=listed).steps == 3
    assert ed.EDM.replace(timesteps=listed).sampler.sigmas().tolist() == [80, 1, 0.1, 0]
    with pytest.raises(ValueError, match="3 levels"):
        Sampler().replace(timesteps=listed, steps=4)
