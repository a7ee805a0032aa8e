"""Next-token cross-entropy: the number this repository is about.

The model gives logits z for every token of the vocabulary; q = softmax(z) is its prediction and y
the token that came. Its loss is the surprisal -log q_y, in nats. All results are sums over tokens,
never means: sums add up exactly over micro-batches and ranks, and are divided once, by the number
of tokens scored in the whole batch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a position that is not to be scored


@dataclass(frozen=True)
class LossSums:
    """Sums over the scored tokens of a batch, as scalar tensors.

    `objective` is what is optimised, in nats, and carries the gradient. `nll` is always the plain
    cross-entropy in nats, whatever the objective: perplexity comes from it alone.
    """

    objective: Tensor
    nll: Tensor
    correct: Tensor  # tokens that were the most probable one
    tokens: Tensor  # tokens scored


@dataclass(frozen=True)
class LossMeans:
    """Nats per token, and the share of tokens guessed, over all tokens that were scored."""

    objective: float
    nll: float
    accuracy: float
    tokens: int


def divide_once(parts: Iterable[LossSums]) -> LossMeans:
    """Add sums up, in float64, and divide by the number of tokens they scored; NaN for none."""
    rows = [torch.stack([part.objective.detach(), part.nll.detach(), part.correct, part.tokens]) for part in parts]
    objective, nll, correct, tokens = (math.fsum(column) for column in torch.stack(rows, dim=1).tolist())
    n = tokens or math.nan
    return LossMeans(objective / n, nll / n, correct / n, int(tokens))


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> LossSums:
    """Cross-entropy sums of logits `(..., V)` against targets `(...)`; IGNORE_INDEX is not scored.

    With label smoothing e, the target is (1 - e) one_hot(y) + e / V (Szegedy et al. 2016), so
    objective = (1 - e) (-log q_y) + e mean_v(-log q_v).

    The prediction [0.2, 0.7, 0.1] costs 0.357 nats when the middle one is true, and the gradient
    with respect to the logits is q - p:

    >>> z = torch.tensor([[0.2, 0.7, 0.1]]).log().requires_grad_()
    >>> loss = cross_entropy(z, torch.tensor([1])).objective
    >>> loss.backward()
    >>> round(loss.item(), 3), [round(g, 3) for g in z.grad[0].tolist()]
    (0.357, [0.2, -0.3, 0.1])

    log q = z - logsumexp(z) is never computed as log(softmax(z)), which would be log 0 here:

    >>> cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).nll.item()
    10000.0
    """
    log_q = F.log_softmax(logits.flatten(0, -2).float(), dim=-1)  # (N, V)
    targets = targets.flatten()  # (N,)
    scored = targets != IGNORE_INDEX
    nll = F.nll_loss(log_q, targets, reduction="sum", ignore_index=IGNORE_INDEX)
    objective = nll
    if label_smoothing:
        evenly = -(log_q.mean(dim=-1) * scored).sum()
        objective = (1 - label_smoothing) * nll + label_smoothing * evenly
    correct = (log_q.detach().argmax(dim=-1) == targets).sum()  # IGNORE_INDEX is no argmax
    return LossSums(objective, nll, correct, scored.sum())


def next_token_loss(hidden: Tensor, head: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> LossSums:
    """Cross-entropy sums from hidden states `(B, T, C)`, the output head `(V, C)` and targets `(B, T)`."""
    return cross_entropy(F.linear(hidden, head), targets, label_smoothing)
