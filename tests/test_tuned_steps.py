"""Time steps learned from a model: the search is exact, the errors are equal, and fresh samples are better for it."""

import itertools

import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import preconditioning as pc
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.tuning.steps import cheapest_path, equal_error_levels, jump_costs, teacher_paths

F64 = torch.float64
ANGLES = torch.arange(8, dtype=F64) * torch.pi / 4
RING = ed.GaussianMixtureDenoiser(torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.05, torch.tensor([1.0, 2.0] * 4))
LEARNING, FRESH = range(16), range(1000, 1200)
RULES = {"dp": ed.steps_by_dynamic_programming, "equal": ed.steps_by_equal_error}
FINE = tuple(ts.EDM()(200, 0.002, 80.0)[:-1].tolist())


PATHS = teacher_paths(RING, ed.Sampler(), seeds=LEARNING, candidates=128)


@pytest.fixture(scope="module")
def reference():
    sampler = ed.Sampler(solver=so.RK4(), timesteps=ts.Fixed(FINE), steps=len(FINE))
    return ed.sample(RING, sampler, seeds=FRESH).x


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [6, 8, 10])
@pytest.mark.parametrize("solver", [so.Euler(), so.Heun(), so.Midpoint(), so.DPMpp2M()], ids=lambda s: s.kind)
def test_learned_steps_lower_the_error_on_fresh_seeds(solver, n, rule, reference):
    plain = ed.Sampler(solver=solver, steps=n)
    learned = RULES[rule](RING, plain, n, seeds=LEARNING)
    assert learned.solver == solver and learned.steps == n == len(learned.timesteps.sigmas)

    def error(sampler):
        return (ed.sample(RING, sampler, seeds=FRESH).x - reference).square().mean().sqrt()

    assert error(learned) < 0.8 * error(plain)


# dynamic programming


@pytest.mark.parametrize("jumps", range(1, 10))
def test_the_cheapest_path_equals_trying_all(jumps):
    costs = torch.rand(10, 10, generator=torch.Generator().manual_seed(jumps), dtype=F64)
    costs = torch.where(torch.ones(10, 10).triu(1) > 0, costs, torch.inf)
    paths = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), jumps - 1)]

    def total(path):
        return sum(float(costs[i, j]) for i, j in itertools.pairwise(path))

    found = cheapest_path(costs, jumps)
    assert tuple(found) == min(paths, key=total) and len(found) == jumps + 1


@pytest.mark.parametrize("order", [1, 2])
def test_the_costs_are_the_errors_of_single_steps(order):
    sampler = ed.Sampler(steps=6)
    paths = teacher_paths(RING, sampler, seeds=range(5), candidates=12)
    costs, weights = jump_costs(paths, order, weighted=False), paths.weights()
    assert torch.equal(jump_costs(paths, order, weighted=True), costs * weights)
    assert weights[-1] == 1 and ((weights > 0) & (weights <= 1.01)).all() and weights[0] < 1e-3
    levels = [*paths.levels.tolist(), 0.0]
    for i, j in itertools.combinations(range(13), 2):
        x, end, (a, b) = paths.x[i], paths.x[j], (levels[i], levels[j])
        d = (x - RING(x, a)) / a
        if order == 2 and b > 0:
            d = (d + (end - RING(end, b)) / b) / 2
        assert costs[i, j] == pytest.approx(float((x + (b - a) * d - end).square().mean()), rel=1e-9)
    assert costs.isinf().equal(torch.ones(13, 13).tril() > 0)


def test_the_teacher_is_the_exact_path():
    gaussian = ed.GaussianDenoiser(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 0.3], dtype=F64))
    paths = teacher_paths(gaussian, ed.Sampler(), seeds=range(4), candidates=64)
    variance = torch.tensor([0.5, 0.3], dtype=F64)
    gain = ((variance + paths.levels[:, None] ** 2) / (variance + 80.0**2)).sqrt()
    exact = gaussian.mean + (paths.x[0] - gaussian.mean) * gain[:, None]
    assert (paths.x[:-1] - exact).abs().max() <= 1e-4
    assert torch.equal(paths.denoised[5], gaussian(paths.x[5], paths.levels[5]))


def test_the_chosen_levels_are_candidates():
    candidates = (80.0, 20.0, 5.0, 2.0, 1.0, 0.5, 0.3, 0.1, 0.03, 0.01)
    learned = ed.steps_by_dynamic_programming(RING, ed.Sampler(), 5, seeds=range(4), candidates=candidates)
    assert set(learned.timesteps.sigmas) < set(candidates) and learned.timesteps.sigmas[0] == 80.0
    everything = ed.steps_by_dynamic_programming(RING, ed.Sampler(), 10, seeds=range(4), candidates=candidates)
    assert everything.timesteps.sigmas == candidates
    with pytest.raises(ValueError, match="got 11 jumps; the candidate levels allow 1 to 10"):
        ed.steps_by_dynamic_programming(RING, ed.Sampler(), 11, seeds=range(4), candidates=candidates)


