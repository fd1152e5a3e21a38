"""Runs the tests of the reliability promises at full size and writes docs/reliability.md of what they recorded.

    python scripts/chaos.py            (`make chaos`)
    python scripts/chaos.py --tenth    the sizes of every other run of the tests, and the page says so

Those are the tests marked `chaos`, that is all that ask for the fixture `promise` of tests/conftest.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

import elucidiff as ed

HOME = Path(__file__).parents[1]
PAGE = HOME / "docs" / "reliability.md"

RUNS = {
    "R1": "Exact resume: whatever the step, a run that stopped and went on has the bits of one that never did.",
    "R2": "`kill -9` at random moments: the same bits.",
    "R3": "Writing is atomic: a crash before any call that writes loses one interval at most.",
    "R4": "A newest checkpoint that is damaged is passed over with one line; if none is good, exit code 3.",
    "R5": "The last two checkpoints are kept, exactly; at every instant one is good.",
    "R6": "SIGTERM, SIGINT, time limit: saved, exit code 85 within 10 s and a step; a second signal ends at once.",
    "R7": "Disk full: earlier checkpoints load, temporary files are gone, the message has path and bytes.",
    "R8": "NaN or infinity in image, loss, gradient or weight: skipped, counted, said; in no average, in no file.",
    "R9": "Loader killed, image corrupt: a message with the file's name, or skipped and counted.",
    "R10": "Out of memory: the message names what to lower; the micro-batch can halve itself.",
    "R11": "One of two ranks killed: the other ends within 60 s; started again they end in the same bits.",
    "R12": "1, 2 and 4 processes give the same bits, however many parts of a batch each accumulates.",
    "R13": "A changed configuration is refused, with the differences by name.",
    "R14": "Other data are refused.",
    "R15": "Models and runs of every release load, sample and go on to the stored values.",
    "R16": "Of trainers in one folder one trains; a stale lock is recognised.",
    "R17": "The order is a function of seed, epoch and position: each sample once an epoch, any position at once.",
    "S1": "Samples shared by two processes, one killed and started again: none is lost, doubled or changed.",
    "S2": "Weights cut up between two processes (FSDP2): saved, and gone on with by one and by two.",
}
LIMITS = {
    "R9": "Data are read by threads of the process: there is no worker to kill. One that waits for a disk is told.",
    "R10": "Errors are injected; no GPU's memory was filled.",
    "R12": "`accumulate` is the number of parts that a batch is cut into, and chosen once for a run: processes that "
    "accumulate 4, 2 or 1 of 4 parts give the same bits. Another number of parts is another order of sums, and with "
    "dropout other masks.",
}
ELSEWHERE = {  # the other promises: what, and the tests
    "F1": ("Foreign weights without executing anything", "test_foreign.py::test_twenty_thousand_damaged_files"),
    "F2": ("Native files: every flipped bit is noticed", "test_models.py::test_every_damage_is_noticed"),
    "F3": ("Data: decoded within limits or refused by name", "test_data.py::test_archives_that_attack_are_refused"),
    "F4": ("Bad input: one line, exit code 2", "test_cli.py::test_bad_input_gives_one_or_two_lines_and_code_2"),
    "F5": ("No pickle, exec, eval in src", "test_floors.py::test_the_source_has_nothing_that_runs_what_a_file_says"),
    "N1": ("Observed order of every solver", "test_orders.py::test_order_under_every_schedule_and_scaling"),
    "N2": ("Closed form", "test_solvers.py::test_heun_with_512_steps_reaches_the_closed_form_of_a_gaussian"),
    "N3": ("float32 network", "test_denoisers.py::test_a_float32_network_under_a_float64_state_loses_at_most_2e_6"),
    "N4": ("Statistics of 100,000 samples", "test_stochastic.py::test_mean_and_covariance_of_100_000_samples"),
    "N5": ("Random levels", "test_preconditioning.py::test_10_000_random_levels_give_finite_denoised_samples"),
    "N6": ("Round trips", "test_formulation.py::test_sigma_and_its_inverse_round_trip_down_to_a_time_of_1e_12"),
    "N7": ("Time steps", "test_timesteps.py::test_steps_fall_strictly_from_exactly_sigma_max_over_sigma_min_to_0"),
    "N8": ("A sample depends on its seed alone", "test_sampler.py::test_a_sample_depends_on_its_seed_alone"),
    "N9": ("CPU and GPU samples agree (skipped without a GPU)", "test_gpu.py::test_cpu_and_gpu_samples_agree"),
    "N10": ("Loss equals quadrature", "test_training.py::test_monte_carlo_loss_equals_quadrature_on_a_gaussian"),
    "N11": ("Frechet distance", "test_metrics.py::test_frechet_closed_form_in_two_dimensions"),
    "N12": ("256 levels survive", "test_data.py::test_all_256_levels_survive_write_and_read"),
    "N13": ("Averages in closed form", "test_ema.py::test_half_life_average_is_the_weighted_sum"),
}  # fmt: skip


def page(records: list[dict], full: bool, minutes: float, folder: Path) -> str:
    """The page of what tests recorded."""
    broken = [r for r in records if r.get("outcome") == "failed"]
    skipped = [r for r in records if r.get("outcome") == "skipped"]
    lines = [
        "# Reliability",
        "",
        "Written by `make chaos` (`scripts/chaos.py`): processes are killed, files cut and their bits flipped, disks",
        "filled, signals sent, numbers made infinite, and what is left is compared by SHA-256. Every run of the tests",
        "does the same at a tenth of the sizes.",
        "",
        f"- sizes: {'full' if full else '**a tenth**, not the full ones'}",
        f"- elucidiff {ed.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- {_machine()}; {date.today().isoformat()}; {minutes:.1f} minutes in all",
        f"- runs in {folder}",
        f"- {len(broken)} tests failed, {len(skipped)} were skipped",
        "",
        "| | promise | what was done, and what came of it | seconds |",
        "|---|---|---|---:|",
    ]
    for name, text in RUNS.items():
        found = [r for r in records if r.get("promise") == name]
        lines += _rows(name, text, found)
    others = sorted({r["promise"] for r in records if "promise" in r} - RUNS.keys())
    for name in others:
        text = ELSEWHERE.get(name, ("", None))[0]
        lines += _rows(name, text, [r for r in records if r.get("promise") == name])
    lines += ["", *(_outcome("failed", r) for r in broken), *(_outcome("skipped", r) for r in skipped)]
    lines += ["## Promises shown by other tests", "", "| | promise | test |", "|---|---|---|"]
    lines += [f"| {name} | {text} | {_pointer(test)} |" for name, (text, test) in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


def _rows(name: str, text: str, found: list[dict]) -> list[str]:
    rows = [[_figures(r["figures"]), f"`{r['test'].partition('[')[0]}`", r["figures"]["seconds"]] for r in found]
    rows = rows or [["**missing**: no test recorded anything", "", ""]]
    if name in LIMITS:
        rows.append([f"**limit**: {LIMITS[name]}", "", ""])
    cells = [(name, text), *[("", "")] * (len(rows) - 1)]
    return [
        f"| {n} | {t} | {done}{'<br>' if test else ''}{test} | {seconds} |"
        for (n, t), (done, test, seconds) in zip(cells, rows, strict=True)
    ]


def _figures(figures: dict) -> str:
    shown = {k.replace("_", " "): v for k, v in figures.items() if k != "seconds"}
    return ", ".join(
        f"{k} {v:,}" if isinstance(v, int) and not isinstance(v, bool) else f"{k} {v}" for k, v in shown.items()
    )


def _outcome(word: str, record: dict) -> str:
    return f"- {word}: `{record['test']}`: {record['reason'][:200]}\n"


def _pointer(test: str | None) -> str:
    """The test by name, if it is there."""
    if test is None:
        return "**missing**"
    file, _, function = test.partition("::")
    path = HOME / "tests" / file
    there = path.is_file() and f"def {function}(" in path.read_text(encoding="utf-8")
    return f"`tests/{test}`" if there else f"**missing**: {test} is gone"


def _machine() -> str:
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{platform.machine()}, {os.cpu_count()} cores{f' of {names[0]}' if names else ''}, {platform.system()}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def main() -> int:
    """Run the tests, write the page; the tests' exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenth", action="store_true", help="the sizes of every other run of the tests")
    parser.add_argument("--out", type=Path, default=PAGE, help="another place for the page")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where runs are written, below"
    )
    options, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        record = Path(folder) / "record.jsonl"
        record.touch()
        environment = os.environ | {
            "ELUCIDIFF_CHAOS_RECORD": str(record),
            "ELUCIDIFF_CHAOS": "0" if options.tenth else "1",
        }
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-m", "chaos", "-v", f"--basetemp={folder}/runs", *others]
        code = subprocess.run(command, cwd=HOME, env=environment, check=False).returncode
        minutes = (time.monotonic() - began) / 60
        records = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    options.out.write_text(page(records, not options.tenth, minutes, options.folder), encoding="utf-8")
    print(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
