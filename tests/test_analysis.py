"""The instruments' numbers against formulas: Gaussian paths, lines and their opposites, orders, and the paper's claim."""

import json
import math

import pytest
import torch

import elucidiff as ed
from conftest import shared
from elucidiff import analysis
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.analysis import (
    curvature,
    decided,
    denoised,
    global_error,
    training_density,
    trajectories,
    truncation_error,
)
from elucidiff.analysis.decided import crossing
from elucidiff.analysis.exact_path import Flow, exact_path, geometric_levels, rms
from elucidiff.bench import problems

F64 = torch.float64
C = 0.25
GAUSSIAN = ed.GaussianDenoiser(torch.zeros(3, dtype=F64), C)
POINT = ed.GaussianDenoiser(torch.tensor([0.4, -0.7], dtype=F64), 0.0)
MIXTURE = ed.GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]], dtype=F64), 0.05)
VP = ed.Sampler(schedule=fm.VP(), scaling=fm.VariancePreserving())
VE = ed.Sampler(schedule=fm.VE())


def gaussian_path(start, sigmas):
    """The closed form: x(sigma) is proportional to sqrt(c + sigma^2)."""
    gains = ((C + sigmas**2) / (C + sigmas[0] ** 2)).sqrt()
    return gains.reshape(-1, *[1] * start.ndim) * start


def latents(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3), dtype=F64)


# --- the exact path -----------------------------------------------------------------------------------


def test_the_exact_path_of_a_gaussian_and_its_estimated_error():
    sigmas, n = geometric_levels(GAUSSIAN, 0.002, 80.0, 60), latents(8, 3)
    path = exact_path(GAUSSIAN, sigmas, latents=n)
    expected = gaussian_path(80 * n, torch.cat([sigmas, torch.zeros(1)]))
    error = rms(path.x[-1] - expected[-1])
    assert rms(path.x - expected) < 1e-4
    assert 0.3 * error < path.error < 10 * error  # an estimate, but of the right size
    assert torch.allclose(path.denoised[20], C / (C + sigmas[20] ** 2) * path.x[20])


@pytest.mark.parametrize("b", [0.5, 0.0])
def test_the_flow_is_refined_until_the_error_is_as_wanted(b):
    start = 2 * latents(4, 3)
    expected = gaussian_path(start, torch.tensor([2.0, b], dtype=F64))[1]
    for accuracy in (1e-3, 1e-6):
        x, error = Flow(GAUSSIAN, {}).refined(start, 2.0, b, lambda _, e=accuracy: e)
        assert error <= accuracy and rms(x - expected) <= 3 * accuracy + (0 if b else 1e-6)
    x, error = Flow(GAUSSIAN, {}).refined(start, 2.0, b, lambda _: 0.0)  # as far as it goes
    assert rms(x - expected) < (1e-10 if b else 1e-5) and error < 1e-10


def test_the_path_takes_the_latents_and_classes_of_sample():
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    model = ed.EmpiricalDenoiser(data, torch.arange(40) % 4)
    fine = ed.Sampler(solver=so.RK4(), steps=120)
    path = exact_path(model, geometric_levels(model, 0.002, 80.0, 200), seeds=range(6))
    assert rms(path.x[-1] - ed.sample(model, fine, seeds=range(6)).x) < 1e-3
    one = exact_path(model, geometric_levels(model, 0.002, 80.0, 200), seeds=range(6), labels=2)
    assert rms(one.x[-1] - ed.sample(model, fine, seeds=range(6), labels=2).x) < 1e-3
    assert rms(one.x[-1] - path.x[-1]) > 0.1


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, 0.0], [[2.0, 1.0]]])
def test_the_path_refuses_levels_that_do_not_fall(sigmas):
    with pytest.raises(ValueError, match="strictly decreasing"):
        exact_path(GAUSSIAN, torch.tensor(sigmas, dtype=F64), seeds=[0])


# --- truncation errors --------------------------------------------------------------------------------


def test_eulers_errors_on_a_gaussian_are_the_closed_form():
    n = latents(5, 3)
    result = truncation_error(GAUSSIAN, ed.Sampler(solver=so.Euler(), steps=12), latents=n)
    s = result.sigmas
    made = 1 + (s[1:] - s[:-1]) * s[:-1] / (C + s[:-1] ** 2)  # x + h (x - D) / sigma, D = c / (c + sigma^2) x
    exact = ((C + s[1:] ** 2) / (C + s[:-1] ** 2)).sqrt()
    x = gaussian_path(80 * n, s)[:-1]
    expected = (made - exact).abs() * x.square().mean((1, 2)).sqrt()
    assert torch.allclose(result.error, expected, rtol=1e-3)
    assert result.nfe.tolist() == [1] * 12
    squares = ((made - exact)[:, None, None] * x).square().mean(2)  # the standard error of a root, by its derivative
    assert torch.allclose(result.standard_error, squares.std(1) / 5**0.5 / (2 * expected), rtol=1e-2)


