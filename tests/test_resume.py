"""Runs that cannot be lost: exact resume, damage, other configurations and data, the order (docs/reliability.md)."""

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import elucidiff as ed
from conftest import CHAOS, sized
from elucidiff.augment import Augment
from elucidiff.cli.main import main
from elucidiff.networks import DDPMPP, MLP
from elucidiff.objective import Learned
from elucidiff.seeds import permutation
from elucidiff.training import NoGoodCheckpoint, Power, TrainingStopped, checkpoint, draws
from elucidiff.training.checkpoint import State
from elucidiff.training.config import HARMLESS
from elucidiff.training.watching.watch import Watcher

TINY = MLP(width=16, depth=1, dropout=0.1)
BASE = ed.TrainConfig(
    network=TINY, images=640, batch=32, lr_ramp=100, snapshots=2, ema_halflife=200.0, grid_every=0, checkpoint_every=0
)


def points() -> ed.data.Dataset:
    x = np.random.default_rng(0).normal(0.3, 0.8, (200, 2)).astype(np.float32)
    return ed.data.from_arrays(x, (x[:, 0] > 0).astype(np.int64), None, name="points")


def digits() -> ed.data.Dataset:
    return ed.data.load("digits").subset(range(100))


CONFIGURATIONS = {
    "edm": (BASE, points),
    "vp, two averages": (BASE.replace(design=ed.VP, ema=(Power(),)), points),
    "ve, clipped": (BASE.replace(design=ed.VE, clip=1.0, stratified=True), points),
    "accumulated, learned": (
        BASE.replace(accumulate=4, design=ed.EDM.replace(weighting=Learned()), label_dropout=0.2), points,
    ),
    "muon": (BASE.replace(optimizer="muon"), points),
    "augmented, labels": (
        BASE.replace(
            network=DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=()), augment=Augment(p=0.5), images=320,
            channels_last=True,
        ),
        digits,
    ),
}  # fmt: skip


