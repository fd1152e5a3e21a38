"""Runs that cannot be lost: exact resume, kills, damage, signals, locks, what is not finite (../shared/spec/reliability.md)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.augment import Augment
from elucidiff.cli.main import main
from elucidiff.networks import DDPMPP, MLP
from elucidiff.objective import Learned
from elucidiff.training import NoGoodCheckpoint, Power, Trainer, TrainingError, TrainingStopped, checkpoint
from elucidiff.training.watch import Watcher

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


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, name):
    config, data = CONFIGURATIONS[name]
    config = config.replace(checkpoint_every=96)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ed.train(config.replace(out=str(whole)), data=data())
    again = config.replace(out=str(parts))
    for step in (1, 4, 5, 9):
        with pytest.raises(TrainingStopped, match=rf"stopped by SIGTERM after {step * 32} images; the state is saved"):
            ed.train(again, data=data(), watchers=[StopAfter(step)], resume=True)
    ed.train(again, data=data(), resume=True)
    a, b = content(whole), content(parts)
    assert a.keys() == b.keys()
    assert [k for k in a if a[k] != b[k]] == []
    assert len([k for k in a if k.startswith("adam")]) >= 8


def test_held_out_scores_are_those_of_a_run_that_never_stopped(tmp_path):
    config = BASE.replace(heldout=0.25, score_every=200, checkpoint_every=96)
    ed.train(config.replace(out=str(tmp_path / "whole")), data=points())
    parts = config.replace(out=str(tmp_path / "parts"))
    with pytest.raises(TrainingStopped):
        ed.train(parts, data=points(), watchers=[StopAfter(8)])
    ed.train(parts, data=points(), resume=True)
    assert content(tmp_path / "whole")["scores.jsonl"] == content(tmp_path / "parts")["scores.jsonl"]


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import elucidiff as ed
from test_resume import BASE, points
ed.train(BASE.replace(out=sys.argv[1], images=16000, checkpoint_every=64), data=points(), resume=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_it_ends_in_the_same_bits(tmp_path):
    """R2: kill -9 at random moments, most of them beside or within a save (one every two steps)."""
    rng, script = np.random.default_rng(0), SCRIPT.format(tests=str(Path(__file__).parent))
    ed.train(BASE.replace(out=str(tmp_path / "whole"), images=16000, checkpoint_every=64), data=points())
    run, kills, finished = tmp_path / "killed", 0, False
    while not finished:
        before = [path.name for path in checkpoint.stored(run)]
        process = subprocess.Popen([sys.executable, "-c", script, str(run)], stderr=subprocess.DEVNULL)
        while process.poll() is None and [path.name for path in checkpoint.stored(run)] == before:
            time.sleep(0.001)
        try:  # it has begun to save: killed soon after, ten times
            finished = process.wait(timeout=float(rng.uniform(0.0, 0.2)) if kills < 10 else 300) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 3
    a, b = content(tmp_path / "whole"), content(tmp_path / "killed")
    assert [k for k in a if a[k] != b[k]] == []


def stopped(path: Path, step: int = 9) -> ed.TrainConfig:
    """A run with checkpoints after 96, 192 and 288 images, of which the last two are kept."""
    config = BASE.replace(out=str(path), checkpoint_every=96)
    with pytest.raises(TrainingStopped):
        ed.train(config, data=points(), watchers=[StopAfter(step)])
    return config


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    stopped(tmp_path / "run")
    assert [p.name for p in checkpoint.stored(tmp_path / "run")] == ["000000000192", "000000000288"]
    assert not list((tmp_path / "run" / "checkpoint").glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    config = stopped(tmp_path / "run")
    newest = checkpoint.stored(tmp_path / "run")[-1]
    file = newest / "state.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "flipped":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 4
        file.write_bytes(raw)
    else:
        (file if damage == "missing" else newest / "manifest.json").unlink()
    said = []
    state = checkpoint.read(tmp_path / "run", said.append)
    assert state.facts["images"] == 192 and len(said) == 1 and newest.name in said[0]
    ed.train(config, data=points(), resume=True)
    assert (tmp_path / "run" / "replaced" / f"{newest.name}-0").is_dir()
    ed.train(config.replace(out=str(tmp_path / "whole")), data=points())
    a, b = content(tmp_path / "whole"), content(tmp_path / "run")
    assert [k for k in a if a[k] != b[k]] == []


def test_without_a_good_checkpoint_nothing_begins_anew(tmp_path, capsys):
    config = stopped(tmp_path / "run")
    for folder in checkpoint.stored(tmp_path / "run"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(NoGoodCheckpoint, match="all 2 checkpoints are damaged; nothing was changed"):
        ed.train(config, data=points(), resume=True)
    np.savez(tmp_path / "points.npz", x=points().values, labels=points().labels)
    assert main(["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--resume"]) == 3


def test_a_crash_while_writing_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    """R3 and R7: an error at any call that writes, here for want of space."""
    config = stopped(tmp_path / "run", 6)
    before = {p.name for p in checkpoint.stored(tmp_path / "run")}
    for name in ("elucidiff.training.checkpoint.save_file", "elucidiff.files.os.fsync", "elucidiff.files.os.rename"):

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(name, full)
            with pytest.raises(OSError, match=r"No space left|checkpoint of [\d,]+ bytes"):
                state = checkpoint.read(tmp_path / "run")
                checkpoint.write(tmp_path / "run", 999, checkpoint.State(state.tensors, {}))
        assert {p.name for p in checkpoint.stored(tmp_path / "run")} == before
        assert not list((tmp_path / "run" / "checkpoint").glob(".*"))
    ed.train(config, data=points(), resume=True)


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


def test_the_time_limit_saves_and_stops(tmp_path, capsys):
    np.savez(tmp_path / "points.npz", x=points().values, labels=points().labels)
    train = ["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--set", "network.width=16"]
    train += ["--images", "64000", "--set", "batch=64"]
    assert main([*train, "--time-limit", "1"]) == 85
    assert "stopped by the time limit" in capsys.readouterr().err
    images = checkpoint.read(tmp_path / "run").facts["images"]
    assert 0 < images < 64000
    assert (
        main(["train", str(tmp_path / "points.npz"), "--out", str(tmp_path / "run"), "--resume", "--time-limit", "0"])
        == 85
    )
    assert checkpoint.read(tmp_path / "run").facts["images"] == images + 64  # one step more


def test_two_trainers_in_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    code = (
        "import sys, time, pathlib\n"
        "from elucidiff.training.interruption import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"another process trains here .process {other.pid} on "):
            ed.train(BASE.replace(out=str(tmp_path / "run")), data=points(), resume=True)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    ed.train(BASE.replace(out=str(tmp_path / "run")), data=points(), resume=True)  # the lock went with its process


def weights(trainer: Trainer) -> list[torch.Tensor]:
    modules = [trainer.model, *(ema.module for _, ema in trainer.averages)]
    return [p.detach().clone() for module in modules for p in module.parameters()]


def test_what_is_not_finite_reaches_neither_weights_nor_averages():
    trainer = Trainer.start(BASE.replace(batch=8), points())
    trainer.train_step()
    before = weights(trainer)
    poisoned = points()
    bad = int(trainer.order.at(8, 8)[2])
    broken = poisoned.values.copy()
    broken[bad] = np.nan
    object.__setattr__(poisoned, "values", broken)
    trainer.dataset = poisoned
    step = trainer.train_step()
    assert "its sample is not finite" in step.skipped and trainer.skipped == 1 and trainer.step == 2
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    trainer.dataset = points()
    assert trainer.train_step().skipped is None and trainer.skipped == 0


def test_a_gradient_that_is_not_finite_is_named_or_cleaned():
    for policy in ("skip", "clean"):
        trainer = Trainer.start(BASE.replace(grad_nonfinite=policy), points())
        name, parameter = list(trainer.model.named_parameters())[2]
        handle = parameter.register_hook(lambda g: torch.full_like(g, float("nan")))
        before = weights(trainer)
        step = trainer.train_step()
        handle.remove()
        same = all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
        if policy == "skip":
            assert step.skipped == f"the gradient of {name} is not finite" and same
        else:
            assert step.skipped is None and not same
            assert all(p.isfinite().all() for p in weights(trainer))
            index = [n for n, _ in trainer.model.named_parameters()].index(name)
            assert torch.equal(weights(trainer)[index], before[index])  # its gradient was taken as 0


def test_ten_bad_steps_in_a_row_end_the_run(tmp_path):
    trainer = Trainer.start(BASE, points())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("inf"))
    for _ in range(9):
        assert "is not finite" in trainer.train_step().skipped
    with pytest.raises(TrainingError, match=r"step 9: the loss is .* \(10 steps in a row changed nothing\)"):
        trainer.train_step()
    assert all(p.isfinite().all() for p in trainer.ema.module.parameters())
