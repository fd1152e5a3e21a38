"""Guidance: D_g = D_ref + w (D_main - D_ref) in closed form, its interval, its cost, and what it does to the digits."""

import copy
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import elucidiff as ed
from elucidiff import preconditioning as pc
from elucidiff import solvers as so
from elucidiff.cli.main import main
from elucidiff.guidance import Auto, ClassifierFree
from elucidiff.networks import MLP
from elucidiff.seeds import Stream, keyed_uniform
from elucidiff.training.draws import Order, draw

F64 = torch.float64
SOLVERS = sorted(so.Solver.kinds())
NOISES = {"none": so.Deterministic(), "churn": so.Churn(S_churn=4), "ancestral": so.Ancestral()}


class Watched(ed.Denoiser):
    """Another denoiser that notes what it is called with."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []
        self.shape, self.label_dim = inner.shape, inner.label_dim
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max

    def denoise(self, x, sigma, **conditions):
        self.seen.append((x, sigma, conditions))
        return self.inner(x, sigma, **conditions)


class Untouchable(ed.Denoiser):
    """A reference that must not be called; it supports a narrow range only."""

    shape, label_dim, sigma_min, sigma_max = (2,), 3, 0.5, 2.0

    def denoise(self, x, sigma, **conditions):
        raise RuntimeError("the reference was called")


def gaussian(mean, variance) -> ed.GaussianDenoiser:
    return ed.GaussianDenoiser(torch.tensor(mean, dtype=F64), variance)


def labelled() -> ed.EmpiricalDenoiser:
    """Thirty points of three classes in the plane, each class around its own corner."""
    corners = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=F64)
    classes = torch.arange(30) % 3
    g = torch.Generator().manual_seed(1)
    return ed.EmpiricalDenoiser(corners[classes] + 0.3 * torch.randn(30, 2, generator=g, dtype=F64), classes)


def points(n=7, seed=2, spread=1.0):
    return spread * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(label_dim=3, dropout=0.0, info=None, seed=0) -> ed.Preconditioned:
    """A small float32 network with weights that do something."""
    torch.manual_seed(seed)
    mlp = MLP(width=16, depth=1, dropout=dropout).build((2,), label_dim)
    for p in mlp.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p)
    denoiser = ed.Preconditioned(mlp, pc.EDM(), shape=(2,), label_dim=label_dim).eval()
    denoiser.info = info or {}
    return denoiser


def sampler_of(kind, noise="none", steps=6, **elements) -> ed.Sampler:
    solver = so.Solver.of_kind(kind)()
    return ed.Sampler(solver=solver, stochasticity=NOISES[noise], steps=steps, **elements)


def runs(kind, noise) -> bool:
    """Whether this solver goes with this noise at all: tried on an exact denoiser without guidance."""
    try:
        ed.sample(labelled(), sampler_of(kind, noise), seeds=[0])
    except (ValueError, TypeError):
        return False
    return True


COMBINATIONS = [(kind, noise) for kind in SOLVERS for noise in NOISES if runs(kind, noise)]


# w = 1


@pytest.mark.parametrize(("kind", "noise"), COMBINATIONS)
def test_weight_1_gives_the_unguided_bits_and_never_calls_the_reference(kind, noise):
    sampler = sampler_of(kind, noise)
    plain = ed.sample(labelled(), sampler, seeds=range(4), record=True)
    for guided in (
        ClassifierFree(Watched(labelled()), 1.0),
        ClassifierFree(labelled(), 1, (0.1, 3.0), unconditional=Untouchable()),
        Auto(labelled(), Untouchable(), 1.0),
    ):
        result = ed.sample(guided, sampler, seeds=range(4), record=True)
        assert torch.equal(result.x, plain.x) and torch.equal(result.trajectory.x, plain.trajectory.x)
        assert torch.equal(result.sigmas, plain.sigmas) and result.nfe == plain.nfe  # Untouchable narrows nothing
        assert guided.reference_calls == 0 and guided.network_calls == guided.main_calls >= plain.nfe


def test_weight_1_gives_the_bits_of_a_network():
    denoiser = network()
    plain = ed.sample(denoiser, ed.EDM, seeds=range(5)).x
    assert torch.equal(ed.sample(ClassifierFree(denoiser, 1.0), ed.EDM, seeds=range(5)).x, plain)
    assert not torch.allclose(ed.sample(ClassifierFree(denoiser, 2.0), ed.EDM, seeds=range(5)).x, plain)


# closed forms


@pytest.mark.parametrize(("kind", "noise"), COMBINATIONS)
def test_every_sampler_runs_and_gives_the_closed_form(kind, noise):
    """Two Gaussians of one variance: D_g is exactly the denoiser of the Gaussian around m_ref + w (m_main - m_ref)."""
    w = 2.5
    guided = Auto(gaussian([0.3, -0.2], 0.25), gaussian([-0.1, 0.4], 0.25), w)
    expected = gaussian([-0.1 + w * 0.4, 0.4 - w * 0.6], 0.25)
    sampler = sampler_of(kind, noise)
    found, wanted = (ed.sample(d, sampler, seeds=range(6)) for d in (guided, expected))
    assert found.nfe == wanted.nfe
    assert (found.x - wanted.x).abs().max() <= (1e-4 if so.Solver.of_kind(kind).adaptive else 1e-9)
    assert guided.reference_calls == guided.main_calls >= found.nfe


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_sampling_two_gaussians_of_different_width_has_a_closed_form(w):
    """z(0) / z(s) = (v1 / (v1 + s^2))^(w/2) (v2 / (v2 + s^2))^((1-w)/2), from dz/dsigma = z (1 - gain_w) / sigma."""
    v1, v2, s = 0.09, 0.49, 20.0
    mean = torch.tensor([0.7, -0.4], dtype=F64)
    guided = Auto(gaussian(mean.tolist(), v1), gaussian(mean.tolist(), v2), w)
    latents = points(5).float()
    x = ed.sample(guided, ed.Sampler(solver=so.RK4(), steps=200, sigma_max=s), latents=latents).x
    factor = (v1 / (v1 + s * s)) ** (w / 2) * (v2 / (v2 + s * s)) ** ((1 - w) / 2)
    assert (x - (mean + factor * (latents.double() * s - mean))).abs().max() <= 2e-5


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.7, 2.0, 4.0])
@pytest.mark.parametrize("sigma", [0.2, 0.6, 3.0])
def test_classifier_free_adds_w_times_the_gradient_of_the_class_probability(w, sigma):
    """D_g = D(x) + w sigma^2 grad log p(c | x; sigma), the gradient by autograd on the data's own mixture."""
    denoiser, c = labelled(), 1
    x = points().requires_grad_()
    log_p = -((x[:, None] - denoiser.data) ** 2).sum(2) / (2 * sigma**2)
    own = denoiser.classes == c
    posterior = (log_p[:, own].logsumexp(1) - log_p.logsumexp(1)).sum()
    gradient = torch.autograd.grad(posterior, x)[0]
    x = x.detach()
    expected = denoiser(x, sigma) + w * sigma**2 * gradient
    assert (ClassifierFree(denoiser, w)(x, sigma, labels=torch.full((7,), c)) - expected).abs().max() <= 1e-10


