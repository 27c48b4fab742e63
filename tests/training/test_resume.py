"""Test that a run stopped anywhere and resumed ends with identical weights, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_trap import PickleTrap
from safetensors.torch import load_file, save_file

from microdit.common.errors import CheckpointError, DivergenceError
from microdit.config.schema import Config
from microdit.pipeline.pretrained import load_denoiser
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run
from microdit.training.checkpoint import read_checkpoint
from microdit.training.graceful_stop import GracefulStop
from microdit.training.optim.optimizer_file import decode_optimizer, encode_optimizer


class Killed(BaseException):
    """Interrupt like a signal, which handlers of ordinary errors must not catch."""


class KillAt(NullLogger):
    """Interrupt the run after `step` finished steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step: int, values: dict) -> None:
        if step == self.step:
            raise Killed


class Log(NullLogger):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self.norms: dict[int, float] = {}
        self.status = ""

    def metrics(self, step: int, values: dict) -> None:
        if "train/loss" in values:
            self.losses[step] = values["train/loss"]
            self.norms[step] = values["grad_norm"]
        if "val/loss" in values:
            self.validation[step] = values["val/loss"]

    def finish(self, status: str) -> None:
        self.status = status


def with_training(config: Config, out: Path, **changes: object) -> Config:
    training = dataclasses.replace(config.training, log_every=1, **changes)
    return dataclasses.replace(config, output_dir=str(out), training=training)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(("stop", "optimizer"), [(1, "adamw"), (4, "adamw"), (5, "adamw"), (4, "muon"), (5, "muon")])
def test_a_killed_run_resumes_to_identical_weights(smoke_config: Config, tmp_path: Path, stop: int, optimizer: str):
    config = dataclasses.replace(smoke_config, optimizer=dataclasses.replace(smoke_config.optimizer, type=optimizer))
    whole = with_training(config, tmp_path / "whole", steps=6, checkpoint_every=2)
    broken = with_training(config, tmp_path / "broken", steps=6, checkpoint_every=2)
    straight = Log()
    run(whole, straight)
    with pytest.raises(Killed):
        run(broken, KillAt(stop))
    again = Log()
    run(broken, again)

    assert again.status == "FINISHED"
    assert min(again.losses) == (stop - 1) // 2 * 2 + 1  # from the last checkpoint written before the kill
    assert all(straight.losses[step] == loss for step, loss in again.losses.items())
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


class Eventful(Log):
    """Pass the steps of logged metrics to `act`; validation at every step logs each step."""

    def __init__(self, act: Callable[[int], None]) -> None:
        super().__init__()
        self.act = act

    def metrics(self, step: int, values: dict) -> None:
        super().metrics(step, values)
        self.act(step)


@pytest.mark.parametrize(("ending", "at"), [("asked", 3), ("asked", 7), ("killed", 8)])
def test_a_stop_within_a_log_interval_does_not_change_the_curve(
    smoke_config: Config, tmp_path: Path, ending: str, at: int
):
    changes: dict[str, Any] = {"steps": 10, "val_every": 1, "checkpoint_every": 0 if ending == "asked" else 7}
    whole, broken = (with_training(smoke_config, tmp_path / name, **changes) for name in ("whole", "broken"))
    whole, broken = (replace(c, training=replace(c.training, log_every=5)) for c in (whole, broken))
    straight = Log()
    run(whole, straight)
    stop = GracefulStop()

    def end(step: int) -> None:
        if step == at and ending == "killed":
            raise Killed
        if step == at:
            stop.ask()

    first, again = Eventful(end), Log()
    with pytest.raises((KeyboardInterrupt, Killed)):
        run(broken, first, stop=stop)
    run(broken, again)
    assert list(straight.losses) == [5, 10]
    assert first.losses | again.losses == straight.losses
    assert first.norms | again.norms == straight.norms


