"""Keys and values of the tokens that a model has read, which new tokens need (Pope et al. 2022)."""

import torch
from torch import Tensor

from config.schema import ModelConfig


class KVCache:
    """Each layer's keys and values, and the tokens themselves, which n-grams and documents need.

    GPT.hidden_states adds to it, and then moves `length` on.
    """

    def __init__(
        self, cfg: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        head_width = cfg.n_embd // cfg.n_head
        shape = (cfg.n_layer, batch_size, cfg.n_head, cfg.block_size, head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.tokens = torch.zeros(batch_size, cfg.block_size, device=device, dtype=torch.int64)
        self.length = 0  # tokens read

    def append_tokens(self, tokens: Tensor) -> Tensor:
        """Store new tokens (B, T); returns all tokens (B, S)."""
        end = self.length + tokens.shape[1]
        self.tokens[:, self.length : end] = tokens
        return self.tokens[:, :end]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, T, D); returns all of them (B, H, S, D)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
