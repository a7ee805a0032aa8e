"""A GPT: one file, one config that spans GPT-2 and a modern small transformer.

Shapes: B sequences, T tokens, C = n_embd, H heads of width D = C / H, V tokens in the vocabulary,
S = tokens attended to (those in the KV cache and the T new ones).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import ModelConfig
from data.ngrams import NGrams
from kernels import relu2, rms_norm, rotate
from loss import cap
from prior import NGramPrior


class KVCache:
    """Keys and values of the tokens already seen; made by the caller and passed to the model."""

    def __init__(self, config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.tokens = torch.zeros(batch_size, config.block_size, device=device, dtype=torch.int64)
        self.length = 0  # of those, seen

    def append(self, tokens: Tensor) -> Tensor:
        """Store new tokens (B, T); return all of them (B, S)."""
        end = self.length + tokens.shape[1]
        self.tokens[:, self.length:end] = tokens
        return self.tokens[:, :end]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values (B, H, T, D) of a layer; return all of them (B, H, S, D)."""
        keys, values, end = self.keys[layer], self.values[layer], self.length + k.shape[2]
        keys[:, :, self.length:end] = k
        values[:, :, self.length:end] = v
        return keys[:, :, :end], values[:, :, :end]


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias)
    return RMSNorm()


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and those before it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: KVCache | None, visible: Tensor | None
                ) -> Tensor:
        B, T, C = x.shape
        H = self.config.n_head
        qk, v = self.qkv(x).split_with_sizes((2 * C, C), dim=-1)  # heads side by side, those of q first
        if self.config.qk_norm:  # Henry et al. 2020
            qk = rms_norm(qk.view(B, T, 2 * H, -1)).view(B, T, 2 * C)
        if rotary is not None:
            qk = rotate(qk, rotary[0].to(qk.dtype), rotary[1].to(qk.dtype), C // H)
        q, k = qk.view(B, T, 2, H, -1).permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, D) each
        v = v.view(B, T, H, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        y = attend(q, k, v, self.config.dropout if self.training else 0.0, visible)
        return drop(self.proj(y.transpose(1, 2).reshape(B, T, C)), self.config.dropout, self.training)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float, visible: Tensor | None = None) -> Tensor:
    """Attention of the last T of S tokens to the `visible` ones, (B, 1, T, S) or (T, S), or to all that came
    before: softmax(q k' / sqrt(D)) v, (B, H, T, D)."""
    (B, H, T, D), S = q.shape, k.shape[2]
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if visible is None and T in (S, 1) and not plain:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=T == S)
    if visible is None:
        visible = causal(T, S, q.device)
    if plain:
        # On CPUs this is 2 to 4 times faster than the fused kernel, whose bfloat16 backward is slow.
        q, k, v = (x.reshape(B * H, -1, D) for x in (q, k, v))
        bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -math.inf)
        bias = bias.expand(B, H, T, S).reshape(B * H, T, S)
        weights = F.softmax(torch.baddbmm(bias, q, k.mT, alpha=D**-0.5), dim=-1)
        return (F.dropout(weights, dropout) @ v).view(B, H, T, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout (Srivastava et al. 2014), which costs nothing where there is none."""
    return F.dropout(x, p) if p and training else x


def causal(T: int, S: int, device: torch.device) -> Tensor:
    """Which of S tokens the last T may see, (T, S): themselves and those before them."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


class MLP(nn.Module):
    """Each token on its own: four times wider, a nonlinearity, and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.activation = config, relu2 if config.activation == "relu2" else F.gelu
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return drop(self.proj(self.activation(self.fc(x))), self.config.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: KVCache | None, visible: Tensor | None
                ) -> Tensor:
        x = x + self.attn(self.norm1(x), rotary, cache, visible)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Token ids (B, T) to hidden states (B, T, C); `head` (V, C) turns those into logits.

    With a prior, hidden states have V features more, its log-probabilities, which the head passes on: the
    logits are those of the network and, as far as it trusts them, those of the prior.
    """

    cos: Tensor
    sin: Tensor
    identity: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, ngrams: NGrams | None = None) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.untied = None if config.tied else nn.Parameter(torch.empty(vocab_size, config.n_embd))
        self.prior = NGramPrior(ngrams) if ngrams is not None else None
        if self.prior is not None:
            self.guess = nn.Linear(vocab_size, config.n_embd, bias=False)
            self.trust = nn.Parameter(torch.empty(config.n_embd))
            self.register_buffer("identity", torch.eye(vocab_size), persistent=False)
        D = config.n_embd // config.n_head
        frequencies = 10_000.0 ** -(torch.arange(0, D, 2) / D)
        angles = torch.arange(config.block_size)[:, None] * frequencies  # (block_size, D/2)
        heads = 2 * config.n_head  # of queries and of keys, side by side: cos and sin are (block_size, 2 C)
        self.register_buffer("cos", torch.cat([angles, angles], dim=1).cos().repeat(1, heads), persistent=False)
        self.register_buffer("sin", torch.cat([-angles, angles], dim=1).sin().repeat(1, heads), persistent=False)
        self.init_weights()

    @property
    def head(self) -> Tensor:
        """The output head's weights (V, C), or (V, C + V) with a prior."""
        own = self.embed.weight if self.untied is None else self.untied
        return own if self.prior is None else torch.cat([own, self.identity], dim=1)

    @property
    def is_blank(self) -> bool:
        """Whether every logit is zero, whatever the tokens, as `zero_init` leaves an untied head."""
        return self.untied is not None and not self.untied.any() and (self.prior is None or not self.trust.any())

    def forward(self, tokens: Tensor, cache: KVCache | None = None, left_out: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, C), or (B, T, C + V) with a prior, of tokens (B, T), which follow those in the cache
        and are added to it. In training, the prior is without the counts that are `left_out` (B, T)."""
        T = tokens.shape[1]
        start = cache.length if cache is not None else 0
        here = slice(start, start + T)
        seen = cache.append(tokens) if cache is not None else tokens  # (B, S)
        x = self.embed(tokens)
        if self.prior is not None:
            log_p = self.prior(seen[:, -(T + self.prior.order):], left_out)[:, -T:]  # (B, T, V)
            x = x + self.guess(log_p.exp())
        rotary = None
        if self.positions is not None:
            x = x + self.positions.weight[here]
        else:
            rotary = (self.cos[here], self.sin[here])
        x = drop(x, self.config.dropout, self.training)
        visible = self._own_document(seen, T) if self.config.document_attention else None
        for block in self.blocks:
            x = block(x, rotary, cache, visible)
        if cache is not None:
            cache.length = here.stop
        x = self.norm(x)
        if self.prior is None:
            return x
        return torch.cat([x, log_p * (x @ self.trust)[..., None]], dim=-1)

    def _own_document(self, seen: Tensor, T: int) -> Tensor:
        """Which tokens (B, S) each of the last T may see, (B, 1, T, S): those before it in its own document.

        The end token, the last of the vocabulary, opens the next document; the others go on with it.
        """
        documents = (seen == self.vocab_size - 1).cumsum(dim=1)  # (B, S)
        return (documents[:, None, -T:, None] == documents[:, None, None, :]) & causal(T, seen.shape[1], seen.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), in float32, of hidden states (..., C)."""
        return cap(F.linear(hidden, self.head).float(), self.config.softcap)

    def init_weights(self) -> None:
        """GPT-2's normal(0, 0.02), with output projections smaller by sqrt(2 n_layer); or with
        `zero_init` those, and an untied head, at zero: the first loss is then log|V|, exactly. No prior is
        trusted at first."""
        zero, std = self.config.zero_init, 0.02
        for name, p in self.named_parameters():
            if name.endswith("bias") or name == "trust":
                nn.init.zeros_(p)
            elif name.endswith("proj.weight"):
                nn.init.normal_(p, std=0.0 if zero else std / math.sqrt(2 * self.config.n_layer))
            elif name in ("untied", "guess.weight"):
                nn.init.normal_(p, std=0.0 if zero else std)
            elif name == "embed.weight" and zero and self.untied is not None:
                nn.init.normal_(p, std=1.0)  # no head shares it, so it may be as large as it is useful
            elif p.ndim == 2:
                nn.init.normal_(p, std=std)

    def to_predict(self, dtype: torch.dtype) -> "GPT":
        """Keep linear layers' weights in `dtype`, where autocast would cast them for each batch, or each token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self.eval()

    def describe(self) -> str:
        c = self.config
        counted = "" if self.prior is None else f" and {self.prior.count:,} n-grams of 1 to {c.ngram} tokens"
        return (f"GPT of {self.num_params():,} parameters{counted}: n_layer={c.n_layer} n_head={c.n_head} n_embd="
                f"{c.n_embd} block_size={c.block_size}; {self.flops_per_token() / 1e6:.1f} MFLOP to train on a token")

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Of one training step, per token: 6 per weight that is multiplied by (2 forward, 4 backward)
        and 6 T C per layer for attention, half of the full square as it is causal (Kaplan et al. 2020)."""
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        matrices += self.embed.weight.numel() if self.untied is None else self.untied.numel()
        if self.prior is not None:
            matrices += self.guess.weight.numel()
        return 6 * matrices + 6 * self.config.n_layer * self.config.block_size * self.config.n_embd