class Buffered(Log):
    """Store metrics only when flushed, like a logger that writes to a database in batches."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, float] = {}

    def metrics(self, step: int, values: dict) -> None:
        super().metrics(step, values)
        if step == 6:
            raise Killed

    def flush(self) -> None:
        self.kept = dict(self.losses)


def test_after_a_kill_the_recorded_curve_reaches_the_checkpoint(smoke_config: Config, tmp_path: Path):
    config = with_training(smoke_config, tmp_path / "run", steps=7, checkpoint_every=4)
    first, again = Buffered(), Log()
    with pytest.raises(Killed):
        run(config, first)
    run(config, again)
    assert sorted(first.kept | again.losses) == [1, 2, 3, 4, 5, 6, 7]


def test_on_a_full_disk_the_run_resumes_from_the_previous_checkpoint(smoke_config: Config, tmp_path: Path):
    whole = with_training(smoke_config, tmp_path / "whole", steps=6, checkpoint_every=2)
    broken = with_training(smoke_config, tmp_path / "broken", steps=6, checkpoint_every=2)
    run(whole)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def no_room(step: int) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(CheckpointError, match=r"step_00000004: can't be written \(.*\); is the disk full\?"):
            run(broken, Eventful(no_room))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["step_00000002"]
    run(broken)
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_complete_run_logs_the_final_validation_again(smoke_config: Config, tmp_path: Path):
    config = with_training(smoke_config, tmp_path / "run", steps=4, val_every=2)
    first, again = Log(), Log()
    metrics = run(config, first)
    assert list(first.validation) == [2, 4]
    assert metrics["final/val_loss"] == first.validation[4]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["final/val_loss"] == first.validation[4]
    assert run(config, again)["final/val_loss"] == first.validation[4]
    assert not again.losses, "nothing was left to train"
    assert again.validation == {4: first.validation[4]}


def test_accumulation_gives_the_same_update(smoke_config: Config, tmp_path: Path):
    logs = []
    for accumulation in (1, 4):
        log = Log()
        run(with_training(smoke_config, tmp_path / str(accumulation), steps=3, accumulation=accumulation), log)
        logs.append([log.losses[step] for step in (1, 2, 3)])
    np.testing.assert_allclose(logs[0], logs[1], rtol=2e-5)


def test_arms_share_data_order_noise_and_initial_loss_scale(smoke_config: Config, tmp_path: Path):
    first = []
    for method, ratio in (("none", 0.0), ("naive", 0.5)):
        masking = dataclasses.replace(smoke_config.model.masking, method=method, ratio=ratio)
        model = dataclasses.replace(smoke_config.model, masking=masking)
        log = Log()
        run(with_training(dataclasses.replace(smoke_config, model=model), tmp_path / method, steps=2), log)
        first.append(log.losses[1])
    # The head starts at zero, so both arms predict the same at step 1, over all patches and over half of them.
    assert first[0] == pytest.approx(first[1], rel=0.2)
    assert first[0] != first[1]


def test_runs_repeat_for_equal_seeds_and_differ_otherwise(smoke_config: Config, tmp_path: Path):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        log = Log()
        run(dataclasses.replace(with_training(smoke_config, tmp_path / name, steps=2), seed=seed), log)
        losses.append(log.losses[2])
    assert losses[0] == losses[1] != losses[2]


def test_divergence_names_step_and_last_good_checkpoint(smoke_config: Config, tmp_path: Path):
    hot = dataclasses.replace(smoke_config.optimizer, lr=1e30)
    config = dataclasses.replace(smoke_config, optimizer=hot)
    config = with_training(config, tmp_path / "hot", steps=6, checkpoint_every=1, clip=0.0)
    log = Log()
    with pytest.raises(DivergenceError, match=r"not finite at step \d; the last good checkpoint is .*step_0000000\d"):
        run(config, log)
    assert log.status == "FAILED"
    for path in (tmp_path / "hot" / "checkpoints").glob("step_*"):
        assert json.loads((path / "state.json").read_text())["step"] < 6


def test_a_checkpoint_of_other_settings_is_rejected(smoke_config: Config, tmp_path: Path):
    run(with_training(smoke_config, tmp_path / "run", steps=2))
    other = with_training(smoke_config, tmp_path / "run", steps=3)
    with pytest.raises(CheckpointError, match="other settings"):
        run(other)


@pytest.fixture(scope="module")
def finished(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a run of two steps; its tests leave its checkpoint as it was."""
    config = with_training(smoke_config, tmp_path_factory.mktemp("finished") / "run", steps=2)
    run(config)
    return config