def test_autoguidance_is_the_score_of_a_ratio_of_densities():
    """D_g = x + sigma^2 grad [w log p_main + (1 - w) log p_ref], both mixtures written out."""
    means, stds, sigma, w = points(4, seed=3), torch.tensor([0.3, 0.2, 0.5, 0.4], dtype=F64), 0.7, 1.8
    weights = [torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)]

    def log_density(x, weight):
        variance = stds**2 + sigma**2
        exponent = -((x[:, None] - means) ** 2).sum(2) / (2 * variance) - variance.log()  # two dimensions
        return (exponent + weight.log()).logsumexp(1)

    x = points().requires_grad_()
    gradient = torch.autograd.grad((w * log_density(x, weights[0]) + (1 - w) * log_density(x, weights[1])).sum(), x)[0]
    guided = Auto(*(ed.GaussianMixtureDenoiser(means, stds, weight) for weight in weights), w)
    assert (guided(x.detach(), sigma) - (x.detach() + sigma**2 * gradient)).abs().max() <= 1e-12


@settings(max_examples=50, deadline=None)
@given(w=st.floats(-5, 5), sigma=st.floats(0.05, 20))
def test_the_answer_is_linear_in_the_weight(w, sigma):
    x, labels, denoiser = points(), torch.arange(7) % 3, labelled()
    D = {v: ClassifierFree(denoiser, v)(x, sigma, labels=labels) for v in (0.0, 1.0, w)}
    assert torch.equal(D[1.0], denoiser(x, sigma, labels=labels))
    assert (D[0.0] - denoiser(x, sigma)).abs().max() <= 1e-14
    assert (D[w] - ((1 - w) * D[0.0] + w * D[1.0])).abs().max() <= 1e-12 * (1 + abs(w))


