"""Multistep and exponential solvers: observed orders, weights against 20-digit integrals, limits, robustness."""

import itertools
import json
import math
from fractions import Fraction

import mpmath as mp
import pytest
import torch

import elucidiff as ed
import test_solvers as one
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.solvers.multistep import CONSTANT, adams_weights
from test_solvers import EXACT, F64, LATENTS, SCALINGS, SCHEDULES, reference

__all__ = ["reference"]  # a fixture

START = {"accurate_start": True}  # else the first steps' order shows in a run from 10 down
# solver, order of convergence, whether it sees the schedule (else sigma and x / s alone)
ORDERS = {
    "dpm2": (so.DPM2(), 2, True),
    "ab1": (so.AB(order=1), 1, True), "ab2": (so.AB(order=2), 2, True),
    "ab3": (so.AB(order=3, **START), 3, True), "ab4": (so.AB(order=4, **START), 4, True),
    "ipndm2": (so.IPNDM(order=2), 2, True), "ipndm3": (so.IPNDM(order=3), 2, True), "ipndm4": (so.IPNDM(order=4), 2, True),
    "deis1": (so.DEIS(order=1), 1, True), "deis2": (so.DEIS(order=2), 2, True), "deis3": (so.DEIS(order=3, **START), 3, True),
    "dpmpp_3m": (so.DPMpp3M(), 2, False), "dpmpp_3m corrected": (so.DPMpp3M(corrected=True, **START), 3, False),
    "unipc1": (so.UniPC(order=1), 2, False), "unipc2": (so.UniPC(order=2, **START), 3, False),
    "unipc2 bh1": (so.UniPC(order=2, B="bh1", **START), 3, False), "unipc3": (so.UniPC(order=3, **START), 4, False),
    "gaussian1": (so.GaussianExponential(order=1), 1, False), "gaussian2": (so.GaussianExponential(order=2), 2, False),
    "gaussian3": (so.GaussianExponential(order=3, sigma_data=0.8, **START), 3, False),
    "gaussian2 residual": (so.GaussianExponential(order=2, quantity="residual", variable="log"), 2, False),
    "gaussian3 slope": (so.GaussianExponential(order=3, quantity="slope", variable="sigma", **START), 3, False),
    "gaussian1 corrected": (so.GaussianExponential(order=1, sigma_data=0.8, corrector=True), 2, False),
    "gaussian2 corrected": (so.GaussianExponential(order=2, sigma_data=0.8, corrector=True, **START), 3, False),
}  # fmt: skip
SOLVERS = {name: solver for name, (solver, _, _) in ORDERS.items()} | {
    "spectrum": so.GaussianExponential(mean=(0.1, -0.3), spectrum=(0.4, 0.0)),
    "spectrum corrected": so.GaussianExponential(mean=(0.1, -0.3), spectrum=(0.4, 1.3), corrector=True),
    "ab4 plain": so.AB(), "deis3 plain": so.DEIS(), "unipc3 plain": so.UniPC(), "gaussian3 plain": so.GaussianExponential(),
}  # fmt: skip


def test_without_an_accurate_start_the_first_step_shows(reference):
    """As the module says: an error of order h^2 from 10 down, which `accurate_start` removes."""
    for solver in (so.AB(order=4), so.DPMpp3M(corrected=True)):
        sampler = ed.Sampler(solver=solver, sigma_min=one.LOW, sigma_max=one.HIGH)
        assert one.observed_order(sampler, reference)[2] < 2.5
        assert solver.replace(accurate_start=True).order == solver.order


def test_the_order_is_that_of_convergence():
    for name, (solver, order, _) in ORDERS.items():
        expected = solver.order
        if name.startswith("unipc") or (name.startswith("gaussian") and solver.corrector):
            expected += 1  # p of UniPC-p, which converges at p + 1
        if name.startswith("ipndm"):
            expected = min(expected, 2)
        assert expected == order, name


# weights: the whole run as a linear map of its D, against integrals of 20 digits

LEVELS = (40.0, 21.0, 9.0, 3.5, 1.2, 0.3, 0.05)


