"""Optimizers and their learning rates: Muon for the matrices of the blocks, AdamW for the rest.

With optimizer=adamw, AdamW has all parameters.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from config.schema import OptimConfig
from engine.device import Device
from model import GPT

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's quintic polynomial, which are steepest at 0
ITERATIONS = 5
ALONE = Device(torch.device("cpu"), torch.float32)

# PyTorch's optimizers import its compiler, which takes 2 s, only to tell it to leave these methods
# alone.
for _name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    _method = inspect.unwrap(getattr(torch.optim.Optimizer, _name))
    vars(_method).setdefault("__dynamo_disable", _method)


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW; its step does not import the compiler either."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices (Jordan et al. 2024).

    All singular values of the update of a matrix (n, m) are about lr sqrt(max(1, n / m)). The
    products inside are in device.dtype.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        device: Device,
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self.device = device

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum = group["momentum"]
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:  # at the first step
                    self.state[p]["momentum"] = torch.zeros_like(p)

            # average <- momentum * average + (1 - momentum) * gradient
            grads = [p.grad for p in params]
            averages = [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(averages, grads, 1 - momentum)
            # Nesterov's momentum: where the average will be after the same gradient once more
            ahead = torch._foreach_lerp(grads, averages, momentum)

            updates = orthogonalise_all(ahead, self.device)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for p, update in zip(params, updates, strict=True):
                n, m = p.shape
                p.add_(update, alpha=-group["lr"] * max(1, n / m) ** 0.5)


def orthogonalise_all(matrices: Sequence[Tensor], device: Device) -> list[Tensor]:
    """Orthogonalise matrices (n, m) of any shapes; each rank computes its share of each shape.

    Matrices of one shape are stacked. A CPU's cores take a stack each, the largest first.
    """
    same_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        same_shape.setdefault(matrix.shape, []).append(number)
    shares = []  # the numbers of the matrices in each of this rank's stacks
    for numbers in same_shape.values():
        share = numbers[device.rank :: device.world_size]
        if share:
            shares.append(share)
    shares.sort(key=lambda share: len(share) * matrices[share[0]].numel(), reverse=True)
    stacks = [torch.stack([matrices[number] for number in share]) for share in shares]

    found = [torch.zeros_like(matrix) for matrix in matrices]  # other ranks compute what stays zero
    compute = torch.no_grad()(partial(orthogonalise, dtype=device.dtype))
    for share, updates in zip(shares, device.map(compute, stacks), strict=True):
        for number, update in zip(share, updates, strict=True):
            found[number].copy_(update)
    device.all_reduce_each(found)
    return found


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute roughly U V^T of each U S V^T in (K, n, m), by a Newton-Schulz iteration.

    Its singular values are 0.5 to 1.5.
    """
    a, b, c = COEFFICIENTS
    is_wide = matrices.shape[1] <= matrices.shape[2]
    X = matrices.to(dtype)
    if not is_wide:
        X = X.mT
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        # X <- a X + (b A + c A A) X, with A = X X^T
        A = X @ X.mT
        polynomial = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, polynomial, X, beta=a)
    return X if is_wide else X.mT


def make_optimizers(
    model: GPT, cfg: OptimConfig, device: Device = ALONE
) -> list[torch.optim.Optimizer]:
    """Make the optimizers; every parameter is in exactly one.

    Weight decay, as in GPT-2, is for matrices and embeddings; biases and norms have none.
    """
    for_muon = []
    decayed = []
    others = []
    for name, p in model.named_parameters():
        is_matrix_of_block = name.startswith("blocks.") and p.ndim == 2
        if is_matrix_of_block and cfg.optimizer == "muon":
            for_muon.append(p)
        elif p.ndim >= 2:
            decayed.append(p)
        else:
            others.append(p)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (cfg.beta1, cfg.beta2)
    optimizers: list[torch.optim.Optimizer] = [AdamW(groups, cfg.learning_rate, betas, fused=True)]
    if for_muon:
        muon = Muon(for_muon, cfg.muon_learning_rate, cfg.momentum, cfg.weight_decay, device)
        optimizers.append(muon)
    return optimizers


def state_shapes(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, torch.Size]:
    """List the tensors, all float32, that an optimizer keeps of a parameter from its first step on.

    What a file holds has to be compared with them: PyTorch's fused AdamW does not look at their
    shapes, and reads and writes behind a tensor that is smaller than the parameter.
    """
    if isinstance(optimizer, Muon):
        return {"momentum": p.shape}
    return {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}


def set_lr(optimizers: Sequence[torch.optim.Optimizer], cfg: OptimConfig, step: int) -> float:
    """Set the learning rates of a step; returns AdamW's."""
    scale = get_lr_scale(cfg, step)
    for optimizer in optimizers:
        peak = cfg.learning_rate
        if isinstance(optimizer, Muon):
            peak = cfg.muon_learning_rate
        for group in optimizer.param_groups:
            group["lr"] = scale * peak
    return scale * cfg.learning_rate


def get_lr_scale(cfg: OptimConfig, step: int) -> float:
    """Compute the learning rates at step 0, 1, ... max_iters - 1, as a share of their peak.

    Linear warmup, then the peak, then a linear or cosine decay to `min_lr_ratio` in the last
    `decay_fraction` of the steps.

    >>> cfg = OptimConfig(max_iters=10, warmup_iters=2, decay_fraction=0.5, schedule="linear")
    >>> [round(get_lr_scale(cfg, step), 2) for step in range(10)]
    [0.33, 0.67, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step < cfg.warmup_iters:
        return (step + 1) / (cfg.warmup_iters + 1)
    decay_iters = min(cfg.decay_fraction * cfg.max_iters, cfg.max_iters - cfg.warmup_iters)
    decayed = 0.0  # share of the decay that is done
    if decay_iters:
        decayed = 1 - (cfg.max_iters - step) / decay_iters
    if cfg.schedule == "constant" or decayed <= 0:
        return 1.0
    left = 1 - decayed
    if cfg.schedule == "cosine":
        left = (1 + math.cos(math.pi * decayed)) / 2
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left
