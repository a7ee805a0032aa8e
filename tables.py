"""Tables of n-grams: an embedding for each of the last 2, 3, ... tokens, learned where it is read.

A hash maps the last n tokens to a row of a table. Only the rows that occur in a batch have a
gradient, and only they move: a step costs what the batch reads, however many rows there are.
nn.Embedding(sparse=True) gives the rows and their gradients, and RowwiseRMSProp takes the step.

Each step rounds the rows that it moves to float16. So a checkpoint holds them in 16 bits, exactly,
although memory and arithmetic are float32.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import TablesConfig
from kernels import dropout

BETA = 0.99  # decay of the running mean of a row's squared gradient
LEAST_LR = 0.3  # share of the peak learning rate that the rows keep until the end
EPS = 1e-30  # keeps the step of a row whose gradients were all zero finite


class NgramTables(nn.ModuleList):
    """A table for each n from 2 to max_ngram. Row 0 of each stays zero: it stands for no n-gram."""

    def __init__(self, cfg: TablesConfig, width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.longest = cfg.max_ngram  # longer n-grams are left out; below 2 all are
        for _ in range(2, cfg.max_ngram + 1):
            zeros = torch.zeros(cfg.table_rows, width)  # quicker than random numbers
            self.append(nn.Embedding(cfg.table_rows, width, sparse=True, _weight=zeros))

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Sum the embeddings of the n-grams that end at the last T of tokens (B, S), (B, T, C)."""
        total = torch.zeros(1, device=tokens.device)
        rows_of_each = hash_ngrams(tokens, T, self.longest, self.cfg.table_rows)
        for table, rows in zip(self, rows_of_each, strict=False):
            if self.training and self.cfg.table_dropout > 0:
                rows = leave_out(rows, self.cfg.table_dropout)
            total = total + table(rows)
        return total

    @torch.no_grad()
    def pack(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of each table: which rows learned, and their values."""
        packed = {}
        for n, table in enumerate(self.parameters(), start=2):
            has_learned = table.norm(dim=1) != 0  # (table_rows,); quicker than any(dim=1)
            packed[f"tables.{n}.has_learned"] = has_learned
            packed[f"tables.{n}.values"] = table.half()[has_learned]  # (K, C)
        return packed

    def check(self, packed: dict[str, Tensor]) -> None:
        """Raise an error if these are not such tables."""
        for n, table in enumerate(self.parameters(), start=2):
            has_learned = packed[f"tables.{n}.has_learned"]
            values = packed[f"tables.{n}.values"]
            shape = int(has_learned.sum()), table.shape[1]
            found = has_learned.dtype, has_learned.shape, values.dtype, values.shape
            if found != (torch.bool, table.shape[:1], torch.float16, shape):
                raise ValueError(f"tables.{n} has {found}")

    def unpack(self, packed: dict[str, Tensor]) -> None:
        """Copy what `pack` returned into the tables."""
        for n, table in enumerate(self.parameters(), start=2):
            has_learned = packed[f"tables.{n}.has_learned"].to(table.device)
            values = packed[f"tables.{n}.values"].to(table)
            table.detach().zero_()[has_learned] = values


def hash_ngrams(tokens: Tensor, T: int, longest: int, num_rows: int) -> Iterator[Tensor]:
    """Choose rows for the last 2, 3, ... `longest` tokens at the last T of tokens (B, S).

    Yields (B, T) for each n. N-grams may share a row. An n-gram that would begin before the first
    token has row 0. The hash is a polynomial in a prime, modulo another one: the products stay
    below 2^63 (modded-nanogpt's bigram hash embedding; Engram, DeepSeek 2026).
    """
    start = tokens.shape[1] - T
    padded = F.pad(tokens, (longest, 0), value=-1)
    key = tokens[:, start:]
    for i in range(1, longest):
        first = start + longest - i
        earlier = padded[:, first : first + T]  # the tokens i places before, -1 where none is
        key = (key * 1_000_003 + earlier + 1) % (2**31 - 1)
        rows = 1 + key % (num_rows - 1)
        yield rows.masked_fill(earlier < 0, 0)


def leave_out(rows: Tensor, p: float) -> Tensor:
    """Replace each of the rows by row 0 with probability p."""
    ones = torch.ones(rows.shape, device=rows.device)
    return rows * (dropout(ones, p) > 0)


def rows_and_gradients(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that occurred, each once (K,), and the sums of their gradients (K, C)."""
    assert table.grad is not None
    grad = table.grad.coalesce()
    return grad.indices()[0], grad.values()


class RowwiseRMSProp(torch.optim.Optimizer):
    """Takes steps in the rows that occurred, from sparse gradients.

    The n-th step of a row is lr g / (sqrt(v) n^(1/4)): g is its gradient, and v the running mean of
    the mean square of g, over those n steps. It starts at zero, so v is divided by 1 - BETA^n, as
    in Adam. So v is one number a row, as in the row-wise AdaGrad of recommender systems (Naumov et
    al. 2019), not one for each weight. The steps of AdaGrad shrink with n^(1/2).

    As a row's steps become shorter anyway, lr falls from the peak to LEAST_LR of it, not to zero:
    so rows that first occur late learn too. `map` computes the tables side by side.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, map: Callable[..., Iterable[object]] = map
    ) -> None:
        super().__init__(list(params), {"lr": lr})
        self.map = map

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        list(self.map(self._step_table, group["params"]))

    @torch.no_grad()
    def _step_table(self, table: Tensor) -> None:
        rows, g = rows_and_gradients(table)
        state = self.state[table]
        if not state:  # at the first step: n and v of each row
            state["count"] = torch.zeros(len(table), device=table.device)
            state["mean_square"] = torch.zeros(len(table), device=table.device)
        n = state["count"][rows] + 1
        v = state["mean_square"][rows].lerp(g.square().mean(dim=1), 1 - BETA)
        state["count"][rows] = n
        state["mean_square"][rows] = v
        lr = LEAST_LR * self.defaults["lr"] + (1 - LEAST_LR) * self.param_groups[0]["lr"]
        size = lr * n**-0.25 * (v / (1 - BETA**n) + EPS).rsqrt()  # (K,)
        # quicker than table[rows] on a CPU
        moved = table.index_select(0, rows).sub_(size[:, None] * g)
        table.index_copy_(0, rows, moved.half().float())
        table[0] = 0.0
