"""The documents: the table of solvers is the code's, and the README's example code runs."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import elucidiff as ed

REPOSITORY = Path(__file__).parents[1]


def test_the_table_of_solvers_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("solver_table", REPOSITORY / "scripts/solver_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs/solvers.md").read_text() == module.page()


def test_every_kind_in_the_readme_exists_and_every_kind_is_in_the_readme():
    roles = {
        "schedule σ(t)": ed.formulation.Schedule, "scaling s(σ)": ed.formulation.Scaling, "time steps": ed.timesteps.TimeSteps,
        "solver": ed.solvers.Solver, "stochastic solver": ed.solvers.Solver, "stochasticity": ed.solvers.Stochasticity,
        "preconditioning": ed.preconditioning.Preconditioning, "training noise": ed.objective.NoiseDistribution,
        "loss weight": ed.objective.Weighting, "network": ed.networks.Network,
    }  # fmt: skip
    listed: dict[type, set[str]] = {}
    for line in (REPOSITORY / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 2 and cells[1] in roles:
            words = set(re.findall(r"`([a-z0-9_]+)`", cells[2]))
            listed.setdefault(roles[cells[1]], set()).update(words)
    assert set(listed) == set(roles.values())
    for role, kinds in listed.items():
        assert kinds == {k for k, c in role.kinds().items() if c.__module__.startswith("elucidiff.")}, role


@pytest.mark.filterwarnings("ignore:.*label_dropout")
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    """Every block that needs no files, with a shorter training; what they write lands in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    first = blocks[0].replace('out="runs/digits")', 'out="runs/digits", images=256)')
    assert "images=256" in first
    scope: dict = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 16
    assert ed.Sampler.load(tmp_path / "sampler.json") == scope["sampler"]
    second = blocks[1].replace('ed.load("exact:photos.zip")', 'ed.load("exact:digits")')
    exec(compile(second, "README.md", "exec"), scope)
    assert scope["exact"].shape == (1, 8, 8)
    scope |= {
        "x": scope["result"].x[:2],
        "known": torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5,
    }
    third = next(b for b in blocks if "posterior" in b).replace("steps=200", "steps=6")
    assert "steps=6" in third
    exec(compile(third, "README.md", "exec"), scope)
    assert scope["latents"].shape == scope["x"].shape