def unit_responses(solver, schedule="edm", scaling="none"):
    """x / s after each step with D = 1 at call k and 0 at the others, x = 0 at first: row i, column k."""
    calls, n = [], len(LEVELS)

    def unit(x, sigma):
        D = torch.zeros_like(x)
        if len(calls) < n:
            D[len(calls)] = 1
        calls.append(float(sigma))
        return D

    sampler = ed.Sampler(solver=solver, schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling],
                         timesteps=ts.Fixed(LEVELS), steps=n, to_zero=False)  # fmt: skip
    result = ed.sample(unit, sampler, latents=torch.zeros(n, 1, dtype=F64), record="x")
    s = SCALINGS[scaling].s(result.sigmas)
    return torch.stack([x[:, 0] / s_i for x, s_i in zip(result.trajectory.x, s, strict=True)])


def basis(nodes, j, u):
    return mp.fprod((u - m) / (nodes[j] - m) for i, m in enumerate(nodes) if i != j)


def integrals(kernel, u, nodes, a, b):
    """int_a^b kernel(sigma) L_j(u(sigma)) d sigma for each level of the nodes."""
    points = [u(sigma) for sigma in nodes]
    return [
        mp.quad(lambda s, j=j: kernel(s) * basis(points, j, u(s)), [a, mp.sqrt(a * b), b]) for j in range(len(nodes))
    ]


def responses(order, value, decay, weights, corrector=False, mean=0):
    """The same map by a plain recursion: x_next - m = decay(a, b) (x - m) + sum_j w_j value_j, w = weights(...)."""
    n, levels = len(LEVELS), [mp.mpf(s) for s in LEVELS]
    rows = [[mp.mpf(0)] * n]
    values, corrected = [], []
    x = rows[0]

    def advance(x, used, a, b):
        w = weights([levels[i] for i in used], a, b)
        return [
            mean + decay(a, b) * (x[k] - mean) + sum(w_j * values[i][k] for w_j, i in zip(w, used, strict=True))
            for k in range(n)
        ]

    for i in range(n - 1):
        values.append([value(mp.mpf(k == i), x[k], levels[i]) for k in range(n)])
        if corrector and i:
            used = [*range(i - 1, max(i - 1 - order, -1), -1), i]
            x = advance(corrected[-1], used, levels[i - 1], levels[i])
        corrected.append(x)
        x = advance(x, range(i, max(i - order, -1), -1), levels[i], levels[i + 1])
        rows.append(x)
    return torch.tensor([[float(v) for v in row] for row in rows], dtype=F64)


def D_itself(D, x, sigma):
    return D


def noise(D, x, sigma):
    return (x - D) / sigma


def newton(levels, a, b):
    """Of D extrapolated by the polynomial in ln sigma."""
    return integrals(lambda s: -b / s**2, mp.log, levels, a, b)


def shipped(levels, a, b):
    """The same with half the parabola's second derivative: tau^2 / 2 times it, tau = ln(a / sigma), lacks a factor 2."""
    w = newton(levels, a, b)
    if len(levels) == 3:
        u = [mp.log(s) for s in levels]
        half = mp.quad(lambda s: -b / s**2 * mp.log(a / s) ** 2, [a, mp.sqrt(a * b), b]) / 2
        curvature = [1 / mp.fprod(u[j] - m for i, m in enumerate(u) if i != j) for j in range(3)]  # D012
        w = [w_j - half * c for w_j, c in zip(w, curvature, strict=True)]
    return w


def two_m(levels, a, b):
    if len(levels) == 1:
        return [1 - b / a]
    r = mp.log(levels[1] / a) / mp.log(a / b)
    return [(1 - b / a) * (1 + 1 / (2 * r)), -(1 - b / a) / (2 * r)]


def unipc(variant):
    """R a B(h) = g of the paper, solved here; one unknown alone is 1/2."""

    def weights(levels, a, b):
        h = mp.log(a / b)
        B, r = (h if variant == "bh1" else 1 - mp.exp(-h)), [mp.log(a / s) / h for s in levels[1:]]
        n = len(r)
        system = mp.matrix([[r_m**k for r_m in r] for k in range(n)]) if n else None
        g = [mp.quad(lambda tau, k=k: mp.exp(tau - h) * tau**k, [0, h]) / h**k / B for k in range(1, n + 1)]
        solution = [] if n == 0 else [mp.mpf(1) / 2] if n == 1 else list(mp.lu_solve(system, mp.matrix(g)))
        others = [B * a_m / r_m for a_m, r_m in zip(solution, r, strict=True)]
        return [1 - b / a - sum(others), *others]

    return weights


