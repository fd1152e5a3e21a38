"""What two processes run in tests/test_sharded.py: one step after another, in pieces and whole, side by side."""

import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

import elucidiff as ed
from elucidiff.networks import ADM, DDPMPP, EDM2, MLP, NCSNPP, DiT, KDiffusionV1
from elucidiff.training import Trainer, checkpoint
from elucidiff.training.ranks import Ranks, together
from elucidiff.training.rounds import save_state
from test_resume import BASE, digits, points

UNET = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
COMMON = BASE.replace(
    batch=8, accumulate=4, clip=0.5, label_dropout=0.3, lr_ramp=0, ema=(ed.training.Power(),), parallel="sharded",
    adam_eps=1e-3,  # the first steps of Adam are signs otherwise, which rounding turns where a gradient is 0
)  # fmt: skip
NETWORKS = {
    "mlp": (COMMON.replace(network=MLP(width=14, depth=2, dropout=0.1)), points),
    "ddpmpp": (COMMON.replace(network=DDPMPP(**UNET), augment=ed.augment.Augment(p=0.5), channels_last=True), digits),
    "ncsnpp": (COMMON.replace(network=NCSNPP(**UNET, dropout=0.1)), digits),
    "adm": (COMMON.replace(network=ADM(**UNET)), digits),
    "dit": (COMMON.replace(network=DiT(width=16, depth=2, heads=2, checkpoint_activations=True)), digits),
    "edm2": (COMMON.replace(network=EDM2(**UNET), design=ed.EDM.replace(weighting=ed.objective.Learned())), digits),
    "edm2 with its own uncertainty": (
        COMMON.replace(
            network=EDM2(**UNET, logvar_channels=8, checkpoint_activations=True),
            design=ed.EDM.replace(weighting=ed.objective.Learned()),
        ),
        digits,
    ),
    "k_diffusion": (
        COMMON.replace(network=KDiffusionV1(widths=(32, 32), depths=(1, 1), attends=(False, True), mapping=32)), digits,
    ),
}  # fmt: skip


def near(a: torch.Tensor, b: torch.Tensor, rel: float = 2e-5) -> bool:
    return bool((a - b).abs().max() <= rel * b.abs().max().clamp(min=1e-2))


def wholes(trainer: Trainer) -> list[torch.Tensor]:
    weights = trainer.weights
    return [weights.together(i, p.detach()) for i, p in enumerate(weights.parameters)]


def check_network(name: str, ranks: Ranks) -> None:
    config, data = NETWORKS[name]
    plain = Trainer.start(config.replace(parallel="replicated"), data())
    pieces = Trainer.start(config, data(), ranks)
    for _ in range(3):
        a, b = pieces.train_step(), plain.train_step()
        assert a.skipped is b.skipped is None and torch.equal(a.sigma, b.sigma), name
        assert math.isclose(a.loss, b.loss, rel_tol=2e-5), (name, a.loss, b.loss)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=5e-5), (name, a.grad_norm, b.grad_norm)
    for p, q, label in zip(wholes(pieces), plain.parameters, plain.weights.names, strict=True):
        assert near(p, q.detach()), (name, label, (p - q).abs().max())
    for (_, mine), (_, other) in zip(pieces.averages, plain.averages, strict=True):
        with mine.together():
            if ranks.first:
                for p, q in zip(mine.whole.parameters(), other.module.parameters(), strict=True):
                    assert near(p, q), name
                for p, q in zip(mine.whole.buffers(), other.module.buffers(), strict=True):
                    assert torch.equal(p, q), name
    here, total = held(pieces), held(plain)
    assert here < 0.65 * total, (name, here, total)
    print(f"rank {ranks.rank}: {name}: {here:,} of {total:,} bytes ({here / total:.1%})")


def held(trainer: Trainer) -> int:
    """Bytes of weights, gradients, moments and averages, in the memory that they take."""
    averages = [
        t for _, ema in trainer.averages for t in (getattr(ema, "averages", None) or list(ema.module.parameters()))
    ]
    moments = [t for s in trainer.optimizer.state.values() for key, t in s.items() if key != "step"]
    gradients = [p.grad for p in trainer.parameters if p.grad is not None]
    blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
              for t in (*trainer.parameters, *gradients, *moments, *averages)}  # fmt: skip
    return sum(blocks.values())


