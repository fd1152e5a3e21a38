"""Stochastic solvers and rk45: Brownian paths, weak and strong orders, statistics (N4), independence of the batch (N8)."""

import itertools
import math

import pytest
import torch

import elucidiff as ed
from elucidiff import brownian as br
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.citations import BIBTEX
from elucidiff.networks import MLP
from elucidiff.solvers.adaptive import dormand_prince
from elucidiff.solvers.run import Run

F64 = torch.float64
SCHEDULES = {
    "edm": fm.EDM(), "ve": fm.VE(), "vp": fm.VP(), "cosine": fm.Cosine(), "flow": fm.Flow(),
    "table": fm.Table((1 / (1 + 0.0005**2), 1 / (1 + 90.0**2))),
}  # fmt: skip
SCALINGS = {"none": fm.Unscaled(), "vp": fm.VariancePreserving(), "flow": fm.FlowScaling()}
STOCHASTIC = {
    "euler_maruyama": so.EulerMaruyama(), "pc": so.PC(), "pc_2": so.PC(corrector_steps=2, r=0.1), "dpmpp_sde": so.DPMppSDE(),
    "2m_midpoint": so.DPMpp2MSDE(), "2m_heun": so.DPMpp2MSDE(variant="heun"),
    "3m": so.DPMpp3MSDE(), "3m_corrected": so.DPMpp3MSDE(corrected=True),
}  # fmt: skip
EXPONENTIAL = [name for name in STOCHASTIC if name[:2] in ("dp", "2m", "3m")]

MEANS = torch.tensor([[-0.8, 0.3], [0.9, -0.4], [0.1, 0.8]], dtype=F64)
VARIANCES = torch.tensor([[0.3, 0.3], [0.2, 0.5], [0.1, 0.2]], dtype=F64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=F64)


def mixture(x, sigma):
    """The exact D of a mixture of three Gaussians of pairs, x (..., 2)."""
    variance, offset = VARIANCES + sigma**2, x[..., None, :] - MEANS
    share = (WEIGHTS.log() - 0.5 * (offset**2 / variance + variance.log()).sum(-1)).softmax(-1)
    return (share[..., None] * (MEANS + VARIANCES / variance * offset)).sum(-2)


# Brownian paths


def test_increments_add_up():
    path, points = br.Brownian([3, 2**40], (5,)), torch.linspace(-6.2, 4.4, 40, dtype=F64).tolist()
    for a, b, c in zip(points, points[7:], points[20:], strict=False):
        whole = path.at(c) - path.at(a)
        assert (whole - (path.at(b) - path.at(a)) - (path.at(c) - path.at(b))).abs().max() <= 1e-12
        lengths = math.sqrt(b - a), math.sqrt(c - b)
        parts = lengths[0] * path.increment(a, b) + lengths[1] * path.increment(b, c)
        assert (path.increment(a, c) * math.sqrt(c - a) - parts).abs().max() <= 1e-12


def test_a_path_does_not_depend_on_the_order_of_queries():
    points = torch.linspace(-63.9, 63.9, 50, dtype=F64).tolist()
    path = br.Brownian([7], (3,))
    forward = [path.at(u) for u in points]
    for order in (list(reversed(range(50))), torch.randperm(50).tolist()):
        other = br.Brownian([7], (3,))
        for i in order:
            assert torch.equal(other.at(points[i]), forward[i])


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (3, 8, 8)])
def test_a_path_depends_on_its_seed_alone(shape):
    seeds = [5, 0, 2**63 - 1, 5, 17]
    together = br.Brownian(seeds, shape).increment(1.0, -2.3)
    assert together.shape == (5, *shape) and together.dtype == F64
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(br.Brownian([seed], shape).increment(1.0, -2.3)[0], row)
    assert not torch.equal(together[0], together[1])


def test_the_variance_of_an_increment_is_its_length_and_disjoint_ones_are_independent():
    points = [4.0, 3.7, 2.1, 2.05, 2.0, 0.3, -0.001, -1.0, -6.2]  # 2.1 to 2.0: neighbouring cells
    path, n = br.Brownian(range(4), (25_000,)), 100_000
    z = torch.stack([path.increment(a, b) for a, b in itertools.pairwise(points)]).reshape(8, -1)
    assert z.mean(1).abs().max() * math.sqrt(n) <= 4
    assert (z.var(1) - 1).abs().max() * math.sqrt(n / 2) <= 4
    assert ((z**4).mean(1) - 3).abs().max() * math.sqrt(n / 96) <= 4
    assert (torch.corrcoef(z) - torch.eye(8)).abs().max() * math.sqrt(n) <= 4
    assert torch.corrcoef(z.reshape(8, 4, -1)[3]).shape == (4, 4)
    assert (torch.corrcoef(z[3].reshape(4, -1)) - torch.eye(4)).abs().max() * math.sqrt(n / 4) <= 4


