"""Latents of data: inversion against closed forms and back, spherical interpolation, editing, and their commands."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import solvers as so
from elucidiff import timesteps as ts
from elucidiff.cli.main import main
from elucidiff.denoiser import FunctionDenoiser
from elucidiff.seeds import Seeds

F64 = torch.float64
MEAN = torch.tensor([0.3, -0.5, 0.2], dtype=F64)
COV = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.2]], dtype=F64)
GAUSSIAN = ed.GaussianDenoiser(MEAN, COV)
MIXTURE = ed.GaussianMixtureDenoiser(
    torch.tensor([[-0.8, 0.3], [0.9, -0.4], [0.1, 0.8]], dtype=F64), torch.tensor([0.3, 0.2, 0.25], dtype=F64)
)
SCHEDULES = {"edm": fm.EDM(), "ve": fm.VE(), "vp": fm.VP(), "cosine": fm.Cosine(), "flow": fm.Flow()}
SCALINGS = {"none": fm.Unscaled(), "vp": fm.VariancePreserving(), "flow": fm.FlowScaling()}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X = MEAN + normal(8, 3) @ torch.linalg.cholesky(COV).T


def state_at(x, low, high):
    """Where the ODE takes x (B, 3) from level low to level high, of the Gaussian: section 7 of math.md."""
    variances, basis = torch.linalg.eigh(COV)
    gain = ((variances + high**2) / (variances + low**2)).sqrt()
    return MEAN + ((x - MEAN) @ basis * gain) @ basis.T


# --- inversion ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_latent_of_a_gaussian_is_the_exact_one(schedule, scaling):
    low, high = 0.1, 10.0
    sampler = ed.Sampler(
        SCHEDULES[schedule], SCALINGS[scaling], ts.EDM(rho=5.0), so.RK4(), steps=160, sigma_min=low, sigma_max=high,
        to_zero=False,
    )  # fmt: skip
    x = SCALINGS[scaling].s(low) * X  # without the step to 0 samples are scaled states
    latents = ed.invert(GAUSSIAN, x, sampler)
    assert (latents - state_at(X, low, high) / high).abs().max() <= 1e-6
    assert (ed.sample(GAUSSIAN, sampler, latents=latents).x - x).abs().max() <= 1e-6


# What each converges at; the midpoint method gains an order on Gaussians under sigma(t) = t.
ORDERS = {
    "euler": (so.Euler(), 1), "heun": (so.Heun(), 2), "ralston": (so.Ralston(), 2), "rk2": (so.RK2(alpha=0.6), 2),
    "midpoint": (so.Midpoint(), 3), "dpm2": (so.DPM2(), 2), "rk4": (so.RK4(), 4), "dpmpp_2m": (so.DPMpp2M(), 2),
    "dpmpp_3m": (so.DPMpp3M(corrected=True, accurate_start=True), 3), "ab": (so.AB(order=3, accurate_start=True), 3),
    "deis": (so.DEIS(order=3, accurate_start=True), 3), "unipc": (so.UniPC(order=2, accurate_start=True), 3),
    "gaussian": (so.GaussianExponential(order=3, accurate_start=True), 3), "ipndm": (so.IPNDM(order=2), 2),
}  # fmt: skip


@pytest.mark.parametrize("solver", ORDERS)
def test_latents_and_round_trips_converge_at_the_order_of_the_solver(solver):
    """The observed order of the latent's error, and of the way up and down again, from halved steps."""
    method, order = ORDERS[solver]
    low, high = 0.1, 10.0
    exact = state_at(X, low, high) / high
    latent_errors, errors = [], []
    for intervals in (64, 128, 256, 512):
        sampler = ed.Sampler(
            solver=method, steps=intervals + 1, sigma_min=low, sigma_max=high, to_zero=False, timesteps=ts.EDM(rho=3.0)
        )
        latents = ed.invert(GAUSSIAN, X, sampler)
        latent_errors.append((latents - exact).norm())
        errors.append((ed.sample(GAUSSIAN, sampler, latents=latents).x - X).norm())
    for found in (latent_errors, errors):
        ratios = -torch.stack(found).log2().diff()
        assert ratios[-1] >= order - 0.1, ratios
    assert errors[-1] <= (0.05 if order == 1 else 1e-3)
    if solver != "gaussian":
        assert -torch.stack(latent_errors).log2().diff()[-1] <= order + 0.35