def test_heuns_errors_on_a_gaussian_are_the_closed_form():
    n = latents(5, 3)
    result = truncation_error(GAUSSIAN, ed.Sampler(steps=12), latents=n)
    a, b = result.sigmas[:-2], result.sigmas[1:-1]

    def slope(sigma):
        return sigma / (C + sigma**2)

    made = 1 + (b - a) / 2 * (slope(a) + slope(b) * (1 + (b - a) * slope(a)))
    exact = ((C + b**2) / (C + a**2)).sqrt()
    expected = (made - exact).abs() * gaussian_path(80 * n, a).square().mean((1, 2)).sqrt()
    assert torch.allclose(result.error[:-1], expected, rtol=1e-2)
    assert result.nfe.tolist() == [2] * 11 + [1]


@pytest.mark.parametrize(
    ("solver", "order"),
    [(so.Euler(), 1), (so.Heun(), 2), (so.Midpoint(), 2), (so.RK4(), 4), (so.DPM2(), 2), (so.DPMpp2M(), 2),
     (so.AB(order=3), 3), (so.DEIS(), None), (so.UniPC(order=2), 3), (so.UniPC(order=3), 4)],
    ids=lambda v: getattr(v, "kind", v),
)  # fmt: skip
def test_truncation_errors_fall_with_the_order_of_the_solver(solver, order):
    """Steps of half the length make errors 2^-(p + 1) as large; multistep solvers with the exact past behind them."""
    order = solver.order if order is None else order
    if isinstance(solver, so.UniPC):  # UniPC-p, corrected, is of order p + 1
        assert order == solver.order + 1
    n = latents(4, 3)

    def errors(steps):  # uniform in ln sigma, from 2 to 0.2
        levels = torch.linspace(math.log(2), math.log(0.2), steps + 1, dtype=F64).exp()
        sampler = ed.Sampler(solver=solver, timesteps=ts.Fixed(tuple(levels.tolist())), steps=steps + 1)
        result = truncation_error(MIXED, sampler, latents=n, accuracy=1e-3)
        return rms(result.error[steps // 2 : -3] if solver.memory else result.error[:-2])

    coarse, fine = errors(32), errors(64)
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.35)


MIXED = ed.GaussianMixtureDenoiser(torch.tensor([[0.3, -0.2, 0.5], [-0.4, 0.6, 0.1]], dtype=F64), 0.6)


def test_truncation_errors_are_in_units_of_the_data_under_every_schedule_and_scaling():
    """Solvers that work in sigma and x / s make the same errors under all; Euler's differ as Eq. 4 says."""
    n, levels = latents(4, 3), ts.Fixed((10.0, 3.0, 1.0, 0.3))
    plain = ed.Sampler(solver=so.DPMpp2M(), timesteps=levels, steps=4)
    scaled = plain.replace(schedule=fm.VP(), scaling=fm.VariancePreserving())
    first, second = (truncation_error(GAUSSIAN, s, latents=n) for s in (plain, scaled))
    assert torch.allclose(first.error, second.error, rtol=1e-9)
    result = truncation_error(GAUSSIAN, scaled.replace(solver=so.Euler()), latents=n)
    run_x = gaussian_path(10 * n, result.sigmas)
    for i in range(3):
        t, t_next = (float(fm.VP().sigma_inv(s)) for s in result.sigmas[i : i + 2])
        a, s = float(result.sigmas[i]), (1 + result.sigmas[i] ** 2) ** -0.5
        beta = 19.9 * t + 0.1  # dx/dt = -beta/2 (x + score s), score of N(0, s^2 (c + sigma^2))
        x = s * run_x[i]
        made = x + (t_next - t) * (-beta / 2) * (x - x / (s**2 * (C + a**2)))
        error = made * (1 + result.sigmas[i + 1] ** 2) ** 0.5 - run_x[i + 1]
        assert float(result.error[i]) == pytest.approx(rms(error), rel=1e-3)


def test_multistep_errors_are_those_of_a_run_with_an_exact_past():
    """AB2 by hand: the velocities of the exact states at this level and the one before."""
    n = latents(4, 3)
    result = truncation_error(GAUSSIAN, ed.Sampler(solver=so.AB(order=2), steps=10), latents=n)
    s, x = result.sigmas, gaussian_path(80 * n, result.sigmas)
    v = (s / (C + s**2))[:, None, None] * x
    for i in range(1, 9):
        h, before = s[i + 1] - s[i], s[i] - s[i - 1]
        made = x[i] + h * (v[i] + h / (2 * before) * (v[i] - v[i - 1]))
        assert float(result.error[i]) == pytest.approx(rms(made - x[i + 1]), rel=0.02)


def test_noise_is_left_out_and_drawing_solvers_are_refused():
    n = latents(4, 3)
    plain = truncation_error(GAUSSIAN, ed.Sampler(steps=6), latents=n)
    churned = truncation_error(GAUSSIAN, ed.Sampler(steps=6, stochasticity=so.Churn()), latents=n)
    assert torch.equal(plain.error, churned.error)
    with pytest.raises(ValueError, match="'euler_maruyama' draws noise.*expected a solver of the ODE"):
        truncation_error(GAUSSIAN, ed.Sampler(solver=so.EulerMaruyama()))
    with pytest.raises(ValueError, match="draws noise"):
        global_error(GAUSSIAN, {"sde": ed.Sampler(solver=so.EulerMaruyama())})
    for accuracy in (0, 1, -1):
        with pytest.raises(ValueError, match="accuracy: got"):
            truncation_error(GAUSSIAN, ed.Sampler(), accuracy=accuracy)
        with pytest.raises(ValueError, match="accuracy: got"):
            global_error(GAUSSIAN, {"EDM": ed.EDM}, accuracy=accuracy)


def test_every_kind_of_solver_has_truncation_errors():
    for kind, solver in so.Solver.kinds().items():
        if not solver.draws:
            result = truncation_error(GAUSSIAN, ed.Sampler(solver=solver(), steps=8), seeds=range(2))
            assert len(result.error) == 8 and result.error.isfinite().all(), kind
            assert (result.reference_error <= 0.011 * result.error + 1e-9).all(), kind


# --- global errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order"), [(so.Euler(), 1), (so.Heun(), 2), (so.DPMpp2M(), 2), (so.RK4(), 4)])
def test_global_errors_fall_with_the_order_and_equal_the_closed_form(solver, order):
    sampler = ed.Sampler(solver=solver, sigma_max=5.0, sigma_min=0.02, to_zero=False)  # the step to 0 is always as long
    (curve,) = global_error(GAUSSIAN, {"it": sampler}, (40, 80, 160), seeds=range(4)).curves
    assert curve.order == pytest.approx(order, abs=0.3)
    assert curve.steps.tolist() == [40, 80, 160]
    for n, nfe, error in zip(curve.steps.tolist(), curve.nfe.tolist(), curve.error.tolist(), strict=True):
        run = ed.sample(GAUSSIAN, sampler.replace(steps=n), seeds=range(4), record=True)
        exact = gaussian_path(run.trajectory.x[0], torch.tensor([5.0, 0.02], dtype=F64))[1]
        assert nfe == run.nfe and error == pytest.approx(rms(run.x - exact), rel=0.02)


def test_global_errors_of_other_ranges_and_scalings():
    """Each against the solution from its own first level to its own last, x / s."""
    samplers = {
        "wide": VP.replace(sigma_max=100.0),
        "narrow": ed.Sampler(sigma_max=20.0),
        "open": VP.replace(to_zero=False),
    }
    result = global_error(GAUSSIAN, samplers, (20,), seeds=range(4))
    for curve, sampler in zip(result.curves, samplers.values(), strict=True):
        run = ed.sample(GAUSSIAN, sampler.replace(steps=20), seeds=range(4), record=True)
        start = run.trajectory.x[0] / sampler.scaling.s(run.sigmas[0])
        exact = gaussian_path(start, run.sigmas[[0, -1]])[1]
        error = rms(run.x / sampler.scaling.s(run.sigmas[-1]) - exact)
        assert float(curve.error[0]) == pytest.approx(error, rel=0.02) and curve.order is None
    assert [c.name for c in result.curves] == list(samplers)


def test_global_error_refuses_nothing_to_do():
    with pytest.raises(ValueError, match="samplers: got none"):
        global_error(GAUSSIAN, {})
    with pytest.raises(ValueError, match="steps: got none"):
        global_error(GAUSSIAN, {"EDM": ed.EDM}, ())


# --- curvature ----------------------------------------------------------------------------------------

DESIGNS = {"VP": ed.VP, "VE": ed.VE, "EDM": ed.EDM}


def by_name(result):
    return {one.name: one for one in result.designs}


def test_the_paths_of_a_point_are_lines_under_edm_and_flow():
    designs = {**DESIGNS, "flow": ed.Sampler(schedule=fm.Flow(), scaling=fm.FlowScaling())}
    found = by_name(curvature(POINT, designs))
    for name in ("EDM", "flow"):
        one = found[name]
        assert one.turning < 1e-4 and abs(one.stretch) < 1e-9 and one.jump_error < 1e-9 and one.landing.max() < 1e-9
    assert found["VP"].turning > 30 and found["VE"].turning > 30


def test_ves_path_of_a_point_is_a_parabola():
    """sigma = sqrt(t): turning, length and Euler's error of a square root, in the unit square of the picture."""
    n = torch.tensor([[0.3, -1.1], [0.9, 0.4]], dtype=F64)
    result = curvature(POINT, {"VE": VE}, latents=n, sigma_max=8.0, sigma_min=0.5, per_halving=40)
    (one,) = result.designs
    assert result.sigmas[[0, -1]].tolist() == pytest.approx([8, 0.5])
    mu = POINT.mean.reshape(1, 2)
    u = (n - mu / 8).norm(dim=1)  # x_hat - mu = sigma (n - mu / 8): the line that every path of a point is
    X = 7.5 * (u.square().mean() / 2) ** 0.5 * 2**0.5
    T = 64 - 0.25

    def angle(sigma):  # of (1, |dx/dt| T / X), dx/dt = u / (2 sigma)
        return torch.atan(u / (2 * sigma) * T / X)

    turning = (angle(0.5) - angle(8.0)).rad2deg().mean()
    assert one.turning == pytest.approx(float(turning), rel=1e-4)
    sigma = torch.linspace(8, 0.5, 100_001, dtype=F64)
    arcs = torch.hypot((sigma**2).diff()[None] / T, u[:, None] * sigma.diff() / X).sum(1)
    stretch = (arcs / torch.hypot(torch.ones(()), u * 7.5 / X)).mean() - 1
    assert one.stretch == pytest.approx(float(stretch), rel=1e-3)
    # the tangent at sigma goes 3/8 sigma u where sigma / 2 u would be right, and lands at sigma / 2 u
    per_dimension = float(u.square().mean() / 2) ** 0.5
    assert one.jumps.tolist() == pytest.approx([per_dimension / 4] * len(one.jumps), rel=1e-9)
    assert torch.allclose(one.landing, result.sigmas / 2 * per_dimension, rtol=1e-9)


def test_vp_is_straight_where_the_data_are_a_unit_gaussian():
    """The claim for EDM is about data, not about all denoisers: for N(0, I) the states of VP do not move at all."""
    unit = ed.GaussianDenoiser(torch.zeros(2, dtype=F64), 1.0)
    found = by_name(curvature(unit, DESIGNS, per_halving=4))
    assert found["VP"].jump_error < 1e-4 < 0.04 < found["EDM"].jump_error
    assert found["VP"].turning == found["VP"].stretch == 0
    # EDM's are hyperbolas sqrt(1 + sigma^2) x_0 of slope sigma / sqrt(1 + sigma^2) x_0, along one direction each
    sigmas = curvature(unit, {"EDM": ed.EDM}, per_halving=4).sigmas
    low, high = float(sigmas[-1]), float(sigmas[0])
    x_0 = exact_path(unit, sigmas, seeds=range(16)).x[-1].norm(dim=1)
    X = ((1 + high**2) ** 0.5 - (1 + low**2) ** 0.5) * x_0.square().mean().sqrt()
    angles = [torch.atan(s / (1 + s**2) ** 0.5 * x_0 * (high - low) / X) for s in (high, low)]
    turning = float((angles[0] - angles[1]).rad2deg().mean())
    assert found["EDM"].turning == pytest.approx(turning, rel=0.01)


def test_the_landing_of_edms_tangent_is_the_denoised_sample():
    result = curvature(MIXTURE, {"EDM": ed.EDM}, seeds=range(20))
    path = exact_path(MIXTURE, result.sigmas, seeds=range(20))
    expected = (path.denoised - path.x[-1]).square().mean((1, 2)).sqrt()
    assert torch.allclose(result.designs[0].landing, expected, rtol=1e-9)


def test_units_of_time_and_of_x_do_not_count():
    class Slow(fm.Schedule):
        def sigma(self, t):
            return t / 1000

    class Half(fm.Scaling):
        def s(self, sigma):
            return torch.full_like(sigma, 0.5)

    edm, other = curvature(MIXTURE, {"a": ed.EDM, "b": ed.Sampler(schedule=Slow(), scaling=Half())}).designs
    for name in ("turning", "stretch", "jump_error"):
        assert getattr(edm, name) == pytest.approx(getattr(other, name), rel=1e-6)
    twice = ed.GaussianMixtureDenoiser(torch.tensor([[-1.0] * 5, [1.0] * 5], dtype=F64), 0.05)
    n = latents(1, 1)
    one = curvature(MIXTURE, DESIGNS, latents=0.1 * n, per_halving=3)
    five = curvature(ed.EmpiricalDenoiser(twice.means * 0 + 0.3), DESIGNS, latents=n.expand(1, 5), per_halving=3)
    flat = curvature(ed.EmpiricalDenoiser(torch.full((2, 1), 0.3, dtype=F64)), DESIGNS, latents=n, per_halving=3)
    assert one.designs[0].turning > 0  # and copies of one coordinate are one coordinate:
    for a, b in zip(five.designs, flat.designs, strict=True):
        assert a.turning == pytest.approx(b.turning, abs=1e-6) and a.stretch == pytest.approx(b.stretch, abs=1e-9)


@pytest.mark.parametrize("sigma_max", [80.0, 10.0])
def test_edm_is_straightest_on_the_mixture(sigma_max):
    result = curvature(MIXTURE, seeds=range(100), sigma_max=sigma_max)
    found = by_name(result)
    assert list(found) == ["VP", "VE", "EDM"]
    assert result.straightest() == result.straightest("stretch") == "EDM"
    assert found["EDM"].turning < 0.75 * min(found["VP"].turning, found["VE"].turning)
    assert float(found["EDM"].turned.sum()) == pytest.approx(found["EDM"].turning, rel=1e-9)
    # not by Euler's errors: data of unit variance are VP's home, and the two are within a tenth of each other
    assert found["EDM"].jump_error == pytest.approx(found["VP"].jump_error, rel=0.1)
    assert found["EDM"].jump_error < 0.8 * found["VE"].jump_error


def check_digits(model, numbers=("turning", "stretch", "jump_error")):
    result = curvature(model, per_halving=4, seeds=range(8))
    found = by_name(result)
    assert {result.straightest(number) for number in numbers} == {"EDM"}
    assert found["EDM"].jump_error < 0.5 * found["VE"].jump_error
    assert found["EDM"].turning < 0.6 * min(found["VP"].turning, found["VE"].turning)
    assert found["EDM"].stretch < 0.1 * min(found["VP"].stretch, found["VE"].stretch)
    assert result.reference_error < 1e-4


def test_edm_is_straightest_on_a_network_of_digits():
    """By geometry; by Euler's errors VP is better by a tenth on this one, as it is at small sigma."""
    check_digits(problems.load(shared("data/solver_problems"))["digits_mlp"].denoiser, ("turning", "stretch"))


def test_edm_is_straightest_on_the_exact_digits():
    check_digits(ed.load("exact:digits"))


def test_edm_is_straightest_on_the_demos_digits(digits_run):
    check_digits(ed.load(digits_run))


def test_curvature_refuses():
    with pytest.raises(ValueError, match="designs: got none"):
        curvature(MIXTURE, {})
    with pytest.raises(ValueError, match="expected a factor of 4"):
        curvature(MIXTURE, sigma_min=1.0, sigma_max=3.0)
    with pytest.raises(ValueError, match="per_halving: got 0"):
        curvature(MIXTURE, per_halving=0)
    with pytest.raises(ValueError, match="noise range: got sigma_min=2, sigma_max=1"):
        curvature(MIXTURE, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="by: got 'beauty'; expected one of turning, stretch, jump_error"):
        curvature(MIXTURE, per_halving=1).straightest("beauty")


# --- trajectories -------------------------------------------------------------------------------------


def test_the_trajectories_solve_each_designs_own_ode():
    """Between neighbouring times the slopes of Eq. 4 lead from state to state; x / s is the same for all designs."""
    panels = trajectories(MIXTURE, DESIGNS, paths=6, sigma_max=8.0)
    for panel, design in zip(panels, DESIGNS.values(), strict=True):
        sampler = design.sampler
        trapezoid = panel.x[:-2] + panel.t[:-1].diff()[:, None] * (panel.slope[:-1] + panel.slope[1:]) / 2
        assert (trapezoid - panel.x[1:-1]).abs().max() < 2e-3 * panel.x[0].abs().max()
        sigma = sampler.schedule.sigma(panel.t[:-1])
        assert sigma[0] == pytest.approx(8.0) and panel.sigma_max == 8.0
        unscaled = panel.x[:-1] / sampler.scaling.s(sigma)[:, None]
        assert torch.allclose(unscaled, panels[2].x[:-1], rtol=1e-6, atol=1e-9)
        assert panel.t[-1] == 0 and panel.x[-1].abs() == pytest.approx(1, abs=0.2)
        assert panel.t[panel.tangents] / panel.t[0] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2], abs=0.02)
        assert panel.reach == pytest.approx(float(panel.t[0]) / 5)
    start = panels[2].x[0] / 8
    assert torch.special.ndtr(start) == pytest.approx((torch.arange(6, dtype=F64) + 0.5) / 6)


