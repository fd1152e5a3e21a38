"""Writes docs/solvers.md: every solver with its order, evaluations, memory and source.

    python scripts/solver_table.py

The evaluations are counted in a run of ten levels on an exact denoiser; tests/test_docs.py compares the page
with the code.
"""

from pathlib import Path

import torch

import elucidiff as ed
from elucidiff.citations import BIBTEX

PAGE = Path(__file__).parents[1] / "docs" / "solvers.md"
USE = {
    "euler": "the baseline; with σ(t) = t it is DDIM",
    "heun": "the paper's choice; robust from about 30 evaluations on",
    "midpoint": "as heun",
    "ralston": "as heun, smallest error bound of the family",
    "rk2": "the family of heun, midpoint and ralston, any α",
    "rk4": "references: many steps, smooth schedules",
    "dpm2": "as heun, for logarithmic steps",
    "ab": "LMS where σ(t) = t; `order` 1 to 4",
    "ipndm": "best of the common settings that need no data; `order` 1 to 4",
    "dpmpp_2m": "the usual choice at few steps; one past value, hard to upset",
    "dpmpp_3m": "as dpmpp_2m; `corrected` for many steps",
    "deis": "made for the VP schedule; `order` 1 to 3",
    "unipc": "few steps, with levels fitted to the model",
    "gaussian": "the best here when mean and variances of the data are given, with fitted steps",
    "rk45": "error control instead of a number of steps; references and likelihoods",
    "euler_maruyama": "the baseline of the SDE",
    "pc": "the SDE paper's sampler, for comparison",
    "dpmpp_sde": "stochastic, two evaluations a step",
    "dpmpp_2m_sde": "stochastic, one evaluation a step",
    "dpmpp_3m_sde": "stochastic, one evaluation a step",
}


ORDERS = {"ipndm": "2 (4 on equal steps)"}  # elsewhere the solver's own


def rows() -> list[str]:
    """The lines of the table, one a solver."""
    lines = []
    for kind, cls in ed.solvers.Solver.kinds().items():
        if not cls.__module__.startswith("elucidiff."):
            continue
        solver = cls()
        nfe = ed.sample(ed.GaussianDenoiser(torch.zeros(2), 1.0), ed.Sampler(solver=solver, steps=10), seeds=[0]).nfe
        calls = "by tolerance" if solver.adaptive else f"{nfe} for 10 levels"
        papers = ", ".join(BIBTEX[key].split("{")[1].split(",")[0] for key in solver.references)
        noise = "yes" if solver.draws else ""
        order = ORDERS.get(kind, solver.order)
        cells = (f"`{kind}`", solver.formula, order, calls, solver.memory, noise, papers, USE[kind])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def page() -> str:
    """The whole page."""
    return (
        "# Solvers\n\n"
        "Written by `python scripts/solver_table.py` from the code. Order: of convergence in the number of steps, as\n"
        "the tests observe it, with default parameters. Evaluations: of the network. Memory: past steps kept.\n"
        "[benchmarks.md](benchmarks.md) has the measured errors.\n\n"
        "| kind | method | order | evaluations | memory | draws noise | source | what for |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows()) + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
