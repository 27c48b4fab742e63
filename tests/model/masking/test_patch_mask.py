"""Test mask plans: a permutation, the right count, whole blocks, and a lossless inverse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from microdit.common.errors import ConfigError
from microdit.common.registry import import_plugins
from microdit.common.rng import RowDraws, generator
from microdit.model import DiTConfig, MaskingConfig, mask_from_keep, random_mask
from microdit.model.masking.base import MaskingLossInputs
from microdit.model.masking.kept_patches import kept_patches
from microdit.model.masking.registry import build_masking
from microdit.model.validate import check_model

BLOCKS = st.sampled_from([(4, 1), (8, 1), (8, 2), (8, 4), (6, 3), (16, 1), (16, 4), (5, 5)])
RATIOS = st.floats(0, 0.999)
SEEDS = st.integers(0, 2**32)


def draw(side, ratio, block, seed, batch=3):
    blocks = (side // block) ** 2
    assume(blocks * (1 - ratio) >= 1)
    return random_mask(batch, side, ratio, block, generator(seed, "mask"))


@given(BLOCKS, RATIOS, SEEDS)
def test_a_plan_is_a_permutation(shape, ratio, seed):
    side, block = shape
    plan = draw(side, ratio, block, seed)
    everything = torch.arange(side**2).expand(3, -1)
    assert torch.equal(plan.ids_restore.sort(1).values, everything)
    order = plan.ids_restore.argsort(1)
    kept, dropped = order.split([plan.ids_keep.shape[1], side**2 - plan.ids_keep.shape[1]], dim=1)
    assert torch.equal(kept, plan.ids_keep)
    assert (dropped.diff(dim=1) > 0).all()
    assert torch.equal(plan.mask.gather(1, plan.ids_keep), torch.zeros(plan.ids_keep.shape))
    assert plan.mask.sum() == 3 * (side**2 - plan.ids_keep.shape[1])


@given(st.integers(1, 20), st.integers(0, 999))
def test_the_number_of_kept_patches_follows_the_ratio(side, thousandths):
    exact = side**2 * (1000 - thousandths) // 1000  # in integers: nothing lost to rounding
    if exact == 0:
        with pytest.raises(ConfigError, match="keeps none"):
            kept_patches(side, thousandths / 1000, 1)
    else:
        assert kept_patches(side, thousandths / 1000, 1) == exact
        assert draw(side, thousandths / 1000, 1, 0).ids_keep.shape == (3, exact)


@given(BLOCKS, RATIOS, SEEDS)
def test_blocks_are_kept_or_dropped_whole(shape, ratio, seed):
    side, block = shape
    plan = draw(side, ratio, block, seed)
    coarse = side // block
    tiles = plan.mask.view(3, coarse, block, coarse, block).transpose(2, 3).flatten(3)
    assert torch.equal(tiles.amin(-1), tiles.amax(-1))
    assert (tiles.amax(-1) == 0).flatten(1).sum(1).tolist() == [int(coarse**2 * (1 - ratio) + 1e-9)] * 3


@given(BLOCKS, RATIOS, SEEDS)
def test_kept_patches_return_to_their_places_and_the_rest_is_zero(shape, ratio, seed):
    side, block = shape
    plan = draw(side, ratio, block, seed)
    config = DiTConfig(input_size=2 * side, masking=MaskingConfig("naive", 0.0))
    masking = build_masking(config)
    x = torch.randn(3, side**2, 5, generator=generator(seed, "x"))
    assert torch.equal(masking.restore(masking.drop(x, plan), plan), x * (1 - plan.mask).unsqueeze(-1))


@given(st.permutations(range(16)), st.integers(1, 16))
def test_a_given_order_of_kept_patches_is_respected(order, kept):
    plan = mask_from_keep(torch.tensor([order[:kept]]), 16)
    masking = build_masking(DiTConfig(input_size=8))
    x = torch.arange(1.0, 17.0).view(1, 16, 1)
    assert masking.drop(x, plan).flatten().tolist() == [float(i + 1) for i in order[:kept]]
    assert torch.equal(masking.restore(masking.drop(x, plan), plan), x * (1 - plan.mask).unsqueeze(-1))


@given(RATIOS, SEEDS)
def test_the_loss_averages_kept_patches_only(ratio, seed):
    plan = draw(4, ratio, 1, seed)
    error = torch.rand(3, 16, generator=generator(seed, "error"))
    corrupted = torch.where(plan.mask == 1, 1e6, error)
    masking = build_masking(DiTConfig(input_size=8))
    expected = torch.stack([row[keep].mean() for row, keep in zip(error, plan.ids_keep, strict=True)])
    nothing = torch.zeros(())
    torch.testing.assert_close(masking.loss(MaskingLossInputs(corrupted, nothing, nothing), plan), expected)


def test_every_patch_is_kept_equally_often():
    plan = random_mask(4000, 4, 0.75, 1, generator(0, "mask"))
    share = 1 - plan.mask.mean(0)
    assert share.min() > 0.22
    assert share.max() < 0.28


def test_a_plan_depends_on_its_generator_alone():
    first, again, other = (random_mask(8, 8, 0.5, 2, generator(seed, "mask")) for seed in (0, 0, 1))
    assert torch.equal(first.ids_keep, again.ids_keep)
    assert not torch.equal(first.ids_keep, other.ids_keep)


@pytest.mark.parametrize("method", ["none", "naive", "deferred"])
def test_nothing_to_drop_means_no_plan(method):
    masking = build_masking(DiTConfig(masking=MaskingConfig(method, 0.0)))
    assert masking.plan(RowDraws(generator(0, "mask"), 4)) is None
    assert masking.kept == 64


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "none", "ratio": 0.5}, ["'model.masking.method' is none", "0.5", "naive"]),
        ({"ratio": 1.0}, ["'model.masking.ratio' is 1.0", "at least 0 and below 1"]),
        ({"ratio": -0.1}, ["'model.masking.ratio'"]),
        ({"ratio": float("nan")}, ["'model.masking.ratio'"]),
        ({"ratio": 0.99}, ["keeps none of 64", "0.984375"]),
        ({"block_size": 3}, ["'model.masking.block_size' is 3", "8 x 8", "nearest that does is 2"]),
        ({"block_size": 0}, ["'model.masking.block_size' is 0"]),
        ({"block_size": 4, "ratio": 0.8}, ["keeps none of 4", "0.75"]),
        ({"method": "defered"}, ["'model.masking.method' is 'defered'", "'deferred'"]),
    ],
)
def test_an_impossible_mask_is_rejected_with_the_nearest_possible(values, words):
    with pytest.raises(ConfigError) as caught:
        check_model(DiTConfig(masking=dataclasses.replace(MaskingConfig(), **values)))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_method_with_the_former_signature_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "former_masking.py").write_text(
        "from microdit.model.masking.base import DeferredMasking\n\n\n"
        "class Rows(DeferredMasking):\n"
        "    def plan(self, batch, generator):\n"
        "        return None\n"
    )
    with pytest.raises(ConfigError, match=r"former_masking\.Rows: the method must be plan\(self, draws\)"):
        import_plugins(["former_masking"])
