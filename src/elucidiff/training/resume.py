"""A run that goes on: the state of everything that takes part, and whether it is the same run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .checkpoint import Say, State, keep_the_last, read, read_at, set_aside, stored
from .config import TrainConfig
from .errors import TrainingError
from .ranks import Ranks
from .trainer import Trainer
from .watching.watch import Watcher


def agreed(run: Path, ranks: Ranks, device: str, say: Say, *, sharded: bool = False) -> State | None:
    """The checkpoint that the first rank chooses, for all of them; None to begin. sharded: its tensors stay on disk."""
    found = read(run, say, on_disk=sharded) if ranks.first else None
    images = ranks.of_first(-1 if found is None else int(found.facts["images"]), device)
    return read_at(run, images, on_disk=sharded) if found is None and images >= 0 else found


def clear_the_way(run: Path, found: State | None, say: Say) -> None:
    """Set aside what the run would write again with other content: checkpoints that are damaged, or all without one."""
    if found is not None:
        newer = [folder for folder in stored(run) if int(folder.name) > found.facts["images"]]
    else:
        newer = [path for path in (run / "snapshots", *sorted(run.glob("*.jsonl"))) if path.exists()]
        if newer:
            say(f"{run}: no checkpoint to go on from; it begins again, what is there is kept in {run / 'replaced'}")
    for path in newer:
        set_aside(run, path)
    keep_the_last(run)


def whole_state(trainer: Trainer, watchers: Sequence[Watcher], seconds: float) -> State:
    """The state of the trainer, and of the watchers by name, which the first rank alone has.

    Raises TrainingError where a weight, an average or a moment is not finite: no step would heal it, and saved it would
    take the place of a good checkpoint.
    """
    own = trainer.state()
    bad = trainer.weights.first_bad(list(own.tensors.values()), list(own.tensors))
    if bad is not None:
        raise TrainingError(f"step {trainer.step}: {bad} is not finite; the checkpoints written before are intact")
    if not trainer.ranks.first:
        return own
    tensors, facts = dict(own.tensors), dict(own.facts)
    seen = {name: watcher.state() for name, watcher in _named(watchers)}
    for name, state in seen.items():
        tensors |= {f"watch.{name}.{key}": t for key, t in state.tensors.items()}
    facts |= {"seconds": seconds, "fingerprint": trainer.fingerprint}
    return State(tensors, facts | {"watch": {name: dict(state.facts) for name, state in seen.items()}})


def restore_watchers(state: State, watchers: Sequence[Watcher]) -> None:
    """Give the watchers back what they had; those that are new have nothing."""
    for name, watcher in _named(watchers):
        facts, prefix = state.facts["watch"].get(name), f"watch.{name}."
        if facts:
            own = {key.removeprefix(prefix): state.tensors[key] for key in state.tensors if key.startswith(prefix)}
            watcher.restore(State(own, facts))


def _named(watchers: Sequence[Watcher]) -> Iterator[tuple[str, Watcher]]:
    """Each with the name of its class; the second of one class is "Class 2", in the order they were given."""
    counts: Counter[str] = Counter()
    for watcher in watchers:
        kind = type(watcher).__name__
        counts[kind] += 1
        yield (kind if counts[kind] == 1 else f"{kind} {counts[kind]}"), watcher


def check_same(stored: TrainConfig, config: TrainConfig, allow_changes: bool) -> None:
    """Raise ValueError with every difference that changes results, unless that is allowed."""
    different = stored.differences(config)
    if different and not allow_changes:
        listed = ", ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in different.items())
        raise ValueError(f"the run has another configuration ({listed}); leave it as it was, or allow changes")


def restore(trainer: Trainer, found: State | None) -> float:
    """Bring a trainer to a state that was found; the seconds it took so far. Raises ValueError for other data."""
    if found is None:
        return 0.0
    if found.facts["fingerprint"] != trainer.fingerprint:
        raise ValueError(f"{trainer.dataset.name}: not the data that this run was trained on (SHA-256 differs)")
    if found.facts["images"] > trainer.config.steps * trainer.config.batch:
        seen = found.facts["images"]
        raise ValueError(
            f"images: got {trainer.config.images:,}, but the run has seen {seen:,}; ask for as many or more"
        )
    trainer.restore(found)
    return float(found.facts["seconds"])
