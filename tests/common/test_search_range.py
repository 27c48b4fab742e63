"""Ranges of searched settings: whole bounds give whole numbers."""

import pytest
from optuna import distributions

from microdit.common.search_range import SearchRange


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"low": 1, "high": 8}, distributions.IntDistribution(1, 8)),
        ({"low": 1, "high": 9, "step": 2}, distributions.IntDistribution(1, 9, step=2)),
        ({"low": 1, "high": 64, "log": True}, distributions.IntDistribution(1, 64, log=True)),
        ({"low": 1, "high": 8.0}, distributions.FloatDistribution(1.0, 8.0)),
        ({"low": 0, "high": 1, "step": 0.25}, distributions.FloatDistribution(0.0, 1.0, step=0.25)),
        ({"low": 1e-3, "high": 0.3, "log": True}, distributions.FloatDistribution(1e-3, 0.3, log=True)),
    ],
)
def test_the_range_names_optunas_distribution(values: dict[str, float], expected: object) -> None:
    found = SearchRange.of(values)
    assert getattr(distributions, found.distribution)(**found.arguments) == expected
