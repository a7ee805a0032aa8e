"""The model: causal, the same with a cache, and in both forms; and what it is without training."""

import math

import pytest
import torch
from torch import Tensor

from config.schema import ModelConfig
from kernels import attention
from kv_cache import KVCache
from loss import IGNORE_INDEX, LossSums, Objective, cross_entropy
from model import GPT, hash_ngrams, rotate

V = 11
MODERN = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
GPT2 = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, form="gpt2")
NGRAMS = MODERN.model_copy(update={"ngram_embedding": 4, "ngram_rows": 512})
DOCUMENTS = MODERN.model_copy(update={"document_attention": True})
FORMS = pytest.mark.parametrize(
    "cfg", [MODERN, GPT2, NGRAMS, DOCUMENTS], ids=["modern", "gpt2", "ngrams", "documents"]
)


def make_model(cfg: ModelConfig, trained: bool = True) -> GPT:
    """A model; `trained` ones have weights that are nowhere zero."""
    torch.manual_seed(0)
    model = GPT(cfg, V).eval()
    if trained:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def make_tokens(B: int = 3, T: int = 16) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def in_pieces(model: GPT, tokens: Tensor) -> Tensor:
    """Hidden states by way of a cache."""
    cache = KVCache(model.cfg, len(tokens), torch.device("cpu"), torch.float32)
    pieces = [
        model.hidden_states(tokens[:, a:b], cache) for a, b in [(0, 5), (5, 6), (6, 10), (10, 16)]
    ]
    assert cache.length == 16
    return torch.cat(pieces, dim=1)


@FORMS
def test_an_untrained_model_knows_nothing(cfg: ModelConfig) -> None:
    model, tokens = make_model(cfg, trained=False), make_tokens(8)
    sums = model(tokens, tokens.roll(-1, 1))
    exact = cfg.form == "nanochat"
    assert sums.nll.item() / sums.num_targets.item() == pytest.approx(
        math.log(V), abs=1e-6 if exact else 0.02
    )


@FORMS
def test_without_targets_logits_and_with_targets_sums_of_the_loss(cfg: ModelConfig) -> None:
    model, tokens = make_model(cfg.model_copy(update={"softcap": 5.0})), make_tokens()
    targets, objective = tokens.roll(-1, 1), Objective(0.1, 0.01)
    targets[0, :5] = IGNORE_INDEX
    logits, sums = model(tokens), model(tokens, targets, objective)
    assert (logits.shape, logits.dtype) == ((3, 16, V), torch.float32)
    assert logits.abs().max() <= 5
    assert torch.equal(logits, model.logits(model.hidden_states(tokens)))
    assert isinstance(sums, LossSums)
    for got, expected in zip(sums, cross_entropy(logits, targets, objective), strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    teacher = torch.randn(3, 16, V)
    distilled = Objective(alpha=0.5, temperature=2.0)
    assert model(tokens, targets, distilled, teacher).objective.item() == pytest.approx(
        cross_entropy(logits, targets, distilled, teacher).objective.item(), rel=1e-6
    )


@FORMS
def test_the_future_is_invisible(cfg: ModelConfig) -> None:
    model, tokens = make_model(cfg), make_tokens(1)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % (V - 1)  # not to eos, which would open a document
    before, after = model.hidden_states(tokens), model.hidden_states(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9], atol=1e-3)
    assert not torch.allclose(before[:, 10], after[:, 10], atol=1e-3)


@FORMS
def test_cached_equals_uncached(cfg: ModelConfig) -> None:
    model, tokens = make_model(cfg), make_tokens()
    torch.testing.assert_close(
        in_pieces(model, tokens), model.hidden_states(tokens), atol=1e-5, rtol=1e-5
    )


@FORMS
def test_positions_matter(cfg: ModelConfig) -> None:
    model = make_model(cfg)
    last = model.hidden_states(torch.tensor([[1, 2, 3, 4, 5, 6]]))[:, -1]
    assert not torch.allclose(
        last, model.hidden_states(torch.tensor([[2, 1, 3, 4, 5, 6]]))[:, -1], atol=1e-3
    )