V, M = mp.mpf("0.49"), mp.mpf("0.3")


def residual(D, x, sigma):
    return D - M - V / (V + sigma**2) * (x - M)


def gaussian(share, u):
    def q(s):
        return mp.sqrt(V + s**2)

    def weights(levels, a, b):
        w = integrals(lambda s: -q(b) / (s * q(s)) * share(s), u, levels, a, b)
        return [w_j / share(s) for w_j, s in zip(w, levels, strict=True)]

    return weights


def root(s):
    return mp.sqrt(V + s**2)


KNOWN = {
    ("residual", "log"): gaussian(lambda s: 1, mp.log),
    ("natural", "natural"): gaussian(lambda s: s / root(s), lambda s: mp.asinh(s / mp.sqrt(V))),
    ("slope", "sigma"): gaussian(lambda s: s, lambda s: s),
}
TIME_OF = {
    "ve": lambda s: s**2,
    "vp": lambda s: (mp.sqrt(mp.mpf(0.1) ** 2 + 2 * mp.mpf(19.9) * mp.log1p(s**2)) - mp.mpf(0.1)) / mp.mpf(19.9),
    "flow": lambda s: s / (1 + s),
}


CASES = {}  # solver, schedule, arguments of `responses`


def shrink(a, b):
    return b / a


def stay(a, b):
    return 1


def one_(sigma):
    return 1


for k in (1, 2, 3, 4):
    CASES[f"ab{k}"] = so.AB(order=k), "edm", (k, noise, stay, lambda n, a, b: integrals(one_, lambda s: s, n, a, b))
for k in (1, 2, 3):
    for schedule, t in TIME_OF.items():
        polynomials = lambda n, a, b, t=t: integrals(one_, t, n, a, b)  # noqa: E731
        CASES[f"deis{k} {schedule}"] = so.DEIS(order=k), schedule, (k, noise, stay, polynomials)
    for B in ("bh1", "bh2"):
        CASES[f"unipc{k} {B}"] = so.UniPC(order=k, B=B), "vp", (k, D_itself, shrink, unipc(B), True)
    for (quantity, variable), weights in KNOWN.items():
        for corrector in (False, True):
            solver = so.GaussianExponential(order=k, sigma_data=0.7, mean=(0.3,), quantity=quantity, variable=variable,
                                            corrector=corrector)  # fmt: skip
            arguments = (k, residual, lambda a, b: root(b) / root(a), weights, corrector, M)
            CASES[f"gaussian{k} {quantity}{' corrected' * corrector}"] = solver, "flow", arguments
CASES["dpmpp_2m"] = so.DPMpp2M(), "vp", (2, D_itself, shrink, two_m)
CASES["dpmpp_3m"] = so.DPMpp3M(), "vp", (3, D_itself, shrink, shipped)
CASES["dpmpp_3m corrected"] = so.DPMpp3M(corrected=True), "vp", (3, D_itself, shrink, newton)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_the_integral_it_stands_for(case):
    solver, schedule, arguments = CASES[case]
    with mp.workdps(20):
        expected = responses(*arguments)
    own = unit_responses(solver, schedule, schedule if schedule in SCALINGS else "none")
    assert (own - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_constant_weights_are_those_of_equal_steps(k):
    """Exactly, in fractions: the polynomial of node j, multiplied out and integrated over one step ahead."""
    for j in range(k):
        coefficients = [Fraction(1)]  # of powers of tau, nodes at 0, -1, -2, ...
        for m in range(k):
            if m != j:
                shifted = [Fraction(0), *coefficients]
                scaled = [m * c for c in coefficients] + [Fraction(0)]
                coefficients = [(a + b) / (m - j) for a, b in zip(shifted, scaled, strict=True)]
        integral = sum(c / (i + 1) for i, c in enumerate(coefficients))
        assert CONSTANT[k - 1][j] == float(integral)
        assert adams_weights(tuple(-float(i) for i in range(k)), 1.0)[j] == pytest.approx(float(integral), abs=1e-15)


# equivalences and invariances


def run(solver, schedule="edm", scaling="none", **choices):
    sampler = ed.Sampler(solver=solver, schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], **choices)
    return ed.sample(EXACT, sampler, latents=LATENTS).x


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adams_bashforth_of_order_1_is_euler(schedule):
    for other in (so.AB(order=1), so.IPNDM(order=1)):
        assert (run(other, schedule, "vp") - run(so.Euler(), schedule, "vp")).abs().max() <= 1e-12


