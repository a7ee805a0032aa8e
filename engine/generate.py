"""Text from a model, token by token: prefill the KV cache with the prompt, then decode."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from config.errors import DIVERGED, UserError
from data.prepare import Corpus
from engine.device import Device
from kv_cache import KVCache
from model import GPT

# times any float32 it is less than that: so no token of probability 0 is sampled
ALMOST_ONE = 1 - 2**-23


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: list[int],
    device: Device,
    *,
    num_samples: int = 1,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 1337,
    eos: int | None = None,
) -> Iterator[list[int]]:
    """Continue a prompt of at least one token; yields the next token of each sample,
    (num_samples,).

    Sample i depends on (seed, i), not on the number of samples. A sample that has reached `eos`
    stays there; when all have, generation ends.
    """
    model.eval()
    rngs = [np.random.default_rng((seed, i)) for i in range(num_samples)]
    ended = torch.zeros(num_samples, 1, dtype=torch.bool, device=device.torch_device)
    window = Window(model, num_samples, device)
    new = torch.tensor(prompt, device=device.torch_device).expand(num_samples, -1)[
        :, -model.cfg.block_size :
    ]
    for _ in range(max_new_tokens):
        logits = window.next_logits(new)
        u = torch.tensor(
            [rng.random() for rng in rngs], dtype=torch.float32, device=device.torch_device
        )
        new = sample_token(logits, u, temperature, top_k, top_p)[:, None]
        if eos is not None:
            new = new.masked_fill(ended, eos)
            ended = ended | (new == eos)
        yield new[:, 0].tolist()
        if ended.all():
            return


class Window:
    """The last tokens of B texts, at most block_size, in a KV cache.

    When it is full, it moves on by half, so that the cache is computed anew once in block_size / 2
    tokens.
    """

    def __init__(self, model: GPT, batch_size: int, device: Device) -> None:
        self.model, self.device = model, device
        self.make_cache = partial(KVCache, model.cfg, batch_size, device.torch_device, device.dtype)
        self.cache = self.make_cache()

    def next_logits(self, new: Tensor) -> Tensor:
        """Append tokens (B, T); returns the logits (B, V) of the token after them."""
        if self.cache.length == (block_size := self.model.cfg.block_size):
            new, self.cache = (
                torch.cat([self.cache.tokens, new], 1)[:, -max(1, block_size // 2) :],
                self.make_cache(),
            )
        with self.device.autocast():
            return self.model.logits(self.model.hidden_states(new, self.cache)[:, -1])


def sample_token(logits: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Token ids (B,) from logits (B, V) and uniform random numbers u (B,): the inverse of the
    cumulative distribution.

    Temperature 0 is greedy. `top_k` keeps the k most probable tokens (0 = all), and `top_p` the
    fewest whose probability reaches top_p (Holtzman et al. 2020).

    >>> sample_token(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.5]), temperature=0, top_k=0, top_p=1.0).tolist()
    [1]
    """
    if not logits.isfinite().all():
        raise UserError(DIVERGED)
    # so that a low temperature does not overflow
    logits = logits - logits.amax(dim=-1, keepdim=True)
    if temperature < 1e-30:  # too small to divide by
        return logits.argmax(dim=-1)
    q, order = (logits / temperature).softmax(dim=-1), None
    if top_k or top_p < 1:
        q, order = q.sort(dim=-1, descending=True)
        if top_k:
            q[:, top_k:] = 0
        is_enough = q.cumsum(dim=-1) - q >= top_p * q.sum(dim=-1, keepdim=True)
        is_enough[:, 0] = False  # in float32 a small top_p may be 0, but one token always stays
        q[is_enough] = 0
    cumulative = q.cumsum(dim=-1)
    # (B, 1)
    place = torch.searchsorted(
        cumulative, u[:, None].clamp_max(ALMOST_ONE) * cumulative[:, -1:], right=True
    )
    return (place if order is None else order.gather(-1, place)).squeeze(-1)


def generate_texts(
    model: GPT,
    corpus: Corpus,
    device: Device,
    num_samples: int = 1,
    max_new_tokens: int = 300,
    seed: int = 1337,
) -> list[str]:
    """Continuations of the corpus's prompt, without the prompt; each ends before its eos token."""
    tokenizer = corpus.tokenizer
    steps = generate(
        model,
        tokenizer.encode_prompt(corpus.info.prompt),
        device,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        eos=tokenizer.end,
    )
    samples = [list(sample) for sample in zip(*steps, strict=True)]
    model.train()
    return [
        tokenizer.decode(
            sample[: sample.index(tokenizer.end)] if tokenizer.end in sample else sample
        )
        for sample in samples
    ]
