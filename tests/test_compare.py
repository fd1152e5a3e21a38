"""Quality against evaluations: budgets met exactly, cells that resume and never mix, the search for the stochasticity."""

import functools
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.analysis import (
    ChurnGrid,
    Spread,
    at_budget,
    compare,
    evaluations,
    reference_and_real,
    score_samples,
    search_stochasticity,
)
from elucidiff.analysis.budget import has_own_cost
from elucidiff.analysis.cells import KEPT, remembering
from elucidiff.analysis.churn_grid import OFF, PAPER, alone, churn_name, churn_samplers, combined, jointly, with_churn
from elucidiff.analysis.stochasticity import _Search
from elucidiff.analysis.store import Store
from elucidiff.cli.compare import SAMPLERS
from elucidiff.cli.compare_show import comparison_picture, number, search_picture
from elucidiff.cli.compare_specs import grid_values, model_specs, sampler_specs, split_outside
from elucidiff.cli.main import main
from elucidiff.metrics import DigitFeatures, Identity
from elucidiff.report import quality
from elucidiff.solvers import Churn, Solver

STEPPED = sorted(k for k, c in Solver.kinds().items() if not c.adaptive and c.__module__.startswith("elucidiff."))
# Evaluations for N levels above 0: one a step; two but for the last, which ends at 0; four but for the last.
TWO_A_STEP = {"heun", "midpoint", "ralston", "rk2", "dpm2", "pc", "dpmpp_sde"}


def cost(kind: str, steps: int) -> int:
    return 2 * steps - 1 if kind in TWO_A_STEP else 4 * steps - 3 if kind == "rk4" else steps


# --- budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STEPPED)
def test_a_budget_buys_the_most_steps_that_it_pays_for(kind):
    sampler = ed.EDM.sampler.replace(solver=Solver.kinds()[kind]())
    for budget in (1, 2, 5, 8, 12, 35, 79):
        chosen, nfe = at_budget(sampler, budget, (1, 2, 2))
        steps = max(n for n in range(1, budget + 2) if cost(kind, n) <= budget)
        assert (chosen.steps, nfe) == (steps, cost(kind, steps))
        assert chosen == sampler.replace(steps=steps)
        assert evaluations(chosen, (1, 2, 2)) == nfe


def test_a_sampler_that_ends_above_0_has_a_level_more():
    sampler = ed.EDM.sampler.replace(solver=ed.solvers.Euler(), to_zero=False)
    assert [at_budget(sampler, b)[0].steps for b in (1, 2, 9)] == [2, 3, 10]
    heun = ed.EDM.sampler.replace(to_zero=False)  # two evaluations in every step
    assert at_budget(heun, 1) is None and at_budget(heun, 9) == (heun.replace(steps=5), 8)


def test_a_model_with_discrete_levels_is_budgeted_by_the_levels_that_remain():
    class Coarse(ed.GaussianDenoiser):
        def round_sigma(self, sigma):
            return torch.exp2(sigma.log2().round())  # powers of two: 0.002 .. 80 has 2^-9 .. 2^6

    model = Coarse(torch.zeros(3), 1.0)
    sampler, nfe = at_budget(ed.EDM.sampler.replace(solver=ed.solvers.Euler()), 12, (3,), model)
    assert nfe == 12 and sampler.steps > 12  # several of its levels round to the same one
    assert ed.sample(model, sampler, seeds=[0]).nfe == 12


def test_costs_of_their_own():
    adaptive = ed.EDM.sampler.replace(solver=ed.solvers.RK45())
    fixed = ed.EDM.sampler.replace(timesteps=ed.timesteps.Fixed((80, 5, 0.5)))
    assert has_own_cost(adaptive) and has_own_cost(fixed) and not has_own_cost(ed.EDM.sampler)
    with pytest.raises(ValueError, match="cost of its own"):
        at_budget(fixed, 5)
    with pytest.raises(ValueError, match="at least 1 evaluation"):
        at_budget(ed.EDM.sampler, 0)


# --- compare ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def digits() -> ed.data.Dataset:
    return ed.data.load("digits")


@functools.lru_cache(maxsize=1)
def some_digits() -> ed.data.Dataset:
    return digits().subset(range(0, 1797, 4))


@functools.lru_cache(maxsize=1)
def exact() -> ed.Denoiser:
    return ed.models.exact_denoiser(some_digits())


@functools.lru_cache(maxsize=1)
def points() -> ed.data.Dataset:
    return dataset(points_array())


def points_array():
    return torch.randn(400, 3, generator=torch.Generator().manual_seed(1)).numpy() * 0.7


def dataset(values) -> ed.data.Dataset:
    return ed.data.Dataset(values)


def gaussian(std: float = 0.7) -> ed.GaussianDenoiser:
    return ed.GaussianDenoiser(torch.zeros(3), std**2)


