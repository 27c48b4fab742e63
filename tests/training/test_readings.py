"""Test logging during training: means and speed since the last log, the first non-finite step, progress."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from tqdm import tqdm

from microdit.common.errors import DivergenceError
from microdit.common.process import progress_bar
from microdit.common.process.progress_bar import Progress, format_seconds
from microdit.training import metrics
from microdit.training.checkpoint import PartialLogWindow, TrainState
from microdit.training.metrics import StepMetrics

ALONE = cast(Accelerator, SimpleNamespace(reduce=lambda tensor, how: tensor))
CPU = torch.device("cpu")


class Clock:
    """Simulate a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(metrics, "time", found)
    monkeypatch.setattr(progress_bar, "time", found)
    return found


def state(step: int = 0, seconds: float = 0.0, interval: PartialLogWindow | None = None) -> TrainState:
    return cast(TrainState, SimpleNamespace(step=step, seconds=seconds, interval=interval or PartialLogWindow()))


def readings(loss: float, norm: float = 1.0) -> dict[str, torch.Tensor]:
    return {"train/loss": torch.tensor(loss), "grad_norm": torch.tensor(norm)}


def test_means_and_speed_since_the_last_log(clock: Clock, tmp_path: Path) -> None:
    measured = StepMetrics(8, state(), CPU)
    for step, loss in enumerate((1.0, 2.0, 6.0), start=1):
        clock.now += 2.0
        measured.add(step, readings(loss, 10 * loss))
    assert measured.read(ALONE, tmp_path) == {"train/loss": 3.0, "grad_norm": 30.0, "images_per_second": 4.0}
    clock.now += 0.5
    measured.add(4, readings(7.0))
    assert measured.read(ALONE, tmp_path) == {"train/loss": 7.0, "grad_norm": 1.0, "images_per_second": 16.0}
    assert measured.seconds() == 6.5


def test_pauses_do_not_count_as_training(clock: Clock, tmp_path: Path) -> None:
    measured = StepMetrics(8, state(seconds=100.0), CPU)
    clock.now += 1.0
    measured.add(1, readings(1.0))
    with measured.paused():
        clock.now += 50.0
    with contextlib.suppress(KeyboardInterrupt), measured.paused():
        clock.now += 50.0
        raise KeyboardInterrupt
    clock.now += 1.0
    measured.add(2, readings(1.0))
    assert measured.read(ALONE, tmp_path)["images_per_second"] == 8.0
    assert measured.seconds() == 102.0


def test_seconds_left_depend_on_the_steps_of_this_process(clock: Clock) -> None:
    measured = StepMetrics(8, state(step=10), CPU)
    clock.now += 30.0
    measured.add(11, readings(1.0))
    measured.add(12, readings(1.0))
    assert measured.seconds_left(20) == 15.0 * 8


def test_an_interval_continues_after_a_stop(clock: Clock, tmp_path: Path) -> None:
    first = StepMetrics(8, state(), CPU)
    assert first.interval(ALONE) == PartialLogWindow({}, 0, 0.0)
    clock.now += 3.0
    first.add(1, readings(2.0, 5.0))
    kept = first.interval(ALONE)
    assert kept == PartialLogWindow({"train/loss": 2.0, "grad_norm": 5.0}, 1, 3.0)
    clock.now += 1000.0
    second = StepMetrics(8, state(step=1, seconds=3.0, interval=kept), CPU)
    clock.now += 1.0
    second.add(2, readings(4.0, 7.0))
    assert second.read(ALONE, tmp_path) == {"train/loss": 3.0, "grad_norm": 6.0, "images_per_second": 4.0}
    assert second.seconds() == 4.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["train/loss", "grad_norm"])
def test_errors_name_the_first_step_that_is_not_finite(bad: float, name: str, tmp_path: Path) -> None:
    measured = StepMetrics(8, state(), CPU)
    for step in range(1, 6):
        measured.add(step, readings(1.0) | ({name: torch.tensor(bad)} if step in (3, 5) else {}))
        if step < 3:
            measured.check(tmp_path)
    with pytest.raises(DivergenceError, match="not finite at step 3; there is no checkpoint yet"):
        measured.check(tmp_path)
    with pytest.raises(DivergenceError, match="step 3"):
        measured.read(ALONE, tmp_path)
    for step in (1, 2):
        folder = tmp_path / f"step_{step:08d}"
        folder.mkdir()
        (folder / "state.json").write_text("{}")
    with pytest.raises(DivergenceError, match=r"the last good checkpoint is .*step_00000002"):
        measured.check(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (123, "2:03"), (3599, "59:59"), (3723, "1:02:03"), (-5, "0:00")],
)
def test_format_of_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_log_file_gets_periodic_lines_and_a_last_one(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    bar = Progress(100, 0, enabled=True)
    for step, wait in ((1, 1.0), (2, 9.0), (3, 9.9), (4, 0.1), (100, 0.1)):
        clock.now += wait
        bar.update(step, 0.12345, 67.8, 3723.0)
    bar.close()
    expected = [f"step {step}/100  loss 0.1235  68 images/s  1:02:03 left" for step in (2, 4, 100)]
    assert capsys.readouterr().err.splitlines() == expected


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    def kept(**settings: Any) -> Any:
        bars.append(tqdm(**settings, file=open("/dev/null", "w")))  # noqa: SIM115
        return bars[-1]

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress_bar, "tqdm", kept)
    bar = Progress(100, 40, enabled=True)
    bar.update(45, 0.12345, 67.8, 9.0)
    bar.update(60, 0.5, 70.2, 9.0)
    assert (bars[0].n, bars[0].total, bars[0].initial, bars[0].unit) == (60, 100, 40, "step")
    assert bars[0].desc.startswith("training")
    assert set(bars[0].postfix.split(", ")) == {"loss=0.5000", "images_s=70"}
    bar.close()
    assert bars[0].disable  # tqdm's mark of a closed bar


def test_a_silent_run_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    bar = Progress(2, 0, enabled=False)
    clock.now += 100.0
    bar.update(2, 0.5, 1.0, 0.0)
    bar.close()
    assert capsys.readouterr() == ("", "")
