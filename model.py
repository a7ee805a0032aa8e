"""A GPT in nanochat's form or in GPT-2's.

nanochat's form has rotary positions, ReLU^2, and RMSNorm without weights, which also normalises
queries, keys and embeddings. There each embedding gets a share of the one before it (smear).
GPT-2's form has learned positions, LayerNorm and GELU, and uses the weights of the token embedding
as lm_head.

Shapes: B sequences, T tokens, C = n_embd, H heads of width D = C / H, V tokens in the vocabulary.
In generation a KV cache holds what was read before; then S = cached tokens + T, else S = T.
kernels.py has attention, dropout, relu2 and rms_norm, faster than PyTorch's on a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chunked_loss import next_token_loss
from config.schema import ModelConfig, TablesConfig
from kernels import attention, causal_mask, dropout, relu2, rms_norm
from kv_cache import KVCache
from loss import PLAIN, LossSums, Objective, soft_cap
from tables import NgramTables

NO_TABLES = TablesConfig()


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def make_norm(cfg: ModelConfig) -> nn.Module:
    if cfg.is_gpt2:
        return nn.LayerNorm(cfg.n_embd, bias=cfg.has_bias)
    return RMSNorm()


# cos and sin of the angles: one for each position and each pair of features, (T, 1, D / 2) each
Rotation = tuple[Tensor, Tensor]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Embed positions by rotation of (B, T, H, D) (Su et al. 2021).

    Feature i and feature i + D / 2 of a head are a pair (a, b), a point in a plane. The point is
    turned by an angle that grows with the position, for each pair at its own speed. So q k depends
    on the distance of two positions, not on the positions themselves. As in nanochat the turn is by
    minus the angle, which makes no difference.
    """
    a, b = x.type_as(cos).chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=cfg.has_bias)
        self.proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=cfg.has_bias)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, mask: Tensor | None
    ) -> Tensor:
        B, T, C = x.shape
        H = self.cfg.n_head
        D = C // H
        # Queries and keys are rotated and normalised together: H heads of queries, then H of keys.
        qk, v = self.qkv(x).split((2 * C, C), dim=-1)
        qk = qk.view(B, T, 2 * H, D)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        if self.cfg.qk_norm:
            qk = rms_norm(qk)
        qk = qk.type_as(v)  # back from float32, under autocast
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D) each
        v = v.view(B, T, H, D).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)

        # softmax(q k^T / sqrt(D)) v; without a mask, each token attends to itself and those before
        dropout_p = self.cfg.dropout if self.training else 0.0
        y = attention(q, k, v, dropout_p, mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return dropout(self.proj(y), self.cfg.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.fc = nn.Linear(cfg.n_embd, 4 * cfg.n_embd, bias=cfg.has_bias)
        self.proj = nn.Linear(4 * cfg.n_embd, cfg.n_embd, bias=cfg.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = F.gelu(x, approximate="tanh") if self.cfg.is_gpt2 else relu2(x)
        return dropout(self.proj(x), self.cfg.dropout, self.training)


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        # Do not reorder: checkpoints number the states of the optimizers in this order.
        self.norm1 = make_norm(cfg)
        self.norm2 = make_norm(cfg)
        self.attn = CausalSelfAttention(cfg, layer)
        self.mlp = MLP(cfg)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, mask: Tensor | None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, cache, mask)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    # for the type checker, which does not know register_buffer and ModuleList
    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelConfig, vocab_size: int, tables: TablesConfig = NO_TABLES) -> None:
        super().__init__()
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.wte = nn.Embedding(vocab_size, cfg.n_embd)
        self.wpe = None
        if cfg.is_gpt2:
            self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        self.tables = NgramTables(tables, cfg.n_embd)
        self.smear = None
        if cfg.smear:
            self.smear = nn.Parameter(torch.zeros(cfg.n_embd))
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layer))
        self.norm = make_norm(cfg)
        self.lm_head = nn.Linear(cfg.n_embd, vocab_size, bias=False)
        if cfg.tied:
            self.lm_head.weight = self.wte.weight
        # From one position to the next, the first pair of a head turns by 1 radian, the following
        # pairs by less and less.
        D = cfg.n_embd // cfg.n_head
        turns = 10_000.0 ** -(torch.arange(0, D, 2) / D)  # (D / 2,)
        positions = torch.arange(cfg.block_size)[:, None, None]
        angles = positions * turns  # (block_size, 1, D / 2), where the 1 stands for the heads
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        objective: Objective = PLAIN,
        teacher_logits: Tensor | None = None,
    ) -> Tensor | LossSums:
        """Return logits (B, T, V) of tokens (B, T); with targets (B, T), the sums of the loss."""
        hidden = self.hidden_states(tokens)
        if targets is None:
            return self.logits(hidden)
        # loss.cross_entropy of self.logits(hidden); with a large vocabulary, in less memory
        return next_token_loss(
            hidden,
            self.lm_head.weight,
            targets,
            objective,
            self.cfg.softcap,
            teacher_logits=teacher_logits,
        )

    def hidden_states(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last layer's output, normalised, (B, T, C).

        With a cache, `tokens` follow those that it holds.
        """
        context = tokens  # all tokens so far, (B, S): n-grams and documents look back
        if cache is not None:
            context = cache.append_tokens(tokens)
        end = context.shape[1]
        start = end - tokens.shape[1]  # the place of the first new token

        first = max(start - 1, 0)  # smear needs the token before, too
        recent = context[:, first:]
        x = self.wte(recent)
        if self.tables:
            x = x + self.tables(context, end - first)
        if self.wpe is not None:
            x = x + self.wpe.weight[first:end]
        if self.cfg.embedding_norm:
            x = rms_norm(x)
        if self.smear is not None:
            x = x + self.smear * self.one_back(x, recent)
        x = x[:, start - first :]
        x = dropout(x, self.cfg.dropout, self.training)

        rotation = None
        if not self.cfg.is_gpt2:
            # in the dtype of x, the residual stream: float32, also under autocast
            rotation = self.cos[start:end].type_as(x), self.sin[start:end].type_as(x)
        mask = None
        if self.cfg.document_attention:
            mask = self.document_mask(context, end - start)
        for block in self.blocks:
            x = block(x, rotation, cache, mask)
        if cache is not None:
            cache.length = end  # only now: all layers append after the old length
        return self.norm(x)

    def one_back(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return for each of the embeddings x (B, T, C) of tokens (B, T) the one before it.

        It is zero for the first, and, where documents are apart, for the eos token of each.
        """
        before = F.pad(x, (0, 0, 1, -1))  # a row of zeros in front, and the last one out
        if self.cfg.document_attention:
            before = before.masked_fill((tokens == self.vocab_size - 1)[:, :, None], 0)
        return before

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V), in float32, of hidden states (..., C)."""
        return soft_cap(self.lm_head(hidden).float(), self.cfg.softcap)

    def document_mask(self, tokens: Tensor, T: int) -> Tensor:
        """Return which of the tokens (B, S) the last T tokens may attend to, (B, 1, T, S) bool.

        Each attends to itself and to earlier tokens of its document. Before each document stands an
        eos token, the last of the vocabulary, so counting eos tokens numbers the documents.
        """
        document = (tokens == self.vocab_size - 1).cumsum(dim=1)  # (B, S)
        own = document[:, None, -T:, None]  # (B, 1, T, 1)
        other = document[:, None, None, :]  # (B, 1, 1, S)
        return (own == other) & causal_mask(T, tokens.shape[1], tokens.device)

    def init_weights(self) -> None:
        """Draw weights as in GPT-2, from normal(0, 0.02); norms keep their ones.

        The output projections of attention and MLP are divided by sqrt(2 n_layer), or zero in
        nanochat's form. There an lm_head that is not tied is zero too, so that the first loss is
        log V. Biases, smear and tables of n-grams are zero.
        """
        for name, p in self.named_parameters():  # a tied lm_head is wte, and has no name of its own
            is_projection = name.endswith("proj.weight")
            starts_at_zero = name.startswith("tables.") or name.endswith("bias")
            if not self.cfg.is_gpt2:
                starts_at_zero = starts_at_zero or is_projection or name == "lm_head.weight"
            if starts_at_zero:
                nn.init.zeros_(p)
            elif is_projection:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.cfg.n_layer))
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())
