"""Recommended samplers: within the budget, better than EDM's Heun, and judged on noise that had no part in the choice."""

import pytest
import torch

import elucidiff as ed
from elucidiff.analysis.exact_path import rms
from elucidiff.analysis.recommend import at_budget, recommend

MEANS = torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.0], [0.0, -1.0, -0.6]])
SEEDS = {"learning": range(16), "fresh": range(100, 116)}


def mixture() -> ed.GaussianMixtureDenoiser:
    return ed.GaussianMixtureDenoiser(MEANS, torch.tensor([0.2, 0.3, 0.1]))


@pytest.fixture(scope="module")
def found():
    return recommend(mixture(), (4, 9), **SEEDS)


def converged(seeds) -> torch.Tensor:
    """The end of the ODE by 2,000 steps of Heun's method: errors of 1e-6."""
    return ed.sample(mixture(), ed.EDM.sampler.replace(steps=2000, sigma_min=1e-4), seeds=seeds).x


def test_budgets_are_kept_and_errors_are_those_of_fresh_seeds(found):
    exact = converged(SEEDS["fresh"])
    for budget, choice in zip((4, 9), found, strict=True):
        run = ed.sample(mixture(), choice.sampler, seeds=SEEDS["fresh"])
        assert choice.nfe == budget and run.nfe <= budget and choice.heun_nfe <= budget
        assert choice.error == pytest.approx(rms(run.x - exact), rel=1e-3)
        assert choice.scale == pytest.approx(float(exact.std()), rel=1e-3)


def test_a_recommendation_beats_edms_heun_and_improves_with_the_budget(found):
    few, many = found
    assert few.error < few.heun / 5 and many.error < many.heun / 5
    assert many.error < few.error / 3


def test_heun_is_edms_sampler_at_the_budget(found):
    exact = converged(SEEDS["fresh"])
    run = ed.sample(mixture(), ed.EDM.sampler.replace(steps=5), seeds=SEEDS["fresh"])
    assert found[1].heun_nfe == run.nfe == 9
    assert found[1].heun == pytest.approx(rms(run.x - exact), rel=1e-3)


def test_the_sampler_survives_json_and_the_reason_names_the_numbers(found):
    choice = found[1].to_dict()
    assert ed.Sampler.from_dict(choice["sampler"]) == found[1].sampler
    assert f"{found[1].error:.2g}" in choice["reason"] and "9 evaluations" in choice["reason"]


def test_gaussian_data_are_solved_by_the_solver_that_knows_them():
    """With mean and variance measured on 4,096 samples, `gaussian` beats every other solver on a Gaussian."""
    denoiser = ed.GaussianDenoiser(torch.tensor([0.5, -1.0]), torch.tensor([0.3, 0.3]))
    (choice,) = recommend(denoiser, (6,), learning=range(4096), fresh=range(5000, 5064))
    assert choice.sampler.solver.kind == "gaussian" and choice.error < choice.second_error


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="both choose and judge"):
        recommend(mixture(), (5,), learning=range(8), fresh=range(4, 12))
    with pytest.raises(ValueError, match="at least 1"):
        recommend(mixture(), (0,), **SEEDS)
    assert at_budget(ed.EDM.sampler, 35)[1] == 35
