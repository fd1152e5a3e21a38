"""Evaluation: one process, two, or a killed one give the same numbers; repeats, references, provenance, pictures."""

import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import elucidiff as ed
from elucidiff import data as datasets
from elucidiff import metrics
from elucidiff.analysis import reference_and_real, score_samples
from elucidiff.analysis.evaluation_neighbours import nearest, realism
from elucidiff.analysis.evaluation_sources import FromModel
from elucidiff.analysis.evaluation_work import Work
from elucidiff.cli.main import main
from elucidiff.publish import evaluations_in
from elucidiff.seeds import as_ranges

PNG = b"\x89PNG\r\n\x1a\n"


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def numbers(capsys, *argv):
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A sixth of the digits with their classes, so that the exact denoiser is quick."""
    path = tmp_path_factory.mktemp("digits") / "some.npz"
    whole = ed.data.load("digits").subset(range(300))
    np.savez(path, images=whole.values[:, 0], labels=whole.labels)
    return path


def asked(digits, *more, steps=3):
    return ["evaluate", f"exact:{digits}", digits, "--features", "digits", "--steps", steps, *more]


# one process and two; killed and started again


def started(*argv):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "elucidiff", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.timeout(180)
def test_two_processes_and_a_killed_one_give_the_numbers_of_one(capsys, digits, tmp_path):
    command = asked(digits, "--num", 300, "--repeat", 2, "--json", steps=15)
    alone = json.loads(run(capsys, *command)[1])
    assert alone["nfe"] == 29 and len(alone["scores"][0]["values"]) == 2

    shared = [started(*command, "--work", tmp_path / "two", "--shard", f"{i}/2") for i in range(2)]
    killed = started(*command, "--work", tmp_path / "killed")
    until = time.monotonic() + 120
    while not (chunks := list(tmp_path.glob("killed/chunk-*"))) and time.monotonic() < until:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert 1 <= len(chunks) < 10
    there = {p: p.stat().st_mtime_ns for p in tmp_path.glob("killed/chunk-*")}

    found = [json.loads(process.communicate(timeout=120)[0]) for process in shared]
    assert all(process.returncode == 0 for process in shared)
    whole = [one for one in found if "scores" in one]
    assert alone in whole and all(one == alone for one in whole)  # the later of the two, or both
    assert all(one["chunks"] == 10 and one["missing"] > 0 for one in found if "scores" not in one)
    assert json.loads(run(capsys, *command, "--work", tmp_path / "killed")[1]) == alone
    assert there == {p: p.stat().st_mtime_ns for p in there}  # nothing was made twice
    assert json.loads(run(capsys, *command, "--batch-size", 7)[1]) == alone


def test_torchrun_shares_the_work_and_what_is_missing_is_told(capsys, digits, tmp_path, monkeypatch):
    command = asked(digits, "--num", 130, "--metrics", "fd,kd")
    alone = numbers(capsys, *command)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, err = run(capsys, *command)
    assert code == 2 and "2 processes need --work DIR" in err
    code, out, _ = run(capsys, *command, "--work", tmp_path / "w", "--out", tmp_path / "n.json")
    assert code == 0 and "1 of 3 chunks" in out and not (tmp_path / "n.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert numbers(capsys, *command, "--work", tmp_path / "w", "--out", tmp_path / "n.json") == alone
    monkeypatch.setenv("RANK", "1")  # this one comes too late, and finds the same
    assert numbers(capsys, *command, "--work", tmp_path / "w", "--out", tmp_path / "n.json") == alone
    assert json.loads((tmp_path / "n.json").read_text()) == alone
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [
        *(f"chunk-{i:05d}.safetensors" for i in range(3)), "plan.json",
    ]  # fmt: skip
    with safe_open(tmp_path / "w/chunk-00002.safetensors", "pt") as chunk:  # no images: nobody asked for them
        shapes = {name: list(chunk.get_slice(name).get_shape()) for name in chunk.keys()}  # noqa: SIM118
    assert shapes == {"features": [2, 40], "labels": [2, 10], "logits": [2, 10], "nfe": [1]}


def test_work_of_another_evaluation_is_refused(capsys, digits, tmp_path):
    base = asked(digits, "--num", 70, "--metrics", "fd", "--work", tmp_path / "w")
    first = numbers(capsys, *base)
    for other, message in (
        ([*base, "--seed", 1], "source.seeds: 0-69 there, 1-70 asked"),
        ([*base, "--num", 71], "source.seeds: 0-69 there, 0-70 asked"),
        ([*base, "--set", "solver=euler"], "source.sampler.solver.kind: heun there, euler asked"),
        ([*base, "--guidance", 2], "source.model"),
        ([*base, "--labels", 3], "source.labels: None there"),
        ([*base, "--features", "pyramid"], "features.name: digits there, pyramid asked"),
        ([*base, "--metrics", "swd"], "images: False there, True asked"),
    ):
        code, out, err = run(capsys, *other)
        assert (code, out) == (2, "") and message in err and "name another folder" in err, err
    assert {s["metric"] for s in numbers(capsys, *base, "--metrics", "kd,agreement,prdc")["scores"]} > {"kd", "recall"}

    chunk = tmp_path / "w/chunk-00001.safetensors"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-8])
    code, _, err = run(capsys, *base)
    assert code == 2 and "chunk-00001.safetensors: damaged" in err and "remove it" in err
    chunk.unlink()
    assert numbers(capsys, *base) == first and chunk.read_bytes() == content
    Work(tmp_path / "v", {"another": 1}, 2).put(1, {"features": torch.zeros(6, 40)})
    chunk.write_bytes((tmp_path / "v/chunk-00001.safetensors").read_bytes())
    code, _, err = run(capsys, *base)
    assert code == 2 and "belongs to another plan" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    code, _, err = run(capsys, *base, "--work", tmp_path / "mine")
    assert code == 2 and "would be overwritten" in err


# what is measured


def test_repeats_are_scores_of_seeds_after_each_other(capsys, digits):
    found = numbers(capsys, *asked(digits, "--num", 60, "--repeat", 3, "--seed", 5, "--metrics", "fd,agreement"))
    data, model = ed.data.load(digits), ed.load(f"exact:{digits}")
    reference, real = reference_and_real(data)
    expected = {"fd": [], "agreement": []}
    for r in range(3):
        drawn = ed.sample(model, ed.EDM.sampler.replace(steps=3), seeds=range(5 + 60 * r, 65 + 60 * r))
        for score in score_samples(drawn.x, reference, real, labels=drawn.labels, metrics=["fd", "agreement"],
                                   extractor=metrics.DigitFeatures()):  # fmt: skip
            expected[score.metric].append(score)
    for s in found["scores"]:
        values = [score.value for score in expected[s["metric"]]]
        assert s["values"] == pytest.approx(values, rel=1e-4)
        assert s["min"] == min(s["values"]) and s["value"] == s["mean"] == pytest.approx(sum(s["values"]) / 3)
        assert s["std"] == pytest.approx(statistics.stdev(s["values"]))
        assert s["real"] == pytest.approx(expected[s["metric"]][0].real, rel=1e-9)
    assert len({*found["scores"][0]["values"]}) == 3 and found["seeds"] == "5-184" and found["repeats"] == 3
    seeds = asked(digits, "--seeds", "5-184", "--repeat", 3, "--metrics", "fd,agreement")
    assert numbers(capsys, *seeds)["scores"] == found["scores"]


def test_all_that_a_score_depends_on_is_printed(capsys, digits):
    command = asked(digits, "--num", 160, "--metrics", "fd", "--set", "stochasticity=churn")
    found = numbers(capsys, *command)
    (score,) = found["scores"]
    data = ed.data.load(digits)
    sha256 = metrics.extractor_hash(metrics.DigitFeatures())
    assert score["n"] == 160 and score["n_reference"] == 150 == score["n_real"] and score["nfe"] == 5
    assert score["reference"] == {"name": "some", "n": 150, "heldout": 0.5, "fingerprint": data.fingerprint()}
    assert (score["features"], score["features_sha256"], score["seeds"]) == ("digits", sha256, "0-159")
    assert score["sampler"] == found["sampler"] and found["sampler"]["steps"] == 3 and score["ema"] is None
    assert score["real"] > 0 and found["versions"]["torch"] == torch.__version__
    code, out, _ = run(capsys, *command)
    for text in (
        "160 samples against 150 held-out of some", f"{score['value']:.4g}", f"{score['real']:.4g}", sha256[:8], "d = 40",
        "seeds 0-159", "NFE 5: heun with 3 edm steps, stochasticity churn", data.fingerprint()[:8], "EMA not recorded",
        f"SHA-256 {found['fingerprint'][:8]}", "n = 150, against",
        "caution: n = 160 is below 50,000: compare Fréchet distance at the same n only",
        "caution: the value of real data is of n = 150, all there are, and not of 160",
    ):  # fmt: skip
        assert code == 0 and text in out, text
    assert "bias" not in " ".join(numbers(capsys, *command, "--metrics", "agreement")["warnings"])
    plain = ["evaluate", f"exact:{digits}", digits, "--num", 40, "--steps", 2]
    assert "not measured: agreement; that needs" in run(capsys, *plain, "--metrics", "fd,agreement")[1]
    assert "not measured" not in run(capsys, *plain)[1]
    few = numbers(capsys, *asked(digits, "--num", 40, "--metrics", "fd"))
    bias = f"40 samples in d = 40 dimensions: most of the Fréchet distance is bias; real data get {few['scores'][0]['real']:.4g}"
    assert few["warnings"][1] == bias and not any("dimensions" in w for w in found["warnings"])


def test_a_model_a_folder_a_zip_and_an_array_of_its_samples_agree(capsys, digits, tmp_path):
    more = ["--metrics", "fd,kd,agreement,swd,nearest"]
    drawn = numbers(capsys, *asked(digits, "--seeds", "90-99,0-69", "--save", tmp_path / "saved", *more))
    sample = ["sample", f"exact:{digits}", "--steps", 3, "--seeds", "90-99,0-69", "--out", tmp_path / "s"]
    assert run(capsys, *sample)[0] == 0
    for one in (tmp_path / "s").glob("*.png"):
        assert one.read_bytes() == (tmp_path / "saved" / one.name).read_bytes()
    record, saved = (json.loads((tmp_path / f / "samples.json").read_text()) for f in ("s", "saved"))
    assert saved["labels"] == record["labels"] and saved["seeds"] == record["seeds"] and saved["nfe"] == 5

    own = ed.data.load(tmp_path / "s")
    classes = dict(zip(record["seeds"], np.argmax(record["labels"], 1), strict=True))
    labels = np.array([classes[int(Path(name).stem)] for name in own.names])
    np.savez(tmp_path / "s.npz", images=own.values[:, 0], labels=labels)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in own.names:
            archive.write(tmp_path / "s" / Path(name).name, Path(name).name)
        pairs = [[Path(n).name, int(label)] for n, label in zip(own.names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    np.save(tmp_path / "s.npy", own.values[:, 0])
    scores = {}
    for name in ("s", "saved", "s.zip", "s.npz", "s.npy"):
        found = numbers(capsys, "evaluate", tmp_path / name, digits, "--features", "digits", *more)
        scores[name] = {s["metric"]: s["value"] for s in found["scores"]}
        assert found["samples"] == str(tmp_path / name) and found["fingerprint"]
    assert scores["s"] == scores["saved"] == scores["s.zip"] == scores["s.npz"]
    assert scores["s.npy"] == {m: v for m, v in scores["s"].items() if m != "agreement"}  # of no known classes
    for s in drawn["scores"]:  # drawn in another order, of which only random subsets depend
        assert scores["s"][s["metric"]] == pytest.approx(s["value"], rel=1e-9 if s["metric"] != "kd" else 1)
    part = numbers(capsys, "evaluate", tmp_path / "s.npz", digits, "--num", 40, "--repeat", 2, "--metrics", "fd")
    assert part["n"] == 40 and "sampler" not in part and len(part["scores"][0]["values"]) == 2
    assert numbers(capsys, "evaluate", tmp_path / "s", digits, "--metrics", "fd")["sampler"]["steps"] == 3


class Echo(ed.Denoiser):
    """Answers with its condition."""

    def __init__(self):
        super().__init__()
        self.shape, self.conditioning = (1, 8, 8), ed.conditioning.Paired(1)

    def denoise(self, x, sigma, condition=None):
        return condition.to(x)


class Latent(ed.GaussianDenoiser):
    """4x4 latents of one value, shown as 8x8 pictures of twice of it."""

    def decode(self, x):
        return 2 * x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_each_row_has_its_own_condition_and_latents_are_decoded():
    c = torch.linspace(-1, 1, 20).round(decimals=1)[:, None, None, None].expand(-1, 1, 8, 8)
    sampler, seeds = ed.EDM.sampler.replace(steps=2), tuple(range(20))
    echo = FromModel(Echo(), sampler, seeds, (1, 8, 8), True, condition=c)
    assert (echo.read([17, 3]).x - c[[17, 3]]).abs().max() < 1 / 255
    one = FromModel(Echo(), sampler, seeds, (1, 8, 8), True, condition=c[:1])
    assert (one.read([17, 3]).x + 1).abs().max() < 1 / 255

    model = Latent(torch.zeros(1, 4, 4), 0.04 * torch.ones(1, 4, 4))
    latent, shown = (FromModel(model, sampler, seeds, shape, False) for shape in ((1, 4, 4), (1, 8, 8)))
    assert torch.equal(shown.read([4]).x[..., ::2, ::2], 2 * latent.read([4]).x)
    with pytest.raises(ValueError, match=r"samples of the model have shape \(1, 8, 8\), the data \(1, 5, 5\)"):
        FromModel(model, sampler, seeds, (1, 5, 5), True)


# references in files


def test_statistics_in_a_file_stand_for_the_reference(capsys, digits, tmp_path):
    made = numbers(capsys, "reference", digits, "--features", "digits", "--heldout", 0.5, "--out", tmp_path / "r.npz")
    assert made["n"] == 150 and made["d"] == 40
    base = ["evaluate", f"exact:{digits}", "--steps", 3, "--num", 100]
    by_data = numbers(capsys, *asked(digits, "--num", 100, "--metrics", "fd,agreement"))
    by_file = numbers(capsys, *base, digits, "--reference", tmp_path / "r.npz")  # the features are those of the file
    for a, b in zip(by_data["scores"], by_file["scores"], strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-9) and b["real"] == pytest.approx(a["real"], rel=1e-9)
    alone = numbers(capsys, *base, "--reference", tmp_path / "r.npz")
    assert alone["scores"][0]["value"] == by_file["scores"][0]["value"] and alone["scores"][0]["real"] is None
    assert alone["warnings"][-1].startswith("no value of real data") and alone["n_real"] is None
    assert alone["reference"]["n"] == 150 and len(alone["reference"]["sha256"]) == 64

    with np.load(tmp_path / "r.npz") as own:
        moments = {"mu": own["mu"], "sigma": own["sigma"]}
    np.savez(tmp_path / "published.npz", **moments)
    (tmp_path / "published.pkl").write_bytes(pickle.dumps({"fid": moments, "other": moments}))
    npz = numbers(capsys, *base, "--features", "digits", "--reference", tmp_path / "published.npz")
    pkl = ["--reference", tmp_path / "published.pkl", "--key", "fid"]
    assert npz["scores"][0]["value"] == numbers(capsys, *base, "--features", "digits", *pkl)["scores"][0]["value"]
    assert npz["scores"][0]["value"] == pytest.approx(by_file["scores"][0]["value"], rel=1e-6)  # n - 1 or n, of many
    assert "does not say of which features" in npz["warnings"][-1] and npz["reference"]["n"] is None
    assert "an unknown number in" in run(capsys, *base, "--features", "digits", *pkl)[1]

    for argv, message in (
        ([*base, "--reference", tmp_path / "r.npz", "--features", "pyramid"], "these reference statistics are of features"),
        ([*base, "--reference", tmp_path / "r.npz", "--metrics", "kd"], "kd need the data themselves"),
        ([*base, "--reference", tmp_path / "published.npz"], "statistics of"),
        ([*base, "--reference", tmp_path / "published.pkl"], "choose one"),
        ([*base, "--reference", tmp_path / "none.npz"], "none.npz"),
        ([*base, "--reference", tmp_path / "r.npz", "--pictures", tmp_path / "p"], "name them too"),
        ([*base, digits, "--key", "fid"], "give that, too"),
        (base, "DATA is missing"),
        (["reference", digits, "--out", tmp_path / "r.npz"], "would be overwritten"),
        (["reference", digits, "--out", tmp_path / "r.pkl"], ".npz"),
    ):  # fmt: skip
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "") and message in err, err


def test_bad_input_is_told_before_anything_is_drawn(capsys, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("elucidiff.analysis.evaluation_sources.sample", None)  # calling it would be a TypeError
    (tmp_path / "taken.json").write_text("{}")
    np.save(tmp_path / "other.npy", np.zeros((9, 5), np.float32))
    base, samples = asked(digits, "--num", 10), ["evaluate", digits, digits]
    for argv, message in (
        ([*base, "--seeds", "0-9"], "leave --num and --seed out"),
        (asked(digits, "--seeds", "0-9", "--repeat", 3), "10 seeds are not 3 repeats"),
        (asked(digits, "--seeds", "0-3"), "at least 5"),
        (asked(digits, "--seeds", "1,1"), "twice"),
        ([*base, "--shard", "0/2"], "need --work DIR"),
        ([*base, "--shard", "2/2", "--work", tmp_path / "w"], "0 <= i < n"),
        ([*base, "--out", tmp_path / "x.txt"], "a .json file"),
        ([*base, "--out", tmp_path / "taken.json"], "would be overwritten"),
        ([*base, "--metrics", "fid"], "did you mean 'fd'"),
        ([*base, "--features", "identity", "--condition", digits], "trained without"),
        ([*base, "--sweep"], "not a run directory with snapshots"),
        ([*base, "--sweep", "--save", tmp_path / "s"], "leave it out of a --sweep"),
        (["evaluate", f"exact:{digits}", tmp_path / "other.npy"], "samples of the model have shape (1, 8, 8)"),
        (["evaluate", tmp_path / "other.npy", digits], "the samples have shape (5,), the data (1, 8, 8)"),
        (["evaluate", tmp_path / "other.npy", tmp_path / "other.npy", "--pictures", tmp_path / "p"], "are not images"),
        ([*samples, "--num", 301], "of the 300 samples"),
        ([*samples, "--num", 160, "--repeat", 2], "2 x 160 of the 300 samples"),
        ([*samples, "--labels", "3"], "is a file of samples; only a MODEL"),
        ([*samples, "--save", tmp_path / "s"], "in files already"),
    ):  # fmt: skip
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) <= 2, (argv, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.npy", "taken.json"]


# pictures and neighbours


def test_neighbours_and_realism_have_their_closed_forms():
    y = torch.tensor([[0.0, 0], [3, 4], [6, 8], [100, 0]], dtype=torch.float64)
    found = nearest(torch.tensor([[0.0, 0], [6, 7]], dtype=torch.float64), y, 2)
    assert found.row.tolist() == [[0, 1], [2, 1]]
    assert found.distance.flatten().tolist() == pytest.approx([0, 5, 1, 18**0.5], abs=1e-6)
    line = torch.arange(9.0, dtype=torch.float64)[:, None]  # r_1 = 1 everywhere: realism is 1 / distance to the nearest
    x = torch.tensor([[0.5], [10.0], [-3.0]], dtype=torch.float64)
    assert realism(x, line, k=1).tolist() == pytest.approx([2, 1 / 2, 1 / 3], rel=1e-9)
    wide = torch.cat([line, torch.tensor([[1000.0]], dtype=torch.float64)])  # an outlier's ball makes nothing real
    assert realism(torch.tensor([[900.0]], dtype=torch.float64), wide, k=1).item() == pytest.approx(1 / 892)
    with pytest.raises(ValueError, match="expected 1 to 4 neighbours"):
        nearest(y, y, 5)
    with pytest.raises(ValueError, match="less than the 4 reference samples"):
        realism(y, y, k=4)


def test_pictures_show_copies_and_wrecks(capsys, tmp_path):
    """Real held-out digits, with two copies of training digits and an empty image among them."""
    rest, held = ed.data.load("digits").split(0.5)
    values = held.values[:60].copy()
    values[[7, 31]] = rest.values[[5, 9]]
    values[[20]] = 255
    np.savez(tmp_path / "s.npz", images=values[:, 0])
    argv = ["evaluate", tmp_path / "s.npz", "digits", "--metrics", "fd", "--pictures", tmp_path / "p"]
    code, out, err = run(capsys, *argv)
    assert code == 0 and "pictures:" in out, err
    shown = json.loads((tmp_path / "p/shown.json").read_text())
    assert {s["sample"] for s in shown["nearest"][:2]} == {"number 7", "number 31"}
    for found in shown["nearest"][:2]:
        assert found["by_features"][0] < 1e-4 and found["by_pixels"][0] < 1e-4 < found["by_pixels"][1]
    assert "number 20" in [s["sample"] for s in shown["worst"][:5]]
    assert "number 20" not in [s["sample"] for s in shown["best"]]
    assert [s["realism"] for s in shown["best"]] == sorted((s["realism"] for s in shown["best"]), reverse=True)
    for name in ("nearest.png", "best-worst.png"):
        assert (tmp_path / "p" / name).read_bytes()[:8] == PNG
    code, _, err = run(capsys, *argv)
    assert code == 2 and "would be overwritten" in err


# snapshots


@pytest.fixture(scope="module")
def power_run(tmp_path_factory):
    """Points, trained for an instant with two averages."""
    folder = tmp_path_factory.mktemp("power")
    x = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    np.save(folder / "points.npy", x)
    settings = ["batch=64", "snapshots=2", "ema=power", "network.width=16"]
    argv = ["train", folder / "points.npy", "--out", folder / "run", "--images", 1280, "--set", *settings]
    assert main([str(a) for a in argv]) == 0
    return folder


def test_a_sweep_scores_every_snapshot(capsys, power_run, tmp_path):
    base = [power_run / "points.npy", "--num", 70, "--repeat", 2, "--steps", 4, "--metrics", "fd,energy"]
    argv = ["evaluate", power_run / "run", *base, "--sweep", "--work", tmp_path / "w"]
    found = numbers(capsys, *argv, "--pictures", tmp_path / "p", "--out", tmp_path / "sweep.json")
    assert json.loads((tmp_path / "sweep.json").read_text()) == found
    facts = [(s["snapshot"], s["images_seen"], s["ema"]["sigma_rel"]) for s in found["snapshots"]]
    assert facts == [("000000", 640, 0.05), ("000000-0.100", 640, 0.1), ("000001", 1280, 0.05),
                     ("000001-0.100", 1280, 0.1)]  # fmt: skip
    for one in found["snapshots"]:
        alone = numbers(capsys, "evaluate", power_run / "run/snapshots" / one["snapshot"], *base)
        assert alone["scores"] == one["scores"] and alone["fingerprint"] == one["fingerprint"]
    assert len({s["fingerprint"] for s in found["snapshots"]}) == 4
    assert (tmp_path / "p/sweep.png").read_bytes()[:8] == PNG
    for chunk in (tmp_path / "w/000001-0.100").glob("chunk-*"):
        chunk.unlink()
    assert numbers(capsys, *argv) == found  # goes on
    for chunk in (tmp_path / "w/000001-0.100").glob("chunk-*1.safetensors"):
        chunk.unlink()
    code, out, _ = run(capsys, *argv, "--shard", "0/2")
    assert code == 0 and "11 of 12 chunks" in out
    out = run(capsys, *argv)[1]
    assert "EMA sigma_rel 0.05" in out and "best" in out and "real data" in out and "2 x 70 of each snapshot" in out


# card and report


def test_the_card_and_the_report_show_evaluations(capsys, power_run, tmp_path):
    base = ["evaluate", power_run / "run", power_run / "points.npy", "--num", 40, "--steps", 4, "--metrics", "fd"]
    found = numbers(capsys, *base, "--repeat", 3, "--out", tmp_path / "evaluation-fd.json")
    once = numbers(capsys, *base, "--out", tmp_path / "evaluation-once.json")
    (tmp_path / "evaluation-other.json").write_text('{"scores": 3}')
    (tmp_path / "evaluation-torn.json").write_text("{")
    assert evaluations_in(tmp_path) == [found, once] and evaluations_in(tmp_path / "none") == []
    (s,) = found["scores"]
    card = ed.model_card(ed.load(power_run / "run"), evaluations_in(tmp_path))
    for text in (
        "## Scores", f"| Fréchet distance | {s['mean']:.5g} ± {s['std']:.2g} | {s['min']:.5g} | {s['real']:.5g} | identity |",
        "3 x 40 samples (seeds 0-119) against 200 of points, held out,", found["reference"]["fingerprint"][:8],
        "sampler heun, 4 edm steps, NFE 7", "EMA sigma_rel 0.05", f"SHA-256 {found['features_sha256'][:8]}",
        "real data: n = 40", "N = 40 is below 50,000", "| score | value | real data | features |",
    ):  # fmt: skip
        assert text in card, text
    assert ed.model_card(ed.load(power_run / "run"), once).count("| Fréchet distance |") == 1

    from elucidiff.report import Page
    from elucidiff.report.evaluation import evaluation_section

    page = Page("A run")
    evaluation_section(page, [found, once])
    html = page.write(tmp_path / "report.html").read_text()
    assert f"{s['mean']:.5g} ± {s['std']:.2g}" in html and "3 x 40 samples" in html and html.count("<table") == 2
    empty = Page("A run")
    evaluation_section(empty, [])
    assert "Scores" not in empty.write(tmp_path / "empty.html").read_text()


def test_ranges_say_what_the_seeds_were():
    from elucidiff.cli import parse

    for seeds in ([0], [3, 4, 5, 9], [5, 3, 4], list(range(100, 200))):
        assert parse.seeds(as_ranges(seeds)) == seeds
    assert as_ranges(range(64)) == "0-63" and datasets.load("digits").shape == (1, 8, 8)


def test_features_of_data_are_kept_and_damage_is_noticed(tmp_path, monkeypatch):
    from elucidiff.analysis import feature_cache
    from elucidiff.metrics import DigitFeatures, Identity, named_features

    monkeypatch.setenv("ELUCIDIFF_CACHE", str(tmp_path / "cache"))
    calls = []

    def compute(value=1.0):
        calls.append(value)
        return {"features": torch.full((3, 2), value, dtype=torch.float64)}

    def ask(fingerprint="a", extractor=None, device="cpu", value=1.0):
        found = feature_cache.kept_features(fingerprint, extractor or Identity(), device, lambda: compute(value))
        return found["features"][0, 0]

    assert ask() == 1 and ask(value=2.0) == 2  # quick ones are not kept
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(feature_cache, "PAYS", 0.0)
    assert ask(value=3.0) == 3 and ask(value=4.0) == 3
    assert (
        ask("b", value=5.0) == 5
        and ask(extractor=DigitFeatures(), value=6.0) == 6
        and ask(device="mps", value=7.0) == 7
    )
    (tmp_path / "own.py").write_text("def f(x):\n    return x.flatten(1)\n")
    own = named_features(f"{tmp_path / 'own.py'}:f")
    assert ask(extractor=own, value=8.0) == 8 and ask(extractor=own, value=9.0) == 9
    before = len(calls)
    for file in (tmp_path / "cache" / "features").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert ask(value=10.0) == 10 and len(calls) == before + 1
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    (tmp_path / "cache").write_text("a file, in which nothing can be kept")
    assert ask(value=11.0) == 11
