"""Muon for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor


class CpuMuon(torch.optim.Muon):
    """Run Muon's Newton-Schulz iteration in float32, for CPUs.

    torch's own iteration runs in bfloat16, which a CPU without bfloat16 units emulates several times slower. Groups and
    state have torch's format, so either can resume the other's checkpoints. The update is scaled to AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                buffer.lerp_(weight.grad, 1 - momentum)
                update = weight.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update, alpha=-0.2 * max(weight.shape) ** 0.5 * rate)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near 1.

    Args:
        matrix: (M, N).
        coefficients: of the quintic Newton-Schulz polynomial, a x + b x^3 + c x^5.
        steps: iterations.
        eps: smallest norm to divide by.

    Returns:
        (M, N).
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
