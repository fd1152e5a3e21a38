"""Scores: closed forms, invariances, the shipped classifier's accuracy, and rankings on real images."""

import json
import math
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from elucidiff import data, metrics
from elucidiff.errors import FormatError
from elucidiff.files import sha256
from elucidiff.metrics import Statistics, digit_classifier, frechet_distance, kernel_distance

SHARED = Path(__file__).parents[2] / "shared" / "data"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, covariance):
    """Statistics of an exact Gaussian, as if of a million samples."""
    n = 10**6
    return Statistics(n, mean, covariance * (n - 1))


# --- Fréchet distance (N11) -------------------------------------------------------------------------


def test_statistics_equal_numpy():
    features = 100 + 3 * normal(500, 7)
    statistics = Statistics.of(features.float())
    reference = features.float().double().numpy()
    assert statistics.n == 500
    assert np.allclose(statistics.mean, reference.mean(0), rtol=1e-13)
    assert np.allclose(statistics.covariance, np.cov(reference.T), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 60, [59, 1], [13, 20, 27], [30, 30]])
def test_any_split_gives_the_same_distance(sizes):
    x, y = 50 + normal(60, 5), 51 + normal(80, 5, seed=1)
    streamed = Statistics.empty(5)
    for part in x.split(sizes):
        streamed = streamed.update(part)
    merged = Statistics.empty(5)
    for part in reversed(x.split(sizes)):
        merged = Statistics.of(part).merge(merged)
    whole = frechet_distance(Statistics.of(x), Statistics.of(y))
    for other in (streamed, merged):
        assert frechet_distance(other, Statistics.of(y)) == pytest.approx(whole, rel=1e-9)
        assert torch.allclose(other.covariance, Statistics.of(x).covariance, rtol=1e-12, atol=1e-13)


def test_frechet_closed_form_for_commuting_covariances():
    q, _ = torch.linalg.qr(normal(20, 20))
    a, b = normal(20, seed=1).exp(), normal(20, seed=2).exp()
    shift = normal(20, seed=3)
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    got = frechet_distance(gaussian(shift, q @ a.diag() @ q.T), gaussian(0 * shift, q @ b.diag() @ q.T))
    assert got == pytest.approx(float(expected), rel=1e-9)


def test_frechet_closed_form_in_two_dimensions():
    """For 2x2, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), with M similar to C_a C_b."""
    r, s = normal(2, 2, seed=1), normal(2, 2, seed=2)
    a, b, zero = r @ r.T, s @ s.T, torch.zeros(2, dtype=torch.float64)
    product = a @ b
    root_trace = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = float(a.trace() + b.trace()) - 2 * root_trace
    assert frechet_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore::elucidiff.metrics.SmallSampleWarning")
@pytest.mark.parametrize(("n", "d"), [(400, 8), (300, 64), (40, 64), (2, 64)])
def test_frechet_of_a_set_and_itself_is_zero_also_when_rank_deficient(n, d):
    x = 10 * normal(n, d) @ normal(d, d, seed=1)
    scale = float(Statistics.of(x).covariance.trace())
    assert 0 <= frechet_distance(Statistics.of(x), Statistics.of(x.flip(0))) <= 1e-9 * max(1, scale / 1e3)
    y = normal(n, d, seed=2)
    assert 0 <= frechet_distance(Statistics.of(y), Statistics.of(y)) <= 1e-9


@pytest.mark.filterwarnings("ignore::elucidiff.metrics.SmallSampleWarning")
@pytest.mark.parametrize("n", [20, 200])
def test_frechet_is_symmetric(n):
    a, b = Statistics.of(normal(n, 30)), Statistics.of(1 + 2 * normal(150, 30, seed=1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_frechet_warns_with_the_size_of_the_bias():
    x, y = normal(40, 50), normal(5000, 50, seed=1)
    with pytest.warns(
        metrics.SmallSampleWarning, match=r"40 against 5,000 samples in 50 dim.*about (\d+\.\d+) apart"
    ) as caught:
        measured = frechet_distance(Statistics.of(x), Statistics.of(y))
    predicted = float(str(caught[0].message).split("about ")[1].split(" apart")[0])
    assert predicted == pytest.approx(measured, rel=0.15)  # both sets are of one Gaussian: all of it is bias
    assert frechet_distance(Statistics.of(normal(51, 50)), Statistics.of(y)) > 0  # n > d: no warning


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.zeros(0, 3), "shape"),
        (torch.full((3, 2), math.nan), "NaN"),
        (torch.full((3, 2), math.inf), "infinite"),
    ],
)
def test_statistics_refuse_what_are_no_features(features, message):
    with pytest.raises(ValueError, match=message):
        Statistics.of(features)


