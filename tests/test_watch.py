"""Watching a run: it changes no bit of the model, what it writes is what happened, and other programs can read it."""

import json
import math
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff.data import from_arrays, to_uint8
from elucidiff.data.writing import contact_sheet
from elucidiff.errors import FormatError, MissingExtraError
from elucidiff.report.training import loss_by_sigma_plot, write_training_picture
from elucidiff.seeds import Stream
from elucidiff.training.watching import events, heldout
from elucidiff.training.watching.grids import SAMPLER
from elucidiff.training.watching.levels import by_bin
from elucidiff.training.watching.watch import Watcher

TINY = ed.networks.MLP(width=16, depth=1, dropout=0.2)
EDGES = np.exp(np.linspace(np.log(0.002), np.log(80), 21))


def points(n: int = 300) -> ed.data.Dataset:
    return from_arrays(np.random.default_rng(0).normal(0.3, 0.8, (n, 2)).astype(np.float32), None, None, name="points")


def images(n: int = 90) -> ed.data.Dataset:
    """Three classes of grey 4 x 4 images."""
    labels = np.arange(n) % 3
    pixels = np.random.default_rng(0).integers(0, 80, (n, 1, 4, 4)) + 80 * labels[:, None, None, None]
    return from_arrays(pixels.astype(np.uint8), labels, None, name="images")


