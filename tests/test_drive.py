"""The outside drive: the bits of ed.sample, one network call at a time, and nothing left behind."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch

import elucidiff as ed
from elucidiff import formulation as fm
from elucidiff import preconditioning as pc
from elucidiff import solvers as so

F64 = torch.float64
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.3], [0.2, -0.9]], dtype=F64)
MIXTURE = ed.GaussianMixtureDenoiser(MEANS, 0.2)
SOLVERS, NOISES = so.Solver.kinds(), so.Stochasticity.kinds()

LOOSE = {"rk45": {"rtol": 0.1, "atol": 0.1}}  # a step of k calls runs k + 1 times


def combinations():
    """Every solver with every stochasticity that it may be combined with."""
    for solver in SOLVERS.values():
        for noise in NOISES.values():
            try:
                yield ed.Sampler(solver=solver(**LOOSE.get(solver.kind, {})), stochasticity=noise(), steps=5)
            except ValueError:  # a combination that is refused
                assert solver.draws and noise.draws


SAMPLERS = list(combinations())


def named(sampler):
    return f"{sampler.solver.kind}-{sampler.stochasticity.kind}"


class Adaptive(so.Solver):
    """Euler in as many substeps as the state asks for; draws noise at random places."""

    adaptive, memory, draws = True, 1, True

    def step(self, run, x, t, t_next):
        n = 1 + int(x.abs().sum() * 7) % 4
        for k in range(n):
            a, b = (t + (t_next - t) * j / n for j in (k, k + 1))
            x = x + (b - a) * run.velocity(x, a)
            if run.past and k % 2:
                x = x + 1e-3 * run.past[-1].kept["noise"] + 1e-3 * run.fresh_noise(x)
        run.keep("noise", run.fresh_noise(x))
        return x


class Watched(ed.Denoiser):
    """Another denoiser, and what it was asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []
        self.shape, self.label_dim = inner.shape, inner.label_dim
        self.sigma_min, self.sigma_max, self.round_sigma = inner.sigma_min, inner.sigma_max, inner.round_sigma

    def denoise(self, x, sigma, **conditions):
        self.calls.append((x, sigma))
        return self.inner(x, sigma, **conditions)


def finished(drive, denoiser=MIXTURE):
    calls = []
    while (call := drive.call) is not None:
        calls.append(call)
        conditions = {} if drive.labels is None else {"labels": drive.labels}
        drive.answer(denoiser(*call, **conditions))
    return drive.result, calls


def assert_same(result, expected):
    assert torch.equal(result.x, expected.x) and result.x.dtype == expected.x.dtype
    assert result.nfe == expected.nfe and result.seeds == expected.seeds and result.sampler == expected.sampler
    assert torch.equal(result.sigmas, expected.sigmas)
    if expected.trajectory is not None:
        for name in ("t", "sigmas", "sigma_hat", "x", "denoised"):
            assert torch.equal(getattr(result.trajectory, name), getattr(expected.trajectory, name)), name


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_the_bits_and_the_calls_are_those_of_sample(sampler):
    record = not sampler.solver.adaptive
    watched = Watched(MIXTURE)
    expected = ed.sample(watched, sampler, seeds=range(3), record=record)
    result, calls = finished(ed.Drive(sampler, seeds=range(3), shape=(2,), record=record))
    assert_same(result, expected)
    assert len(calls) == len(watched.calls)
    for (x, sigma), (x_there, sigma_there) in zip(calls, watched.calls, strict=True):
        assert torch.equal(x, x_there) and torch.equal(sigma, sigma_there)
        assert sigma.shape == () and sigma.dtype == F64
    assert expected.x.std() > 0.1


