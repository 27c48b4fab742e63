"""Test that random streams are named, independent and reproducible."""

from __future__ import annotations

import torch

from microdit.common.rng import derive_seed, generator, numpy_generator


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