# equal errors


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_every_step_makes_the_same_error(order, to_zero):
    sampler, n = ed.Sampler(steps=24), 24
    levels = equal_error_levels(jump_costs(PATHS, order, True), PATHS.levels, order, n, to_zero)
    assert len(levels) == n and levels[0] == 80.0 and (to_zero or levels[-1] == PATHS.levels[-1])

    def errors(levels):
        fine = sorted({*PATHS.levels.tolist(), *levels}, reverse=True)
        dense = teacher_paths(RING, sampler, seeds=LEARNING, candidates=fine)
        at = [fine.index(level) for level in levels] + [len(fine)] * to_zero
        return torch.stack([jump_costs(dense, order, True)[i, j] for i, j in itertools.pairwise(at)]).sqrt()

    learned, plain = errors(levels), errors(ts.EDM()(n, 0.002, 80.0)[:-1].tolist())
    assert learned.max() / learned.median() <= 1.1 and learned.min() / learned.median() >= 0.9
    assert plain.max() / plain.median() > 3 and plain.min() / plain.median() < 0.1


def test_one_level_and_data_without_errors():
    for rule in RULES.values():
        assert rule(RING, ed.Sampler(steps=1), 1, seeds=range(4)).timesteps.sigmas == (80.0,)
    point = ed.GaussianDenoiser(torch.zeros(2, dtype=F64), 0.0)  # straight paths: every step is exact
    for rule in RULES.values():
        learned = rule(point, ed.Sampler(steps=5), 5, seeds=range(4))
        assert len(learned.timesteps.sigmas) == 5 and ed.sample(point, learned, seeds=[7]).x.abs().max() <= 1e-12


# both


@pytest.mark.parametrize("rule", RULES)
def test_the_result_is_a_function_of_its_arguments_and_a_json_file(rule, tmp_path):
    sampler = ed.Sampler(solver=so.DPMpp2M(), sigma_min=0.01, sigma_max=40.0)
    state = torch.get_rng_state()
    learned = RULES[rule](RING, sampler, 7, seeds=LEARNING)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert RULES[rule](RING, sampler, 7, seeds=LEARNING) == learned
    assert RULES[rule](RING, sampler, 7, seeds=range(50, 60)) != learned
    assert learned.timesteps.sigmas[0] == 40.0 and learned.timesteps.sigmas[-1] >= 0.01
    learned.save(tmp_path / "steps.json")
    again = ed.Sampler.load(tmp_path / "steps.json")
    assert again == learned
    assert torch.equal(ed.sample(RING, again, seeds=[3]).x, ed.sample(RING, learned, seeds=[3]).x)


@pytest.mark.parametrize("rule", RULES)
def test_every_kind_of_sampler_can_be_given_steps(rule):
    vp = ed.Sampler(schedule=fm.VP(), scaling=fm.VariancePreserving())
    for sampler in (
        vp.replace(to_zero=False), vp.replace(stochasticity=so.Churn(), solver=so.Euler()), ed.IDDPM.sampler
    ):  # fmt: skip
        learned = RULES[rule](RING, sampler, 6, seeds=range(4), candidates=24)
        same = {"timesteps": sampler.timesteps, "steps": sampler.steps, "sigma_min": None, "sigma_max": None}
        assert learned.replace(**same) == sampler.replace(**same)
        x = ed.sample(RING, learned, seeds=range(100)).x
        assert (x.norm(dim=1) - 1).square().mean().sqrt() < 0.35


@pytest.mark.parametrize("rule", RULES)
def test_discrete_levels_classes_and_plain_functions(rule):
    class Discrete(ed.EmpiricalDenoiser):
        sigma_min, sigma_max = pc.IDDPM().sigma_min, pc.IDDPM().sigma_max

        def round_sigma(self, sigma):
            return pc.IDDPM().round_sigma(sigma)

    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    denoiser = Discrete(data, torch.arange(40) % 2)
    learned = RULES[rule](denoiser, ed.Sampler(), 6, seeds=range(8), candidates=32, labels=1)
    assert len(learned.sigmas(denoiser)) == 7
    if rule == "dp":
        levels = torch.tensor(learned.timesteps.sigmas, dtype=F64)
        assert torch.equal(denoiser.round_sigma(levels), levels)
    function = RULES[rule](
        lambda x, sigma: x / (1 + sigma**2), ed.Sampler(), 6, seeds=range(8), candidates=32, shape=(3, 2)
    )
    assert len(function.timesteps.sigmas) == 6