def test_increments_are_stationary():
    """The same law everywhere on the clock and for every length of at least a cell."""
    path, n = br.Brownian([1], (50_000,)), 50_000
    for start in (-60.0, -7.77, -0.5, 3.2, 50.1):
        for length in (1 / 32, 0.1, 0.77, 9.0):
            z = path.increment(start + length, start)
            assert abs(z.mean().item()) * math.sqrt(n) <= 4 and abs(z.var().item() - 1) * math.sqrt(n / 2) <= 4


def test_steps_shorter_than_a_cell_keep_the_variance_of_an_integral():
    """Integral of e^u dW over three cells in 300 steps, as documented: to 3e-4 of itself, here within 4 standard errors."""
    path, n = br.Brownian(range(4), (25_000,)), 100_000
    points = torch.linspace(0.5, 0.5 - 3 / 32, 301, dtype=F64).tolist()
    total = sum(math.exp(a + b) * (path.at(b) - path.at(a)) for a, b in itertools.pairwise(points))
    expected = (math.exp(4 * points[0]) - math.exp(4 * points[-1])) / 4
    assert abs(total.var().item() / expected - 1) * math.sqrt(n / 2) <= 4


def test_the_path_is_continuous_and_its_ends_are_refused():
    path = br.Brownian([2], (100,))
    assert (path.at(0.3) - path.at(0.3 + 1e-12)).abs().max() <= 1e-9
    assert (path.at(0.25) - path.at(0.25 - 1e-14)).abs().max() <= 1e-6  # at the border of two cells
    assert path.at(-64.0).abs().max() == 0
    for bad in (64.0, -64.1, math.inf):
        with pytest.raises(ValueError, match="expected a number from -64 to 64"):
            path.at(bad)


def test_the_numbers_of_a_path_do_not_change():
    """Pictures are told by their seeds: a later release must draw the same path (float32 erfinv may differ in a bit)."""
    expected = torch.tensor(GOLDEN, dtype=F64)
    assert (br.Brownian([0, 123], (2,)).increment(math.log(80), math.log(0.5)) - expected).abs().max() <= 1e-5


GOLDEN = [[-0.91879, 0.6896281], [0.251746, -0.2128149]]


def test_the_noise_of_a_run_is_that_of_the_path():
    seen = []

    class Spy(so.Solver):
        draws = True

        def step(self, run, x, t, t_next):
            if run.sigma(t_next) > 0:
                seen.append(run.increment(x, t, t_next))
            return x

    sampler = ed.Sampler(solver=Spy(), steps=4, schedule=fm.VP(), scaling=fm.VariancePreserving())
    ed.sample(mixture, sampler, seeds=[4, 9], shape=(3, 2))
    path = br.Brownian([4, 9], (3, 2))
    logs = sampler.sigmas()[:-1].log().tolist()
    for z, (a, b) in zip(seen, itertools.pairwise(logs), strict=True):
        assert torch.equal(z, path.increment(a, b))
    spied = ed.sample(mixture, sampler, seeds=[4, 9], shape=(3, 2), dtype=torch.float32)
    assert spied.x.dtype == torch.float32 and seen[-1].dtype == torch.float32


def test_noise_that_is_spent_is_not_used_again():
    """After a churn the coming step overlaps the last one on the clock: it gets fresh noise."""
    sampler = ed.Sampler(solver=so.DPMppSDE(brownian=True), steps=6, stochasticity=so.Churn(S_churn=2.0))
    calls = []
    fresh, between = Run.fresh_noise, br.Brownian.increment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "fresh_noise", lambda self, x: calls.append("fresh") or fresh(self, x))
        patch.setattr(br.Brownian, "increment", lambda self, a, b: calls.append("path") or between(self, a, b))
        assert ed.sample(mixture, sampler, seeds=[0], shape=(2,)).x.isfinite().all()
        churned = list(calls)
        calls.clear()
        ed.sample(mixture, sampler.replace(stochasticity=so.Deterministic()), seeds=[0], shape=(2,))
    # a step: churn, then two halves; the first half of a step starts above the last one's end
    assert churned[:3] == ["fresh", "path", "path"] and churned[3:5] == ["fresh", "fresh"] and len(churned) == 16
    assert calls == ["path"] * 10


