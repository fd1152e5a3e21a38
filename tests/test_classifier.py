"""The classifier trained on the user's own images: it learns, repeats, survives saving, judges, and refuses."""

import json
import math

import numpy as np
import pytest
import torch

from elucidiff import metrics
from elucidiff.analysis import compare, score_samples
from elucidiff.cli.main import main
from elucidiff.data import Dataset
from elucidiff.denoiser import EmpiricalDenoiser
from elucidiff.design import EDM
from elucidiff.errors import FormatError
from elucidiff.metrics import classifier as module
from elucidiff.metrics import load_classifier, train_classifier


def stripes(n: int, seed: int, size: int = 8, channels: int = 1) -> Dataset:
    """Three classes by construction: lines along rows, along columns, and spots; anywhere, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    i, j = np.mgrid[:size, :size]
    row, column = (np.cos(np.pi * axis + np.pi * rng.integers(0, 2, (n, 1, 1))) for axis in (i, j))
    wave = np.select([labels[:, None, None] == 0, labels[:, None, None] == 1], [row, column], row * column)
    noisy = 127.5 + 50 * wave[:, None] + 30 * rng.standard_normal((n, channels, size, size))
    return Dataset(
        noisy.clip(0, 255).astype(np.uint8), labels.astype(np.int64), ("rows", "columns", "spots"), "stripes"
    )


@pytest.fixture(scope="module")
def trained() -> metrics.Classifier:
    return train_classifier(stripes(600, seed=0), images=6000)


def weights_of(classifier):
    return classifier.network.state_dict()


def test_it_learns_and_its_accuracy_is_that_of_unseen_images(trained):
    record, fresh = trained.record, stripes(300, seed=1)
    assert record.tested == 60 and record.accuracy > 0.95
    right = trained.logits(fresh.tensor()).argmax(1) == torch.from_numpy(fresh.labels)
    assert right.double().mean() > 0.95
    assert (record.classes, record.label_dim, record.fingerprint) == (fresh.classes, 3, stripes(600, 0).fingerprint())
    tested = train_classifier(stripes(600, seed=0), images=300, test=fresh)
    accuracy = (tested.logits(fresh.tensor()).argmax(1) == torch.from_numpy(fresh.labels)).double().mean()
    assert (tested.record.tested, tested.record.accuracy) == (300, accuracy.item())


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed + 100)
        return weights_of(train_classifier(stripes(100, 0), images=400, seed=0 if seed < 2 else seed))

    first, second, other = (weights(seed) for seed in range(3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_saved_and_loaded_it_has_the_same_features_and_equals_itself(trained, tmp_path):
    trained.save(tmp_path / "judge.v1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judge.v1.json", "judge.v1.safetensors"]
    x = stripes(70, seed=2).tensor()
    for name in ("judge.v1", "judge.v1.json", "judge.v1.safetensors"):
        loaded = load_classifier(tmp_path / name)
        assert loaded == trained and str(loaded) == str(trained) and loaded.to_dict() == trained.to_dict()
        assert torch.equal(loaded.features(x), trained.features(x))
        assert torch.equal(loaded.logits(x), trained.logits(x))
    assert str(trained) == f"classifier stripes {trained.record.sha256[:8]}"
    with pytest.raises(FileExistsError, match="overwritten"):
        trained.save(tmp_path / "judge.v1.json")


def test_logits_are_the_linear_layer_of_the_features_of_the_folded_convolutions(trained):
    """Read independently: batch norm folded into float64 convolutions, the mean over space, the linear layer."""
    x, w = stripes(9, seed=3).tensor().double(), {k: v.double() for k, v in weights_of(trained).items()}
    h = x
    for k, halved in ((0, True), (4, False), (7, False)):
        scale = w[f"trunk.{k + 1}.weight"] / (w[f"trunk.{k + 1}.running_var"] + 1e-5).sqrt()
        bias = w[f"trunk.{k + 1}.bias"] - scale * w[f"trunk.{k + 1}.running_mean"]
        h = torch.conv2d(h, w[f"trunk.{k}.weight"] * scale[:, None, None, None], bias, padding=1).clamp(min=0)
        h = torch.max_pool2d(h, 2) if halved else h
    features = h.mean((2, 3))
    assert features.shape == (9, 64) == (9, trained.dim((1, 8, 8)))
    assert torch.allclose(trained.features(x), features, rtol=0, atol=2e-5)
    assert torch.allclose(trained.logits(x), features @ w["head.weight"].mT + w["head.bias"], rtol=0, atol=1e-4)


def test_features_do_not_depend_on_the_batch(trained):
    x = stripes(503, seed=4).tensor()
    features = trained.features(x)
    assert features.dtype == torch.float64 and features.shape == (503, 64)
    for part in (slice(0, 1), slice(49, 52), slice(499, 503)):
        assert torch.equal(features[part], trained.features(x[part]))


def test_shifts_move_each_image_by_at_most_a_twelfth_and_repeat_its_border():
    size = 28
    x = torch.arange(float(size * size)).reshape(1, 1, size, size).repeat(200, 2, 1, 1)
    x[:, 1] *= -1
    moved, seen = module._shifted(x, seed=0, step=3), set()
    for image in moved:
        centre = int(image[0, 14, 14].item())
        dy, dx = centre // size - 14, centre % size - 14
        rows, columns = ((torch.arange(size) + d).clamp(0, size - 1) for d in (dy, dx))
        assert torch.equal(image, x[0][:, rows][:, :, columns])
        seen.add((dy, dx))
    assert seen == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert not torch.equal(moved, module._shifted(x, seed=0, step=4))


@pytest.mark.parametrize(("shape", "grid"), [((1, 8, 8), 4), ((1, 28, 28), 7), ((3, 32, 32), 8), ((3, 64, 80), 8)])
def test_networks_for_sizes(shape, grid):
    network = module.ClassifierNetwork(shape, 5).eval()
    out = network.trunk(torch.zeros(1, *shape))
    assert out.shape[1] == 64 and min(out.shape[2:]) == grid
    if shape[1] == 28:
        by_hand = 9 * (24 + 24 * 48 + 48 * 64 + 64 * 64) + 2 * (24 + 48 + 64 + 64) + 65 * 5
        assert sum(p.numel() for p in network.parameters()) == by_hand


def test_scores_with_a_classifier_see_damage_and_wrong_classes(trained):
    reference, real, samples = (stripes(300, seed=seed) for seed in (5, 6, 7))
    x, labels = samples.batch(range(300))
    good = {s.metric: s for s in score_samples(x, reference, real, labels=labels, extractor=trained)}
    assert set(good) == {"fd", "kd", "agreement"}
    assert {s.features for s in good.values()} == {str(trained)}
    assert good["agreement"].value > 0.95 and good["agreement"].real > 0.95
    swapped = score_samples(x, reference, real, labels=labels[:, [1, 2, 0]], extractor=trained, metrics=["agreement"])
    assert swapped[0].value < 0.05
    noisy = {s.metric: s for s in score_samples(x + 0.8 * torch.randn_like(x), reference, real, extractor=trained)}
    one = {s.metric: s for s in score_samples(x[::3], reference, real, extractor=trained)}
    for bad in (noisy, one):
        assert "agreement" not in bad  # no class was asked for
        assert bad["fd"].value > 10 * good["fd"].value and bad["kd"].value > 10 * abs(good["kd"].value)
    more = torch.nn.functional.pad(labels, (0, 1))  # a model of four classes: the three are not its classes
    assert [s.metric for s in score_samples(x, reference, real, labels=more, extractor=trained)] == ["fd", "kd"]


def test_comparisons_depend_on_the_weights(trained, tmp_path):
    """A store keeps measurements by what they depend on: another classifier is another measurement."""
    small = stripes(60, seed=8)
    model, store = EmpiricalDenoiser(small.tensor(), small.batch(range(60))[1]), tmp_path / "store.jsonl"
    options = {"num": 12, "repeats": 1, "store": store, "metrics": ["agreement"]}
    first = compare(model, small, {"edm": EDM.sampler}, [5], extractor=trained, **options)
    measured = store.read_text().count('"key"')
    assert compare(model, small, {"edm": EDM.sampler}, [5], extractor=trained, **options).to_dict() == first.to_dict()
    assert store.read_text().count('"key"') == measured == 2
    other = train_classifier(stripes(100, 0), images=128)
    compare(model, small, {"edm": EDM.sampler}, [5], extractor=other, **options)
    assert store.read_text().count('"key"') == 4
    assert first.facts["features"] == trained.to_dict()


def record_with(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_files_that_are_not_what_they_claim_are_refused(trained, tmp_path):
    def saved(name):
        trained.save(tmp_path / name)
        return tmp_path / f"{name}.json", tmp_path / f"{name}.safetensors"

    _, weights = saved("changed")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FormatError, match=r"changed\.safetensors.*SHA-256"):
        load_classifier(weights)
    for name, changes, message in (
        ("classes", {"label_dim": 4, "classes": None}, "not the weights of this classifier"),
        ("huge", {"label_dim": 10**12, "classes": None}, "not the weights of this classifier"),
        ("shape", {"shape": [1, 4, 4]}, "from 8x8"),
        ("key", {"weight": 1}, "did you mean|unknown field"),
    ):
        description, _ = saved(name)
        record_with(description, **changes)
        with pytest.raises(FormatError, match=message):
            load_classifier(description)
    description, weights = saved("text")
    weights.write_bytes(b"no weights")
    record_with(description, sha256=module.hashlib.sha256(b"no weights").hexdigest())
    with pytest.raises(FormatError, match="not the weights of this classifier"):
        load_classifier(description)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        load_classifier(description)
    description.write_text("{")
    with pytest.raises(FormatError, match="not a record file"):
        load_classifier(description)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_classifier(Dataset(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))), "'identity' need"),
        (lambda: train_classifier(Dataset(np.zeros((4, 1, 7, 9), np.uint8), np.arange(4) % 2)), "8x8"),
        (lambda: train_classifier(Dataset(stripes(9, 0).values)), "a class for each"),
        (lambda: train_classifier(Dataset(stripes(9, 0).values, np.zeros(9, np.int64))), "two classes or more"),
        (
            lambda: train_classifier(Dataset(stripes(9, 0).values, np.eye(3, dtype=np.float32)[[0, 1, 2] * 3])),
            "a class",
        ),
        (lambda: train_classifier(stripes(9, 0), images=0), "at least 1"),
        (lambda: train_classifier(stripes(9, 0), heldout=1.5), "between 0 and 1"),
        (lambda: train_classifier(stripes(9, 0), test=stripes(9, 0, size=9)), "test"),
        (lambda: train_classifier(stripes(9, 0), test=Dataset(stripes(9, 0).values)), "test"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_another_shape_is_refused(trained):
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*got \(1, 28, 28\).*elucidiff classifier"):
        trained.features(torch.zeros(2, 1, 28, 28))


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_commands(capsys, tmp_path):
    file = tmp_path / "judge.json"
    code, out, _ = run(capsys, "classifier", "digits", "--images", "20000", "--out", file, "--json")
    record = json.loads(out)
    assert code == 0 and record["out"] == str(file) and record["accuracy"] > 0.95 and record["tested"] == 180
    evaluate = ["evaluate", "exact:digits", "digits", "--num", "100", "--steps", "5"]
    code, out, _ = run(capsys, *evaluate, "--features", file, "--json")
    found = json.loads(out)
    scores = {s["metric"]: s for s in found["scores"]}
    assert code == 0 and found["features"]["sha256"] == record["sha256"]
    assert (
        scores["agreement"]["value"] > 0.9 and scores["fd"]["features"] == f"classifier digits {record['sha256'][:8]}"
    )
    default, named = (json.loads(run(capsys, *evaluate, *more, "--json")[1]) for more in ([], ["--features", "digits"]))
    assert default["scores"] == named["scores"] != found["scores"]
    code, out, _ = run(capsys, *evaluate, "--features", tmp_path / "judge", "--metrics", "fd,agreement")
    assert code == 0 and record["sha256"][:8] in out and "was trained on these data" in out

    code, _, err = run(capsys, "classifier", "digits", "--images", "20000", "--out", tmp_path / "judge")
    assert code == 2 and "overwritten" in err
    np.save(tmp_path / "grey.npy", np.zeros((20, 9, 9), np.uint8))
    for argv, message in (
        (["evaluate", "exact:digits", "digits", "--features", "pyramids"], "did you mean 'pyramid'"),
        (["evaluate", "exact:digits", "digits", "--features", tmp_path / "none.json"], "none.json"),
        (["evaluate", "exact:digits", tmp_path / "grey.npy", "--features", file], "got (1, 9, 9)"),
        (["classifier", tmp_path / "grey.npy", "--out", tmp_path / "new"], "a class for each image"),
    ):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) <= 2, err
    assert not (tmp_path / "new.json").exists()


def test_compare_and_ema_take_features(capsys, trained, tmp_path):
    small = stripes(40, seed=9)
    np.savez(tmp_path / "stripes.npz", images=small.values, labels=small.labels)
    trained.save(tmp_path / "judge")
    code, out, _ = run(
        capsys, "compare", f"exact:{tmp_path / 'stripes.npz'}", tmp_path / "stripes.npz", "--samplers", "edm", "--nfe", "5",
        "--num", "8", "--repeat", "1", "--metrics", "agreement", "--features", tmp_path / "judge.json", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and found["features"]["sha256"] == trained.record.sha256
    assert math.isclose(found["real"]["agreement"], 1, abs_tol=0.13)
    code, _, err = run(capsys, "ema", "nowhere", "digits", "--features", tmp_path / "judge.jsn")
    assert code == 2 and err
