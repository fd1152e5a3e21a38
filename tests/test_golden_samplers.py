"""The published samplers, reproduced: ../shared/data/golden/samplers.json, 49 settings and 3 with rounded levels."""

import json
import math
import warnings

import pytest
import torch

import elucidiff as ed
from conftest import SHARED, shared
from elucidiff.formulation import iddpm_levels

PATH = SHARED / "data/golden/samplers.json"
GOLDEN = json.loads(PATH.read_text()) if PATH.exists() else {"cases": [], "rounded_cases": []}
RANGES = {"vp": (ed.formulation.VP().sigma(1e-3).item(), ed.formulation.VP().sigma(1.0).item())} | {
    "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0),
}  # fmt: skip
SCALINGS = {"none": ed.formulation.Unscaled(), "vp": ed.formulation.VariancePreserving()}


def sampler_of(settings: dict, support: tuple[float, float] = (0.0, math.inf)) -> ed.Sampler:
    """The Sampler of a golden case; absent settings take the defaults that the data's README lists."""
    rule = settings.get("discretization", "edm")
    low, high = RANGES[rule]
    low, high = settings.get("sigma_min", low), settings.get("sigma_max", high)
    fitted = (max(low, support[0]), min(high, support[1]))
    steps = {"vp": ed.timesteps.VP(), "ve": ed.timesteps.VE(), "iddpm": ed.timesteps.IDDPM(),
             "edm": ed.timesteps.EDM(rho=settings.get("rho", 7.0))}[rule]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit to [0.002, 80] has a negative beta_min and says so
        schedule = {"linear": ed.formulation.EDM(), "ve": ed.formulation.VE(),
                    "vp": ed.formulation.VP.fit(*fitted)}[settings.get("schedule", "linear")]  # fmt: skip
    solver = ed.solvers.RK2(alpha=settings.get("alpha", 1.0))
    if settings.get("solver") == "euler":
        solver = ed.solvers.Euler()
    churn = {k: v for k, v in settings.items() if k.startswith("S_")}
    stochasticity = ed.solvers.Churn(**churn) if churn else ed.solvers.Deterministic()
    return ed.Sampler(
        schedule=schedule, scaling=SCALINGS[settings.get("scaling", "none")], timesteps=steps, solver=solver,
        stochasticity=stochasticity, steps=settings["num_steps"], sigma_min=low, sigma_max=high,
    )  # fmt: skip


def mixture(kind: type[ed.GaussianMixtureDenoiser] = ed.GaussianMixtureDenoiser) -> ed.GaussianMixtureDenoiser:
    means, weights = (torch.tensor(GOLDEN[k], dtype=torch.float64) for k in ("means", "weights"))
    return kind(means, GOLDEN["std"], weights)


def test_the_golden_file_is_complete():
    shared("data/golden/samplers.json")
    assert len(GOLDEN["cases"]) == 49 and len(GOLDEN["rounded_cases"]) == 3


def name(case: dict) -> str:
    return ",".join(f"{k}={v}" for k, v in case["settings"].items())


def difference(x: torch.Tensor, case: dict) -> float:
    """The largest difference, relative where the case's values exceed 1 (num_steps=2 ends at 90)."""
    expected = torch.tensor(case["x"], dtype=torch.float64)
    return ((x - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name)
def test_case(case):
    x = ed.sample(mixture(), sampler_of(case["settings"]), seeds=GOLDEN["seeds"]).x
    float32_table = case["settings"].get("discretization") == "iddpm"  # see the next test
    assert difference(x, case) <= (2e-6 if float32_table else 1e-12)


def iddpm_levels_in_float32(M: int = 1000, C1: float = 0.001, C2: float = 0.008) -> torch.Tensor:
    """The table of the golden iDDPM cases: abar and its ratios in float32, the recursion in float64."""
    j = torch.arange(M + 1, dtype=torch.float32)
    abar = (0.5 * math.pi * j / M / (C2 + 1)).sin() ** 2
    u = torch.zeros(M + 1, dtype=torch.float64)
    for k in range(M, 0, -1):
        u[k - 1] = ((u[k] ** 2 + 1) / max((abar[k - 1] / abar[k]).item(), C1) - 1).sqrt()
    return u


@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["cases"] if c["settings"].get("discretization") == "iddpm"], ids=name
)
def test_iddpm_case_with_its_own_table(case):
    u = iddpm_levels_in_float32()
    inside = u[(u >= 0.002) & (u <= 81)]
    n = case["settings"]["num_steps"]
    picked = inside[[round(i * (len(inside) - 1) / (n - 1)) for i in range(n)]]
    sampler = sampler_of(case["settings"]).replace(timesteps=ed.timesteps.Fixed(tuple(picked.tolist())))
    assert difference(ed.sample(mixture(), sampler, seeds=GOLDEN["seeds"]).x, case) <= 1e-12


class Rounded(ed.GaussianMixtureDenoiser):
    """The exact denoiser with the range and the rounding of iDDPM's table."""

    levels = iddpm_levels(1000, 0.001, 0.008)
    sigma_min, sigma_max = levels[999].item(), levels[0].item()

    def round_sigma(self, sigma):
        return self.levels[(sigma[..., None] - self.levels).abs().argmin(-1)]


@pytest.mark.parametrize("case", GOLDEN["rounded_cases"], ids=name)
def test_rounded_case(case):
    denoiser = mixture(Rounded)
    sampler = sampler_of(case["settings"], (denoiser.sigma_min, denoiser.sigma_max))
    assert difference(ed.sample(denoiser, sampler, seeds=GOLDEN["seeds"]).x, case) <= 1e-12
