"""Text from a model, token by token: prefill the KV cache with the prompt, then decode."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.errors import DIVERGED, UserError
from data.tokenizer import Tokenizer
from engine.device import Device
from kv_cache import KVCache
from model import GPT

# Times any float32 it is less than that float32: so no token of probability 0 is sampled.
ALMOST_ONE = 1 - 2**-23


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: list[int],
    device: Device,
    num_samples: int = 1,
    max_new_tokens: int = 300,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 1337,
    eos: int | None = None,
) -> Iterator[list[int]]:
    """Continue a prompt of at least one token; yields the next token of each of the samples.

    Sample i depends on (seed, i), not on the number of samples. A sample that has reached `eos`
    stays there; when all have, generation ends.
    """
    model.eval()
    rngs = [np.random.default_rng((seed, i)) for i in range(num_samples)]
    ended = torch.zeros(num_samples, 1, dtype=torch.bool, device=device.torch_device)
    tokens = torch.tensor(prompt, device=device.torch_device).expand(num_samples, -1)
    window = Window(model, device)
    for number in range(max_new_tokens):
        logits = window.prefill(tokens) if number == 0 else window.decode(tokens)
        u = torch.tensor([rng.random() for rng in rngs], dtype=torch.float32)
        u = u.to(device.torch_device)
        tokens = sample_token(logits, u, temperature, top_k, top_p)[:, None]
        if eos is not None:
            tokens = tokens.masked_fill(ended, eos)
            ended = ended | (tokens == eos)
        yield tokens[:, 0].tolist()
        if ended.all():
            return


class Window:
    """The last tokens of B texts, at most block_size, in a KV cache.

    When it is full, it moves on by half, so that the cache is computed anew once in block_size / 2
    tokens.
    """

    def __init__(self, model: GPT, device: Device) -> None:
        self.model = model
        self.device = device
        self.block_size = model.cfg.block_size
        self.cache: KVCache | None = None

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the last of tokens (B, T) anew; returns logits (B, V) of the token after them."""
        batch_size = len(tokens)
        device = self.device
        self.cache = KVCache(self.model.cfg, batch_size, device.torch_device, device.dtype)
        return self._forward(tokens[:, -self.block_size :], self.cache)

    def decode(self, new: Tensor) -> Tensor:
        """Append tokens (B, 1); returns the logits (B, V) of the token after them."""
        assert self.cache is not None, "prefill comes first"
        if self.cache.length < self.block_size:
            return self._forward(new, self.cache)
        kept = max(1, self.block_size // 2)
        recent = torch.cat([self.cache.tokens, new], dim=1)
        return self.prefill(recent[:, -kept:])

    def _forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        with self.device.autocast():
            hidden = self.model.hidden_states(tokens, cache)
            return self.model.logits(hidden[:, -1])


def sample_token(logits: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Sample token ids (B,) from logits (B, V) with uniform random numbers u (B,).

    Temperature 0 is greedy. `top_k` keeps the k most probable tokens (0 = all), and `top_p` the
    fewest whose probability reaches top_p (Holtzman et al. 2020).

    >>> logits, u = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.5])
    >>> sample_token(logits, u, temperature=0, top_k=0, top_p=1.0).tolist()
    [1]
    """
    if not logits.isfinite().all():
        raise UserError(DIVERGED)
    # so that a low temperature does not overflow
    logits = logits - logits.amax(dim=-1, keepdim=True)
    if temperature < 1e-30:  # too small to divide by
        return logits.argmax(dim=-1)
    q = (logits / temperature).softmax(dim=-1)
    if top_k == 0 and top_p == 1:
        return draw(q, u)[:, 0]

    # from the most to the least probable token: q is then what is left of the probabilities
    q, order = q.sort(dim=-1, descending=True)
    if top_k > 0:
        q[:, top_k:] = 0
    more_probable = q.cumsum(dim=-1) - q
    is_enough = more_probable >= top_p * q.sum(dim=-1, keepdim=True)
    is_enough[:, 0] = False  # in float32 a small top_p may be 0, but one token always stays
    q[is_enough] = 0
    return order.gather(-1, draw(q, u))[:, 0]


def draw(q: Tensor, u: Tensor) -> Tensor:
    """Draw a token (B, 1) each from q (B, V), which need not sum to 1, with random numbers u (B,).

    It inverts the cumulative distribution.
    """
    cumulative = q.cumsum(dim=-1)
    total = cumulative[:, -1:]
    places = u[:, None].clamp_max(ALMOST_ONE) * total
    return torch.searchsorted(cumulative, places, right=True)


def generate_texts(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    device: Device,
    num_samples: int = 1,
    **sampling: Any,
) -> list[str]:
    """Continue a prompt; returns the texts without the prompt and the eos token.

    `sampling` has options of `generate`, such as the temperature. Products are in float32, as in
    sample.py: autocast would cast all weights once for each token.
    """
    was_training = model.training
    steps = generate(
        model,
        tokenizer.encode_prompt(prompt),
        device.in_float32(),
        num_samples=num_samples,
        eos=tokenizer.end,
        **sampling,
    )
    samples: list[list[int]] = [[] for _ in range(num_samples)]
    for tokens in steps:
        append_tokens(samples, tokens, tokenizer.end)
    model.train(was_training)
    return [tokenizer.decode(sample) for sample in samples]


def append_tokens(samples: list[list[int]], tokens: list[int], eos: int | None) -> None:
    """Append its next token to each sample, but not eos: a sample that has ended stays there."""
    for sample, token in zip(samples, tokens, strict=True):
        if token != eos:
            sample.append(token)
