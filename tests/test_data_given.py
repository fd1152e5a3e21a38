"""Data as people hold them: tables of points, arrays and tensors in memory, data sets of torch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff.analysis import compare
from elucidiff.cli.main import main
from elucidiff.data import dataset_of
from elucidiff.data.sheets import write_sheet
from elucidiff.errors import FormatError
from elucidiff.training import ablate

POINTS = np.random.default_rng(0).normal(0.3, 0.8, (40, 2))


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("header", [[], ["x", "y"], ["0", "1"]], ids=["none", "names", "numbers"])
def test_a_table_of_points_is_read_as_its_numbers(tmp_path, suffix, separator, header):
    rows = [separator.join(repr(float(v)) for v in row) for row in POINTS]
    data = ed.data.load(table(tmp_path / f"points{suffix}", *([separator.join(header)] if header else []), *rows))
    assert np.array_equal(data.values, POINTS.astype(np.float32)) and data.labels is None
    assert (data.name, data.shape, data.is_image) == ("points", (2,), False)


def test_a_column_of_a_table_holds_the_labels(tmp_path):
    data = ed.data.load(table(tmp_path / "a.csv", "x, Label ,y", "1,sheep,2", "3,cow,4e-1", "", "5,sheep,-6"))
    assert data.values.tolist() == [[1, 2], [3, np.float32(0.4)], [5, -6]]
    assert data.labels.tolist() == [1, 0, 1] and data.classes == ("cow", "sheep")
    data = ed.data.load(table(tmp_path / "b.csv", "class,x", "2,1.5", "0,-1"))
    assert data.labels.tolist() == [2, 0] and data.classes is None and data.label_dim == 3
    assert data.values.tolist() == [[1.5], [-1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("1.5,2x", "3,4"), "row 1: '2x' is no number"),  # no header: a sample would be lost
        ((",0,1", "0,1,2"), "column 1 has no name in the first row; an index, as pandas writes it?"),
        ((",x,y", "0,1,2"), "column 1 has no name in the first row; an index, as pandas writes it?"),
        (("x,,y", "0,1,2"), r"column 2 has no name in the first row$"),
        (("x,y", "1,2", "3"), "row 3 has 1 cells; the first has 2"),
        (("1,2", "3,4,5"), "row 2 has 3 cells; the first has 2"),
        (("x,y", "1,2", "3,four"), "row 3: 'four' is no number; labels belong into a column named label"),
        (("x,y",), "a header and no rows"),
        (("label", "1"), "only labels"),
        (("label,class,x", "1,1,1"), "'label' and 'class' could both be the label"),
        (("x,label", "1,2", "1,cow"), "'row 2' has the label '2'"),
        (("1,nan", "1,2"), "values"),
        (("1;2", "3;4"), "row 2: '3;4' is no number"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused_by_row(tmp_path, rows, message):
    with pytest.raises(FormatError, match=message) as caught:
        ed.data.load(table(tmp_path / "bad.csv", *rows))
    assert "bad.csv" in str(caught.value)


def test_a_table_trains_and_samples_by_the_same_commands(tmp_path, capsys):
    source = table(tmp_path / "points.csv", "a,b", *(f"{a},{b}" for a, b in POINTS))
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["inspect", str(source)]) == 0
    assert "shape            [2]" in capsys.readouterr().out
    assert main(["train", str(source), "--out", str(run), "--images", "256", "--set", "batch=64"]) == 0
    assert main(["sample", str(run), "--out", str(out), "--seeds", "0-4", "--steps", "2"]) == 0
    assert ed.data.load(out / "samples.npz").shape == (2,)


# In memory


class Pictures(torch.utils.data.Dataset):
    """Pictures of Pillow with their classes, as torchvision's data sets give them."""

    def __init__(self, values: np.ndarray, labels: np.ndarray | None) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int):
        picture = Image.fromarray(self.values[i])
        return picture if self.labels is None else (picture, int(self.labels[i]))


def same(a: ed.data.Dataset, b: ed.data.Dataset) -> bool:
    return a.fingerprint() == b.fingerprint()


