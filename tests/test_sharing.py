"""Sampling by several processes: the files of one process, byte for byte, however they are cut, killed and started again."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import elucidiff as ed
from elucidiff import files, result
from elucidiff.cli.main import main
from elucidiff.portions import Portion
from elucidiff.seeds import as_ranges
from elucidiff.sharing import merging, sample_into, sampling
from elucidiff.sharing.plan import differences

CHAOS = os.environ.get("ELUCIDIFF_CHAOS") == "1"
IMAGES = 10_000 if CHAOS else 1_000
HEUN = ed.EDM.sampler.replace(steps=3)
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def images(channels=1) -> ed.Denoiser:
    mean = torch.linspace(-0.5, 0.5, channels * 16).reshape(channels, 4, 4)
    return ed.GaussianDenoiser(mean, 0.1 * (mean + 0.6))


def classes() -> ed.Denoiser:
    generator = torch.Generator().manual_seed(1)
    return ed.EmpiricalDenoiser(torch.rand(12, 1, 4, 4, generator=generator) - 0.5, torch.arange(12) % 3)


def network() -> ed.Denoiser:
    """Whose bits depend on the number of rows of a call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = ed.Preconditioned(ed.networks.MLP(width=200), ed.preconditioning.EDM(), shape=(3,)).eval()
        for weights in denoiser.parameters():
            torch.nn.init.normal_(weights, std=0.1)  # the last ones start as 0
    return denoiser.requires_grad_(False)


class Latent(ed.GaussianDenoiser):
    """Latents (2, 2, 2) that show pictures (1, 4, 4)."""

    def decode(self, x):
        return x.reshape(len(x), 1, 2, 4).repeat(1, 1, 2, 1).tanh()


def share(folder, denoiser=None, sampler=HEUN, *, portions=("0/1",), seeds=range(10), batch_size=4, **options):
    """What the last of the portions, one after the other, returns."""
    denoiser = denoiser or images()
    for portion in portions:
        last = sample_into(
            folder, denoiser, sampler, seeds=seeds, portion=Portion.parse(portion), batch_size=batch_size, **options
        )
    return last


def content(folder: Path) -> dict:
    """Every file's bytes; samples.json without what tells one start from another, and the manifest without its sum."""
    found = {p.name: p.read_bytes() for p in folder.iterdir()}
    text = found["samples.json"].decode()
    found["samples.json"] = "\n".join(line for line in text.splitlines() if not line.startswith(' "seconds":'))
    manifest = json.loads(found.pop(files.MANIFEST))["sha256"]
    manifest.pop("samples.json")
    return found | {"manifest": sorted(manifest), "order": list(manifest)}


def check_same(shared: Path, plain: Path) -> None:
    a, b = content(shared), content(plain)
    assert a.keys() == b.keys() and [k for k in a if a[k] != b[k]] == []
    files.check_manifest(shared)
    assert not shared.with_name(shared.name + ".parts").exists()


# The same bytes.

