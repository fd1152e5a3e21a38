"""Weights in pieces: the same training as whole ones, checkpoints that any number of processes reads."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elucidiff as ed
from elucidiff.networks import EDM2, MLP
from elucidiff.training import NoGoodCheckpoint, Trainer, TrainingStopped, checkpoint
from elucidiff.training.sharded import units
from elucidiff.training.watching.watch import Watcher
from test_resume import BASE, digits, points

HERE = Path(__file__).parent
# Six parts of a batch for 1, 2 and 3 processes. Three have 5, 5 and 4 of 14 rows, and one, one and none of the last two.
SHARDED = BASE.replace(
    network=MLP(width=14, depth=2, dropout=0.1), batch=30, accumulate=6, images=600, checkpoint_every=60,
    parallel="sharded", label_dropout=0.2, clip=1.0, stratified=True, heldout=0.2, grid_every=150,
)  # fmt: skip
CONFIGURATIONS = {
    "points": (SHARDED, points),
    "digits": (
        SHARDED.replace(
            network=EDM2(channels=8, multipliers=(1, 2), blocks=1, attention=(), logvar_channels=4),
            design=ed.EDM.replace(weighting=ed.objective.Learned()), images=240, heldout=0.0, grid_every=0,
            ema=(ed.training.Power(),),
        ),
        digits,
    ),
}  # fmt: skip


class Stop(Watcher):
    """Ends a run as a time limit would, after a step; None: never."""

    def __init__(self, step: int | None) -> None:
        self.last = step

    def step(self, trainer, step, seconds) -> None:
        if trainer.step == self.last:
            signal.raise_signal(signal.SIGTERM)


def kill_at(step: int, marker: Path) -> None:
    """Have the second rank kill itself once at a step."""
    train_step = Trainer.train_step

    def killed(self: Trainer):
        if os.environ["RANK"] == "1" and self.step == step and not marker.exists():
            marker.write_text(str(self.step))
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self)

    Trainer.train_step = killed


def start(script: str, argument: str, processes: int) -> str:
    """Run a script as so many ranks, on a port that is free, as torchrun would; what the first one prints."""
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), argument], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        ) for rank in range(processes)
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=500)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * processes, "\n".join(text[-3000:] for text in told)
    return told[0]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(*runs: tuple[Path, str, dict], processes: int = 2) -> None:
    """Train runs of the configurations, with changes, or go on with them."""
    start("train_sharded.py", json.dumps([(str(run), name, changes) for run, name, changes in runs]), processes)


def alone(run: Path, name: str, **changes: object) -> Path:
    config, data = CONFIGURATIONS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ed.train(config.replace(out=str(run), **changes), data=data(), resume=True)
    finally:
        torch.set_num_threads(threads)
    return run


def state(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.read(run).tensors)


def assert_equal(a: Path, b: Path) -> None:
    """The same bits: the state, the snapshots, the logs without their times."""
    one, other = state(a), state(b)
    assert one.keys() == other.keys() and [n for n in one if not torch.equal(one[n], other[n])] == []
    for folder in sorted((a / "snapshots").iterdir()):
        for x, y in zip(ed.load(folder).parameters(), ed.load(b / "snapshots" / folder.name).parameters(), strict=True):
            assert torch.equal(x, y)
    for file in ("metrics.jsonl", "scores.jsonl"):
        if (a / file).exists():
            lines = [[json.loads(line) for line in (run / file).read_text().splitlines()] for run in (a, b)]
            kept = [[{k: v for k, v in line.items() if "second" not in k} for line in run] for run in lines]
            assert kept[0] == kept[1]


def assert_close(a: Path, b: Path, rel: float = 1e-5) -> None:
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    for name in one:
        if not name.startswith("watch."):
            error = (one[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-3)
            assert error < rel, (name, float(error))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of two processes that never stopped, and others that did and have gone on.

    "stopped": after 11 steps of 20. "again": that one, gone on. "moved": from 7 steps of one process, unsharded.
    """
    home = tmp_path_factory.mktemp("sharded")
    found = {name: home / name for name in ("whole", "stopped", "again", "moved")}
    config, data = CONFIGURATIONS["points"]
    with pytest.raises(TrainingStopped):
        ed.train(config.replace(out=str(found["moved"]), parallel="replicated"), data=data(), watchers=[Stop(7)])
    train((found["whole"], "points", {}), (found["stopped"], "points", {"stop_at": 11}), (found["moved"], "points", {}))
    train((shutil.copytree(found["stopped"], found["again"]), "points", {}))
    return found