# the law of a linear problem, exactly, by unit impulses instead of random numbers; tests/test_orders.py has the orders

V, LOW, HIGH = 0.5, 0.1, 10.0


def law(solver, steps, schedule="edm", scaling="none", V=V):
    """(mean, variance) of x / s at LOW of a run on N(0, V) from x / s = HIGH, for each of the variances V.

    Row 0 is the run without noise, row j has impulse j.
    """
    sampler = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], solver=solver, steps=steps,
                         sigma_min=LOW, sigma_max=HIGH, to_zero=False)  # fmt: skip
    V = torch.as_tensor(V, dtype=F64).reshape(-1)
    levels = sampler.sigmas().tolist()
    cuts = sorted({*levels, *(math.sqrt(a * b) for a, b in itertools.pairwise(levels))}, reverse=True)
    logs = torch.tensor(cuts, dtype=F64).log()
    lengths = logs[:-1] - logs[1:]

    def impulses(self, x, a, b):
        i, j = ((logs - math.log(level)).abs().argmin().item() for level in (a, b))
        z = torch.zeros_like(x)
        z[1 + i : 1 + j] = (lengths[i:j] / lengths[i:j].sum()).sqrt()[:, None]
        return z

    start = torch.zeros(len(cuts), len(V), dtype=F64)
    start[0] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "noise_between", impulses)
        x = ed.sample(lambda x, s: V / (V + s**2) * x, sampler, latents=start, seeds=range(len(cuts))).x
    x = x / sampler.scaling.s(levels[-1])
    return x[0], (x[1:] ** 2).sum(0)


def exact_law(eta, V=V):
    """d x / d lambda = -(1 + eta) sigma^2 / (V + sigma^2) x + noise, from x = HIGH."""
    V = torch.as_tensor(V, dtype=F64).reshape(-1)
    shrink = ((V + LOW**2) / (V + HIGH**2)) ** (1 + eta)
    return HIGH * shrink.sqrt(), (V + LOW**2) * (1 - shrink ** (eta / (1 + eta)))


@pytest.mark.parametrize("name", ["pc", "dpmpp_sde", "2m_midpoint", "2m_heun", "3m", "3m_corrected"])
def test_with_eta_1_the_mean_is_exact_at_any_number_of_steps(name):
    """D is a martingale along the reverse SDE, so that D at the step's beginning is all the mean needs."""
    solver = STOCHASTIC[name].replace(brownian=True)
    solver = solver.replace(corrector_steps=0) if name == "pc" else solver
    for steps in (2, 5, 20):
        assert law(solver, steps)[0].item() == pytest.approx(exact_law(1.0)[0].item(), rel=1e-12)


def test_with_noise_of_its_own_in_the_middle_dpmpp_sde_is_of_weak_order_1():
    """What the documentation says of the version without shared noise."""

    class Separate(so.DPMppSDE):
        def step(self, run, x, t, t_next):
            a, b = run.sigma(t), run.sigma(t_next)
            c, half = math.sqrt(a * b), math.log(a / b) / 2
            decay = math.exp(-2 * half)
            D_mid = run.denoise_at(decay * x + (1 - decay) * run.denoise(x, t), c)  # a noise that nothing else sees
            return decay**2 * x + (1 - decay**2) * D_mid + b * math.sqrt(1 - decay**2) * run.noise_between(x, a, b)

    errors = [math.log2(abs(law(Separate(brownian=True), n)[1] - exact_law(1.0)[1])) for n in (65, 129, 257)]
    assert 2 * (errors[1] - errors[2]) - (errors[0] - errors[1]) == pytest.approx(1, abs=0.1)


# strong order, on one Brownian path


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if not name.startswith("pc")])
def test_more_steps_on_the_same_path_give_nearly_the_same_samples(name, monkeypatch):
    """Strong order 1: the noise is additive. The cells are made finer than the steps, to see Brownian motion there."""
    monkeypatch.setattr(br, "DEPTH", 18)
    sampler = ed.Sampler(solver=STOCHASTIC[name].replace(brownian=True), sigma_min=LOW, sigma_max=HIGH, to_zero=False)
    xs = [
        ed.sample(mixture, sampler.replace(steps=n + 1), seeds=[5], shape=(2000, 2)).x for n in (16, 32, 64, 128, 256)
    ]
    distances = [(a - b).square().mean().sqrt().log2().item() for a, b in itertools.pairwise(xs)]
    assert (distances[0] - distances[3]) / 3 == pytest.approx(1, abs=0.2)
    fresh = sampler.replace(solver=STOCHASTIC[name])
    a, b = (ed.sample(mixture, fresh.replace(steps=n), seeds=[5], shape=(2000, 2)).x for n in (129, 257))
    assert math.log2((a - b).square().mean().sqrt().item()) > distances[3] + 4  # without the path: other samples


