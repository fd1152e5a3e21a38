"""N1: the observed order of every solver under every schedule and scaling, and under every rule of time steps.

Each run is the batch of three problems of test_solvers.py, a Gaussian, an anisotropic Gaussian and a mixture, in
float64; the order is that of the error at sigma_min, to 0.03, or to 0.1 for multistep solvers of order 3 and more (and
rk45, which rounding cuts short). What cannot be shown so:

- ipndm has the weights of equal steps: order 2 on smooth steps, its full order only where they are equal in t
  (test_multistep.py: there it is ab).
- Multistep solvers of order 3 and more have RK4's first steps here: their own start shows in a run from sigma = 10
  (test_multistep.py). dpmpp_3m_sde has no such start: its ODE shows order 2, and is dpmpp_3m, corrected or not, to 1e-12
  (test_stochastic.py).
- rk45 adapts its steps: the pair that it steps with is of order 5 on equal steps in
  sigma; with a real one its error is that of the tolerance under every rule.
- The solvers of the SDE are solvers of the ODE at eta = 0; with noise their weak order is that of mean and covariance of
  a linear problem, which unit impulses give exactly. No closed form gives it for a mixture. pc's Langevin steps have
  lengths that depend on the state: it is measured without.
"""

import itertools

import pytest
import torch

import elucidiff as ed
import test_multistep as multistep
import test_solvers as one
import test_stochastic as stochastic
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from test_solvers import HIGH, LOW, PROBLEMS, SCALINGS, SCHEDULES

START = multistep.START
ORDERS = {name: (solver, order) for name, (solver, order) in one.SOLVERS.items()}
ORDERS |= {name: (solver, order) for name, (solver, order, _) in multistep.ORDERS.items()}
ORDERS |= {
    "ipndm1": (so.IPNDM(order=1), 1),
    "unipc1 bh1": (so.UniPC(order=1, B="bh1"), 2), "unipc3 bh1": (so.UniPC(order=3, B="bh1", **START), 4),
    "gaussian3 corrected": (so.GaussianExponential(order=3, sigma_data=0.3, corrector=True, **START), 4),
    "gaussian2 spectrum": (so.GaussianExponential(order=2, mean=(0.1, -0.3), spectrum=(0.4, 1.3)), 2),
    "euler_maruyama": (so.EulerMaruyama(eta=0), 1), "pc": (so.PC(eta=0, corrector_steps=0), 1),
    "dpmpp_sde": (so.DPMppSDE(eta=0), 2),
    "dpmpp_2m_sde": (so.DPMpp2MSDE(eta=0), 2), "dpmpp_2m_sde heun": (so.DPMpp2MSDE(eta=0, variant="heun"), 2),
    "dpmpp_3m_sde": (so.DPMpp3MSDE(eta=0), 2),
}  # fmt: skip
PAIRS = list(itertools.product(SCHEDULES, SCALINGS))


def expected_orders(name, schedule, scaling):
    """Midpoint has order 3 where x^2 is a quadratic in t, which it is for Gaussians in three of the combinations."""
    order = ORDERS[name][1]
    exceptional = name == "midpoint" and (schedule, scaling) in {("edm", "none"), ("ve", "none"), ("flow", "flow")}
    return [3 if exceptional and problem != "mixture" else order for problem in PROBLEMS]


INTERVALS = (16, 32, 64, 128, 384)
# Where fewer never show it; for speed.
FEWEST = {"dpmpp_3m": 32, "dpmpp_3m_sde": 32, "unipc3": 32, "unipc3 bh1": 32, "dpmpp_3m corrected": 64}


def check(name, schedule, scaling, rule, low=LOW, high=HIGH, intervals=INTERVALS):
    """The orders from four runs of 1, 2, 4 and 8 times as many intervals: the first of the lists that shows them."""
    solver, order = ORDERS[name]
    sampler = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], timesteps=rule, solver=solver,
                         sigma_min=low, sigma_max=high)  # fmt: skip
    expected = torch.tensor(expected_orders(name, schedule, scaling))
    tolerance = 0.03 if min(order, solver.order) <= 2 or name == "rk4" else 0.1
    deviations = []
    for n in intervals:  # more than one where two leading terms nearly cancel: the order shows at shorter steps
        if intervals is not INTERVALS or n >= FEWEST.get(name, 0):
            observed = one.observed_order(sampler, one.solution(low, high), [k * n + 1 for k in (1, 2, 4, 8)])
            deviations.append((torch.tensor(observed) - expected).abs().max().item())
            if deviations[-1] <= tolerance:
                return
    raise AssertionError(f"deviations {deviations}; expected {tolerance} at most")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ORDERS)
def test_order_under_every_schedule_and_scaling(name, schedule):
    for scaling in SCALINGS:
        check(name, schedule, scaling, ts.EDM())


RULES = {
    "ve": ts.VE(), "logsnr": ts.LogSNR(), "cosine": ts.Cosine(), "uniform": ts.Uniform(),
    "quadratic": ts.Uniform(power=2.0), "vp": ts.VP(eps_s=0.03),
}  # fmt: skip


def pair(name, shift=0):
    """A schedule and a scaling, another for every solver."""
    return PAIRS[(7 * list(ORDERS).index(name) + shift) % len(PAIRS)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ORDERS)
