"""Configurations A to F, and the recipes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff.analysis.scores import usual_metrics
from elucidiff.augment import Augment
from elucidiff.networks import DDPMPP, MLP, NCSNPP
from elucidiff.recipes import RECIPES, recipe
from elucidiff.training import TrainingStopped, ablate, checkpoint, configuration
from elucidiff.training.ablation import moved_down

CIFAR = (3, 32, 32)


def size(network: ed.networks.Network, shape: tuple[int, ...], label_dim: int = 0) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in network.build(shape, label_dim).parameters())


def test_the_published_recipe_gives_back_the_published_baseline():
    base = ed.recipes.cifar10()
    a = configuration("A", base, CIFAR)
    # math.md section 5: the baseline's batch, learning rate, ramp, dropout, half-life and clipping for CIFAR-10.
    assert (a.batch, a.lr_ramp, a.clip) == (128, 640_000, 1.0)
    assert a.ema_ramp * a.images > a.ema_halflife  # at the end the published half-life holds
    assert (a.lr, a.ema_halflife, a.network.dropout) == pytest.approx((2e-4, 900_000, 0.10), rel=1e-12)
    assert a.network.multipliers == (1, 2, 2, 2) and a.network.channels == 128 - 8  # nearest in size
    assert abs(math.log(size(a.network, CIFAR) / size(base.network, CIFAR))) < 0.05
    b = configuration("B", base, CIFAR)
    assert (b.batch, b.lr, b.clip, b.network.multipliers) == (512, 1e-3, None, (1, 2, 2, 2))


@pytest.mark.parametrize("baseline, old", [("vp", ed.VP), ("ve", ed.VE)])
def test_each_configuration_changes_what_table_2_says(baseline, old):
    base = ed.recipes.cifar10()
    made = {letter: configuration(letter, base, CIFAR, baseline) for letter in "ABCDEF"}
    elements = {
        letter: (c.design.preconditioning, c.design.objective, c.network.multipliers, c.batch, c.augment)
        for letter, c in made.items()
    }
    edm = (ed.EDM.preconditioning, ed.EDM.objective)
    assert elements["A"] == (old.preconditioning, old.objective, (1, 2, 2, 2), 128, None)
    assert elements["B"] == (old.preconditioning, old.objective, (1, 2, 2, 2), 512, None)
    assert elements["C"] == (old.preconditioning, old.objective, (2, 2, 2), 512, None)
    assert elements["D"] == (ed.EDM.preconditioning, old.objective, (2, 2, 2), 512, None)
    assert elements["E"] == (*edm, (2, 2, 2), 512, None)
    assert elements["F"] == (*edm, (2, 2, 2), 512, Augment(p=0.12))
    assert all(isinstance(c.network, NCSNPP if baseline == "ve" else DDPMPP) for c in made.values())


def test_what_no_baseline_had_is_switched_off_where_table_2_adds_its_kind():
    # math.md section 5: the published A is a learning rate, held after its ramp, and independent draws of the noise.
    added = {"lr_decay": 70_000_000, "lr_cooldown": 10_000_000, "beta2": 0.99}
    base = ed.recipes.cifar10().replace(stratified=True, **added)
    made = {letter: configuration(letter, base, CIFAR) for letter in "ABCDEF"}
    assert "".join(letter for letter, c in made.items() if c.stratified) == "EF"
    optimizers = {letter: {name: getattr(c, name) for name in added} for letter, c in made.items()}
    published = {"lr_decay": None, "lr_cooldown": None, "beta2": 0.999}
    assert optimizers == {"A": published} | dict.fromkeys("BCDEF", added)


def test_capacity_moves_down_only_where_there_is_room():
    assert moved_down(DDPMPP(channels=32, multipliers=(2, 2), attention=()), (1, 8, 8)).multipliers == (1, 2)
    assert moved_down(DDPMPP(channels=32, multipliers=(2, 2), attention=(), patch=2), (1, 32, 32)).multipliers == (
        1, 2, 2,
    )  # fmt: skip
    narrow = DDPMPP(channels=32, multipliers=(1, 2), attention=())
    assert moved_down(narrow, (1, 8, 8)) == narrow
    assert moved_down(MLP(), (2,)) == MLP()


def test_unknown_letters_and_baselines_are_named():
    with pytest.raises(ValueError, match=r"configuration.*'G'.*A, B, C, D, E, F"):
        configuration("G", ed.TrainConfig(), (2,))
    with pytest.raises(ValueError, match=r"baseline.*'ddpm'.*ve, vp"):
        configuration("A", ed.TrainConfig(), (2,), "ddpm")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete_values_that_survive_json(name):
    config = recipe(name)
    assert ed.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_recipes_of_the_papers():
    # math.md section 5.
    table = {
        "cifar10": (200_000_000, 512, 1e-3, 500_000, 0.13, 0.12),
        "ffhq64": (200_000_000, 256, 2e-4, 500_000, 0.05, 0.15),
        "afhqv2": (200_000_000, 256, 2e-4, 500_000, 0.25, 0.15),
        "imagenet64": (2_500_000_000, 4096, 1e-4, 50_000_000, 0.10, None),
    }
    for name, row in table.items():
        c = recipe(name)
        p = None if c.augment is None else c.augment.p
        assert (c.images, c.batch, c.lr, c.ema_halflife, c.network.dropout, p) == row
        assert c.lr_ramp == 10_000_000
    assert size(recipe("cifar10").network, CIFAR, 10) == 55_735_299
    assert size(recipe("ffhq64").network, (3, 64, 64)) == 61_805_571
    assert size(recipe("edm2-xs").network, (4, 64, 64), 1000) == pytest.approx(124.7e6, rel=1e-3)
    with pytest.raises(ValueError, match=r"recipe.*'cifar'.*cifar10"):
        recipe("cifar")


def points() -> ed.data.Dataset:
    x = np.random.default_rng(0).normal(0.3, 0.8, (400, 2)).astype(np.float32)
    return ed.data.from_arrays(x, None, None, name="points")


BASE = ed.TrainConfig(
    network=MLP(width=16, depth=1), images=1280, batch=64, lr_ramp=100, ema_halflife=200.0, snapshots=1, heldout=0.5
)


def test_a_stopped_ablation_goes_on_and_gives_the_same_numbers(tmp_path, monkeypatch):
    whole = ablate(points(), BASE, tmp_path / "whole", configs="AE", seeds=(0, 1), num=20)
    told: list[str] = []

    def stop_in_the_third(done: int, total: int, text: str = "") -> None:
        told.append(text)
        if done == 2:
            (tmp_path / "half" / "vp-E-0.partial").mkdir()  # what a killed process would leave
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(points(), BASE, tmp_path / "half", configs="AE", seeds=(0, 1), num=20, progress=stop_in_the_third)
    before = (tmp_path / "half" / "vp-A-1" / "config.json").stat().st_mtime_ns
    again = ablate(points(), BASE, tmp_path / "half", configs="AE", seeds=(0, 1), num=20)
    assert again.to_dict() == whole.to_dict()
    assert (tmp_path / "half" / "vp-A-1" / "config.json").stat().st_mtime_ns == before  # not trained again
    assert told[0] == "A, seed 0: training"
    values = whole.cells[0].scores["fd"].values
    assert len(values) == 2 and values[0] != values[1]
    # Trained on the part that is not the reference.
    assert ed.load(tmp_path / "whole" / "vp-A-0").info["data"]["fingerprint"] == points().split(0.5)[0].fingerprint()


def test_a_training_that_was_stopped_half_way_is_resumed(tmp_path):
    whole = ablate(points(), BASE, tmp_path / "whole", configs="E", seeds=(0,), num=20)
    half, partial = tmp_path / "half", tmp_path / "half" / "vp-E-0.partial"
    for _ in range(3):
        with pytest.raises(TrainingStopped, match="stopped by the time limit after"):
            ablate(points(), BASE, half, configs="E", seeds=(0,), num=20, time_limit=0.0)
    assert (partial / "stopped").is_file() and not (half / "vp-E-0").exists()
    assert checkpoint.read(partial).facts["images"] == 3 * 64  # a step each time, none of them made twice
    with pytest.raises(ValueError, match=r"another configuration \(batch: 64 there, 32 now\)"):
        ablate(points(), BASE.replace(batch=32), half, configs="E", seeds=(0,), num=20)
    again = ablate(points(), BASE, half, configs="E", seeds=(0,), num=20)
    assert again.to_dict() == whole.to_dict() and not partial.exists()
    a, b = (ed.load(home / "vp-E-0") for home in (tmp_path / "whole", half))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_agreement_is_measured_where_the_classes_can_be_told(tmp_path):
    digits, classifier = ed.data.load("digits"), ed.metrics.DigitFeatures()
    assert usual_metrics(digits, classifier) == ("fd", "agreement")
    assert usual_metrics(digits, ed.metrics.Identity()) == ("fd",)
    assert usual_metrics(ed.data.from_arrays(digits.values), classifier) == ("fd",)
    assert ablate(points(), BASE, tmp_path, configs="E", seeds=(0,), num=20).facts["metrics"] == ["fd"]


def test_a_folder_that_was_moved_is_gone_on_with(tmp_path, monkeypatch):
    first = ablate(points(), BASE, tmp_path / "a", configs="E", seeds=(0,), num=20)
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("elucidiff.training.ablation.train", None)  # nothing is trained again
    assert ablate(points(), BASE, "b", configs="E", seeds=(0,), num=20).to_dict() == first.to_dict()


def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    ablate(points(), BASE, tmp_path, configs="E", seeds=(0,), num=20)
    with pytest.raises(ValueError, match=r"vp-E-0: a run of another configuration; name another folder"):
        ablate(points(), BASE.replace(images=640), tmp_path, configs="E", seeds=(0,), num=20)
    with pytest.raises(ValueError, match="heldout: got 0 and no reference"):
        ablate(points(), BASE.replace(heldout=0.0), tmp_path / "x", configs="E", seeds=(0,))


def test_the_command(tmp_path, capsys):
    from elucidiff.cli.main import main

    np.save(tmp_path / "points.npy", points().values)
    out = tmp_path / "out"
    arguments = [
        "ablate", str(tmp_path / "points.npy"), "--out", str(out), "--configs", "a,e", "--runs", "2", "--images", "640",
        "--num", "20", "--metrics", "fd", "--set", "network.width=16", "--set", "network.depth=1", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["configuration"] for c in found["configurations"]] == ["A", "E"]
    assert Path(out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "ablation.json").read_text()) == found


def test_settings_name_elements_of_the_design_and_keep_the_recipes_network():
    from elucidiff.cli.parse import apply_training_settings

    data = ed.data.load("digits")
    config = apply_training_settings(
        ed.recipes.mnist(), ["noise.P_std=1.0", "weighting=min_snr", "preconditioning=vp", "network.channels=16"], data
    )
    assert config.network == ed.recipes.mnist().network.replace(channels=16)
    assert config.design.preconditioning == ed.VP.preconditioning
    assert config.design.objective == ed.objective.Objective(
        noise=ed.objective.LogNormal(P_mean=0.0, P_std=1.0), weighting=ed.objective.MinSNR()
    )