@pytest.mark.parametrize("name", ["dpmpp_sde", "2m_midpoint"])
def test_the_path_does_not_depend_on_schedule_scaling_and_rule(name):
    """The same seed under other time steps: near, as with more steps of the same rule."""
    solver = STOCHASTIC[name].replace(brownian=True)
    a = ed.sample(mixture, ed.Sampler(solver=solver, steps=128), seeds=[1], shape=(500, 2)).x
    other = ed.Sampler(
        solver=solver, steps=150, timesteps=ts.LogSNR(), schedule=fm.VP(), scaling=fm.VariancePreserving()
    )
    b = ed.sample(mixture, other, seeds=[1], shape=(500, 2)).x
    assert (a - b).square().mean().sqrt() <= 0.05 < 0.5 < a.std()


# N4: 100,000 samples as two of shape (50000, 2)

MEAN = torch.tensor([0.3, -0.2], dtype=F64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
EIGENVALUES, EIGENVECTORS = torch.linalg.eigh(COV)


def gaussian_of_pairs(x, sigma):
    return MEAN + ((x - MEAN) @ EIGENVECTORS * (EIGENVALUES / (EIGENVALUES + sigma**2))) @ EIGENVECTORS.T


def worst_z(x):
    """The largest deviation of mean and covariance from MEAN and COV, in standard errors."""
    x = x.reshape(-1, 2)
    n, variance = len(x), COV.diag()
    mean = (x.mean(0) - MEAN) / (variance / n).sqrt()
    error = ((COV**2 + variance[:, None] * variance) / n).sqrt()  # of a Gaussian's sample covariance
    return max(mean.abs().max().item(), ((x.T.cov() - COV) / error).abs().max().item())


@pytest.mark.parametrize(
    ("solver", "steps", "schedule", "scaling"),
    [
        (so.EulerMaruyama(), 384, "edm", "none"),
        (so.EulerMaruyama(eta=0.5), 384, "vp", "vp"),
        (so.PC(), 256, "flow", "flow"),
        (so.DPMppSDE(), 128, "edm", "none"),
        (so.DPMpp2MSDE(), 96, "edm", "none"),
        (so.DPMpp2MSDE(brownian=True), 384, "vp", "vp"),  # most steps are shorter than a cell of the path
        (so.DPMpp2MSDE(variant="heun", eta=0.3), 128, "edm", "none"),
        (so.DPMpp3MSDE(), 96, "edm", "none"),
        (so.DPMpp3MSDE(corrected=True, brownian=True), 96, "edm", "none"),
    ],
    ids=str,
)
def test_mean_and_covariance_of_100_000_samples(solver, steps, schedule, scaling):
    sampler = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], solver=solver, steps=steps,
                         sigma_min=0.02, sigma_max=80.0)  # fmt: skip
    x = ed.sample(gaussian_of_pairs, sampler, seeds=[0, 1], shape=(50_000, 2)).x
    assert worst_z(x) <= 4


@pytest.mark.parametrize("name", STOCHASTIC)
def test_mean_and_covariance_of_a_mixture(name):
    sampler = ed.Sampler(solver=STOCHASTIC[name], steps=120 if name.startswith(("eul", "pc")) else 80, sigma_min=0.02)
    x = ed.sample(mixture, sampler, seeds=[3], shape=(10_000, 2)).x[0]
    mean = WEIGHTS @ MEANS
    cov = torch.diag(WEIGHTS @ VARIANCES) + (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean))
    assert ((x.mean(0) - mean) / (cov.diag() / len(x)).sqrt()).abs().max() <= 4
    assert (x.T.cov() - cov).abs().max() <= 0.05


# eta = 0


def end_of(solver, n=12, **elements):
    """All states of a run; one that ends at sigma_min."""
    sampler = ed.Sampler(solver=solver, steps=n, to_zero=False, sigma_min=0.01, **elements)
    return ed.sample(mixture, sampler, seeds=[1, 2], shape=(20, 2), record="x").trajectory.x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("stochastic", "plain"),
    [
        (so.EulerMaruyama(eta=0), so.Euler()),
        (so.DPMpp2MSDE(eta=0), so.DPMpp2M()),
        (so.DPMpp3MSDE(eta=0), so.DPMpp3M()),
        (so.DPMpp3MSDE(eta=0, corrected=True), so.DPMpp3M(corrected=True)),
    ],
    ids=lambda s: s.kind,
)
def test_eta_0_is_the_solver_of_the_ode(stochastic, plain, schedule, scaling):
    elements = {"schedule": SCHEDULES[schedule], "scaling": SCALINGS[scaling]}
    a, b = end_of(stochastic, **elements), end_of(plain, **elements)
    assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max().item())