CASES = {
    "vp": ed.Sampler(schedule=fm.VP(), scaling=fm.VariancePreserving(), stochasticity=so.Churn(), steps=6),
    "design": ed.VP.replace(steps=5),
    "above zero": ed.Sampler(solver=so.DPMpp2M(), steps=5, to_zero=False),
    "adaptive": ed.Sampler(solver=Adaptive(), steps=4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_other_choices_give_the_same_bits_too(case, dtype):
    expected = ed.sample(MIXTURE, CASES[case], seeds=[5, 3, 8], dtype=dtype)
    result, calls = finished(ed.Drive(CASES[case], seeds=[5, 3, 8], shape=(2,), dtype=dtype))
    assert_same(result, expected)
    assert all(x.dtype == dtype for x, _ in calls)


def test_latents_start_the_run():
    latents = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    result, _ = finished(ed.Drive(ed.EDM, latents=latents))
    assert_same(result, ed.sample(MIXTURE, ed.EDM, latents=latents))


@pytest.mark.parametrize("solver", [so.Heun(), Adaptive()], ids=["heun", "adaptive"])
@pytest.mark.parametrize("labels", [None, [2, 0, 1, 1]])
def test_labels_are_drawn_or_given(labels, solver):
    denoiser = ed.EmpiricalDenoiser(torch.randn(30, 2, dtype=F64), torch.arange(30) % 3)
    sampler = ed.Sampler(solver=solver, stochasticity=so.Churn(), steps=4)
    drive = ed.Drive(sampler, seeds=range(4), shape=(2,), label_dim=3, labels=labels)
    assert drive.labels.shape == (len(range(4)[drive.rows]), 3)
    result, _ = finished(drive, denoiser)
    expected = ed.sample(denoiser, sampler, seeds=range(4), labels=labels)
    assert_same(result, expected)
    assert torch.equal(result.labels, expected.labels)


def test_levels_are_narrowed_and_rounded():
    class Discrete(ed.GaussianMixtureDenoiser):
        sigma_min, sigma_max = 0.05, 20.0

        def round_sigma(self, sigma):
            return pc.IDDPM().round_sigma(sigma)

    denoiser = Discrete(MEANS, 0.2)
    sampler = ed.Sampler(stochasticity=so.Churn(), steps=8)
    drive = ed.Drive(
        sampler, seeds=range(3), shape=(2,), sigma_min=0.05, sigma_max=20.0, round_sigma=pc.IDDPM().round_sigma
    )
    result, calls = finished(pickle.loads(pickle.dumps(drive)), denoiser)
    assert_same(result, ed.sample(denoiser, sampler, seeds=range(3)))
    assert all(torch.equal(pc.IDDPM().round_sigma(sigma), sigma) for _, sigma in calls)


# copies, interruptions


@pytest.mark.parametrize("sampler", [*SAMPLERS, CASES["adaptive"]], ids=named)
def test_a_copy_at_any_call_goes_on_by_itself(sampler):
    expected = ed.sample(MIXTURE, sampler, seeds=range(2))
    drive = ed.Drive(sampler, seeds=range(2), shape=(2,))
    copies, count = [], 0
    while drive.call is not None:
        if count % 7 in (0, 3):
            copies.append(copy.deepcopy(drive) if count % 2 else pickle.loads(pickle.dumps(drive)))
        drive.answer(MIXTURE(*drive.call))
        count += 1
    assert_same(drive.result, expected)
    for one in copies[:4]:
        assert_same(finished(one)[0], expected)


def test_an_abandoned_drive_leaves_nothing_behind():
    state, threads = torch.get_rng_state(), threading.active_count()
    sampler = ed.Sampler(solver=so.RK4(), stochasticity=so.Churn(), steps=5)
    expected = ed.sample(MIXTURE, sampler, seeds=range(3)).x
    gc.collect()
    gc.disable()  # reference counts alone must do: no cycle, so no open frame and no generator
    try:
        drive = ed.Drive(sampler, seeds=range(3), shape=(2,))
        for _ in range(6):  # in the middle of a step
            drive.answer(MIXTURE(*drive.call))
        left = [weakref.ref(drive), weakref.ref(drive.call.x), weakref.ref(drive.state.x)]
        assert threading.active_count() == threads and torch.is_grad_enabled()
        del drive
        assert [ref() for ref in left] == [None] * 3
    finally:
        gc.enable()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ed.sample(MIXTURE, sampler, seeds=range(3)).x, expected)


def test_no_graph_is_kept():
    drive = ed.Drive(ed.Sampler(steps=3), seeds=[0], shape=(2,))
    while (call := drive.call) is not None:
        assert not call.x.requires_grad
        drive.answer(MIXTURE(*call).requires_grad_() * 1)
    assert not drive.x.requires_grad and not drive.state.denoised.requires_grad


# what can be seen on the way, and refusals


def test_what_a_drive_shows_on_the_way():
    sampler = ed.Sampler(solver=so.Heun(), steps=3)
    drive, states = (
        ed.Drive(sampler, seeds=range(4), shape=(2,)),
        list(ed.sample_states(MIXTURE, sampler, seeds=range(4))),
    )
    start = drive.x
    assert torch.equal(start, drive.call.x) and drive.state is None and not drive.done and drive.labels is None
    for asked in range(5):
        assert not drive.done and drive.call.x is drive.call.x
        drive.answer(MIXTURE(*drive.call))
        steps = (asked + 1) // 2 if asked < 4 else 3
        if steps:
            assert drive.state.i == steps - 1 and drive.state.nfe == states[steps - 1].nfe
        assert torch.equal(drive.x, states[steps - 1].x if steps else start)
    assert drive.done and drive.call is None and drive.result.nfe == 5 and 0 < drive.result.seconds < 5


def test_answers_that_do_not_fit_are_refused_and_the_call_stays():
    drive = ed.Drive(ed.Sampler(steps=3), seeds=range(4), shape=(2,))
    with pytest.raises(RuntimeError, match="read drive.call"):
        drive.answer(torch.zeros(4, 2))  # to a call never seen
    call = drive.call
    with pytest.raises(ValueError, match=r"got D of shape \(2, 4\); expected \(4, 2\)"):
        drive.answer(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="got float"):
        drive.answer(0.0)
    with pytest.raises(RuntimeError, match="done 0 of 3 steps"):
        _ = drive.result
    assert drive.call is call
    drive.answer(MIXTURE(*call))
    with pytest.raises(RuntimeError, match="answered already"):
        drive.answer(MIXTURE(*call))
    result, _ = finished(drive)
    assert_same(result, ed.sample(MIXTURE, ed.Sampler(steps=3), seeds=range(4)))
    with pytest.raises(RuntimeError, match="the run is done"):
        drive.answer(MIXTURE(*call))


class Picky(so.Solver):
    """Heun, which fails at a D that is too large."""

    def step(self, run, x, t, t_next):
        x_next = so.Heun().step(run, x, t, t_next)
        if x_next.abs().max() > 1e6:
            raise ArithmeticError("too large")
        return x_next


def test_after_an_answer_with_which_the_step_fails_the_call_stays():
    sampler = ed.Sampler(solver=Picky(), stochasticity=so.Churn(), steps=3)
    drive = ed.Drive(sampler, seeds=range(4), shape=(2,))
    drive.answer(MIXTURE(*drive.call))
    call = drive.call
    with pytest.raises(ArithmeticError):
        drive.answer(torch.full((4, 2), 1e9))
    assert drive.call is call and drive.state is None
    assert_same(finished(drive)[0], ed.sample(MIXTURE, sampler, seeds=range(4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (2,)}, "give seeds="),
        ({"seeds": [0]}, "shape= is needed"),
        ({"seeds": [0], "shape": (2,), "labels": [0]}, "without classes"),
        ({"latents": torch.zeros(2, 2)}, "draws noise: give seeds="),
        ({"seeds": [0], "shape": (2,), "sigma_min": 100.0}, "sigma_min=100, sigma_max=80"),
        ({"seeds": [0], "shape": (2,), "record": "foo"}, "record: got"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ed.Drive(ed.Sampler(stochasticity=so.Churn()), **arguments)
