"""ed.adapters.wrap: every prediction, schedule and scaling gives the closed-form D of an exact Gaussian."""

import math

import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm

F64 = torch.float64
MEAN, VARIANCE = torch.tensor([0.7, -0.4, 0.1], dtype=F64), torch.tensor([0.25, 1.0, 4.0], dtype=F64)
ALPHA_BAR = tuple(math.cos(0.5 * math.pi * (k + 1) / 52) ** 2 for k in range(50))

# sigma(t) and s(sigma) of each, written out here
PROCESSES = {
    "edm": (fm.EDM(), lambda t: t, lambda sigma: 1 + 0 * sigma),
    "ve": (fm.VE(), lambda t: t.sqrt(), lambda sigma: 1 + 0 * sigma),
    "vp": (fm.VP(), lambda t: ((9.95 * t**2 + 0.1 * t).exp() - 1).sqrt(), lambda sigma: 1 / (1 + sigma**2).sqrt()),
    "cosine": (
        fm.Cosine(offset=0.0),
        lambda t: (0.5 * math.pi * t).tan(),
        lambda sigma: 1 / (1 + sigma**2).sqrt(),
    ),
    "flow": (fm.Flow(), lambda t: t / (1 - t), lambda sigma: 1 / (1 + sigma)),
    # Ornstein-Uhlenbeck: dx = -x/2 dt + dw, s = exp(-t/2), sigma^2 = exp(t) - 1
    "sde": (
        fm.SDE(lambda t: -0.5 + 0 * t, lambda t: 1 + 0 * t),
        lambda t: torch.expm1(t).sqrt(),
        lambda sigma: 1 / (1 + sigma**2).sqrt(),
    ),
}
SIGMA = torch.tensor([0.03, 0.4, 1.0, 7.0], dtype=F64)


def clean(x, sigma):
    """The expected clean sample given x = y + sigma n, y ~ N(MEAN, VARIANCE)."""
    gain = VARIANCE / (VARIANCE + sigma[:, None] ** 2)
    return MEAN + gain * (x - MEAN)


def network(prediction, sigma_of, s_of):
    """The ideal network of a prediction type, from x_t and t alone."""

    def fn(x_t, t):
        sigma = sigma_of(t)
        s = s_of(sigma)[:, None]
        x = x_t / s
        D = clean(x, sigma)
        sigma = sigma[:, None]
        noise = (x - D) / sigma
        alpha = 1 / (1 + sigma**2).sqrt()
        return {
            "epsilon": noise,
            "v": alpha * noise - alpha * sigma * D,
            "x0": D,
            "score": -(x - MEAN) / (VARIANCE + sigma**2),
            "scaled_score": -(x_t - s * MEAN) / (s**2 * (VARIANCE + sigma**2)),
            "flow": noise - D,
            "edm": D,
        }[prediction]

    return fn


PREDICTIONS = ["epsilon", "v", "x0", "score", "scaled_score", "flow", "edm"]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_of_a_gaussian_is_its_closed_form(prediction, process):
    schedule, sigma_of, s_of = PROCESSES[process]
    denoiser = ed.adapters.wrap(network(prediction, sigma_of, s_of), prediction, schedule, shape=(3,))
    x = torch.randn(4, 3, dtype=F64) * 5
    assert torch.allclose(denoiser(x, SIGMA), clean(x, SIGMA), rtol=1e-10, atol=1e-10)
    for k, sigma in enumerate(SIGMA):  # one level for the batch
        assert torch.allclose(denoiser(x, sigma)[k], clean(x, SIGMA)[k], rtol=1e-10, atol=1e-10)
    assert torch.equal(denoiser(x, 0.0), x)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_scaling_of_ones_own_is_undone_whatever_the_prediction(prediction):
    sigma_of, s_of = (lambda t: t), (lambda sigma: 1 / (1 + sigma))
    denoiser = ed.adapters.wrap(network(prediction, sigma_of, s_of), prediction, fm.EDM(), fm.FlowScaling())
    x = torch.randn(4, 3, dtype=F64)
    assert torch.allclose(denoiser(x, SIGMA), clean(x, SIGMA), rtol=1e-10, atol=1e-10)


def test_flow_matching_is_the_exact_denoiser_of_a_gaussian():
    exact = ed.GaussianDenoiser(MEAN, VARIANCE)

    def velocity(x_t, t):  # E[n - x_0 | x_t] of N(MEAN, VARIANCE) at x_t = (1 - t) x_0 + t n
        t = t[:, None]
        gain = (t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t**2)
        return gain * (x_t - (1 - t) * MEAN) - MEAN

    wrapped = ed.adapters.wrap(velocity, "flow", shape=(3,))
    x = torch.randn(4, 3, dtype=F64) * 3
    assert torch.allclose(wrapped(x, SIGMA), exact(x, SIGMA), rtol=1e-12, atol=1e-12)
    a, b = (ed.sample(d, ed.EDM, seeds=range(5)).x for d in (exact, wrapped))
    assert torch.allclose(a, b, atol=1e-10)


