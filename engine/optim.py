"""Optimizers and their learning rates: Muon for the matrices of the blocks, AdamW for the rest.

With optimizer=adamw, AdamW has the matrices too. Tables of n-grams have an optimizer of their own.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from config.schema import OptimConfig
from engine.device import Device
from engine.torch_startup import AdamW
from model import GPT
from tables import RowwiseRMSProp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b and c of `orthogonalise`
ITERATIONS = 5
ONE_PROCESS = Device(torch.device("cpu"), torch.float32)


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each matrix (Jordan et al. 2024).

    The gradient of a matrix has a few large singular values and many small ones. Orthogonalised,
    all are about 1, so that a step is about equally long in every direction of the matrix. It is
    about lr; for a matrix (n, m) with more outputs n than inputs m, sqrt(n / m) times as much. The
    matrix products are in device.dtype. qkv counts as one matrix (3 C, C).
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

            # average = momentum * average + (1 - momentum) * gradient
            grads = [p.grad for p in params]
            averages = [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(averages, grads, 1 - momentum)
            # Nesterov's momentum: ahead = momentum * average + (1 - momentum) * gradient
            ahead = torch._foreach_lerp(grads, averages, momentum)

            # weight decay, then the step
            directions = orthogonalise_all(ahead, self.device)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for p, direction in zip(params, directions, strict=True):
                n, m = p.shape
                p.add_(direction, alpha=-group["lr"] * max(1, n / m) ** 0.5)


def orthogonalise_all(matrices: Sequence[Tensor], device: Device) -> list[Tensor]:
    """Orthogonalise each of the matrices, (n, m) of any shapes.

    Matrices of one shape are computed together, as a stack, and shared out: of 5 matrices of one
    shape on 2 ranks, rank 0 computes the first, the third and the fifth. A CPU's cores take a stack
    each.
    """
    same_shape: dict[torch.Size, list[int]] = {}  # indices of matrices
    for index, matrix in enumerate(matrices):
        same_shape.setdefault(matrix.shape, []).append(index)
    own = []  # for each stack of this rank, the indices of its matrices
    for indices in same_shape.values():
        share = indices[device.rank :: device.world_size]
        if share:
            own.append(share)
    # The largest stack takes longest, so a core should take it first.
    own.sort(key=lambda indices: len(indices) * matrices[indices[0]].numel(), reverse=True)
    stacks = [torch.stack([matrices[index] for index in indices]) for indices in own]

    results = [torch.zeros_like(matrix) for matrix in matrices]
    # no_grad again: it holds for one thread, and device.map uses others
    compute = torch.no_grad()(partial(orthogonalise, dtype=device.dtype))
    for indices, stack in zip(own, device.map(compute, stacks), strict=True):
        for index, result in zip(indices, stack, strict=True):
            results[index].copy_(result)
    device.all_reduce_each(results)  # adds what other ranks computed, where it is still zero here
    return results


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly U V^T of each matrix U S V^T in (K, n, m), by Newton-Schulz iterations.

    Each iteration replaces X by a X + (b A + c A A) X, with A = X X^T. So every singular value s
    becomes a s + b s^3 + c s^5, while U and V stay. a, b and c, by Jordan, let small values grow
    fast: after five iterations those above 1/500 of the matrix's norm are about 0.7 to 1.2.
    """
    a, b, c = COEFFICIENTS
    is_wide = matrices.shape[1] <= matrices.shape[2]
    X = matrices.to(dtype)
    if not is_wide:
        X = X.mT  # so that A is the smaller product
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)  # no singular value is above 1
    for _ in range(ITERATIONS):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X if is_wide else X.mT


def make_optimizers(
    model: GPT, cfg: OptimConfig, device: Device = ONE_PROCESS
) -> list[torch.optim.Optimizer]:
    """Make the optimizers; every parameter is in exactly one.

    Weight decay, as in nanoGPT, is for matrices and embeddings; biases and norms have none.
    """
    for_muon = []
    decayed = []
    others = []
    for_tables = list(model.tables.parameters())
    for name, p in model.named_parameters():
        if name.startswith("tables."):
            continue
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
    if for_tables:
        lr = model.tables.cfg.table_learning_rate
        optimizers.append(RowwiseRMSProp(for_tables, lr, device.map))
    return optimizers


def set_lr(optimizers: Sequence[torch.optim.Optimizer], cfg: OptimConfig, step: int) -> float:
    """Set the learning rates of a step; returns AdamW's."""
    scale = get_lr_scale(cfg, step)
    for optimizer in optimizers:
        peak = optimizer.defaults["lr"]
        for group in optimizer.param_groups:
            group["lr"] = scale * peak
    return scale * cfg.learning_rate


def get_lr_scale(cfg: OptimConfig, step: int) -> float:
    """Compute the learning rates at step 0, 1, ... max_iters - 1, as a share of their peak.

    Linear warmup, then the peak, then a linear or cosine decay to `min_lr_ratio` in the last
    `decay_fraction` of the steps. The constant schedule has no decay.

    >>> cfg = OptimConfig(max_iters=10, warmup_iters=2, decay_fraction=0.5, schedule="linear")
    >>> [round(get_lr_scale(cfg, step), 2) for step in range(10)]
    [0.33, 0.67, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step < cfg.warmup_iters:
        return (step + 1) / (cfg.warmup_iters + 1)
    after_warmup = cfg.max_iters - cfg.warmup_iters
    decay_iters = min(cfg.decay_fraction * cfg.max_iters, after_warmup)
    steps_left = cfg.max_iters - step
    if cfg.schedule == "constant" or steps_left >= decay_iters:
        return 1.0
    left = steps_left / decay_iters  # 1 where the decay begins, 0 after the last step
    if cfg.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left