FEW = {"edm": ed.EDM, "dpmpp_2m": ed.EDM.sampler.replace(solver=ed.solvers.DPMpp2M())}
OPTIONS = {"num": 40, "repeats": 2, "metrics": ("fd", "kd")}
run_points = functools.partial(compare, data=points(), samplers=FEW, nfes=[3, 6], **OPTIONS)


def test_the_table_is_what_score_samples_says_of_the_same_seeds():
    found = compare(exact(), some_digits(), FEW, [5, 8], num=50, repeats=2, metrics=("fd", "agreement"), first_seed=7)
    reference, real = reference_and_real(some_digits())
    assert [(p.name, p.budget, p.nfe) for p in found.points] == [
        ("edm", 5, 5), ("edm", 8, 7), ("dpmpp_2m", 5, 5), ("dpmpp_2m", 8, 8),
    ]  # fmt: skip
    for point in found.points:
        for r in range(2):
            result = ed.sample(ed.FixedBatch(exact(), 64), point.sampler, seeds=range(7 + 50 * r, 57 + 50 * r))
            assert result.nfe == point.nfe
            scores = score_samples(result.x, reference, real, labels=result.labels)
            for score in scores:
                if score.metric in point.scores:
                    assert point.scores[score.metric].values[r] == pytest.approx(score.value, rel=1e-9)
                    assert found.real[score.metric] == pytest.approx(score.real, rel=1e-12)
        values = point.scores["fd"].values
        assert point.scores["fd"].mean == pytest.approx(sum(values) / 2)
        assert point.scores["fd"].std == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))


def test_exact_samples_of_a_gaussian_score_like_real_data():
    fine = compare(gaussian(), points(), {"edm": ed.EDM}, [35], num=150, repeats=4)
    coarse = compare(gaussian(), points(), {"edm": ed.EDM}, [3], num=150, repeats=4)
    wrong = compare(gaussian(1.4), points(), {"edm": ed.EDM}, [35], num=150, repeats=4)
    # |mean|^2 + sum (s1 - s2)^2 over 3 dimensions: 3 * 0.7^2 = 1.47 for twice the standard deviation
    assert fine.points[0].scores["fd"].mean < 0.1 and fine.real["fd"] < 0.1
    assert wrong.points[0].scores["fd"].mean == pytest.approx(3 * 0.7**2, rel=0.25)
    # N = 2 levels, 80 and 0.002: Heun's step is far too long
    assert coarse.points[0].scores["fd"].mean > 3 * fine.points[0].scores["fd"].mean


def test_best_and_rows():
    found = run_points(gaussian())
    assert list(found.rows()) == [("model", "edm"), ("model", "dpmpp_2m")]
    for budget in (3, 6):
        means = {p.name: p.scores["fd"].mean for p in found.points if p.budget == budget}
        assert found.best("fd", budget).name == min(means, key=means.get)
    assert found.best("fd", 99) is None
    assert Spread((1.0, 4.0)).to_dict() == {"mean": 2.5, "std": pytest.approx(3 / math.sqrt(2)), "values": [1.0, 4.0]}
    assert Spread((1.0, None)).mean is None and Spread((1.0,)).std is None and Spread((1.0,)).mean == 1


def test_several_models_and_each_one_s_own_sampler():
    network = ed.networks.MLP(width=8)
    models = {}
    for name, design in {"vp": ed.VP, "edm": ed.EDM}.items():
        models[name] = ed.Preconditioned(network, design.preconditioning, shape=(3,))
        models[name].info["design"] = design.to_dict()
    found = compare(models, points(), {"own": None, "edm": ed.EDM}, [5], num=8, repeats=1)
    assert [(p.model, p.name, p.sampler.solver.kind) for p in found.points] == [
        ("vp", "own", "euler"), ("vp", "edm", "heun"), ("edm", "own", "heun"), ("edm", "edm", "heun"),
    ]  # fmt: skip
    by_name = {(p.model, p.name): p.scores["fd"].values for p in found.points}
    assert by_name["edm", "own"] == by_name["edm", "edm"] != by_name["vp", "edm"]
    with pytest.raises(ValueError, match="records no design"):
        compare(gaussian(), points(), {"own": None}, [5], num=8)


def test_costs_of_their_own_are_measured_once():
    fixed = ed.EDM.sampler.replace(timesteps=ed.timesteps.Fixed((80, 5, 0.5)))
    adaptive = ed.EDM.sampler.replace(solver=ed.solvers.RK45(rtol=1e-2, atol=1e-2), steps=4)
    found = compare(gaussian(), points(), {"fixed": fixed, "rk45": adaptive, "edm": ed.EDM}, [3, 5], num=8, repeats=1)
    assert [(p.name, p.budget) for p in found.points] == [("fixed", None), ("rk45", None), ("edm", 3), ("edm", 5)]
    assert found.points[0].nfe == 5 and found.points[1].nfe > 10


