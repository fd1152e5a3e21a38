"""What training promises: a loss that is flat at the start, every kind of data by one command, fine-tuning that helps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
import foreign_files as ff
from elucidiff.analysis import loss_profile, score_samples
from elucidiff.analysis.leak import leak
from elucidiff.augment import Augment, XFlip
from elucidiff.cli.main import main
from elucidiff.metrics import DigitFeatures
from elucidiff.networks import ADM, DDPMPP, EDM2, MLP, NCSNPP, DiT, published_names
from elucidiff.training import Trainer

FRESH = {
    "ddpmpp": (DDPMPP(channels=16, multipliers=(1, 2), blocks=1, attention=()), (2, 16, 8)),
    "ddpmpp, patched": (DDPMPP(channels=16, multipliers=(1, 2), blocks=1, attention=(), patch=2), (2, 16, 8)),
    "ncsnpp": (NCSNPP(channels=16, multipliers=(1, 2), blocks=1, attention=()), (2, 16, 8)),
    "adm": (ADM(channels=16, multipliers=(1, 2), blocks=1, attention=()), (2, 16, 8)),
    "edm2": (EDM2(channels=16, multipliers=(1, 2), blocks=1, attention=()), (2, 16, 8)),
    "dit": (DiT(width=32, depth=1, heads=2), (2, 16, 8)),
    "mlp": (MLP(width=32, depth=2), (64,)),
}


@pytest.mark.parametrize("name", FRESH)
def test_the_loss_is_flat_before_training(name):
    """EDM's weighting on zero-mean data: 1 at every level, since the target has unit variance and F starts near 0."""
    network, shape = FRESH[name]
    rng = np.random.default_rng(0)
    values = rng.standard_normal((128, *shape)) * rng.uniform(0.2, 1.5, (128, *[1] * len(shape)))
    data = ed.data.from_arrays((values - values.mean()).astype(np.float32), None, None)
    trainer = Trainer.start(ed.TrainConfig(network=network), data)
    sigma = torch.logspace(np.log10(0.002), np.log10(80), 12, dtype=torch.float64)
    profile = loss_profile(trainer.model, data, trainer.design.objective.weighting, sigma, samples=128)
    assert (profile.mean - 1).abs().max() < 0.05
    # With the weight of the baselines it spans decades.
    other = loss_profile(trainer.model, data, ed.VP.objective.weighting, sigma, samples=128)
    assert other.mean.max() > 100 * other.mean.min()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_trained_loss_has_the_shape_of_the_paper(digits_run):
    """High where noise is too fine to be seen, low between, and up again where the image is lost (EDM paper, Fig. 5a)."""
    model, data = ed.load(digits_run), ed.data.load("digits").split(0.5)[1]
    sigma = torch.tensor([0.002, 0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 20.0, 80.0], dtype=torch.float64)
    loss = loss_profile(
        model, data, ed.EDM.with_sigma_data(model.preconditioning.sigma_data).objective.weighting, sigma
    )
    lowest = int(loss.mean.argmin())
    assert 3 <= lowest <= 6 and loss.mean[lowest] < 0.5
    assert (loss.mean[:lowest].diff() < 0).all()
    assert loss.mean[0] > 0.9 and loss.mean[-1] > 1.3 * loss.mean[lowest]


def signals(path):
    """Two channels of 32 samples: a sine of random phase and its derivative; the class is its frequency."""
    rng = np.random.default_rng(0)
    k = rng.integers(1, 4, 300)
    phase = 2 * np.pi * (np.arange(32) / 32 * k[:, None] + rng.random((300, 1)))
    np.savez(path, x=np.stack([np.sin(phase), np.cos(phase)], 1).astype(np.float32), labels=k - 1)


def points(path):
    np.save(path, np.random.default_rng(0).normal(0.3, 0.8, (300, 3)).astype(np.float32))


def pictures(path):
    """Colour pictures, 24 wide and 16 high, in a folder for each class."""
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = path / ("dark", "light")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        level = rng.integers(0, 100, (16, 24, 3)) + 150 * (i % 2)
        Image.fromarray(level.astype(np.uint8)).save(folder / f"{i:03d}.png")


KINDS = {
    "signals.npz": (signals, (2, 32), ["network.channels=8", "network.multipliers=1,2"], 3),
    "points.npy": (points, (3,), ["network.width=16"], 0),
    "pictures": (pictures, (3, 16, 24), ["network.channels=8", "network.multipliers=1,2", "network.blocks=1"], 2),
}


