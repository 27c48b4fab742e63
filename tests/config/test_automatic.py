"""Test that settings which are `auto` have a value before a run is identified."""

from __future__ import annotations

from pathlib import Path

import pytest

from microdit.common.errors import ConfigError
from microdit.common.parsing import flatten, to_mapping
from microdit.config import automatic
from microdit.config.identity import trial_key
from microdit.config.schema import Config, load_config, save_config
from microdit.training.memory import training_memory
from sweeps.config.hydra_compose import compose_config

LONG, SHORT = "training.steps=10000000", "training.steps=1400"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets what the machine has."""

    def set_machine(bf16: bool = False, compiler: bool = True, cuda: bool = False) -> None:
        monkeypatch.setattr(automatic, "has_cuda", lambda: cuda)
        monkeypatch.setattr(automatic, "has_fast_bf16", lambda on_gpu: bf16)
        monkeypatch.setattr(automatic, "can_compile", lambda on_gpu: compiler)

    return set_machine


UNMASKED = ["model.masking.method=none", "model.masking.ratio=0"]


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_machine_and_its_key_is_that_of_the_value(machine, bf16: bool, expected: str):
    machine(bf16=bf16)
    config = compose_config(["scale=demo", *UNMASKED, "training.precision=auto"])
    assert config.training.precision == expected
    assert trial_key(config) == trial_key(compose_config(["scale=demo", *UNMASKED, f"training.precision={expected}"]))


@pytest.mark.parametrize(
    ("words", "cuda", "expected"),
    [
        (["model.masking.method=naive", "model.masking.ratio=0.75"], False, "fp32"),
        (["model.masking.method=naive", "model.masking.ratio=0.75"], True, "bf16"),
        ([*UNMASKED, "training.accumulation=2"], False, "fp32"),
        ([*UNMASKED, "training.batch_size=32", "training.accumulation=2"], False, "bf16"),
    ],
)
def test_a_cpu_computes_small_micro_batches_in_fp32(machine, words: list[str], cuda: bool, expected: str):
    machine(bf16=True, cuda=cuda)
    assert compose_config(["scale=demo", *words, "training.precision=auto"]).training.precision == expected


@pytest.mark.parametrize(
    ("words", "compiler", "expected"),
    [
        ([LONG], True, True),
        ([SHORT], True, False),
        ([LONG], False, False),
        ([LONG, "training.parallel=fsdp"], True, False),
    ],
)
def test_compilation_follows_the_length_of_the_run(machine, words: list[str], compiler: bool, expected: bool):
    machine(compiler=compiler)
    config = compose_config(["scale=demo", *words, "training.compile=auto"])
    assert config.training.compile is expected
    assert trial_key(config) == trial_key(compose_config(["scale=demo", *words, f"training.compile={expected}"]))


def test_a_gpu_needs_a_longer_run_to_pay_for_compilation(machine):
    words = ["scale=demo", "training.steps=100000", "training.compile=auto"]
    machine(cuda=False)
    assert compose_config(words).training.compile is True
    machine(cuda=True)
    assert compose_config(words).training.compile is False


def test_a_run_records_the_values(machine, tmp_path: Path):
    machine(bf16=True)
    words = [*UNMASKED, "training.precision=auto", "training.compile=auto", LONG]
    config = Config.preset("demo", words)
    save_config(config, tmp_path / "config.yaml")
    machine(bf16=False, compiler=False)
    assert load_config(tmp_path / "config.yaml") == config  # another machine does not decide again
    stored = flatten(to_mapping(config))
    assert (stored["training.precision"], stored["training.compile"]) == ("bf16", True)


@pytest.mark.parametrize("value", ["1", "fast", "null"])
def test_another_value_is_rejected(value: str):
    with pytest.raises(ConfigError, match=r"training\.compile"):
        compose_config(["scale=demo", f"training.compile={value}"])


def test_accumulation_follows_the_memory_of_a_gpu(machine, monkeypatch: pytest.MonkeyPatch):
    words = ["scale=gpu", "training.accumulation=auto", "training.precision=bf16"]
    machine(cuda=False)
    assert compose_config(words).training.accumulation == 1
    machine(cuda=True)
    memory = training_memory(compose_config(["scale=gpu"]))
    for micro in (256, 64, 1):
        monkeypatch.setattr(automatic, "gpu_memory", lambda micro=micro: memory.total(micro) * 1.001)
        config = compose_config(words)
        assert config.training.accumulation == 256 // micro
        assert trial_key(config) == trial_key(compose_config(["scale=gpu", f"training.accumulation={256 // micro}"]))
    monkeypatch.setattr(automatic, "world_size", lambda: 4)
    assert compose_config(words).training.accumulation == 64
    monkeypatch.setattr(automatic, "gpu_memory", lambda: memory.total(1) * 0.999)
    with pytest.raises(ConfigError, match=r"auto, but one image needs .* GB .*set training.activation_checkpointing"):
        compose_config(words)


@pytest.mark.parametrize("value", ["fast", "0", "1.5", "null"])
def test_another_accumulation_is_rejected(value: str):
    with pytest.raises(ConfigError, match=r"training\.accumulation"):
        compose_config(["scale=demo", f"training.accumulation={value}"])
