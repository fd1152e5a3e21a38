"""rk45 steps over the levels of the grid: its continuous extension, what it asks the network, and when it starts anew."""

import copy
import itertools
import math

import pytest
import torch

import elucidiff as ed
import test_stochastic as stochastic
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.solvers.adaptive import RATIO, A, C, Span, Trial, dormand_prince

F64 = torch.float64
MEAN, VARIANCES, GAUSSIAN = stochastic.MEAN, stochastic.EIGENVALUES, stochastic.GAUSSIAN
LATENTS = torch.randn(1, 2, generator=torch.Generator().manual_seed(11), dtype=F64)


def flow(x, a, b):
    """Where the ODE of the Gaussian leads x from level a to level b."""
    return MEAN + (x - MEAN) * ((VARIANCES + b**2) / (VARIANCES + a**2)).sqrt()


class Spy(ed.Denoiser):
    """The exact D of the Gaussian, and the levels that it was asked at."""

    shape = (2,)

    def __init__(self):
        super().__init__()
        self.levels = []

    def denoise(self, x, sigma, **conditions):
        self.levels.append(sigma.item())
        return GAUSSIAN(x, sigma)


def rk45(tolerance=1e-4, **elements):
    return ed.Sampler(solver=so.RK45(rtol=tolerance, atol=tolerance), **elements)


# The continuous extension


def weights_at(theta):
    """b_i(theta) and b_i'(theta) with x = x_a + sum b_i h k_i, read off a step whose slopes h k_i are unit vectors."""
    a, b = 2.0, 0.5
    h, k = b - a, torch.eye(7, dtype=F64)
    x_b = torch.tensor([*A[6], 0.0], dtype=F64)
    trial = Trial(x_b, x_b - b / h * k[6], torch.zeros(7), [(1.0, slope) for slope in k])
    level = a + theta * h
    x, D = Span.of(a, b, 0.5, torch.zeros(7, dtype=F64), trial, inner=True).at(level)
    return x, (x - D) * h / level


@pytest.mark.parametrize("theta", [1e-9, 0.07, 0.3, 0.5, 0.81, 1.0])
def test_the_extension_fulfils_the_conditions_of_order_4(theta):
    """Every tree to order 4 (Hairer, Norsett and Wanner, II.6): sum b_i(theta) phi_i = theta^n / gamma; slopes too."""
    c, a = torch.tensor(C, dtype=F64), torch.zeros(7, 7, dtype=F64)
    for i, row in enumerate(A):
        a[i, : len(row)] = torch.tensor(row, dtype=F64)
    b, slope = weights_at(theta)
    one = torch.ones(7, dtype=F64)
    trees = [(one, 1, 1), (c, 2, 2), (c**2, 3, 3), (a @ c, 3, 6),
             (c**3, 4, 4), (c * (a @ c), 4, 8), (a @ c**2, 4, 12), (a @ (a @ c), 4, 24)]  # fmt: skip
    for phi, n, gamma in trees:
        assert (b @ phi).item() == pytest.approx(theta**n / gamma, abs=2e-14)
        assert (slope @ phi).item() == pytest.approx(n * theta ** (n - 1) / gamma, abs=1e-13)
    missed = abs((b @ c**4).item() - theta**5 / 5)
    assert missed <= 1e-14 if theta in (1e-9, 1) else missed >= 1e-6  # order 5 at the ends alone


@pytest.mark.parametrize("upwards", [False, True])
def test_the_order_of_the_extension_on_a_gaussian(upwards):
    """Local errors at interior levels: O(h^5) of x, O(h^4) of D."""

    class Plain:
        def denoise_at(self, x, sigma):
            return GAUSSIAN(x, sigma)

    x = torch.tensor([[0.7, -1.1]], dtype=F64)
    for theta in (0.25, 0.5, 0.8):
        errors = []
        for h in (0.1, 0.05, 0.025):
            b = 1 + h if upwards else 1 - h
            trial = dormand_prince(Plain(), x, 1.0, b, GAUSSIAN(x, 1.0))
            level = 1 + theta * (b - 1)
            found = Span.of(1.0, b, 0.5, x, trial, inner=True).at(level)
            exact = flow(x, 1.0, level)
            errors.append([(v - e).norm().log2() for v, e in zip(found, (exact, GAUSSIAN(exact, level)), strict=True)])
        (x0, D0), (x1, D1), (x2, D2) = errors
        assert 2 * (x1 - x2) - (x0 - x1) == pytest.approx(5, abs=0.1)
        order_of_D = 2 * (D1 - D2) - (D0 - D1)
        assert order_of_D == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8])
