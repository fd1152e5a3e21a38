"""How fast training steps are: images a second under each option, beside a plain loop.

    python benchmarks/training.py [--rounds 7] [--steps 3] [--threads 2] [--cpu-time] [--no-compile] [--json FILE]

The baseline, `Plain` below, is written here from the formulas, knows nothing of the package's trainer, and does what a
simple script would: eager float32, contiguous tensors, torch.optim.Adam as it comes, an average of weights kept by a
loop over parameters, torch's own generator. All rows train the same network on the same data with EDM's design. In each
round every row makes `--steps` steps, in an order rotated by one from round to round; a row's figure is the median
over rounds, its ratio the median of the rounds' ratios to the plain loop, with the least and the greatest.

Networks: the digits demo's on 8 x 8, and DDPM++ with 16 channels on 28 x 28 and with 32 on 3 x 32 x 32. On CUDA also
DDPM++ for CIFAR-10 (55.7 million parameters) in bfloat16, compiled or not, with the share of the device's rate of
matrix products, measured here, that its multiplications are. Data are random pixels: speed does not depend on them.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import elucidiff as ed
from elucidiff.data import from_arrays
from elucidiff.training import Trainer

DDPMPP = ed.networks.DDPMPP
PROBLEMS = {
    "digits 1x8x8": ((1, 8, 8), ed.networks.for_shape((1, 8, 8)), 64),
    "1x28x28": ((1, 28, 28), DDPMPP(channels=16, multipliers=(1, 2, 2), blocks=1, attention=(7,)), 32),
    "3x32x32": ((3, 32, 32), DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(16,)), 16),
}
OPTIONS = {
    "as it comes": {},
    "accumulate=4": {"accumulate": 4},
    "muon": {"optimizer": "muon"},
    "channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, channels_last": {"precision": "bfloat16", "channels_last": True},
}
COMPILED = {
    "compile": {"compile": True},
    "bfloat16, channels_last, compile": {"precision": "bfloat16", "channels_last": True, "compile": True},
}
CUDA = {"bfloat16": {"precision": "bfloat16"}, "bfloat16, compile": {"precision": "bfloat16", "compile": True}}
CUDA |= {f"{name}, channels_last": {**options, "channels_last": True} for name, options in CUDA.items()}
WARM = 2  # steps before the clock


class Plain:
    """EDM's training loop as a script would have it; `network` is called as F(c_in x, c_noise)."""

    def __init__(self, network: torch.nn.Module, images: Tensor, sigma_data: float, batch: int, device: str) -> None:
        self.network = network.to(device).train()
        self.average = copy.deepcopy(self.network).eval()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.images, self.sigma_data, self.batch, self.device, self.seen = images, sigma_data, batch, device, 0

    def step(self) -> float:
        """One step; its loss."""
        rows = torch.randint(len(self.images), (self.batch,))
        y = self.images[rows].float().div(127.5).sub(1).to(self.device)
        sigma = (torch.randn(self.batch, 1, 1, 1, device=self.device) * 1.2 - 1.2).exp()
        s, x = self.sigma_data, y + sigma * torch.randn_like(y)
        norm = (sigma**2 + s**2).sqrt()
        F = self.network(x / norm, sigma.log().flatten() / 4)
        D = s**2 / norm**2 * x + sigma * s / norm * F
        loss = (norm**2 / (sigma * s) ** 2 * (D - y) ** 2).sum() / self.batch
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seen += self.batch
        beta = 0.5 ** (self.batch / min(30_000, 0.05 * self.seen))
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.copy_(weight + beta * (average - weight))
        return loss.item()


def rows_of(
    shape: tuple[int, ...], network: ed.networks.Network, batch: int, options: dict[str, dict], device: str
) -> tuple[dict[str, Callable[[], object]], Trainer]:
    """A step of each row, by name, the plain loop first; and a trainer as it comes."""
    values = np.random.default_rng(0).integers(0, 256, (2048, *shape), dtype=np.uint8)
    data = from_arrays(values, None, None, name="noise")
    torch.manual_seed(0)
    plain = Plain(network.build(shape, 0), torch.from_numpy(values), data.sigma_data(), batch, device)
    base = ed.TrainConfig(network=network, batch=batch, device=device, conditional=False)
    trainers = {name: Trainer.start(base.replace(**changes), data) for name, changes in options.items()}
    steps = {"plain loop": plain.step} | {name: trainer.train_step for name, trainer in trainers.items()}
    return steps, Trainer.start(base, data)


def warmed(steps: dict[str, Callable[[], object]]) -> dict[str, str]:
    """Make each row's first steps, in which it compiles; what failed, with the reason, is taken out of `steps`."""
    failed = {}
    for name, step in list(steps.items()):
        try:
            for _ in range(WARM):
                step()
        except Exception as error:
            if "compile" not in name:
                raise
            lines = str(error).strip().splitlines() or [""]
            failed[name] = f"{type(error).__name__}: {lines[0][:160]}"
            del steps[name]
    return failed


