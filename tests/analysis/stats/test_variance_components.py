"""Test the separation of evaluation noise from seed variance, and mean scores."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.stats.variance_components import average_noise_sets, components, components_of


def test_components_by_hand() -> None:
    """Two runs of two scores: MS between 8, MS within 1, so training is (8 - 1) / 2."""
    found = components([[[0.0, math.sqrt(2)], [2 * math.sqrt(2), 3 * math.sqrt(2)]]])
    assert found is not None
    assert found.evaluation**2 == pytest.approx(1.0)
    assert found.training**2 == pytest.approx(3.5)


def test_planted_components_come_back() -> None:
    rng = np.random.default_rng(0)
    arms = []
    for arm in range(40):
        runs = rng.normal(100 * arm, 3.0, 5)
        arms.append([list(run + rng.normal(0, 1.5, rng.integers(2, 6))) for run in runs])  # unbalanced
    found = components(arms)
    assert found is not None
    assert found.training == pytest.approx(3.0, rel=0.12)
    assert found.evaluation == pytest.approx(1.5, rel=0.08)
    assert found.runs == 200


def test_undetectable_training_variance_is_zero() -> None:
    found = components([[[0.0, 2.0], [0.1, 1.9]]])
    assert found is not None
    assert found.training == 0


def test_too_few_runs_or_scores() -> None:
    assert components([[[1.0, 2.0]]]) is None
    assert components([[[1.0], [2.0]]]) is None


def test_a_run_counts_once_with_its_mean_over_shared_noise_sets() -> None:
    frame = pd.DataFrame(
        {
            "arm": ["a", "a", "b", "b"],
            "final/fd": [1.0, 2.0, 3.0, 4.0],
            "final/noise1/fd": [3.0, 4.0, 5.0, 6.0],
            "final/noise2/fd": [90.0, np.nan, 90.0, 90.0],  # not in every run, so in no mean
            "final/kid": [1.0, 1.0, 1.0, 1.0],
        }
    )
    found = average_noise_sets(frame)
    assert found["final/fd"].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert found["final/noise0/fd"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found["final/kid"].tolist() == [1.0] * 4
    assert components_of(found, "kid") is None
    noise = components_of(found, "fd")
    assert noise is not None
    assert noise.scores == 11
