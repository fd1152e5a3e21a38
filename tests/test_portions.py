"""Portions: all parts together, each once, and wrong ones are told."""

import pytest

from elucidiff.portions import Portion, first_here, own_device


@pytest.mark.parametrize("parts, count", [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_the_portions_are_all_parts_each_once(parts, count):
    shares = [list(Portion(i, count).of(parts)) for i in range(count)]
    assert sorted(k for share in shares for k in share) == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_are_divided_among_the_processes_of_torchrun(monkeypatch):
    assert (Portion.here(), Portion.here("3/5")) == (Portion(0, 1), Portion(3, 5))
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert Portion.here() == Portion(rank, 2)
        for shard in range(5):
            share = Portion.here(f"{shard}/5").of(40)
            assert len(share) == 4
            shares += share
    assert sorted(shares) == list(range(40))


def test_each_process_of_a_machine_has_its_own_gpu_and_the_first_shows_the_bar(monkeypatch):
    assert (own_device("cuda"), own_device("cpu"), first_here()) == ("cuda", "cpu", True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert (own_device("cuda"), own_device("cuda:0"), own_device("cpu")) == ("cuda:2", "cuda:0", "cpu")
    assert not first_here()


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "1/0", "", "1/2/3", "0.5/2"])
def test_what_is_no_portion_is_refused(text):
    with pytest.raises(ValueError, match=r"shard: got .*expected i/n with 0 <= i < n"):
        Portion.parse(text)