def test_the_background_is_the_density():
    for panel, design in zip(trajectories(MIXTURE, DESIGNS), DESIGNS.values(), strict=True):
        for j in (3, 60, 239):
            sigma = design.sampler.schedule.sigma(panel.grid_t[j])
            s = design.sampler.scaling.s(sigma)
            z = (panel.grid_x[:, None] / s - MIXTURE.means.T) / (0.05**2 + sigma**2).sqrt()
            p = (-0.5 * z**2).exp().sum(1)
            if float(sigma / s) > 0.1:  # below, the grid is coarser than the peaks
                assert torch.allclose(panel.density[j], p / p.max(), atol=0.01)


def test_trajectories_of_classes_and_refusals():
    model = ed.EmpiricalDenoiser(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
    for label in (0, 1):
        (panel,) = trajectories(model, {"EDM": ed.EDM}, label=label, paths=4, levels=30)
        assert panel.x[-1] == pytest.approx(2 * label - 1, abs=1e-9)
        assert panel.grid_x[panel.density[0].argmax()] == pytest.approx(2 * label - 1, abs=0.05)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected samples of one number"):
        trajectories(GAUSSIAN)
    for number in ("paths", "tangents"):
        with pytest.raises(ValueError, match=f"{number}: got 0"):
            trajectories(MIXTURE, **{number: 0})


# --- denoised -----------------------------------------------------------------------------------------


def test_the_denoised_errors_of_a_gaussian_are_the_closed_form():
    """E |D - y|^2 = c sigma^2 / (c + sigma^2) a dimension."""
    y = C**0.5 * latents(4000, 3)
    sigmas = torch.tensor([0.05, 0.5, 5.0, 50.0], dtype=F64)
    result = denoised({"exact": GAUSSIAN, "identity": lambda x, sigma: x}, y, sigmas=sigmas, keep=2)
    exact, identity = result.curves
    assert torch.allclose(exact.error, (C * sigmas**2 / (C + sigmas**2)).sqrt(), rtol=0.03)
    assert torch.allclose(identity.error, sigmas, rtol=0.03)
    assert result.spread == pytest.approx(0.5, rel=0.03)
    assert exact.nearest is None and torch.equal(result.clean, y[:2])
    gain = (C / (C + sigmas**2)).reshape(-1, 1, 1)
    assert torch.allclose(exact.outputs, gain * result.noisy) and torch.equal(identity.outputs, result.noisy)
    noise = (result.noisy - y[:2]) / sigmas.reshape(-1, 1, 1)
    assert torch.allclose(noise, noise[:1].expand_as(noise))  # the same at all levels


def test_the_exact_denoiser_gives_data_at_small_noise_and_their_mean_at_large():
    data = latents(30, 2, 2)
    labels = torch.arange(30) % 2
    model = ed.EmpiricalDenoiser(data, labels)
    sigmas = torch.tensor([1e-3, 1e4], dtype=F64)
    (curve,) = denoised({"exact": model}, data, data=data, sigmas=sigmas).curves
    assert curve.error[0] < 1e-9 and curve.nearest[0] < 1e-9
    centre = data.mean(0)
    assert float(curve.error[1]) == pytest.approx(rms(data - centre), rel=1e-3)
    nearest = (data - centre).square().flatten(1).mean(1).min().sqrt()
    assert float(curve.nearest[1]) == pytest.approx(float(nearest), rel=1e-3)
    (by_class,) = denoised({"exact": model}, data, labels=labels, sigmas=sigmas).curves
    means = torch.stack([data[labels == k].mean(0) for k in (0, 1)])[labels]
    assert float(by_class.error[1]) == pytest.approx(rms(data - means), rel=1e-3)


def test_denoised_refuses():
    y = latents(3, 2)
    for call, message in [
        (lambda: denoised({}, y), "denoisers: got none"),
        (lambda: denoised({"g": GAUSSIAN}, latents(3)), "y: got shape"),
        (lambda: denoised({"g": POINT}, y, data=latents(4, 3)), "data: expected points of the shape"),
        (lambda: denoised({"g": POINT}, y, sigmas=torch.tensor([1.0, 0.5])), "strictly increasing"),
        (lambda: denoised({"g": POINT}, y, sigmas=torch.tensor([0.0, 0.5])), "strictly increasing"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# --- decided ------------------------------------------------------------------------------------------


def test_a_gaussian_is_decided_as_the_closed_form_says():
    result = decided(ed.GaussianDenoiser(torch.zeros(40, dtype=F64), C), seeds=range(200), branches=2, levels=60)
    s = result.sigmas
    assert result.variance == pytest.approx(C, rel=0.03)
    assert torch.allclose(result.decided, C / (C + s**2), atol=0.02)
    assert torch.allclose(result.foreseen, 1 - (1 - (C / (C + s**2)).sqrt()) ** 2, atol=0.02)
    assert result.half == pytest.approx(0.5, rel=0.05)
    assert result.foreseen_half == pytest.approx((C / (1 - 0.5**0.5) ** 2 - C) ** 0.5, rel=0.05)
    assert torch.allclose(result.density[1:-1], (2 * C * s**2 / (C + s**2) ** 2)[1:-1], atol=0.03)
    assert result.agreement is None and result.settled is None


def test_the_class_settles_where_the_mixture_parts():
    """From x > 0 a path of the symmetric mixture ends in the right component, and D has the sign of x at all levels."""
    result = decided(MIXTURE, classify=lambda x: (x > 0).flatten().long(), levels=20)
    assert (result.agreement == 1).all() and result.settled is None
    # a classifier that sees only what is beyond 1/2: D = tanh(x / sigma^2) or so passes it at the end
    narrow = decided(MIXTURE, classify=lambda x: (x.abs() > 0.5).flatten().long(), levels=40)
    assert narrow.agreement[-1] == 1 and narrow.agreement[0] == 0 and 0.5 < narrow.settled < 5
    assert (narrow.agreement.diff() >= 0).all()


def test_a_class_decides_its_share_at_once():
    """Two classes of points: given the class, what is left open at the highest level is the spread within it."""
    data = torch.tensor([[-3.0, 0.0], [-3.0, 1.0], [3.0, 0.0], [3.0, 1.0]], dtype=F64)
    model = ed.EmpiricalDenoiser(data, torch.tensor([0, 0, 1, 1]))
    result = decided(model, seeds=range(300), sigma_max=1000.0, branches=1)
    within = 0.25 / 2  # of both dimensions together, over 2
    assert float(result.decided[0]) == pytest.approx(1 - within / result.variance, abs=0.005)
    assert result.half is None  # at the first level already


def test_decided_refuses():
    with pytest.raises(ValueError, match="got 1; expected at least two"):
        decided(GAUSSIAN, seeds=[0])
    with pytest.raises(ValueError, match="all the same"):
        decided(ed.EmpiricalDenoiser(torch.zeros(3, 2)), seeds=range(3))
    with pytest.raises(ValueError, match="branches: got 0"):
        decided(GAUSSIAN, branches=0)
    with pytest.raises(ValueError, match="levels: got 1"):
        decided(GAUSSIAN, levels=1)


def test_crossings_are_interpolated_in_ln_sigma():
    sigmas = torch.tensor([100.0, 10.0, 1.0], dtype=F64)
    assert crossing(sigmas, torch.tensor([0.0, 0.25, 0.75])) == pytest.approx(10**0.5)
    assert crossing(sigmas, torch.tensor([0.0, 0.1, 0.2])) is None
    assert crossing(sigmas, torch.tensor([0.6, 0.7, 0.8])) is None


def test_training_densities():
    sigmas = geometric_levels(GAUSSIAN, 0.002, 80.0, 40)
    z = (sigmas.log() + 1.2) / 1.2
    expected = (-0.5 * z**2).exp() / (1.2 * (2 * math.pi) ** 0.5)
    assert torch.allclose(training_density(ed.objective.LogNormal(), sigmas), expected, atol=0.002)
    for order in (sigmas, sigmas.flip(0)):
        density = training_density(ed.objective.LogUniform(0.02, 20.0), order)
        inside = (order > 0.03) & (order < 15)
        assert torch.allclose(density[inside], torch.full_like(density[inside], 1 / math.log(1000)), rtol=0.01)
    discrete = training_density(ed.objective.IDDPM(), sigmas)
    assert float(discrete.sum() * (sigmas[0] / sigmas[1]).log()) == pytest.approx(1, abs=0.05)


# --- all of them --------------------------------------------------------------------------------------


def test_results_are_json_and_functions_of_their_arguments():
    def everything():
        return [
            truncation_error(MIXTURE, ed.Sampler(steps=5), seeds=range(3)),
            global_error(MIXTURE, {"EDM": ed.EDM}, (5, 6), seeds=range(3)),
            curvature(MIXTURE, per_halving=2, seeds=range(3)),
            trajectories(MIXTURE, levels=20)[0],
            denoised({"a": MIXTURE}, torch.ones(3, 1), data=torch.ones(2, 1)),
            decided(MIXTURE, levels=8, seeds=range(3)),
        ]

    state = torch.get_rng_state()
    first = [json.dumps(one.to_dict(), allow_nan=False) for one in everything()]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert [json.dumps(one.to_dict(), allow_nan=False) for one in everything()] == first
    assert set(json.loads(first[0])) >= {"sampler", "sigmas", "error"}
    assert json.loads(first[2])["designs"][2]["name"] == "EDM"
    assert analysis.Curvature.__module__ == "elucidiff.analysis.curvature"


# --- pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    from elucidiff.report import instruments

    figures, png_of = [], instruments._png

    def keep(figure, **options):
        figures.append(figure)
        return png_of(figure, **options)

    monkeypatch.setattr(instruments, "_png", keep)
    return figures


def test_plots_hold_the_numbers(drawn):
    from elucidiff.report import instruments as pictures

    truncation = truncation_error(MIXTURE, ed.Sampler(steps=6), seeds=range(3))
    errors = global_error(MIXTURE, {"EDM": ed.EDM}, (8, 16), seeds=range(3))
    bent = curvature(MIXTURE, per_halving=2)
    chosen = decided(MIXTURE, levels=12, classify=lambda x: (x > 0).flatten())
    contents = [
        pictures.truncation_plot({"EDM": truncation}),
        pictures.global_error_plot(errors),
        pictures.curvature_plot(bent),
        pictures.decided_plot(chosen, training_density(ed.objective.LogNormal(), chosen.sigmas)),
        pictures.trajectory_picture(trajectories(MIXTURE)),
        pictures.denoised_plot(denoised({"exact": MIXTURE}, torch.ones(3, 1), data=torch.ones(2, 1))),
    ]
    assert all(content.startswith(b"\x89PNG") for content in contents)
    lines = drawn[0].axes[0].lines
    assert lines[0].get_xdata() == pytest.approx(truncation.sigmas[:-1])
    assert lines[0].get_ydata() == pytest.approx(truncation.error)
    assert drawn[1].axes[0].lines[0].get_xdata().tolist() == errors.curves[0].nfe.tolist()
    left, right = drawn[2].axes
    assert right.lines[2].get_ydata() == pytest.approx(100 * bent.designs[2].jumps)
    assert left.lines[0].get_ydata()[0] == pytest.approx(float(bent.designs[0].turned[:2].sum()))
    above, below = drawn[3].axes[:2]
    assert len(above.lines) == 4 and below.lines[0].get_ydata() == pytest.approx(chosen.density)
    assert [axes.get_title(loc="left") for axes in drawn[4].axes] == ["VP", "VE", "EDM"]


def test_the_denoised_sheet():
    from elucidiff.report.instruments import denoised_sheet, trajectory_picture, truncation_plot

    images = latents(5, 1, 8, 8).clamp(-1, 1)
    result = denoised({"exact": ed.EmpiricalDenoiser(images), "same": lambda x, sigma: x}, images)
    assert denoised_sheet(result) == denoised_sheet(result) != denoised_sheet(result, rows=1)
    with pytest.raises(ValueError, match="clean: got shape"):
        denoised_sheet(denoised({"a": POINT}, latents(3, 2)))
    with pytest.raises(ValueError, match="panels: got none"):
        trajectory_picture([])
    with pytest.raises(ValueError, match="errors: got none"):
        truncation_plot({})
