"""Models as files: round trips, every flipped bit and truncation noticed, nothing overwritten."""

import json
import random

import pytest
import torch

import elucidiff as ed
from elucidiff.errors import FormatError


@pytest.fixture
def model() -> ed.Preconditioned:
    return ed.Preconditioned(ed.networks.MLP(width=8, depth=1), ed.preconditioning.EDM(0.7), shape=(2,), label_dim=3)


def test_round_trip_is_bit_for_bit(model, tmp_path):
    ed.save(model, tmp_path / "m", design=ed.EDM.with_sigma_data(0.7), info={"data": {"name": "points"}})
    again = ed.load(tmp_path / "m")
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.eval()(x, 0.5, labels=labels), again(x, 0.5, labels=labels))
    assert (again.shape, again.label_dim, again.preconditioning) == ((2,), 3, ed.preconditioning.EDM(0.7))
    assert again.info["data"] == {"name": "points"} and ed.models.design_of(again) == ed.EDM.with_sigma_data(0.7)
    ed.save(again, tmp_path / "copy")
    assert ed.load(tmp_path / "copy").info == again.info


def test_every_damage_is_noticed(model, tmp_path):
    ed.save(model, tmp_path / "m")
    rng = random.Random(0)
    files = sorted(p for p in (tmp_path / "m").iterdir())
    assert [p.name for p in files] == ["manifest.json", "model.json", "model.safetensors"]
    for file in files:
        good = file.read_bytes()
        damaged = [good[: rng.randrange(len(good))] for _ in range(15)]
        for _ in range(40):
            i, bit = rng.randrange(len(good)), 1 << rng.randrange(8)
            damaged.append(good[:i] + bytes([good[i] ^ bit]) + good[i + 1 :])
        for content in damaged:
            if file.name == "manifest.json" and same_json(content, good):
                continue  # white space of the manifest itself carries nothing
            file.write_bytes(content)
            with pytest.raises(FormatError):
                ed.load(tmp_path / "m")
        file.write_bytes(good)
    assert ed.load(tmp_path / "m").shape == (2,)


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a)["sha256"] == json.loads(b)["sha256"]
    except (ValueError, KeyError, TypeError):
        return False


def test_missing_and_added_files_are_noticed(model, tmp_path):
    ed.save(model, tmp_path / "m")
    (tmp_path / "m" / "extra.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match="extra.bin is not in manifest.json"):
        ed.load(tmp_path / "m")
    (tmp_path / "m" / "extra.bin").unlink()
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="model.safetensors is missing"):
        ed.load(tmp_path / "m")


def test_nothing_is_overwritten_and_a_failed_save_leaves_nothing(model, tmp_path):
    ed.save(model, tmp_path / "m")
    with pytest.raises(FileExistsError, match="would be overwritten"):
        ed.save(model, tmp_path / "m")
    with pytest.raises(TypeError, match="not JSON serializable"):
        ed.save(model, tmp_path / "new", info={"data": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_only_networks_made_from_a_configuration_can_be_saved(tmp_path):
    with pytest.raises(TypeError, match="GaussianDenoiser"):
        ed.save(ed.GaussianDenoiser(torch.zeros(2), 1.0), tmp_path / "m")


@pytest.mark.parametrize("name", ["nowhere", "exact:nowhere.zip"])
def test_a_missing_model_is_named(name):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ed.load(name)


def test_an_empty_folder_or_run_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"not a model directory"):
        ed.load(tmp_path)
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(FormatError, match="no snapshot yet"):
        ed.load(tmp_path)


def test_exact_denoiser_of_the_digits_returns_digits_of_the_asked_class():
    data = ed.data.load("digits")
    result = ed.sample(ed.load("exact:digits"), ed.EDM, seeds=range(20), labels=[i % 10 for i in range(20)])
    distance = torch.cdist(result.x.flatten(1), data.tensor(torch.float64).flatten(1))
    assert distance.min(1).values.max() < 1e-6
    assert [int(data.labels[i]) for i in distance.argmin(1)] == [i % 10 for i in range(20)]