def test_what_a_network_is_told():
    told = []

    def fn(x, t):
        told.append(t)
        return torch.zeros_like(x)

    def ask(sigma, **options):
        ed.adapters.wrap(fn, "epsilon", **options)(torch.zeros(2, 3, dtype=F64), sigma)
        return told[-1]

    levels = [math.sqrt((1 - a) / a) for a in ALPHA_BAR]
    table = fm.Table(ALPHA_BAR)
    near = ask(levels[7] * 1.01, schedule=table)
    assert near.dtype == torch.int64 and near.tolist() == [7, 7]  # both samples, the number of the nearest entry
    between = math.sqrt(levels[7] * levels[8])
    assert ask(between, schedule=table, time="interpolated").tolist() == pytest.approx([7.5, 7.5], abs=1e-9)
    assert ask(0.5, schedule=fm.Flow(), time_scale=1000.0).tolist() == pytest.approx([1000 / 3] * 2)
    assert ask(2.0, time=lambda sigma: sigma.log() / 4).tolist() == pytest.approx([math.log(2) / 4] * 2)
    assert ask(torch.tensor([1.0, 2.0]), schedule=fm.VE()).tolist() == [1.0, 4.0]


def test_levels_are_those_of_the_table_and_the_sampler_visits_them_only():
    levels = torch.tensor([math.sqrt((1 - a) / a) for a in ALPHA_BAR], dtype=F64)
    denoiser = ed.adapters.wrap(lambda x, t: x * t[:, None].double() * 1e-3, "epsilon", fm.Table(ALPHA_BAR), shape=(3,))
    assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((levels[0].item(), levels[-1].item()))
    result = ed.sample(denoiser, ed.EDM, seeds=[0])
    assert (result.sigmas[:-1, None] - levels).abs().amin(1).max() < 1e-12
    assert denoiser.round_sigma(levels[3] * 1.001) == levels[3] and denoiser.round_sigma(torch.zeros(())) == 0
    freed = ed.adapters.wrap(denoiser.fn, "epsilon", fm.Table(ALPHA_BAR), time="interpolated", shape=(3,))
    assert freed.round_sigma(torch.tensor(0.77)) == torch.tensor(0.77)


def test_a_table_gives_the_gaussian_too():
    levels = torch.tensor([math.sqrt((1 - a) / a) for a in ALPHA_BAR], dtype=F64)
    fn = network("v", lambda k: levels[k], lambda sigma: 1 / (1 + sigma**2).sqrt())
    denoiser = ed.adapters.wrap(fn, "v", fm.Table(ALPHA_BAR))
    x, sigma = torch.randn(4, 3, dtype=F64), levels[[2, 11, 30, 49]]
    assert torch.allclose(denoiser(x, sigma), clean(x, sigma), rtol=1e-10, atol=1e-10)


def test_dtypes_labels_and_conditions_reach_the_network():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, t, labels=None, text=None):
            self.seen = (x.dtype, t.dtype, labels, text)
            return self.w * x

    net = Net()
    denoiser = ed.adapters.wrap(net, "x0", fm.VP(), shape=(3,), label_dim=2)
    D = denoiser(torch.ones(2, 3, dtype=F64), 0.5, labels=torch.tensor([1, 0]), text="hello")
    assert D.dtype == torch.float32 and net.seen[:2] == (torch.bfloat16, torch.float32) and net.seen[3] == "hello"
    assert net.seen[2].tolist() == [[0, 1], [1, 0]]
    denoiser(torch.ones(2, 3), 0.5)
    assert net.seen[2].tolist() == [[0, 0], [0, 0]]
    assert denoiser(torch.ones(2, 3), 0.5).requires_grad  # it can be trained


def test_the_levels_of_a_sampler_as_other_programs_take_them():
    listed = ed.adapters.to_sigmas(ed.EDM)
    assert listed.dtype == torch.float32 and len(listed) == 19 and listed[0] == 80 and listed[-1] == 0
    assert listed[1].item() == pytest.approx(57.585985)
    plain = ed.adapters.to_sigmas(ed.EDM, form="diffusers")
    assert len(plain) == 18 and plain[-1] == pytest.approx(0.002)
    assert ed.adapters.to_sigmas(ed.EDM, form="flow") == pytest.approx([s / (1 + s) for s in plain])
    discrete = ed.adapters.wrap(lambda x, t: x, "epsilon", fm.Table(ALPHA_BAR))
    assert ed.adapters.to_sigmas(ed.EDM, discrete, "diffusers")[0] == pytest.approx(discrete.sigma_max)
    with pytest.raises(ValueError, match="form 'comfy'.*diffusers"):
        ed.adapters.to_sigmas(ed.EDM, form="comfy")


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "prediction 'eps'.*epsilon", {"prediction": "eps"}),
        (ValueError, "time='index' needs a schedule with entries.*got 'edm'", {"time": "index"}),
        (ValueError, "unknown time 'discrete'.*function of sigma", {"time": "discrete"}),
        (ValueError, "expected 0 <= min < max", {"sigma_min": 3, "sigma_max": 2}),
        (ValueError, "time_scale: got -1", {"time_scale": -1}),
        (ValueError, "label_dim: got -2", {"label_dim": -2}),
        (TypeError, "fn: got str", {"fn": "net.pt"}),
    ],
)
def test_what_cannot_be_is_refused(error, message, options):
    with pytest.raises(error, match=message):
        ed.adapters.wrap(**{"fn": lambda x, t: x, **options})


def test_what_a_network_returns_must_fit():
    x = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"fn returned \(2, 8, 3, 3\) for x \(2, 4, 3, 3\).*first half"):
        ed.adapters.wrap(lambda x, t: torch.cat([x, x], 1))(x, 1.0)
    with pytest.raises(TypeError, match="fn returned tuple"):
        ed.adapters.wrap(lambda x, t: (x,))(x, 1.0)
    with pytest.raises(ValueError, match="model without classes"):
        ed.adapters.wrap(lambda x, t: x)(x, 1.0, labels=torch.tensor([0, 1]))