def test_the_first_order_exponential_solvers_are_ddim():
    ddim = run(so.Euler())
    for solver in (so.DEIS(order=1), so.GaussianExponential(order=1, sigma_data=1e-9)):
        assert (run(solver) - ddim).abs().max() <= 1e-12


@pytest.mark.parametrize("k", [2, 3, 4])
def test_on_equal_steps_ipndm_is_adams_bashforth(k):
    equal = ts.Fixed(tuple(float(s) for s in range(12, 0, -1)))
    a, b = (run(solver, timesteps=equal, steps=12) for solver in (so.AB(order=k), so.IPNDM(order=k)))
    assert (a - b).abs().max() <= 1e-12


@pytest.mark.parametrize("k", [1, 2, 3])
def test_deis_is_adams_bashforth_where_time_is_sigma(k):
    assert (run(so.DEIS(order=k), steps=9) - run(so.AB(order=k), steps=9)).abs().max() <= 1e-12


def test_deis_does_not_depend_on_the_scaling():
    expected = run(so.DEIS(), "vp")
    for scaling in SCALINGS:
        assert (run(so.DEIS(), "vp", scaling) - expected).abs().max() <= 1e-12


IN_SIGMA = [name for name in SOLVERS if name.startswith(("dpmpp", "unipc", "gaussian", "spectrum"))]


@pytest.mark.parametrize("name", IN_SIGMA)
def test_solvers_in_sigma_do_not_depend_on_schedule_and_scaling(name):
    solver = SOLVERS[name]
    if solver.to_dict().get("accurate_start"):  # RK4's steps do depend
        solver = solver.replace(accurate_start=False)
    expected = run(solver, steps=10)
    for schedule in SCHEDULES:
        for scaling in SCALINGS:
            assert (run(solver, schedule, scaling, steps=10) - expected).abs().max() <= 1e-12


def test_dpm2_steps_over_the_geometric_mean():
    sigmas, x = ts.EDM()(7, 0.002, 80).tolist(), 80 * LATENTS
    for a, b in itertools.pairwise(sigmas):
        d = (x - one.denoise(x, a)) / a
        if b:
            middle = math.sqrt(a * b)
            x_mid = x + (middle - a) * d
            d = (x_mid - one.denoise(x_mid, middle)) / middle
        x = x + (b - a) * d
    assert (run(so.DPM2(), steps=7) - x).abs().max() <= 1e-12


# the solver that knows the Gaussian part

PAIR = [("residual", "log"), ("natural", "natural"), ("slope", "sigma")]


@pytest.mark.parametrize(("quantity", "variable"), PAIR[:2])
def test_no_variance_gives_dpmpp(quantity, variable):
    tiny = {"sigma_data": 1e-8, "quantity": quantity, "variable": variable}
    exact = run(so.DPMpp3M(corrected=True), sigma_min=0.02)
    assert (run(so.GaussianExponential(order=3, **tiny), sigma_min=0.02) - exact).abs().max() <= 1e-10
    predictor_corrector = run(so.UniPC(order=3), sigma_min=0.02)  # they differ in the first correction and second step
    own = run(so.GaussianExponential(order=3, corrector=True, **tiny), sigma_min=0.02)
    assert (own - predictor_corrector).abs().max() <= 0.05


@pytest.mark.parametrize(("quantity", "variable"), PAIR[1:])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_infinite_variance_gives_adams_bashforth(quantity, variable, order):
    huge = so.GaussianExponential(order=order, sigma_data=1e5, quantity=quantity, variable=variable)
    errors = [(run(s, sigma_max=10.0) - run(so.AB(order=order), sigma_max=10.0)).abs().max()
              for s in (huge, huge.replace(sigma_data=1e6))]  # fmt: skip
    assert errors[0] <= 1e-7 and errors[1] <= 2e-9  # as 1 / v


MEAN, SPECTRUM = (0.3, -0.5, 0.1), (0.25, 1.0, 0.01)
GAUSSIAN = ed.GaussianDenoiser(torch.tensor(MEAN, dtype=F64), torch.tensor(SPECTRUM, dtype=F64))
Z = LATENTS[:12].reshape(8, 3)


