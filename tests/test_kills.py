"""Trainings that are killed, crashed at every call that writes, signalled, or run out of disk (docs/reliability.md)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import elucidiff as ed
from conftest import CHAOS, sized
from elucidiff.training import TrainingStopped, checkpoint
from process_driver import is_good
from test_resume import BASE, StopAfter, different, hashed, points, stopped


def hidden(run: Path) -> list[Path]:
    """Temporary files and folders that are left in a run."""
    return [path for path in run.rglob(".*") if path.exists()]


def test_killed_at_any_moment_it_ends_in_the_same_bits(tmp_path, driver, promise):
    """R2: kill -9 at random moments of a run that saves every second step. A run that ends is compared; the next begins."""
    rng, options = np.random.default_rng(2), {"images": 6400, "every": 64}
    began = time.monotonic()
    assert driver.run(tmp_path / "whole", **options) == 0
    life = min(time.monotonic() - began, 4.0) / 4  # as busy as the machine is now
    kills = saving = runs = 0
    while kills < sized(100):
        run, status = tmp_path / f"run{runs}", None
        while status != 0 and kills < sized(100):
            process = driver.start(run, **options)
            time.sleep(float(rng.uniform(0.0, life)))
            os.kill(process, signal.SIGKILL)
            status = driver.wait(process)
            assert status in (0, -signal.SIGKILL)
            if status:
                kills += 1
                saving += bool(hidden(run / "checkpoint"))
        assert driver.run(run, **options) == 0
        assert different(tmp_path / "whole", run) == [] and hidden(run) == []
        runs += 1
    promise("R2", kills=kills, within_a_save=saving, runs_compared=runs, equal=runs)


def test_a_crash_at_any_call_that_writes_loses_one_interval_at_most(tmp_path, driver, promise):
    """R3 and R5: the process dies before the n-th call that writes; every n at full size, every tenth otherwise."""
    options, report = {"images": 320, "every": 64}, tmp_path / "report.json"
    assert driver.run(tmp_path / "whole", report=str(report), **options) == 0
    calls = json.loads(report.read_text())["calls"]
    assert calls > 100
    resumed_to = hashed(tmp_path / "whole")
    crashes = range(1 if CHAOS else 1 + calls % 10, calls + 1, 1 if CHAOS else 10)
    for n in crashes:
        run = tmp_path / f"crash{n}"
        assert driver.run(run, crash=n, report=str(report), **options) == -signal.SIGKILL
        died = json.loads(report.read_text())
        assert died["calls"] == n
        good = checkpoint.read(run)  # raises where all are damaged
        assert died["step"] * 32 - (good.facts["images"] if good else 0) <= 64, died
        assert driver.run(run, **options) == 0
        assert hashed(run) == resumed_to, different(tmp_path / "whole", run)
        assert [int(p.name) for p in checkpoint.stored(run)] == [256, 320] and hidden(run) == []
        shutil.rmtree(run)
    promise(
        "R3", calls_that_write=calls, crashes=len(crashes), at_most_one_interval_lost=len(crashes), equal=len(crashes)
    )
    promise("R5", crashes=len(crashes), exact_after_resuming=len(crashes))


def test_at_every_instant_a_good_checkpoint_is_there(tmp_path, driver, promise):
    """R5: seen from within, before every call that writes, and by an observer beside it."""
    images, report = sized(8_000), tmp_path / "report.json"
    assert driver.run(tmp_path / "within", images=images, every=32, watched=True, report=str(report)) == 0
    run, looks, had, status = tmp_path / "beside", 0, False, None
    process = driver.start(run, images=images, every=32, pause=0.002)
    while status is None:
        good = any_good(run)
        assert good or not had
        looks, had, status = looks + had, good, driver.wait(process, timeout=0.001)
    assert status == 0 and looks > images // 100
    promise("R5", instants_within=json.loads(report.read_text())["calls"], looks_from_beside=looks, without=0)


def any_good(run: Path) -> bool:
    """Whether a checkpoint is good; looked for again when the folder changed while it was read."""
    while True:
        before = [path.name for path in checkpoint.stored(run)]
        if any(is_good(run / checkpoint.FOLDER / name) for name in reversed(before)):
            return True
        if before == [path.name for path in checkpoint.stored(run)]:
            return False


def test_stopped_by_signals_it_saves_and_exits_with_85(tmp_path, driver, promise):
    """R6: SIGTERM and SIGINT, and a time limit; within 10 s and one step. A second signal ends it at once."""
    np.savez(tmp_path / "points.npz", x=points().values, labels=points().labels)
    train = [
        "train",
        tmp_path / "points.npz",
        "--set",
        "network.width=16",
        "--images",
        "6400000",
        "--set",
        "batch=64",
        "--resume",
    ]
    longest, rng, stops, run = 0.0, np.random.default_rng(6), sized(30), tmp_path / "run"
    for i in range(stops):
        number, log = signal.SIGINT if i % 2 else signal.SIGTERM, run / "metrics.jsonl"
        before = log.stat().st_ino if i else None
        process = driver.command(*train, "--out", run, stderr=tmp_path / "err")
        while not log.exists() or log.stat().st_ino == before:
            time.sleep(0.002)
        size = log.stat().st_size
        while log.stat().st_size == size:  # until it trains; before that there is nothing to save
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0.0, 0.3)))
        began = time.monotonic()
        os.kill(process, number)
        status = driver.wait(process)
        longest = max(longest, time.monotonic() - began)
        assert status == 85, (tmp_path / "err").read_text()
        assert f"stopped by {number.name} after" in (tmp_path / "err").read_text()
        assert any_good(run) and hidden(run) == []
    seen = checkpoint.read(run).facts["images"]
    assert driver.wait(driver.command(*train, "--out", run, "--time-limit", "0.3", stderr=tmp_path / "err")) == 85
    assert "stopped by the time limit" in (tmp_path / "err").read_text()
    assert checkpoint.read(run).facts["images"] > seen
    assert driver.wait(driver.command(*train, "--out", run, "--time-limit", "0")) == 85  # one step more
    assert longest < 10
    promise("R6", signals=stops, time_limits=2, saved=stops + 2, longest_seconds=round(longest, 2))


def test_a_second_signal_ends_it_at_once(tmp_path, driver, promise):
    process = driver.start(tmp_path / "run", pause=20.0, every=0)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process, signal.SIGTERM)
    time.sleep(0.2)
    began = time.monotonic()
    os.kill(process, signal.SIGTERM)
    assert driver.wait(process) == -signal.SIGTERM
    assert time.monotonic() - began < 5  # of a step of 20 seconds
    promise("R6", second_signals=1, ended_within_seconds=round(time.monotonic() - began, 2))


def test_the_command_itself_stops_with_85(tmp_path):
    """As people start it, in a process that imports everything."""
    log, few = tmp_path / "run" / "metrics.jsonl", ["--images", "9000000", "--set", "network.channels=8"]
    command = [sys.executable, "-m", "elucidiff", "train", "digits", "--out", str(tmp_path / "run"), *few]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 85, said
    assert "stopped by SIGINT" in said and checkpoint.read(tmp_path / "run").facts["images"] > 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where the system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here; injected errors are what remains")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_saved(tmp_path, small_disk, driver, promise):
    """R7: a tmpfs with so little room left that something of the next steps does not fit; then room again."""
    ed.train(BASE.replace(out=str(tmp_path / "whole"), checkpoint_every=96), data=points())
    rng, full, times = np.random.default_rng(7), 0, sized(100)
    for i in range(times):
        run = small_disk / str(i)
        stopped(run)
        left, ballast = int(rng.integers(0, 25)) * 4096, small_disk / "ballast"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - left))
        status = driver.wait(driver.start(run, every=96, stderr=str(tmp_path / "err")))
        said = (tmp_path / "err").read_text()
        if status:
            full += 1
            assert status == 1 and "No space left on device" in said and str(run) in said and "bytes" in said, said
            assert any_good(run) and checkpoint.read(run).facts["images"] >= 288 and hidden(run) == []
        ballast.unlink()
        assert driver.run(run, every=96) == 0
        assert different(tmp_path / "whole", run) == [] and hidden(run) == []
        shutil.rmtree(run)
    assert full >= times // 2
    promise("R7", on="a tmpfs", times=times, full=full, earlier_ones_load=full, equal_with_room_again=times)


def test_a_write_that_fails_leaves_the_checkpoints_before(tmp_path, monkeypatch, promise):
    """R7 where nothing can be mounted: an error for want of space at each call that writes."""
    config = BASE.replace(out=str(tmp_path / "run"), checkpoint_every=96)
    with pytest.raises(TrainingStopped):
        ed.train(config, data=points(), watchers=[StopAfter(6)])
    before = {p.name for p in checkpoint.stored(tmp_path / "run")}
    calls = (
        "elucidiff.training.checkpoint.save_file",
        "elucidiff.files.os.fsync",
        "elucidiff.files.os.rename",
        "elucidiff.files.os.fdopen",
    )
    for name in calls:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(name, full)
            with pytest.raises(OSError, match=r"000999: a checkpoint of [\d,]+ bytes: No space left on device"):
                state = checkpoint.read(tmp_path / "run")
                checkpoint.write(tmp_path / "run", 999, checkpoint.State(state.tensors, {}))
        assert {p.name for p in checkpoint.stored(tmp_path / "run")} == before
        assert not list((tmp_path / "run" / "checkpoint").glob(".*"))
    ed.train(config, data=points(), resume=True)
    promise("R7", on="injected errors", calls=len(calls), earlier_ones_load=len(calls))


def test_of_trainers_in_one_folder_one_trains(tmp_path, driver, promise):
    """R16: four begin at once, one of them trains; the lock of one that was killed does not count."""
    rounds, refusals, killed = sized(50), 0, 0
    for i in range(rounds):
        run, texts = tmp_path / str(i), [tmp_path / f"{i}-{j}.txt" for j in range(4)]
        processes = [driver.start(run, images=3200, pause=0.02, every=0, stderr=str(text)) for text in texts]
        while sum("another process trains here" in text.read_text() for text in texts if text.exists()) < 3:
            time.sleep(0.01)
        refused = [j for j, text in enumerate(texts) if text.read_text()]
        (winner,) = {0, 1, 2, 3} - set(refused)
        for j in refused:
            assert driver.wait(processes[j]) == 1
            assert f"another process trains here (process {processes[winner]} on " in texts[j].read_text()
        os.kill(processes[winner], signal.SIGKILL)
        assert driver.wait(processes[winner]) == -signal.SIGKILL and (run / "lock").read_text()
        assert driver.run(run, images=320) == 0
        refusals, killed = refusals + 3, killed + 1
    promise("R16", rounds=rounds, processes=4, refused=refusals, stale_locks_recognised=killed)