class StopAfter(Watcher):
    """Ends a run as a time limit would, after a step."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, trainer, step, seconds) -> None:
        if trainer.step == self.last:
            signal.raise_signal(signal.SIGTERM)


class Counting(Watcher):
    """Counts its steps by its own number, over all parts of a run."""

    def __init__(self, by: int) -> None:
        self.by, self.count = by, 0

    def step(self, trainer, step, seconds) -> None:
        self.count += self.by

    def state(self) -> State:
        return State({}, {"count": self.count})

    def restore(self, state) -> None:
        self.count = state.facts["count"]


def content(run: Path) -> dict[str, object]:
    """Everything of a run that must be equal: weights and averages, the optimiser, the logs without their times."""
    found = {}
    for folder in sorted((run / "snapshots").iterdir()):
        found[folder.name] = json.loads((folder / "manifest.json").read_text())["sha256"]["model.safetensors"]
    state = checkpoint.read(run)
    found |= {name: t.numpy().tobytes() for name, t in state.tensors.items()}
    found["facts"] = {k: v for k, v in state.facts.items() if k not in ("seconds", "watch")}
    for file in ("metrics.jsonl", "loss_by_sigma.jsonl", "scores.jsonl"):
        if (run / file).exists():
            lines = [json.loads(line) for line in (run / file).read_text().splitlines()]
            found[file] = [{k: v for k, v in d.items() if "second" not in k} for d in lines]
    return found


def hashed(run: Path) -> str:
    """The SHA-256 of all that `content` finds."""
    digest = hashlib.sha256()
    for name, value in sorted(content(run).items()):
        digest.update(name.encode() + (value if isinstance(value, bytes) else json.dumps(value).encode()))
    return digest.hexdigest()


def different(a: Path, b: Path) -> list[str]:
    """What two runs do not have alike; nothing where their hashes agree."""
    one, other = content(a), content(b)
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    assert (hashed(a) == hashed(b)) == (not names)
    return names


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, name, promise):
    """R1: for steps k of 60, run(0..k) and the rest; all k at full size, every tenth otherwise. And one stopped often."""
    config, load = CONFIGURATIONS[name]
    config, data = config.replace(images=60 * config.batch, checkpoint_every=96), load()
    ed.train(config.replace(out=str(tmp_path / "whole")), data=data)
    first = 1 if CHAOS else 2 + 2 * [*CONFIGURATIONS].index(name)
    stops = [[k] for k in range(first, 60, 1 if CHAOS else 10)] + [[1, 4, 5, 9, 59]]
    for steps in stops:
        again = config.replace(out=str(tmp_path / "-".join(map(str, steps))))
        for step in steps:
            said = rf"stopped by SIGTERM after {step * 32:,} images; the state is saved"
            with pytest.raises(TrainingStopped, match=said):
                ed.train(again, data=data, watchers=[StopAfter(step)], resume=True)
        ed.train(again, data=data, resume=True)
        assert different(tmp_path / "whole", Path(again.out)) == []
    assert len([k for k in content(tmp_path / "whole") if k.startswith("adam")]) >= 8
    promise("R1", configuration=name, steps=60, stopped_after=len(stops) - 1, equal=len(stops) - 1)


def test_watchers_of_one_class_each_have_their_own_state_back(tmp_path):
    config = BASE.replace(out=str(tmp_path / "run"), checkpoint_every=96)
    with pytest.raises(TrainingStopped, match="after 160 images; the state is saved"):
        ed.train(config, data=points(), watchers=[Counting(1), Counting(10), StopAfter(5)])
    one, ten = Counting(1), Counting(10)
    ed.train(config, data=points(), watchers=[one, ten], resume=True)
    assert (one.count, ten.count) == (config.steps, 10 * config.steps)


def test_held_out_scores_are_those_of_a_run_that_never_stopped(tmp_path):
    config = BASE.replace(heldout=0.25, score_every=200, checkpoint_every=96)
    ed.train(config.replace(out=str(tmp_path / "whole")), data=points())
    parts = config.replace(out=str(tmp_path / "parts"))
    with pytest.raises(TrainingStopped):
        ed.train(parts, data=points(), watchers=[StopAfter(8)])
    ed.train(parts, data=points(), resume=True)
    assert content(tmp_path / "whole")["scores.jsonl"] == content(tmp_path / "parts")["scores.jsonl"]


def stopped(path: Path, step: int = 9) -> ed.TrainConfig:
    """A run with checkpoints after 96, 192 and 288 images, of which the last two are kept."""
    config = BASE.replace(out=str(path), checkpoint_every=96)
    with pytest.raises(TrainingStopped):
        ed.train(config, data=points(), watchers=[StopAfter(step)])
    return config


def test_retention_is_exact_wherever_the_run_stops(tmp_path, promise):
    """R5: before every step the folder holds the last two of what was saved, counted here by the rule."""
    rng, looks = np.random.default_rng(5), 0
    config, data = BASE.replace(checkpoint_every=64), points()

    class Retention(StopAfter):
        def step(self, trainer, step, seconds):
            nonlocal looks
            assert [int(p.name) for p in checkpoint.stored(run)] == saved[-2:]
            looks += 1
            if trainer.step == self.last or step.images - (saved or begun)[-1] >= 64 or trainer.step == 20:
                saved.append(step.images)
            super().step(trainer, step, seconds)

    for i in range(sized(100)):
        run, saved, begun = tmp_path / str(i), [], [0]
        for step in sorted(rng.choice(np.arange(1, 20), 3, replace=False)):
            with pytest.raises(TrainingStopped):
                ed.train(config.replace(out=str(run)), data=data, watchers=[Retention(int(step))], resume=True)
        ed.train(config.replace(out=str(run)), data=data, watchers=[Retention(0)], resume=True)
        assert [int(p.name) for p in checkpoint.stored(run)] == saved[-2:] and saved[-1] == 640
        assert not [*(run / "checkpoint").glob(".*")]
    assert looks == sized(100) * 20
    promise("R5", runs=sized(100), resumes=3 * sized(100), looks=looks, exact=looks)


def damaged(file: Path, how: str, at: int) -> None:
    """A bit of the file flipped, or the file cut off, at a place; or the file or its folder's manifest removed."""
    raw = bytearray(file.read_bytes())
    if how == "flipped":
        raw[at // 8] ^= 1 << at % 8
        file.write_bytes(raw)
    elif how == "truncated":
        file.write_bytes(raw[:at])
    else:
        (file if how == "missing" else file.with_name("manifest.json")).unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, how):
    config = stopped(tmp_path / "run")
    newest = checkpoint.stored(tmp_path / "run")[-1]
    damaged(newest / "state.safetensors", how, 1000)
    ed.train(config, data=points(), resume=True)
    assert (tmp_path / "run" / "replaced" / f"{newest.name}-0").is_dir()
    ed.train(config.replace(out=str(tmp_path / "whole")), data=points())
    assert different(tmp_path / "whole", tmp_path / "run") == []