@pytest.mark.parametrize("name", KINDS)
def test_one_command_trains_and_samples_whatever_the_data_are(tmp_path, capsys, name):
    make, shape, settings, label_dim = KINDS[name]
    make(tmp_path / name)
    run, out = str(tmp_path / "run"), tmp_path / "out"
    train = [
        "train",
        str(tmp_path / name),
        "--out",
        run,
        "--images",
        "640",
        "--set",
        "batch=32",
        "--set",
        "snapshots=1",
    ]
    train += [part for setting in settings for part in ("--set", setting)]
    assert main(train) == 0
    assert main(["sample", run, "--seeds", "0-3", "--steps", "3", "--out", str(out)]) == 0
    assert "4 samples in" in capsys.readouterr().out
    model = ed.load(run)
    assert (model.shape, model.label_dim) == (shape, label_dim)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 640
    if name == "pictures":
        with Image.open(next(out.rglob("*.png"))) as image:
            assert image.size == (24, 16)
    else:
        assert ed.data.load(out / "samples.npz").shape == shape


def as_published(model: ed.Preconditioned, path: Path) -> Path:
    """A trained DDPM++ of 8 x 8 pixels as a snapshot of the published kind."""
    names, state = published_names(model.network), model.network.state_dict()
    arguments = {
        "img_resolution": 8, "img_channels": 1, "label_dim": 10, "sigma_data": model.preconditioning.sigma_data,
        "model_type": "SongUNet", "augment_dim": 0, "model_channels": 32, "channel_mult": [1, 2],
        "channel_mult_emb": 4, "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
        "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
        "decoder_type": "standard", "resample_filter": [1, 1],
    }  # fmt: skip
    path.write_bytes(ff.snapshot("EDMPrecond", arguments, {name: state[own] for name, own in names.items()}))
    return path


@pytest.mark.filterwarnings("ignore:.*CC BY-NC-SA")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_an_imported_model_improves_its_score(tmp_path):
    digits, reference = ed.data.load("digits").split(0.5)
    np.savez(tmp_path / "half.npz", images=digits.values.transpose(0, 2, 3, 1), labels=digits.labels)
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    train = ["train", str(tmp_path / "half.npz"), "--set", "batch=64", "--set", "snapshots=1", "--set", "grid_every=0"]
    assert main([*train, "--out", str(first), "--images", "9600", "--set", "lr_ramp=640"]) == 0
    imported = as_published(ed.load(first), tmp_path / "published.pkl")
    more = ["--images", "19200", "--set", f"init={imported}", "--set", "ema_ramp=null", "--set", "ema_halflife=3000"]
    assert main([*train, "--out", str(tuned), *more]) == 0
    distances = []
    for model in (imported, tuned):
        found = ed.sample(ed.load(str(model)), ed.EDM.sampler.replace(steps=8), seeds=range(300), batch_size=100)
        scores = score_samples(found.x.float(), reference, digits, metrics=["kd"], extractor=DigitFeatures())
        distances.append(scores[0].value)
    assert distances[1] < 0.7 * distances[0], distances


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_network_is_told_does_not_leak(tmp_path):
    """Mirrored pulses: with labels samples are not mirrored, without them half are (`elucidiff leak`)."""
    rng, t = np.random.default_rng(0), np.arange(16)
    centre, width, height = (rng.uniform(*bounds, (2000, 1)) for bounds in ((3, 7), (1, 2), (0.5, 1)))
    x = height * np.exp(-(((t - centre) / width) ** 2) / 2) + 0.05 * rng.standard_normal((2000, 16))
    x = x[:, None].astype(np.float32)
    data = ed.data.from_arrays(x, None, None, name="pulses")
    both = ed.data.from_arrays(np.concatenate([x, x[:, :, ::-1]]), None, None, name="with mirror images")
    mirror = Augment((XFlip(),), dims=1)
    config = ed.TrainConfig(
        network=MLP(width=64, depth=2), images=40_000, lr=2e-3, lr_ramp=2000, snapshots=1, grid_every=0
    )
    found = []
    for name, one, trained_on in (("told", config.replace(augment=mirror), data), ("not", config, both)):
        model = ed.load(ed.train(one.replace(out=str(tmp_path / name)), data=trained_on))
        found.append(leak(model, data, ed.EDM.sampler.replace(steps=10), mirror, num=300, permutations=99))
    told, untold = found
    assert told.leaks is False and told.fraction < 0.15
    assert untold.leaks is True and untold.fraction > 0.85