# labels


def test_two_networks_that_are_the_same_are_one_network():
    denoiser, x, labels = network(), points(), torch.arange(7) % 3
    one, two = ClassifierFree(denoiser, 2.0), ClassifierFree(denoiser, 2.0, unconditional=copy.deepcopy(denoiser))
    assert torch.equal(one(x, 0.7, labels=labels), two(x, 0.7, labels=labels))
    assert torch.equal(ed.sample(one, ed.EDM, seeds=range(3)).x, ed.sample(two, ed.EDM, seeds=range(3)).x)


def test_an_unconditional_model_answers_in_place_of_no_label():
    denoiser, x, labels = labelled(), points(), torch.arange(7) % 3
    without = ed.EmpiricalDenoiser(denoiser.data)
    expected = ClassifierFree(denoiser, 3.0)(x, 0.5, labels=labels)
    found = ClassifierFree(denoiser, 3.0, unconditional=without)(x, 0.5, labels=labels)
    assert (found - expected).abs().max() <= 1e-12


def test_zero_vectors_and_no_labels_are_the_same_reference():
    denoiser, x, labels = network(), points(), torch.eye(3)[torch.arange(7) % 3]
    expected = denoiser(x, 0.7, labels=torch.zeros(7, 3))
    expected = expected + 2.0 * (denoiser(x, 0.7, labels=labels) - expected)
    assert torch.equal(ClassifierFree(denoiser, 2.0)(x, 0.7, labels=labels), expected)


def test_without_labels_one_network_answers_alone():
    guided = ClassifierFree(labelled(), 3.0)
    assert torch.equal(guided(points(), 0.5), labelled()(points(), 0.5)) and guided.network_calls == 1


@pytest.mark.parametrize("negative", [2, torch.full((7,), 2), torch.eye(3)[torch.full((7,), 2)]])
def test_negative_labels_take_the_place_of_no_class(negative):
    denoiser, x, labels = labelled(), points(), torch.arange(7) % 2
    away = denoiser(x, 0.5, labels=torch.full((7,), 2))
    expected = away + 2.0 * (denoiser(x, 0.5, labels=labels) - away)
    for guided in (ClassifierFree(denoiser, 2.0), ClassifierFree(denoiser, 2.0, unconditional=labelled())):
        assert torch.equal(guided(x, 0.5, labels=labels, negative_labels=negative), expected)
    unlabelled = ClassifierFree(denoiser, 2.0)(x, 0.5, negative_labels=negative)  # from no class away from class 2
    assert torch.equal(unlabelled, away + 2.0 * (denoiser(x, 0.5) - away))


def test_negative_labels_are_split_with_the_batch():
    guided, negative = ClassifierFree(labelled(), 2.0), (torch.arange(10) + 1) % 3
    asked = {"seeds": range(10), "labels": torch.arange(10) % 3, "negative_labels": negative}
    whole = ed.sample(guided, ed.EDM, **asked).x
    assert (ed.sample(guided, ed.EDM, batch_size=4, **asked).x - whole).abs().max() <= 1e-12
    asked["negative_labels"] = negative.flip(0)
    assert (ed.sample(guided, ed.EDM, **asked).x - whole).abs().max() > 0.01


def test_the_guide_of_autoguidance_gets_the_same_labels_and_conditions():
    main, guide = Watched(labelled()), Watched(labelled())
    labels = torch.arange(7) % 3
    D = Auto(main, guide, 2.0)(points(), 0.5, labels=labels)
    assert torch.equal(main.seen[0][2]["labels"], labels) and torch.equal(guide.seen[0][2]["labels"], labels)
    assert torch.equal(D, labelled()(points(), 0.5, labels=labels))  # the same model: nothing to exaggerate


# the interval


def test_the_interval_is_open_below_and_closed_above():
    guided = Auto(gaussian([1.0, 0.0], 0.2), gaussian([0.0, 0.0], 0.2), 2.0, (0.5, 2.0))
    x = points()
    for sigma, weight in [(0.25, 1), (0.5, 1), (0.5 + 1e-12, 2), (1.0, 2), (2.0, 2), (2.0 + 1e-12, 1), (50.0, 1)]:
        assert (guided(x, sigma) - gaussian([float(weight), 0.0], 0.2)(x, sigma)).abs().max() <= 1e-13
    assert (guided.main_calls, guided.reference_calls, guided.network_calls) == (7, 3, 10)
    whole = Auto(gaussian([1.0, 0.0], 0.2), gaussian([0.0, 0.0], 0.2), 2.0, (0.0, math.inf))
    assert (whole(x, 1e3) - gaussian([2.0, 0.0], 0.2)(x, 1e3)).abs().max() <= 1e-13


