"""Writes tests/releases/VERSION: a tiny model and a tiny run as this version writes them, and what becomes of them.

    python scripts/store_release.py

To be run once for each release; tests/test_releases.py loads all that are stored, samples and goes on with training,
and compares with the values kept here. Values decide, to 1e-10 of the largest for samples (the network in float64) and
to 1e-4 for weights after two steps of Adam in float32: another processor or another PyTorch may add in another order.
Where both are those of the record the SHA-256 must agree too.
"""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import elucidiff as ed
from elucidiff.training import checkpoint

RELEASES = Path(__file__).parents[1] / "tests" / "releases"
STOPPED_AFTER, STEPS, BATCH = 8, 10, 32
SAMPLERS = {
    "heun": ed.EDM.sampler,
    "stochastic": ed.Sampler(stochasticity=ed.solvers.Churn(S_churn=10.0), steps=6),
    "vp, dpmpp_2m": ed.VP.sampler.replace(solver=ed.solvers.DPMpp2M(), steps=8),
}


def machine() -> dict[str, str]:
    """What the last bit of a sum may depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()  # libraries choose their kernels by its maker too
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, "vectors": capability, "torch": torch.__version__.split("+")[0]}


def sampled(model: Path) -> dict[str, torch.Tensor]:
    """Four samples of a model directory by each sampler, all in float64."""
    denoiser = ed.load(model).double()
    found = {
        name: ed.sample(denoiser, sampler, seeds=range(4), labels=[0, 3, 5, 9]).x for name, sampler in SAMPLERS.items()
    }
    return {f"samples of {name}": x.contiguous() for name, x in found.items()}


def resumed(run: Path) -> dict[str, torch.Tensor]:
    """The state of a stored run after the steps that are left; the run goes on where it lies."""
    with np.load(run / "points.npz") as stored:
        data = ed.data.from_arrays(stored["x"], stored["labels"], None, name="points")
    config = ed.TrainConfig.load(run / "config.json").replace(out=str(run))
    ed.train(config, data=data, resume=True)
    return {name: t.clone() for name, t in checkpoint.read(run).tensors.items() if not name.startswith("watch.")}


def sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def a_model(folder: Path) -> None:
    """A class-conditional network after four steps on the digits; 11 thousand parameters."""
    network = ed.networks.DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=())
    with tempfile.TemporaryDirectory() as place:
        config = ed.TrainConfig(
            out=f"{place}/run", images=128, batch=32, network=network, snapshots=1, checkpoint_every=0
        )
        run = ed.train(config, data=ed.data.load("digits"))
        shutil.copytree(run / "snapshots" / "000000", folder)


def a_run(folder: Path) -> None:
    """A run of ten steps on points in the plane, stopped after eight."""
    x = np.random.default_rng(0).normal(0.3, 0.8, (64, 2)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int64)
    network = ed.networks.MLP(width=16, depth=1, dropout=0.1)
    config = ed.TrainConfig(
        out=str(folder), network=network, images=STOPPED_AFTER * BATCH, batch=BATCH, lr_ramp=100, snapshots=1,
        design=ed.EDM.replace(weighting=ed.objective.Learned(channels=8)), accumulate=2, label_dropout=0.1, clip=1.0,
        ema=(ed.training.HalfLife(200.0), ed.training.Power()), grid_every=0,
    )  # fmt: skip
    ed.train(config, data=ed.data.from_arrays(x, labels, None, name="points"))
    config.replace(images=STEPS * BATCH, out="run").save(folder / "config.json")
    np.savez_compressed(folder / "points.npz", x=x, labels=labels)
    for path in folder.iterdir():
        if path.name not in ("config.json", "points.npz", "checkpoint", "metrics.jsonl", "loss_by_sigma.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def store(folder: Path) -> None:
    """Write the folder of this version. Raises FileExistsError where it is there."""
    folder.mkdir(parents=True)
    a_model(folder / "model")
    a_run(folder / "run")
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder / "run", Path(place) / "run")
        found = {"samples": sampled(folder / "model"), "state": resumed(Path(place) / "run")}
    for name, tensors in found.items():
        save_file(tensors, folder / f"{name}.safetensors")
    facts = {
        "version": ed.__version__,
        "stored_on": machine(),
        "sha256": {name: sha256(t) for name, t in found.items()},
    }
    (folder / "expected.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        store(RELEASES / ed.__version__)
    except FileExistsError as error:
        sys.exit(f"{error.filename} is stored already; a release is stored once")
    print(RELEASES / ed.__version__)
