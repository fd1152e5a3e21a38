"""k-diffusion's function form: the bits of ed.sample, callbacks, noise without the global state."""

import inspect

import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.adapters import k_diffusion
from elucidiff.seeds import Seeds

F64 = torch.float64
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.3], [0.2, -0.9]], dtype=F64)
MIXTURE = ed.GaussianMixtureDenoiser(MEANS, 0.2)
SIGMAS = ed.Sampler(steps=5).sigmas()


def model(x, sigma):
    """Of k-diffusion's form: one level a sample, in the dtype of x."""
    assert sigma.shape == (len(x),) and sigma.dtype == x.dtype and (sigma == sigma[0]).all()
    return MIXTURE(x, sigma).to(x.dtype)


def noise(seeds, dtype=F64):
    return Seeds(seeds).normal((2,), torch.float32).to(dtype)


LOOSE = {"rk45": {"rtol": 0.1, "atol": 0.1}}


def combinations():
    """Every solver with every stochasticity that it may be combined with."""
    for solver in so.Solver.kinds().values():
        for stochasticity in so.Stochasticity.kinds().values():
            try:
                yield ed.Sampler(solver=solver(**LOOSE.get(solver.kind, {})), stochasticity=stochasticity(), steps=5)
            except ValueError:
                assert solver.draws and stochasticity.draws


SAMPLERS = list(combinations())


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.solver.kind}-{s.stochasticity.kind}")
def test_the_bits_are_those_of_sample(sampler, dtype):
    function = k_diffusion.sampler(sampler.solver, sampler.stochasticity)
    x = noise(range(3), dtype) * SIGMAS[0]
    before = x.clone()
    expected = ed.sample(
        lambda x, sigma: model(x, sigma.to(x.dtype).expand(len(x))), sampler, seeds=range(3), shape=(2,), dtype=dtype
    )
    found = function(model, x, SIGMAS, seeds=range(3))
    assert torch.equal(found, expected.x) and found.dtype == dtype
    assert torch.equal(x, before)
    if dtype == F64:  # our denoisers are models too
        assert torch.equal(
            function(MIXTURE, x, SIGMAS.tolist(), seeds=range(3)), ed.sample(MIXTURE, sampler, seeds=range(3)).x
        )


@pytest.mark.parametrize("solver", [so.Heun(), so.DPMpp2M(), so.RK4()], ids=lambda s: s.kind)
def test_any_levels_will_do(solver):
    sigmas = torch.tensor([14.6, 7.0, 2.0, 0.7, 0.3], dtype=torch.float32)
    function = k_diffusion.sampler(solver)
    for levels, to_zero in ((sigmas, False), (torch.cat([sigmas, torch.zeros(1)]), True)):
        sampler = ed.Sampler(solver=solver, timesteps=ts.Fixed(tuple(sigmas.tolist())), steps=5, to_zero=to_zero)
        expected = ed.sample(MIXTURE, sampler, seeds=range(3))
        assert torch.equal(function(MIXTURE, noise(range(3)) * sigmas[0].item(), levels), expected.x)
        assert torch.equal(expected.sigmas, levels.double())
    later = function(MIXTURE, expected.x + 0.5 * noise(range(3)), [0.5, 0.2, 0.0])  # an image and noise
    assert (later - expected.x).norm() < 0.5 * noise(range(3)).norm()


def test_a_schedule_and_a_scaling_may_be_chosen():
    sampler = ed.VP.sampler.replace(steps=6, solver=so.Heun())
    function = k_diffusion.sampler(so.Heun(), schedule=sampler.schedule, scaling=sampler.scaling)
    sigmas, seen = sampler.sigmas(), []
    x = function(MIXTURE, noise(range(3)) * sigmas[0], sigmas, callback=seen.append)
    assert (x - ed.sample(MIXTURE, sampler, seeds=range(3)).x).abs().max() <= 1e-12
    assert all((MIXTURE(s["x"], s["sigma_hat"]) - s["denoised"]).abs().max() <= 1e-9 for s in seen)
    above = function(MIXTURE, noise(range(3)) * sigmas[0], sigmas[:-1])
    expected = ed.sample(MIXTURE, sampler.replace(to_zero=False), seeds=range(3)).x / fm.VariancePreserving().s(
        sigmas[-2]
    )
    assert (above - expected).abs().max() <= 1e-12


def test_the_plain_list_of_levels_is_one_call_away():
    assert ed.Sampler(steps=3).sigmas().tolist() == pytest.approx([80.0, 2.5152, 0.002, 0.0], rel=1e-4)


# the form


def test_the_signature_is_the_published_one():
    function = k_diffusion.sampler(so.DPMpp2M())
    parameters = inspect.signature(function).parameters
    assert list(parameters) == ["model", "x", "sigmas", "extra_args", "callback", "disable", "seeds"]
    assert [p.default for p in parameters.values()][3:] == [None] * 4
    assert parameters["seeds"].kind is inspect.Parameter.KEYWORD_ONLY
    assert function.__name__ == "sample_dpmpp_2m"