def spoiled(trainer: Trainer, ranks: Ranks, value: float) -> str:
    """Have the second rank find a number in its piece of a gradient from now on; the parameter's name."""
    collect = trainer.weights.collect

    def collected(parts) -> None:
        collect(parts)
        if ranks.rank == 1:
            trainer.weights.parameters[2].grad.view(-1)[0] = value

    trainer.weights.collect = collected
    return trainer.weights.names[2]


def check_what_is_not_finite(ranks: Ranks) -> None:
    config, data = NETWORKS["mlp"]
    trainer = Trainer.start(config, data(), ranks)
    name, before = spoiled(trainer, ranks, math.nan), wholes(trainer)
    assert trainer.train_step().skipped == f"the gradient of {name} is not finite"
    assert all(torch.equal(a, b) for a, b in zip(before, wholes(trainer), strict=True))

    trainer = Trainer.start(config.replace(grad_nonfinite="clean"), data(), ranks)
    spoiled(trainer, ranks, math.nan)
    assert trainer.train_step().skipped is None
    assert all(p.isfinite().all() for p in wholes(trainer))

    trainer = Trainer.start(config, data(), ranks)
    if ranks.rank == 1:
        trainer.parameters[2].data.view(-1)[0] = math.inf
    reason = trainer.train_step().skipped
    assert reason.endswith(f"the weight {trainer.weights.names[2]} is not finite"), reason

    try:
        _ = trainer.ema.module
        raise SystemExit("an average in pieces was given out as a whole")
    except RuntimeError as error:
        assert "it is whole at snapshots on the first one" in str(error)


def check_float16(ranks: Ranks) -> None:
    """One rank overflows: none steps, and the scales stay alike."""
    config, data = NETWORKS["mlp"]
    trainer = Trainer.start(config.replace(precision="float16"), data(), ranks)
    collect = trainer.weights.collect
    trainer.train_step()
    before, scale = wholes(trainer), trainer.scaler.get_scale()
    spoiled(trainer, ranks, math.inf)
    assert not math.isfinite(trainer.train_step().grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, wholes(trainer), strict=True))
    assert trainer.scaler.get_scale() == scale / 2
    trainer.weights.collect = collect
    assert trainer.train_step().grad_norm > 0
    assert not torch.equal(before[2], wholes(trainer)[2])


def check_writing(ranks: Ranks, run: Path) -> None:
    """What one rank cannot write is an error of all, and leaves nothing."""
    trainer = Trainer.start(NETWORKS["mlp"][0], points(), ranks)
    trainer.train_step()
    save_state(run, trainer, trainer.state())
    ranks.highest(0)  # the first has given the folder its name
    assert [path.name for path in checkpoint.stored(run)] == ["000000000008"]
    write_data = dcp.HuggingFaceStorageWriter.write_data

    def full(*arguments):
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        return write_data(*arguments)

    trainer.train_step()
    dcp.HuggingFaceStorageWriter.write_data = full
    refused(ranks, run, trainer, ["rank 1: [Errno 28] No space left on device"])
    dcp.HuggingFaceStorageWriter.write_data = write_data
    elsewhere = Ranks.text_of_first
    if ranks.rank == 1:
        Ranks.text_of_first = lambda *arguments: elsewhere(*arguments) + "-elsewhere"
    refused(ranks, run, trainer, ["not all processes see this folder"])
    Ranks.text_of_first = elsewhere


def refused(ranks: Ranks, run: Path, trainer: Trainer, words: list[str]) -> None:
    try:
        save_state(run, trainer, trainer.state())
    except OSError as error:
        words += ["a checkpoint of "] if ranks.first else []
        assert all(word in str(error) for word in words), str(error)
    else:
        raise SystemExit("it was written")
    ranks.highest(0)  # the first has removed its folder
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["000000000008"]


def main() -> None:
    with together("cpu") as (ranks, _):
        for name in NETWORKS:
            check_network(name, ranks)
        check_what_is_not_finite(ranks)
        check_float16(ranks)
        check_writing(ranks, Path(sys.argv[1]))
    print("all good", flush=True)


torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
main()
left = [t for t in Path("/proc/self/task").glob("*/comm") if "gloo" in t.read_text()]
if left:
    sys.exit(f"{len(left)} threads of the process group outlive it")
