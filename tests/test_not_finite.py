"""What is not finite changes nothing, is said, and reaches neither an average nor a file (docs/reliability.md)."""

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import elucidiff as ed
from conftest import CHAOS
from elucidiff.training import Trainer, TrainingError, checkpoint
from elucidiff.training.watching.watch import Watcher
from test_resume import BASE, different, points

KINDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Poison(Watcher):
    """Makes a number not finite at one step, in one place, and looks at every file and average after each step."""

    def __init__(self, place: str, value: float, at: int, run) -> None:
        self.place, self.value, self.at, self.run = place, value, at, run
        self.hit = False

    def start(self, trainer, run):
        self.losses = trainer._losses
        trainer._losses = self.seen_losses(trainer)
        self.poison(trainer)

    def seen_losses(self, trainer):
        def losses(drawn):
            if self.place == "image" and trainer.step == self.at:
                drawn.y[3].view(-1)[0] = self.value
            loss, plain = self.losses(drawn)
            if self.place == "loss" and trainer.step == self.at:
                self.hit, loss = True, loss * torch.where(torch.arange(len(loss)) == 5, self.value, 1.0)
            return loss, plain

        return losses

    def poison(self, trainer):
        if trainer.step != self.at:
            return
        parameters = list(trainer.model.parameters())
        if self.place == "weight":
            self.hit = True
            with torch.no_grad():
                parameters[self.at % len(parameters)].view(-1)[0] = self.value
        if self.place in ("gradient of the first", "gradient of the last"):
            parameter = parameters[0 if self.place.endswith("first") else -1]
            handle = parameter.register_hook(lambda g: (handle.remove(), torch.full_like(g, self.value))[1])

    def step(self, trainer, step, seconds):
        if step.skipped:
            self.hit = True
        self.poison(trainer)
        assert all(p.isfinite().all() for _, ema in trainer.averages for p in ema.module.parameters())
        assert all_finite(self.run)


def all_finite(run) -> bool:
    """Whether every weight, average and moment in a file of the run is; what watchers remember may say NaN."""
    files = [*run.glob("checkpoint/*/state.safetensors"), *run.glob("snapshots/*/model.safetensors")]
    tensors = [t for file in files for name, t in load_file(file).items() if not name.startswith("watch.")]
    return all(t.isfinite().all() for t in tensors)


@pytest.mark.parametrize("place", ["image", "loss", "gradient of the first", "gradient of the last", "weight"])
def test_what_is_not_finite_is_skipped_said_and_kept_out(tmp_path, place, promise):
    """R8: NaN and infinities at steps of a run that saves after every one."""
    config, steps = BASE.replace(checkpoint_every=32), 20
    cases = [(kind, k) for k in range(1, 11) for kind in KINDS]
    cases = cases if CHAOS else cases[::10] if place != "weight" else cases[5::10]
    ed.train(config.replace(out=str(tmp_path / "whole")), data=points())
    for kind, k in cases:
        run = tmp_path / f"{kind}{k}"
        poison = Poison(place, KINDS[kind], k, run)
        if place == "weight":
            with pytest.raises(
                TrainingError, match=rf"step {k}: model\..* is not finite; the checkpoints .* are intact"
            ):
                ed.train(config.replace(out=str(run)), data=points(), watchers=[poison])
            assert k == 1 or checkpoint.read(run).facts["step"] == k - 1
            ed.train(config.replace(out=str(run)), data=points(), resume=True)
            assert different(tmp_path / "whole", run) == []
        else:
            ed.train(config.replace(out=str(run)), data=points(), watchers=[poison])
            (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
            said = {"image": "sigma = .*its sample is not finite", "loss": "sigma = "}.get(
                place, "the gradient of .* is not finite"
            )
            assert line["skipped"] == 1 and np.isfinite(line["loss"])
            assert re.search(said, line["reason"]), line["reason"]
            assert checkpoint.read(run).facts["step"] == steps and different(tmp_path / "whole", run) != []
        assert poison.hit and all_finite(run)
    promise("R8", place=place, runs=len(cases), steps=steps, reached_an_average=0, reached_a_file=0)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    modules = [trainer.model, *(ema.module for _, ema in trainer.averages)]
    return [p.detach().clone() for module in modules for p in module.parameters()]


def test_a_skipped_step_changes_no_bit_and_the_next_one_goes_on():
    trainer = Trainer.start(BASE.replace(batch=8), points())
    trainer.train_step()
    before = weights(trainer)
    poisoned = points()
    broken = poisoned.values.copy()
    broken[int(trainer.order.at(8, 8)[2])] = np.nan
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


def test_ten_bad_steps_in_a_row_end_the_run(tmp_path, promise):
    trainer = Trainer.start(BASE, points())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("inf"))
    for _ in range(9):
        assert "is not finite" in trainer.train_step().skipped
    with pytest.raises(TrainingError, match=r"step 9: the loss is .* \(10 steps in a row changed nothing\)"):
        trainer.train_step()
    assert all(p.isfinite().all() for p in trainer.ema.module.parameters())
    promise("R8", in_a_row=10, ended=1)
