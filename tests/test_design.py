"""Design, Sampler and components: Table 1's constants, JSON, replacement, citations, and refusals."""

import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import objective as ob
from elucidiff import preconditioning as pc
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.citations import BIBTEX
from elucidiff.component import Component, Value
from elucidiff.errors import FormatError

PRESETS = {"vp": ed.VP, "ve": ed.VE, "iddpm": ed.IDDPM, "edm": ed.EDM}
ROLES = {
    fm.Schedule: "edm ve vp cosine flow sde table", fm.Scaling: "none vp flow",
    ts.TimeSteps: "edm vp ve iddpm logsnr uniform cosine fixed",
    so.Solver: "euler heun midpoint ralston rk2 rk4 dpmpp_2m", so.Stochasticity: "none churn ancestral",
    pc.Preconditioning: "edm vp ve iddpm flow epsilon v x0",
    ob.NoiseDistribution: "lognormal vp_uniform loguniform iddpm logit_normal empirical",
    ob.Weighting: "edm inverse_variance uniform min_snr",
}  # fmt: skip
NEEDED = {
    "table": {"alpha_bar": (0.9, 0.5, 0.1)},
    "fixed": {"sigmas": (10.0, 1.0)},
    "empirical": {"sigmas": (1.0, 2.0)},
}
COMPONENTS = {
    f"{role.role} {kind}": cls(**NEEDED.get(kind, {}))
    for role, kinds in ROLES.items() for kind in kinds.split() for cls in [role.of_kind(kind)] if kind != "sde"
}  # fmt: skip


# Table 1


def kinds(design: ed.Design) -> tuple[str, ...]:
    names = ("solver", "timesteps", "schedule", "scaling", "stochasticity", "preconditioning", "noise", "weighting")
    return tuple(design.components()[name].kind for name in names)


def test_the_presets_are_the_columns_of_table_1():
    inverse = "inverse_variance"
    assert {name: kinds(design) for name, design in PRESETS.items()} == {
        "vp": ("euler", "vp", "vp", "vp", "none", "vp", "vp_uniform", inverse),
        "ve": ("euler", "ve", "ve", "none", "none", "ve", "loguniform", inverse),
        "iddpm": ("euler", "iddpm", "edm", "none", "none", "iddpm", "iddpm", inverse),
        "edm": ("heun", "edm", "edm", "none", "none", "edm", "lognormal", "edm"),
    }


def test_the_presets_have_the_constants_of_table_1():
    def parameters(design, name):
        return {k: v for k, v in design.components()[name].to_dict().items() if k != "kind"}

    vp = {"beta_d": 19.9, "beta_min": 0.1}
    assert parameters(ed.VP, "schedule") == vp
    assert parameters(ed.VP, "timesteps") == {"eps_s": 1e-3}
    assert parameters(ed.VP, "preconditioning") == vp | {"M": 1000, "eps_t": 1e-5}
    assert parameters(ed.VP, "noise") == vp | {"eps_t": 1e-5}
    assert parameters(ed.VE, "noise") == parameters(ed.VE, "preconditioning") == {"sigma_min": 0.02, "sigma_max": 100}
    assert ed.VE.sampler.timesteps.range() == (0.02, 100)
    iddpm = {"M": 1000, "C1": 0.001, "C2": 0.008}
    assert all(parameters(ed.IDDPM, name) == iddpm for name in ("timesteps", "preconditioning", "noise"))
    assert parameters(ed.EDM, "timesteps") == {"rho": 7}
    assert ed.EDM.sampler.timesteps.range() == (0.002, 80)
    assert parameters(ed.EDM, "noise") == {"P_mean": -1.2, "P_std": 1.2}
    assert parameters(ed.EDM, "preconditioning") == parameters(ed.EDM, "weighting") == {"sigma_data": 0.5}
    assert ed.EDM.sampler.steps == 18


def test_table_1_is_printed_with_every_row_and_constant():
    table = ed.compare_designs(ed.VP, ed.VE, ed.IDDPM, ed.EDM)
    flat = re.sub(r"[│\s]+", " ", table)
    for heading in ("VP", "VE", "iDDPM + DDIM", "EDM", "Sampling", "Training", "Parameters"):
        assert heading in flat
    for row in ("ODE solver", "time steps", "schedule σ(t)", "scaling s(t)", "stochasticity", "c_skip", "c_out", "c_in",
                "c_noise", "noise distribution", "loss weighting"):  # fmt: skip
        assert len([line for line in table.splitlines() if row in line]) == 1, row
    for cell in ("Euler", "2nd-order Heun", "σ(t) = √t", "σ(t) = t", "(M − 1) σ⁻¹(σ)", "ln(σ/2)", "ln(σ)/4", "1/√(σ² + 1)",
                 "beta_d = 19.9", "beta_min = 0.1", "eps_s = 0.001", "eps_t = 1e-05", "M = 1000", "C1 = 0.001", "C2 = 0.008",
                 "rho = 7", "P_mean = -1.2", "P_std = 1.2", "sigma_data = 0.5", "sigma_max = 100", "sigma_min = 0.02",
                 "sigma_max = 81", "sigma_max = 80", "sigma_min = 0.002"):  # fmt: skip
        assert cell in flat, cell