def test_the_error_at_every_level_follows_the_tolerance(tolerance):
    """Of x 3 times what is tolerated at most; of D, whose order is one less, like tolerance^(4/5)."""
    result = ed.sample(GAUSSIAN, rk45(tolerance, steps=60, to_zero=False), latents=LATENTS, record=True)
    exact = torch.stack([flow(80 * LATENTS, 80.0, sigma) for sigma in result.sigmas])
    D = torch.stack([GAUSSIAN(x, sigma) for x, sigma in zip(exact, result.sigmas, strict=True)])[:-1]
    unit = 1 + exact.abs()
    assert ((result.trajectory.x - exact) / unit).abs().max() <= 3.5 * tolerance
    assert ((result.trajectory.denoised - D) / unit[:-1]).abs().max() <= 1.5 * tolerance**0.8


# What the levels of the grid change


@pytest.mark.parametrize(
    ("schedule", "scaling"),
    [(fm.EDM(), fm.Unscaled()), (fm.VP(), fm.VariancePreserving())],
    ids=["edm", "vp"],
)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_levels_between_cost_and_change_nothing(schedule, scaling, tolerance):
    """The same calls and the same bits with 2 levels, 18 and 200; a step ends at the last, whose D is an answer."""
    ends, asked = [], []
    for steps, rule in itertools.product((2, 18, 200), (ts.EDM(), ts.LogSNR())):
        sampler = rk45(
            tolerance, schedule=schedule, scaling=scaling, timesteps=rule, steps=steps, sigma_min=0.01, sigma_max=50.0
        )
        spy = Spy()
        result = ed.sample(spy, sampler, latents=LATENTS, record=True)
        last, sigma = result.trajectory.x[-2], result.sigmas[-2]
        assert (GAUSSIAN(last / scaling.s(sigma), sigma) - result.x).abs().max() <= 1e-12
        assert torch.equal(result.trajectory.denoised[-1], result.x)
        assert len(result.trajectory.x) == steps + 1 and result.nfe == len(spy.levels) and result.nfe % 6 == 1
        assert spy.levels[-1] == pytest.approx(0.01, rel=1e-15)
        ends.append(result.x)
        asked.append(spy.levels)
    assert all(torch.equal(x, ends[0]) and levels == asked[0] for x, levels in zip(ends, asked, strict=True))


def test_a_step_leads_to_a_fifth_of_sigma_at_most():
    """With a tolerance that nothing exceeds: as many steps as the range asks for, upwards as well."""
    sampler = rk45(1e9, steps=30, sigma_min=0.01, sigma_max=50.0, to_zero=False)
    spy = Spy()
    ed.sample(spy, sampler, latents=LATENTS)
    count = math.ceil(math.log(5000, RATIO))
    assert len(spy.levels) == 6 * count + 1
    assert spy.levels[6::6] == pytest.approx([50.0 / RATIO ** (i + 1) for i in range(count - 1)] + [0.01])
    spy = Spy()
    ed.invert(spy, LATENTS, sampler)
    assert spy.levels[6::6] == pytest.approx([0.01 * RATIO ** (i + 1) for i in range(count - 1)] + [50.0])


def test_levels_between_change_nothing_upwards():
    found, asked = [], []
    for steps in (2, 9, 60):
        spy = Spy()
        sampler = rk45(1e-5, steps=steps, sigma_min=0.05, sigma_max=20.0, to_zero=False)
        found.append(ed.invert(spy, LATENTS, sampler))
        asked.append(spy.levels)
    assert asked[0] == asked[1] == asked[2]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - flow(LATENTS, 0.05, 20.0) / 20).abs().max() <= 2e-4


def test_gradients_pass_through_states_between():
    """Each level's state by the latent: the gain of the closed form."""
    latents = LATENTS.clone().requires_grad_()
    result = ed.sample(GAUSSIAN, rk45(1e-8, steps=12), latents=latents, record="x", grad=True)
    for x, sigma in zip(result.trajectory.x[1:-1], result.sigmas[1:-1], strict=True):
        (gradient,) = torch.autograd.grad(x.sum(), latents, retain_graph=True)
        gain = 80 * ((VARIANCES + sigma**2) / (VARIANCES + 80.0**2)).sqrt()
        assert (gradient - gain).abs().max() <= 1e-6


@pytest.mark.parametrize("noise", [so.Deterministic(), so.Churn(S_churn=9, S_min=0.5, S_max=20)], ids=lambda s: s.kind)
def test_driven_from_outside_through_steps_that_ask_nothing(noise):
    """Bits, trajectory and calls of ed.sample; a drive copied in the middle of a step of the integrator goes on alike."""
    sampler = rk45(1e-3, stochasticity=noise, steps=40)
    drive, copied = ed.Drive(sampler, seeds=[4], shape=(2,), record=True), None
    while (call := drive.call) is not None:
        if drive.state is not None and drive.state.i == 20 and copied is None:
            copied = copy.deepcopy(drive)
        drive.answer(GAUSSIAN(call.x, call.sigma))
    while copied is not None and (call := copied.call) is not None:
        copied.answer(GAUSSIAN(call.x, call.sigma))
    expected = ed.sample(GAUSSIAN, sampler, seeds=[4], record=True)
    for result in (drive.result, *([] if copied is None else [copied.result])):
        assert torch.equal(result.x, expected.x) and result.nfe == expected.nfe
        assert torch.equal(result.trajectory.x, expected.trajectory.x)
        assert torch.equal(result.trajectory.denoised, expected.trajectory.denoised)
    assert noise.draws or expected.nfe < 3 * 40