def test_a_sampler_that_diverges_has_no_score_and_stops_nobody():
    class Explodes(ed.GaussianDenoiser):
        def denoise(self, x, sigma, **conditions):
            return x * 1e300

    found = run_points({"bad": Explodes(torch.zeros(3), 1.0), "good": gaussian()})
    assert [p.scores["fd"].mean is None for p in found.points] == [True] * 4 + [False] * 4
    assert json.loads(json.dumps(found.to_dict()))["points"][0]["scores"]["fd"]["mean"] is None
    assert found.best("fd", 3).model == "good"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats"), ({"num": 3}, "num"), ({"nfes": []}, "no budgets"), ({"nfes": [0]}, "at least 1"),
        ({"metrics": ["fid"]}, "did you mean 'fd'"), ({"metrics": ["agreement"]}, "cannot be measured"),
        ({"samplers": {}}, "no samplers"), ({"models": {}}, "no models"), ({"batch_size": 0}, "batch_size"),
        ({"heldout": 1.0}, "heldout"), ({"models": ed.GaussianDenoiser(torch.zeros(4), 1.0)}, "shape"),
    ],
)  # fmt: skip
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        compare(**({"models": gaussian(), "data": points(), "samplers": FEW, "nfes": [3], "num": 8} | options))


# --- the store --------------------------------------------------------------------------------------


class Stop(Exception):
    """What a progress callback raises to simulate a crash."""


def stop_after(cells: int):
    def report(done: int, total: int, text: str = "") -> None:
        if done == cells:
            raise Stop

    return report


def as_text(found) -> str:
    return json.dumps(found.to_dict())


def counted(path: Path) -> int:
    return len(Store(path))


def test_an_exception_loses_nothing_and_the_resumed_table_is_the_same(tmp_path):
    whole = as_text(run_points(gaussian(), store=tmp_path / "whole.jsonl"))
    assert whole == as_text(run_points(gaussian()))  # a store changes nothing
    path = tmp_path / "s.jsonl"
    with pytest.raises(Stop):
        run_points(gaussian(), store=path, progress=stop_after(5))
    assert counted(path) == 1 + 5  # and the real data
    titles = []
    assert as_text(run_points(gaussian(), store=path, progress=lambda d, n, t="": titles.append((d, n, t)))) == whole
    assert counted(path) == 1 + 8 and titles[0] == (0, 8, "edm, NFE 3, repeat 1 of 2") and titles[-1][:2] == (8, 8)