@pytest.mark.parametrize("kind", ["euler", "heun", "dpmpp_2m"])
def test_only_steps_within_the_interval_change(kind):
    """The ends are levels of the run: the first and the last level guided are known exactly."""
    sampler = sampler_of(kind, steps=12)
    sigmas = sampler.sigmas(labelled())
    first, end = 4, 8  # levels 4 to 7 are guided
    reference = Watched(labelled())
    guided = ClassifierFree(labelled(), 3.0, (float(sigmas[end]), float(sigmas[first])), unconditional=reference)
    asked = {"seeds": range(4), "labels": [0, 1, 2, 0], "record": True}
    plain, result = ed.sample(labelled(), sampler, **asked), ed.sample(guided, sampler, **asked)
    x, denoised = result.trajectory.x, result.trajectory.denoised
    entered = first if kind == "heun" else first + 1  # Heun's second slope of step 3 is at level 4
    same = [torch.equal(a, b) for a, b in zip(x[:-1], plain.trajectory.x[:-1], strict=True)]  # the last are data points
    assert same == [True] * entered + [False] * (12 - entered)
    for i, sigma in enumerate(sigmas[:-1]):
        alone = labelled()(x[i], sigma, labels=torch.eye(3)[[0, 1, 2, 0]])
        assert torch.equal(denoised[i], alone) == (not first <= i < end)
    # Heun evaluates every level but the first twice: as an end of one step and as the beginning of the next
    levels = [float(s) for _, s, _ in reference.seen]
    each = 2 if kind == "heun" else 1
    assert levels == [float(s) for s in sigmas[first:end] for _ in range(each)]
    assert guided.reference_calls == len(levels) and guided.main_calls == result.nfe == plain.nfe


def test_levels_of_one_batch_may_lie_partly_within():
    main, reference = Watched(labelled()), Watched(labelled())
    guided = ClassifierFree(main, 2.5, (0.3, 2.0), unconditional=reference)
    sigma = torch.tensor([0.1, 0.3, 0.31, 1.0, 2.0, 2.1, 0.0], dtype=F64)
    x, labels = points(), torch.arange(7) % 3
    D = guided(x, sigma, labels=labels, negative_labels=(labels + 1) % 3)
    assert [len(x) for x, _, _ in main.seen] == [7] and [len(x) for x, _, _ in reference.seen] == [4]
    for i in range(7):
        one = slice(i, i + 1)
        alone = guided(x[one], sigma[i], labels=labels[one], negative_labels=(labels[one] + 1) % 3)
        assert (D[i] - alone[0]).abs().max() <= 1e-14
    assert torch.equal(D[6], x[6]) and torch.equal(D[0], labelled()(x, sigma, labels=labels)[0])
    calls = guided.reference_calls
    outside = sigma[[0, 1, 5, 5, 1, 0, 5]]
    assert torch.equal(guided(x, outside, labels=labels), labelled()(x, outside, labels=labels))
    assert guided.reference_calls == calls


def test_gradients_flow_through_both_models():
    guided = ClassifierFree(labelled(), 2.5, (0.3, 2.0))
    sigma, labels = torch.tensor([0.1, 0.5, 3.0], dtype=F64), torch.arange(3)
    x = points(3)
    jacobian = torch.autograd.functional.jacobian(lambda x: guided(x, sigma, labels=labels).sum(0), x)
    step = 1e-5
    for i, j in [(0, 0), (1, 0), (1, 1), (2, 1)]:
        up, down = x.clone(), x.clone()
        up[i, j] += step
        down[i, j] -= step
        difference = (guided(up, sigma, labels=labels) - guided(down, sigma, labels=labels)).sum(0) / (2 * step)
        assert (jacobian[:, i, j] - difference).abs().max() <= 1e-6


# fits everywhere a denoiser does


