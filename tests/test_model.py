import math

import pytest
import torch

from config.schema import ModelConfig
from loss import next_token_loss
from model import GPT, KVCache

MODERN = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
GPT2 = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True, position="learned", norm="layernorm",
                   activation="gelu", qk_norm=False, tied=True, zero_init=False)


def make(config: ModelConfig, trained: bool = True) -> GPT:
    """A model; `trained` ones have weights that are nowhere zero."""
    torch.manual_seed(0)
    model = GPT(config, 11).eval()
    if trained:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("config", [MODERN, GPT2])
def test_an_untrained_model_knows_nothing(config: ModelConfig) -> None:
    model = make(config, trained=False)
    tokens = torch.randint(11, (8, 16))
    loss = next_token_loss(model(tokens), model.head, tokens.roll(-1, 1))
    assert loss.nll.item() / loss.tokens.item() == pytest.approx(math.log(11), abs=0.02)


@pytest.mark.parametrize("config", [MODERN, GPT2])
def test_the_future_is_invisible(config: ModelConfig) -> None:
    model = make(config)
    tokens = torch.randint(11, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)


@pytest.mark.parametrize("config", [MODERN, GPT2])
def test_cached_equals_uncached(config: ModelConfig) -> None:
    model = make(config)
    tokens = torch.randint(11, (3, 16))
    cache = KVCache(config, 3, torch.device("cpu"), torch.float32)
    pieces = [model(tokens[:, a:b], cache) for a, b in [(0, 5), (5, 6), (6, 6 + 4), (10, 16)]]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_bfloat16_attention_is_the_same_attention() -> None:
    from model import attend

    q, k, v = torch.randn(3, 2, 2, 16, 8).unbind()
    exact = attend(q, k, v, 0.0)
    for training in (True, False):  # which it does in its own way
        with torch.set_grad_enabled(training):
            plain = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.0)
        torch.testing.assert_close(plain.float(), exact, atol=0.05, rtol=0.05)
    for T in (1, 3):
        torch.testing.assert_close(attend(q[:, :, -T:], k, v, 0.0), exact[:, :, -T:], atol=1e-5, rtol=1e-5)


def test_positions_matter() -> None:
    for config in (MODERN, GPT2):
        model = make(config)
        last = model(torch.tensor([[1, 2, 3]]))[:, -1]
        assert not torch.allclose(last, model(torch.tensor([[2, 1, 3]]))[:, -1], atol=1e-3)


def test_counts() -> None:
    model = make(ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, tied=True, position="learned"))
    assert model.num_params() == 11 * 32 + 16 * 32 + 2 * 12 * 32 * 32
    matrices = 11 * 32 + 2 * 12 * 32 * 32
    assert model.flops_per_token() == 6 * matrices + 6 * 2 * 16 * 32
    assert make(MODERN).num_params() == 2 * 11 * 32 + 2 * 12 * 32 * 32


def test_dropout_drops_only_in_training() -> None:
    model = make(ModelConfig(block_size=16, n_layer=1, n_head=2, n_embd=32, dropout=0.5))
    tokens = torch.randint(11, (2, 16))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))