@pytest.mark.parametrize("damage", ["half a line", "half the cells", "rubbish", "header alone", "doubled"])
def test_a_damaged_store_gives_the_same_table(tmp_path, damage):
    path = tmp_path / "s.jsonl"
    whole = as_text(run_points(gaussian(), store=path))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(
        {
            "half a line": content[: -len(lines[-1]) // 2 - 1],
            "half the cells": b"".join(lines[:1] + lines[2::2]),
            "rubbish": lines[0] + b"\xff\xfe{]\n[1]\n" + b"".join(lines[3:]),
            "header alone": lines[0],
            "doubled": content + b"".join(lines[1:4]),
        }[damage]
    )
    assert as_text(run_points(gaussian(), store=path)) == whole
    after = Store(path)
    assert len(after) == 9 and after.damaged == {"half a line": 1, "rubbish": 2}.get(damage, 0)


def test_finished_cells_are_not_drawn_again(tmp_path):
    calls = []

    class Watched(ed.GaussianDenoiser):
        def denoise(self, x, sigma, **conditions):
            calls.append(len(x))
            return super().denoise(x, sigma, **conditions)

    first = run_points(Watched(torch.zeros(3), 0.49), store=tmp_path / "s.jsonl")
    made = len(calls)
    assert made == 2 * (3 + 5 + 3 + 6)  # one batch of 40 padded to 64; NFE 3, 5 (of 6), 3, 6; two repeats
    assert as_text(run_points(Watched(torch.zeros(3), 0.49), store=tmp_path / "s.jsonl")) == as_text(first)
    assert len(calls) == made
    run_points(Watched(torch.zeros(3), 0.49), store=tmp_path / "s.jsonl", repeats=3)
    assert len(calls) == made * 3 // 2  # only the third repeat
    run_points(Watched(torch.zeros(3), 0.49), store=tmp_path / "s.jsonl", samplers=dict([*FEW.items()][:1]), nfes=[3])
    assert len(calls) == made * 3 // 2


def changed() -> dict[str, dict]:
    values = points_array().copy()
    values[0, 0] += 1e-3
    return {
        "num": {"num": 41}, "seeds": {"first_seed": 1}, "metrics": {"metrics": ("fd",)}, "heldout": {"heldout": 0.4},
        "model": {"models": gaussian(0.71)}, "data": {"data": dataset(values)}, "batch": {"batch_size": 32},
        "sampler": {"samplers": {k: ed.sampler.sampler_of(s).replace(sigma_max=70.0) for k, s in FEW.items()}},
        "class": {"models": type("Other", (ed.GaussianDenoiser,), {})(torch.zeros(3), 0.49)},
    }  # fmt: skip


@pytest.mark.parametrize("what", changed())
def test_a_changed_configuration_uses_no_cell_of_another(tmp_path, what):
    path = tmp_path / "s.jsonl"
    arguments = {"models": gaussian(), "data": points(), "samplers": FEW, "nfes": [3], **OPTIONS}
    compare(**arguments, store=path)
    before = set(Store(path)._known)
    fresh = as_text(compare(**(arguments | changed()[what])))
    assert as_text(compare(**(arguments | changed()[what]), store=path)) == fresh
    new = set(Store(path)._known) - before
    same_real = what in ("seeds", "model", "class", "batch", "sampler")  # real data depend on none of these
    assert len(new) == 4 + (not same_real)


def test_names_do_not_matter_to_the_store(tmp_path):
    path = tmp_path / "s.jsonl"
    run_points(gaussian(), store=path)
    renamed = {f"my {name}": sampler for name, sampler in FEW.items()}
    found = run_points({"other": gaussian()}, samplers=renamed, store=path)
    assert counted(path) == 9 and found.points[0].name == "my edm" and found.points[0].model == "other"


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in (b"x", b"", b'{"elucidiff": "other"}\n', b'{"elucidiff": "measurements", "format": 2}\n'):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ed.errors.FormatError, match="not a file of measurements"):
            Store(tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == content


def test_functions_run_but_are_not_stored(tmp_path):
    def half(x, sigma):
        return x / 2

    found = run_points(ed.denoiser.FunctionDenoiser(half, (3,)))
    assert found.facts["models"] == {"model": "the function 'model'"}
    with pytest.raises(TypeError, match="keep nothing in files"):
        run_points(ed.denoiser.FunctionDenoiser(half, (3,)), store=tmp_path / "s.jsonl")


def test_features_of_the_same_tensor_are_extracted_once():
    calls = []

    class Watched(Identity):
        def features(self, samples):
            calls.append(samples)
            return super().features(samples)

    twin = remembering(Watched())
    tensors = [torch.full((5, 3), float(i)) for i in range(KEPT + 1)]
    for x in (tensors[0], tensors[0].clone(), tensors[0]):
        assert torch.equal(twin.features(x), Identity().features(x))
    assert len(calls) == 1 and twin == Watched()
    for x in tensors[1:]:
        twin.features(x)
    assert len(calls) == KEPT + 1
    twin.features(tensors[0])  # forgotten meanwhile
    twin.features(tensors[-1])
    assert len(calls) == KEPT + 2
    assert isinstance(remembering(DigitFeatures()), DigitFeatures)


# --- the search for the stochasticity ---------------------------------------------------------------


GRID = ChurnGrid(S_churn=(1.0, 2.0, 4.0), S_min=(0.1, 1.0), S_max=(0.5, 10.0), S_noise=(1.003, 1.007))


def test_the_default_grid_covers_what_has_an_effect():
    for steps in (18, 256):
        grid = ChurnGrid.for_steps(steps)
        assert max(grid.S_churn) / steps == pytest.approx(math.sqrt(2) - 1, abs=1e-3 / steps)
        assert min(grid.S_churn) > 0 and list(grid.S_churn) == sorted(grid.S_churn)
    assert ChurnGrid.for_steps(18, S_churn=[3], S_noise=[1.1]).values("S_noise") == (1.0, 1.1)
    assert ChurnGrid.for_steps(18, S_churn=[3]).values("S_churn") == (0, 3)
    # EDM paper, Table 5
    assert PAPER.values("S_churn") == tuple(range(0, 101, 10)) and PAPER.values("S_noise")[7] == 1.007
    assert PAPER.values("S_min")[:5] == (0, 0.005, 0.01, 0.02, 0.05) and PAPER.values("S_max")[-2:] == (80, math.inf)


def test_one_parameter_alone_and_several_jointly():
    assert alone(GRID, "S_churn") == [OFF.replace(S_churn=c) for c in (0, 1, 2, 4)]
    around = Churn(S_churn=2.0, S_min=1.0, S_max=10.0, S_noise=1.003)
    # S_max = 0.5 lies below S_min = 1 and is left out
    assert alone(GRID, "S_max", around) == [around.replace(S_max=m) for m in (10.0, math.inf)]
    bands = jointly(GRID, OFF, ["S_min", "S_max"])
    expected = [(a, b) for a in (0, 0.1, 1) for b in (0.5, 10, math.inf) if a <= b]
    assert [(c.S_min, c.S_max) for c in bands] == expected and len(expected) == 8
    assert len(jointly(GRID)) == 4 * 8 * 3
    near = jointly(GRID, Churn(S_churn=1.0), ["S_churn", "S_noise"], reach=1)
    assert [(c.S_churn, c.S_noise) for c in near] == list(itertools.product((0, 1, 2), (1, 1.003)))
    assert [c.S_churn for c in jointly(GRID, Churn(S_churn=1.4), ["S_churn"], reach=0)] == [1]
    assert combined({"S_min": [3.0], "S_max": [2.0]}) == []


def test_names_and_samplers_of_settings():
    assert (
        churn_name(Churn(S_churn=4, S_min=0.05, S_max=50, S_noise=1.003))
        == "S_churn=4 S_min=0.05 S_max=50 S_noise=1.003"
    )
    assert churn_name(OFF) == churn_name(OFF.replace(S_noise=1.1)) == "deterministic"
    named = churn_samplers(ed.EDM.sampler, alone(GRID, "S_churn"))
    assert list(named) == ["deterministic", "S_churn=1", "S_churn=2", "S_churn=4"]
    assert named["deterministic"] == ed.EDM.sampler and named["S_churn=4"].stochasticity == Churn(S_churn=4)


@pytest.mark.parametrize("values", [{"S_churn": (0.0,)}, {"S_churn": ()}, {"S_churn": (-1.0, 1.0)}, {"S_churn": (1.0,), "S_noise": (math.inf,)}])  # fmt: skip
def test_grids_that_are_none(values):
    with pytest.raises(ValueError):
        ChurnGrid(**values)


class Fake:
    """A comparison of settings whose true score is known."""

    def __init__(self, settings, score):
        named = churn_samplers(ed.EDM.sampler, settings)
        self.points = [
            type("P", (), {"name": n, "scores": {"fd": Spread((score(s.stochasticity),))}})() for n, s in named.items()
        ]


def bowl(churn) -> float:
    """Best at S_churn 4, S_min 0.1, S_max 10, S_noise 1.003; 10 without any stochasticity."""
    if not isinstance(churn, Churn):
        return 10.0
    score = (
        4
        + abs(churn.S_churn - 4)
        + 20 * (churn.S_min != 0.1) / 10
        + (churn.S_max != 10)
        + 300 * abs(churn.S_noise - 1.003)
    )
    return score


def test_the_search_finds_the_bottom_of_a_bowl_and_reports_each_stage():
    asked = []

    def run(settings):
        asked.extend(settings)
        return Fake(settings, bowl)

    search = _Search(GRID, "fd", run)
    stages = {stage.name: stage for stage in search.stages()}
    assert stages["deterministic"].selected == 10
    assert stages["S_churn alone"].churn == Churn(S_churn=4) and stages["S_churn alone"].selected == pytest.approx(
        4 + 2 + 1 + 0.9
    )
    assert stages["+ S_min, S_max"].churn == Churn(S_churn=4, S_min=0.1, S_max=10)
    assert stages["+ S_noise"].churn == Churn(S_churn=4, S_noise=1.003)
    assert stages["all"].churn == Churn(S_churn=4, S_min=0.1, S_max=10, S_noise=1.003) and stages["all"].selected == 4
    assert len(asked) == len({churn_name(s) for s in asked})  # nothing is measured twice
    assert stages["all"].tried == len({churn_name(s) for s in asked})
    alone_curve, other = search.curves.values()
    assert [x for x, _ in alone_curve] == [x for x, _ in other] == [0, 1, 2, 4]
    assert [s.mean for _, s in other] == [10, 7, 6, 4]


def test_higher_is_better_for_agreement():
    search = _Search(GRID, "agreement", None)
    search.known = {"S_churn=1": Spread((0.5,)), "S_churn=2": Spread((0.7,)), "S_churn=4": Spread((None,))}
    assert search.best(alone(GRID, "S_churn")[1:]) == Churn(S_churn=2)


def test_search_on_an_exact_model(tmp_path):
    path, grid = tmp_path / "s.jsonl", {"S_churn": [0.5, 2.0], "S_min": [0.1], "S_max": [5.0], "S_noise": [1.1]}
    arguments = {"nfe": 9, "grid": grid, "num": 30, "repeats": 2, "first_seed": 5, "store": path}
    (found,) = search_stochasticity(gaussian(), points(), {"edm": ed.EDM}, **arguments)
    assert [s.name for s in found.stages] == ["deterministic", "S_churn alone", "+ S_min, S_max", "+ S_noise", "all"]
    assert found.nfe == 9 and found.base.steps == 5 and found.facts["selection_first_seed"] == 5
    assert found.facts["first_seed"] == 5 + 2 * 30  # fresh
    reference, real = reference_and_real(points())
    for stage in found.stages:
        sampler = with_churn(found.base, stage.churn)
        fresh, plain, chosen = (
            [
                score_samples(ed.sample(ed.FixedBatch(gaussian(), 64), s, seeds=range(a, a + 30)).x, reference, real)[
                    0
                ].value
                for a in (start, start + 30)
            ]
            for s, start in ((sampler, 65), (found.base, 65), (sampler, 5))
        )
        assert stage.fresh.values == pytest.approx(fresh) and stage.selected == pytest.approx(statistics.fmean(chosen))
        gains = [p - f for p, f in zip(plain, fresh, strict=True)]
        assert stage.gain.values == pytest.approx(gains, abs=1e-12)
        assert stage.exceeds_spread is (statistics.fmean(gains) > statistics.stdev(gains))
    known = counted(path)
    (again,) = search_stochasticity(gaussian(), points(), {"edm": ed.EDM}, **arguments)
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict()) and counted(path) == known
    assert ed.Sampler.from_dict(found.to_dict()["best"]) == found.best
    with pytest.raises(ValueError, match="no number of steps fits"):
        search_stochasticity(gaussian(), points(), {"f": ed.EDM.sampler.replace(timesteps=ed.timesteps.Fixed((80, 1)))})