def test_what_people_hold_data_in_becomes_a_data_set(tmp_path):
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (6, 5, 4, 3), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    images, labelled = ed.data.from_arrays(pixels), ed.data.from_arrays(pixels, labels)
    assert dataset_of(images) is images
    assert same(dataset_of(pixels), images) and same(dataset_of(torch.from_numpy(pixels)), images)
    assert same(dataset_of((pixels, torch.from_numpy(labels))), labelled)
    assert same(dataset_of(Pictures(pixels, labels)), labelled) and same(dataset_of(Pictures(pixels, None)), images)
    grey = Pictures(pixels[..., 0], labels)
    assert same(dataset_of(grey), ed.data.from_arrays(pixels[..., 0], labels))
    assert dataset_of(grey).name == "Pictures"

    x = torch.from_numpy(POINTS).float()
    points = ed.data.from_arrays(x.numpy())
    assert same(dataset_of(x.clone().requires_grad_()), points)
    assert same(dataset_of(torch.utils.data.TensorDataset(x)), points)
    halves = torch.utils.data.TensorDataset(x.bfloat16(), torch.arange(40) % 4)
    assert same(dataset_of(halves), ed.data.from_arrays(x.bfloat16().float().numpy(), np.arange(40) % 4))
    np.save(tmp_path / "x.npy", x.numpy())
    assert same(dataset_of(tmp_path / "x.npy"), points) and same(dataset_of(str(tmp_path / "x.npy")), points)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)])


