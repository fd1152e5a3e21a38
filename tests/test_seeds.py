"""Randomness: streams that are pure functions of their keys, and rows that do not know their batch."""

import numpy as np
import pytest
import torch

from elucidiff import seeds as sd


def philox(seed, stream, step, index):
    """numpy's own Philox at key (seed, stream) and 256-bit counter (0, index, step, 0), lowest word first."""
    counter = (index << 64) + (step << 128)
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=counter))


KEYS = [(0, 1, 0, 0), (7, 3, 12, 5), (2**63 - 1, 8, 2**40, 2**50), (1, 2**20, 3, 0)]


@pytest.mark.parametrize("key", KEYS)
def test_a_keyed_stream_is_numpys_philox_at_that_key_and_counter(key):
    own, numpys = sd.keyed(*key), philox(*key)
    assert own.random(5).tolist() == numpys.random(5).tolist()
    assert own.standard_normal(5).tolist() == numpys.standard_normal(5).tolist()
    assert own.integers(1000, size=5).tolist() == numpys.integers(1000, size=5).tolist()


@pytest.mark.parametrize("position", range(4))
def test_every_part_of_a_key_matters(position):
    other = [7, 3, 12, 5]
    other[position] += 1
    assert sd.keyed(7, 3, 12, 5).random() != sd.keyed(*other).random()


def test_a_row_depends_on_its_own_index_alone():
    indices = [3, 1, 4, 1, 5, 10**12]
    rows = sd.keyed_normal(9, sd.Stream.NOISE, 2, indices, (2, 3))
    levels = sd.keyed_uniform(9, sd.Stream.LEVEL, 2, indices)
    assert rows.shape == (6, 2, 3) and rows.dtype == torch.float32 and levels.dtype == torch.float64
    for j, index in enumerate(indices):
        alone = philox(9, sd.Stream.NOISE, 2, index).standard_normal((2, 3), dtype=np.float32)
        assert rows[j].numpy().tolist() == alone.tolist()
        assert levels[j].item() == philox(9, sd.Stream.LEVEL, 2, index).random()


def test_the_numbers_of_the_streams_do_not_change():
    # They are part of the file format: a run resumed by a later release must draw what the earlier one would have.
    expected = {"ORDER": 1, "LEVEL": 2, "NOISE": 3, "LABEL": 4, "NETWORK": 5, "INIT": 6, "SPLIT": 7, "AUGMENT": 8}
    expected |= {"STRATUM": 9, "HELDOUT": 10, "PROBE": 20, "DEQUANTISE": 21}
    assert {name: value for name, value in vars(sd.Stream).items() if name.isupper()} == expected


def test_keyed_noise_is_standard_normal_and_levels_uniform():
    x = sd.keyed_normal(0, 3, 0, range(2000), (50,)).double()
    u = sd.keyed_uniform(0, 2, 0, range(20_000))
    assert abs(x.mean().item()) <= 4 / 100_000**0.5 and abs(x.var().item() - 1) <= 4 * (2 / 100_000) ** 0.5
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean().item() - 0.5) <= 4 * (1 / 12 / 20_000) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 1797])
@pytest.mark.parametrize("epoch", [0, 1, 10**6])
def test_an_epoch_has_every_sample_once_and_its_own_order(n, epoch):
    order = sd.permutation(n, 5, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == philox(5, 1, epoch, 0).permutation(n).tolist()
    if n > 2:
        assert order.tolist() != sd.permutation(n, 5, epoch + 1).tolist()
        assert order.tolist() != sd.permutation(n, 6, epoch).tolist()


def test_torch_seeded_is_a_function_of_its_key_and_restores_the_global_state():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with sd.torch_seeded(4, sd.Stream.INIT, 2):
        a = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    with sd.torch_seeded(4, sd.Stream.INIT, 2):
        assert torch.equal(torch.rand(3), a)
    with sd.torch_seeded(4, sd.Stream.INIT, 3):
        assert not torch.equal(torch.rand(3), a)


def test_torch_seeded_restores_the_global_state_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), sd.torch_seeded(0, 1):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_one_torch_generator_a_sample():
    streams = sd.Seeds([5, 2**63 - 1, 5])
    normal, integers = streams.normal((2, 2), torch.float32), streams.integers(10)
    second = streams.normal((3,), torch.float64)
    assert len(streams) == 3
    for row, seed in enumerate([5, 2**63 - 1, 5]):
        g = torch.Generator().manual_seed(seed)
        assert torch.equal(normal[row], torch.randn(2, 2, generator=g))
        assert integers[row] == torch.randint(10, (), generator=g)
        assert torch.equal(second[row], torch.randn(3, generator=g, dtype=torch.float64))


def test_seeds_leave_the_global_state_alone():
    before = torch.get_rng_state()
    sd.Seeds(range(4)).normal((3,), torch.float32)
    sd.keyed_normal(0, 1, 2, [3], (4,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, True, "3", None])
def test_what_is_no_seed_is_refused(bad):
    with pytest.raises(ValueError, match="seeds: got"):
        sd.Seeds([0, bad])


def test_numpys_integers_are_seeds():
    assert torch.equal(
        sd.Seeds(np.arange(3)).normal((2,), torch.float32), sd.Seeds(range(3)).normal((2,), torch.float32)
    )