def test_every_damage_is_noticed_and_said_once(tmp_path, promise):
    """R4: bits flipped and ends cut off anywhere in any file of the newest checkpoint."""
    stopped(tmp_path / "run")
    newest, rng, counts = (
        checkpoint.stored(tmp_path / "run")[-1],
        np.random.default_rng(4),
        dict.fromkeys(("flipped", "truncated"), 0),
    )
    for how in counts:
        for file in sorted(newest.iterdir()):
            whole = file.read_bytes()
            places = 8 * len(whole) if how == "flipped" else len(whole.rstrip())  # of a last line's end nothing is lost
            for at in rng.integers(0, places, sized(1000) // 3):
                damaged(file, how, int(at))
                said: list[str] = []
                state = checkpoint.read(tmp_path / "run", said.append)
                assert state.facts["images"] == 192 and len(said) == 1 and newest.name in said[0], (file, how, at)
                file.write_bytes(whole)
                counts[how] += 1
    assert checkpoint.read(tmp_path / "run").facts["images"] == 288
    promise("R4", bits_flipped=counts["flipped"], truncated=counts["truncated"], noticed=sum(counts.values()))


def test_without_a_good_checkpoint_nothing_begins_anew(tmp_path, capsys):
    config = stopped(tmp_path / "run")
    for folder in checkpoint.stored(tmp_path / "run"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(NoGoodCheckpoint, match="all 2 checkpoints are damaged; nothing was changed"):
        ed.train(config, data=points(), resume=True)
    np.savez(tmp_path / "points.npz", x=points().values, labels=points().labels)
    assert main(["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--resume"]) == 3


OTHER = {  # of each field that a run may not change, another value
    "network": TINY.replace(width=8), "design": ed.VP, "sigma_data": 0.7, "batch": 64, "lr": 2e-3, "lr_ramp": 99, "beta1": 0.8,
    "beta2": 0.99, "adam_eps": 1e-7, "ema_halflife": 201.0, "ema_ramp": None, "heldout": 0.5, "conditional": False,
    "label_dropout": 0.1, "augment": Augment(p=0.5), "seed": 1, "device": "cuda", "ema": (Power(),), "lr_decay": 1000,
    "lr_cooldown": 100, "optimizer": "muon",
    "accumulate": 2, "clip": 1.0, "stratified": True, "precision": "bfloat16", "channels_last": True, "compile": True,
    "init": "runs/other", "condition": ed.conditioning.LowRes(2), "grad_nonfinite": "clean",
}  # fmt: skip


def test_a_change_of_any_field_is_named_and_refused(tmp_path, promise):
    """R13, for every field of the configuration: a new one is either here or among those that change no bit."""
    config = stopped(tmp_path / "run")
    fields = set(ed.TrainConfig.__dataclass_fields__) - set(HARMLESS)
    assert fields - OTHER.keys() == set()
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))
    for field in sorted(fields):
        with pytest.raises(ValueError, match=rf"another configuration \({field}"):
            ed.train(config.replace(**{field: OTHER[field]}), data=points(), resume=True)
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")) == before
    promise("R13", fields=len(fields), refused=len(fields))


def test_other_data_are_refused_however_alike(tmp_path, promise):
    """R14: one bit of one sample, one label, the order, one sample more or less."""
    config, data = stopped(tmp_path / "run"), points()
    x, labels = data.values, data.labels
    bit = x.copy()
    bit.view(np.uint32)[17, 1] ^= 1
    label = labels.copy()
    label[3] = 1 - label[3]
    others = {
        "a bit": (bit, labels), "a label": (x, label), "the order": (x[::-1], labels[::-1]), "fewer": (x[:-1], labels[:-1]),
        "more": (np.concatenate([x, x[:1]]), np.append(labels, labels[0])), "no labels": (x, None),
    }  # fmt: skip
    for name, (values, classes) in others.items():
        other = ed.data.from_arrays(np.ascontiguousarray(values), classes, None, name=name)
        with pytest.raises(ValueError, match=rf"^({name}: not the data|checkpoint: not of this model|.*not the data)"):
            ed.train(config, data=other, resume=True)
    ed.train(config, data=points(), resume=True)
    promise("R14", other_data=len(others), refused=len(others))


def test_another_configuration_or_other_data_are_refused(tmp_path):
    config = stopped(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"another configuration \(network.width: 16 there, 8 now, batch: 32 there, 64 now\)"
    ):
        ed.train(config.replace(batch=64, network=TINY.replace(width=8)), data=points(), resume=True)
    other = ed.data.from_arrays(points().values + 1, points().labels, None, name="moved")
    with pytest.raises(ValueError, match="moved: not the data that this run was trained on"):
        ed.train(config, data=other, resume=True)
    with pytest.raises(ValueError, match="images: got 100, but the run has seen 288"):
        ed.train(config.replace(images=100), data=points(), resume=True)
    with pytest.raises(FileExistsError):
        ed.train(config, data=points())
    changed = config.replace(lr=1e-4, images=400)
    ed.train(changed, data=points(), resume=True, allow_changes=True)
    assert ed.TrainConfig.load(tmp_path / "run" / "config.json") == changed