class Items(torch.utils.data.Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.items[i]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: [1, 2], TypeError, "data: got list; expected an ed.data.Dataset, what ed.data.load reads, an array"),
        (lambda: torch.utils.data.DataLoader(Items(torch.zeros(2))), TypeError, "got DataLoader: give its .dataset"),
        (Stream, TypeError, "got Stream"),
        (Items, ValueError, "an empty Items"),
        (lambda: Items({"x": 1}), TypeError, "an item of Items is dict; expected a sample, or a sample and its label"),
        (lambda: Items((torch.zeros(2), 1, 2)), TypeError, "an item of Items is 3 things"),
        (lambda: Items(torch.zeros(2), torch.zeros(3)), ValueError, r"item 1 of Items has shape \(3,\), the first \(2,\)"),
        (lambda: Items(torch.zeros(2), (torch.zeros(2), 1)), ValueError, "item 1 of Items differs from the first"),
        (lambda: torch.zeros(3, 2, dtype=torch.int64), FormatError, "int64"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        dataset_of(data())


@pytest.mark.filterwarnings("ignore:.*samples for.*features")
def test_training_and_measuring_take_what_people_hold(tmp_path):
    x = torch.from_numpy(POINTS).float()
    config = ed.TrainConfig(network=ed.networks.MLP(width=8, depth=1), images=128, batch=64, snapshots=1)
    run = ed.train(config.replace(out=str(tmp_path / "run")), data=x)
    points, model = ed.data.from_arrays(x.numpy()), ed.load(run)
    assert model.info["data"]["fingerprint"] == points.fingerprint()
    first, second = (compare(model, data, {"edm": ed.EDM}, [3], num=9, repeats=1) for data in (x, points))
    assert first.points == second.points
    first, second = (ed.bits_per_dim(model, data, seed=1) for data in (x, points))
    assert first.value == second.value
    done = ablate(x, config, tmp_path / "a", configs="E", seeds=(0,), num=9, reference=POINTS)
    assert done.cells[0].scores["fd"].mean > 0
    with pytest.raises(TypeError, match="data: got int"):
        ed.train(config.replace(out=str(tmp_path / "new")), data=3)
    assert not (tmp_path / "new").exists()


# What people try first with sample()


def test_the_sampler_of_edm_is_the_usual_one():
    model = ed.load("exact:digits")
    wanted = ed.sample(model, ed.EDM, seeds=range(3), labels=1)
    assert torch.equal(ed.sample(model, seeds=range(3), labels=1).x, wanted.x)
    *_, last = ed.sample_states(model, seeds=range(3), labels=1)
    assert torch.equal(last.x, wanted.x)


def test_elements_of_the_sampler_and_a_number_of_samples_are_refused_with_what_is_meant():
    model = ed.load("exact:digits")
    for function in (ed.sample, lambda *args, **options: next(ed.sample_states(*args, **options))):
        with pytest.raises(TypeError, match=r"steps: an element of the sampler; .* ed.EDM.sampler.replace\(steps=5\)"):
            function(model, ed.EDM, seeds=range(2), steps=5)
        with pytest.raises(ValueError, match=r"seeds: got 16; expected one integer a sample, such as range\(16\)"):
            function(model, ed.EDM, seeds=16)


def test_a_number_of_samples_and_a_budget_of_evaluations(tmp_path, capsys):
    def drawn(name: str, *options: str) -> dict:
        assert main(["sample", "exact:digits", "--out", str(tmp_path / name), *options]) == 0, capsys.readouterr().err
        return json.loads((tmp_path / name / "samples.json").read_text())

    found = drawn("multistep", "--num", "3", "--nfe", "10", "--set", "solver=dpmpp_2m")
    assert found["seeds"] == [0, 1, 2] and (found["nfe"], found["sampler"]["steps"]) == (10, 10)
    found = drawn("heun", "--num", "1", "--nfe", "10")
    assert (found["nfe"], found["sampler"]["steps"]) == (9, 5)  # Heun's method makes 2 steps - 1 evaluations
    capsys.readouterr()
    argv = ["evaluate", "exact:digits", "digits", "--num", "9", "--metrics", "fd", "--json"]
    assert main([*argv, "--nfe", "6", "--set", "solver=euler"]) == 0
    assert json.loads(capsys.readouterr().out)["sampler"]["steps"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "3", "--seeds", "0-2"], "--num: --seeds says already which and how many"),
        (["--nfe", "9", "--steps", "5"], "--nfe: says how many steps; leave --steps out"),
        (["--nfe", "9", "--set", "solver=rk45"], "nfe: rk45 on edm has a cost of its own"),
        (["--nfe", "2", "--set", "solver=rk4", "to_zero=false"], "--nfe: 2 is less than rk4 needs"),
        (["--sampler", "heun"], "sampler: heun is a solver: --set solver=heun"),
        (["--set", "solver=DPM++ 2M"], "unknown solver 'DPM++ 2M'; did you mean 'dpmpp_2m'?"),
        (["--set", "solver=dpm++2m-sde"], "did you mean 'dpmpp_2m_sde'?"),
    ],
)
def test_what_does_not_say_a_sampler_is_refused_with_what_would(tmp_path, capsys, options, message):
    assert main(["sample", "exact:digits", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


# Sheets of what is no image


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def is_blue(rgb: np.ndarray) -> bool:
    return tuple(rgb) == (0x00, 0x72, 0xB2)


def test_points_are_drawn_where_they_are(tmp_path):
    y = torch.tensor([[0.0, 10.0]] * 500 + [[1.0, 30.0]] * 500)  # half each: the middle 99 % reaches from end to end
    x = torch.tensor([[0.5, 20.0], [0.0, 30.0], [1.0, 10.0]])
    write_sheet(tmp_path / "points.png", x, y)
    shown, side = pixels(tmp_path / "points.png"), 384
    at = {(0.0, 0.0), (-0.8, 0.8), (0.8, -0.8)}  # right and up, in halves of the sheet
    for right, up in at | {(-0.8, -0.8), (0.8, 0.8), (0.4, 0.4)}:
        dot = shown[round(side / 2 * (1 - up)), round(side / 2 * (1 + right))]
        assert is_blue(dot) == ((right, up) in at), (right, up)
    assert tuple(shown[round(side * 0.9), round(side * 0.1)]) == (0xC9, 0xCE, 0xD4)  # of the data alone


def test_signals_are_drawn_a_panel_each(tmp_path):
    x = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[:, None, None].expand(5, 1, 16)  # 5 constants: two rows of panels
    write_sheet(tmp_path / "signals.png", x)
    blue = (pixels(tmp_path / "signals.png") == [0x00, 0x72, 0xB2]).all(-1)
    assert blue.shape == (2 * 96, 4 * 192)
    height = [np.flatnonzero(blue[a : a + 96, b : b + 192].any(1)) for a in (0, 96) for b in range(0, 768, 192)]
    assert [len(rows) for rows in height] == [1] * 5 + [0] * 3
    assert height[0] == height[2] == height[4] < 48 < height[1] == height[3]  # up and down


@pytest.mark.parametrize("name", ["points", "signals"])
def test_samples_that_are_no_images_come_on_a_sheet(tmp_path, capsys, name):
    x = np.random.default_rng(0).normal(size=(70, 2) if name == "points" else (70, 1, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert main(["inspect", str(tmp_path / "x.npy"), "--sheet", str(tmp_path / "data.png")]) == 0
    assert pixels(tmp_path / "data.png").shape[0] == (384 if name == "points" else 16 * 96)
    argv = ["sample", f"exact:{tmp_path / 'x.npy'}", "--num", "70", "--steps", "2"]
    for out, options in {"once": [], "parts": ["--resume"]}.items():
        sheet = tmp_path / f"{out}.png"
        assert main([*argv, "--out", str(tmp_path / out), "--grid", str(sheet), *options]) == 0, capsys.readouterr().err
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "parts.png").read_bytes()
    drawn = ed.data.load(tmp_path / "once" / "samples.npz").tensor()
    write_sheet(tmp_path / "again.png", drawn if name == "points" else drawn[:64])
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "once.png").read_bytes()
