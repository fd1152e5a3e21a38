"""Portions: all parts together, each once, and wrong ones are told."""

import pytest

from elucidiff.portions import Portion


@pytest.mark.parametrize("parts, count", [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_the_portions_are_all_parts_each_once(parts, count):
    shares = [list(Portion(i, count).of(parts)) for i in range(count)]
    assert sorted(k for share in shares for k in share) == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_said_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Portion.here() == Portion(1, 2)
    assert Portion.here("3/5") == Portion(3, 5)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert Portion.here() == Portion(0, 1)


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "1/0", "", "1/2/3", "0.5/2"])
def test_what_is_no_portion_is_refused(text):
    with pytest.raises(ValueError, match=r"shard: got .*expected i/n with 0 <= i < n"):
        Portion.parse(text)