def test_the_levels_are_those_of_both_models_where_both_are_called():
    def bounded(low, high):
        denoiser = gaussian([0.0, 0.0], 1.0)
        denoiser.sigma_min, denoiser.sigma_max = low, high
        return denoiser

    def levels(interval, w=2.0, main=(0.01, 50.0), guide=(0.1, 80.0)):
        guided = Auto(bounded(*main), bounded(*guide), w, interval)
        return guided.sigma_min, guided.sigma_max

    assert levels(None) == levels((0.0, math.inf)) == levels((0.05, 3.0)) == (0.1, 50.0)
    assert levels((0.1, 3.0)) == levels((0.5, math.inf)) == (0.01, 50.0)  # the guide supports all it is asked
    assert levels(None, guide=(0.1, 8.0)) == levels((0.0, 9.0), guide=(0.1, 8.0)) == (0.1, 8.0)
    assert levels((0.2, 8.0), guide=(0.1, 8.0)) == levels(None, w=1.0) == (0.01, 50.0)
    sigmas = ed.sample(Auto(bounded(0.01, 50.0), bounded(0.1, 8.0), 2.0), ed.EDM, seeds=[0]).sigmas
    assert sigmas[0] == 8.0 and sigmas[-2] == pytest.approx(0.1)


def test_levels_are_rounded_as_the_model_wants():
    base = pc.IDDPM()
    main = ed.Preconditioned(MLP(width=8, depth=1), base, shape=(2,), label_dim=3)
    sigma = torch.tensor([0.013, 0.4, 7.0], dtype=F64)
    assert torch.equal(ClassifierFree(main, 2.0).round_sigma(sigma), base.round_sigma(sigma))
    assert not torch.equal(base.round_sigma(sigma), sigma)
    assert torch.equal(ed.sample(ClassifierFree(main, 2.0), ed.EDM, seeds=[0]).sigmas, ed.EDM.sampler.sigmas(main))


def test_the_model_finishes_its_samples():
    class Rounding(ed.EmpiricalDenoiser):
        def finish(self, x, labels=None):
            return x.round()

    model = Rounding(labelled().data, labelled().classes)
    x = ed.sample(ClassifierFree(model, 2.0), ed.EDM, seeds=range(3), negative_labels=1).x
    assert torch.equal(x, x.round()) and x.abs().sum() > 0


def test_it_is_a_module_and_runs_in_evaluation_mode():
    guided = Auto(network(dropout=0.5), network(dropout=0.5, seed=1), 2.0)
    assert len(list(guided.parameters())) == 2 * len(list(network().parameters()))
    assert {p.dtype for p in copy.deepcopy(guided).double().parameters()} == {F64}
    expected = ed.sample(guided.eval(), ed.EDM, seeds=range(3)).x
    guided.train()
    assert torch.equal(ed.sample(guided, ed.EDM, seeds=range(3)).x, expected)
    assert all(module.training for module in guided.modules())


@pytest.mark.parametrize("interval", [None, (0.2, 3.0)])
def test_samples_do_not_depend_on_their_company_in_a_fixed_batch(interval):
    denoiser = network()
    everyone = ed.sample(ed.FixedBatch(ClassifierFree(denoiser, 2.0, interval), 4), ed.EDM, seeds=range(10)).x
    for seeds in ([3], [9, 0, 5], list(range(4, 10))):
        for guided in (
            ed.FixedBatch(ClassifierFree(denoiser, 2.0, interval), 4),
            ClassifierFree(ed.FixedBatch(denoiser, 4), 2.0, interval),
        ):
            assert torch.equal(ed.sample(guided, ed.EDM, seeds=seeds).x, everyone[seeds])


def test_drives_and_functions_of_k_diffusions_form_give_the_same_bits():
    guided, sampler = ClassifierFree(labelled(), 2.0, (0.2, 3.0)), ed.Sampler(steps=5)
    result = ed.sample(guided, sampler, seeds=range(3))
    drive = ed.Drive(sampler, seeds=range(3), shape=(2,), label_dim=3)
    while (call := drive.call) is not None:
        drive.answer(guided(call.x, call.sigma, labels=drive.labels))
    assert torch.equal(drive.result.x, result.x)
    noise = ed.seeds.Seeds(range(3)).normal((2,), torch.float32).double() * result.sigmas[0]
    function = ed.adapters.k_diffusion.sampler(so.Heun())
    assert torch.equal(function(guided, noise, result.sigmas, {"labels": result.labels}), result.x)


def test_guided_models_can_be_guided():
    inner = ClassifierFree(labelled(), 2.0)
    outer = Auto(inner, ClassifierFree(labelled(), 0.5), 3.0)  # 0.5 + 3 (2 - 0.5) = 5
    x, labels = points(), torch.arange(7) % 3
    assert (outer(x, 0.5, labels=labels) - ClassifierFree(labelled(), 5.0)(x, 0.5, labels=labels)).abs().max() <= 1e-12