def test_a_design_prints_as_its_column():
    text = str(ed.EDM)
    assert "2nd-order Heun" in text and "Euler" not in text and "rho = 7" in text


# JSON


@pytest.mark.parametrize("role", ROLES, ids=lambda r: r.role)
def test_the_kinds_of_every_role_are_those_of_the_contract(role):
    assert set(ROLES[role].split()) <= set(role.kinds())


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_survives_json(name):
    component = COMPONENTS[name]
    data = json.loads(json.dumps(component.to_dict(), allow_nan=False))
    role = next(r for r in ROLES if r.role == name.split()[0])
    assert role.from_dict(data) == component
    assert type(role.from_dict(data)) is type(component) and data["kind"] == name.split()[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_file(name, tmp_path):
    PRESETS[name].save(tmp_path / "design.json")
    assert ed.Design.load(tmp_path / "design.json") == PRESETS[name]
    PRESETS[name].sampler.save(tmp_path / "sampler.json")
    assert ed.Sampler.load(tmp_path / "sampler.json") == PRESETS[name].sampler


def test_infinity_is_the_string_inf():
    data = so.Churn(S_churn=3).to_dict()
    assert data == {"kind": "churn", "S_churn": 3.0, "S_min": 0.0, "S_max": "inf", "S_noise": 1.0}
    assert so.Stochasticity.from_dict(data).S_max == math.inf
    assert ob.LogNormal(P_mean=-math.inf).to_dict()["P_mean"] == "-inf"


def test_numpy_integers_become_plain_ones():
    steps = torch.tensor(7).numpy()[()]
    assert json.dumps(ed.Sampler(steps=steps).to_dict()) == json.dumps(ed.Sampler(steps=7).to_dict())


def test_functions_have_no_json_form():
    with pytest.raises(TypeError, match="Python functions cannot be saved"):
        fm.SDE(f=torch.zeros_like, g=torch.ones_like).to_dict()


floats = st.floats(1e-3, 1e3)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    S_churn=st.floats(0, 1e6), S_max=st.one_of(floats, st.just(math.inf)), S_noise=st.floats(0, 10), alpha=st.floats(1e-6, 1),
    rho=st.floats(0.5, 1e3), beta_d=floats, beta_min=floats, steps=st.integers(1, 1000), low=st.floats(1e-6, 0.9), high=st.floats(1, 1e6),
    sigma_data=floats, sigmas=st.lists(floats, min_size=1, max_size=8), name=st.text(max_size=10),
    alpha_bar=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6, unique=True),
)  # fmt: skip
def test_every_design_equals_itself_after_json(
    S_churn, S_max, S_noise, alpha, rho, beta_d, beta_min, steps, low, high, sigma_data, sigmas, name, alpha_bar
):
    design = ed.Design(
        name=name,
        sampler=ed.Sampler(
            schedule=fm.Table(tuple(sorted(alpha_bar, reverse=True))), scaling=fm.FlowScaling(), timesteps=ts.EDM(rho),
            solver=so.RK2(alpha), stochasticity=so.Churn(S_churn, 0.0, S_max, S_noise), steps=steps, sigma_min=low,
            sigma_max=high,
        ),
        preconditioning=pc.V(schedule=fm.VP(beta_d, beta_min)),
        objective=ed.Objective(noise=ob.Empirical(tuple(sigmas)), weighting=ob.EDM(sigma_data)),
    )  # fmt: skip
    assert ed.Design.from_dict(json.loads(json.dumps(design.to_dict(), allow_nan=False))) == design


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"smpler": {}}, "'smpler'; did you mean 'sampler'"),
        ({"sampler": {"solvr": {"kind": "heun"}}}, "'solvr'; did you mean 'solver'"),
        ({"sampler": {"solver": {"kind": "huen"}}}, "unknown solver 'huen'; did you mean 'heun'"),
        ({"sampler": {"solver": {"kind": "rk2", "alhpa": 1}}}, "'alhpa'; did you mean 'alpha'"),
        ({"sampler": {"solver": {"kind": None}}}, "unknown solver None"),
        ({"sampler": {"solver": {"kind": []}}}, r"unknown solver \[\]"),
        ({"sampler": {"solver": {}}}, 'expected an object with "kind"'),
        ({"sampler": {"solver": "heun"}}, "Sampler.solver: got 'heun'.*Solver"),
        ({"sampler": {"solver": {"kind": "vp"}}}, "unknown solver 'vp'"),
        ({"sampler": {"timesteps": {"kind": "fixed"}}}, "sigmas"),
        ({"sampler": {"steps": "18"}}, "Sampler.steps: got '18'.*int"),
        ({"sampler": {"sigma_max": "80"}}, "Sampler.sigma_max: got '80'.*float"),
        ({"sampler": [1]}, "Design.sampler: got .*Sampler"),
        ({"name": 3}, "Design.name: got 3.*str"),
    ],
)
def test_a_wrong_file_is_refused_with_the_name_of_the_fault(data, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        ed.Design.from_dict(data)
    path = tmp_path / "design.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=re.compile(f"design.json.*{message}", re.DOTALL)):
        ed.Design.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"sampler": {"sigma_max": NaN}}', b"null"])
