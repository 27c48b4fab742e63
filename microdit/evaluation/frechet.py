"""Compute Fréchet distances between Gaussians in float64, also of deficient rank.

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2: Heusel et al., arXiv 1706.08500, equation 6. With roots R (r, F),
S = R^T R, the last trace is the sum of the singular values of R1 R2^T (r1, r2), so no matrix square root is needed. N
images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import svdvals

from microdit.common.errors import CheckpointError
from microdit.common.files.atomic import atomic_path
from microdit.common.files.tensors import read_tensors, write_tensors

MAX_ROUNDING = 1e-7  # of the distance: estimated rounding error up to which the fast method is used


@dataclass(frozen=True)
class Moments:
    """Hold mean (F,) and a root (r, F) of the covariance of features; r <= min(N, F)."""

    mean: np.ndarray
    root: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> Moments:
        """Return the moments of features, with the unbiased covariance.

        Args:
            features: (N, F) with N > 1; converted to float64.
        """
        features = features.astype(np.float64)
        mean = features.mean(0)
        centered = (features - mean) / np.sqrt(len(features) - 1)
        if len(centered) <= centered.shape[1]:
            return Moments(mean, centered)  # itself a root, with the exact rank
        try:
            return Moments(mean, np.linalg.cholesky(centered.T @ centered).T.copy())
        except np.linalg.LinAlgError:  # features that never vary, or depend on each other
            return Moments(mean, np.asarray(np.linalg.qr(centered, mode="r")))

    def save(self, path: Path) -> None:
        """Write mean and root to a file with a digest, atomically."""
        with atomic_path(path) as temporary:
            write_tensors(temporary, {"mean": torch.from_numpy(self.mean), "root": torch.from_numpy(self.root)})

    @staticmethod
    def load(path: Path) -> Moments:
        """Return the moments that `save` wrote.

        Raises:
            CheckpointError: if the file is damaged.
        """
        stored = read_tensors(path, signed=True)
        if stored.keys() != {"mean", "root"}:
            raise CheckpointError(f"{path}: has {', '.join(stored)}, not mean and root")
        return Moments(stored["mean"].numpy(), stored["root"].numpy())


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared distance d^2, which is reported as FID.

    Args:
        a: moments of one set of images.
        b: of the other, on the same F features.
    """
    gap = a.mean - b.mean
    outer = float(gap @ gap + (a.root**2).sum() + (b.root**2).sum())
    product = a.root @ b.root.T  # (r1, r2)
    trace, doubt = _by_eigenvalues(product)
    if 2 * doubt > MAX_ROUNDING * max(outer - 2 * trace, 0.0):
        trace = float(svdvals(product).sum())
    return outer - 2 * trace


def _by_eigenvalues(product: np.ndarray) -> tuple[float, float]:
    """Return the sum of singular values, and a bound of its rounding error.

    Eigenvalues of the smaller Gram matrix are about three times as fast as singular values. But each has the rounding
    error of the largest, which the square root amplifies near 0: with a steep spectrum, or without full rank, the bound
    is large.
    """
    rows, columns = product.shape
    values = np.linalg.eigvalsh(product @ product.T if rows <= columns else product.T @ product)
    rounding = 4 * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    roots = np.sqrt(np.clip(values, 0, None))
    if rounding == 0:
        return 0.0, 0.0
    doubt = rounding / (2 * np.maximum(roots, np.sqrt(rounding) / 2))  # each at most the root of `rounding`
    return float(roots.sum()), float(doubt.sum())