@pytest.mark.parametrize("steps", [2, 3, 5, 18])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize(("quantity", "variable"), PAIR)
@pytest.mark.parametrize("order", [1, 3])
def test_a_gaussian_is_exact_in_any_number_of_steps(order, quantity, variable, corrector, steps):
    solver = so.GaussianExponential(order=order, mean=MEAN, spectrum=SPECTRUM, quantity=quantity, variable=variable,
                                    corrector=corrector)  # fmt: skip
    sampler = ed.Sampler(schedule=fm.VP(), scaling=fm.VariancePreserving(), solver=solver, steps=steps)
    result = ed.sample(GAUSSIAN, sampler.replace(to_zero=False), latents=Z)
    low, high = result.sigmas[-1], result.sigmas[0]
    variance = torch.tensor(SPECTRUM, dtype=F64)
    closed = GAUSSIAN.mean + (high * Z - GAUSSIAN.mean) * ((variance + low**2) / (variance + high**2)).sqrt()
    assert (result.x / sampler.scaling.s(low) - closed).abs().max() <= 1e-12
    with_zero = ed.sample(GAUSSIAN, sampler.replace(steps=steps), latents=Z).x
    assert (with_zero - GAUSSIAN(closed, low)).abs().max() <= 1e-12


def test_a_gaussian_of_one_variance_needs_no_spectrum():
    white = ed.GaussianDenoiser(torch.zeros(3, dtype=F64), 0.49)
    sampler = ed.Sampler(solver=so.GaussianExponential(sigma_data=0.7), steps=2, to_zero=False)
    closed = 80 * Z * math.sqrt((0.49 + 0.002**2) / (0.49 + 80**2))
    assert (ed.sample(white, sampler, latents=Z).x - closed).abs().max() <= 1e-12


@pytest.mark.parametrize("corrector", [False, True])
def test_a_spectrum_is_one_variance_for_each_coordinate(corrector):
    """On samples of shape (1, 2), with a denoiser that does not mix the coordinates."""

    def denoise(x, sigma):
        return torch.tanh(x / (1 + sigma**2))

    def own(**known):
        sampler = ed.Sampler(solver=so.GaussianExponential(corrector=corrector, **known), steps=7)
        return ed.sample(denoise, sampler, latents=LATENTS[:, None]).x

    both = own(spectrum=(0.3, 1.7), mean=(0.2, -0.4))
    for i, (v, m) in enumerate([(0.3, 0.2), (1.7, -0.4)]):
        alone = own(sigma_data=math.sqrt(v), mean=(m,))
        assert (both - alone)[..., i].abs().max() <= 1e-12


def test_the_state_keeps_its_dtype():
    for solver in SOLVERS.values():
        x = ed.sample(EXACT, ed.Sampler(solver=solver, steps=4), latents=LATENTS, dtype=torch.float32).x
        assert x.dtype == torch.float32
        assert (x - run(solver, steps=4)).abs().max() <= 1e-3


def test_gradients_pass():
    for name, solver in SOLVERS.items():
        z = LATENTS.clone().requires_grad_()
        ed.sample(EXACT, ed.Sampler(solver=solver, steps=4), latents=z, grad=True).x[0, 0].backward()
        step = torch.zeros_like(LATENTS)
        step[0, 1] = 1e-6
        a, b = (
            ed.sample(EXACT, ed.Sampler(solver=solver, steps=4), latents=LATENTS + d).x[0, 0] for d in (step, -step)
        )
        assert z.grad[0, 1].item() == pytest.approx(((a - b) / 2e-6).item(), rel=1e-5, abs=1e-8), name


# ends, counts, noise


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_network_evaluations(name, n):
    calls = []

    def count(x, sigma):
        calls.append(float(sigma))
        return x / 2

    solver = SOLVERS[name]
    expected = 2 * n - 1 if name == "dpm2" else n
    if solver.to_dict().get("accurate_start"):
        expected += 3 * min(2 if solver.kind == "dpmpp_3m" else solver.order - 1, n - 1)  # RK4's for Euler's
    result = ed.sample(count, ed.Sampler(solver=solver, steps=n), seeds=[0], shape=(2,))
    assert (result.nfe, len(calls)) == (expected, expected)
    assert min(calls) >= 0.002 and result.x.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_last_step_ends_in_D(name, n):
    sampler = ed.Sampler(solver=SOLVERS[name], steps=n)
    result = ed.sample(EXACT, sampler, latents=LATENTS, record="x")
    x, low = result.trajectory.x[-2], result.sigmas[-2].item()
    if not getattr(SOLVERS[name], "corrector", False):  # which moves D by the gain times the last correction
        assert (result.x - one.denoise(x, low)).abs().max() <= (1e-12 if n > 1 else 1e-11)
    if n > 1:
        until = ed.sample(EXACT, sampler.replace(to_zero=False), latents=LATENTS)
        assert until.sigmas[-1] == low and torch.equal(until.x, x)