def timed(step: Callable[[], object], steps: int, clock: Callable[[], float]) -> float:
    """Seconds a step. Every step ends by reading its loss, for which a GPU has to be done."""
    started = clock()
    for _ in range(steps):
        step()
    return (clock() - started) / steps


def measured(
    name: str,
    shape: tuple[int, ...],
    network: ed.networks.Network,
    batch: int,
    options: dict[str, dict],
    device: str,
    rounds: int,
    count: int,
    clock: Callable[[], float],
) -> dict:
    """The rows of one network."""
    steps, trainer = rows_of(shape, network, batch, options, device)
    failed = warmed(steps)
    seconds: dict[str, list[float]] = {row: [] for row in steps}
    order = list(steps)
    for turn in range(rounds):
        print(f"{name}: round {turn + 1} of {rounds}", file=sys.stderr)
        for row in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[row].append(timed(steps[row], count, clock))
    ratios = {row: [p / s for p, s in zip(seconds["plain loop"], seconds[row], strict=True)] for row in steps}
    return {
        "problem": name,
        "batch": batch,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "flops_per_image": flops_of(trainer),
        "failed": failed,
        "rows": [
            {
                "option": row,
                "images_per_second": batch / statistics.median(seconds[row]),
                "slowest": batch / max(seconds[row]),
                "fastest": batch / min(seconds[row]),
                "ratio": statistics.median(ratios[row]),
                "ratio_low": min(ratios[row]),
                "ratio_high": max(ratios[row]),
            }
            for row in steps
        ],
    }


def flops_of(trainer: Trainer) -> float:
    """Floating-point operations of one training step for each image: products and sums of matrices, convolutions."""
    with FlopCounterMode(display=False) as counter:
        trainer.train_step()
    return counter.get_total_flops() / trainer.config.batch


def matrix_rate(device: str, side: int = 8192) -> float:
    """Floating-point operations a second of a product of square bfloat16 matrices, the best of ten."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(13):
        torch.cuda.synchronize()
        started = time.perf_counter()
        _ = a @ a
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def machine(device: str) -> str:
    """The machine, in words."""
    name, facts = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device == "cuda":
        name = torch.cuda.get_device_name(device)
    elif facts.is_file():
        names = [line.partition(":")[2].strip() for line in facts.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{platform.system()}, {name}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"


def as_markdown(result: dict) -> str:
    """The tables."""
    lines = [f"- {name}: {fact}" for name, fact in result.items() if name != "problems"]
    for found in result["problems"]:
        lines += ["", f"**{found['problem']}**, {found['parameters']:,} parameters, batch {found['batch']}", ""]
        lines += [
            "| step | images/s | slowest to fastest round | ratio to plain | range |",
            "| :-- | --: | --: | --: | --: |",
        ]
        for row in found["rows"]:
            lines.append(
                f"| {row['option']} | {row['images_per_second']:,.0f} | {row['slowest']:,.0f} to {row['fastest']:,.0f} "
                f"| {row['ratio']:.2f} | {row['ratio_low']:.2f} to {row['ratio_high']:.2f} |"
            )
        lines += [f"| {name} | did not run: {reason} | | | |" for name, reason in found["failed"].items()]
        if "matrix_rate" in found:
            best = max(row["images_per_second"] for row in found["rows"])
            share, rate = best * found["flops_per_image"] / found["matrix_rate"], found["matrix_rate"] / 1e12
            lines += [
                "",
                f"The fastest does {100 * share:.1f} % of the {rate:,.0f} teraflop/s that a product of bfloat16 "
                f"matrices does here ({found['flops_per_image'] / 1e9:.1f} gigaflop a step and image).",
            ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a row in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of CPU: for busy machines, with --threads 1")
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--no-compile", action="store_true", help="compiling takes minutes a network on CPUs")
    parser.add_argument("--compile-problems", nargs="*", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    sizes = (arguments.rounds, arguments.steps, clock)
    before = os.getloadavg()[0]
    found = []
    for name in arguments.problems:
        compiled = {} if arguments.no_compile or name not in arguments.compile_problems else COMPILED
        found.append(measured(name, *PROBLEMS[name], OPTIONS | compiled, device, *sizes))
    if device == "cuda":
        rate = matrix_rate(device)
        cifar = ed.networks.preset("ddpmpp-cifar10", augment_dim=0)
        row = measured("CIFAR-10, DDPM++ 3x32x32", (3, 32, 32), cifar, 512, CUDA, device, *sizes)
        found.append(row | {"matrix_rate": rate})
    result = {
        "elucidiff": ed.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(device),
        "clock": "CPU seconds of the process" if arguments.cpu_time else "wall clock",
        "load": f"{before:.1f} before, {os.getloadavg()[0]:.1f} after (1 minute's mean, ours included)",
        "date": date.today().isoformat(),
        "problems": found,
    }
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
