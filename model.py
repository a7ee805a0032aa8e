"""A GPT in nanochat's form or in GPT-2's.

nanochat's has rotary positions, RMSNorm without weights, also of queries, keys and embeddings, and
ReLU^2. GPT-2's has learned positions, LayerNorm, GELU and tied embeddings.

Shapes: B sequences, T tokens, C = n_embd, H heads of width D = C / H, V tokens in the vocabulary.
With a KV cache, S = cached tokens + T; else S = T.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chunked_loss import next_token_loss
from config.schema import ModelConfig
from kernels import attention, causal_mask, dropout, relu2, rms_norm
from kv_cache import KVCache
from loss import PLAIN, LossSums, Objective, soft_cap

# cos and sin of the angles by which each position turns its pairs of features, (T, 1, D / 2) each
Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def make_norm(cfg: ModelConfig) -> nn.Module:
    if cfg.is_gpt2:
        return nn.LayerNorm(cfg.n_embd, bias=cfg.has_bias)
    return RMSNorm()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, T, H, D), in nanochat's direction (Su et al. 2021).

    Feature i and feature i + D / 2 of a head are a pair (a, b), which is turned by the position's
    angle: q k depends on the distance between two positions only.
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
        # queries and keys are rotated and normalised together, as 2 H heads
        qk, v = self.qkv(x).split((2 * C, C), dim=-1)
        qk = qk.view(B, T, 2 * H, C // H)
        v = v.view(B, T, H, C // H)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        if self.cfg.qk_norm:
            qk = rms_norm(qk)
        # Under autocast qk is float32 by now; attention multiplies in the dtype of v.
        q, k = qk.type_as(v).transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        dropout_p = self.cfg.dropout if self.training else 0.0
        y = attention(q, k, v, dropout_p, mask)
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
        # saved states of optimizers follow this order
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
    cos: Tensor
    sin: Tensor
    ngrams: nn.ModuleList

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.wte = nn.Embedding(vocab_size, cfg.n_embd)
        self.wpe = None
        if cfg.is_gpt2:
            self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        # one table for the last 2 tokens, one for the last 3, ...
        sizes = range(2, cfg.ngram_embedding + 1)
        self.ngrams = nn.ModuleList(nn.Embedding(cfg.ngram_rows, cfg.n_embd) for _ in sizes)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layer))
        self.norm = make_norm(cfg)
        self.lm_head = nn.Linear(cfg.n_embd, vocab_size, bias=False)
        if cfg.tied:
            self.lm_head.weight = self.wte.weight
        # the first pair of a head turns by 1 radian a position, the last by about 1 / 10,000
        D = cfg.n_embd // cfg.n_head
        frequencies = 10_000.0 ** -(torch.arange(0, D, 2) / D)
        angles = torch.arange(cfg.block_size)[:, None, None] * frequencies  # (block_size, 1, D / 2)
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
        start = 0
        context = tokens
        if cache is not None:
            start = cache.length
            context = cache.append_tokens(tokens)  # (B, S)
        end = context.shape[1]

        x = self.wte(tokens)
        for n, table in enumerate(self.ngrams, start=2):
            rows = hash_ngrams(context, n, self.cfg.ngram_rows)
            x = x + table(rows[:, start:])
        if self.wpe is not None:
            x = x + self.wpe.weight[start:end]
        if self.cfg.embedding_norm:
            x = rms_norm(x)
        x = dropout(x, self.cfg.dropout, self.training)

        rotation = None
        if not self.cfg.is_gpt2:
            rotation = self.cos[start:end].type_as(x), self.sin[start:end].type_as(x)
        mask = None
        if self.cfg.document_attention:
            mask = self.document_mask(context, end - start)
        for block in self.blocks:
            x = block(x, rotation, cache, mask)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V), in float32, of hidden states (..., C)."""
        return soft_cap(self.lm_head(hidden).float(), self.cfg.softcap)

    def document_mask(self, tokens: Tensor, T: int) -> Tensor:
        """Say which tokens (B, S) each of the last T may attend to, (B, 1, T, S).

        These are the earlier ones of its document, and itself. Before each document there is an eos token, which is the last of the vocabulary.
        """
        document = (tokens == self.vocab_size - 1).cumsum(dim=1)  # its number
        is_same = document[:, None, -T:, None] == document[:, None, None, :]
        return is_same & causal_mask(T, tokens.shape[1], tokens.device)

    def init_weights(self) -> None:
        """Draw weights as in GPT-2, from normal(0, 0.02); biases and n-gram tables are zero.

        GPT-2 divides output projections by sqrt(2 n_layer). In nanochat's form these and lm_head
        are zero: the first loss is exactly log V.
        """
        is_nanochat = not self.cfg.is_gpt2
        for name, p in self.named_parameters():  # a tied lm_head is wte, and has no name of its own
            is_output = name.endswith("proj.weight")
            if (
                name.startswith("ngrams")
                or name.endswith("bias")
                or (is_nanochat and (is_output or name == "lm_head.weight"))
            ):
                nn.init.zeros_(p)
            elif is_output:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.cfg.n_layer))
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Count the FLOPs of training per position."""
        return self.cfg.flops_per_token(self.vocab_size)


def hash_ngrams(tokens: Tensor, n: int, rows: int) -> Tensor:
    """Choose a table's row for the last n tokens at each position of tokens (B, S).

    Before the first token come zeros. It is a polynomial hash, so n-grams may share a row
    (modded-nanogpt's bigram hash embedding; Engram, DeepSeek 2026).
    """
    S = tokens.shape[1]
    key = tokens
    for i in range(1, n):
        earlier = F.pad(tokens, (i, 0))[:, :S]  # the token i places before
        key = (key * 1_000_003 + earlier + 1) % (2**31 - 1)
    return key % rows