def test_every_deterministic_solver_inverts():
    ours = {name: cls for name, cls in so.Solver.kinds().items() if cls.__module__.startswith("elucidiff.")}
    kinds = {name: cls for name, cls in ours.items() if not cls.draws}
    assert {"rk45", "unipc", "deis", "ab", "heun"} <= set(kinds)
    for name, cls in kinds.items():
        steps = 400 if name == "euler" else 60
        sampler = ed.Sampler(solver=cls(), steps=steps, sigma_min=0.05, sigma_max=20.0)
        latents = ed.invert(GAUSSIAN, X, sampler)
        back = ed.sample(GAUSSIAN, sampler, latents=latents).x
        assert (back - X).abs().max() <= 0.06, name
        # every solver but the lowest orders is much nearer
        assert name in ("euler", "ipndm") or (back - X).abs().max() <= 5e-3, name


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_rk45_keeps_its_tolerance_upwards(tolerance):
    sampler = ed.Sampler(
        solver=so.RK45(rtol=tolerance, atol=tolerance), steps=5, sigma_min=0.1, sigma_max=10.0, to_zero=False
    )
    error = (ed.invert(GAUSSIAN, X, sampler) - state_at(X, 0.1, 10.0) / 10).abs().max()
    assert error <= 20 * tolerance
    alone = ed.invert(GAUSSIAN, X[3:4], sampler)
    assert torch.equal(alone, ed.invert(GAUSSIAN, X, sampler)[3:4])


@pytest.mark.parametrize("design", ["EDM", "VP", "VE", "IDDPM"])
@pytest.mark.parametrize("problem", ["gaussian", "mixture", "digits"])
def test_inversion_and_back_returns_the_data_at_200_steps(design, problem):
    sampler = getattr(ed, design).sampler.replace(solver=so.Heun(), steps=200, sigma_min=None, sigma_max=None)
    if problem == "digits":
        x = ed.data.load("digits").tensor(F64)[:100]
        denoiser, x = ed.EmpiricalDenoiser(x), x[:6]
    elif problem == "gaussian":
        denoiser, x = GAUSSIAN, X
    else:
        denoiser, x = MIXTURE, MIXTURE.means[[0, 1, 2, 0]] + 0.2 * normal(4, 2)
    latents = ed.invert(denoiser, x, sampler)
    back = ed.sample(denoiser, sampler, latents=latents)
    assert (back.x - x).abs().max() <= 1e-3
    assert 0.2 <= latents.std() <= 2


def test_the_last_step_is_undone_and_not_only_ignored():
    """For a Gaussian x - D(x_k) shrinks by s^2/(v + s^2) with every iterate, of which there are four."""
    v, low = 0.25, 0.1
    denoiser = ed.GaussianDenoiser(torch.zeros(2, dtype=F64), torch.tensor(v, dtype=F64))
    sampler = ed.Sampler(solver=so.RK4(), steps=200, sigma_min=low, sigma_max=10.0)
    x = torch.tensor([[0.4, -0.7]], dtype=F64)
    shrink = low**2 / (v + low**2)
    back = ed.sample(denoiser, sampler, latents=ed.invert(denoiser, x, sampler)).x
    assert ((x - back) / x - shrink**4).abs().max() <= 1e-7  # left alone, x comes back 4 % smaller
    x_min = x * (1 - shrink**4) / (1 - shrink)
    exact = x_min * math.sqrt((v + 100) / (v + low**2)) / 10
    assert (ed.invert(denoiser, x, sampler) - exact).abs().max() <= 1e-6


def test_what_no_state_leads_to_comes_back_as_its_neighbour():
    data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)
    denoiser = ed.EmpiricalDenoiser(data)
    sampler = ed.Sampler(steps=100)
    latents = ed.invert(denoiser, torch.tensor([[-0.95, 0.02]], dtype=F64), sampler)
    assert (ed.sample(denoiser, sampler, latents=latents).x - data[:1]).abs().max() <= 1e-6