def test_eta_0_and_no_corrector_is_euler_in_the_square_of_sigma():
    a, b = end_of(so.PC(eta=0, corrector_steps=0)), end_of(so.Euler(), schedule=fm.VE())
    assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_eta_0_of_dpmpp_sde_is_dpmpp_2s():
    """Algorithm 1 of Lu et al. with r = 1/2, alpha = 1."""
    states = end_of(so.DPMppSDE(eta=0))
    levels = ed.Sampler(steps=12, sigma_min=0.01).sigmas()[:-1].tolist()
    x = states[0]
    for (a, b), expected in zip(itertools.pairwise(levels), states[1:], strict=True):
        h, c = math.log(a / b), math.sqrt(a * b)
        u = c / a * x - math.expm1(-h / 2) * mixture(x, a)
        x = b / a * x - math.expm1(-h) * mixture(u, c)
        assert (x - expected).abs().max() <= 1e-12 * max(1.0, x.abs().max().item())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_without_noise_no_seed_matters(name):
    still = STOCHASTIC[name].replace(S_noise=0)
    latents = torch.randn(2, 3, 2, dtype=F64)
    a, b = (ed.sample(mixture, ed.Sampler(solver=still), latents=latents, seeds=s).x for s in ([0, 1], [2, 3]))
    if name.startswith("pc"):  # the Langevin steps' lengths hold |z|
        assert (a - b).abs().max() <= 1
    else:
        assert torch.equal(a, b)


# formulas


def test_one_step_of_the_exponential_solvers_is_the_closed_form():
    """With D = c constant the SDE is linear and every one of them solves it exactly: x_next is known."""
    eta, a, b, c = 0.7, 3.0, 0.5, 0.25
    sampler = ed.Sampler(timesteps=ts.Fixed((a, b)), steps=2, to_zero=False)
    for name in EXPONENTIAL:
        solver = STOCHASTIC[name].replace(eta=eta, S_noise=1.01, brownian=True)
        result = ed.sample(lambda x, s: torch.full_like(x, c), sampler.replace(solver=solver), seeds=[0], shape=(20_000,),
                           record="x")  # fmt: skip
        start, end = result.trajectory.x[:, 0]
        decay = (b / a) ** (1 + eta)
        noise = (end - decay * start - (1 - decay) * c) / (1.01 * b * math.sqrt(1 - (b / a) ** (2 * eta)))
        assert abs(noise.mean().item()) <= 4 / 20_000**0.5 and abs(noise.var().item() - 1) <= 4 * (2 / 20_000) ** 0.5
        if name != "dpmpp_sde":  # one increment a step
            path = br.Brownian([0], (20_000,)).increment(math.log(a), math.log(b))
            assert (noise - path[0]).abs().max() <= 1e-12


