"""What a dry run says: bytes and counts against those of a real run, and that it changes nothing."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.augment import Augment, Rotation, Translation, XFlip
from elucidiff.cli.main import main
from elucidiff.cli.plan import duration, size
from elucidiff.data import from_arrays
from elucidiff.training import HalfLife, Power, Trainer
from elucidiff.training.loop import _snapshot_due
from elucidiff.training.plan import plan

TINY = ed.networks.MLP(width=16, depth=1)
FEW = ed.networks.DDPMPP(channels=16, multipliers=(1, 2), blocks=1, attention=())


def points(n: int = 200, std: float = 0.8) -> ed.data.Dataset:
    x = np.random.default_rng(0).normal(0.3, std, (n, 2)).astype(np.float32)
    return from_arrays(x, (x[:, 0] > 0).astype(np.int64), None, name="points")


def config_of(path, **changes) -> ed.TrainConfig:
    base = ed.TrainConfig(out=str(path / "run"), network=TINY, images=6400, batch=64, lr_ramp=100, snapshots=1,
                          ema_halflife=500.0, heldout=0.1, grid_every=0)  # fmt: skip
    return base.replace(**changes)


def bytes_of(tensors) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_the_bytes_are_those_of_the_tensors_of_a_run(tmp_path):
    """Two averages and a learned uncertainty; Adam's state and the gradients are read after a real step."""
    learned = ed.EDM.replace(objective=ed.Objective(weighting=ed.objective.Learned()))
    config = config_of(tmp_path, ema=(HalfLife(500.0), Power(0.1)), design=learned)
    found = plan(config, points(), 1).memory
    trainer = Trainer.start(config, points())
    trainer.train_step()
    weights = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.uncertainty.parameters()]
    assert found.weights == bytes_of(weights)
    assert found.gradients == bytes_of(p.grad for p in trainer.parameters)
    assert found.moments == bytes_of(t for state in trainer.optimizer.state.values() for t in state.values())
    averages = [t for _, ema in trainer.averages for t in (*ema.module.parameters(), *ema.module.buffers())]
    assert found.averages == bytes_of(averages) > 1.9 * 4 * sum(p.numel() for p in trainer.model.parameters())
    assert found.total == found.weights + found.gradients + found.moments + found.averages + found.activations


def test_activations_are_those_kept_for_the_backward_pass(tmp_path, monkeypatch):
    """A perceptron of known arithmetic: its input, its hidden layer before and after the ReLU, and the loss's squares."""
    batch, width = 64, 1000

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, width), torch.nn.Linear(width, 2)

        def forward(self, x, c_noise, labels=None):
            return self.b(torch.sigmoid(self.a(x)))  # keeps x and the sigmoid's output, nothing else

    monkeypatch.setattr(type(TINY), "build", lambda *_: Plain())
    whole = plan(config_of(tmp_path), points(), 1).memory.activations
    hidden = 4 * batch * width
    assert hidden <= whole < hidden + 40 * 4 * batch  # beside it at most 40 numbers a sample
    parts = plan(config_of(tmp_path, accumulate=4), points(), 1).memory.activations
    assert parts == pytest.approx(whole / 4, rel=0.02)


def test_a_plan_says_what_the_run_then_is(tmp_path):
    """Steps, epochs, sigma_data, parameters, and the weights on disk but for the files' headers."""
    config = config_of(tmp_path, images=2048, snapshots=4, ema=(HalfLife(500.0), Power(0.1)), network=FEW)
    digits = ed.data.load("digits").subset(range(400))
    found = plan(config, digits, 0)
    run = ed.train(config, data=digits)
    model = ed.load(run)
    assert (found.samples, found.heldout) == (360, 40)
    assert found.images == model.info["training"]["images_seen"] == found.steps * 64
    assert found.epochs == pytest.approx(2048 / 360)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.sigma_data == found.measured == pytest.approx(model.preconditioning.sigma_data)
    assert found.sigma_data == pytest.approx(digits.split(0.1)[0].tensor().double().std(correction=0).item(), rel=1e-6)
    written = list((run / "snapshots").rglob("*.safetensors"))
    assert len(written) == found.snapshots * 2
    assert found.disk < sum(path.stat().st_size for path in written) < 1.05 * found.disk


@pytest.mark.parametrize(
    ("images", "batch", "snapshots"), [(10_000, 64, 4), (3_000, 512, 7), (640, 64, 3), (64, 64, 5)]
)
def test_snapshots_that_share_a_name_count_once(tmp_path, images, batch, snapshots):
    config = config_of(tmp_path, images=images, batch=batch, snapshots=snapshots)
    due = sum(_snapshot_due(done, config) for done in range(1, config.steps + 1))
    assert plan(config, points(), 0).snapshots == due


def test_the_time_is_the_median_step_after_the_first_quarter(tmp_path, monkeypatch):
    """A clock that says 40 s for each of two slow first steps, then 1, 2, 3, 1, 2, 9 s."""
    ticks = [0.0]
    for seconds in (40, 40, 1, 2, 3, 1, 2, 9):
        ticks += [ticks[-1] + seconds] * 2
    clock = iter(ticks)
    monkeypatch.setattr("elucidiff.training.plan.time.perf_counter", lambda: next(clock))
    found = plan(config_of(tmp_path), points(), 8)
    assert found.step_seconds == 2.0 and found.seconds == 200.0 and found.first_step == 40.0
    assert found.images_per_second == 32.0


