"""Test the memory estimate of a training step against counts on real tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from changed_config import with_changes
from hypothesis import given
from hypothesis import strategies as st

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.diffusion import EDM
from microdit.model import DiT
from microdit.model.masking.registry import MASKING_METHODS
from microdit.pipeline.cost import text_tokens
from microdit.training.memory import TrainingMemory, check_fits, training_memory


def counted_on_the_cpu(config: Config, batch: int) -> int:
    """Return the bytes that a real forward pass in fp32 keeps for the backward pass, weights excluded."""
    net = DiT(config.model)
    owned = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model = config.model
    x = torch.randn(batch, model.in_channels, model.input_size, model.input_size)
    y = torch.randn(batch, text_tokens(config), model.caption_channels)
    plan = net.mask_plan(batch, torch.Generator())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        EDM(net, 1.0).loss(x, y, torch.ones(batch), torch.randn_like(x), plan).mean()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("method", [name for name in MASKING_METHODS if name != "none"])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_activations_in_full_precision_are_those_of_a_real_pass(smoke_config: Config, method: str, ratio: float):
    config = with_changes(smoke_config, {"model.masking.method": method, "model.masking.ratio": ratio})
    memory = training_memory(config)
    real = counted_on_the_cpu(config, 6)
    # attention kernels of the CPU and of a GPU keep different statistics
    assert memory.fixed + 6 * memory.per_image == pytest.approx(real, rel=0.1)


def test_weights_gradients_moments_and_average_are_counted(smoke_config: Config):
    parameters = sum(p.numel() for p in DiT(smoke_config.model).parameters())
    assert training_memory(smoke_config).state == 5 * 4 * parameters


def test_half_precision_and_masking_need_less(smoke_config: Config):
    masked = with_changes(smoke_config, {"model.masking.ratio": 0.75})
    half = with_changes(smoke_config, {"training.precision": "bf16"})
    full = training_memory(with_changes(smoke_config, {"model.masking.ratio": 0.0}))
    assert training_memory(masked).per_image < full.per_image
    assert training_memory(half).per_image < training_memory(smoke_config).per_image


@given(per_image=st.floats(1, 1e9), available=st.floats(0, 2e11), batch=st.integers(1, 512), state=st.floats(0, 1e10))
def test_the_largest_micro_batch_divides_the_batch_and_is_the_last_to_fit(
    per_image: float, available: float, batch: int, state: float
):
    memory = TrainingMemory(state, 0.0, per_image)
    found = memory.largest_micro_batch(available, batch)
    fitting = [size for size in range(1, batch + 1) if memory.total(size) <= available]
    if found is None:
        assert not fitting
    else:
        assert batch % found == 0
        assert found in fitting
        assert not [size for size in fitting if size > found and batch % size == 0]


def test_an_estimate_does_not_depend_on_the_batch(smoke_config: Config):
    larger = dataclasses.replace(smoke_config, training=dataclasses.replace(smoke_config.training, batch_size=64))
    assert training_memory(larger) == training_memory(smoke_config)


def with_batch(config: Config, batch: int, **changes: object) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=batch, **changes))


def test_a_step_that_does_not_fit_names_need_capacity_and_the_accumulation_that_fits(smoke_config: Config):
    config, memory = with_batch(smoke_config, 1024), training_memory(smoke_config)
    room = memory.total(256) * 1.001
    with pytest.raises(ConfigError) as caught:
        check_fits(config, room, "a small GPU", what="arm 'deferred'")
    said = str(caught.value)
    for part in ("arm 'deferred'", f"{memory.total(1024) / 1e9:,.1f} GB", "a small GPU", f"{room / 1e9:,.1f} GB"):
        assert part in said
    assert "training.accumulation=4," in said
    assert "training.activation_checkpointing=true" in said
    check_fits(with_batch(config, 1024, accumulation=4), room, "a small GPU")
    check_fits(config, room, "four small GPUs", processes=4)
    check_fits(with_batch(config, 1024, compile=True), room, "a small GPU")


def test_a_network_of_which_one_image_does_not_fit_gets_another_remedy(smoke_config: Config):
    saving = with_batch(smoke_config, 8, activation_checkpointing=True)
    for config, remedy in ((smoke_config, "training.activation_checkpointing=true"), (saving, "a larger GPU")):
        with pytest.raises(ConfigError, match=f"not even one image fits.*{remedy}"):
            check_fits(config, 0.9e9, "a tiny GPU")


def test_sharded_training_divides_the_state(smoke_config: Config):
    sharded = with_batch(smoke_config, 8, parallel="fsdp")
    assert training_memory(sharded, 4).state == training_memory(smoke_config, 4).state / 4