def test_inversion_does_not_depend_on_the_batch_and_carries_labels_and_conditions():
    data, classes = normal(12, 2, seed=1), torch.arange(12) % 3
    denoiser = ed.EmpiricalDenoiser(data, classes)
    sampler = ed.Sampler(steps=12)
    whole = ed.invert(denoiser, data, sampler, labels=classes)
    parts = ed.invert(denoiser, data, sampler, labels=classes, batch_size=5)
    assert (whole - parts).abs().max() <= 1e-12
    assert (whole[7:8] - ed.invert(denoiser, data[7:8], sampler, labels=[1])).abs().max() <= 1e-12
    assert (whole - ed.invert(denoiser, data, sampler, labels=(classes + 1) % 3)).abs().max() > 0.1

    centres = normal(12, 2, seed=2)

    def shifted(x, sigma, centre):
        return centre + (x - centre) / (1 + sigma**2)

    whole = ed.invert(shifted, data, sampler, centre=centres)
    assert (whole - ed.invert(shifted, data, sampler, centre=centres, batch_size=5)).abs().max() <= 1e-12
    assert (whole[3] - ed.invert(shifted, data[3:4], sampler, centre=centres[3:4])[0]).abs().max() <= 1e-12


def test_inversion_draws_nothing_and_keeps_float64():
    state = torch.random.get_rng_state()
    latents = ed.invert(GAUSSIAN, X.float(), ed.Sampler(steps=5))
    assert latents.dtype == F64 and torch.equal(torch.random.get_rng_state(), state)
    assert not latents.requires_grad


class Stepped(ed.GaussianDenoiser):
    """Knows the levels 0.25, 0.5, ... only."""

    sigma_min, sigma_max = 0.25, 8.0

    def round_sigma(self, sigma):
        return (sigma * 4).round().clamp(1, 32) / 4


def test_levels_are_those_that_the_denoiser_knows():
    visited = []

    class Watched(Stepped):
        def denoise(self, x, sigma):
            visited.append(float(sigma))
            return super().denoise(x, sigma)

    denoiser = Watched(MEAN, COV)
    sampler = ed.Sampler(steps=12, solver=so.Euler())
    latents = ed.invert(denoiser, X, sampler)
    levels = sampler.sigmas(denoiser)[:-1].flip(0).tolist()
    assert visited[4:] == levels[:-1]  # four evaluations at the lowest undo the last step
    assert ed.sample(denoiser, sampler, latents=latents).x.shape == X.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": ed.Sampler(stochasticity=so.Churn())}, "stochasticity 'churn' draws noise.*Deterministic"),
        ({"sampler": ed.Sampler(solver=so.EulerMaruyama())}, "solver 'euler_maruyama' draws noise.*Heun"),
        ({"sampler": ed.Sampler(steps=1)}, "needs 2 levels"),
        ({"x": X[:, :2]}, r"x: got shape \(8, 2\); expected samples \(B, 3\)"),
        ({"x": X[0]}, r"x: got shape \(3,\)"),
        ({"x": X[:0]}, r"x: got shape \(0, 3\)"),
        ({"x": X.log()}, "NaN or infinity"),
        ({"labels": 3}, "labels: got some for a model without classes"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_inversion_refuses(arguments, message):
    given = {"x": X, "sampler": ed.Sampler(steps=4)} | arguments
    with pytest.raises(ValueError, match=message):
        ed.invert(GAUSSIAN, given.pop("x"), given.pop("sampler"), **given)


def test_inversion_needs_the_labels_of_a_conditional_model():
    denoiser = ed.EmpiricalDenoiser(X, torch.arange(8) % 2)
    with pytest.raises(ValueError, match="labels= is needed"):
        ed.invert(denoiser, X, ed.Sampler(steps=4))
    with pytest.raises(TypeError, match="expected an ed.Sampler"):
        ed.invert(GAUSSIAN, X, "edm")


# --- interpolation ---


def test_interpolation_is_the_great_circle_with_exact_ends():
    a, b = normal(4, 1, 5, 5, seed=3), normal(4, 1, 5, 5, seed=4)
    path = ed.interpolate(a, b, 7)
    assert path.shape == (7, 4, 1, 5, 5)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    rows = [side.flatten(1) / side.flatten(1).norm(dim=1, keepdim=True) for side in (a, b)]
    angle = (rows[0] * rows[1]).sum(1).acos()
    f = torch.linspace(0, 1, 7, dtype=F64)
    expected = torch.stack(
        [
            (((1 - g) * angle).sin()[:, None] * a.flatten(1) + (g * angle).sin()[:, None] * b.flatten(1))
            / angle.sin()[:, None]
            for g in f
        ]
    )
    assert (path.flatten(2) - expected).abs().max() <= 1e-12
    assert (ed.interpolate(b, a, 7).flip(0) - path).abs().max() <= 1e-12


def test_equal_norms_stay_and_steps_are_equal_angles():
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (normal(5, 6, seed=5), normal(5, 6, seed=6)))
    path = ed.interpolate(a, b, 9)
    assert (path.norm(dim=2) - 1).abs().max() <= 1e-12
    cosines = (path[1:] * path[:-1]).sum(2)
    assert (cosines - cosines[:1]).abs().max() <= 1e-12