def test_functions_are_guides_too():
    guided = Auto(lambda x, sigma: x / 2, lambda x, sigma: x / 4, 3.0)
    assert torch.equal(guided(points(), 1.0), points() / 4 + 3 * (points() / 2 - points() / 4))
    with_labels = Auto(labelled(), lambda x, sigma, labels: x * labels[:, None], 2.0)
    labels = torch.ones(7, dtype=torch.long)
    assert torch.equal(
        with_labels(points(), 0.5, labels=labels), points() + 2 * (labelled()(points(), 0.5, labels=labels) - points())
    )


def test_settings_and_citations_name_what_was_used():
    guided = ClassifierFree(labelled(), 2, (0.2, math.inf))
    assert guided.settings() == {"kind": "classifier_free", "weight": 2.0, "interval": [0.2, "inf"]}
    json.dumps(guided.settings(), allow_nan=False)
    assert [key in guided.citation() for key in ("ho2021cfg", "kynkaanniemi2024", "autoguidance")] == [
        True,
        True,
        False,
    ]
    auto = Auto(labelled(), labelled(), 2)
    assert auto.settings() == {"kind": "auto", "weight": 2.0, "interval": None}
    assert "karras2024autoguidance" in auto.citation() and "kynkaanniemi2024" not in auto.citation()


# refusals


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_are_finite(weight):
    with pytest.raises(ValueError, match="weight: got .*finite"):
        ClassifierFree(labelled(), weight)


@pytest.mark.parametrize("weight", ["2", None, True, torch.ones(3), [2.0]])
def test_weights_are_numbers(weight):
    with pytest.raises(TypeError, match="weight: got .*a number"):
        Auto(labelled(), labelled(), weight)


@pytest.mark.parametrize(
    "interval", [(1.0, 1.0), (3.0, 1.0), (-0.1, 1.0), (0.1, math.nan), (0.1,), (), (0.1, 1.0, 2.0)]
)
def test_intervals_have_two_ends_in_order(interval):
    with pytest.raises(ValueError, match="interval: got .*0 <= sigma_lo < sigma_hi"):
        ClassifierFree(labelled(), 2.0, interval)


@pytest.mark.parametrize("interval", [0.5, "0.2,3", ("0.2", "3"), {0.2, 3.0}])
def test_intervals_are_pairs_of_numbers(interval):
    with pytest.raises(TypeError, match="interval: got .*two noise levels"):
        ClassifierFree(labelled(), 2.0, interval)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"without classes.*Auto\(denoiser, guide, weight\)"):
        ClassifierFree(gaussian([0.0, 0.0], 1.0), 2.0)
    with pytest.raises(ValueError, match="without classes"):
        ClassifierFree(lambda x, sigma, labels=None: x, 2.0)
    with pytest.raises(ValueError, match=r"samples of shape \(2,\), the reference \(3,\)"):
        Auto(gaussian([0.0, 0.0], 1.0), gaussian([0.0, 0.0, 0.0], 1.0), 2.0)
    with pytest.raises(ValueError, match="guide with 0 classes for a model with 3.*unconditional=guide"):
        Auto(labelled(), gaussian([0.0, 0.0], 1.0), 2.0)
    with pytest.raises(ValueError, match="guide with 4 classes for a model with 3"):
        Auto(network(), network(label_dim=4), 2.0)
    low, high = gaussian([0.0, 0.0], 1.0), gaussian([0.0, 0.0], 1.0)
    low.sigma_max, high.sigma_min = 1.0, 2.0
    with pytest.raises(ValueError, match="levels 0 to 1, the reference 2 to inf; expected levels in common"):
        Auto(low, high, 2.0)
    with pytest.raises(TypeError, match="denoiser: got int"):
        Auto(labelled(), 3, 2.0)
    with pytest.raises(TypeError, match="denoiser: got NoneType"):
        Auto(labelled(), None, 2.0)
    with pytest.raises(ValueError, match="negative_labels: got some for an unconditional model"):
        guided = ClassifierFree(labelled(), 2.0, unconditional=ed.EmpiricalDenoiser(labelled().data))
        guided(points(), 0.5, labels=torch.zeros(7, dtype=torch.long), negative_labels=1)


def recorded(p):
    return {"training": {"config": {"label_dropout": p}}}


