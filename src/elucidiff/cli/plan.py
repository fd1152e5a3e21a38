"""What `train --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import show

if TYPE_CHECKING:
    from pathlib import Path

    from ..data import Dataset
    from ..training import TrainConfig
    from ..training.plan import Memory, Plan


def planned(config: TrainConfig, dataset: Dataset, out: Path | None, machine: bool) -> None:
    """Probe a run and print what it would take. Raises FileExistsError where training would."""
    from ..files import refuse_existing
    from ..progress import bar
    from ..training.plan import plan

    if out is not None:
        refuse_existing(out)
    with bar("probing") as report:
        found = plan(config, dataset, report=report)
    print_plan(found, machine=machine)


def print_plan(plan: Plan, *, machine: bool) -> None:
    """Print a plan as a table, what follows from the data in it, and its warnings; or as JSON."""
    if machine:
        show.as_json(plan.to_dict())
        return
    header = ("", "plan", "more")
    show.table(f"{plan.data}: what training would take; nothing is written", header, _rows(plan), header)
    for warning in plan.warnings:
        print(f"warning: {warning}")


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    shape = "x".join(map(str, plan.shape))
    fields = ", ".join(f"{k}={_short(v)}" for k, v in plan.network.items() if v and k not in ("kind", "patch"))
    own = "measured" if plan.sigma_data == plan.measured else f"set; {plan.measured:.4g} measured"
    part = f", in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    kept = _counted(len(plan.averages), "average")
    ramp = f"of {plan.optimizer}, after a ramp of {plan.lr_ramp:,} images; {plan.lr_end:.3g} at the end"
    return [
        ("data", f"{plan.samples:,} of {shape}", f"{plan.heldout:,} more held out"),
        ("classes", f"{plan.classes or 'none'}", "from the labels of the data" if plan.classes else ""),
        ("sigma_data", f"{plan.sigma_data:.4g}", own),
        ("network", f"{plan.network['kind']}, {plan.parameters:,} parameters", fields),
        ("length", f"{plan.images:,} images", f"{plan.steps:,} steps, {plan.epochs:,.1f} epochs"),
        ("batch", f"{plan.batch}{part}", f"network in {plan.precision}"),
        ("learning rate", f"{plan.lr:g}", ramp),
        ("averages", ", ".join(plan.averages), "of weights; the first is the model"),
        *_memory_rows(plan.memory),
        *_time_rows(plan),
        ("disk", size(plan.disk), f"{_counted(plan.snapshots, 'snapshot')} of {kept}"),
    ]


def _memory_rows(memory: Memory) -> list[tuple[str, str, str]]:
    parts = ", ".join(
        f"{name} {size(getattr(memory, name))}" for name in ("weights", "gradients", "moments", "averages")
    )
    if memory.activations is None:
        return [("memory", size(memory.total), f"{parts}; without activations")]
    how = "activations {}, measured" if memory.measured else "activations at least {}, kept for the backward pass"
    return [("memory", size(memory.total), f"{parts}, {how.format(size(memory.activations))}")]


def _time_rows(plan: Plan) -> list[tuple[str, str, str]]:
    if plan.seconds is None or plan.step_seconds is None:
        return []
    where = _counted(plan.threads, "thread") if plan.device == "cpu" else plan.device
    first = plan.first_step or 0.0
    slow = f"; the first took {duration(first)}" if first > 10 * plan.step_seconds and first > 1 else ""
    speed = f"{1e3 * plan.step_seconds:.3g} ms a step, {plan.images_per_second:,.0f} images/s on {where}{slow}"
    return [("time", duration(plan.seconds), f"{speed}; scores and pictures come on top")]


def size(count: int) -> str:
    """Bytes with three digits: 812 B, 34.5 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: 42 s, 3 min 05 s, 2 h 10 min, 3 d 04 h."""
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02d} h"
    return f"{hours} h {m:02d} min" if hours else f"{minutes} min {s:02d} s"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _short(value: object) -> str:
    return "(" + ",".join(map(str, value)) + ")" if isinstance(value, (list, tuple)) else str(value)