def test_what_is_no_design_file_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.json: not a design file"):
        ed.Design.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        ed.Design.load(tmp_path / "absent.json")


# refusals by type


@pytest.mark.parametrize("bad", ["7", True, None, [7.0], 7j, math.nan])
def test_a_number_must_be_a_number(bad):
    with pytest.raises((TypeError, ValueError), match=r"EDM\.rho: got"):
        ts.EDM(rho=bad)


@pytest.mark.parametrize("bad", ["7", True, None, 7.0, 7.5])
def test_an_integer_must_be_an_integer(bad):
    with pytest.raises(TypeError, match=r"Sampler\.steps: got .*int"):
        ed.Sampler(steps=bad)


@pytest.mark.parametrize("bad", ["12", 3.0, None, (1.0, "2"), (1.0, None), (math.nan,)])
def test_a_list_of_numbers_must_be_one(bad):
    with pytest.raises((TypeError, ValueError), match=r"Fixed\.sigmas(\[\d\])?: got"):
        ts.Fixed(bad)


@pytest.mark.parametrize("bad", ["heun", so.Heun, None, fm.VP(), {"kind": "heun"}])
def test_an_element_must_be_of_its_role(bad):
    with pytest.raises(TypeError, match=r"Sampler\.solver: got .*expected Solver"):
        ed.Sampler(solver=bad)


def test_values_are_frozen_hashable_and_compare_by_value():
    assert so.Churn(40) == so.Churn(S_churn=40.0) != so.Churn(41) and len({so.Heun(), so.Heun(), so.Euler()}) == 2
    assert ts.EDM() != fm.EDM()
    assert ts.Fixed([3, 2, 1]) == ts.Fixed((3.0, 2.0, 1.0))
    with pytest.raises(AttributeError):
        ed.EDM.sampler.steps = 3


# replace


def test_replace_finds_the_record_of_an_element():
    design = ed.EDM.replace(solver=so.Euler(), steps=7, noise=ob.LogUniform(), preconditioning=pc.VE(), name="mine")
    assert (design.sampler.solver, design.sampler.steps) == (so.Euler(), 7)
    assert (design.objective.noise, design.preconditioning, design.name) == (ob.LogUniform(), pc.VE(), "mine")
    assert design.sampler.timesteps == ed.EDM.sampler.timesteps and ed.EDM.sampler.steps == 18
    both = ed.EDM.replace(sampler=ed.VP.sampler, steps=3)
    assert both.sampler == ed.VP.sampler.replace(steps=3)


def test_a_changed_preset_says_so():
    assert ed.EDM.replace(steps=5).name == "EDM (modified)"
    assert ed.EDM.replace(steps=5).replace(steps=6).name == "EDM (modified)"
    assert ed.EDM.replace(steps=18).name == "EDM"
    assert ed.Design().replace(steps=5).name == ""


@pytest.mark.parametrize(("element", "near"), [("solvr", "solver"), ("step", "steps"), ("weigthing", "weighting")])
def test_replace_refuses_unknown_elements_and_names_the_nearest(element, near):
    with pytest.raises(ValueError, match=f"{element}'; did you mean '{near}'"):
        ed.EDM.replace(**{element: 3})
    if element != "weigthing":
        with pytest.raises(ValueError, match=f"{element}'; did you mean '{near}'"):
            ed.Sampler().replace(**{element: 3})


def test_replace_checks_the_result():
    with pytest.raises(ValueError, match="steps: got 0"):
        ed.EDM.replace(steps=0)
    with pytest.raises(TypeError, match=r"Sampler\.solver"):
        ed.EDM.replace(solver="heun")