# --- the command line -------------------------------------------------------------------------------


def cli(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_sampler_names():
    found = sampler_specs("edm,vp, unipc,own,fast=dpmpp_2m:timesteps=logsnr:sigma_min=0.01")
    assert list(found) == ["edm", "vp", "unipc", "own", "fast"]
    assert found["own"] is None and found["vp"] == ed.VP.sampler
    assert found["unipc"] == ed.EDM.sampler.replace(solver=ed.solvers.UniPC())
    assert found["fast"] == ed.EDM.sampler.replace(
        solver=ed.solvers.DPMpp2M(), timesteps=ed.timesteps.LogSNR(), sigma_min=0.01
    )
    listed = sampler_specs("euler:timesteps=fixed:timesteps.sigmas=[80,5,0.5],edm")
    assert next(iter(listed.values())).timesteps == ed.timesteps.Fixed((80, 5, 0.5)) and len(listed) == 2
    nested = sampler_specs('edm:solver={"kind":"rk2","alpha":0.6}:stochasticity=churn')
    assert next(iter(nested.values())).solver == ed.solvers.RK2(alpha=0.6)
    assert len(sampler_specs(SAMPLERS)) == 8
    assert split_outside('a:b=[1:2]:"x:y"', ":") == ["a", "b=[1:2]", '"x:y"']


def test_sampler_files(tmp_path):
    ed.VE.sampler.save(tmp_path / "a.json")
    ed.VP.save(tmp_path / "b.json")
    found = sampler_specs(f"one={tmp_path / 'a.json'},two={tmp_path / 'b.json'}:solver=heun")
    assert found == {"one": ed.VE.sampler, "two": ed.VP.sampler.replace(solver=ed.solvers.Heun())}


def test_model_names(tmp_path):
    assert model_specs("runs/a,b=runs/b,exact:digits") == {"a": "runs/a", "b": "runs/b", "exact:digits": "exact:digits"}
    odd = tmp_path / "a,b=c"
    odd.mkdir()
    assert model_specs(str(odd)) == {"a,b=c": str(odd)}
    assert grid_values("S_churn=1,2.5,inf") == ("S_churn", [1, 2.5, math.inf])


def test_numbers_are_readable():
    assert [number(v) for v in (None, 0.012345, 1.0, 12.345, 999.4, 12345.6)] == [
        "–",
        "0.0123",
        "1",
        "12.3",
        "999",
        "12346",
    ]


QUICK = ["compare", "exact:digits", "digits", "--samplers", "edm,ve,three=euler:timesteps=fixed:timesteps.sigmas=[80,4,0.4]", "--nfe", "3,4", "--num", 45, "--repeat", 2]  # fmt: skip


def test_compare_writes_table_picture_and_store_and_resumes(capsys, tmp_path):
    out = tmp_path / "c"
    code, text, err = cli(capsys, *QUICK, "--out", out, "--json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert json.loads((out / "compare.json").read_text()) == found
    assert sorted(p.name for p in out.iterdir()) == ["compare.json", "compare.jsonl", "compare.png"]
    assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert [(p["sampler"], p["budget"]) for p in found["points"]] == [
        ("edm", 3), ("edm", 4), ("ve", 3), ("ve", 4), ("three", None),
    ]  # fmt: skip
    lines = (out / "compare.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 8  # header, real data; Heun meets 3 and 4 with the same steps, so that cell is shared
    (out / "compare.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:20])
    code, text, err = cli(capsys, *QUICK, "--out", out)
    assert code == 0 and "going on" in err
    assert json.loads((out / "compare.json").read_text()) == found
    row = next(line for line in text.splitlines() if line.startswith("│ edm"))
    best = {
        b: min((p for p in found["points"] if p["budget"] == b), key=lambda p: p["scores"]["fd"]["mean"])
        for b in (3, 4)
    }
    for point in found["points"][:2]:
        mean = number(point["scores"]["fd"]["mean"]) + (" (3)" if point["budget"] == 4 else "")
        assert ("*" if best[point["budget"]] is point else " ") + mean in row
    assert "real data at the same size" in text


def test_without_out_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli(
            capsys, "compare", "exact:digits", "digits", "--samplers", "edm", "--nfe", "1", "--num", "45", "--repeat", 1
        )[0]
        == 0
    )
    assert list(tmp_path.iterdir()) == []


def test_search_on_the_command_line(capsys, tmp_path):
    np.save(tmp_path / "points.npy", points_array())
    argv = ["compare", f"few=exact:{tmp_path / 'points.npy'}", tmp_path / "points.npy", "--search", "stochasticity", "--nfe", "3", "--num", "45", "--repeat", "2",
            "--grid", "S_churn=0.5", "--grid", "S_min=0.1", "--grid", "S_max=5", "--grid", "S_noise=1.1", "--out", tmp_path / "s"]  # fmt: skip
    code, text, _ = cli(capsys, *argv)
    assert code == 0 and "beyond spread" in text and "S_churn alone" in text
    (found,) = json.loads((tmp_path / "s/stochasticity.json").read_text())["searches"]
    best = ed.Sampler.load(tmp_path / "s/best-few-edm-3.json")
    assert best == ed.Sampler.from_dict(found["best"]) and best.stochasticity.kind == "churn"
    assert (tmp_path / "s/stochasticity.png").is_file() and (tmp_path / "s/compare.jsonl").is_file()


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/compare.jsonl").write_text("x")
    np.save(tmp_path / "points.npy", points_array())
    few = tmp_path / "points.npy"
    base, out = ["compare", f"exact:{few}", few, "--num", "45"], ["--out", tmp_path / "new"]
    return {
        "unknown sampler": ([*base, *out, "--samplers", "emd"], "did you mean 'edm'"),
        "unknown setting": ([*base, *out, "--samplers", "edm:timesteps.roh=3"], "did you mean 'rho'"),
        "setting of own": ([*base, *out, "--samplers", "own:steps=3"], "as the model records it"),
        "own of an exact model": ([*base, *out, "--samplers", "own"], "records no design"),
        "sampler twice": ([*base, *out, "--samplers", "edm,edm"], "twice"),
        "empty sampler": ([*base, *out, "--samplers", "edm,"], "empty"),
        "missing sampler file": ([*base, *out, "--samplers", "none.json"], "no such sampler file"),
        "no model": (["compare", tmp_path / "none", "digits", *out], "no such model"),
        "model twice": (["compare", "exact:digits,exact:digits", "digits", *out], "NAME=MODEL"),
        "taken folder": ([*base, "--out", tmp_path / "taken"], "would be overwritten"),
        "foreign store": ([*base, "--out", tmp_path / "foreign", "--nfe", "1", "--samplers", "edm"], "not a file of measurements"),
        "bad budget": ([*base, *out, "--nfe", "5,x"], "expected integers"),
        "budget 0": ([*base, *out, "--nfe", "0"], "at least 1"),
        "unknown metric": ([*base, *out, "--metrics", "fid"], "did you mean 'fd'"),
        "unknown search": ([*base, *out, "--search", "churn"], "stochasticity"),
        "grid without search": ([*base, *out, "--grid", "S_churn=1"], "--search"),
        "unknown grid": ([*base, *out, "--search", "stochasticity", "--grid", "S_chun=1"], "did you mean 'S_churn'"),
        "grid of words": ([*base, *out, "--search", "stochasticity", "--grid", "S_churn=a"], "S_churn=1,2,4"),
        "grid out of range": ([*base, *out, "--search", "stochasticity", "--grid", "S_churn=-1"], "at least 0"),
        "metrics of a search": ([*base, *out, "--search", "stochasticity", "--metrics", "fd,kd"], "a search has one"),
    }  # fmt: skip


def test_bad_input_gives_one_or_two_lines_and_code_2(capsys, tmp_path):
    for name, (argv, expected) in bad_inputs(tmp_path).items():
        code, out, err = cli(capsys, *argv)
        err = "\n".join(line for line in err.splitlines() if not line.startswith("going on"))
        assert (name, code, out) == (name, 2, "")
        assert expected in err and err.startswith("error: ") and len(err.splitlines()) <= 2, (name, err)


# --- pictures ---------------------------------------------------------------------------------------


def drawn(monkeypatch, draw):
    """The figure that a plot makes, and its PNG."""
    figures, png = [], quality.pictures._png
    monkeypatch.setattr(quality.pictures, "_png", lambda figure, **o: figures.append(figure) or png(figure, **o))
    content = draw()
    assert content[:4] == b"\x89PNG"
    return figures[0]


def test_the_picture_shows_every_curve_band_and_the_real_line(monkeypatch):
    adaptive = {"rk45": ed.EDM.sampler.replace(solver=ed.solvers.RK45(rtol=0.1, atol=0.1), steps=3)}
    found = run_points(gaussian(), samplers=FEW | adaptive)
    figure = drawn(monkeypatch, lambda: comparison_picture(found))
    fd, kd = figure.axes
    curves = {line.get_label(): line for line in fd.get_lines() if not line.get_label().startswith("_")}
    assert list(curves) == ["edm", "dpmpp_2m", "rk45"]
    for name, points_ in zip(curves, found.rows().values(), strict=True):
        assert curves[name].get_xdata().tolist() == [p.nfe for p in points_]
        assert curves[name].get_ydata().tolist() == [p.scores["fd"].mean for p in points_]
    assert (
        len({line.get_color() for line in curves.values()}) == 3
        and len({line.get_marker() for line in curves.values()}) == 3
    )
    real = [
        line for line in fd.get_lines() if line.get_label().startswith("_child") and len(set(line.get_ydata())) == 1
    ]
    assert any(line.get_ydata()[0] == found.real["fd"] and line.get_linestyle() == "--" for line in real)
    assert any(t.get_text().startswith("real against real: ") for t in fd.texts)
    band = next(c for c in fd.collections if len(c.get_paths()[0].vertices) > 4).get_paths()[0].vertices
    point = found.points[0].scores["fd"]
    assert band[:, 1].max() >= point.mean + point.std - 1e-9
    assert fd.get_xscale() == "log" and kd.get_ylabel().startswith("kernel distance")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["edm", "dpmpp_2m", "rk45"]


def test_ten_curves_are_told_apart():
    names = ["edm", "vp", "ve", "iddpm", *(f"s{i}" for i in range(9))]
    styles = quality.curve_styles(names)
    assert len({c for c, _ in styles.values()}) == len({m for _, m in styles.values()}) == 13
    assert quality.curve_styles(["x", "edm"])["edm"][0] == styles["edm"][0]


def test_missing_values_are_gaps_and_nothing_is_refused(monkeypatch):
    gap = quality.Curve("a", [1, 2, 3], [1.0, None, 4.0], [None, None, None])
    empty = quality.Curve("b", [1, 2], [None, None], [None, None])
    figure = drawn(monkeypatch, lambda: quality.quality_plot({"y": [gap, empty]}))
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [1, 3] and len(figure.axes[0].get_lines()) == 1
    with pytest.raises(ValueError, match="no curve"):
        quality.quality_plot({"y": [empty]})


def test_the_picture_of_a_search(monkeypatch):
    grid = {"S_churn": [0.5, 2.0], "S_min": [0.1], "S_max": [5.0], "S_noise": [1.1]}
    found = search_stochasticity(gaussian(), points(), {"edm": ed.EDM}, 9, grid=grid, num=20, repeats=2)
    axes = drawn(monkeypatch, lambda: search_picture(found)).axes[0]
    curve = next(line for line in axes.get_lines() if line.get_label() == "S_churn alone")
    assert curve.get_xdata().tolist() == [0, 0.5, 2] and axes.get_xlabel() == "S_churn"
    assert {t.get_text().split(":")[0] for t in axes.texts} == {"deterministic", "real against real"}


# --- a trained model --------------------------------------------------------------------------------


def test_a_killed_comparison_of_a_trained_model_resumes_to_the_same_table(digits_run, tmp_path):
    argv = [
        sys.executable,
        "-m",
        "elucidiff",
        "compare",
        digits_run,
        "digits",
        "--nfe",
        "5,12",
        "--num",
        "60",
        "--repeat",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, env=environment)
    run([*map(str, argv), "--out", str(tmp_path / "whole")])
    killed = subprocess.Popen(
        [*map(str, argv), "--out", str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL
    )
    store = tmp_path / "killed/compare.jsonl"
    while not store.exists() or len(store.read_bytes().splitlines()) < 20:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/compare.json").exists()
    run([*map(str, argv), "--out", str(tmp_path / "killed")])
    whole, resumed = ((tmp_path / name / "compare.json").read_text() for name in ("whole", "killed"))
    assert whole == resumed
    rows = {p["sampler"]: p["scores"]["fd"]["mean"] for p in json.loads(whole)["points"] if p["budget"] == 12}
    assert len(rows) == 8 and max(rows.values()) < 100
