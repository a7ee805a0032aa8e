"""What --explain_batch shows is the batch: the text, what of it is scored, and what it cost."""

import re

import numpy as np
import torch

from config.schema import ModelConfig
from data.batches import eval_batches
from data.documents import encode_documents, mark_given
from data.tokenizer import CharTokenizer
from engine.distributed import World
from engine.step import nll_by_token
from explain import describe
from loss import IGNORE_INDEX
from model import GPT

TOKENIZER = CharTokenizer("abcdefgh :\n", "\n\n")
SPLIT = encode_documents([mark_given("ab:\ncd ef", "^..:"), mark_given("gh:\nhg", "^..:")], TOKENIZER, True)


def test_text_brackets_and_costs() -> None:
    (batch,) = eval_batches(SPLIT, 12, TOKENIZER.end)
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=12, n_layer=1, n_head=2, n_embd=8, zero_init=False), TOKENIZER.vocab_size)
    nll = nll_by_token(model, batch, World(torch.device("cpu"), torch.float32))
    logits = model.logits(model(torch.from_numpy(batch.inputs))).double().log_softmax(-1).detach()
    for b, t in np.ndindex(*nll.shape):
        target = batch.targets[b, t]
        np.testing.assert_allclose(nll[b, t], 0 if target == IGNORE_INDEX else -logits[b, t, target], atol=1e-5)
    shown = describe(batch, nll, TOKENIZER, colour=False, padded=True)
    assert "11 of 24 targets are scored, 45.8%" in shown
    assert "\n[<|end|>ab:]⏎cd ef<|end|>\n[<|end|>gh:]⏎hg<|end|>\n" in shown
    assert "␣" in shown
    assert f"⏎ {nll[0, 3]:.3f}" in shown
    coloured = describe(batch, nll, TOKENIZER, colour=True, padded=True)
    assert re.sub("\x1b[^m]*m", "", coloured).count("ab:⏎cd ef<|end|>") == 1
    assert "\x1b[2ma\x1b[0m" in coloured  # given


def test_what_is_given_after_a_window_is_not_made_up() -> None:
    """A batch does not hold the target of its last input where that is given."""
    batch = next(eval_batches(SPLIT, 2))
    assert batch.targets[0].tolist() == [IGNORE_INDEX] * 2
    shown = describe(batch, np.zeros(batch.targets.shape, np.float32), TOKENIZER, colour=False)
    assert "\n[<|end|>a…]\n[b:]⏎\n" in shown


def test_a_batch_with_nothing_scored_is_shown_too() -> None:
    (batch,) = eval_batches(SPLIT, 12, TOKENIZER.end)
    batch.targets[:] = IGNORE_INDEX
    assert "0 of 24 targets are scored" in describe(batch, np.zeros((2, 12), np.float32), TOKENIZER, colour=True)