def test_gaussian_noise_keeps_its_norm_where_a_straight_line_loses_it():
    a, b = normal(50, 3000, seed=7), normal(50, 3000, seed=8)
    middle = ed.interpolate(a, b, 3)[1]
    assert abs(middle.square().mean().sqrt() - 1) <= 0.01
    assert abs(((a + b) / 2).square().mean().sqrt() - math.sqrt(0.5)) <= 0.01


def test_equal_and_nearly_equal_latents_give_the_straight_line():
    a = normal(3, 4, seed=9)
    for shift in (0.0, 1e-12, 1e-9, 1e-5):
        b = a + shift * normal(3, 4, seed=10)
        path = ed.interpolate(a, b, 5)
        straight = torch.stack([a + f * (b - a) for f in torch.linspace(0, 1, 5, dtype=F64)])
        assert (path - straight).abs().max() <= max(1e-14, 10 * shift**2)
    assert ed.interpolate(a.float(), a.float(), 4).dtype == torch.float32


@pytest.mark.parametrize(
    ("a", "b", "n", "message"),
    [
        (X, X, 1, "n: got 1; expected at least 2"),
        (X, X[:2], 3, r"got \(8, 3\), \(2, 3\)"),
        (X[0], X[0], 3, r"expected both \(B, \*\)"),
        (X, 0 * X, 3, "row of zeros"),
        (X, -X, 3, "opposite rows"),
    ],
)
def test_interpolation_refuses(a, b, n, message):
    with pytest.raises(ValueError, match=message):
        ed.interpolate(a, b, n)


# --- editing ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_edit_is_the_ode_from_the_noisy_data(schedule, scaling):
    """x + sigma n with the noise of the seeds, taken down by the closed form of the Gaussian."""
    sigma, low, seeds, s = 1.5, 0.05, list(range(20, 28)), SCALINGS[scaling].s(0.05)
    sampler = ed.Sampler(
        SCHEDULES[schedule], SCALINGS[scaling], ts.LogSNR(), so.RK4(), steps=300, sigma_min=low, sigma_max=20.0,
        to_zero=False,
    )  # fmt: skip
    result = ed.edit(GAUSSIAN, X, sampler, sigma, seeds=seeds)
    noisy = X + sigma * Seeds(seeds).normal((3,), torch.float32).double()
    expected = state_at(noisy, sigma, low)
    assert (result.x / s - expected).abs().max() <= 2e-6
    assert result.seeds == tuple(seeds)


def test_an_edit_visits_sigma_and_the_levels_below_and_can_be_repeated():
    sampler = ed.Sampler(steps=18)
    result = ed.edit(GAUSSIAN, X, sampler, 1.0, seeds=range(8))
    levels = sampler.sigmas()
    assert torch.equal(result.sigmas, torch.cat([torch.ones(1, dtype=F64), levels[levels < 1.0]]))
    again = ed.Sampler.from_dict(json.loads(json.dumps(result.provenance()["sampler"])))
    assert again == result.sampler
    at_a_level = ed.edit(GAUSSIAN, X, sampler, float(levels[5]), seeds=range(8))
    assert torch.equal(at_a_level.sigmas, levels[5:])


