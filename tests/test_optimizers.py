"""Muon: what it does to matrices, that all else is Adam's, and who uses it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import elucidiff as ed
from elucidiff.networks import MLP
from elucidiff.training import Trainer, configuration, optimizers
from elucidiff.training.optimizers import Muon, is_matrix, orthogonal
from elucidiff.training.plan import plan


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[torch.Tensor]]):
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def weights(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(steps: int, *shapes: tuple[int, ...]) -> list[list[torch.Tensor]]:
    return [[p.detach() for p in weights(*shapes, seed=1 + i)] for i in range(steps)]


def test_a_step_is_nearly_the_orthogonal_factor_of_the_svd():
    m = torch.randn(3, 24, 80, generator=torch.Generator().manual_seed(0))
    found = orthogonal(m)
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.65 and singular.max() < 1.25
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    cosine = (found * (u @ v)).sum((1, 2)) / found.norm(dim=(1, 2)) / 24**0.5
    assert cosine.min() > 0.98
    assert torch.equal(orthogonal(torch.zeros(1, 16, 16)), torch.zeros(1, 16, 16))


def test_matrices_move_as_those_of_torch_do():
    """torch's own works on one matrix at a time, in bfloat16: to its precision the steps are the same."""
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("torch.optim.Muon came with torch 2.9")
    shapes = [(16, 40), (40, 16), (64, 64), (16, 40)]
    ours, others = weights(*shapes), weights(*shapes)
    start, given = [p.detach().clone() for p in ours], gradients(5, *shapes)
    a = stepped(Muon(ours, lr=1e-2), ours, given)
    b = stepped(theirs(others, lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), others, given)
    for x, y, x0 in zip(a, b, start, strict=True):
        assert (x - x0).norm() > 0.1
        assert (x - y).norm() < 0.03 * (x - x0).norm()


def test_many_matrices_are_worked_on_in_turn(monkeypatch):
    shapes = [(16, 40), (40, 16), (16, 40), (16, 16)]
    whole, parts, given = weights(*shapes), weights(*shapes), gradients(3, *shapes)
    a = stepped(Muon(whole, lr=1e-2), whole, given)
    monkeypatch.setattr(optimizers, "AT_ONCE", 2 * 16 * 40)
    b = stepped(Muon(parts, lr=1e-2), parts, given)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_filters_are_matrices_of_their_flattened_shape(layout):
    shape = (20, 24, 3, 3)
    filters = [nn.Parameter(weights(shape)[0].detach().to(memory_format=layout))]
    flat = [nn.Parameter(weights(shape)[0].detach().flatten(1))]
    given = gradients(3, shape)
    a = stepped(Muon(filters, lr=1e-2), filters, given)[0]
    b = stepped(Muon(flat, lr=1e-2), flat, [[g.flatten(1) for g in step] for step in given])[0]
    assert torch.allclose(a.flatten(1), b, atol=1e-6)
    assert a.is_contiguous(memory_format=layout)


def test_what_is_no_matrix_moves_as_by_adam():
    shapes = [(20,), (15, 400), (1, 64, 32), ()]
    assert not any(map(is_matrix, weights(*shapes)))
    ours, others = weights(*shapes), weights(*shapes)
    given = gradients(4, *shapes)
    mixed = stepped(Muon([*ours, *weights((32, 32))], lr=3e-3, betas=(0.9, 0.99)), ours, given)
    adam = stepped(torch.optim.Adam(others, lr=3e-3, betas=(0.9, 0.99)), others, given)
    assert all(torch.equal(a, b) for a, b in zip(mixed, adam, strict=True))


def test_the_learning_rate_of_a_group_is_that_of_both_kinds():
    shapes = [(32, 32), (20,)]
    once, twice = (weights(*shapes) for _ in range(2))
    start, given = copy.deepcopy(once), gradients(1, *shapes)
    a, optimizer = Muon(once, lr=1e-3), Muon(twice, lr=1.0)
    optimizer.param_groups[0]["lr"] = 2e-3
    for x, y, x0 in zip(stepped(a, once, given), stepped(optimizer, twice, given), start, strict=True):
        assert torch.allclose(y - x0, 2 * (x - x0), atol=1e-6)


def points() -> ed.data.Dataset:
    x = np.random.default_rng(0).normal(0.3, 0.8, (200, 2)).astype(np.float32)
    return ed.data.from_arrays(x, None, None, name="points")


def config(**changes) -> ed.TrainConfig:
    return ed.TrainConfig(network=MLP(width=32, depth=2), optimizer="muon", images=640, batch=64).replace(**changes)


def test_a_run_has_fewer_moments_and_the_plan_says_so():
    data = points()
    trainer = Trainer.start(config(), data)
    trainer.train_step()
    states = [trainer.optimizer.state[p] for p in trainer.parameters]
    matrices = [is_matrix(p) for p in trainer.parameters]
    assert 0 < sum(matrices) < len(matrices)
    assert ["exp_avg_sq" not in state for state in states] == matrices
    found = sum(t.numel() * t.element_size() for state in states for t in state.values())
    planned = plan(config(), data, 0)
    assert (planned.memory.moments, planned.optimizer) == (found, "muon")


def test_weights_in_pieces_and_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"muon needs whole matrices, parallel=sharded cuts them; use adam"):
        config(parallel="sharded")
    with pytest.raises(ValueError, match=r"optimizer.*'moun'.*muon"):
        config(optimizer="moun")


def test_the_published_baseline_has_adam_whatever_the_recipe_has():
    assert {letter: configuration(letter, config(), (1, 16, 16)).optimizer for letter in "ABCDEF"} == {
        "A": "adam", "B": "muon", "C": "muon", "D": "muon", "E": "muon", "F": "muon",
    }  # fmt: skip


def test_a_configuration_with_adam_is_written_as_before():
    assert "optimizer" not in config(optimizer="adam").to_dict()
    assert config().to_dict()["optimizer"] == "muon"
    assert ed.TrainConfig.from_dict(config().to_dict()) == config()
