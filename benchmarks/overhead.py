"""What sampling costs outside the network, and what importing the package costs.

    python benchmarks/overhead.py [--json FILE]

Prints three tables. Step overhead at batch 1: the time of a run with a denoiser that returns a stored tensor, less
the calls of that denoiser, per step, and how much that is above the plain Heun loop's (target: 50 us; rk45 steps over
levels, and a state between two of its steps costs less than one of Heun). At batch 64: the loop's share beside
the demo's network. Import: the package with all its public names, less `import torch`. Medians of repeats in which the
samplers take turns, quartiles as spread. Churn spends 50 us on its float64 noise alone, which no loop can save.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import elucidiff as ed


class Stored(ed.Denoiser):
    """A denoiser without arithmetic: it returns the same tensor."""

    def __init__(self, shape: tuple[int, ...], batch: int) -> None:
        super().__init__()
        self.shape = shape
        self.D = torch.zeros(batch, *shape)

    def denoise(self, x, sigma, **conditions):
        return self.D


class Timed(ed.Denoiser):
    """Another denoiser, with the time spent inside it."""

    def __init__(self, inner: ed.Denoiser) -> None:
        super().__init__()
        self.inner, self.seconds = inner, 0.0
        self.shape, self.label_dim = inner.shape, inner.label_dim

    def forward(self, x, sigma, **conditions):
        started = time.perf_counter()
        D = self.inner(x, sigma, **conditions)
        self.seconds += time.perf_counter() - started
        return D


def once(denoiser: ed.Denoiser, sampler: ed.Sampler, batch: int) -> tuple[float, float]:
    """(seconds outside the denoiser, seconds inside) of one run, latents and seeds made before the clock starts."""
    timed = Timed(denoiser)
    seconds = ed.sample(timed, sampler, seeds=range(batch)).seconds
    return seconds - timed.seconds, timed.seconds


def repeated(measure: Callable[[], float], repeats: int) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of many measurements."""
    return quartiles([measure() for _ in range(repeats)])


SAMPLERS = {
    "EDM, Heun": ed.EDM.sampler,
    "EDM, Heun + churn": ed.EDM.sampler.replace(stochasticity=ed.solvers.Churn(S_churn=10)),
    "VP, Euler": ed.VP.sampler,
    "VE, Euler": ed.VE.sampler,
}
SAMPLERS |= {
    kind: ed.EDM.sampler.replace(solver=solver())
    for kind, solver in ed.solvers.Solver.kinds().items()
    if kind not in ("euler", "heun")
}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    values, n = sorted(values), len(values)
    return values[n // 4], statistics.median(values), values[3 * n // 4]


def step_overhead(repeats: int) -> list[dict]:
    """Microseconds a step outside the denoiser, batch 1, 3x32x32, float64 state; the samplers take turns.

    `over_heun` compares the lower quartiles, and so does `us_per_evaluation`: the machine's other work only adds.
    """
    denoiser = Stored((3, 32, 32), 1)
    nfe = {name: ed.sample(denoiser, sampler, seeds=[0]).nfe for name, sampler in SAMPLERS.items()}
    times: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for _ in range(repeats):
        for name, sampler in SAMPLERS.items():
            times[name].append(once(denoiser, sampler, 1)[0] / sampler.steps * 1e6)
    rows = []
    for name, sampler in SAMPLERS.items():
        low, median, high = quartiles(times[name])
        row = {"sampler": name, "us_per_step": median, "low": low, "high": high, "nfe": nfe[name]}
        over = low - quartiles(times["EDM, Heun"])[0]
        rows.append({**row, "over_heun": over, "us_per_evaluation": low * sampler.steps / nfe[name]})
    return rows


def noise_draw(repeats: int, dtype: torch.dtype) -> float:
    """Microseconds to draw the noise of one step: churn in float64, twice in float32 for pc. It cannot be saved."""
    seeds = ed.seeds.Seeds([0])

    def draw():
        started = time.perf_counter()
        seeds.normal((3, 32, 32), dtype)
        return (time.perf_counter() - started) * 1e6

    return repeated(draw, repeats)[1]


def share_of_network(repeats: int) -> list[dict]:
    """The loop's time over the network's, demo network, batch 64."""
    data = ed.data.load("digits")
    network = ed.networks.for_shape(data.shape)
    denoiser = ed.Preconditioned(
        network, ed.preconditioning.EDM(data.sigma_data()), shape=data.shape, label_dim=data.label_dim
    )
    rows = []
    for name in ("EDM, Heun", "VP, Euler"):
        sampler = SAMPLERS[name]
        once(denoiser, sampler, 64)

        def ratio(s=sampler):
            outside, inside = once(denoiser, s, 64)
            return 100 * outside / inside

        low, median, high = repeated(ratio, max(repeats // 10, 5))
        rows.append({"sampler": name, "percent_of_network": median, "low": low, "high": high})
    return rows


def import_cost(repeats: int) -> dict:
    """Seconds of a fresh process: `import torch`, and torch with every public name of the package; interleaved.

    The first run of each is not timed: it writes the bytecode, which an installed package has, whatever this machine's
    PYTHONDONTWRITEBYTECODE says.
    """
    programs = {
        "torch": "import torch",
        "elucidiff": "import torch, elucidiff as ed; [getattr(ed, n) for n in ed.__all__]",
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        for repeat in range(repeats + 1):
            for name, program in programs.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, "-c", program], check=True, env=environment)
                if repeat > 0:
                    times[name].append(time.perf_counter() - started)
    extra = [b - a for a, b in zip(times["torch"], times["elucidiff"], strict=True)]
    return {
        "torch_s": statistics.median(times["torch"]),
        "extra_s": statistics.median(extra),
        "extra_max_s": max(extra),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "step_overhead": step_overhead(arguments.repeats),
        "noise_draw_us": noise_draw(arguments.repeats, torch.float64),
        "noise_draw_float32_us": noise_draw(arguments.repeats, torch.float32),
        "share_of_network": share_of_network(arguments.repeats),
        "import": import_cost(7),
    }
    print(f"machine: {result['machine']}\n")
    print("outside the network, batch 1 (target: at most 100 us a step)")
    for row in result["step_overhead"]:
        print(
            f"  {row['sampler']:<20} {row['us_per_step']:8.1f} us a step   [{row['low']:.1f}, {row['high']:.1f}]   "
            f"{row['over_heun']:+7.1f} over Heun   {row['us_per_evaluation']:5.1f} us an evaluation   NFE {row['nfe']}"
        )
    print(f"  {'of which noise':<20} {result['noise_draw_us']:8.1f} us a draw in float64 (churn)")
    print(f"  {'':<20} {result['noise_draw_float32_us']:8.1f} us a draw in float32 (pc and the other solvers)")
    print("\nloop's time in percent of the demo network's, batch 64 (target: at most 5 %)")
    for row in result["share_of_network"]:
        print(f"  {row['sampler']:<20} {row['percent_of_network']:8.2f} %     [{row['low']:.2f}, {row['high']:.2f}]")
    cost = result["import"]
    print(
        f"\nimport torch {cost['torch_s']:.2f} s; elucidiff and all its names add {cost['extra_s']:.2f} s "
        "(target: at most 0.3 s)"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
