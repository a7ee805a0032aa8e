"""What --show_batch and --explain show is the batch and the text: what of it is a target, and
what it cost.
"""

import re

import numpy as np
import pytest
import torch

from config.schema import DataConfig, ModelConfig
from data.batches import IGNORE_INDEX, Batch, cut
from data.documents import Split, apply_mask, encode_documents
from data.eval_text import EvalText
from data.show import show_masks
from data.tokenizer import char_tokenizer
from data.windows import find_windows
from engine.device import Device
from engine.scoring import predict, score_targets
from model import GPT
from report.tokens import show_costs
from tests.conftest import TINY, call

CPU = Device(torch.device("cpu"), torch.float32)
TOKENIZER = char_tokenizer("abcdefgh :\n", "\n\n")
SPLIT = encode_documents(
    [apply_mask("ab:\ncd ef", "^..:"), apply_mask("gh:\nhg", "^..:")], TOKENIZER, DataConfig(), ""
)


def nll_of_tokens(model: GPT, tokens: list[int]) -> np.ndarray:
    text = EvalText(Split(np.array(tokens)), model.cfg.block_size)
    return score_targets(predict(model, text.batches(), CPU), [1.0]).nll


def padded_batch() -> Batch:
    (batch,) = EvalText(SPLIT, 12, TOKENIZER.eos).batches()
    return batch


def test_masked_tokens_are_in_brackets() -> None:
    shown = show_masks(padded_batch(), TOKENIZER, padded=True)
    assert "11 of 24 tokens are targets, 45.8%; the others are masked, in [brackets] here" in shown
    assert shown.endswith("\n\n[<|eos|>ab:]⏎cd ef<|eos|>\n[<|eos|>gh:]⏎hg<|eos|>")


def test_a_masked_token_after_a_window_is_not_made_up() -> None:
    """A batch does not hold the target of its last input where that is masked."""
    batch = cut(SPLIT, find_windows(SPLIT.tokens, 2, None, stride=2), 2)
    assert batch.targets[0].tolist() == [IGNORE_INDEX] * 2
    assert "\n[<|eos|>a]\n[b:]⏎\n" in show_masks(batch, TOKENIZER)


def test_a_large_batch_and_one_without_targets() -> None:
    batch = padded_batch()
    batch.targets[:] = IGNORE_INDEX
    assert "0 of 24 tokens are targets" in show_masks(batch, TOKENIZER)
    many = Batch(np.zeros((9, 3), np.int64), np.ones((9, 3), np.int64))
    assert show_masks(many, TOKENIZER).endswith("... and 3 more")


def test_each_token_has_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(block_size=12, n_layer=1, n_head=2, n_embd=8, form="nanogpt"),
        TOKENIZER.vocab_size,
    )
    tokens = TOKENIZER.encode_prompt("ab:\nef")
    nll = nll_of_tokens(model, tokens)
    log_q = model(torch.tensor([tokens]))[0].double().log_softmax(-1)
    np.testing.assert_allclose(
        nll, [-log_q[i, token].item() for i, token in enumerate(tokens[1:])], atol=1e-5
    )

    shown = show_costs(tokens, nll, TOKENIZER)
    cells = zip(["<|eos|>", *"ab:⏎ef"], ["given", *(f"{c:.3f}" for c in nll)], strict=True)
    assert shown.split() == [
        "nats",
        "of",
        "each",
        "token:",
        *(word for cell in cells for word in cell),
    ]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    coloured = show_costs(tokens, nll, TOKENIZER)
    assert re.sub("\x1b[^m]*m", "", coloured).split("\n")[2] == "<|eos|>ab:⏎ef"
    dearest = "ab:⏎ef"[int(nll.argmax())]
    assert f"\x1b[48;5;160m{dearest}\x1b[0m" in coloured


def test_a_long_text_is_read_in_windows_side_by_side() -> None:
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(block_size=4, n_layer=1, n_head=2, n_embd=8, form="nanogpt"),
        TOKENIZER.vocab_size,
    )
    tokens = [1, 2, 3, 4, 5, 6, 7]
    windows = [nll_of_tokens(model, part) for part in (tokens[:5], tokens[4:])]
    np.testing.assert_allclose(nll_of_tokens(model, tokens), np.concatenate(windows), atol=1e-6)


@pytest.mark.parametrize(
    "options", [["--mask=^the"], ["--documents=lines", "--padded"]], ids=" ".join
)
def test_the_command_shows_the_first_batch(options: list[str], data_dir) -> None:
    arguments = ["--corpus=text.txt", *TINY, *options]
    without = call("data/prepare.py", *arguments).stdout
    shown = call("data/prepare.py", "--show_batch", *arguments).stdout
    assert shown.startswith(without)
    assert "tokens are targets" in shown
    assert "tokens are targets" not in without
    assert "[" in shown.removeprefix(without).split("\n\n")[1]
    assert not (data_dir / "out/run").exists()