@pytest.mark.parametrize("stochasticity", [so.Deterministic(), so.Churn(S_churn=3)], ids=lambda s: s.kind)
def test_the_callback_is_told_the_beginning_of_every_step(stochasticity):
    seen, x = [], noise(range(3)) * SIGMAS[0]
    function = k_diffusion.sampler(so.Heun(), stochasticity)
    end = function(model, x, SIGMAS, None, seen.append, True, seeds=range(3))
    assert [s["i"] for s in seen] == [0, 1, 2, 3, 4] and all(
        set(s) == {"x", "i", "sigma", "sigma_hat", "denoised"} for s in seen
    )
    assert [s["sigma"].item() for s in seen] == SIGMAS[:-1].tolist()
    gamma = 0.0 if stochasticity == so.Deterministic() else 2**0.5 - 1
    for step in seen:
        assert step["sigma_hat"].item() == pytest.approx(step["sigma"].item() * (1 + gamma), rel=1e-14)
        assert torch.equal(model(step["x"], step["sigma_hat"].expand(3)), step["denoised"])
    if not gamma:
        assert torch.equal(seen[0]["x"], x)
    assert torch.equal(end, seen[-1]["denoised"] if not gamma else end)  # the last step goes to 0: Euler's is D


def test_extra_arguments_reach_the_model():
    def shifted(x, sigma, shift, twice=False):
        return x / 2 + shift[:, None] * (1 + twice)

    shift = torch.linspace(-1, 1, 3, dtype=F64)
    function, x = k_diffusion.sampler(so.Heun()), noise(range(3)) * SIGMAS[0]
    found = function(shifted, x, SIGMAS, {"shift": shift, "twice": True})
    assert torch.equal(
        found,
        ed.sample(lambda x, sigma: shifted(x, sigma, shift, True), ed.Sampler(steps=5), latents=noise(range(3))).x,
    )


class Halving(so.Solver):
    """Euler in two halves; adaptive by name, so that samples run alone."""

    adaptive = True

    def step(self, run, x, t, t_next):
        half = (t + t_next) / 2
        x = x + (half - t) * run.velocity(x, t)
        return x + (t_next - half) * run.velocity(x, half)


def test_adaptive_solvers_run_one_sample_after_the_other():
    shift, sizes, seen = torch.linspace(-1, 1, 3, dtype=F64), [], []

    def shifted(x, sigma, shift):
        sizes.append((len(x), len(shift)))
        return x / 2 + shift[:, None]

    x = noise(range(3)) * SIGMAS[0]
    found = k_diffusion.sampler(Halving(), so.Churn())(
        shifted, x, SIGMAS, {"shift": shift}, seen.append, seeds=range(3)
    )
    sampler = ed.Sampler(solver=Halving(), stochasticity=so.Churn(), steps=5)
    assert torch.equal(
        found,
        ed.sample(lambda x, sigma, shift: shifted(x, sigma, shift), sampler, seeds=range(3), shape=(2,), shift=shift).x,
    )
    assert set(sizes) == {(1, 1)} and [s["i"] for s in seen] == [0, 1, 2, 3, 4] * 3


# noise


def test_without_seeds_every_row_is_its_own():
    function, x = k_diffusion.sampler(so.Euler(), so.Ancestral()), noise([1, 2, 3, 1]) * SIGMAS[0]
    state = torch.get_rng_state()
    first = function(model, x, SIGMAS)
    torch.manual_seed(7)
    assert torch.equal(function(model, x, SIGMAS), first)
    torch.set_rng_state(state)
    function(model, x, SIGMAS)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], first[3])  # the same start, the same noise
    assert (function(model, x[[2, 0]], SIGMAS) - first[[2, 0]]).abs().max() <= 1e-13
    other = function(model, x + 1e-12, SIGMAS)
    assert (other - first).abs().min() > 1e-6  # other noise altogether


def test_noise_of_a_model_with_classes_is_that_of_sample():
    denoiser = ed.EmpiricalDenoiser(torch.randn(30, 2, dtype=F64), torch.arange(30) % 3)
    sampler = ed.Sampler(stochasticity=so.Churn(), steps=5)
    expected = ed.sample(denoiser, sampler, seeds=range(3), labels=[2, 0, 1])
    function = k_diffusion.sampler(so.Heun(), so.Churn())
    found = function(denoiser, noise(range(3)) * SIGMAS[0], SIGMAS, {"labels": expected.labels}, seeds=range(3))
    assert torch.equal(found, expected.x)


def test_neither_graphs_nor_modes_are_touched():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).train()
    x = k_diffusion.sampler(so.Heun())(lambda x, sigma: network(x), noise(range(3), torch.float32) * 80, SIGMAS)
    assert not x.requires_grad and torch.is_grad_enabled() and network.training and network[1].training


# refusals


@pytest.mark.parametrize(
    ("x", "sigmas", "seeds", "message"),
    [
        (2, [1.0, 2.0, 0.0], None, "fall strictly"),
        (2, [1.0, 1.0, 0.0], None, "fall strictly"),
        (2, [1.0], None, "at least two"),
        (2, [1.0, 0.0, -1.0], None, "the last at least 0"),
        (2, [float("inf"), 1.0], None, "finite"),
        (2, [float("nan"), 1.0], None, "finite"),
        (2, [[2.0, 1.0]], None, "fall strictly"),
        (2, [2.0, 1.0], [0], "got 1 for 2 samples"),
        (2, [2.0, 1.0], [0, -1], "seeds: got -1"),
        (0, [2.0, 1.0], None, "x: got no samples"),
    ],
)
def test_what_does_not_fit_is_refused(x, sigmas, seeds, message):
    with pytest.raises(ValueError, match=message):
        k_diffusion.sampler(so.Euler(), so.Churn())(model, torch.zeros(x, 2), torch.tensor(sigmas), seeds=seeds)
