"""Fingerprints of models: what they know, and what they leave out."""

import hashlib

import pytest
import torch

import elucidiff as ed
from elucidiff.identity import fingerprint, tensor_digest


def network(seed: int = 0, preconditioning: ed.preconditioning.Preconditioning | None = None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"shape": (3,)} | options
        return ed.Preconditioned(ed.networks.MLP(width=8), preconditioning or ed.preconditioning.EDM(), **options)


def test_weights_settings_and_classes_make_another_model():
    nudged, narrowed = network(), network()
    with torch.no_grad():
        next(nudged.parameters()).view(-1)[0] += 1e-6
    narrowed.sigma_max = 5.0
    conditional = network(label_dim=2)
    models = [
        network(), network(seed=1), nudged, narrowed, conditional, ed.FixedBatch(network(), 4), ed.FixedBatch(network(), 5),
        network(preconditioning=ed.preconditioning.EDM(sigma_data=0.6)), network(preconditioning=ed.preconditioning.VP()),
        ed.guidance.ClassifierFree(conditional, 2.0), ed.guidance.ClassifierFree(conditional, 2.5),
        ed.GaussianDenoiser(torch.zeros(3), 0.5), ed.GaussianDenoiser(torch.zeros(3), 0.8),
        ed.GaussianDenoiser(torch.ones(3), 0.5),
    ]  # fmt: skip
    assert len({fingerprint(model) for model in models}) == len(models)


def test_notes_and_counters_do_not():
    model = network(label_dim=2)
    guided = ed.guidance.ClassifierFree(model, 2.0)
    before = fingerprint(model), fingerprint(guided)
    ed.sample(guided, ed.EDM.sampler.replace(steps=2), seeds=[0], labels=1)
    model.info["note"] = "where it lies, how it was trained"
    assert guided.main_calls > 0
    assert (fingerprint(model), fingerprint(guided)) == before
    assert fingerprint(network(label_dim=2)) == before[0]


def half(x, sigma):
    return x / 2


def test_a_function_is_known_by_its_name_unless_it_has_none():
    assert fingerprint(ed.denoiser.FunctionDenoiser(half, (3,))) == fingerprint(
        ed.denoiser.FunctionDenoiser(half, (3,))
    )
    with pytest.raises(TypeError, match="made on the spot.*write it as a Denoiser with attributes"):
        fingerprint(ed.denoiser.FunctionDenoiser(lambda x, sigma: x, (3,)))


def test_a_tensor_is_its_type_shape_and_numbers():
    t = torch.tensor([[1.0, 2.0]])
    assert tensor_digest(t) == hashlib.sha256(b"torch.float32 (1, 2) " + t.numpy().tobytes()).hexdigest()
    assert len({tensor_digest(x) for x in (t, t.T, t.double(), t + 1, t.int())}) == 5
    wide = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(wide.T) == tensor_digest(wide.T.contiguous())
