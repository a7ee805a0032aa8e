"""AdamW and Muon.

Not torch.optim's: to make one of those, or AdamW's first step, imports torch's compiler, which takes as
long as torch itself, 0.9 s; and its Muon goes through the matrices one by one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's quintic, which are steepest at 0
ITERATIONS = 5


class Optimizer:
    """Steps some parameters by their gradients, at the rate `lr`, with decoupled weight decay.

    `state` has a list of tensors, one for each parameter, under each name.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        self.params, self.lr, self.weight_decay = list(params), lr, weight_decay
        self.state: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Go one step; parameters without a gradient stay as they are."""
        grads = {i: grad for i, p in enumerate(self.params) if (grad := p.grad) is not None}
        if grads:
            self._step([self.params[i] for i in grads], list(grads.values()),
                       {name: [tensors[i] for i in grads] for name, tensors in self.state.items()})

    def _step(self, params: list[Tensor], grads: list[Tensor], state: dict[str, list[Tensor]]) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """All of the state, flat."""
        return {f"{name}.{i}": tensor for name, tensors in self.state.items() for i, tensor in enumerate(tensors)}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state; ValueError if it is of other parameters."""
        own = self.state_dict()
        if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in saved.items()}:
            raise ValueError("the optimizer's state is of other parameters")
        for name, tensor in own.items():
            tensor.copy_(saved[name])


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def __init__(self, params: Sequence[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, lr, weight_decay)
        self.betas = betas
        self.state = {"mean": [torch.zeros_like(p) for p in self.params],
                      "square": [torch.zeros_like(p) for p in self.params],
                      "steps": [torch.zeros((), device=p.device) for p in self.params]}

    def _step(self, params: list[Tensor], grads: list[Tensor], state: dict[str, list[Tensor]]) -> None:
        torch._foreach_add_(state["steps"], 1)
        torch._fused_adamw_(params, grads, state["mean"], state["square"], [], state["steps"], lr=self.lr,
                            beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.weight_decay, eps=1e-8,
                            amsgrad=False, maximize=False)


class Muon(Optimizer):
    """Momentum, orthogonalised, for matrices (Jordan et al. 2024), all those of one shape at once.

    A matrix (n, m) moves by lr sqrt(max(1, n / m)) in each direction.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr, weight_decay)
        self.momentum = momentum
        self.state = {"momentum": [torch.zeros_like(p) for p in self.params]}

    def _step(self, params: list[Tensor], grads: list[Tensor], state: dict[str, list[Tensor]]) -> None:
        torch._foreach_lerp_(state["momentum"], grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, state["momentum"], self.momentum)  # Nesterov's
        torch._foreach_mul_(params, 1 - self.lr * self.weight_decay)
        for n, m in sorted({tuple(p.shape) for p in params}):
            here = [i for i, p in enumerate(params) if p.shape == (n, m)]
            updates = orthogonalise(torch.stack([ahead[i] for i in here])).to(params[0].dtype)
            torch._foreach_add_([params[i] for i in here], updates.unbind(), alpha=-self.lr * max(1, n / m) ** 0.5)


def orthogonalise(matrices: Tensor) -> Tensor:
    """U V' of each U S V' in (K, n, m), roughly: singular values come out between 0.5 and 1.5.

    A few steps of a Newton-Schulz iteration in bfloat16.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    X = (matrices if wide else matrices.mT).bfloat16()
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X if wide else X.mT
