"""More scores: the direct definitions, closed forms of Gaussians, honest error bars, reference files."""

import itertools
import json
import math
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import elucidiff as ed
from elucidiff import data, metrics
from elucidiff.analysis import compare, reference_and_real, score_samples
from elucidiff.analysis.scores import ALL_METRICS, METRICS, expanded
from elucidiff.cli.compare_show import LABELS
from elucidiff.cli.main import app
from elucidiff.errors import FormatError
from elucidiff.metrics import Statistics, distances, frechet_distance, sliced
from test_metrics import expectation, normal

# --- Frechet distance: merging, few samples, truth -----------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(60, 7), (9, 30)])
@pytest.mark.filterwarnings("ignore::elucidiff.metrics.SmallSampleWarning")
def test_any_tree_of_merges_gives_the_same_statistics(n, d):
    x, reference = 30 + normal(n, d) @ normal(d, d, seed=1), Statistics.of(30 + normal(200, d, seed=2))
    whole = Statistics.of(x)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.choice(np.arange(1, n), size=min(6, n - 1), replace=False))
        parts = [Statistics.of(part) for part in x[torch.from_numpy(rng.permutation(n))].tensor_split(cuts.tolist())]
        parts.insert(0, Statistics.empty(d))
        while len(parts) > 1:
            i, j = rng.choice(len(parts), size=2, replace=False)
            merged = parts[i].merge(parts[j])
            parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [merged]
        assert torch.allclose(parts[0].scatter, whole.scatter, rtol=1e-10, atol=1e-9)
        assert frechet_distance(parts[0], reference) == pytest.approx(frechet_distance(whole, reference), rel=1e-9)


