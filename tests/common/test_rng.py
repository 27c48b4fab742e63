"""Test that random streams are named, independent and reproducible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microdit.common import rng
from microdit.common.rng import RowDraws, derive_seed, generator, numpy_generator


def test_streams_are_reproducible_and_distinct():
    draws = {
        key: torch.randn(4, generator=generator(*key)).tolist()
        for key in [(0, "noise", 0), (0, "noise", 1), (0, "mask", 0), (1, "noise", 0)]
    }
    assert len({tuple(values) for values in draws.values()}) == 4
    for key, values in draws.items():
        assert torch.randn(4, generator=generator(*key)).tolist() == values


def test_seed_zero_differs_from_other_seeds():
    assert derive_seed(0, "noise") != derive_seed(1, "noise")
    assert numpy_generator(0, "a").integers(1 << 30) == numpy_generator(0, "a").integers(1 << 30)


def test_the_global_generator_is_not_used():
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generator(0, "x"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_stream_names_and_steps_cannot_be_confused():
    assert derive_seed(1, "a", 12) != derive_seed(1, "a/1", 2)
    assert derive_seed(11, "a", 2) != derive_seed(1, "1/a", 2)


SHAPES = st.sampled_from([(), (1,), (5,), (16,), (4, 8), (3, 5, 16), (4, 17)])
KINDS = st.sampled_from([("uniform", torch.rand), ("normal", torch.randn)])


@given(batch=st.integers(1, 9), ends=st.tuples(st.integers(0, 9), st.integers(0, 9)), data=st.data())
def test_rows_are_those_of_the_whole_batch(batch: int, ends: tuple[int, int], data: st.DataObject):
    rows = slice(min(ends), max(ends))
    draws, whole = RowDraws(generator(0, "rows"), batch, rows), generator(0, "rows")
    for (name, draw), shape in data.draw(st.lists(st.tuples(KINDS, SHAPES), min_size=1, max_size=3)):
        expected = draw((batch, *shape), generator=whole)[rows]
        assert draws.count == len(expected)
        assert torch.equal(getattr(draws, name)(*shape), expected)


def test_rows_are_the_same_with_a_torch_whose_streams_cannot_be_skipped(monkeypatch: pytest.MonkeyPatch):
    skipped = RowDraws(generator(0, "rows"), 8, slice(2, 5)).normal(4, 16)
    monkeypatch.setattr(rng, "_can_skip", lambda: False)
    assert torch.equal(RowDraws(generator(0, "rows"), 8, slice(2, 5)).normal(4, 16), skipped)


def test_numbers_of_other_rows_are_skipped_with_this_version_of_torch():
    assert rng._can_skip()


def test_many_numbers_are_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rng, "NUMBERS_SKIPPED_TOGETHER", 64)
    whole = torch.rand(1000, generator=generator(0, "rows"))
    for count in (0, 1, 2, 63, 64, 65, 127, 128, 129, 999):
        rest = generator(0, "rows")
        rng._skip(rest, count)
        assert torch.equal(torch.rand(1000 - count, generator=rest), whole[count:])
