"""Schedules and scalings: golden numbers, round trips, derivatives, and both directions of the SDE (N6)."""

import math
import warnings

import pytest
import torch

from elucidiff import formulation as fm

F64 = torch.float64
TIMES = torch.logspace(-12, -0.01, 60, dtype=F64)  # 1e-12 .. 0.977


def beta_sde() -> fm.SDE:
    return fm.SDE(f=lambda t: -0.5 * (19.9 * t + 0.1), g=lambda t: (19.9 * t + 0.1).sqrt())


def flow_sde() -> fm.SDE:
    return fm.SDE(f=lambda t: -1 / (1 - t), g=lambda t: (2 * t / (1 - t)).sqrt())


def ve_sde() -> fm.SDE:
    return fm.SDE(f=torch.zeros_like, g=torch.ones_like)


def linear_table(K: int = 1000) -> tuple[float, ...]:
    betas = torch.linspace(1e-4, 0.02, K, dtype=F64)
    return tuple((1 - betas).cumprod(0).tolist())


SCHEDULES = {
    "edm": fm.EDM(),
    "ve": fm.VE(),
    "vp": fm.VP(),
    "vp, other betas": fm.VP(beta_d=5.0, beta_min=2.0),
    "cosine": fm.Cosine(),
    "cosine, no offset": fm.Cosine(offset=0.0),
    "flow": fm.Flow(),
    "table": fm.Table(linear_table()),
    "sde": beta_sde(),
}
SCALINGS = {"none": fm.Unscaled(), "vp": fm.VariancePreserving(), "flow": fm.FlowScaling()}


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference relative to b."""
    return ((a - b).abs() / b.abs()).max().item()


# golden numbers of math.md, sections 3 and 8


@pytest.mark.parametrize(("t", "expected", "digits"), [(1e-3, 0.010486, 6), (1e-5, 0.0010005, 7), (1.0, 152.167, 3)])
def test_golden_levels_of_vp(t, expected, digits):
    assert round(fm.VP().sigma(t).item(), digits) == expected


@pytest.mark.parametrize(
    ("low", "high", "beta_d", "beta_min", "tolerance"),
    [(0.002, 80.0, 17.538, -0.00477, (5e-4, 5e-6)), (0.02, 100.0, 17.639, 0.391, (5e-4, 5e-4))],
)
def test_golden_betas_of_a_fitted_vp(low, high, beta_d, beta_min, tolerance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fm.VP.fit(low, high)
    assert abs(fitted.beta_d - beta_d) <= tolerance[0] and abs(fitted.beta_min - beta_min) <= tolerance[1]
    assert abs(fitted.sigma(1.0).item() / high - 1) <= 1e-12
    assert abs(fitted.sigma(1e-3).item() / low - 1) <= 1e-9


def test_a_fit_to_the_range_of_vp_gives_its_betas_back():
    vp = fm.VP()
    fitted = fm.VP.fit(vp.sigma(1e-3).item(), vp.sigma(1.0).item())
    assert abs(fitted.beta_d - 19.9) <= 1e-9 and abs(fitted.beta_min - 0.1) <= 1e-9


def test_a_negative_beta_min_warns():
    with pytest.warns(UserWarning, match="not monotone"):
        fm.VP.fit(0.002, 80)


def test_a_range_that_no_vp_schedule_has_is_refused():
    # ln(1 + 0.1^2) = 0.00995 at t = 1e-3 is more than a thousandth of ln(1 + 10^2) = 4.6
    with pytest.raises(ValueError, match=r"sigma_min=0\.1.*0\.068"):
        fm.VP.fit(0.1, 10)


def test_golden_levels_of_iddpm():
    u = fm.iddpm_levels(1000, 0.001, 0.008)
    assert len(u) == 1001 and u[1000] == 0 and (u[:-1] > u[1:]).all()
    assert round(u[999].item(), 7) == 0.0064254
    assert round(u[0].item(), 2) == 20291.17
    assert round(u[8].item(), 4) == 80.2037
    inside = (u >= 0.002) & (u <= 81) & (u > 0)
    assert inside.sum() == 992 and inside.nonzero()[0] == 8


# N6: round trips and derivatives


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_and_its_inverse_round_trip_down_to_a_time_of_1e_12(name):
    schedule = SCHEDULES[name]
    every = 6 if name == "sde" else 1  # quadrature and bisection together are slow
    t = (TIMES * 1000 if name == "table" else TIMES)[::every]
    assert worst(schedule.sigma_inv(schedule.sigma(t)), t) <= 1e-12
    sigma = torch.logspace(-6, 1.5, 60, dtype=F64)[::every]
    assert worst(schedule.sigma(schedule.sigma_inv(sigma)), sigma) <= 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_vanishes_at_time_0_and_its_inverse_at_level_0(name):
    assert SCHEDULES[name].sigma(0.0).item() == 0
    assert SCHEDULES[name].sigma_inv(0.0).item() == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_dot_equals_autograd_and_the_default(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(0.05, 0.95, 17, dtype=F64) * (1000 if name == "table" else 1)
    t.requires_grad_()
    (gradient,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    assert worst(schedule.sigma_dot(t.detach()), gradient) <= 1e-10
    assert worst(fm.Schedule.sigma_dot(schedule, t.detach()), gradient) <= 1e-10


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_inv_equals_the_bisection_of_the_default(name):
    schedule = SCHEDULES[name]
    sigma = torch.logspace(-4, 1.5, 6 if name == "sde" else 40, dtype=F64)
    assert worst(schedule.sigma_inv(sigma), fm.Schedule.sigma_inv(schedule, sigma)) <= 1e-10


@pytest.mark.parametrize("name", ["vp", "cosine", "cosine, no offset", "flow", "edm"])
def test_small_times_keep_their_digits(name):
    # sigma(t)^2 as a power series, where exp(...) - 1 and 1/alpha_bar - 1 would have lost everything
    t = torch.logspace(-12, -8, 9, dtype=F64)
    o = math.pi / 2 * 0.008 / 1.008
    unit = math.pi / 2 / 1.008
    squared = {
        "edm": t**2,
        "flow": t**2 * (1 + 2 * t),
        "vp": 0.1 * t + (19.9 / 2 + 0.005) * t**2,
        "cosine": 2 * unit * math.tan(o) * t + unit**2 * (1 + 3 * math.tan(o) ** 2) * t**2,
        "cosine, no offset": (math.pi / 2 * t) ** 2,
    }[name]
    assert worst(SCHEDULES[name].sigma(t), squared.sqrt()) <= 1e-12


@pytest.mark.parametrize("name", SCALINGS)
def test_the_derivative_of_a_scaling_equals_autograd_and_the_default(name):
    scaling = SCALINGS[name]
    sigma = torch.logspace(-12, 4, 50, dtype=F64, requires_grad=True)
    gradient = torch.autograd.grad((scaling.s(sigma) + 0 * sigma).sum(), sigma)[0]  # + 0 sigma: s = 1 has no graph
    for own in (scaling.s_dot(sigma.detach()), fm.Scaling.s_dot(scaling, sigma.detach())):
        assert (own - gradient).abs().max().item() <= 1e-10


def test_scalings_are_the_formulas():
    sigma = torch.tensor([0.0, 1e-12, 0.5, 3.0, 80.0], dtype=F64)
    expected = {"none": [1.0] * 5, "vp": [(1 + s * s) ** -0.5 for s in sigma.tolist()],
                "flow": [1 / (1 + s) for s in sigma.tolist()]}  # fmt: skip
    for name, scaling in SCALINGS.items():
        assert worst(scaling.s(sigma), torch.tensor(expected[name], dtype=F64)) <= 1e-15


def test_the_scaling_of_flow_matching_is_1_minus_t():
    t = torch.logspace(-12, -0.01, 50, dtype=F64)
    assert (fm.FlowScaling().s(fm.Flow().sigma(t)) - (1 - t)).abs().max() <= 1e-15


def test_schedules_are_the_formulas():
    t = torch.linspace(0.01, 0.99, 23, dtype=F64)
    alpha_bar = (0.5 * math.pi * (t + 0.008) / 1.008).cos() ** 2 / math.cos(0.5 * math.pi * 0.008 / 1.008) ** 2
    expected = {
        "edm": t, "ve": t.sqrt(), "flow": t / (1 - t),
        "vp": ((19.9 * t**2 / 2 + 0.1 * t).exp() - 1).sqrt(), "cosine": (1 / alpha_bar - 1).sqrt(),
    }  # fmt: skip
    for name, sigma in expected.items():
        assert worst(SCHEDULES[name].sigma(t), sigma) <= 1e-12, name


def test_sigma_dot_of_vp_is_the_formula_of_the_paper():
    t = torch.linspace(0.001, 1, 50, dtype=F64)
    sigma = fm.VP().sigma(t)
    assert worst(fm.VP().sigma_dot(t), (0.1 + 19.9 * t) / 2 * (sigma + 1 / sigma)) <= 1e-13


def test_numbers_and_tensors_give_the_same_level():
    for schedule in SCHEDULES.values():
        assert schedule.sigma(0.25).item() == schedule.sigma(torch.tensor([0.25], dtype=F64)).item()
        assert schedule.sigma(0.25).dtype == F64


class Cubic(fm.Schedule):
    """sigma(t) = t^3 + t, everything else by default."""

    def sigma(self, t):
        return t**3 + t


class Bounded(fm.Schedule):
    """sigma(t) = t / (1 + t) never reaches 1."""

    def sigma(self, t):
        return t / (1 + t)


def test_a_schedule_needs_sigma_alone():
    t = torch.logspace(-12, 3, 40, dtype=F64)
    assert worst(Cubic().sigma_inv(Cubic().sigma(t)), t) <= 1e-12
    assert worst(Cubic().sigma_dot(t), 3 * t**2 + 1) <= 1e-13


def test_a_level_that_is_never_reached_is_refused():
    with pytest.raises(ValueError, match="never reaches 2"):
        Bounded().sigma_inv(2.0)


# the table


def test_a_table_has_its_entries_at_whole_times():
    alpha_bar = torch.tensor(linear_table(), dtype=F64)
    expected = ((1 - alpha_bar) / alpha_bar).sqrt()
    table = SCHEDULES["table"]
    k = torch.arange(1000, dtype=F64)
    assert worst(table.sigma(k + 1), expected) <= 1e-12
    assert worst(table.sigma_inv(expected), k + 1) <= 1e-12


def test_a_table_is_geometric_between_its_entries_and_linear_before_the_first():
    table = fm.Table((0.8, 0.5, 0.2))  # sigma 1/2, 1, 2
    assert table.sigma(torch.tensor([0.5, 1.5, 2.5, 4.0], dtype=F64)).tolist() == pytest.approx(
        [0.25, 0.5**0.5, 2**0.5, 4.0], rel=1e-14
    )


@pytest.mark.parametrize("alpha_bar", [(0.5,), (0.5, 0.5), (0.5, 0.6), (1.0, 0.5), (0.5, 0.0), ()])
def test_a_table_that_does_not_fall_from_below_1_to_above_0_is_refused(alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar"):
        fm.Table(alpha_bar)


# SDEs: quadrature against closed forms, and back


@pytest.mark.parametrize(
    ("sde", "s", "sigma"),
    [
        (beta_sde(), lambda t: torch.exp(-0.5 * (9.95 * t**2 + 0.1 * t)), fm.VP().sigma),
        (ve_sde(), torch.ones_like, fm.VE().sigma),
        (flow_sde(), lambda t: 1 - t, fm.Flow().sigma),
    ],
    ids=["vp", "ve", "flow"],
)
def test_quadrature_of_f_and_g_gives_the_closed_forms(sde, s, sigma):
    t = torch.cat([torch.logspace(-12, -1, 6, dtype=F64), torch.linspace(0.2, 0.8, 4, dtype=F64)])
    assert worst(sde.s(t), s(t)) <= 1e-12
    assert worst(sde.sigma(t), sigma(t)) <= 1e-12
    scaling = sde.scaling()
    assert worst(scaling.s(sde.sigma(t)), s(t)) <= 1e-11


def test_the_scaling_of_an_sde_has_the_derivative_of_its_closed_form():
    sigma = torch.logspace(-2, 1, 4, dtype=F64)
    assert worst(beta_sde().scaling().s_dot(sigma), fm.VariancePreserving().s_dot(sigma)) <= 1e-9


@pytest.mark.parametrize(
    ("schedule", "scaling", "f", "g_squared"),
    [
        (fm.VP(), fm.VariancePreserving(), lambda t: -(19.9 * t + 0.1) / 2, lambda t: 19.9 * t + 0.1),
        (fm.VE(), fm.Unscaled(), torch.zeros_like, torch.ones_like),
        (fm.Flow(), fm.FlowScaling(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
        (fm.EDM(), fm.Unscaled(), torch.zeros_like, lambda t: 2 * t),
    ],
    ids=["vp", "ve", "flow", "edm"],
)
def test_differentiation_of_sigma_and_s_gives_f_and_g(schedule, scaling, f, g_squared):
    t = torch.linspace(0.01, 0.9, 20, dtype=F64)
    own_f, own_g = fm.forward_sde(schedule, scaling)
    assert (own_f(t) - f(t)).abs().max() <= 1e-12 * (1 + f(t).abs().max())
    assert worst(own_g(t) ** 2, g_squared(t)) <= 1e-12


@pytest.mark.parametrize("schedule", [fm.VP(), fm.EDM(), fm.Flow()], ids=lambda s: s.kind)
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_an_sde_made_of_a_schedule_and_a_scaling_gives_both_back(schedule, scaling):
    sde = fm.SDE(*fm.forward_sde(schedule, scaling))
    t = torch.linspace(0.05, 0.8, 10, dtype=F64)
    assert worst(sde.sigma(t), schedule.sigma(t)) <= 1e-10
    assert worst(sde.s(t), scaling.s(schedule.sigma(t))) <= 1e-10


@pytest.mark.parametrize(
    "make",
    [lambda: fm.VP(beta_d=0.0), lambda: fm.VP(beta_d=-1.0), lambda: fm.Cosine(offset=-0.1), lambda: fm.VP.fit(2, 1),
     lambda: fm.VP.fit(0, 1)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
