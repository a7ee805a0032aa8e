"""--show_batch and --explain show the batch and the text: which tokens are targets, their cost."""

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
from report.costs import show_costs
from tests.conftest import TINY, call

CPU = Device(torch.device("cpu"), torch.float32)
TOKENIZER = char_tokenizer("abcdefgh :\n", "\n\n")
DOCUMENTS = [apply_mask(text, "^..:") for text in ("ab:\ncd ef", "gh:\nhg")]
SPLIT = encode_documents(DOCUMENTS, TOKENIZER, DataConfig(), "")


def make_model(block_size: int) -> GPT:
    torch.manual_seed(0)
    shape = ModelConfig(block_size=block_size, n_layer=1, n_head=2, n_embd=8, form="nanogpt")
    return GPT(shape, TOKENIZER.vocab_size)


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
    inputs = np.zeros((9, 3), np.int64)
    many = Batch(inputs, inputs + 1)
    assert show_masks(many, TOKENIZER).endswith("... and 3 more")


def test_each_token_has_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(12)
    tokens = TOKENIZER.encode_prompt("ab:\nef")
    nll = nll_of_tokens(model, tokens)
    logits = model(torch.tensor([tokens[:-1]]))[0]
    targets = torch.tensor(tokens[1:])
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    np.testing.assert_allclose(nll, expected.detach(), atol=1e-5)

    words = show_costs(tokens, nll, TOKENIZER).split()
    assert words[:4] == ["nats", "of", "each", "token:"]
    assert words[4::2] == ["<|eos|>", *"ab:⏎ef"]
    assert words[5::2] == ["given", *(f"{cost:.3f}" for cost in nll)]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    coloured = show_costs(tokens, nll, TOKENIZER)
    assert re.sub("\x1b[^m]*m", "", coloured).split("\n")[2] == "<|eos|>ab:⏎ef"
    dearest = "ab:⏎ef"[int(nll.argmax())]
    assert f"\x1b[48;5;160m{dearest}\x1b[0m" in coloured


def test_a_long_text_is_read_in_windows_side_by_side() -> None:
    model = make_model(4)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    first = nll_of_tokens(model, tokens[:5])
    second = nll_of_tokens(model, tokens[4:])
    both = np.concatenate([first, second])
    np.testing.assert_allclose(nll_of_tokens(model, tokens), both, atol=1e-6)


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