@pytest.mark.filterwarnings("ignore::elucidiff.metrics.SmallSampleWarning")
@pytest.mark.parametrize(("n", "m", "d"), [(12, 20, 60), (8, 300, 50), (400, 500, 9)])
def test_the_trace_term_is_the_nuclear_norm_of_the_features_themselves(n, m, d):
    """With A, B the centred features over sqrt(n - 1), sqrt(m - 1): tr (C_a^1/2 C_b C_a^1/2)^1/2 = |A B^T|_*, no eigh."""
    x, y = 2 * normal(n, d), 1 + normal(m, d, seed=1)
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    nuclear = torch.linalg.matrix_norm(a @ b.mT, "nuc")
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * nuclear
    assert frechet_distance(Statistics.of(x), Statistics.of(y)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("kind", ["decades", "jump", "dead", "copies"])
@pytest.mark.parametrize("n, m", [(20, 22), (50, 50), (400, 400), (400, 20), (41, 42)])
def test_frechet_is_exact_however_the_covariances_are_conditioned(n, m, kind):
    """d = 40, against the singular values of X_a X_b^T, which need no covariance; every way of computing it is used."""
    d = 40
    for decades in (2, 4, 6):
        s = torch.logspace(0, -decades, d, dtype=torch.float64)
        if kind == "jump":
            s = torch.cat([torch.ones(20), torch.full((20,), 10.0**-decades)]).double()
        if kind == "dead":
            s[10:15] = 0
        turn = torch.eye(d) if kind == "dead" else torch.linalg.qr(normal(d, d, seed=3)).Q
        x, y = (normal(k, d, seed=seed).double() * s @ turn.double() for k, seed in ((n, 0), (m, 1)))
        y = torch.cat([y[: m // 2], y[: m - m // 2]]) if kind == "copies" else y
        a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
        trace = float(torch.linalg.svdvals(a @ b.mT).sum())
        expected = float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()) - 2 * trace
        one, other = Statistics.of(x), Statistics.of(y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-10 * trace), decades
            assert frechet_distance(one, one) < 1e-10 * float(a.square().sum())


def test_frechet_equals_a_matrix_square_root_where_scipy_is_installed():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = Statistics.of(normal(300, 20)), Statistics.of(1 + normal(300, 20, seed=1) @ normal(20, 20, seed=2))
    root = linalg.sqrtm((a.covariance @ b.covariance).numpy())
    shift = float((a.mean - b.mean).square().sum())
    expected = shift + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_gaussian_samples_is_the_closed_form():
    """d = 3, n = 20,000, diagonal covariances: the bias, of the order d^2/n, is far below the spread."""
    shift, scale = torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    values = [
        frechet_distance(
            Statistics.of(normal(20000, 3, seed=2 * k)), Statistics.of(shift + scale * normal(20000, 3, seed=2 * k + 1))
        )
        for k in range(12)
    ]
    assert abs(np.mean(values) - expected) < 3 * np.std(values, ddof=1)
    assert np.std(values, ddof=1) < 0.05 * expected


def test_statistics_of_moments():
    s = Statistics.of(normal(50, 4))
    again = Statistics.from_moments(s.mean, s.covariance, 50)
    assert torch.allclose(again.scatter, s.scatter, rtol=1e-13) and again.n == 50
    eye = torch.eye(3)
    for mean, covariance, n, message in [
        (torch.zeros(2), eye, 9, "expected"),
        (torch.zeros(3), eye, 1, "at least 2"),
        (torch.full((3,), math.nan), eye, 9, "NaN"),
        (torch.zeros(3), eye + torch.ones(3, 3).triu(1), 9, "symmetric"),
        (torch.zeros(3), -eye, 9, "symmetric"),
    ]:
        with pytest.raises(ValueError, match=message):
            Statistics.from_moments(mean, covariance, n)


# --- reference files -----------------------------------------------------------------------------------


def test_reference_statistics_come_back_to_the_bit(tmp_path):
    digits = metrics.DigitFeatures()
    statistics = Statistics.of(normal(90, 40))
    metrics.save_reference(tmp_path / "a.npz", statistics, digits)
    found = metrics.load_reference(tmp_path / "a.npz")
    assert (found.n, found.extractor) == (90, "digits")
    assert torch.allclose(found.statistics.covariance, statistics.covariance, rtol=1e-15)
    assert torch.equal(found.statistics.mean, statistics.mean)
    found.check(digits)
    with pytest.raises(ValueError, match=r"of features digits .* of pyramid"):
        found.check(metrics.Pyramid())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
        assert np.allclose(arrays["sigma"], statistics.covariance, rtol=1e-15)
    with pytest.raises(FileExistsError):
        metrics.save_reference(tmp_path / "a.npz", statistics, digits)
    with pytest.raises(ValueError, match=r"\.npz"):
        metrics.save_reference(tmp_path / "a.pkl", statistics, digits)
    with pytest.raises(ValueError, match="key"):
        metrics.load_reference(tmp_path / "a.npz", "fid")


def published(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def test_published_statistics_are_read(tmp_path):
    x, y = normal(300, 5), 1 + normal(200, 5, seed=1)
    moments = {"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy().T)}
    np.savez(tmp_path / "fid.npz", **moments)
    both = {"fid": moments, "fd_dinov2": {"mu": np.zeros(3), "sigma": np.eye(3)}}
    files = [
        (tmp_path / "fid.npz", None),
        (published(tmp_path / "plain.pkl", moments), None),
        (published(tmp_path / "one.pkl", {"fid": moments}), None),
        (published(tmp_path / "both.pkl", both), "fid"),
    ]
    expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    for path, key in files:
        found = metrics.load_reference(path, key)
        assert (found.n, found.extractor, found.sha256) == (None, None, None)
        assert frechet_distance(found.statistics, Statistics.of(y)) == pytest.approx(expected, rel=1e-9)
        found.check(metrics.Identity())  # nothing is known against it
    with pytest.raises(ValueError, match="fid, fd_dinov2: choose one"):
        metrics.load_reference(tmp_path / "both.pkl")
    with pytest.raises(ValueError, match="choose one"):
        metrics.load_reference(tmp_path / "both.pkl", "kid")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_what_are_no_reference_statistics_is_refused(tmp_path, capsys):
    good = {"mu": np.zeros(3), "sigma": np.eye(3)}
    cases = {
        "evil.pkl": pickle.dumps({"mu": Evil(), "sigma": np.eye(3)}),
        "list.pkl": pickle.dumps([1, 2]),
        "no.pkl": pickle.dumps({"mean": np.zeros(3)}),
        "text.pkl": pickle.dumps({"mu": "zero", "sigma": np.eye(3)}),
        "noise.npz": b"PK\x03\x04" + bytes(range(200)),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    bad = {
        "shape.npz": good | {"mu": np.zeros(4)},
        "nan.npz": good | {"mu": np.full(3, np.nan)},
        "skew.npz": good | {"sigma": np.triu(np.ones((3, 3)))},
        "n.npz": good | {"n": np.int64(-1)},
        "absent.npz": {"mu": np.zeros(3)},
    }
    for name, arrays in bad.items():
        np.savez(tmp_path / name, **arrays)
    huge = np.zeros(0)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:  # declares a terabyte
        header = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
        archive.writestr("mu.npy", header.ljust(79) + b"\n" + huge.tobytes())
        archive.writestr("sigma.npy", header.ljust(79) + b"\n" + huge.tobytes())
    np.savez(tmp_path / "object.npz", mu=np.array([None], dtype=object), sigma=np.eye(3))
    for name in [*cases, *bad, "lie.npz", "object.npz"]:
        with pytest.raises(FormatError, match=name):
            metrics.load_reference(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        metrics.load_reference(tmp_path / "missing.npz")


# --- precision, recall, density, coverage ----------------------------------------------------------------


def by_definition(y, x, k_pr, k_dc):
    """All four from lists of distances, one at a time."""

    def radii(z, k):
        return [sorted(math.dist(a, b) for j, b in enumerate(z) if j != i)[k - 1] for i, a in enumerate(z)]

    def share(z, centres, r):
        return sum(any(math.dist(a, c) <= q for c, q in zip(centres, r, strict=True)) for a in z) / len(z)

    x, y = x.tolist(), y.tolist()
    near = [[math.dist(a, c) <= q for a in y] for c, q in zip(x, radii(x, k_dc), strict=True)]
    density = sum(map(sum, near)) / (k_dc * len(y))
    coverage = sum(map(any, near)) / len(x)
    return share(y, x, radii(x, k_pr)), share(x, y, radii(y, k_pr)), density, coverage


@pytest.mark.parametrize("grid", [False, True], ids=["continuous", "on a grid"])
def test_precision_recall_density_coverage_equal_the_definitions(monkeypatch, grid):
    monkeypatch.setattr(distances, "BLOCK", 200)  # several blocks, the last one shorter
    x, y = 3 * normal(61, 2), 1 + 3 * normal(47, 2, seed=1)
    if grid:  # many equal distances and copies: 100 away, so that rounding of products would show
        x, y = 100 + x.round(), 100 + y.round()
    expected = by_definition(y, x, 3, 5)
    got = (*metrics.precision_recall(y, x), *metrics.density_coverage(y, x))
    assert got == pytest.approx(expected, abs=1e-12)
    assert min(expected) > 0 and max(expected[:2]) < 1


def test_coverage_of_real_data_is_the_combinatorial_value():
    """The chance that the k nearest of 2m - 1 others are all of the own set; and density 1 on average."""
    m, k = 40, 5
    found = [metrics.density_coverage(normal(m, 3, seed=2 * s), normal(m, 3, seed=2 * s + 1)) for s in range(200)]
    expected = 1 - math.prod((m - 1 - j) / (2 * m - 1 - j) for j in range(k))
    for values, truth in zip(np.array(found).T, (m / (m - 1), expected), strict=True):
        assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / math.sqrt(len(values))


# --- class score -----------------------------------------------------------------------------------------


def test_class_score_of_known_probabilities():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
    marginal = [0.4, 0.4, 0.2]
    kl = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in p.tolist()]
    got = metrics.class_score(p.log() + 5, splits=1)
    assert got == (pytest.approx(math.exp(sum(kl) / 2), rel=1e-12), None)
    sure = 1000 * torch.eye(5).repeat(40, 1)
    assert metrics.class_score(sure, splits=1).value == pytest.approx(5, rel=1e-12)
    assert metrics.class_score(torch.zeros(50, 5), splits=5) == (pytest.approx(1, abs=1e-12), pytest.approx(0))
    ordered = 1000 * torch.eye(5).repeat_interleave(100, 0)  # by class, as data sets come: splits must be mixed
    assert metrics.class_score(ordered, splits=5).value > 4.9


def test_class_score_error_is_the_spread_over_splits():
    logits = normal(200, 4)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    p = logits[order].softmax(1).reshape(10, 20, 4)
    values = (p * (p / p.mean(1, keepdim=True)).log()).sum(2).mean(1).exp().numpy()
    got = metrics.class_score(logits, splits=10, seed=3)
    assert got.value == pytest.approx(values.mean(), rel=1e-12)
    assert got.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(10), rel=1e-10)


# --- energy distance and MMD -------------------------------------------------------------------------------


def u_statistic(x, y, k):
    x, y = x.tolist(), y.tolist()
    xx = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    yy = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    return xx + yy - 2 * np.mean([k(a, b) for a in x for b in y])


def test_energy_and_mmd_equal_the_definitions(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 20)
    x, y = 50 + normal(11, 3), 51 + normal(7, 3, seed=1)
    assert metrics.energy_distance(x, y).value == pytest.approx(u_statistic(x, y, lambda a, b: -math.dist(a, b)))
    expected = u_statistic(x, y, lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * 1.5**2)))
    assert metrics.mmd(x, y, bandwidth=1.5).value == pytest.approx(expected, rel=1e-9)
    median = sorted(math.dist(a, b) for a, b in itertools.combinations(y.tolist(), 2))[10]  # the lower of 21: no mean
    assert metrics.median_distance(y) == pytest.approx(median, rel=1e-12)
    assert metrics.mmd(x, y) == metrics.mmd(x, y, bandwidth=metrics.median_distance(y))


def mean_length(delta, s, d):
    """E |Z| of Z ~ N(mu, s^2 I) with |mu| = delta, in one and three dimensions (folded normal; Maxwell, shifted)."""
    bell = s * math.sqrt(2 / math.pi) * math.exp(-(delta**2) / (2 * s**2))
    if d == 1:
        return bell + delta * math.erf(delta / (s * math.sqrt(2)))
    return bell + ((delta + s**2 / delta) * math.erf(delta / (s * math.sqrt(2))) if delta else bell)


def check_estimates(found, truth, repeats):
    """Unbiased within 3 standard errors, and the reported error is the spread; for equal distributions a little more."""
    values, errors = np.array(found).T
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / math.sqrt(repeats)
    assert 0.75 < math.sqrt((errors**2).mean()) / values.std(ddof=1) < (1.33 if truth else 1.65)
    assert 0.75 < np.median(errors) / values.std(ddof=1) < 1.33


@pytest.mark.parametrize(("delta", "s", "d"), [(0.0, 1.0, 1), (1.0, 1.5, 1), (0.0, 1.0, 3), (0.7, 0.6, 3)])
def test_energy_distance_of_gaussians_is_the_closed_form(delta, s, d):
    direction = torch.full((d,), delta / math.sqrt(d))
    truth = 2 * mean_length(delta, math.sqrt(1 + s**2), d) - mean_length(0, math.sqrt(2), d)
    truth -= mean_length(0, s * math.sqrt(2), d)
    found = [
        metrics.energy_distance(normal(60, d, seed=2 * k), direction + s * normal(45, d, seed=2 * k + 1))
        for k in range(150)
    ]
    check_estimates(found, truth, 150)


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_mmd_of_gaussians_is_the_closed_form(shift):
    """E k = prod_i (w^2 / (w^2 + v_i))^1/2 exp(-m_i^2 / (2 (w^2 + v_i))) for a difference with means m, variances v."""
    w, scale = 1.3, torch.tensor([1.0, 2.0]) if shift else torch.ones(2)

    def mean_kernel(means, variances):
        return math.prod(
            math.sqrt(w**2 / (w**2 + v)) * math.exp(-(m**2) / (2 * (w**2 + v)))
            for m, v in zip(means, variances, strict=True)
        )

    a, b = [1.0, 1.0], scale.square().tolist()
    truth = mean_kernel([0, 0], [2 * v for v in a]) + mean_kernel([0, 0], [2 * v for v in b])
    truth -= 2 * mean_kernel([shift, 0], [p + q for p, q in zip(a, b, strict=True)])
    mean = torch.tensor([shift, 0.0])
    found = [
        metrics.mmd(normal(50, 2, seed=2 * k), mean + scale * normal(70, 2, seed=2 * k + 1), bandwidth=w)
        for k in range(150)
    ]
    check_estimates(found, truth, 150)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_error_bar_of_the_kernel_distance_covers(shift):
    """95 of 100 intervals of 1.96 standard errors should hold the expectation, which is known for Gaussians."""
    truth = expectation(shift, shift) + expectation(0, 0) - 2 * expectation(0, shift)
    covered = 0
    for k in range(100):
        x, y = normal(80, 4, seed=1000 + 2 * k), shift + normal(80, 4, seed=1001 + 2 * k)
        got = metrics.kernel_distance(x, y, subsets=40, seed=k)
        covered += abs(got.value - truth) < 1.96 * got.standard_error
    assert 88 <= covered <= (99 if shift else 100)


# --- sliced Wasserstein ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_in_one_dimension_is_the_distance_of_the_sorted_samples(p):
    x, y = normal(6, 1), 2 * normal(4, 1, seed=1)
    a, b = (z.repeat_interleave(12 // len(z), 0).flatten().sort().values for z in (x, y))
    expected = float((a - b).abs().pow(p).mean())
    assert metrics.sliced_wasserstein(x, y, p=p).value == pytest.approx(expected, rel=1e-12)


def test_sliced_of_gaussians_is_the_closed_form():
    """SW2^2 = mean over u of (u.m)^2 + (sqrt(u A u) - sqrt(u B u))^2; in two dimensions by quadrature over the angle."""
    mean, scale = torch.tensor([1.0, -0.5]), torch.tensor([2.0, 0.5])
    angle = (np.arange(2000) + 0.5) / 2000 * math.pi
    u = np.stack([np.cos(angle), np.sin(angle)], 1)
    stds = np.sqrt((u**2) @ scale.square().double().numpy())
    truth = float(np.mean((u @ mean.double().numpy()) ** 2 + (stds - 1) ** 2))
    found = [
        metrics.sliced_wasserstein(
            normal(4000, 2, seed=2 * k), mean + scale * normal(3000, 2, seed=2 * k + 1), projections=100, seed=k
        )
        for k in range(20)
    ]
    values, errors = np.array(found).T
    assert (np.abs(values - truth) < 3 * errors).all()
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / math.sqrt(20) + 2 * math.log(math.log(3000)) / 3000
    assert 0.6 < errors.mean() / values.std(ddof=1) < 1.7


def test_sliced_of_a_set_and_itself_is_zero_and_directions_are_seeded():
    x, y = normal(50, 3), normal(40, 3, seed=1)
    assert metrics.sliced_wasserstein(x, x.flip(0)).value < 1e-25
    assert metrics.sliced_wasserstein(x, y, seed=1) == metrics.sliced_wasserstein(x, y, seed=1)
    assert metrics.sliced_wasserstein(x, y, seed=1) != metrics.sliced_wasserstein(x, y, seed=2)


def test_the_pyramid_adds_up_and_its_bands_are_details():
    image = normal(2, 3, 64, 41)
    bands = list(sliced._pyramid(image))
    assert [tuple(b.shape[2:]) for b in bands] == [(64, 41), (32, 21)]
    between = torch.zeros_like(image)
    between[..., ::2, ::2] = 4 * bands[1]
    assert torch.allclose(bands[0] + sliced._smoothed(between), image, atol=1e-12)
    flat = list(sliced._pyramid(torch.full((1, 1, 64, 64), 0.7, dtype=torch.float64)))
    assert [b.shape[2] for b in flat] == [64, 32, 16]
    assert max(float(b.abs().max()) for b in flat[:-1]) < 1e-12 and float((flat[-1] - 0.7).abs().max()) < 1e-12


def test_patch_distance_of_images():
    x = normal(30, 1, 8, 8)
    assert metrics.patch_distance(x, x.flip(0)).value < 1e-12  # 8x8 have four places: all of them are taken
    assert metrics.patch_distance(x, 3 * x.flip(0) + 1).value < 1e-12  # brightness and contrast do not count
    a, b = normal(20, 2, 7, 7), normal(25, 2, 7, 7, seed=1).cumsum(2)  # one place: the images are the patches
    p, q = (((z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), correction=0, keepdim=True)) for z in (a, b))
    expected = metrics.sliced_wasserstein(p.flatten(1), q.flatten(1), p=1, projections=50, seed=4).value
    assert metrics.patch_distance(a, b, projections=50, seed=4).value == pytest.approx(expected, rel=1e-9)
    y = normal(40, 3, 33, 32, seed=1)
    got = metrics.patch_distance(y, normal(20, 3, 33, 32, seed=2), projections=64)
    assert list(got.levels) == [32, 16] and got.value == pytest.approx(sum(got.levels.values()) / 2)
    assert metrics.patch_distance(y, y.cumsum(3), projections=64).value > 2.5 * got.value


# --- memorisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [4, 3])
def test_memorisation_is_exact_over_all_divisions(m):
    """Standard error and p-value against all divisions of 8 data into 3 and 5, or halves."""
    x, t, r = normal(30, 2), normal(m, 2, seed=1), normal(8 - m, 2, seed=2)
    pool = torch.cat([t, r])
    nearest = torch.cdist(x, pool).argmin(1).tolist()
    shares = [np.mean([j in half for j in nearest]) for half in itertools.combinations(range(8), m)]
    got = metrics.memorisation(x, t, r)
    assert got.share == pytest.approx(np.mean([j < m for j in nearest]), abs=1e-12)
    assert got.standard_error == pytest.approx(np.std(shares), rel=1e-9)
    assert got.p_value == pytest.approx(np.mean(np.array(shares) >= got.share - 1e-9), abs=0.03)
    assert got.expected == pytest.approx(np.mean(shares)) == m / 8


def test_memorisation_of_copies_and_of_strangers():
    t, r, fresh = normal(100, 1, 4, 4), normal(150, 1, 4, 4, seed=1), normal(80, 1, 4, 4, seed=2)
    copies = metrics.memorisation(t[:60] + 0.01 * fresh[:60], t, r)
    assert copies.share == 1 and copies.p_value == 1 / 2000
    assert copies.excess == 1 and copies.expected == 0.4
    half = metrics.memorisation(torch.cat([t[:60], fresh[:60]]), t, r)
    assert abs(half.excess - 0.5) < 3 * half.excess_error  # half of the samples are copies
    assert metrics.memorisation(r, t, r).share == 0
    both = metrics.memorisation(t[:20], t, t)  # a copy on each side: shared evenly
    assert both.share == pytest.approx(0.5, abs=1e-12)
    assert abs((found := metrics.memorisation(fresh, t, r)).share - 0.4) < 3 * found.standard_error


def test_p_values_without_memory_are_uniform_and_the_error_is_the_spread():
    """20 data a side and 400 samples: neighbours are shared, and sqrt(1/4n) is less than half the truth on average."""
    found = [
        metrics.memorisation(normal(400, 2, seed=3 * k), normal(20, 2, seed=3 * k + 1), normal(20, 2, seed=3 * k + 2))
        for k in range(100)
    ]
    share, _, error, p = np.array(found).T
    z = (share - 0.5) / error
    assert abs(z.mean()) < 0.3 and 0.8 < z.std() < 1.2
    assert error.mean() > 2 * math.sqrt(0.25 / 400)
    assert abs(p.mean() - 0.5) < 0.1 and (p < 0.05).sum() <= 11


# --- errors, names, command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.precision_recall(torch.zeros(9, 2), torch.zeros(9, 3)), "shapes"),
        (lambda: metrics.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2)), "at least 4"),
        (lambda: metrics.density_coverage(torch.zeros(9, 2), torch.zeros(9, 2), k=0), "k: got 0"),
        (lambda: metrics.density_coverage(torch.full((9, 2), math.nan), torch.zeros(9, 2)), "NaN"),
        (lambda: metrics.class_score(torch.zeros(9, 1)), "logits"),
        (lambda: metrics.class_score(torch.zeros(9, 3), splits=5), "expected 1 to 4"),
        (lambda: metrics.energy_distance(torch.zeros(3, 2), torch.zeros(9, 2)), "at least 4"),
        (lambda: metrics.mmd(torch.zeros(9, 2), torch.zeros(9, 2)), "bandwidth: got 0"),
        (lambda: metrics.mmd(torch.zeros(9, 2), torch.zeros(9, 2), bandwidth=-1.0), "bandwidth"),
        (lambda: metrics.sliced_wasserstein(torch.zeros(9), torch.zeros(9)), "shapes"),
        (lambda: metrics.sliced_wasserstein(torch.zeros(9, 2), torch.zeros(9, 2), p=3), "p: got 3"),
        (lambda: metrics.sliced_wasserstein(torch.zeros(9, 2), torch.zeros(9, 2), projections=1), "projections"),
        (lambda: metrics.patch_distance(torch.zeros(9, 1, 6, 8), torch.zeros(9, 1, 6, 8)), "7x7"),
        (lambda: metrics.patch_distance(torch.zeros(9, 1, 8, 8), torch.zeros(9, 3, 8, 8)), "shapes"),
        (lambda: metrics.patch_distance(torch.full((9, 1, 8, 8), math.nan), torch.zeros(9, 1, 8, 8)), "NaN"),
        (lambda: metrics.memorisation(torch.zeros(9, 2), torch.zeros(9, 3), torch.zeros(9, 2)), "one shape"),
        (lambda: metrics.memorisation(torch.zeros(9, 2), torch.zeros(1, 2), torch.zeros(9, 2)), "at least 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_of_metrics():
    assert METRICS == ("fd", "kd", "agreement")
    assert expanded(["prdc", "fd", "recall"]) == ("precision", "recall", "density", "coverage", "fd")
    assert set(LABELS) == set(ALL_METRICS)
    with pytest.raises(ValueError, match="unknown metric 'energie'; did you mean 'energy'"):
        expanded(["energie"])


def test_points_have_every_score_that_needs_no_classes():
    points = data.from_arrays((3 * normal(400, 2)).float().numpy())
    reference, real = reference_and_real(points)
    found = score_samples(real.tensor()[:100], reference, real, metrics=ALL_METRICS)
    assert [s.metric for s in found] == [m for m in ALL_METRICS if m not in ("agreement", "is")]
    assert all(s.real is not None and math.isfinite(s.value) for s in found)
    by_name = {s.metric: s for s in found}
    assert by_name["nearest"].value == 1 and abs(by_name["nearest"].real) < 0.3
    assert by_name["swd"].features == "numbers" and by_name["energy"].features == "identity"
    direct = metrics.energy_distance(real.tensor()[:100].double(), reference.tensor().double())
    assert (by_name["energy"].value, by_name["energy"].error) == direct


def test_evaluate_and_compare_know_the_names(tmp_path):
    base = ["evaluate", "exact:digits", "digits", "--num", "24", "--steps", "2", "--json"]
    result = CliRunner().invoke(app, [*base, "--metrics", "prdc,is,swd,energy,mmd,nearest"])
    assert result.exit_code == 0, result.output
    found = {s["metric"]: s for s in json.loads(result.stdout)["scores"]}
    assert list(found) == ["is", "precision", "recall", "density", "coverage", "swd", "energy", "mmd", "nearest"]
    assert all(s["real"] is not None and s["n"] == 24 for s in found.values())
    points = data.from_arrays((3 * normal(200, 2)).float().numpy())
    model = ed.GaussianDenoiser(torch.zeros(2), torch.eye(2))
    table = compare(model, points, {"heun": ed.EDM.sampler}, [5, 9], num=20, repeats=2, metrics=["prdc", "nearest"])
    assert list(table.real) == ["precision", "recall", "density", "coverage", "nearest"]
    best, worst = (f(p.scores["recall"].mean for p in table.points) for f in (max, min))
    assert table.best("recall", 9) is not None and best >= worst  # higher is better
    with pytest.raises(ValueError, match="cannot be measured"):
        compare(model, points, {"heun": ed.EDM.sampler}, [5], num=20, repeats=1, metrics=["is"])


def test_agreement_with_torchmetrics_where_it_is_installed():
    pytest.importorskip("torchmetrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fid = pytest.importorskip("torchmetrics.image.fid")
        kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(200, 10), 0.5 + normal(150, 10, seed=1)
    a, b = Statistics.of(x), Statistics.of(y)
    theirs = float(fid._compute_fid(a.mean, a.covariance, b.mean, b.covariance))
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)
    from elucidiff.metrics import kernel

    assert float(kernel._moments(x[:100], y[:100])[0]) == pytest.approx(float(kid.poly_mmd(x[:100], y[:100])), rel=1e-4)