@pytest.mark.parametrize("name", EXPONENTIAL + ["pc"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_same_under_every_schedule_and_scaling(name, schedule, scaling):
    plain = ed.Sampler(solver=STOCHASTIC[name].replace(brownian=True), steps=9)
    other = plain.replace(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling])
    a, b = (ed.sample(mixture, sampler, seeds=[0], shape=(50, 2)).x for sampler in (plain, other))
    assert (a - b).abs().max() <= (0 if scaling == "none" else 1e-10)


def test_euler_maruyama_is_the_formula_of_the_sde():
    """x + h (f x - (1 + eta)/2 g^2 score) + sqrt(eta) g sqrt(|h|) z with f and g of the process itself."""
    schedule, scaling, eta = fm.VP(), fm.VariancePreserving(), 0.6
    f, g = fm.forward_sde(schedule, scaling)
    sampler = ed.Sampler(solver=so.EulerMaruyama(eta=eta, brownian=True), schedule=schedule, scaling=scaling, steps=8)
    result = ed.sample(mixture, sampler, seeds=[2], shape=(10, 2), record="x")
    levels, path = result.sigmas.tolist(), br.Brownian([2], (10, 2))
    for x, x_next, (a, b) in zip(
        result.trajectory.x, result.trajectory.x[1:], itertools.pairwise(levels), strict=False
    ):
        s = scaling.s(a).item()
        if b == 0:
            assert (x_next - mixture(x / s, a)).abs().max() <= 1e-12
            continue
        t, t_next = schedule.sigma_inv(a).item(), schedule.sigma_inv(b).item()
        score, h = (mixture(x / s, a) - x / s) / (s * a**2), t_next - t
        z = path.increment(math.log(a), math.log(b))
        own = x + h * (f(t) * x - (1 + eta) / 2 * g(t) ** 2 * score) + math.sqrt(eta * -h) * g(t) * z
        assert (x_next - own).abs().max() <= 1e-9


def test_the_langevin_step_is_algorithm_4():
    """eps = 2 (r |z| / |g|)^2 with the norms of each sample, and at most sigma^2 where g vanishes."""
    sampler = ed.Sampler(solver=so.PC(eta=0, r=0.2), timesteps=ts.Fixed((3.0, 1.5)), steps=2, to_zero=False)
    result = ed.sample(mixture, sampler, seeds=[2, 3], shape=(10, 2), record="x")
    generators = [torch.Generator().manual_seed(seed) for seed in (2, 3)]
    x = 3 * torch.stack([torch.randn(10, 2, generator=g) for g in generators]).double()
    z = torch.stack([torch.randn(10, 2, generator=g) for g in generators]).double()
    x = x + 0.5 * (9 - 2.25) * (mixture(x, 3.0) - x) / 9
    g = (mixture(x, 1.5) - x) / 2.25
    eps = torch.stack([2 * (0.2 * zi.norm() / gi.norm()) ** 2 for zi, gi in zip(z, g, strict=True)]).reshape(2, 1, 1)
    assert (eps < 2.25).all()
    assert (result.x - (x + eps * g + (2 * eps).sqrt() * z)).abs().max() <= 1e-12
    flat = ed.sample(lambda x, s: x, sampler, seeds=range(2000), shape=(10,)).x  # g = 0
    assert flat.var().item() == pytest.approx(9 + 2 * 2.25, rel=0.05)


# what holds for all


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("n", [1, 2, 18])
def test_network_evaluations(name, n):
    per_step = {"dpmpp_sde": 2, "pc": 2, "pc_2": 3}.get(name, 1)
    result = ed.sample(mixture, ed.Sampler(solver=STOCHASTIC[name], steps=n), seeds=[0], shape=(5, 2))
    assert result.nfe == per_step * (n - 1) + 1 and result.x.isfinite().all()


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_finite_everywhere_and_a_last_step_to_D(name, schedule, scaling):
    for steps, noise in ((1, so.Deterministic()), (2, so.Churn(S_churn=1)), (5, so.Ancestral())):
        sampler = ed.Sampler(schedule=SCHEDULES[schedule], scaling=SCALINGS[scaling], solver=STOCHASTIC[name],
                             steps=steps, stochasticity=noise)  # fmt: skip
        result = ed.sample(mixture, sampler, seeds=[1], shape=(4, 2), record=True)
        assert result.x.isfinite().all()
        assert (result.x - result.trajectory.denoised[-1]).abs().max() <= 1e-12 * result.x.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    "solver", [*STOCHASTIC.values(), *(s.replace(brownian=True) for s in STOCHASTIC.values()), so.RK45()], ids=str
)
def test_a_sample_depends_on_its_seed_alone(solver):
    """N8, bit for bit: other companions, another order, other batches; and nothing is left between runs."""
    torch.manual_seed(0)
    network = MLP(width=16, depth=1).build((5,), 0)
    for p in network.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    model = ed.FixedBatch(ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(5,)), 8)
    sampler = ed.Sampler(solver=solver, steps=5)
    everyone = ed.sample(model, sampler, seeds=range(12)).x
    assert everyone.std(0).min() > 0.01
    for seeds in ([7], [3, 3, 0], list(reversed(range(12)))):
        assert torch.equal(ed.sample(model, sampler, seeds=seeds).x, everyone[seeds])
        assert torch.equal(ed.sample(model, sampler, seeds=seeds, batch_size=2).x, everyone[seeds])


