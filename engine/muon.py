"""Muon, with matrices of one shape stepped together."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, which are steepest at 0
STEPS = 5


class Muon(Optimizer):
    """Momentum, orthogonalised, for matrices (Jordan et al. 2024); the same numbers as torch.optim.Muon's.

    That one goes through the matrices one by one; for small ones it is the calls that take the time.
    A matrix (n, m) moves by lr sqrt(max(1, n / m)) in each direction.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for (n, m), params in shapes.items():
                self._step_together(params, group, group["lr"] * max(1, n / m) ** 0.5)

    def _step_together(self, params: list[Tensor], group: dict[str, Any], lr: float) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])  # Nesterov's
        updates = orthogonalise(torch.stack(ahead))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(updates.to(params[0].dtype).unbind()), alpha=-lr)


def orthogonalise(matrices: Tensor) -> Tensor:
    """U V' of each U S V' in (K, n, m), roughly: singular values come out between 0.5 and 1.5.

    A few steps of Newton-Schulz iteration in bfloat16.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    X = (matrices if wide else matrices.mT).bfloat16()
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X if wide else X.mT