def test_a_model_trained_without_label_dropout_warns():
    with pytest.warns(UserWarning, match="trained without label dropout") as caught:
        ClassifierFree(network(info=recorded(0.0)), 2.0)
        ClassifierFree(ed.FixedBatch(network(info=recorded(0.0))), 2.0)
        ClassifierFree(network(), 2.0, unconditional=network(info=recorded(0.0)))
    assert len(caught) == 3 and {w.filename for w in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClassifierFree(network(info=recorded(0.1)), 2.0)
        ClassifierFree(network(info={"training": "unknown"}), 2.0)
        ClassifierFree(network(info=recorded(0.0)), 1.0)
        ClassifierFree(network(info=recorded(0.0)), 2.0, unconditional=network(label_dim=0))
        Auto(network(info=recorded(0.0)), network(), 2.0)


# label dropout in training


def test_label_dropout_changes_labels_only_and_is_recorded(tmp_path):
    data = ed.data.load("digits")
    order, noise = Order(len(data), 5), ed.objective.LogNormal()
    plain, dropped = (draw(data, order, noise, 3, 64, label_dropout=p) for p in (0.0, 0.4))
    assert (
        torch.equal(plain.y, dropped.y) and torch.equal(plain.sigma, dropped.sigma) and torch.equal(plain.n, dropped.n)
    )
    lost = keyed_uniform(5, Stream.LABEL, 3, range(64)) < 0.4
    assert 10 < int(lost.sum()) < 40 and not dropped.labels[lost].any()
    assert torch.equal(dropped.labels[~lost], plain.labels[~lost]) and bool((plain.labels.sum(1) == 1).all())
    network = ed.networks.DDPMPP(channels=4, multipliers=(1,), blocks=1, attention=())
    for p in (0.0, 0.2):
        config = ed.TrainConfig(out=str(tmp_path / f"run{p}"), images=64, batch=32, label_dropout=p, network=network)
        model = ed.load(ed.train(config, data=data))
        assert model.info["training"]["config"]["label_dropout"] == p
        if p == 0:
            with pytest.warns(UserWarning, match="trained without label dropout"):
                ClassifierFree(model, 2.0)
        else:
            ClassifierFree(model, 2.0)


# the command line


def cli(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained models of 8x8 images with three classes, and one without."""
    folder = tmp_path_factory.mktemp("models")
    for name, label_dim in {"main": 3, "bad": 3, "none": 0}.items():
        torch.manual_seed(len(name))
        config = ed.networks.DDPMPP(channels=8, multipliers=(1,), blocks=1, attention=())
        model = ed.Preconditioned(config, pc.EDM(), shape=(1, 8, 8), label_dim=label_dim)
        for p in model.parameters():
            p.data = p.data + 0.05 * torch.randn_like(p)
        ed.save(model, folder / name)
    return folder


def test_sample_guides_and_says_so(capsys, tmp_path, models):
    base = ["sample", models / "main", "--seeds", "0-4", "--labels", "0-2", "--steps", "5"]
    plain = ed.sample(
        ed.FixedBatch(ed.load(models / "main"), 16),
        ed.EDM.sampler.replace(steps=5),
        seeds=range(5),
        labels=[0, 1, 2, 0, 1],
    )

    def pixels(name):
        return [p.read_bytes() for p in sorted((tmp_path / name).glob("*.png"))]

    assert cli(capsys, *base, "--out", tmp_path / "plain")[0] == 0
    assert cli(capsys, *base, "--guidance", "1", "--out", tmp_path / "one")[0] == 0
    assert pixels("plain") == pixels("one") and len(pixels("one")) == 5
    code, out, _ = cli(capsys, *base, "--guidance", "3", "--guidance-interval", "0.2,inf", "--out", tmp_path / "cfg")
    levels = plain.sigmas[:-1].tolist()
    networks = 9 + sum(2 if i else 1 for i, s in enumerate(levels) if s > 0.2)
    assert code == 0 and f"NFE 9, {networks} network evaluations each" in out and pixels("cfg") != pixels("plain")
    provenance = json.loads((tmp_path / "cfg/samples.json").read_text())
    assert provenance["guidance"] == {
        "kind": "classifier_free", "weight": 3.0, "interval": [0.2, "inf"], "guide": None, "network_evaluations": networks,
    }  # fmt: skip
    guided = ed.FixedBatch(ClassifierFree(ed.load(models / "main"), 3.0, (0.2, math.inf)), 16)
    again = ed.sample(guided, ed.Sampler.from_dict(provenance["sampler"]), seeds=range(5), labels=[0, 1, 2, 0, 1])
    again.save(tmp_path / "again")
    assert pixels("again") == pixels("cfg")


@pytest.mark.parametrize(("guide", "kind"), [("bad", "auto"), ("none", "classifier_free")])
def test_a_second_model_guides_by_its_classes(capsys, tmp_path, models, guide, kind):
    argv = ["sample", models / "main", "--seeds", "0-1", "--steps", "3", "--guidance", "2", "--guide", models / guide]
    code, out, _ = cli(capsys, *argv, "--out", tmp_path / "s", "--json")
    facts = json.loads(out)["guidance"]
    assert code == 0 and facts["kind"] == kind and facts["network_evaluations"] == 10
    assert json.loads((tmp_path / "s/samples.json").read_text())["guidance"] == facts
    assert facts["guide"] == str(models / guide)


def test_evaluate_guides_too(capsys):
    """Exact class-conditional digits against guided ones: the same scores at weight 1, others at 3."""

    def run(*more):
        argv = ["evaluate", "exact:digits", "digits", "--num", 20, "--steps", 4, "--metrics", "kd", "--json", *more]
        return json.loads(cli(capsys, *argv)[1])

    plain, one, three = run(), run("--guidance", 1), run("--guidance", 3)
    assert plain["scores"] == one["scores"] != three["scores"]
    assert "guidance" not in plain and three["guidance"]["network_evaluations"] == 2 * plain["nfe"] == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guide", "exact:digits"], "give --guidance too"),
        (["--guidance-interval", "0.2,3"], "give --guidance too"),
        (["--guidance", "2", "--guidance-interval", "3"], "cannot read '3'; expected two numbers"),
        (["--guidance", "2", "--guidance-interval", "a,b"], "cannot read 'a,b'"),
        (["--guidance", "2", "--guidance-interval", "3,0.2"], "0 <= sigma_lo < sigma_hi"),
        (["--guidance", "nan"], "expected a finite number"),
        (["--guidance", "two"], "a valid number"),
        (["--guidance", "2", "--guide", "nowhere"], "no such model"),
    ],
)
def test_wrong_use_is_told(capsys, tmp_path, options, message):
    code, _, err = cli(capsys, "sample", "exact:digits", "--seeds", "0", *options, "--out", tmp_path / "s")
    assert code == 2 and message in err and not (tmp_path / "s").exists()


def test_guidance_of_a_model_without_classes_is_told(capsys, tmp_path, models):
    code, _, err = cli(capsys, "sample", models / "none", "--seeds", "0", "--guidance", "2", "--out", tmp_path / "s")
    assert code == 2 and "without classes" in err


def test_guidance_of_a_folder_of_samples_is_told(capsys, tmp_path):
    code, _, err = cli(capsys, "evaluate", tmp_path, "digits", "--guidance", "2")
    assert code == 2 and "folder of samples" in err


# trained models


def scored(model, num=300):
    """(class agreement, mean distance of two samples of one class in the classifier's features) and standard error."""
    result = ed.sample(model, ed.EDM.sampler.replace(steps=9), seeds=range(num))
    judge, asked = ed.metrics.DigitFeatures(), result.labels.argmax(1)
    right = (judge.logits(result.x).argmax(1) == asked).double().mean().item()
    features = judge.features(result.x)
    spread = torch.stack([torch.pdist(features[asked == c]).mean() for c in range(10)])
    return right, spread.mean().item(), math.sqrt(max(right * (1 - right), 0.01) / num)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_guidance_raises_class_agreement_and_lowers_variety(tmp_path):
    """A short training leaves room to improve: classifier-free guidance and autoguidance against none, same seeds.

    benchmarks/guidance.py prints the whole table.
    """
    config = ed.TrainConfig(
        out=str(tmp_path / "run"), heldout=0.5, images=40_000, label_dropout=0.2, snapshots=4, ema_halflife=8_000.0
    )
    run = ed.train(config)
    model, early = ed.load(run), ed.load(sorted((run / "snapshots").iterdir())[0])
    agreement, variety, error = scored(model)
    for w in (2.0, 4.0):
        right, spread, _ = scored(ClassifierFree(model, w))
        assert right > agreement + 3 * error
        assert spread < 0.9 * variety
    right, spread, _ = scored(Auto(model, early, 1.5))
    assert right > agreement + 2 * error
    assert spread < 0.95 * variety
