"""Each score moves as its definition says, on real digits that are blurred, noisy, of one class, repeated, or copied."""

import functools

import numpy as np
import pytest
import torch

from conftest import shared
from elucidiff import data
from elucidiff.analysis import score_samples
from test_metrics import blurred, noisy

ALL = ("fd", "kd", "is", "prdc", "swd", "energy", "mmd", "nearest")
NUM = 450


@functools.cache
def parts():
    """(reference, training, fresh): three disjoint parts; fresh data play the samples."""
    reference, rest = data.load("digits").split(0.66)
    training, fresh = rest.split(0.4)
    return reference, training, fresh


@functools.cache
def score(kind):
    """The scores of one kind of samples, by metric."""
    reference, training, fresh = parts()
    x, labels = fresh.tensor()[:NUM], torch.from_numpy(fresh.labels[:NUM])
    one = fresh.tensor()[torch.from_numpy(fresh.labels == 3)]
    samples = {
        "real": lambda: x,
        "blurred": lambda: blurred(x, 0.8),
        "very blurred": lambda: blurred(x, 1.5),
        "noisy": lambda: noisy(x, 0.3),
        "very noisy": lambda: noisy(x, 0.8),
        "one class": lambda: one.repeat(1 + NUM // len(one), 1, 1, 1)[: len(one)],
        "repeated": lambda: x[:10].repeat(NUM // 10, 1, 1, 1),
        "without half": lambda: x[labels < 5],
        "training": lambda: training.tensor()[:NUM],
        "nearly training": lambda: noisy(training.tensor()[:NUM], 0.1),
        "held out": lambda: reference.tensor()[:NUM],
    }[kind]()
    return {s.metric: s for s in score_samples(samples, reference, training, metrics=ALL)}


def values(kind):
    return {name: s.value for name, s in score(kind).items()}


DISTANCES = ("fd", "kd", "swd", "energy", "mmd")


@pytest.mark.parametrize("damage", ["blurred", "noisy"])
def test_distances_grow_with_damage(damage):
    real, some, much = values("real"), values(damage), values(f"very {damage}")
    for name in DISTANCES:
        assert real[name] < some[name] < much[name], name
    for name in ("fd", "kd", "energy", "mmd"):  # in units of what real data get
        assert much[name] > 10 * abs(real[name]), name


@pytest.mark.parametrize("loss", ["one class", "repeated", "without half"])
def test_distances_of_distributions_see_a_loss_of_variety(loss):
    real, lost = values("real"), values(loss)
    for name in ("fd", "kd", "energy", "mmd"):
        assert lost[name] > 2 * abs(real[name]), name


def test_precision_and_density_fall_with_noise_and_not_with_variety():
    real, found = values("real"), {kind: values(kind) for kind in ("noisy", "very noisy", "one class", "repeated")}
    assert real["precision"] > found["noisy"]["precision"] > found["very noisy"]["precision"]
    assert real["density"] > found["noisy"]["density"] > found["very noisy"]["density"]
    assert found["very noisy"]["precision"] < 0.6 * real["precision"] and found["very noisy"]["density"] < 0.3
    assert found["one class"]["precision"] > real["precision"] - 0.1


def test_recall_and_coverage_fall_with_variety():
    real = values("real")
    for kind in ("one class", "repeated", "without half"):
        assert values(kind)["recall"] < 0.7 * real["recall"], kind
        assert values(kind)["coverage"] < 0.7 * real["coverage"], kind
    assert values("one class")["recall"] < 0.2
    assert values("repeated")["coverage"] < 0.2  # ten images reach ten neighbourhoods


def test_class_score_counts_clear_classes():
    real = values("real")["is"]
    assert 7 < real < 10
    assert values("one class")["is"] < 1.3
    assert 3.5 < values("without half")["is"] < 5.05
    assert values("very noisy")["is"] < values("noisy")["is"] < real


def test_only_memory_moves_the_share_of_memorised_samples():
    assert values("training")["nearest"] == 1
    assert values("nearly training")["nearest"] > 0.95
    assert values("held out")["nearest"] < -1
    for kind in ("real", "one class", "blurred", "noisy"):
        found = score(kind)["nearest"]
        assert abs(found.value) < 3 * found.error, kind
    assert abs(score("real")["nearest"].real) < 0.2


def test_samples_of_the_data_are_as_good_as_real_data():
    """The value of fresh data and the one given as that of real data are two draws of the same number."""
    found = score("real")
    for name, low, high in [("fd", 0.6, 1.6), ("precision", 0.93, 1.07), ("recall", 0.9, 1.1), ("density", 0.85, 1.15),
                            ("coverage", 0.9, 1.1), ("is", 0.93, 1.07), ("swd", 0.6, 1.6)]:  # fmt: skip
        assert low < found[name].value / found[name].real < high, name
    for name in ("kd", "energy", "mmd"):
        assert abs(found[name].value) < 3 * found[name].error, name
        assert np.sign(found[name].error) == 1


@pytest.mark.slow
def test_scores_of_mnist_move_too():
    """400 training pictures against 400 test pictures, on features without weights: docs/scores.md has the table."""
    train, test = data.load(shared("data/mnist-train.zip")), data.load(shared("data/mnist-test.zip"))
    train, reference = train.subset(range(4000)), test.subset(range(400))
    x, classes = train.tensor()[:400], train.labels[:400]
    kinds = {
        "real": x,
        "blurred": blurred(x, 0.7),
        "noisy": noisy(x, 0.2),
        "very noisy": noisy(x, 0.6),
        "one class": train.tensor()[train.labels == 3][:300],
        "without half": x[classes < 5],
        "repeated": x[:10].repeat(40, 1, 1, 1),
    }
    wanted = ("fd", "kd", "prdc", "energy", "mmd", "nearest")
    found = {
        kind: {s.metric: s.value for s in score_samples(y, reference, train, metrics=wanted)}
        for kind, y in kinds.items()
    }
    real = found.pop("real")
    for kind, values in found.items():
        assert all(values[name] > 2 * abs(real[name]) for name in ("kd", "energy", "mmd")), kind
        assert values["fd"] > 1.3 * real["fd"], kind
    assert real["precision"] > found["noisy"]["precision"] > found["very noisy"]["precision"]
    assert found["one class"]["precision"] > real["precision"] - 0.1
    for kind, part in {"one class": 0.7, "without half": 0.95, "repeated": 0.7}.items():
        assert found[kind]["recall"] < part * real["recall"] and found[kind]["coverage"] < part * real["coverage"], kind
    assert real["nearest"] == found["repeated"]["nearest"] == 1  # they are the training data
