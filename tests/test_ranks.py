"""Several processes train one model: the same bits however many they are, and after one of them was killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elucidiff as ed
from elucidiff.training import Trainer
from elucidiff.training.draws import Order, draw, rows_of_part
from elucidiff.training.ranks import Ranks, TreeSum
from test_resume import BASE, CONFIGURATIONS, content, points

SCRIPT = Path(__file__).with_name("train_in_ranks.py")


def torchrun(run: Path, name: str, processes: int, *, restarts: int = 0, **environment: str) -> None:
    """Train a configuration of test_resume by so many processes, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={port}", f"--max-restarts={restarts}", str(SCRIPT), str(run), name]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def alone(run: Path, name: str) -> None:
    config, data = CONFIGURATIONS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ed.train(config.replace(out=str(run), accumulate=4, checkpoint_every=64), data=data())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name, processes", [("accumulated, learned", 2), ("augmented, labels", 4)])
def test_processes_give_the_bits_of_one(tmp_path, name, processes):
    alone(tmp_path / "one", name)
    torchrun(tmp_path / "many", name, processes)
    a, b = content(tmp_path / "one"), content(tmp_path / "many")
    assert a.keys() == b.keys() and [k for k in a if a[k] != b[k]] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_rank_is_restarted_and_the_bits_are_the_same(tmp_path):
    alone(tmp_path / "one", "edm")
    marker = tmp_path / "killed"
    torchrun(tmp_path / "many", "edm", 2, restarts=1, KILL_AT="9", KILL_MARKER=str(marker))
    assert json.loads(marker.read_text()) == {"rank": 1, "step": 9}
    a, b = content(tmp_path / "one"), content(tmp_path / "many")
    assert [k for k in a if a[k] != b[k]] == []


def test_a_tree_adds_pairs_first_and_shares_of_it_are_subtrees():
    terms = [[torch.tensor([float(10 ** (k % 5)) / 3 + k], dtype=torch.float32)] for k in range(8)]
    t = [term[0] for term in terms]
    expected = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]))
    whole = TreeSum()
    for term in terms:
        whole.add(term)
    assert torch.equal(whole.total()[0], expected)
    halves = TreeSum()
    for share in (Ranks(0, 2).share(8), Ranks(1, 2).share(8)):
        half = TreeSum()
        for k in share:
            half.add(terms[k])
        halves.add(half.total())
    assert torch.equal(halves.total()[0], expected)
    three = TreeSum()
    for term in terms[:3]:
        three.add(term)
    assert torch.equal(three.total()[0], (t[0] + t[1]) + t[2])


def test_parts_of_a_batch_are_rows_of_the_whole():
    order, noise = Order(200, 3), ed.objective.LogNormal()
    whole = draw(points(), order, noise, 7, 30, label_dropout=0.3, stratified=True)
    bounds = [rows_of_part(i, 4, 30) for i in range(4)]
    assert [len(rows) for rows in bounds] == [7, 8, 7, 8]
    for rows in bounds:
        part = draw(points(), order, noise, 7, 30, rows=rows, label_dropout=0.3, stratified=True)
        for one, all_of_them in zip(part[:4], whole[:4], strict=True):
            assert torch.equal(one, all_of_them[rows.start : rows.stop])


def test_processes_that_cannot_share_the_batch_are_told():
    with pytest.raises(ValueError, match="accumulate: got 3 parts of a batch for 2 processes; expected a multiple"):
        Trainer.start(BASE.replace(accumulate=3), points(), Ranks(0, 2))
