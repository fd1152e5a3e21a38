"""What a GPU computes is what a CPU computes, to its precision; skipped where there is none."""

import pytest
import torch

import elucidiff as ed
from elucidiff.networks import DDPMPP, EDM2, MLP
from elucidiff.seeds import Stream, torch_seeded
from elucidiff.training import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NETWORKS = {
    "ddpmpp": (DDPMPP(channels=16, multipliers=(1, 2), blocks=1, attention=(8,)), (3, 16, 16)),
    "edm2": (EDM2(channels=16, multipliers=(1, 2), blocks=1, attention=(8,)), (3, 16, 16)),
    "mlp": (MLP(width=32, depth=2), (2,)),
}


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("name", NETWORKS)
def test_cpu_and_gpu_samples_agree(name, solver):
    """18 steps in float32, the same noise: at most 1e-3 apart (N9)."""
    network, shape = NETWORKS[name]
    with torch_seeded(0, Stream.INIT):
        model = ed.Preconditioned(network, ed.preconditioning.EDM(sigma_data=0.5), shape=shape).eval()
    sampler = ed.EDM.sampler.replace(solver=ed.solvers.Solver.kinds()[solver]())
    found = {}
    for device in ("cpu", "cuda"):
        found[device] = ed.sample(model.to(device), sampler, seeds=range(8), dtype=torch.float32).x.cpu()
    assert (found["cpu"] - found["cuda"]).abs().max() <= 1e-3


def test_a_step_of_training_is_that_of_the_cpu():
    config = ed.TrainConfig(network=NETWORKS["mlp"][0], batch=64)
    data = ed.data.from_arrays(torch.randn(256, 2, generator=torch.Generator().manual_seed(0)).numpy(), None, None)
    steps = [Trainer.start(config.replace(device=device), data).train_step() for device in ("cpu", "cuda")]
    assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-4)
    assert steps[0].grad_norm == pytest.approx(steps[1].grad_norm, rel=1e-3)