@pytest.mark.parametrize("stochasticity", [so.Deterministic(), so.Churn(S_churn=10), so.Ancestral()])
def test_editing_nothing_at_the_highest_level_is_sampling(stochasticity):
    sampler = ed.Sampler(steps=10, stochasticity=stochasticity, scaling=fm.VariancePreserving(), schedule=fm.VP())
    edited = ed.edit(GAUSSIAN, torch.zeros(4, 3, dtype=F64), sampler, 80.0, seeds=range(4)).x
    assert (edited - ed.sample(GAUSSIAN, sampler, seeds=range(4)).x).abs().max() <= 1e-12
    one = ed.edit(GAUSSIAN, X[2:3], sampler, 2.0, seeds=[7]).x
    three = ed.edit(GAUSSIAN, X[1:4], sampler, 2.0, seeds=[6, 7, 8], batch_size=2).x
    assert (one[0] - three[1]).abs().max() <= 1e-12


def test_little_noise_keeps_the_data_and_much_forgets_it():
    denoiser = ed.EmpiricalDenoiser(ed.data.load("digits").tensor(F64)[:200])
    x = ed.data.load("digits").tensor(F64)[:30]
    same = [
        (ed.edit(denoiser, x, ed.EDM, sigma, seeds=range(30)).x - x).flatten(1).norm(dim=1) < 0.1
        for sigma in (0.1, 1.0, 5.0, 60.0)
    ]
    kept = [float(s.double().mean()) for s in same]
    assert kept[0] == 1 and kept == sorted(kept, reverse=True) and kept[-1] <= 0.1


def test_a_label_edits():
    digits = ed.data.load("digits")
    threes_and_eights = digits.subset(np.flatnonzero(np.isin(digits.labels, (3, 8)))[:120])
    x, labels = threes_and_eights.batch(range(120))
    denoiser = ed.EmpiricalDenoiser(x, labels.argmax(1), 10)
    threes = x[labels.argmax(1) == 3][:10]
    result = ed.edit(denoiser, threes, ed.EDM, 0.5, seeds=range(10), labels=8)
    nearest = torch.cdist(result.x.flatten(1).double(), x.flatten(1).double()).argmin(1)
    assert (labels.argmax(1)[nearest] == 8).all()
    # and the nearest eights to begin with: the noise keeps what it does not hide
    eights = x[labels.argmax(1) == 8]
    distances = torch.cdist(threes.flatten(1), eights.flatten(1))
    chosen = (result.x.flatten(1) - threes.flatten(1)).norm(dim=1).mean()
    assert chosen <= 1.05 * distances.min(1).values.mean() <= 0.85 * distances.mean()


def test_sigma_is_rounded_to_a_level_that_the_denoiser_knows():
    denoiser = Stepped(MEAN, COV)
    sampler = ed.Sampler(steps=6)
    rounded = ed.edit(denoiser, X, sampler, 1.1, seeds=range(8))
    assert rounded.sigmas[0] == 1.0
    assert torch.equal(rounded.x, ed.edit(denoiser, X, sampler, 1.0, seeds=range(8)).x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 100.0}, "sigma: got 100.*at most 80"),
        ({"sigma": 0.0}, "sigma: got 0; expected a level above 0"),
        ({"sigma": math.nan}, "sigma: got nan"),
        ({"seeds": range(3)}, "seeds: got 3 for 8 samples"),
        ({"x": X[:, :2]}, r"expected samples \(B, 3\)"),
        ({"labels": 1}, "model without classes"),
    ],
)
def test_editing_refuses(arguments, message):
    given = {"x": X, "sigma": 1.0, "seeds": range(8)} | arguments
    with pytest.raises(ValueError, match=message):
        ed.edit(GAUSSIAN, given.pop("x"), ed.Sampler(steps=4), given.pop("sigma"), **given)


# --- commands ---