NOISE = [so.Churn(S_churn=40), so.Churn(S_churn=3, S_noise=1.01), so.Churn(S_churn=40, S_min=0.05, S_max=1),
         so.Ancestral(), so.Ancestral(eta=0.5)]  # fmt: skip


@pytest.mark.parametrize("schedule", ["edm", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_noise_does_not_upset_them(name, schedule):
    """Churn can lift a level above that of the past: nothing may blow up. Data lie within 3; 3 steps are rough."""
    for noise_ in NOISE:
        for steps, bound in ((3, 50), (9, 250), (40, 6)):  # 191 for unipc2 bh1, the rest below 20 in 9
            choices = {
                "schedule": SCHEDULES[schedule],
                "scaling": SCALINGS["vp"],
                "stochasticity": noise_,
                "steps": steps,
            }
            x = ed.sample(EXACT, ed.Sampler(solver=SOLVERS[name], **choices), seeds=range(36), shape=(2,)).x
            assert x.isfinite().all() and x.abs().max() <= bound


def test_a_step_after_noise_is_not_corrected():
    """With churn at every step UniPC-1 has no predicted state to correct and is Euler's method."""
    a, b = (
        ed.sample(EXACT, ed.Sampler(solver=s, stochasticity=so.Churn(S_churn=5)), seeds=range(36), shape=(2,)).x
        for s in (so.UniPC(order=1), so.Euler())
    )
    assert (a - b).abs().max() <= 1e-12
    assert (run(so.UniPC(order=1)) - run(so.Euler())).abs().max() >= 1e-3


@pytest.mark.parametrize("name", SOLVERS)
def test_without_noise_churn_is_the_ode_bit_for_bit(name):
    plain = ed.Sampler(solver=SOLVERS[name], steps=7)
    expected = ed.sample(EXACT, plain, seeds=range(36), shape=(2,)).x
    for still in (so.Churn(S_churn=0), so.Ancestral(eta=0)):
        x = ed.sample(EXACT, plain.replace(stochasticity=still), seeds=range(36), shape=(2,)).x
        assert torch.equal(x, expected)


# values


@pytest.mark.parametrize("name", SOLVERS)
def test_json_round_trip(name):
    sampler = ed.Sampler(solver=SOLVERS[name])
    again = ed.Sampler.from_dict(json.loads(json.dumps(sampler.to_dict())))
    assert again == sampler
    assert torch.equal(*(ed.sample(EXACT, s, latents=LATENTS).x for s in (sampler, again)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: so.AB(order=5), "1 to 4"), (lambda: so.IPNDM(order=0), "1 to 4"), (lambda: so.DEIS(order=4), "1 to 3"),
        (lambda: so.UniPC(order=4), "1 to 3"), (lambda: so.UniPC(B="bh3"), "bh1"),
        (lambda: so.GaussianExponential(order=0), "1 to 3"), (lambda: so.GaussianExponential(sigma_data=0), "sigma_data"),
        (lambda: so.GaussianExponential(spectrum=(-1.0,)), "spectrum"), (lambda: so.GaussianExponential(spectrum=()), "spectrum"),
        (lambda: so.GaussianExponential(quantity="x"), "slope"), (lambda: so.GaussianExponential(variable="t"), "log"),
        (lambda: run(so.GaussianExponential(spectrum=(1.0, 2.0, 3.0))), "3 numbers"),
        (lambda: run(so.GaussianExponential(mean=(1.0, 2.0, 3.0))), "3 numbers"),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_every_solver_has_its_citation():
    from elucidiff.citations import BIBTEX

    for solver in SOLVERS.values():
        assert solver.references and set(solver.references) <= set(BIBTEX)