def test_a_probe_of_slow_steps_ends_early(tmp_path, monkeypatch):
    """Steps of 50 s: the third is beyond two minutes."""
    ticks, reported = itertools.count(0, 50), []
    monkeypatch.setattr("elucidiff.training.plan.time.perf_counter", lambda: next(ticks) / 1.0)
    found = plan(config_of(tmp_path), points(), 20, report=lambda done, total, text="": reported.append(done))
    assert reported == [1, 2, 3] and found.step_seconds == 50.0 and found.seconds == 5000.0


def test_planning_writes_nothing_and_leaves_the_run_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = points()
    config = config_of(tmp_path, images=640, network=TINY.replace(dropout=0.2))
    alone = ed.load(ed.train(config.replace(out="alone"), data=data)).state_dict()
    before = torch.random.get_rng_state()
    assert plan(config, data, 5).steps == 10
    assert torch.equal(before, torch.random.get_rng_state())
    assert [p.name for p in tmp_path.iterdir()] == ["alone"]
    after = ed.load(ed.train(config, data=data)).state_dict()
    assert all(torch.equal(alone[name], after[name]) for name in alone)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ema_halflife": 2000.0, "ema_ramp": None}, "ema_halflife: 2,000 images are more than a fifth of the run's 6,400; choose about 640"),
        ({"ema_halflife": 2000.0}, "ema_ramp holds it below 320"),
        ({"lr_ramp": 700}, "lr_ramp: 700 images are more than a tenth of the run's 6,400"),
        ({"heldout": 0.0}, "heldout: 0"),
        ({"batch": 256}, "batch: 256 is more than the 180 samples"),
        ({"label_dropout": 0.1, "conditional": False}, "label_dropout: 0.1 drops nothing"),
        ({"snapshots": 20}, "snapshots: 7 instead of 20"),
        ({"sigma_data": 2.0}, "sigma_data is set to 2"),
    ],
)  # fmt: skip
def test_what_will_not_do_what_it_seems_to_is_said(tmp_path, changes, said):
    assert plan(config_of(tmp_path), points(), 0).warnings == ()
    found = plan(config_of(tmp_path, **changes), points(), 0).warnings
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (Augment(), None),
        (Augment((XFlip(),)), None),  # half of the samples stay
        (Augment((XFlip(), Rotation(p=1.0))), "augment.rotation: leaks into samples, since only 0 %"),
        (Augment((XFlip(), Rotation(), Translation()), p=0.8), "augment.p: leaks into samples, since only"),
    ],
)
def test_augmentation_that_leaves_nothing_as_it_is_leaks(tmp_path, augment, said):
    """Of flips, rotation and translation at p = 0.8, 0.5 * 0.2 * 0.2 = 2 % stay."""
    found = plan(config_of(tmp_path, augment=augment, network=FEW), ed.data.load("digits"), 0).warnings
    assert len(found) == (said is not None) and (said is None or found[0].startswith(said))
    if said and "augment.p" in said:
        assert abs(float(found[0].split("only ")[1].split(" %")[0]) - 2) < 4 * 100 * math.sqrt(0.02 / 4096)


def test_snapshots_that_do_not_fit_on_the_disk_are_said(tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("elucidiff.training.plan.shutil.disk_usage", lambda path: full)
    (said,) = plan(config_of(tmp_path), points(), 0).warnings
    assert said.startswith("disk: the snapshots take ") and str(tmp_path) in said


def test_what_training_refuses_the_plan_refuses(tmp_path):
    with pytest.raises(ValueError, match="probe_steps: got -1"):
        plan(config_of(tmp_path), points(), -1)
    with pytest.raises(ValueError, match="leaves 0 held out"):
        plan(config_of(tmp_path, heldout=0.001), points(), 0)


# Command line


def test_dry_run_prints_a_table_or_json_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", points().values)
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments = ["train", "points.npy", "--dry-run", "--images", "6400", "--set", "batch=64", "lr_ramp=100"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for text in (
        "200 of 2",
        "measured",
        "6,400 images",
        "100 steps, 32.0 epochs",
        "of adam, after a ramp of 100 images",
        "images/s on 1 thread",
        "warning: heldout: 0",
    ):
        assert text in said, text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 100 and found["shape"] == [2] and found["memory"]["total"] > found["memory"]["moments"] > 0
    assert found["seconds"] == pytest.approx(100 * found["step_seconds"]) and found["images_per_second"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_run_needs_out_and_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    assert main(["train", "digits"]) == 2
    assert "--out: got no run directory" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert main(["train", "digits", "--out", str(tmp_path / "taken"), "--dry-run"]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_sizes_and_durations_are_short():
    assert [size(n) for n in (812, 34_512_000, 2_996_356, 999_600)] == ["812 B", "34.5 MB", "3 MB", "1 MB"]
    assert size(5 * 10**15) == "5e+03 TB"
    seconds = (0.5, 42, 185, 7800, 3 * 86400 + 4 * 3600)
    assert [duration(s) for s in seconds] == ["0.5 s", "42 s", "3 min 05 s", "2 h 10 min", "3 d 04 h"]
