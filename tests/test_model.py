"""The model: causal, the same with a cache, and in both forms; and what it is without training."""

import math

import pytest
import torch
from torch import Tensor, nn

from config.schema import ModelConfig, TablesConfig
from config.size import count_flops
from kernels import attention, rms_norm
from kv_cache import KVCache
from loss import IGNORE_INDEX, LossSums, Objective, cross_entropy, mean_loss
from model import GPT, rotate
from tests.conftest import fill_weights

V = 11
MODERN = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, smear=True)
GPT2 = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, form="gpt2")
DOCUMENTS = MODERN.model_copy(update={"document_attention": True})
NGRAMS = TablesConfig(max_ngram=4, table_rows=512)
FORMS = pytest.mark.parametrize(
    ("cfg", "tables"),
    [
        (MODERN, TablesConfig()),
        (GPT2, TablesConfig()),
        (DOCUMENTS, TablesConfig()),
        (MODERN, NGRAMS),
    ],
    ids=["modern", "gpt2", "documents", "ngrams"],
)


def make_model(cfg: ModelConfig, tables: TablesConfig | None = None, trained: bool = True) -> GPT:
    """A model; `trained` ones have weights that are nowhere zero."""
    torch.manual_seed(0)
    model = GPT(cfg, V, tables or TablesConfig()).eval()
    if trained:
        fill_weights(model, std=0.3)
    return model


def make_tokens(B: int = 3, T: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (B, T), generator=generator)


def in_pieces(model: GPT, tokens: Tensor) -> Tensor:
    """Hidden states of pieces of 5, 1, 4 and 6 tokens, by way of a cache."""
    cache = KVCache(model.cfg, len(tokens), torch.device("cpu"), torch.float32)
    pieces = []
    for piece in tokens.split([5, 1, 4, 6], dim=1):
        pieces.append(model.hidden_states(piece, cache))
    assert cache.length == 16
    return torch.cat(pieces, dim=1)


@FORMS
def test_an_untrained_model_knows_nothing(cfg: ModelConfig, tables: TablesConfig) -> None:
    model = make_model(cfg, tables, trained=False)
    tokens = make_tokens(8)
    sums = model(tokens, tokens.roll(-1, 1))
    tolerance = {"nanochat": 1e-6, "gpt2": 0.02}[cfg.form]
    nll = mean_loss(sums.detach()).nll
    assert nll == pytest.approx(math.log(V), abs=tolerance)


@FORMS
def test_without_targets_logits_and_with_targets_sums_of_the_loss(
    cfg: ModelConfig, tables: TablesConfig
) -> None:
    model = make_model(cfg.model_copy(update={"softcap": 5.0}), tables)
    tokens = make_tokens()
    targets = tokens.roll(-1, 1)
    targets[0, :5] = IGNORE_INDEX
    objective = Objective(0.1, 0.01)
    logits = model(tokens)
    sums = model(tokens, targets, objective)
    assert (logits.shape, logits.dtype) == ((3, 16, V), torch.float32)
    assert logits.abs().max() <= 5
    assert torch.equal(logits, model.logits(model.hidden_states(tokens)))
    assert isinstance(sums, LossSums)
    assert_near(sums, cross_entropy(logits, targets, objective))

    teacher = torch.randn(3, 16, V)
    distilled = Objective(alpha=0.5, temperature=2.0)
    sums = model(tokens, targets, distilled, teacher)
    assert_near(sums, cross_entropy(logits, targets, distilled, teacher))


def assert_near(sums: LossSums, expected: LossSums) -> None:
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-12, check_dtype=False)


@FORMS
def test_the_future_is_invisible(cfg: ModelConfig, tables: TablesConfig) -> None:
    model = make_model(cfg, tables)
    tokens = make_tokens(1)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % (V - 1)  # not to eos, which would open a document
    before = model.hidden_states(tokens)
    after = model.hidden_states(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9], atol=1e-3)
    assert not torch.allclose(before[:, 10], after[:, 10], atol=1e-3)


@FORMS
def test_cached_equals_uncached(cfg: ModelConfig, tables: TablesConfig) -> None:
    model = make_model(cfg, tables)
    tokens = make_tokens()
    expected = model.hidden_states(tokens)
    torch.testing.assert_close(in_pieces(model, tokens), expected, atol=1e-5, rtol=1e-5)


