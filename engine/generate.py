"""Text from a model, token by token: prefill, then decode with a KV cache."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from engine.distributed import World
from errors import DIVERGED, UserError
from model import GPT, KVCache

COLD = 1e-30  # temperatures below it are 0
ALMOST_ONE = 1 - 2**-23  # times any float32, less than it: no token of probability 0 is ever drawn


@torch.inference_mode()
def generate(model: GPT, prompt: list[int], world: World, *, num_samples: int = 1, max_new_tokens: int = 500,
             temperature: float = 0.8, top_k: int = 0, top_p: float = 1.0, seed: int = 1337, end: int | None = None,
             use_cache: bool = True) -> Iterator[list[int]]:
    """Continue a prompt of at least one token; yields the next token of each sample, `(num_samples,)`.

    Sample i depends on (seed, i), not on how many are made. When the window of `block_size` tokens
    is full it slides on by half, so that the cache is filled anew only once in block_size / 2 tokens.
    A sample that came to the `end` token stays there; when all have, it is over. `use_cache=False`
    computes the same text from whole windows.
    """
    model.eval()
    block_size = model.config.block_size
    tokens = torch.tensor(prompt, device=world.device).expand(num_samples, -1)  # (B, tokens so far)
    start = max(0, tokens.shape[1] - block_size)  # of the window
    rngs = [np.random.default_rng((seed, i)) for i in range(num_samples)]
    cache: KVCache | None = None
    ended = torch.zeros(num_samples, dtype=torch.bool, device=world.device)
    for _ in range(max_new_tokens):
        if tokens.shape[1] - start > block_size:
            start, cache = tokens.shape[1] - max(1, block_size // 2), None
        if use_cache and cache is None:
            cache = KVCache(model.config, num_samples, world.device, world.dtype)
        seen = start + (cache.length if cache is not None else 0)
        with world.autocast():
            hidden = model.forward(tokens[:, seen:], cache)  # (B, T, C)
            logits = model.logits(hidden[:, -1])  # (B, V)
        chance = torch.tensor([rng.random() for rng in rngs], device=world.device)
        chosen = choose(logits, chance, temperature, top_k, top_p)
        if end is not None:
            chosen = chosen.masked_fill(ended, end)
            ended = ended | (chosen == end)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        yield chosen.tolist()
        if ended.all():
            return


def choose(logits: Tensor, chance: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Token ids `(B,)` drawn from logits `(B, V)`, by the inverse of the distribution's cumulative sum at `chance`.

    Temperature 0 takes the most probable token. `top_k` keeps the k most probable (0 = all), and
    `top_p` the fewest that have that much probability together (Holtzman et al. 2020).

    >>> choose(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.5]), temperature=0, top_k=0, top_p=1.0).tolist()
    [1]
    """
    if not logits.isfinite().all():
        raise UserError(DIVERGED)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # so that no temperature makes them overflow
    if temperature < COLD:
        return logits.argmax(dim=-1)
    q, order = (logits / temperature).softmax(dim=-1), None
    if top_k or top_p < 1:
        q, order = q.sort(dim=-1, descending=True)
        if top_k:
            q[:, top_k:] = 0
        q[q.cumsum(dim=-1) - q >= top_p * q.sum(dim=-1, keepdim=True)] = 0
    cumulative = q.cumsum(dim=-1)
    chance = chance[:, None].clamp_max(ALMOST_ONE)
    place = torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True)  # (B, 1)
    return (place if order is None else order.gather(-1, place)).squeeze(-1)
