"""Stopped anywhere and started again, a run ends with the very same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from microdit.config import Config
from microdit.errors import CheckpointError, DivergenceError
from microdit.run import run
from microdit.training.recorder import NullRecorder
from microdit.training.stop import StopRequest


class Killed(BaseException):
    """Like a signal: no handler of ordinary errors may swallow it."""


class KillAt(NullRecorder):
    """Ends the run from outside after `step` finished steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step: int, values: dict) -> None:
        if step == self.step:
            raise Killed


class Log(NullRecorder):
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
    """Tells the steps of its metrics to `act`; validation at every step makes each step one."""

    def __init__(self, act: Callable[[int], None]) -> None:
        super().__init__()
        self.act = act

    def metrics(self, step: int, values: dict) -> None:
        super().metrics(step, values)
        self.act(step)


@pytest.mark.parametrize(("ending", "at"), [("asked", 3), ("asked", 7), ("killed", 8)])
def test_a_stop_within_a_log_interval_leaves_no_mark_on_the_curve(
    smoke_config: Config, tmp_path: Path, ending: str, at: int
):
    changes: dict[str, Any] = {"steps": 10, "val_every": 1, "checkpoint_every": 0 if ending == "asked" else 7}
    whole, broken = (with_training(smoke_config, tmp_path / name, **changes) for name in ("whole", "broken"))
    whole, broken = (replace(c, training=replace(c.training, log_every=5)) for c in (whole, broken))
    straight = Log()
    run(whole, straight)
    stop = StopRequest()

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
    """Keeps what it was told only when flushed, as one does that writes to a database in batches."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, float] = {}

    def metrics(self, step: int, values: dict) -> None:
        super().metrics(step, values)
        if step == 6:
            raise Killed

    def flush(self) -> None:
        self.kept = dict(self.losses)


def test_a_kill_tears_no_hole_between_the_recorded_curve_and_the_checkpoint(smoke_config: Config, tmp_path: Path):
    config = with_training(smoke_config, tmp_path / "run", steps=7, checkpoint_every=4)
    first, again = Buffered(), Log()
    with pytest.raises(Killed):
        run(config, first)
    run(config, again)
    assert sorted(first.kept | again.losses) == [1, 2, 3, 4, 5, 6, 7]


def test_a_checkpoint_that_has_no_room_is_named_and_the_run_goes_on_from_the_one_before(
    smoke_config: Config, tmp_path: Path
):
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


def test_a_checkpoint_without_sums_of_its_interval_still_loads(smoke_config: Config, tmp_path: Path):
    config = with_training(smoke_config, tmp_path / "run", steps=4, checkpoint_every=2, keep_checkpoints=9)
    run(config)
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "state.json").unlink()
    path = tmp_path / "run" / "checkpoints" / "step_00000002" / "state.json"
    facts = json.loads(path.read_text())
    del facts["interval"]
    path.write_text(json.dumps(facts))
    again = Log()
    run(config, again)
    assert list(again.losses) == [3, 4]


def test_the_last_validation_is_a_final_metric_also_where_training_was_complete(smoke_config: Config, tmp_path: Path):
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


def test_seed_zero_and_one_differ_and_repeat(smoke_config: Config, tmp_path: Path):
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


def test_other_settings_do_not_resume_silently(smoke_config: Config, tmp_path: Path):
    run(with_training(smoke_config, tmp_path / "run", steps=2))
    other = with_training(smoke_config, tmp_path / "run", steps=3)
    with pytest.raises(CheckpointError, match="other settings"):
        run(other)


def test_a_damaged_checkpoint_is_named(smoke_config: Config, tmp_path: Path):
    config = with_training(smoke_config, tmp_path / "run", steps=2)
    run(config)
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    torch.save({"state": print}, folder / "optimizer.pt")  # a pickle of more than weights
    with pytest.raises(CheckpointError, match=r"step_00000002: can't be resumed"):
        run(config)
    (folder / "weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"step_00000002: can't be resumed"):
        run(config)


def test_ema_starts_where_told(smoke_config: Config, tmp_path: Path):
    tensors = {}
    for name, ema in {"off": (0.0, 0), "late": (0.9, -1), "early": (0.9, 0)}.items():
        changed = dataclasses.replace(smoke_config.training.ema, decay=ema[0], start_step=ema[1])
        run(with_training(smoke_config, tmp_path / name, steps=4, ema=changed))
        tensors[name] = weights(tmp_path / name)
    key = "final_layer.linear.weight"
    assert torch.equal(tensors["off"][key], tensors["late"][key])  # one averaged step is that step itself
    assert not torch.equal(tensors["off"][key], tensors["early"][key])