@FORMS
def test_positions_matter(cfg: ModelConfig, tables: TablesConfig) -> None:
    model = make_model(cfg, tables)
    text = [1, 2, 3, 4, 5, 6]
    swapped = [2, 1, 3, 4, 5, 6]
    tokens = torch.tensor([text, swapped])
    last = model.hidden_states(tokens)[:, -1]
    assert not torch.allclose(last[0], last[1], atol=1e-3)


def test_rotating_multiplies_by_a_complex_number() -> None:
    """(a, b), as a + i b, turns by e^(-i angle); features i and i + D / 2 are a pair."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    angles = torch.rand(3, 1, 4, dtype=torch.float64)
    a, b = x.split(4, dim=-1)
    turned = torch.complex(a, b) * torch.exp(-1j * angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    rotated = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotated, expected)


def test_rotary_positions_are_relative() -> None:
    """The same words after a longer text of which they see nothing get the same hidden states."""
    model = make_model(DOCUMENTS)
    words = torch.tensor([[V - 1, 1, 2, 3]])
    longer = torch.tensor([[4, 5, 6, *words[0]]])
    shifted = model.hidden_states(longer)[:, 3:]
    torch.testing.assert_close(shifted, model.hidden_states(words), atol=1e-5, rtol=1e-5)


def test_bfloat16_attention_is_the_same_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 16, 8).unbind()
    exact = attention(q, k, v, 0.0)
    future = torch.ones(16, 16).triu(1).bool()
    scores = (q @ k.mT / 8**0.5).masked_fill(future, -math.inf)
    by_hand = scores.softmax(-1) @ v
    torch.testing.assert_close(exact, by_hand, atol=1e-5, rtol=1e-5)
    for training in (True, False):  # each has its own way
        with torch.set_grad_enabled(training):
            plain = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.0)
        torch.testing.assert_close(plain.float(), exact, atol=0.05, rtol=0.05)
    for T in (1, 3):
        last = attention(q[:, :, -T:], k, v, 0.0)
        expected = exact[:, :, -T:]
        torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)


def test_dropout_drops_attention_as_it_should() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 2, 16, 16).unbind()
    # with such values, the output is how much each token attends to each
    v = torch.eye(16).expand(4, 2, 16, 16)
    weights = attention(q, k, v, 0.0)
    dropped = attention(q, k, v, 0.25)
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, weights / 0.75))
    is_zero = (dropped == 0).float()
    of_the_past = is_zero[weights > 0].mean()
    of_all = is_zero.mean()
    assert 0.2 < of_the_past < 0.3 < of_all
    assert not dropped.triu(1).any()


def test_parameters_and_operations_are_counted() -> None:
    vocabulary = V * 32
    positions = 16 * 32
    blocks = 2 * 12 * 32 * 32
    layer_norms = 5 * 32
    model = make_model(GPT2.model_copy(update={"form": "nanogpt"}))
    assert model.num_params() == vocabulary + positions + blocks + layer_norms
    assert count_flops(model.cfg, V) == 6 * (vocabulary + blocks) + 6 * 2 * 16 * 32
    modern = make_model(MODERN)
    smear = 32
    assert modern.num_params() == 2 * vocabulary + smear + blocks
    tables = make_model(MODERN, NGRAMS)
    assert tables.num_params() == modern.num_params() + 3 * 512 * 32


def test_smear_adds_a_share_of_the_embedding_before() -> None:
    model = make_model(MODERN)
    assert model.smear is not None
    model.blocks = nn.ModuleList()
    tokens = make_tokens()
    embeddings = rms_norm(model.wte(tokens))
    expected = embeddings.clone()
    for place in range(1, 16):
        expected[:, place] += model.smear * embeddings[:, place - 1]
    assert torch.allclose(model.hidden_states(tokens), rms_norm(expected), atol=1e-6)


def test_smear_does_not_reach_into_another_document() -> None:
    model = make_model(DOCUMENTS)
    eos = V - 1
    document = torch.tensor([[eos, 3, 4]])
    both = torch.tensor([[eos, 1, 2, eos, 3, 4]])
    embeddings = torch.randn(1, 6, 32)
    alone = model.one_back(embeddings[:, 3:], document)
    assert torch.equal(model.one_back(embeddings, both)[:, 3:], alone)


def test_dropout_drops_only_in_training() -> None:
    model = make_model(MODERN.model_copy(update={"dropout": 0.5}))
    tokens = make_tokens()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))