@pytest.mark.parametrize("solver", [so.DPMppSDE(brownian=True), so.PC(brownian=True), so.RK45()], ids=str)
@pytest.mark.parametrize("noise", [so.Deterministic(), so.Churn(S_churn=3.0)], ids=lambda s: s.kind)
def test_driven_from_outside_the_bits_are_the_same(solver, noise):
    """A drive repeats a step from its beginning after every answer: paths, spent noise and kept slopes must bear it."""
    sampler = ed.Sampler(solver=solver, steps=5, stochasticity=noise)
    drive = ed.Drive(sampler, seeds=range(3), shape=(4, 2))
    while (call := drive.call) is not None:
        drive.answer(mixture(call.x, call.sigma))
    expected = ed.sample(mixture, sampler, seeds=range(3), shape=(4, 2))
    assert torch.equal(drive.result.x, expected.x) and drive.result.nfe == expected.nfe


@pytest.mark.parametrize("solver", [*STOCHASTIC.values(), so.RK45(rtol=1e-5, atol=0.0)], ids=str)
def test_json_round_trip(solver):
    sampler = ed.Sampler(solver=solver)
    assert ed.Sampler.from_dict(sampler.to_dict()) == sampler


@pytest.mark.parametrize(
    "make",
    [
        lambda: so.EulerMaruyama(eta=-1), lambda: so.DPMppSDE(eta=math.inf), lambda: so.DPMpp2MSDE(S_noise=-0.1),
        lambda: so.PC(corrector_steps=-1), lambda: so.PC(r=0), lambda: so.DPMpp2MSDE(variant="middle"),
        lambda: so.RK45(rtol=-1), lambda: so.RK45(rtol=0, atol=0), lambda: so.RK45(max_evaluations=0),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_seeds_are_needed():
    for solver in STOCHASTIC.values():
        with pytest.raises(ValueError, match="draws noise"):
            ed.sample(mixture, ed.Sampler(solver=solver), latents=torch.zeros(1, 2))


def test_elements_are_cited():
    for solver in (*STOCHASTIC.values(), so.RK45()):
        assert all(key in BIBTEX for key in solver.references) and solver.references


# rk45

GAUSSIAN = ed.GaussianDenoiser(MEAN, EIGENVALUES)
LATENTS = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=F64)


def closed_form(high, low):
    gain = ((EIGENVALUES + low**2) / (EIGENVALUES + high**2)).sqrt()
    return MEAN + (high * LATENTS - MEAN) * gain


class Pair(so.Solver):
    """The pair that rk45 steps with, from level to level of the grid, whatever its error."""

    memory = 1

    def step(self, run, x, t, t_next):
        x = x / run.scale(t)
        D = run.past[-1].kept["D"] if run.past else run.denoise_at(x, run.sigma(t))
        trial = dormand_prince(run, x, run.sigma(t), run.sigma(t_next), D)
        run.keep("D", trial.D)
        return run.scale(t_next) * trial.x


FIXED = ed.Sampler(solver=Pair(), sigma_min=LOW, sigma_max=HIGH, to_zero=False)


def end_of_equal_steps(n, high, low):
    levels = tuple(torch.linspace(high, low, n + 1, dtype=F64).tolist())
    result = ed.sample(mixture, FIXED.replace(timesteps=ts.Fixed(levels), steps=n + 1), latents=LATENTS[None])
    assert result.nfe == 6 * n + 1
    return result.x


@pytest.mark.parametrize(("high", "low", "n"), [(2.0, 0.5, 12), (1.0, 0.5, 6)])
def test_the_fixed_step_pair_has_order_5(high, low, n):
    """Equal steps in sigma on the mixture; the term in h extrapolated away."""
    exact = end_of_equal_steps(400, high, low)
    a, b, c = ((end_of_equal_steps(k * n, high, low) - exact).norm().log2().item() for k in (1, 2, 4))
    assert 2 * (b - c) - (a - b) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rk45_is_the_same_under_every_schedule_and_scaling(schedule, scaling):
    other = {"schedule": SCHEDULES[schedule], "scaling": SCALINGS[scaling]}
    for sampler in (FIXED.replace(steps=9), ed.Sampler(solver=so.RK45(), steps=6)):
        a, b = (ed.sample(mixture, s, latents=LATENTS[None]) for s in (sampler, sampler.replace(**other)))
        s = SCALINGS[scaling].s(a.sigmas[-1])
        assert a.nfe == b.nfe and (a.x - b.x / s).abs().max() <= 1e-10


def test_the_embedded_method_has_order_4():
    """The difference of the two orders over one step from sigma = 1 shrinks like h^5: the local error of order 4."""
    differences = []

    class Look(so.Solver):
        def step(self, run, x, t, t_next):
            for h in (0.2, 0.1, 0.05):
                trial = dormand_prince(run, LATENTS, 1.0, 1.0 - h, GAUSSIAN(LATENTS, 1.0))
                differences.append(trial.difference.norm().log2().item())
            return x

    ed.sample(GAUSSIAN, ed.Sampler(solver=Look(), steps=1, sigma_max=1.0), latents=LATENTS)
    a, b, c = differences
    assert 2 * (b - c) - (a - b) == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("steps", [2, 18])
def test_the_error_of_rk45_follows_the_tolerance(steps):
    """Absolute tolerance, closed form at sigma_min; each decade of tolerance costs about 10^(1/5) more evaluations."""
    errors, nfe = [], []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        solver = so.RK45(rtol=tolerance, atol=tolerance)
        result = ed.sample(GAUSSIAN, ed.Sampler(solver=solver, steps=steps, to_zero=False), latents=LATENTS)
        errors.append((result.x - closed_form(80.0, 0.002)).abs().max().item() / tolerance)
        nfe.append(result.nfe)
    assert max(errors) <= 4, errors
    assert nfe == sorted(nfe) and nfe[-1] <= 6 * nfe[0] + 500


def test_rk45_on_a_mixture_agrees_with_fine_steps():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    fine = ed.sample(mixture, ed.Sampler(solver=so.RK4(), steps=600), latents=x).x
    own = ed.sample(mixture, ed.Sampler(solver=so.RK45(rtol=1e-8, atol=1e-8), steps=10), latents=x)
    assert (own.x - fine).abs().max() <= 2e-6


def test_rk45_counts_records_and_reuses_the_last_slope():
    levels = []

    def spy(x, sigma):
        levels.append(sigma.item())
        return GAUSSIAN(x, sigma)

    result = ed.sample(spy, ed.Sampler(solver=so.RK45(), steps=9), latents=LATENTS[:1], record=True)
    assert result.nfe == len(levels) and result.nfe % 6 == 1  # the first D, then six a trial; the step to 0 needs none
    assert len(result.trajectory.x) == 10
    for x, D, sigma in zip(result.trajectory.x, result.trajectory.denoised, result.sigmas, strict=False):
        asked = sigma.item() in levels  # where a step ended: D is its last answer; between, that of the slope
        assert (GAUSSIAN(x, sigma) - D).abs().max() <= (1e-12 if asked else 3e-3 * (1 + x.abs().max()))
    assert {80.0, result.sigmas[-2].item()} <= set(levels)
    assert min(levels) >= 0.002 and max(levels) == 80


@pytest.mark.parametrize("noise", [so.Churn(S_churn=10), so.Ancestral()], ids=lambda s: s.kind)
def test_rk45_with_noise_starts_anew_after_each_step(noise):
    sampler = ed.Sampler(solver=so.RK45(rtol=1e-6, atol=1e-6), stochasticity=noise, steps=8)
    own = ed.sample(GAUSSIAN, sampler, seeds=range(4), record=True)
    fine = ed.sample(GAUSSIAN, sampler.replace(solver=Substeps()), seeds=range(4))
    assert (own.x - fine.x).abs().max() <= 1e-4
    for x, D in zip(own.trajectory.x[1:], own.trajectory.denoised[1:], strict=False):
        assert x.isfinite().all() and D.isfinite().all()


class Substeps(so.Solver):
    """The flow of a Gaussian in closed form."""

    def step(self, run, x, t, t_next):
        a, b = run.sigma(t), run.sigma(t_next)
        if b == 0:
            return run.denoise(x, t)
        return MEAN + (x - MEAN) * ((EIGENVALUES + b**2) / (EIGENVALUES + a**2)).sqrt()


def test_rk45_gives_up_with_a_message():
    with pytest.raises(RuntimeError, match=r"rk45 with rtol=1e-12.*expected 50"):
        ed.sample(GAUSSIAN, ed.Sampler(solver=so.RK45(rtol=1e-12, atol=1e-12, max_evaluations=50)), latents=LATENTS)
    with pytest.raises(RuntimeError, match="is D finite and smooth there"):
        ed.sample(lambda x, s: x * math.nan, ed.Sampler(solver=so.RK45()), latents=LATENTS)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("n", [1, 2])
def test_rk45_with_few_levels(scaling, n):
    result = ed.sample(GAUSSIAN, ed.Sampler(solver=so.RK45(), scaling=SCALINGS[scaling], steps=n), latents=LATENTS)
    expected = GAUSSIAN(80 * LATENTS, 80.0) if n == 1 else GAUSSIAN(closed_form(80.0, 0.002), 0.002)
    assert (result.x - expected).abs().max() <= 2e-3