def test_sigma_data_goes_wherever_an_element_has_it():
    design = ed.EDM.with_sigma_data(0.7)
    assert design.sigma_data == design.preconditioning.sigma_data == design.objective.weighting.sigma_data == 0.7
    assert design.name == "EDM"
    sigma = torch.tensor([0.3, 4.0], dtype=torch.float64)
    c_out = design.preconditioning.coefficients(sigma)[1]
    assert (design.objective.weighting(sigma) * c_out**2 - 1).abs().max() <= 1e-14
    assert ed.VP.with_sigma_data(0.7) == ed.VP and ed.VP.sigma_data is None


# citations


def keys(text: str) -> set[str]:
    return set(re.findall(r"@\w+\{(\w+),", text))


def test_a_citation_names_exactly_the_papers_of_the_elements():
    names = {key: next(iter(keys(entry))) for key, entry in BIBTEX.items()}
    assert keys(ed.citation(ed.EDM)) == {"karras2022edm"}
    assert keys(ed.citation(ed.VE)) == {names[k] for k in ("sde", "ddim", "ddpm")}
    assert keys(ed.citation(ed.EDM.sampler.replace(solver=so.DPMpp2M()))) == {names[k] for k in ("edm", "dpmpp")}
    for design in PRESETS.values():
        wanted = {names[key] for component in design.components().values() for key in component.references}
        assert keys(ed.citation(design)) == wanted


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_has_a_formula_and_papers_that_exist(name):
    component = COMPONENTS[name]
    assert set(component.references) <= set(BIBTEX)
    assert component.formula or component.formula_skip


# extension: in at most 8 lines each, working from JSON


class Power(fm.Schedule, kind="test_power"):
    exponent: float = 3.0

    def sigma(self, t):
        return t**self.exponent


class Exponential(so.Solver, kind="test_exponential"):
    def step(self, run, x, t, t_next):
        D, ratio = run.denoise(x, t), run.sigma(t_next) / run.sigma(t)
        return run.scale(t_next) * (D + ratio * (x / run.scale(t) - D))


class Half(pc.Preconditioning, kind="test_half"):
    def coefficients(self, sigma):
        one = torch.ones_like(sigma)
        return one / 2, sigma / 2, 1 / (1 + sigma), sigma.log()


def test_new_kinds_work_from_json():
    data = {
        "sampler": {"schedule": {"kind": "test_power", "exponent": 2}, "solver": {"kind": "test_exponential"}},
        "preconditioning": {"kind": "test_half"},
    }
    design = ed.Design.from_dict(json.loads(json.dumps(data)))
    assert ed.Design.from_dict(design.to_dict()) == design
    gaussian = ed.GaussianDenoiser(torch.zeros(2), 0.5)
    # the exponential step is Euler's under sigma(t) = t, whatever the schedule
    expected = ed.sample(gaussian, ed.Sampler(solver=so.Euler()), seeds=range(4)).x
    assert (ed.sample(gaussian, design, seeds=range(4)).x - expected).abs().max() <= 1e-12
    heun = ed.sample(gaussian, design.replace(solver=so.Heun(), steps=400), seeds=range(4)).x
    closed = ed.sample(gaussian, ed.Sampler(steps=400), seeds=range(4)).x
    assert (heun - closed).abs().max() <= 1e-3
    network = torch.nn.Identity()
    network.forward = lambda x, c_noise: x
    D = ed.Preconditioned(network, design.preconditioning, shape=(2,))(torch.ones(1, 2), 3.0)
    assert D.tolist() == [[0.5 + 1.5 / 4] * 2]


def test_a_kind_cannot_be_taken_twice():
    with pytest.raises(TypeError, match=r"schedule 'vp' is taken by elucidiff\.formulation\.VP"):

        class Again(fm.Schedule, kind="vp"):
            pass

    assert fm.Schedule.of_kind("vp") is fm.VP


def test_one_name_may_serve_two_roles():
    assert Component.kinds() == {}
    assert fm.Schedule.of_kind("vp") is not fm.Scaling.of_kind("vp")


class Range(Value):
    """A value of the users'."""

    low: float
    high: float | None = None
    names: tuple[str, ...] = ()

    def validate(self):
        if self.high is not None and self.high < self.low:
            raise ValueError("high below low")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    low=st.floats(allow_nan=False),
    high=st.none() | st.floats(allow_nan=False),
    names=st.lists(st.text(max_size=5), max_size=3),
)
def test_any_value_equals_itself_after_json_or_is_refused(low, high, names):
    if high is not None and high < low:
        with pytest.raises(ValueError, match="high below low"):
            Range(low, high)
        return
    value = Range(low, high, tuple(names))
    assert Range.from_dict(json.loads(json.dumps(value.to_dict(), allow_nan=False))) == value