def test_statistics_of_one_sample_or_another_dimension_are_refused():
    one, two = Statistics.of(torch.zeros(1, 3)), Statistics.of(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(one, one)
    with pytest.raises(ValueError, match="3 and of 2"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match="3 and of 2"):
        one.merge(two)


# --- kernel distance ----------------------------------------------------------------------------------


def mmd2_by_loops(x, y):
    def k(u, v):
        return (sum(a * b for a, b in zip(u, v, strict=True)) / len(u) + 1) ** 3

    x, y, m = x.tolist(), y.tolist(), len(x)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / m**2


def test_kernel_distance_equals_the_definition():
    x, y, size, subsets, seed = normal(30, 6), 0.5 + normal(25, 6, seed=1), 12, 5, 7
    generator = torch.Generator().manual_seed(seed)
    expected = []
    for _ in range(subsets):
        i, j = (torch.randperm(n, generator=generator)[:size] for n in (30, 25))
        expected.append(mmd2_by_loops(x[i], y[j]))
    got = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=seed)
    assert got.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert got == kernel_distance(x, y, subsets=subsets, subset_size=size, seed=seed)
    assert got != kernel_distance(x, y, subsets=subsets, subset_size=size, seed=seed + 1)


def test_the_error_of_the_kernel_distance_is_that_of_its_u_statistic():
    """Hoeffding's two orders, each variance as the mean over all tuples of distinct samples."""
    x, y, size, subsets, seed = normal(14, 3), 0.5 + normal(11, 3, seed=1), 6, 3, 7
    generator = torch.Generator().manual_seed(seed)
    values, orders = [], []
    for _ in range(subsets):
        i, j = (torch.randperm(n, generator=generator)[:size] for n in (14, 11))
        values.append(mmd2_by_loops(x[i], y[j]))
        k_xx, k_yy, k_xy = (((a @ b.mT) / 3 + 1) ** 3 for a, b in ((x[i], x[i]), (y[j], y[j]), (x[i], y[j])))
        phi, psi = k_xx - k_xy, k_yy - k_xy.mT
        triples, quadruples = list(permutations(range(size), 3)), list(permutations(range(size), 4))

        def first(f, triples=triples, quadruples=quadruples):
            square = np.mean([f[a, b] * f[c, d] for a, b, c, d in quadruples])
            return np.mean([f[a, b] * f[a, c] for a, b, c in triples]) - square

        h = phi + psi
        of_h = np.mean([h[a, b] ** 2 for a, b in permutations(range(size), 2)])
        of_h -= np.mean([h[a, b] * h[c, d] for a, b, c, d in quadruples])
        orders.append([first(phi), first(psi), of_h - 2 * first(phi) - 2 * first(psi)])
    of_x, of_y, second = np.mean(orders, 0)
    variance = max(0, 4 * of_x / 14 + 4 * of_y / 11) + second / 2 * (1 / 14 + 1 / 11) ** 2
    expected = math.sqrt(max(0, variance) + np.var(values, ddof=1) / subsets)
    got = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=seed)
    assert got.standard_error == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_is_unbiased_and_its_error_is_honest(shift):
    """Over 150 fresh pairs of sets: the mean is the expectation, the spread is the reported error."""
    scores = [
        kernel_distance(normal(60, 4, seed=2 * k), shift + normal(60, 4, seed=2 * k + 1), subsets=40)
        for k in range(150)
    ]
    values, reported = np.array([s.value for s in scores]), np.mean([s.standard_error for s in scores])
    error = values.std(ddof=1) / math.sqrt(len(values))
    expected = expectation(shift, shift) + expectation(0, 0) - 2 * expectation(0, shift)
    assert abs(values.mean() - expected) < 4 * error
    assert 0.85 < reported / values.std(ddof=1) < 1.35