# Noise on the way


def by_step(sampler, **start):
    """The levels asked in every step, and the result."""
    spy, counts = Spy(), []
    result = ed.sample(spy, sampler, callback=lambda state: counts.append(state.nfe), record=True, **start)
    return [spy.levels[a:b] for a, b in itertools.pairwise([0, *counts])], result


@pytest.mark.parametrize("noise", [so.Churn(S_churn=6), so.Ancestral(eta=0.5)], ids=lambda s: s.kind)
def test_no_step_beyond_the_next_level_while_there_is_noise(noise):
    sampler = rk45(1e-3, stochasticity=noise, steps=12)
    asked, result = by_step(sampler, seeds=[0])
    for levels, sigma_hat, below in zip(asked[:-1], result.trajectory.sigma_hat, result.sigmas[1:], strict=False):
        assert levels[0] == sigma_hat and len(levels) % 6 == 1
        aim = below if noise.kind == "churn" else noise._lowered(sigma_hat.item(), below.item())
        assert levels[-1] == pytest.approx(float(aim), rel=1e-12)
    exact = ed.sample(GAUSSIAN, sampler.replace(solver=stochastic.Substeps()), seeds=[0])
    assert (result.x - exact.x).abs().max() <= 3e-3


def test_over_the_levels_again_outside_the_band_of_the_churn():
    """Above it the first step ends at the next level; below it steps pass over levels; the state is always the last."""
    sampler = rk45(1e-4, stochasticity=so.Churn(S_churn=6, S_min=0.3, S_max=15), steps=40)
    asked, result = by_step(sampler, seeds=[0])
    sigmas = result.sigmas.tolist()
    assert asked[0][-1] == pytest.approx(sigmas[1], rel=1e-12)
    inside = [i for i, sigma in enumerate(sigmas[:-1]) if 0.3 <= sigma <= 15]
    assert all(levels[0] > sigmas[i] for i, levels in enumerate(asked) if i in inside)
    assert all(
        levels[-1] == pytest.approx(sigmas[i + 1], rel=1e-12) for i, levels in enumerate(asked) if i in inside[1:]
    )
    below = range(inside[-1] + 1, 40)
    assert not asked[below[0]][:-6] and sum(not asked[i] for i in below) >= 0.5 * len(below)
    exact = ed.sample(GAUSSIAN, sampler.replace(solver=stochastic.Substeps()), seeds=[0], record=True)
    unit = 1 + exact.trajectory.x.abs()
    assert ((result.trajectory.x - exact.trajectory.x) / unit).abs().max() <= 2e-3


@pytest.mark.parametrize("noise", [so.Churn(S_churn=0), so.Ancestral(eta=0)], ids=lambda s: s.kind)
def test_noise_of_strength_zero_costs_nothing(noise):
    _, result = by_step(rk45(1e-6, stochasticity=noise, steps=100), seeds=[0])
    plain = ed.sample(GAUSSIAN, rk45(1e-6, steps=100), seeds=[0])
    assert abs(result.nfe - plain.nfe) <= 12
    assert (result.x - plain.x).abs().max() <= 1e-6


class Push(so.Stochasticity):
    """Adds 1 to the state at one level, and says nothing of it beforehand."""

    def drop(self, run, x, t, t_next):
        return x + 1 if abs(run.sigma(t_next) - 1.0) < 1e-9 else x


def test_a_state_that_was_moved_is_what_goes_on():
    """The part of a step beyond the level is thrown away."""
    rule = ts.Fixed((20.0, 8.0, 3.0, 1.0, 0.7, 0.4, 0.1, 0.02, 0.01))
    sampler = rk45(1e-8, timesteps=rule, steps=9, stochasticity=Push(), to_zero=False)
    result = ed.sample(GAUSSIAN, sampler, latents=LATENTS, record=True)
    moved = flow(20 * LATENTS, 20.0, 1.0) + 1
    for x, sigma in zip(result.trajectory.x[3:], result.sigmas[3:], strict=True):
        assert (x - flow(moved, 1.0, sigma)).abs().max() <= 1e-7


def test_a_step_without_a_grid_ends_where_it_aims():
    """For who drives the steps by hand: Run.advance before Run.begin."""
    spy = Spy()
    run = so.Run(spy, fm.EDM(), fm.Unscaled(), None, {}, 1)
    state = run.advance(0, 5 * LATENTS, 5.0, 3.0, so.RK45(), so.Deterministic())
    assert spy.levels[-1] == 3.0 and (state.x - flow(5 * LATENTS, 5.0, 3.0)).abs().max() <= 1e-3