def test_more_images_are_what_a_longer_run_would_have_seen(tmp_path):
    config = BASE.replace(checkpoint_every=None)
    ed.train(config.replace(out=str(tmp_path / "long"), images=960), data=points())
    short = config.replace(out=str(tmp_path / "short"), images=640)
    ed.train(short, data=points())
    ed.train(short.replace(images=960), data=points(), resume=True)
    a, b = (checkpoint.read(tmp_path / name).tensors for name in ("long", "short"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_cools_down_has_its_length(tmp_path):
    """Its last steps depend on how many images it has, so that more of them are another run."""
    config = BASE.replace(out=str(tmp_path / "run"), images=320, lr_cooldown=160, checkpoint_every=None)
    ed.train(config, data=points())
    with pytest.raises(ValueError, match=r"another configuration \(images: 320 there, 640 now\)"):
        ed.train(config.replace(images=640), data=points(), resume=True)
    longer = config.replace(images=640)
    ed.train(longer, data=points(), resume=True, allow_changes=True)
    assert ed.TrainConfig.load(tmp_path / "run" / "config.json") == longer


def test_the_model_of_a_longer_run_takes_the_place_of_the_shorter_ones(tmp_path):
    """Both end at 000000, by thousands of images; the first is kept."""
    short = BASE.replace(out=str(tmp_path / "run"), checkpoint_every=None, snapshots=1)
    ed.train(short, data=points())
    first = ed.load(tmp_path / "run")
    ed.train(short.replace(images=960), data=points(), resume=True)
    ed.train(short.replace(out=str(tmp_path / "long"), images=960), data=points())
    for a, b in zip(ed.load(tmp_path / "run").parameters(), ed.load(tmp_path / "long").parameters(), strict=True):
        assert torch.equal(a, b)
    assert ed.load(tmp_path / "run").info["training"]["images_seen"] == 960
    kept = ed.load(tmp_path / "run" / "replaced" / "000000-0")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), first.parameters(), strict=True))


def test_what_is_no_run_is_not_resumed_and_a_run_without_checkpoint_is_kept(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"photos has something in it, but no config\.json: not a run to resume"):
        ed.train(BASE.replace(out=str(tmp_path / "photos")), data=points(), resume=True)
    config = BASE.replace(out=str(tmp_path / "run"))  # without checkpoints
    ed.train(config, data=points())
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    ed.train(config, data=points(), resume=True)
    assert (tmp_path / "run" / "replaced" / "metrics.jsonl-0").read_text() == log
    assert (tmp_path / "run" / "replaced" / "snapshots-0").is_dir()


def test_the_time_limit_saves_and_stops(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "points.npz", x=points().values, labels=points().labels)
    train = ["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--set", "network.width=16"]
    train += ["--images", "64000", "--set", "batch=64"]
    assert main([*train, "--time-limit", "1"]) == 85
    assert "stopped by the time limit" in capsys.readouterr().err
    assert (tmp_path / "run" / "stopped").read_text().startswith("stopped by the time limit after ")
    images = checkpoint.read(tmp_path / "run").facts["images"]
    assert 0 < images < 64000
    assert (
        main(["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--resume", "--time-limit", "0"])
        == 85
    )
    assert checkpoint.read(tmp_path / "run").facts["images"] == images + 64  # one step more
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")  # torchrun would start again at once what ends with another code
    on = ["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--resume"]
    assert main([*on, "--time-limit", "0s"]) == 0 and (tmp_path / "run" / "stopped").is_file()
    assert main([*on, "--images", str(images + 256)]) == 0  # to its end
    assert not (tmp_path / "run" / "stopped").exists()


def test_the_order_is_a_pure_function_of_the_position(monkeypatch, promise):
    """R17: each sample once an epoch, and no epoch but that of the position is ever looked at."""
    made = []
    monkeypatch.setattr(draws, "permutation", lambda *of: made.append(of) or permutation(*of))
    epochs = sized(1000)
    for size, seed in ((1, 0), (2, 1), (97, 2), (1000, 3)):
        order, seen = draws.Order(size, seed), set()
        for epoch in range(epochs):
            found = order.at(epoch * size, size)
            assert sorted(found) == list(range(size))
            seen.add(tuple(found))
        assert size < 97 or len(seen) == epochs  # in another order each time
    for position in (0, 13, 10**6 + 7, 10**9 + 1, 10**12 + 3):
        made.clear()
        found = draws.Order(1000, 3).at(position, 40)
        assert len(made) <= 2 and {epoch for *_, epoch in made} <= {position // 1000, (position + 39) // 1000}
        whole = draws.Order(1000, 3)
        assert [int(i) for i in found] == [int(whole.at(position + j, 1)[0]) for j in range(40)]
    promise("R17", epochs=4 * epochs, furthest_position=10**12 + 42)