def checkpoint_of(config: Config) -> Path:
    (folder,) = (Path(config.output_dir) / "checkpoints").glob("step_*")
    return folder


FILES = (*(f"{name}.safetensors" for name in ("weights", "ema", "alignment", "optimizer")), "optimizer.json")


@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_errors_name_the_damaged_file_of_a_checkpoint(finished: Config, name: str):
    path = checkpoint_of(finished) / name
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for place in rng.integers(0, len(content), 20):
        flipped.append(bytearray(content))
        flipped[-1][place] ^= 1 << int(rng.integers(0, 8))
    try:
        for damaged in (*flipped, content[: len(content) // 2], b"", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=rf"step_00000002: can't be resumed \(.*{name}.*; remove it"):
                read_checkpoint(path.parent)
        with pytest.raises(CheckpointError, match=rf"can't be resumed \(.*{name}: no such file"):
            run(finished)
    finally:
        path.write_bytes(content)
    read_checkpoint(path.parent)


def test_a_checkpoint_of_the_older_format_is_rejected_and_never_unpickled(finished: Config, tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints" / "step_00000002"
    shutil.copytree(checkpoint_of(finished), folder)
    for name in ("optimizer.json", "optimizer.safetensors"):
        (folder / name).unlink()
    torch.save(PickleTrap(tmp_path / "executed"), folder / "optimizer.pt")
    (folder / "state.json").write_text(json.dumps({"step": 2, "training_key": "0" * 16}))
    with pytest.raises(CheckpointError, match=r"step_00000002: .*older version, whose optimizer.pt is a pickle"):
        run(replace(finished, output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "executed").exists()


def test_errors_name_weights_that_are_damaged_or_not_finite(finished: Config, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    content = bytearray((Path(finished.output_dir) / "model.safetensors").read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors: wrong checksum"):
        load_denoiser(finished, path)
    started = replace(finished, training=replace(finished.training, init=str(path)), output_dir=str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"model.safetensors: wrong checksum"):
        run(started)
    tensors = load_file(Path(finished.output_dir) / "model.safetensors")
    tensors["final_layer.linear.weight"][0, 0] = float("nan")
    save_file(tensors, path)  # as another program writes it, without a digest
    with pytest.raises(CheckpointError, match=r"model.safetensors: has NaN or infinity in final_layer.linear.weight"):
        load_denoiser(finished, path)


@given(
    state=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
@settings(max_examples=30)
def test_any_plain_optimizer_state_round_trips(state: Any):
    whole = {"state": {0: {"exp_avg": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3.0), "more": state}}}
    text, tensors = encode_optimizer(whole)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "optimizer.json").write_text(text)
        found = decode_optimizer(Path(folder) / "optimizer.json", tensors)
    kept, read = whole["state"][0], found["state"][0]
    assert torch.equal(kept.pop("exp_avg"), read.pop("exp_avg"))
    assert torch.equal(kept.pop("step"), read.pop("step"))
    assert repr(kept) == repr(read)  # types too: a list is no tuple, 1 not 1.0


def test_ema_starts_at_the_configured_step(smoke_config: Config, tmp_path: Path):
    tensors = {}
    for name, ema in {"off": (0.0, 0), "late": (0.9, -1), "early": (0.9, 0)}.items():
        changed = dataclasses.replace(smoke_config.training.ema, decay=ema[0], start_step=ema[1])
        run(with_training(smoke_config, tmp_path / name, steps=4, ema=changed))
        tensors[name] = weights(tmp_path / name)
    key = "final_layer.linear.weight"
    assert torch.equal(tensors["off"][key], tensors["late"][key])  # one averaged step is that step itself
    assert not torch.equal(tensors["off"][key], tensors["early"][key])
