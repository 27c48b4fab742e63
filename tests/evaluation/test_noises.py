"""Test several evaluation noises on one network: the first equals a single evaluation's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from analysis.stats.variance_components import NOISE_SET_METRIC
from microdit.config.schema import Config
from microdit.diffusion import EDM, Objective
from microdit.evaluation.config import DEFAULT_METRICS
from microdit.evaluation.report import describe
from microdit.model import DiT
from microdit.pipeline import evaluate
from microdit.pipeline.inputs import RunInputs, build_accelerator, build_components

Parts = tuple[Config, RunInputs, Objective, Accelerator]


@pytest.fixture(scope="module")
def parts(smoke_config: Config) -> Parts:
    evaluation = dataclasses.replace(smoke_config.evaluation, samples=8)
    config = dataclasses.replace(smoke_config, evaluation=evaluation)
    accelerator = build_accelerator(config)
    components = build_components(config, accelerator.device)
    return config, components, EDM(DiT(config.model, seed=0), components.train.sigma_data).eval(), accelerator


def evaluated(parts: Parts, noises: int, **changes: Any) -> dict[str, float]:
    config, *rest = parts
    evaluation = dataclasses.replace(config.evaluation, noises=noises, **changes)
    return evaluate.generate_and_score(dataclasses.replace(config, evaluation=evaluation), *rest)


def test_the_first_noise_equals_that_of_a_single_evaluation(parts: Parts) -> None:
    one, three = evaluated(parts, 1), evaluated(parts, 3)
    assert not [name for name in one if "noise" in name]
    assert {name: value for name, value in three.items() if "noise" not in name} == one
    further = {name for name in three if "noise" in name}
    assert further == {f"final/noise{k}/{metric}" for k in (1, 2) for metric in DEFAULT_METRICS}
    assert all(NOISE_SET_METRIC.fullmatch(name) for name in further), "reports parse these names"
    distances = [three[f"final/{noise}clip_fd"] for noise in ("", "noise1/", "noise2/")]
    assert len(set(distances)) == 3, "each noise makes other images"
    assert evaluated(parts, 2, seed=1)["final/noise1/clip_fd"] not in distances, "the seed changes all of them"
    words = describe({name.removeprefix("final/"): value for name, value in three.items()}, parts[0].evaluation)
    assert f"under other diffusion noise {distances[1]:.4g} {distances[2]:.4g}" in words


class Process:
    """Imitate one of two processes that draw together."""

    def __init__(self, index: int) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, 2, index == 0


def test_processes_share_each_noise(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes draw the same images as one; only the main process scores."""
    config, components, denoiser, alone = parts
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, noises=2))
    scored: list[np.ndarray] = []

    def keep(images: np.ndarray, *_: Any) -> dict[str, float]:
        scored.append(images)
        return {"fd": float(len(scored))}

    monkeypatch.setattr(evaluate, "score", keep)
    evaluate.generate_and_score(config, components, denoiser, alone)
    whole, scored = list(scored), []
    drawn: list[list[np.ndarray]] = [[], []]
    for index in (1, 0):

        def gathered(own: list[np.ndarray], index: int = index) -> list[np.ndarray]:
            drawn[index].append(own[0])
            return own if index else [own[0], drawn[1][len(drawn[0]) - 1]]

        monkeypatch.setattr(evaluate, "gather_object", gathered)
        values = evaluate.generate_and_score(config, components, denoiser, Process(index))  # type: ignore[arg-type]
        assert bool(values) == (index == 0)
    assert [len(part) for part in drawn[1]] == [4, 4]
    for together, single in zip(scored, whole, strict=True):
        assert np.abs(together.astype(int) - single).max() <= 1  # a smaller batch may round differently
    assert np.abs(whole[0].astype(int) - whole[1]).max() > 1


def test_each_evaluation_noise_has_its_own_stream() -> None:
    assert evaluate.noise_stream(0) == "evaluation"
    assert len({evaluate.noise_stream(noise) for noise in range(20)}) == 20


def test_scores_of_further_noises_omit_constant_values() -> None:
    scores = {"fd": 1.0, "fd_floor": 0.5, "clip_score_real": 30.0, "samples": 8.0}
    assert evaluate.prefix_scores(scores, 0) == {f"final/{name}": value for name, value in scores.items()}
    assert evaluate.prefix_scores(scores, 2) == {"final/noise2/fd": 1.0}
