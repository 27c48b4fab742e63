"""Time the trace term of a Fréchet distance by each method, on the same covariances in one process.

python tests/benchmarks/frechet_trace.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import sqrtm

from microdit.evaluation.frechet import Moments, frechet_distance

DECAY = 0.8  # the standard deviations of the made-up features fall off as 1 / i^DECAY, before mixing


def bench_frechet(features: int = 2048, repeats: int = 2) -> str:
    """Return a table of seconds (fastest of `repeats`, methods interleaved), speed against sqrtm, and distances.

    Each route starts from the covariances (F, F) of two sets of 2F made-up images each. In the rank-deficient case
    the other set has F / 2 images; our method then starts from its features.
    """
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(features, features)) * np.arange(1, features + 1) ** -DECAY
    sets = [np.abs(rng.normal(size=(count * features // 2, features)) @ mix.T) for count in (4, 4, 1)]
    means, covariances = [x.mean(0) for x in sets], [np.cov(x, rowvar=False) for x in sets]

    def by_matrix(trace: Callable[[np.ndarray], float], other: int) -> float:
        gap = means[0] - means[other]
        both = np.trace(covariances[0]) + np.trace(covariances[other])
        return float(gap @ gap + both - 2 * trace(covariances[0] @ covariances[other]))

    def by_roots(other: int) -> float:
        roots = [
            np.linalg.cholesky(covariances[i]).T if len(sets[i]) > features else Moments.of(sets[i]).root
            for i in (0, other)
        ]
        return frechet_distance(Moments(means[0], roots[0]), Moments(means[other], roots[1]))

    def schur(product: np.ndarray) -> float:
        return float(np.trace(sqrtm(product)).real)

    def general(product: np.ndarray) -> float:  # torch-fidelity's method
        return float(np.sqrt(np.linalg.eigvals(product).astype(np.complex128)).real.sum())

    routes: dict[str, Callable[[], float]] = {
        "scipy sqrtm": lambda: by_matrix(schur, 1),
        "eigvals (torch-fidelity)": lambda: by_matrix(general, 1),
        "roots (ours)": lambda: by_roots(1),
        "eigvals, rank-deficient": lambda: by_matrix(general, 2),
        "roots, rank-deficient": lambda: by_roots(2),
    }
    times: dict[str, list[float]] = {name: [] for name in routes}
    values = {}
    for _ in range(repeats):
        for name, route in routes.items():
            begin = time.perf_counter()
            values[name] = route()
            times[name].append(time.perf_counter() - begin)
    base = min(times["scipy sqrtm"])
    lines = [f"{features} features", f"{'route':>26s} {'seconds':>8s} {'speed':>7s}  distance"]
    lines += [f"{name:>26s} {min(t):8.2f} {base / min(t):6.1f}x  {values[name]:.10g}" for name, t in times.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(bench_frechet())