def config(path, **changes) -> ed.TrainConfig:
    return ed.TrainConfig(out=str(path), network=TINY, images=5120, batch=128, lr_ramp=100, snapshots=2).replace(
        **changes
    )


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Recorder(Watcher):
    def __init__(self):
        self.steps = []

    def step(self, trainer, step, seconds):
        self.steps.append(step)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that is watched in every way, and its steps."""
    run, recorder = tmp_path_factory.mktemp("watch") / "run", Recorder()
    everything = {"heldout": 0.25, "grid_every": 1000, "score_every": 1500, "scores": ("fd",), "score_num": 40}
    ed.train(config(run, **everything), data=points(), watchers=[recorder])
    return run, recorder.steps


def test_watching_changes_no_bit(watched, tmp_path):
    state = torch.random.get_rng_state()
    alone = ed.train(config(tmp_path / "run", heldout=0.25, grid_every=0, score_every=0), data=points())
    assert torch.equal(state, torch.random.get_rng_state())
    for name in ("000002", "000005"):
        pair = [run / "snapshots" / name / "model.safetensors" for run in (alone, watched[0])]
        assert pair[0].read_bytes() == pair[1].read_bytes()
    assert not (alone / "samples").exists() and not (alone / "scores.jsonl").read_text()


def test_the_logs_hold_the_means_of_the_steps(watched):
    run, steps = watched
    metrics, levels = lines(run / "metrics.jsonl"), lines(run / "loss_by_sigma.jsonl")
    ends = [line["images"] for line in metrics]
    assert ends == [2048, 4096, 5120] == [line["images"] for line in levels]
    for first, last, line, level in zip([0, *ends], ends, metrics, levels, strict=False):
        part = [s for s in steps if first < s.images <= last]
        assert line["loss"] == pytest.approx(np.mean([s.loss for s in part]), rel=1e-12)
        assert line["grad_norm"] == pytest.approx(np.mean([s.grad_norm for s in part]), rel=1e-12)
        assert line["lr"] == part[-1].lr and line["images_per_second"] > 0 and "memory_peak" not in line
        sigma = np.clip(np.concatenate([s.sigma for s in part]), 0.0021, 79.9)
        loss = np.concatenate([s.losses for s in part]).astype(np.float64) / 2  # points have two entries
        count, _ = np.histogram(sigma, EDGES)
        total, _ = np.histogram(sigma, EDGES, weights=loss)
        assert level["count"] == count[count > 0].tolist()
        assert np.allclose(level["loss"], (total / np.maximum(count, 1))[count > 0], rtol=1e-5)
        middles = np.sqrt(EDGES[1:] * EDGES[:-1])[count > 0]
        assert np.allclose(level["sigma"], middles, rtol=1e-3)


def test_levels_beyond_the_bins_belong_to_the_first_and_the_last():
    sigma = torch.tensor([1e-5, 0.0021, 500.0], dtype=torch.float64)
    middles, means, counts = by_bin(sigma, torch.tensor([1.0, 2.0, 5.0]))
    assert means == [1.5, 5.0] and counts == [2, 1]
    assert middles == pytest.approx([np.sqrt(EDGES[0] * EDGES[1]), np.sqrt(EDGES[-2] * EDGES[-1])], rel=1e-3)


def test_the_held_out_loss_is_the_formula(watched):
    """Levels at (k + 1/2)/512 of the distribution in a fixed order, noise of (seed, k) alone, Eq. 8 over the entries."""
    run, _ = watched
    line = lines(run / "scores.jsonl")[-1]
    assert line["snapshot"] == "000005" and line["images"] == 5120
    trained_on, held = points().split(0.25)
    model, weighting = ed.load(run), ed.EDM.with_sigma_data(trained_on.sigma_data()).objective.weighting
    order = np.random.Generator(np.random.Philox(key=[0, Stream.HELDOUT], counter=[0, 0, 0, 0])).permutation(512)
    u = torch.from_numpy((order + 0.5) / 512)
    sigma = (-1.2 + 1.2 * math.sqrt(2) * torch.erfinv(2 * u - 1)).exp()
    rows = [np.random.Generator(np.random.Philox(key=[0, Stream.HELDOUT], counter=[0, k, 1, 0])) for k in range(512)]
    n = torch.from_numpy(np.stack([g.standard_normal(2, dtype=np.float32) for g in rows]))
    found = {}
    for name, data in (("heldout", held), ("training", trained_on)):
        y = data.tensor()[np.arange(512) % len(data)]
        with torch.no_grad():
            D = model(y + sigma[:, None].float() * n, sigma)
        found[name] = weighting(sigma) * ((D - y) ** 2).mean(1).double()
        assert line[name] == pytest.approx(found[name].mean().item(), rel=1e-5)
        eighths = found[name][sigma.argsort()].reshape(8, 64).mean(1)
        assert line[f"{name}_by_sigma"] == pytest.approx(eighths.tolist(), rel=1e-4)
    assert line["gap"] == pytest.approx((found["heldout"] - found["training"]).mean().item(), abs=1e-6)


def test_the_stratified_error_leaves_out_what_the_strata_explain():
    noise = torch.randn(100, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trend = torch.linspace(0, 50, 512, dtype=torch.float64)
    errors = torch.tensor([heldout.stratified_error(row + trend) for row in noise])
    assert errors.mean() == pytest.approx(512**-0.5, rel=0.03)


def test_scores_come_at_the_asked_times_with_those_of_samples(watched):
    run, _ = watched
    scores = lines(run / "scores.jsonl")
    # every 1500 images, and at the snapshots (2560 and 5120), from which the count begins anew
    assert [(s["images"], s["snapshot"]) for s in scores] == [
        (1536, None),
        (2560, "000002"),
        (4096, None),
        (5120, "000005"),
    ]
    trained_on, held = points().split(0.25)
    x = ed.sample(ed.load(run), SAMPLER, seeds=range(40), batch_size=128).x
    (fd,) = ed.analysis.score_samples(x, held, trained_on, metrics=["fd"])
    assert scores[-1]["fd"] == pytest.approx(fd.value, rel=1e-9) and scores[-1]["fd_real"] == pytest.approx(fd.real)
    chosen = heldout.best(run)
    assert chosen["heldout"] == min(s["heldout"] for s in scores if s["snapshot"])


def test_the_sheets_are_samples_of_the_snapshot(tmp_path):
    run = ed.train(config(tmp_path / "run", images=2048), data=images())
    assert [p.name for p in sorted((run / "samples/training").iterdir())] == ["000001024.png", "000002048.png"]
    x = ed.sample(ed.load(run), SAMPLER, seeds=range(48), labels=[k % 3 for k in range(48)], batch_size=128).x
    large = x.repeat_interleave(8, -1).repeat_interleave(8, -2)  # to 32 pixels, which the eye can see
    with Image.open(run / "samples/training/000002048.png") as sheet:
        assert np.array_equal(np.asarray(sheet), to_uint8(contact_sheet(large, 3, 2))[0].numpy())


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 16), (2, 4, 4, 4)])
def test_every_kind_of_data_has_a_picture(shape, tmp_path):
    values = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32)
    data = from_arrays(values, None, None, name="data")
    run = ed.train(config(tmp_path / "run", images=256, snapshots=1), data=data)
    with Image.open(run / "samples/training/000000256.png") as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 2  # white, data and samples; or shades


def test_label_vectors_and_conditions_come_from_the_data(tmp_path):
    values = images().values.repeat(3, axis=1)
    vectors = np.random.default_rng(1).normal(size=(90, 5)).astype(np.float32)
    data = from_arrays(values, vectors, None, name="vectors")
    changes = {"images": 256, "snapshots": 1, "heldout": 0.3, "condition": ed.conditioning.Grey()}
    run = ed.train(config(tmp_path / "run", **changes), data=data)
    trained_on = data.split(0.3)[0]
    y, labels = trained_on.batch(np.arange(48))
    grey = ed.conditioning.Grey().of(y)
    x = ed.sample(ed.load(run), SAMPLER, seeds=range(48), labels=labels, condition=grey, batch_size=128).x
    with Image.open(run / "samples/training/000000256.png") as sheet:
        first = np.asarray(sheet)[0:32:8, 0:32:8].transpose(2, 0, 1)
    assert np.array_equal(first, to_uint8(x[0]).numpy()) and lines(run / "scores.jsonl")[0]["heldout"] > 0


# Written by TensorBoard's own writer (2.21): version, two numbers at step 300, a picture of 5 x 3 at step 7; time 1.5.
GOLDEN = (
    "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c2700000000000000bbe1b14609000000000000f83f"
    "10ac022a190a0b0a046c6f7373150000803e0a0a0a03612f6215000040c08afbe51a4300000000000000b18525a009000000000000f83f10072a360a34"
    "0a0773616d706c65732229080310051803222189504e470d0a1a0a0000000d49484452000000050000000308020000000000000031eb44bc"
)


def test_event_files_are_those_of_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(events.time, "time", lambda: 1.5)
    assert events.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 5, 3, 8, 2, 0, 0, 0, 0)
    file = events.EventFile(tmp_path)
    file.numbers(300, {"loss": 0.25, "a/b": -3.0})
    file.picture(7, "samples", png)
    file.close()
    assert next(tmp_path.iterdir()).read_bytes().hex() == GOLDEN


def test_numbers_beyond_single_precision_are_infinite(tmp_path):
    file = events.EventFile(tmp_path)
    file.numbers(0, {"a": 1e39, "b": -1e39, "c": math.nan})
    file.close()
    content = next(tmp_path.iterdir()).read_bytes()
    assert all(struct.pack("<f", v) in content for v in (math.inf, -math.inf, math.nan))


def test_tensorboard_reads_a_run(watched):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, _ = watched
    log = accumulator.EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    for name in ("loss", "lr", "grad_norm"):
        for event, line in zip(log.Scalars(name), lines(run / "metrics.jsonl"), strict=True):
            assert event.step == line["images"] and event.value == pytest.approx(line[name], rel=1e-6)
    last = lines(run / "scores.jsonl")[-1]
    assert log.Scalars("scores/fd")[-1].value == pytest.approx(last["fd"], rel=1e-6)
    assert [e.step for e in log.Images("samples")] == [1024, 2048, 2560, 3584, 4608, 5120]


FAKE = """
calls = []
class Run:
    def log(self, values, step=None):
        calls.append(("log", values, step))
    def finish(self):
        calls.append(("finish",))
