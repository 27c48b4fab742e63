"""Test Fréchet distances against closed forms and SciPy's matrix square root, for any rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from frechet_trace import bench_frechet

from microdit.evaluation import frechet
from microdit.evaluation.frechet import MAX_ROUNDING, Moments, frechet_distance

F = 48


def sample(count: int, mean: np.ndarray, variances: np.ndarray, basis: np.ndarray, seed: int) -> np.ndarray:
    """Return features (count, F) with exactly this mean and the covariance basis diag(variances) basis^T."""
    draw = np.random.default_rng(seed).normal(size=(count, F))
    rank = min(count - 1, F)
    orthonormal = np.linalg.qr(draw - draw.mean(0))[0][:, :rank]
    orthonormal -= orthonormal.mean(0)
    return mean + np.sqrt(count - 1) * orthonormal @ (np.sqrt(variances[:rank])[:, None] * basis.T[:rank])


@pytest.mark.parametrize("decay", [0.5, 3.0, 8.0], ids=["flat", "steep", "steepest"])
@pytest.mark.parametrize("counts", [(200, 300), (200, 20), (20, 300), (20, 12)], ids=str)
def test_it_equals_the_closed_form_if_covariances_commute(counts: tuple[int, int], decay: float) -> None:
    basis = np.linalg.qr(np.random.default_rng(9).normal(size=(F, F)))[0]
    falls = np.arange(1, F + 1) ** -decay
    variances = [falls * (np.arange(F) < n - 1) * scale for n, scale in zip(counts, (1.0, 1.7), strict=True)]
    gap = 0.01 * np.arange(F)
    sets = [
        sample(n, m, v, basis, seed)
        for seed, (n, m, v) in enumerate(zip(counts, (0 * gap, gap), variances, strict=True))
    ]
    expected = gap @ gap + ((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2).sum()
    assert frechet_distance(*map(Moments.of, sets)) == pytest.approx(expected, rel=MAX_ROUNDING)


def test_it_equals_the_square_root_of_a_matrix() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.abs(rng.normal(size=(400, F)) @ rng.normal(size=(F, F))) for _ in range(2))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(0) - b.mean(0)
    root = np.trace(scipy.linalg.sqrtm(first @ second).real)
    expected = gap @ gap + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=MAX_ROUNDING)
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(expected, rel=MAX_ROUNDING)


@pytest.mark.parametrize("count", [400, 20])
def test_constant_features_and_single_precision(count: int) -> None:
    features = np.random.default_rng(1).normal(1000, 1, size=(count, F)).astype(np.float32)
    features[:, :5] = 3
    other = features.astype(np.float64) + 0.25
    assert frechet_distance(Moments.of(features), Moments.of(other)) == pytest.approx(F / 16, rel=1e-6)
    assert frechet_distance(Moments.of(features), Moments.of(features)) == pytest.approx(0, abs=1e-9 * F)


def test_the_fast_method_is_not_used_if_it_is_inaccurate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    plain = [Moments.of(rng.normal(size=(500, F))) for _ in range(2)]
    steep = [Moments.of(rng.normal(size=(500, F)) * 10.0 ** -np.arange(F)) for _ in range(2)]

    def never(product: np.ndarray) -> np.ndarray:
        raise AssertionError("the slow method")

    monkeypatch.setattr(frechet, "svdvals", never)
    frechet_distance(*plain)
    with pytest.raises(AssertionError, match="slow"):
        frechet_distance(*steep)


def test_moments_on_disk_are_the_same(tmp_path: Path) -> None:
    made = Moments.of(np.random.default_rng(3).normal(size=(9, F)))
    made.save(tmp_path / "moments.npz")
    stored = Moments.load(tmp_path / "moments.npz")
    assert np.array_equal(made.mean, stored.mean)
    assert np.array_equal(made.root, stored.root)


def test_the_benchmark_compares_the_same_distance() -> None:
    rows = [line.rsplit(maxsplit=3) for line in bench_frechet(features=64, repeats=1).splitlines()[2:]]
    values = {name.strip(): float(value) for name, _, _, value in rows}
    assert values["roots (ours)"] == pytest.approx(values["scipy sqrtm"], rel=1e-6)
    assert values["roots (ours)"] == pytest.approx(values["eigvals (torch-fidelity)"], rel=1e-6)
    assert values["roots, rank-deficient"] == pytest.approx(values["eigvals, rank-deficient"], rel=1e-4)
