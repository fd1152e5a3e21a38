"""Several processes train one model: the same bits however many they are, and after one of them was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import elucidiff as ed
from conftest import CHAOS, sized
from elucidiff.training import Trainer, checkpoint
from elucidiff.training.draws import Order, draw, rows_of_part
from elucidiff.training.ranks import Ranks, TreeSum
from test_resume import BASE, CONFIGURATIONS, different, points

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


SHARES = [
    (name, accumulate, size)
    for name in CONFIGURATIONS
    for accumulate in (2, 4, 8)
    for size in (2, 4)
    if size <= accumulate
]
FEW = [("accumulated, learned", 4, 2), ("augmented, labels", 4, 4), ("edm", 2, 2)]


def test_processes_give_the_bits_of_one(tmp_path, driver, promise):
    """R12: the parts of a batch shared by 1, 2 and 4 processes, for each number of parts."""
    shares = SHARES if CHAOS else FEW
    for name, accumulate, size in shares:
        settings = {"every": 64, "settings": {"accumulate": accumulate}, "stderr": str(tmp_path / "err")}
        one, many = tmp_path / f"{name} {accumulate}", tmp_path / f"{name} {accumulate} by {size}"
        if not one.exists():
            assert driver.run(one, name, **settings) == 0
        assert [driver.wait(p) for p in driver.ranks(many, name, size, **settings)] == [0] * size, (
            tmp_path / "err"
        ).read_text()
        assert different(one, many) == []
    promise("R12", shares=len(shares), equal=len(shares), processes="1, 2, 4")


def test_the_other_rank_ends_when_one_is_killed(tmp_path, driver, promise):
    """R11, without anyone who watches over the processes: the survivor notices by itself; started again they go on."""
    settings, longest = {"every": 64, "settings": {"accumulate": 2}}, 0.0
    assert driver.run(tmp_path / "one", **settings) == 0
    for i in range(kills := sized(10)):
        run = tmp_path / str(i)
        processes = driver.ranks(run, "edm", 2, pause=0.05, stderr=str(tmp_path / "err"), **settings)
        while not checkpoint.stored(run):
            time.sleep(0.005)
        os.kill(processes[1 - i % 2], signal.SIGKILL)
        began = time.monotonic()
        assert driver.wait(processes[i % 2], timeout=60) not in (None, 0)
        longest = max(longest, time.monotonic() - began)
        assert driver.wait(processes[1 - i % 2]) == -signal.SIGKILL
        assert [driver.wait(p) for p in driver.ranks(run, "edm", 2, **settings)] == [0, 0]
        assert different(tmp_path / "one", run) == []
    promise("R11", kills=kills, longest_seconds=round(longest, 2), equal_when_started_again=kills)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_is_restarted_and_the_bits_are_the_same(tmp_path, promise):
    """R11 with torchrun, which starts both again."""
    alone(tmp_path / "one", "edm")
    steps = (9, 2, 14) if CHAOS else (9,)
    for step in steps:
        marker = tmp_path / f"killed{step}"
        torchrun(tmp_path / f"many{step}", "edm", 2, restarts=1, KILL_AT=str(step), KILL_MARKER=str(marker))
        assert json.loads(marker.read_text()) == {"rank": 1, "step": step}
        assert different(tmp_path / "one", tmp_path / f"many{step}") == []
    promise("R11", by="torchrun", kills=len(steps), equal=len(steps))


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
