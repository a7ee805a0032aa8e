"""Samples follow the probabilities, and are the same with a cache or without."""

from typing import Any

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.schema import TablesConfig
from engine.device import Device
from engine.generate import generate, sample_token
from tests.conftest import make_model

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("top_p", [1e-38, 1e-45, 1e-300])
def test_one_token_stays_however_small_top_p_is(top_p: float) -> None:
    """It stays although in float32 its part of the probability is 0."""
    torch.manual_seed(0)
    logits = torch.randn(100, 7)
    u = torch.linspace(0, 0.999, 100)
    sampled = sample_token(logits, u, 1.0, 0, top_p)
    assert torch.equal(sampled, logits.argmax(dim=-1))


MODELS = [
    {"form": "nanochat"},
    {"form": "gpt2"},
    {"tables": TablesConfig(max_ngram=3, table_rows=50)},
]
GREEDY = {"temperature": 0.0}
HOT = {"temperature": 1.3}
CUT = {"top_k": 3, "top_p": 0.8}


@pytest.mark.parametrize("model_options", MODELS)
@pytest.mark.parametrize("options", [GREEDY, HOT, CUT])
def test_cached_sampling_equals_uncached_also_beyond_the_block(
    model_options: dict[str, Any], options: dict[str, Any]
) -> None:
    """The window, which starts with the prompt, moves on by half a block whenever it is full."""
    model = make_model(**model_options)
    tokens = [1, 2, 3]
    start = 0
    settings = {"temperature": 0.8, "top_k": 0, "top_p": 1.0} | options
    rng = np.random.default_rng((1337, 0))
    for _ in range(40):
        if len(tokens) - start > 8:
            start = len(tokens) - 4
        u = torch.tensor([rng.random()], dtype=torch.float32)
        window = torch.tensor([tokens[start:]])
        logits = model(window)[:, -1].detach()
        tokens += sample_token(logits, u, **settings).tolist()
    options = options | {"num_samples": 2, "max_new_tokens": 40}
    steps = generate(model, [1, 2, 3], CPU, **options)
    assert [first for first, _ in steps] == tokens[3:]


def test_a_sample_depends_on_its_number_not_on_how_many_there_are() -> None:
    model = make_model()
    three = list(generate(model, [1], CPU, num_samples=3, max_new_tokens=99))
    one = list(generate(model, [1], CPU, num_samples=1, max_new_tokens=99))
    assert [tokens[0] for tokens in three] == [tokens[0] for tokens in one]
    assert [tokens[0] for tokens in three] != [tokens[1] for tokens in three]


def test_a_long_prompt_is_cut_to_the_block() -> None:
    model = make_model()
    long = [token % 13 for token in range(50)]
    whole = next(generate(model, long, CPU, temperature=0))
    cut = next(generate(model, long[-8:], CPU, temperature=0))
    assert whole == cut


def test_samples_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probs.log().expand(20_000, 4)
    u = torch.arange(20_000) / 20_000

    def shares(**options: Any) -> list[float]:
        settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        sampled = sample_token(logits, u, **(settings | options))
        counts = torch.bincount(sampled, minlength=4)
        return (counts / 20_000).tolist()

    first_two = [0.625, 0.375, 0, 0]
    squares = (probs**2 / 0.365).tolist()
    assert shares() == pytest.approx(probs.tolist(), abs=1e-3)
    assert shares(top_k=2) == pytest.approx(first_two, abs=1e-3)
    assert shares(top_p=0.75) == pytest.approx(first_two, abs=1e-3)
    assert shares(temperature=0.5) == pytest.approx(squares, abs=1e-3)
    assert shares(temperature=0) == [1, 0, 0, 0]
    extreme = torch.tensor([[0.0, 1000.0, -1000.0]])
    nearly_one = torch.tensor([0.999999])
    assert sample_token(extreme, nearly_one, 1e-40, 0, 1.0).tolist() == [1]
    with pytest.raises(UserError, match="diverged"):
        sample_token(extreme / 0, torch.tensor([0.5]), 1.0, 0, 1.0)