def cli(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_invert_writes_latents_that_give_the_data_back(capsys, tmp_path):
    file = tmp_path / "latents.npz"
    argv = ["invert", "exact:digits", "digits", "--num", 5, "--steps", 60, "--out", file]
    code, out, _ = cli(capsys, *argv, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["samples"] == 5 and facts["largest_difference"] <= 1e-3
    with np.load(file, allow_pickle=False) as stored:
        latents, labels = torch.from_numpy(stored["latents"]), torch.from_numpy(stored["labels"])
        sampler = ed.Sampler.from_dict(json.loads(str(stored["provenance"]))["sampler"])
    digits = ed.data.load("digits")
    back = ed.sample(ed.load("exact:digits"), sampler, latents=latents, labels=labels).x
    assert (back - digits.tensor(F64)[:5]).abs().max() <= 1e-3
    code, _, err = cli(capsys, *argv)
    assert code == 2 and "would be overwritten" in err
    code, _, err = cli(capsys, *argv[:-1], tmp_path / "latents")
    assert code == 2 and "expected the name of an .npz file" in err
    code, _, err = cli(capsys, *argv[:-1], tmp_path / "new.npz", "--set", "stochasticity=churn")
    assert code == 2 and "draws noise" in err


def test_interpolate_writes_a_sheet_whose_ends_are_the_data(capsys, tmp_path):
    out = tmp_path / "between"
    argv = ["interpolate", "exact:digits", "digits", "--pairs", "0:1, 12:3", "--frames", 4, "--steps", 40]
    code, text, _ = cli(capsys, *argv, "--out", out)
    assert code == 0 and "2 x 4 samples" in text
    digits = ed.data.load("digits")
    for frame, row in ((0, 0), (3, 1), (4, 12), (7, 3)):
        with Image.open(out / "samples" / f"{frame:06d}.png") as image:
            assert np.abs(np.array(image).astype(int) - digits.values[row, 0]).max() <= 1
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height == 2 * 96 + 4 and sheet.width > 4 * 96
    notes = json.loads((out / "samples" / "samples.json").read_text())
    assert notes["pairs"] == [[0, 1], [12, 3]] and len(notes["labels"]) == 8
    assert notes["labels"][0][0] == 1 and notes["labels"][3][1] == 1
    for pairs, message in (("0-1", "expected pairs of samples"), ("0:1797", "the data have 0 to 1796")):
        code, _, err = cli(capsys, *argv[:4], pairs, "--out", tmp_path / "x")
        assert code == 2 and message in err
        assert not (tmp_path / "x").exists()


def test_edit_writes_before_and_after(capsys, tmp_path):
    out = tmp_path / "edited"
    argv = ["edit", "exact:digits", "digits", "--sigma", "0.1,2", "--labels", "8", "--num", 3, "--out", out]
    code, text, _ = cli(capsys, *argv, "--json")
    facts = json.loads(text)
    assert code == 0 and facts["sigma"] == [0.1, 2.0] and facts["nfe"]["sigma-0.1"] < facts["nfe"]["sigma-2"]
    eights = ed.data.load("digits")
    eights = eights.values[eights.labels == 8].astype(int)
    for seed in range(3):
        with Image.open(out / "sigma-2" / f"{seed:06d}.png") as image:
            distance = np.abs(np.array(image).astype(int) - eights[:, 0]).max((1, 2)).min()
        assert distance <= 2
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height == 3 * 96 + 2 * 4
    assert cli(capsys, *argv)[0] == 2
    for sigma, message in (("a", "expected numbers"), ("1,1.0", "names a level twice"), ("90", "at most 80")):
        code, _, err = cli(capsys, *argv[:4], sigma, "--out", tmp_path / "x")
        assert code == 2 and message in err
    signals = tmp_path / "signals.npy"
    np.save(signals, normal(20, 5).float().numpy())
    code, _, _ = cli(capsys, "edit", f"exact:{signals}", signals, "--num", 2, "--out", tmp_path / "signals")
    assert code == 0 and not (tmp_path / "signals" / "sheet.png").exists()
    with np.load(tmp_path / "signals" / "sigma-1" / "samples.npz") as stored:
        assert stored["samples"].shape == (2, 5)


@pytest.mark.slow
def test_a_trained_model_inverts_and_gives_back(digits_run):
    denoiser = ed.load(digits_run)
    trained_on, heldout = ed.data.load("digits").split(0.5)
    sampler = ed.Sampler(steps=200)
    for data in (trained_on, heldout):
        x, labels = data.batch(range(0, 200, 10))
        latents = ed.invert(denoiser, x, sampler, labels=labels)
        back = ed.sample(denoiser, sampler, latents=latents, labels=labels).x
        assert (back - x).abs().max() <= 1e-3
        assert 0.5 <= latents.std() <= 1.5  # noise, within what 20 images and a model of this size allow


def test_a_plain_function_serves_too():
    function = FunctionDenoiser(lambda x, sigma: x / (1 + sigma**2))
    sampler = ed.Sampler(solver=so.RK4(), steps=80)
    x = normal(3, 4, seed=12)
    latents = ed.invert(function, x, sampler)
    assert (ed.sample(function, sampler, latents=latents).x - x).abs().max() <= 1e-4