@pytest.mark.timeout(600)
def test_two_processes_train_as_one_does_and_go_on_to_the_same_bits(runs, tmp_path, promise):
    assert checkpoint.read(runs["stopped"]).facts["images"] == 330
    names = sorted(p.name for p in checkpoint.stored(runs["stopped"])[-1].iterdir())
    assert names == [
        "manifest.json",
        *(f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)),
        "state.json",
    ]
    assert_equal(runs["whole"], runs["again"])
    assert_close(alone(tmp_path / "alone", "points"), runs["whole"])
    pictures = {p.name for p in (runs["whole"] / "samples" / "training").iterdir()}
    assert pictures >= {f"{n:09d}.png" for n in (150, 300, 450, 600)}
    promise("S2", steps=20, stopped_after=11, equal_on_two=1)


def test_one_process_goes_on_where_two_stopped(runs, tmp_path, promise):
    one = alone(shutil.copytree(runs["stopped"], tmp_path / "one"), "points")
    assert_close(one, runs["whole"])
    other = alone(shutil.copytree(runs["stopped"], tmp_path / "other"), "points", parallel="replicated")
    assert_equal(one, other)
    promise("S2", steps=20, stopped_after=11, on_one_within=1e-5)


def test_two_processes_go_on_where_one_stopped(runs):
    assert_close(runs["moved"], runs["whole"])
    assert ed.TrainConfig.load(runs["moved"] / "config.json").parallel == "sharded"


def test_the_checkpoint_before_is_used_where_a_piece_is_damaged(runs, tmp_path):
    run = shutil.copytree(runs["stopped"], tmp_path / "run")
    newest, before = checkpoint.stored(run)[::-1]
    piece = newest / "shard-00002-model-00001-of-00001.safetensors"
    raw = bytearray(piece.read_bytes())
    raw[len(raw) // 2] ^= 4
    piece.write_bytes(raw)
    said = []
    assert checkpoint.read(run, said.append).facts["images"] == int(before.name) == 300
    assert newest.name in said[0] and "shard-00002" in said[0]
    assert checkpoint.read(run, on_disk=True).facts["images"] == 300
    (before / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(NoGoodCheckpoint, match="all 2 checkpoints are damaged"):
        checkpoint.read(run)


@pytest.mark.timeout(600)
def test_what_a_step_does_is_the_same_in_pieces(tmp_path):
    """Every network, clipping, what is not finite, float16, averages, a full disk: `sharded_checks.py`."""
    assert "all good" in start("sharded_checks.py", str(tmp_path), 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_processes_and_a_killed_one(runs, tmp_path):
    """Three go on where two stopped; torchrun starts two again of which one was killed."""
    train((shutil.copytree(runs["stopped"], tmp_path / "three"), "points", {}), processes=3)
    assert_close(tmp_path / "three", runs["whole"])
    marker, run = tmp_path / "marker", tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port()}"]
    command += ["--max-restarts=1", str(HERE / "train_sharded.py"), json.dumps([(str(run), "points", {})])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILL_AT": "9", "KILL_MARKER": str(marker)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()[-5000:]
    assert marker.read_text() == "9"
    assert_equal(runs["whole"], run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_magnitude_preserving_weights_learned_uncertainty_and_two_averages(tmp_path):
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    train((two, "digits", {}), (again, "digits", {"stop_at": 3}))
    train((again, "digits", {}))
    assert_equal(two, again)
    assert_close(alone(one, "digits"), two, rel=1e-4)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="parallel: .*shared.*expected.*sharded|parallel.*'shared'"):
        BASE.replace(parallel="shared")
    with pytest.raises(ValueError, match="compile: does not work with parallel=sharded; leave one of the two out"):
        BASE.replace(parallel="sharded", compile=True)
    with pytest.raises(ValueError, match="oom: halve does not work with parallel=sharded"):
        BASE.replace(parallel="sharded", oom="halve")
    assert "parallel" not in BASE.to_dict()
    assert BASE.differences(BASE.replace(parallel="sharded")) == {}


def test_units_hold_each_parameter_once_at_most_and_most_of_them():
    for network, shape in ((MLP(width=8), (2,)), (EDM2(channels=8, multipliers=(1, 2), blocks=1), (1, 8, 8))):
        module = network.build(shape, 3)
        inside = [p for unit in units(module) for p in unit.parameters()]
        assert len({id(p) for p in inside}) == len(inside)
        assert sum(p.numel() for p in inside) > 0.5 * sum(p.numel() for p in module.parameters())