def test_rotating_multiplies_by_a_complex_number() -> None:
    """(a, b), as a + i b, turns by e^(-i angle); features i and i + D / 2 are a pair."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    angles = torch.rand(3, 1, 4, dtype=torch.float64)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(-1j * angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected)


def test_rotary_positions_are_relative() -> None:
    """The same words after a longer text of which they see nothing get the same hidden states."""
    model = make_model(DOCUMENTS)
    words = torch.tensor([[V - 1, 1, 2, 3]])
    shifted = torch.cat([torch.tensor([[4, 5, 6]]), words], dim=1)
    torch.testing.assert_close(
        model.hidden_states(shifted)[:, 3:], model.hidden_states(words), atol=1e-5, rtol=1e-5
    )


def test_bfloat16_attention_is_the_same_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 16, 8).unbind()
    exact = attention(q, k, v, 0.0)
    by_hand = (q @ k.mT / 8**0.5).masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf).softmax(
        -1
    ) @ v
    torch.testing.assert_close(exact, by_hand, atol=1e-5, rtol=1e-5)
    for training in (True, False):  # which it does in its own way
        with torch.set_grad_enabled(training):
            plain = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.0)
        torch.testing.assert_close(plain.float(), exact, atol=0.05, rtol=0.05)
    for T in (1, 3):
        torch.testing.assert_close(
            attention(q[:, :, -T:], k, v, 0.0), exact[:, :, -T:], atol=1e-5, rtol=1e-5
        )


def test_dropout_drops_attention_as_it_should() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 2, 16, 16).unbind()
    # so that what comes out is how much each token attends to each
    v = torch.eye(16).expand(4, 2, 16, 16)
    weights, dropped = attention(q, k, v, 0.0), attention(q, k, v, 0.25)
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, weights / 0.75))
    shares = (dropped == 0)[weights > 0].float().mean(), (dropped == 0).float().mean()
    assert 0.2 < shares[0] < 0.3 < shares[1]
    assert not dropped.triu(1).any()


def test_counts() -> None:
    model = make_model(ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, form="nanogpt"))
    assert model.num_params() == V * 32 + 16 * 32 + 2 * 12 * 32 * 32 + 5 * 32  # of LayerNorms
    matrices = V * 32 + 2 * 12 * 32 * 32
    assert model.flops_per_token() == 6 * matrices + 6 * 2 * 16 * 32
    assert make_model(MODERN).num_params() == 2 * V * 32 + 2 * 12 * 32 * 32
    tables = make_model(NGRAMS)
    assert tables.num_params() == make_model(MODERN).num_params() + 3 * 512 * 32
    # looking up multiplies nothing
    assert tables.flops_per_token() == make_model(MODERN).flops_per_token()


def test_dropout_drops_only_in_training() -> None:
    model = make_model(ModelConfig(block_size=16, n_layer=1, n_head=2, n_embd=32, dropout=0.5))
    tokens = make_tokens()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))


def test_hashes_of_ngrams() -> None:
    """The same last n tokens have the same row, in any place; others have, mostly, another."""
    tokens = torch.randint(V, (4, 500), generator=torch.Generator().manual_seed(2))
    for n in (2, 3, 4):
        rows = hash_ngrams(tokens, n, 8192)
        assert rows.shape == tokens.shape
        assert 0 <= rows.min() <= rows.max() < 8192
        seen: dict[tuple[int, ...], set[int]] = {}
        for text, own in zip(tokens.tolist(), rows.tolist(), strict=True):
            for end in range(n - 1, len(text)):
                seen.setdefault(tuple(text[end - n + 1 : end + 1]), set()).add(own[end])
        assert all(len(found) == 1 for found in seen.values())
        distinct = len({row for found in seen.values() for row in found})
        expected = 8192 * (1 - (1 - 1 / 8192) ** len(seen))  # rows that so many balls hit by chance
        assert distinct > 0.8 * expected
    large = torch.full((1, 5), 999_999)  # a large vocabulary does not overflow
    assert hash_ngrams(large, 16, 7).min() >= 0


def test_ngram_embeddings_start_at_zero_and_learn() -> None:
    """At first the model is the one without them; then the same gradient step moves the tables too."""
    without, model = make_model(MODERN, trained=False), make_model(NGRAMS, trained=False)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in without.named_parameters():
            torch.nn.init.normal_(p, std=0.3)
            own[name].copy_(p)
    tokens = make_tokens()
    assert torch.equal(model(tokens), without(tokens))

    targets = tokens.roll(-1, 1)
    optimizer = torch.optim.SGD(model.ngrams.parameters(), lr=0.5)  # the tables alone
    losses = []
    for _ in range(30):
        sums = model(tokens, targets)
        (sums.objective / sums.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sums.objective.item() / sums.num_targets.item())
    assert losses[-1] < losses[0] - 0.3
    assert all(table.any() for table in model.ngrams.parameters())


def test_the_longest_ngram_reaches_as_far_back_as_it_says() -> None:
    model = make_model(NGRAMS)
    for name, p in model.named_parameters():  # no attention: only the embeddings see other tokens
        if name.endswith("attn.proj.weight"):
            torch.nn.init.zeros_(p)
    tokens = make_tokens(1)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % V
    differs = (model.hidden_states(tokens) != model.hidden_states(changed)).any(dim=-1)[0]
    assert differs.nonzero().flatten().tolist() == [5, 6, 7, 8]