GUIDED = dict(kind="classifier_free", weight=2.0, interval=[0.1, 5.0])
CASES = {
    "images": (lambda: images(3), HEUN, {}, ("1/2", "0/2")),
    "churn, classes by seed": (classes, HEUN.replace(stochasticity=ed.solvers.Churn(S_churn=2.0)), {}, ("2/3", "0/3", "1/3")),
    "classes given, a seed twice": (classes, HEUN, {"labels": [0, 1, 2] * 3 + [0], "seeds": [7, 8, 9] * 3 + [7]}, ("0/2", "1/2")),
    "points": (lambda: ed.GaussianDenoiser(torch.tensor([1.0, 2.0, 3.0]), 0.5), HEUN, {}, ("0/3", "1/3", "2/3")),
    "volumes, float32": (lambda: ed.GaussianDenoiser(torch.zeros(2, 2, 2, 2), 0.5), HEUN, {"dtype": torch.float32}, ("1/2", "0/2")),
    "guided": (lambda: ed.guidance.ClassifierFree(classes(), 2.0, (0.1, 5.0)), HEUN, {"labels": 2}, ("0/2", "1/2")),
    "guided, adaptive": (lambda: ed.guidance.ClassifierFree(classes(), 2.0, (0.1, 5.0)), HEUN.replace(solver=ed.solvers.RK45(rtol=0.1)), {"seeds": range(6)}, ("0/2", "1/2")),
    "network": (network, HEUN, {}, ("0/2", "1/2")),
    "latents": (lambda: Latent(torch.zeros(2, 2, 2), 0.5), HEUN, {}, ("0/2", "1/2")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_portions_give_the_files_of_one_process_byte_for_byte(tmp_path, name):
    make, sampler, options, portions = CASES[name]
    denoiser, options = make(), {"seeds": range(10)} | options
    plain = ed.sample(ed.FixedBatch(denoiser, 4), sampler, batch_size=8, **options)
    notes = {"model": "m"}
    if "guided" in name:
        calls = plain.nfe * denoiser.network_calls / denoiser.main_calls
        notes["guidance"] = GUIDED | {"guide": None, "network_evaluations": round(calls, 2)}
    if name == "latents":
        notes["decoded_from"] = [10, 2, 2, 2]
        plain = replace(plain, x=denoiser.decode(plain.x))
    plain.save(tmp_path / "plain", **notes)
    if "guided" in name:
        notes["guidance"] = {"guide": None}
    notes.pop("decoded_from", None)
    found = share(tmp_path / "shared", make(), sampler, portions=portions, notes=notes, **options)
    assert found.complete and found.merged and found.there == found.parts == -(-len(plain.x) // 4)
    check_same(tmp_path / "shared", tmp_path / "plain")


def shifted(x, sigma, shift, scale):
    return (shift.reshape(-1, 1, 1, 1) + scale.reshape(-1, 1, 1, 1).mean()) / (1 + sigma) + 0 * x


def test_conditions_are_cut_with_the_samples(tmp_path):
    """Also where there are as many as samples in a part, which are then one for all."""
    given = {"shape": (1, 4, 4), "shift": torch.linspace(-0.5, 0.5, 10), "scale": torch.linspace(0.0, 0.1, 3)}
    ed.sample(shifted, HEUN, seeds=range(10), **given).save(tmp_path / "plain")
    share(tmp_path / "shared", shifted, portions=("0/2", "1/2"), **given)
    check_same(tmp_path / "shared", tmp_path / "plain")


def test_disks_without_links_get_copies(tmp_path, monkeypatch):
    share(tmp_path / "plain")

    def no_links(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    share(tmp_path / "shared")
    check_same(tmp_path / "shared", tmp_path / "plain")


def test_labels_are_written_row_by_row_as_json_writes_them(tmp_path):
    labels = torch.tensor([[0.1, 1.0, -3e-9], [2.0, 0.0, 1e20]])
    found = ed.sample(images(), HEUN, seeds=[1, 2])
    notes = {"labels of others": None, "nested": {"labels": None}, "text": 'a\n "labels": null'}
    for given in (labels, labels[:1, :1], labels.double(), None):
        one = replace(found, labels=given)
        one.write_provenance(tmp_path, **notes)
        assert (tmp_path / "samples.json").read_text() == json.dumps(notes | one.provenance(), indent=1) + "\n"


# Going on.


def test_a_portion_waits_for_nobody_and_draws_nothing_twice(tmp_path):
    out = tmp_path / "s"
    first = share(out, portions=("0/2",))
    assert (first.parts, first.there, first.drawn, first.complete, first.merged) == (3, 2, 2, False, False)
    assert not out.exists() and first.work == tmp_path / "s.parts" and first.record is None
    assert share(out, portions=("0/2",)).drawn == 0
    last = share(out, portions=("2/3",))  # cut in another way
    assert last.drawn == 0 and last.there == 2  # part 2 is there already
    done = share(out, portions=("1/3",))
    assert (done.drawn, done.merged, done.record["nfe"]) == (1, True, 5)
    again = share(out)
    assert (again.drawn, again.merged, again.complete, again.there) == (0, False, True, 3)
    assert len(list(out.glob("*.png"))) == 10 and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_more_processes_than_parts(tmp_path):
    assert share(tmp_path / "s", portions=("7/9",)).drawn == 0
    assert share(tmp_path / "s").merged


@pytest.mark.parametrize(
    "harm",
    [
        lambda part: (part / "000005.png").write_bytes((part / "000005.png").read_bytes()[:-1] + b"x"),
        lambda part: os.truncate(part / "000005.png", 20),
        lambda part: (part / "000005.png").unlink(),
        lambda part: (part / "samples.json").write_text("{}"),
        lambda part: (part / "manifest.json").write_text("{"),
        lambda part: (part / "000099.png").write_bytes((part / "000005.png").read_bytes()),
    ],
    ids=["a bit", "cut off", "lost", "record", "manifest", "one more"],
)
@pytest.mark.parametrize("portion", ["1/2", "0/2"], ids=["at the start", "at the merge"])
def test_damaged_parts_are_noticed_and_drawn_again(tmp_path, harm, portion):
    share(tmp_path / "clean")
    share(tmp_path / "s", portions=("1/2",))
    if portion == "1/2":  # one's own: noticed when one starts again, and the others are not there
        harm(tmp_path / "s.parts/000001")
        with pytest.warns(UserWarning, match="000001.*this part is drawn again"):
            assert share(tmp_path / "s", portions=("1/2",)).drawn == 1
        share(tmp_path / "s", portions=("0/2",))
    else:
        harm(tmp_path / "s.parts/000001")
        with pytest.warns(UserWarning, match="000001.*this part is drawn again"):
            assert share(tmp_path / "s", portions=("0/2",)).drawn == 3
    check_same(tmp_path / "s", tmp_path / "clean")


def test_a_part_of_another_request_is_drawn_again(tmp_path):
    share(tmp_path / "clean")
    share(tmp_path / "other", seeds=range(4, 14), portions=("1/2",))
    share(tmp_path / "s", portions=("0/2",))
    shutil.copytree(tmp_path / "other.parts/000001", tmp_path / "s.parts/000001")
    with pytest.warns(UserWarning, match="000001: drawn for another request; this part is drawn again"):
        share(tmp_path / "s", portions=("1/2",))
    check_same(tmp_path / "s", tmp_path / "clean")


def test_a_full_disk_leaves_the_other_parts_and_nothing_half(tmp_path, monkeypatch):
    share(tmp_path / "clean")
    written, write_image = [], result.write_image

    def full(path, x):
        if len(written) == 6:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write_image(path, x)

    monkeypatch.setattr(result, "write_image", full)
    with pytest.raises(OSError, match="No space left"):
        share(tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s.parts").iterdir()) == ["000000", "lock", "plan.json"]
    monkeypatch.undo()
    assert share(tmp_path / "s").drawn == 2
    check_same(tmp_path / "s", tmp_path / "clean")


def test_two_that_merge_at_the_same_moment(tmp_path, monkeypatch):
    """One merges, slowly; the other waits for it, and finds the folder there."""
    share(tmp_path / "clean")
    share(tmp_path / "s", portions=("0/3", "1/3"))
    merges, both = [], threading.Barrier(2)

    def slow(*args):
        merges.append(threading.get_ident())
        time.sleep(0.3)
        merging.merge(*args)

    draw = sampling._draw

    def draw_together(store, work, parts, progress):
        drawn = draw(store, work, parts, progress)
        if parts == range(2, 3, 3):
            both.wait(20)
        return drawn

    monkeypatch.setattr(sampling, "merge", slow)
    monkeypatch.setattr(sampling, "_draw", draw_together)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(share(tmp_path / "s", portions=("2/3",)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(merges) == 1 and sorted(s.merged for s in found) == [False, True] and all(s.complete for s in found)
    check_same(tmp_path / "s", tmp_path / "clean")


def test_a_process_that_is_late_notices_that_another_has_merged(tmp_path, monkeypatch):
    """It draws a part of which the whole is merged, and its folder removed, in the meantime."""
    share(tmp_path / "clean")
    sampled = sampling._Work._sampled

    def slow(self, rows):
        monkeypatch.undo()
        assert share(tmp_path / "s").merged
        return sampled(self, rows)

    monkeypatch.setattr(sampling._Work, "_sampled", slow)
    late = share(tmp_path / "s", portions=("0/2",))
    assert (late.drawn, late.complete, late.merged) == (0, True, False)
    check_same(tmp_path / "s", tmp_path / "clean")


# Another plan.


def moved() -> ed.Denoiser:
    return ed.GaussianDenoiser(torch.linspace(-0.5, 0.51, 16).reshape(1, 4, 4), 0.1)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"seeds": range(11)}, r"seeds \(0-9 there, 0-10 here\)"),
        ({"sampler": HEUN.replace(steps=4)}, r"sampler\.steps \(3 there, 4 here\)"),
        ({"denoiser": moved()}, r"model \(\w+\.\.\. there, \w+\.\.\. here\)"),
        ({"dtype": torch.float32}, r"dtype \(float64 there, float32 here\)"),
        ({"batch_size": 5}, r"samples a part \(4 there, 5 here\)"),
    ],
)
def test_another_plan_is_refused_and_named(tmp_path, options, named):
    share(tmp_path / "s", portions=("0/2",))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s.parts").rglob("*")}
    with pytest.raises(ValueError, match=rf"s\.parts belongs to another request: {named}\. Ask for the same, name"):
        share(tmp_path / "s", portions=("1/2",), **options)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s.parts").rglob("*")} == before
    assert share(tmp_path / "s", portions=("1/2",)).merged


@pytest.mark.parametrize(
    "options, named",
    [
        ({"labels": 1}, r"labels \(by seed there, 10x3 values, .* here\)"),
        (
            {"denoiser": ed.guidance.ClassifierFree(classes(), 2.0)},
            r"guidance\.kind \(null there, classifier_free here\)",
        ),
    ],
)
def test_other_labels_and_guidance_are_another_plan(tmp_path, options, named):
    share(tmp_path / "s", classes(), portions=("0/2",))
    with pytest.raises(ValueError, match=named):
        share(tmp_path / "s", **{"denoiser": classes()} | options)


def not_finite(x, sigma):
    return x + torch.nan


def test_a_plan_of_which_nothing_is_drawn_gives_way(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        share(tmp_path / "s", not_finite, shape=(1, 4, 4))
    assert share(tmp_path / "s").merged


def test_a_process_whose_plan_gave_way_is_told(tmp_path, monkeypatch):
    sampled = sampling._Work._sampled

    def slow(self, rows):
        monkeypatch.undo()
        share(tmp_path / "s", seeds=range(9), portions=("1/2",))
        return sampled(self, rows)

    monkeypatch.setattr(sampling._Work, "_sampled", slow)
    with pytest.raises(ValueError, match=r"another request: seeds \(0-8 there, 0-9 here\)"):
        share(tmp_path / "s", portions=("0/2",))
    assert share(tmp_path / "s", seeds=range(9)).samples == 9


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_plan_is_named(tmp_path, text):
    share(tmp_path / "s", portions=("0/2",))
    (tmp_path / "s.parts/plan.json").write_text(text)
    with pytest.raises(ed.errors.FormatError, match=r"plan\.json: not a plan .*; remove .*s\.parts"):
        share(tmp_path / "s")
    (tmp_path / "s.parts/plan.json").unlink()
    with pytest.raises(ed.errors.FormatError, match=r"s\.parts holds parts but no plan\.json: remove it"):
        share(tmp_path / "s")


def test_a_taken_folder_is_refused_and_left(tmp_path):
    share(tmp_path / "s", notes={"model": "a"})
    before = content(tmp_path / "s")
    for options, named in [
        ({"notes": {"model": "b"}}, "model"),
        ({"notes": {"model": "a"}, "seeds": range(9)}, "seeds"),
        ({"notes": {"model": "a"}, "sampler": HEUN.replace(steps=2)}, "sampler"),
        ({"notes": {"model": "a"}, "denoiser": classes()}, "labels"),
        ({"notes": {"model": "a"}, "denoiser": ed.guidance.ClassifierFree(classes(), 2.0)}, "labels, guidance"),
    ]:
        with pytest.raises(
            FileExistsError, match=rf"samples of another request \(other: {named}\); name another place"
        ):
            share(tmp_path / "s", **options)
    assert content(tmp_path / "s") == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("own", "file"):
        with pytest.raises(FileExistsError, match="exists and holds other things; name another place"):
            share(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "own", "s"]
    (tmp_path / "empty").mkdir()
    assert share(tmp_path / "empty").merged


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path):
    network = ed.networks.MLP(width=8)
    vectors = ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(2,), label_dim=2, vector_labels=True)
    for options, error, message in [
        ({"seeds": []}, ValueError, "seeds: got none; expected at least one"),
        ({"seeds": [-1]}, ValueError, "seeds: got -1"),
        ({"labels": 1}, ValueError, "labels: got some for a model without classes"),
        ({"batch_size": 0}, ValueError, "FixedBatch.size: got 0"),
        ({"denoiser": vectors}, ValueError, "labels= is needed"),
        ({"condition": object()}, TypeError, "condition: got a object; .*tensors, numbers, text"),
        ({"denoiser": 3}, TypeError, "denoiser: got int"),
    ]:
        with pytest.raises(error, match=message):
            share(tmp_path / "s", **options)
    assert list(tmp_path.iterdir()) == []


def test_plans_in_words():
    assert as_ranges([5, 6, 7, 3, 9, 10]) == "5-7,3,9-10"
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == ""
    assert differences({"a": {"b": 1}, "c": "x" * 50}, {"a": None, "c": 2}) == (
        "c (" + "x" * 37 + "... there, 2 here), a.b (1 there, null here)"
    )


# Processes.


def command(*argv, start=()) -> list[str]:
    return [sys.executable, *start, "-m", "elucidiff", "sample", "exact:digits", *(str(a) for a in argv)]


def torchrun(processes: int) -> tuple[str, ...]:
    """What starts a command in so many processes, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"


def cli(capsys, *argv) -> tuple[int, str, str]:
    code = main(["sample", "exact:digits", *(str(a) for a in argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line_shares_and_resumes(tmp_path, capsys):
    ask = ["--seeds", "3,10-50", "--steps", "3", "--labels", "0-9", "--guidance", "2", "--guidance-interval", "0.2,5"]
    s = [*ask, "--out", tmp_path / "s", "--grid", tmp_path / "s.png"]
    assert cli(capsys, *ask, "--out", tmp_path / "plain", "--grid", tmp_path / "plain.png")[0] == 0
    code, out, _ = cli(capsys, *s, "--shard", "1/2")
    assert code == 0 and f"1 of 3 parts are there, in {tmp_path}/s.parts: this shard is done" in out
    code, out, err = cli(capsys, *s, "--shard", "2/2")
    assert (code, out) == (2, "") and err.startswith("error: shard: got 2/2; expected i/n with 0 <= i < n")
    code, _, err = cli(capsys, *s, "--shard", "0/2", "--steps", "4")
    assert code == 2 and "sampler.steps (3 there, 4 here)" in err
    code, out, _ = cli(capsys, *s, "--resume", "--json")
    facts = json.loads(out)
    expected = {"samples": 42, "parts": 3, "there": 3, "drawn": 2, "complete": True, "merged": True, "nfe": 5}
    assert code == 0 and facts.items() >= expected.items()
    assert facts["guidance"]["network_evaluations"] == 7  # 2.5 is a level within, from and to which a step leads
    check_same(tmp_path / "s", tmp_path / "plain")
    assert (tmp_path / "s.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    code, out, _ = cli(capsys, *s, "--shard", "0/2")
    assert code == 0 and "42 samples in" in out and "drawn before" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "plain.png", "s", "s.png"]
    assert cli(capsys, *ask, "--out", tmp_path / "s")[0] == 2  # without --resume nothing is taken for one's own
    code, _, err = cli(capsys, *ask, "--out", tmp_path / "new", "--resume", "--grid", tmp_path / "s.png")
    assert code == 2 and "s.png exists and would be overwritten" in err and not (tmp_path / "new.parts").exists()


def test_torchrun_within_a_shard_shares_it_further(tmp_path, capsys, monkeypatch):
    ask = ["--seeds", "0-79", "--steps", "2", "--out", tmp_path / "s", "--json"]
    drawn = []
    for shard, rank in [("0/2", 0), ("0/2", 1), ("1/2", 0), ("1/2", 1)]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        drawn.append(json.loads(cli(capsys, *ask, "--shard", shard)[1])["drawn"])
    assert drawn == [2, 1, 1, 1] and len(list((tmp_path / "s").glob("*.png"))) == 80


@pytest.mark.timeout(200)
def test_torchrun_starts_ranks_that_share(tmp_path, capsys):
    ask = ["--seeds", "0-99", "--steps", "3"]
    assert cli(capsys, *ask, "--out", tmp_path / "plain")[0] == 0
    start = command(*ask, "--out", tmp_path / "s", "--json", start=torchrun(2))
    done = subprocess.run(start, env=ONE_THREAD, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(int(line.split(":")[1].strip(" ,")) for line in done.stdout.splitlines() if '"drawn"' in line) == [
        3,
        4,
    ]
    check_same(tmp_path / "s", tmp_path / "plain")


@pytest.fixture
def quick(tmp_path) -> Iterator[Path]:
    """A folder in memory, where a flush to the disk costs nothing; what is flushed is the same."""
    memory = Path("/dev/shm")
    folder = memory / f"elucidiff-{os.getpid()}" if os.access(memory, os.W_OK) else tmp_path / "quick"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(280 if not CHAOS else 1500)
def test_a_process_killed_half_way_and_restarted_changes_nothing(quick, capsys, promise):
    """Two processes; one is killed at a random moment of its second quarter, and started again."""
    ask = ["--seeds", f"0-{IMAGES - 1}", "--steps", "9", "--out"]
    parts = -(-IMAGES // 16)
    out, work = quick / "s", quick / "s.parts"

    def start(shard):
        return subprocess.Popen(command(*ask, out, "--shard", shard, "--json"), env=ONE_THREAD, stdout=subprocess.PIPE)

    def own(index):
        return [p for p in work.glob("[0-9]*") if int(p.name) % 2 == index]

    processes = [start("0/2"), start("1/2")]
    half = random.Random(int(time.time())).uniform(0.25, 0.5) * parts / 2
    deadline = time.monotonic() + (900 if CHAOS else 240)
    while len(own(1)) < half and time.monotonic() < deadline:
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[1].wait(60) == -signal.SIGKILL
    processes[1].stdout.close()
    before = len(own(1))
    assert half <= before < parts // 2 and not out.exists()
    processes[1] = start("1/2")
    found = [json.loads(p.communicate(timeout=1200 if CHAOS else 200)[0]) for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert found[1]["drawn"] == parts // 2 - before and found[0]["drawn"] == parts - parts // 2  # nothing twice
    assert sorted(f["merged"] for f in found) == [False, True]
    assert cli(capsys, *ask, quick / "clean")[0] == 0
    check_same(out, quick / "clean")
    assert [p.name for p in sorted(out.glob("*.png"))] == [f"{seed:06d}.png" for seed in range(IMAGES)]
    assert sorted(p.name for p in quick.iterdir()) == ["clean", "s"]
    promise("S1", images=IMAGES, killed_after_parts=before, lost=0, doubled=0, changed=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
@pytest.mark.timeout(200)
def test_killed_before_every_write_in_turn(quick):
    """Of 3 parts, through the plan, the parts, the merge and the clearing up; started again as two processes."""
    argv = [sys.executable, str(Path(__file__).with_name("share_and_crash.py")), str(quick)]
    done = subprocess.run(argv, env=ONE_THREAD, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 60


def test_arrays_are_joined_with_one_part_in_memory(tmp_path, monkeypatch):
    """64 parts of 32 kB: the join never holds more than a few."""

    parts = []
    for k in range(64):
        parts.append(tmp_path / f"{k}.npz")
        np.savez(parts[-1], samples=np.full((4, 1024), float(k)))
    tracemalloc.start()
    merging._join_arrays(parts, 256, tmp_path / "all.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 32 * 1024 < 64 * 32 * 1024
    with np.load(tmp_path / "all.npz") as arrays:
        assert (arrays["samples"] == np.arange(64.0).repeat(4)[:, None]).all()
    np.savez(tmp_path / "other.npz", samples=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="other.npz: samples of another shape"):
        merging._join_arrays([*parts[:2], tmp_path / "other.npz"], 12, tmp_path / "bad.npz")