def Image(path):
    return ("image", path)
def init(**options):
    calls.append(("init", options))
    return Run()
"""


def install(monkeypatch, folder, name, source):
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]  # imported anew, and forgotten after the test


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_are_told_everything_in_their_own_words(name, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, name, FAKE)
    wish = config(tmp_path / "run", trackers=(name,), heldout=0.3, images=2560, snapshots=1)
    run = ed.train(wish, data=images())
    calls = sys.modules[name].calls
    options = {"project": "elucidiff", "name": "run", "config": wish.to_dict()}
    assert calls[0] == ("init", options | ({"dir": str(run)} if name == "wandb" else {}))
    assert calls[-1] == ("finish",)
    steps = [call[2] for call in calls[1:-1]]
    assert steps == sorted(steps)  # wandb leaves out what comes late
    told = {key: value for call in calls[1:-1] for key, value in call[1].items()}
    assert told["loss"] == lines(run / "metrics.jsonl")[-1]["loss"] and "loss_by_sigma/0.5213" in told
    assert told["scores/heldout"] == lines(run / "scores.jsonl")[-1]["heldout"]
    assert told["samples"] == ("image", str(run / "samples/training/000002560.png"))


def test_a_tracker_that_fails_is_left_out(tmp_path, monkeypatch):
    broken = FAKE.replace('calls.append(("log", values, step))', 'raise OSError("no network")')
    install(monkeypatch, tmp_path, "wandb", broken)
    with pytest.warns(UserWarning, match="Wandb failed and is left out: OSError: no network"):
        run = ed.train(config(tmp_path / "run", trackers=("wandb",)), data=points())
    assert lines(run / "metrics.jsonl")[-1]["images"] == 5120
    assert [call[0] for call in sys.modules["wandb"].calls] == ["init"]


def test_a_tracker_that_is_absent_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed; .* 'elucidiff\[wandb\]'"):
        ed.train(config(tmp_path / "run", trackers=("wandb",)), data=points())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"trackers": ("wandbb",)}, "did you mean 'wandb'"),
        ({"scores": ("fid",), "heldout": 0.1}, "did you mean 'fd'"),
        ({"scores": ("fd",)}, "no held-out data"),
        ({"scores": ("fd",), "heldout": 0.1, "score_num": 3}, "score_num: got 3"),
        ({"grid_every": -1}, "grid_every: got -1"),
        ({"score_every": -1}, "score_every: got -1"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        ed.TrainConfig(**bad)


def test_a_configuration_that_asks_for_nothing_is_written_as_before():
    assert not {"grid_every", "score_every", "scores", "score_num", "trackers"} & set(ed.TrainConfig().to_dict())


def test_lists_of_words_on_the_command_line():
    from elucidiff.cli.parse import apply_training_settings

    settings = ["scores=fd, agreement", "trackers=trackio", "heldout=0.2", "grid_every=5000"]
    found = apply_training_settings(ed.TrainConfig(), settings, points())
    assert found.scores == ("fd", "agreement") and found.trackers == ("trackio",) and found.grid_every == 5000


def test_the_picture_of_a_run(watched, tmp_path):
    run, _ = watched
    with Image.open(write_training_picture(run)) as picture:
        assert picture.width > 1500 and len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert loss_by_sigma_plot(run).startswith(b"\x89PNG")
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    (tmp_path / "loss_by_sigma.jsonl").write_text((run / "loss_by_sigma.jsonl").read_text() + '{"images": 61')
    write_training_picture(tmp_path)  # while the run goes on, without scores
    with pytest.raises(FormatError, match="expected the directory of a training run"):
        write_training_picture(tmp_path / "none")


def test_the_end_names_the_best_snapshot_and_where_to_look(watched, capsys, monkeypatch):
    from elucidiff.cli.train import _print_end

    run, _ = watched
    best = min((s for s in lines(run / "scores.jsonl") if s["snapshot"]), key=lambda s: s["heldout"])
    _print_end(run, 5120, machine=True)
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == {"snapshot": best["snapshot"], "heldout": best["heldout"]}
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)  # as if it were not installed
    _print_end(run, 5120, machine=False)
    out = capsys.readouterr().out
    assert str(run / "snapshots" / best["snapshot"]) in out and f"tensorboard --logdir {run}" in out
    assert "training.png" not in out


def test_scores_are_said_while_it_trains(tmp_path, capsys):
    ed.train(config(tmp_path / "run", heldout=0.3, images=256, snapshots=1), data=points(), progress=True)
    line = lines(tmp_path / "run/scores.jsonl")[0]
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"256 images: held-out loss {line['heldout']:.4g} ± ")
