"""What the scores cost: the Fréchet distance in 2,048 dimensions, and Inception's features.

    python benchmarks/metrics.py [--threads 1] [--dimensions 2048] [--repeats 3] [--images 16] [--json FILE]

Prints two tables. Fréchet distance: `metrics.frechet_distance` beside the matrix square root of SciPy (where it is
installed; target: 10 times faster), for more and for fewer samples than dimensions, and the error of each in the trace
tr (C_a C_b)^1/2, against the sum of the singular values of X_a X_b^T, X the centred samples: the same number without
any covariance. Features: images a second of the Inception-v3 of 2015 (random weights; their values do not matter) with
tensors in channels-last order, as the package has them, and in the plain one (target: 1.5 times), taking turns; and
the time and memory of 10,000 images. Medians.
"""

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from elucidiff.metrics import Statistics
from elucidiff.metrics.frechet import _distance as distance  # without the warning's simulation of the bias, at n <= d
from elucidiff.metrics.inception import MICRO_BATCH
from elucidiff.metrics.inception_network import InceptionNetwork, network_of, published_shapes, resized


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(median seconds, the last value)."""
    seconds, value = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), value


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated features (n, d) with variances over six decades, as those of a network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64) / d**0.5
    scales = torch.logspace(0, -3, d, dtype=torch.float64) * (1 + 0.1 * seed)
    return 0.4 + torch.randn(n, d, generator=generator, dtype=torch.float64) * scales @ mixing


def exact_trace(x: torch.Tensor, y: torch.Tensor) -> float:
    """The trace of (C_x C_y)^1/2, from the samples."""
    centred = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    a, b = (torch.linalg.qr(s).R if len(s) > 2 * s.shape[1] else s for s in centred)
    return float(torch.linalg.svdvals(a @ b.mT).sum())


def trace_of(distance: float, a: Statistics, b: Statistics) -> float:
    """The trace of the root that a distance holds."""
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - distance) / 2


def by_scipy(a: Statistics, b: Statistics) -> float:
    """The distance as it is commonly written: the real part of the square root of C_a C_b."""
    from scipy.linalg import sqrtm

    root = sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace()) - 2 * float(root.trace().real)


def frechet(d: int, repeats: int) -> list[dict]:
    """Time and error of both ways, for more and for fewer samples than dimensions."""
    peer, rows = importlib.util.find_spec("scipy") is not None, []
    for n in (10 * d, d + d // 4, d // 2):
        x, y = features(n, d, 0), features(n, d, 1)
        a, b = Statistics.of(x), Statistics.of(y)
        expected = exact_trace(x, y)
        row = {"n": n, "d": d}
        row["seconds"], value = timed(lambda two=(a, b): distance(*two), repeats)
        row["error"] = abs(trace_of(value, a, b) / expected - 1)
        if peer:
            row["scipy_seconds"], value = timed(lambda two=(a, b): by_scipy(*two), 1)
            row["scipy_error"] = abs(trace_of(value, a, b) / expected - 1)
        rows.append(row)
    return rows


def networks() -> dict[str, InceptionNetwork]:
    """The same network in the two orders of memory."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in published_shapes().items():
        z = torch.randn(shape, generator=generator)
        tensors[name] = z / z[0].numel() ** 0.5 if len(shape) > 1 else z.abs() + 0.5
    plain = network_of(tensors, "random").to(memory_format=torch.contiguous_format)
    return {"channels-last": network_of(tensors, "random"), "plain": plain}


@torch.no_grad()
def inception(images: int, repeats: int) -> dict:
    """Images a second in either order, with the resize from 32x32, and the greatest relative difference."""
    orders = {"channels-last": torch.channels_last, "plain": torch.contiguous_format}
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (images, 3, 32, 32), generator=generator).float()
    both = networks()

    def run(order: str) -> torch.Tensor:
        parts = [resized(part).contiguous(memory_format=orders[order]) for part in x.split(MICRO_BATCH)]
        return torch.cat([both[order](part) for part in parts])

    found = {order: run(order) for order in orders}  # also the warming up
    seconds: dict[str, list[float]] = {order: [] for order in orders}
    for _ in range(repeats):
        for order, taken in seconds.items():
            taken.append(timed(lambda order=order: run(order), 1)[0])
    row = {order: images / statistics.median(taken) for order, taken in seconds.items()}
    difference = (found["channels-last"] - found["plain"]).abs().max() / found["plain"].abs().max()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 if sys.platform == "linux" else float("nan")
    return {"images_per_second": row, "difference": float(difference), "peak_mb_of_the_process": memory}


def markdown(rows: list[dict], features: dict, where: str) -> str:
    """Both tables."""
    lines = [
        where,
        "",
        "| Fréchet distance | seconds | error | SciPy's sqrtm, seconds | error | times faster |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        name = f"{r['n']:,} samples, {r['d']:,} dimensions"
        peer = "| not installed | | |"
        if "scipy_seconds" in r:
            peer = f"| {r['scipy_seconds']:.2f} | {r['scipy_error']:.1e} | {r['scipy_seconds'] / r['seconds']:.1f} |"
        lines.append(f"| {name} | {r['seconds']:.2f} | {r['error']:.1e} {peer}")
    rate = features["images_per_second"]
    lines += [
        "",
        "| Inception's features | images / s | minutes per 10,000 |",
        "|---|---:|---:|",
        *(f"| {order} | {n:.1f} | {10_000 / n / 60:.1f} |" for order, n in rate.items()),
        "",
        f"Channels-last is {rate['channels-last'] / rate['plain']:.2f} times the plain order; the features differ by "
        f"at most {features['difference']:.1e} of the largest. 10,000 images' features take "
        f"{10_000 * 2048 * 8 / 2**20:.0f} MB; the process took {features['peak_mb_of_the_process']:.0f} MB at most.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pictures = inception(options.images, options.repeats)  # first: its peak of memory is its own
    rows = frechet(options.dimensions, options.repeats)
    where = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(markdown(rows, pictures, where))
    if options.json:
        options.json.write_text(json.dumps({"where": where, "frechet": rows, "inception": pictures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