def test_order_with_every_rule(name, rule):
    check(name, *pair(name, 5 * list(RULES).index(rule)), RULES[rule])


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "ralston", "rk2", "ab2", "gaussian2"])
def test_order_with_the_steps_of_vp_as_published(name):
    """With eps_s = 0.001 the last steps are long until there are thousands: what shows an order before that."""
    check(name, "vp", "vp", ts.VP(), 0.02, 10.0, (64, 128))


LEVELS = fm.iddpm_levels(4000, 0.001, 0.008)
START_LEVEL = int((LEVELS > 5).sum())


@pytest.mark.parametrize("name", ORDERS)
def test_order_with_the_steps_of_iddpm(name):
    """Levels of a table: 3072 of its intervals, so that every 2nd, 4th, ... of them can be taken."""
    low, high = LEVELS[START_LEVEL + 3072].item(), LEVELS[START_LEVEL].item()
    check(name, *pair(name), ts.IDDPM(M=4000), low, high, (24, 48, 96, 192))


def test_every_solver_is_here():
    own = {kind for kind, cls in so.Solver.kinds().items() if cls.__module__.startswith("elucidiff.")}
    assert {solver.kind for solver, _ in ORDERS.values()} | {"rk45"} == own
    for family, orders in ((so.AB, 4), (so.IPNDM, 4), (so.DEIS, 3), (so.UniPC, 3), (so.GaussianExponential, 3)):
        assert {solver.order for solver, _ in ORDERS.values() if type(solver) is family} == {*range(1, orders + 1)}


def test_every_rule_is_here():
    own = {kind for kind, cls in ts.TimeSteps.kinds().items() if cls.__module__.startswith("elucidiff.")}
    assert {rule.kind for rule in RULES.values()} | {"edm", "iddpm", "fixed"} == own  # fixed is any of them


# rk45: the fixed-step pair, and its tolerance

# Range and number of equal steps in sigma, between leading terms that cancel and rounding: no room to come within 0.03.
EQUAL_STEPS = {"gaussian": (2.0, 0.5, 16), "mixture": (2.0, 0.5, 16), "anisotropic": (0.4, 0.2, 8)}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_order_of_the_fixed_step_pair_of_rk45(schedule, scaling):
    fixed = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], solver=stochastic.Pair(), to_zero=False)
    for problem, (high, low, fewest) in EQUAL_STEPS.items():
        errors = []
        for n in (fewest, 2 * fewest, 4 * fewest):
            rule = ts.Fixed(tuple(torch.linspace(high, low, n + 1, dtype=torch.float64).tolist()))
            result = ed.sample(one.EXACT_AS_ONE, fixed.replace(timesteps=rule), latents=one.LATENTS[None])
            assert result.nfe == 6 * n + 1
            error = result.x[0] / fixed.scaling.s(result.sigmas[-1]) - one.solution(low, high)
            errors.append(error.reshape(len(PROBLEMS), -1)[PROBLEMS.index(problem)].norm().log2().item())
        a, b, c = errors
        assert 2 * (b - c) - (a - b) == pytest.approx(5, abs=0.1), problem


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rk45_meets_its_tolerance(schedule, scaling):
    """Under any rule: the grid says where states are reported, not where steps end."""
    turn = list(RULES.values())[PAIRS.index((schedule, scaling)) % len(RULES)]
    for tolerance, rule in itertools.product((1e-6, 1e-9), (ts.EDM(), turn)):
        sampler = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], timesteps=rule, steps=5,
                             solver=so.RK45(rtol=tolerance, atol=tolerance), sigma_min=LOW, sigma_max=HIGH,
                             to_zero=False)  # fmt: skip
        result = ed.sample(one.EXACT_AS_ONE, sampler, latents=one.LATENTS[None])
        error = result.x[0] / sampler.scaling.s(result.sigmas[-1]) - one.solution(LOW, HIGH)
        assert error.square().mean().sqrt() <= tolerance  # 0.15 at most


# weak order

WEAK = {"euler_maruyama": 1, "pc": 1, "dpmpp_sde": 2, "2m_midpoint": 2, "2m_heun": 2, "3m": 2, "3m_corrected": 2}
VARIANCES = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)  # coordinates are independent: an anisotropic Gaussian


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WEAK)
def test_weak_order(name, schedule):
    solver = stochastic.STOCHASTIC[name].replace(brownian=True, eta=0.5)
    solver = solver.replace(corrector_steps=0) if name == "pc" else solver
    assert solver.order == WEAK[name]
    exact = torch.stack(stochastic.exact_law(0.5, VARIANCES))
    for scaling in SCALINGS if name == "euler_maruyama" else ("none", "vp"):
        fewest = 64 if name.startswith("3m") else 32
        counts = [k * fewest + 1 for k in (1, 2, 4, 8)]
        laws = [torch.stack(stochastic.law(solver, n, schedule, scaling, VARIANCES)) for n in counts]
        a, b, c, d = ((law - exact).norm(dim=1).log2() for law in laws)
        mean, variance = (8 * (c - d) - 6 * (b - c) + (a - b)) / 3
        assert abs(variance - WEAK[name]) <= 0.03, variance
        if name.startswith("3m"):
            assert mean >= WEAK[name] - 0.03  # of the mean alone, as of the ODE
        else:
            assert abs(mean - WEAK[name]) <= 0.03, mean