def expectation(p, q, d=4):
    """E (x.y/d + 1)^3 for x ~ N(p 1, I), y ~ N(q 1, I): given x, z = x.y/d + 1 is normal, so E z^3 = m^3 + 3 m v.

    With m = q (sum x)/d + 1 and v = |x|^2/d^2, and sum x ~ N(p d, d), |x|^2 = (sum x)^2/d + chi2(d - 1).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    total = p * d + math.sqrt(d) * nodes
    m, v = q * total / d + 1, (total**2 / d + d - 1) / d**2
    return float(((m**3 + 3 * m * v) * weights).sum() / weights.sum())


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), {}, "shapes"),
        (torch.zeros(9), torch.zeros(9), {}, "shapes"),
        (torch.zeros(4, 2), torch.zeros(9, 2), {}, "at least 5"),
        (torch.zeros(9, 2), torch.zeros(8, 2), {"subset_size": 8}, "4 to 7"),
        (torch.zeros(9, 2), torch.zeros(8, 2), {"subset_size": 3}, "4 to 7"),
        (torch.zeros(9, 2), torch.zeros(8, 2), {"subsets": 1}, "subsets"),
        (torch.full((9, 2), math.nan), torch.zeros(8, 2), {}, "NaN"),
    ],
)
def test_kernel_distance_refuses(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y, **options)


# --- extractors ---------------------------------------------------------------------------------------


def test_the_recorded_accuracy_of_the_digit_classifier_holds():
    record = json.loads(digit_classifier.RECORD.read_text())
    digits = data.load("digits")
    assert record["data_fingerprint"] == digits.fingerprint()
    assert record["sha256"] == sha256(digit_classifier.WEIGHTS)
    assert digit_classifier.WEIGHTS.stat().st_size < 300_000
    unseen, seen = digits.split(0.5)
    assert not set(map(bytes, unseen.values)) & set(map(bytes, seen.values))
    answers = metrics.DigitFeatures().logits(unseen.tensor()).argmax(1).numpy()
    assert int((answers != unseen.labels).sum()) == record["wrong"]
    assert (answers == unseen.labels).mean() == record["accuracy"] >= 0.98


def test_damaged_classifier_weights_are_noticed(tmp_path, monkeypatch):
    damaged = bytearray(digit_classifier.WEIGHTS.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(damaged)
    monkeypatch.setattr(digit_classifier, "WEIGHTS", tmp_path / "digits.safetensors")
    digit_classifier.shipped_classifier.cache_clear()
    with pytest.raises(FormatError, match="SHA-256 differs"):
        metrics.DigitFeatures().logits(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("extractor", "shape", "d"),
    [
        (metrics.DigitFeatures(), (1, 8, 8), 40),
        (metrics.Pyramid(), (1, 8, 8), 39),
        (metrics.Pyramid(), (1, 28, 28), 61),
        (metrics.Pyramid(), (3, 32, 32), 129),
        (metrics.Pyramid(), (3, 9, 17), 79),
        (metrics.Pyramid(), (3, 64, 48), 129),
        (metrics.Identity(), (2,), 2),
        (metrics.Identity(), (3, 5), 15),
    ],
)
def test_features_do_not_depend_on_the_batch(extractor, shape, d):
    x = normal(507, *shape).clamp(-1, 1)
    features = extractor.features(x)
    assert features.shape == (507, d) == (507, extractor.dim(shape)) and features.dtype == torch.float64
    assert torch.allclose(features[7:9], extractor.features(x[7:9]), rtol=0, atol=1e-12)
    assert torch.equal(features, extractor.features(x))
    assert not features.requires_grad


def test_extractors_are_components():
    assert set(metrics.Features.kinds()) >= {"digits", "pyramid", "identity"}
    assert metrics.Features.from_dict({"kind": "pyramid"}) == metrics.Pyramid()


@pytest.mark.parametrize(
    ("shape", "source", "kind"),
    [
        ((1, 8, 8), "digits", "digits"),
        ((1, 8, 8), "mine", "pyramid"),
        ((1, 28, 28), "digits", "pyramid"),
        ((3, 32, 32), "", "pyramid"),
        ((2,), "", "identity"),
        ((1, 4, 4), "", "identity"),
        ((2048,), "", "identity"),
    ],
)
def test_extractor_for_picks(shape, source, kind):
    assert metrics.extractor_for(shape, source).kind == kind


def test_extractors_refuse_shapes_they_cannot_read():
    for call, message in [
        (lambda: metrics.extractor_for((2049,)), "at most 2,048"),
        (lambda: metrics.DigitFeatures().features(torch.zeros(2, 1, 9, 8)), "use 'pyramid'"),
        (lambda: metrics.DigitFeatures().logits(torch.zeros(2, 64)), "use 'pyramid'"),
        (lambda: metrics.Pyramid().features(torch.zeros(2, 3, 7, 8)), "8x8"),
        (lambda: metrics.Pyramid().features(torch.zeros(2, 64)), "identity"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_flat_images_have_finite_features():
    for value in (-1.0, 0.0, 1.0):
        assert torch.isfinite(metrics.Pyramid().features(torch.full((2, 3, 16, 16), value))).all()


# --- rankings on real images ----------------------------------------------------------------------------


def pixels(x):
    return data.from_uint8(data.to_uint8(x))


def blurred(x, sigma):
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, 7)
    x = F.conv2d(F.pad(x, (3, 3, 0, 0), mode="reflect"), kernel, groups=x.shape[1])
    return pixels(F.conv2d(F.pad(x, (0, 0, 3, 3), mode="reflect"), kernel.mT, groups=x.shape[1]))


def noisy(x, sigma):
    return pixels(x + sigma * normal(*x.shape).float())


def shuffled(x):
    """The sixteen tiles of each picture in another order: the same details, another structure."""
    rows = [row.chunk(4, dim=3) for row in x.chunk(4, dim=2)]
    tiles = [tile for row in rows for tile in row]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    return torch.cat([torch.cat([tiles[order[4 * i + j]] for j in range(4)], dim=3) for i in range(4)], dim=2)


def halves(source, n):
    dataset = data.load(source)
    a, b = dataset.subset(range(2 * n)).split(0.5)
    return a.tensor(), b.tensor()


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def check_rankings(extractor, x, y):
    """Real against real is the least; every damage costs more, the more of it the more, by both distances."""
    reference = extractor.features(x)

    def scores(z):
        features = extractor.features(z)
        return np.array(
            [
                frechet_distance(Statistics.of(reference), Statistics.of(features)),
                kernel_distance(reference, features, subsets=20).value,
            ]
        )

    real = scores(y)
    for series in [[blurred(y, s) for s in (0.5, 0.7, 1.0, 2.0)], [noisy(y, s) for s in (0.2, 0.3, 0.5, 1.0)]]:
        ladder = [real, *map(scores, series)]
        assert all((low < high).all() for low, high in pairwise(ladder)), ladder
        assert (ladder[-1] > 10 * np.abs(real)).all()
    assert (scores(shuffled(y)) > 5 * np.abs(real)).all()
    if y.shape[1] == 3:
        assert (scores(y.mean(1, keepdim=True).expand_as(y)) > 5 * np.abs(real)).all()
        assert (scores(y.flip(1)) > 1.5 * np.abs(real)).all()  # red for blue
    return real


def test_pyramid_ranks_damage_on_colour_photographs():
    check_rankings(metrics.Pyramid(), *halves(shared("cifar10-lossless-4000.npz"), 700))


def test_pyramid_ranks_damage_on_grey_digits():
    check_rankings(metrics.Pyramid(), *halves(shared("mnist-test.zip"), 700))


@pytest.mark.parametrize("extractor", [metrics.Pyramid(), metrics.DigitFeatures()], ids=lambda e: e.kind)
def test_extractors_rank_damage_on_the_embedded_digits(extractor):
    check_rankings(extractor, *halves("digits", 898))


def test_digit_features_see_a_missing_class():
    train, heldout = data.load("digits").split(0.5)
    extractor = metrics.DigitFeatures()
    reference = Statistics.of(extractor.features(train.tensor()))
    real = frechet_distance(reference, Statistics.of(extractor.features(heldout.tensor())))
    without = heldout.subset(np.flatnonzero(heldout.labels != 3))
    assert frechet_distance(reference, Statistics.of(extractor.features(without.tensor()))) > 1.5 * real
