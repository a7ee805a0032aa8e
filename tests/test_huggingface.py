"""Models in Hugging Face's format, in and out, held to the real transformers."""

import errno
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from config.cli import load_config
from config.errors import UserError
from config.schema import ModelConfig
from data.tokenizer import EOS, Tokenizer, char_tokenizer, train_bpe
from engine.checkpoint import read_model
from engine.device import Device
from engine.generate import generate
from engine.run import open_run
from engine.run_text import make_eval_text, open_corpus
from huggingface.directory import fetch, read_shape
from huggingface.export import model_card
from huggingface.tokens import from_tokenizer_json, to_tokenizer_json
from huggingface.weights import from_hugging_face, to_hugging_face
from model import GPT
from tests.conftest import TINY, call, make_text, train_in, training_in, without_clocks

transformers = pytest.importorskip("transformers")
CPU = Device(torch.device("cpu"), torch.float32)
BPE = train_bpe(make_text(), 400, "\n")
TOKENIZERS = {
    "char": char_tokenizer(make_text()),
    "char with eos": char_tokenizer(make_text().replace("\n", ""), "\n"),
    "bpe": train_bpe(make_text(), 400),
    "bpe with eos": BPE,
    "gpt2": Tokenizer(kind="gpt2", token_bytes=[*BPE.token_bytes[:-1], EOS]),
}
ONE_TOKEN: dict[str, Any] = {"vocab": {"a": 0}, "merges": []}
EXPORTABLE = [*TINY, "--smear=false"]
GPT2_FORM = ["--form=nanogpt", "--tied=false"]
GPT2 = {
    "vocab_size": 61,
    "n_positions": 16,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "resid_pdrop": 0,
    "embd_pdrop": 0,
    "attn_pdrop": 0,
}
NANOCHAT = {
    "vocab_size": 61,
    "max_position_embeddings": 16,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "pad_token_id": None,
}


def make_theirs(kind: str, **changes: Any) -> Any:
    """A small random model of theirs, whose weights are all large enough to matter."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | changes))
    else:
        cfg = transformers.NanoChatConfig(**NANOCHAT | changes)
        model = transformers.NanoChatForCausalLM(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("nanochat", {}),
        ("nanochat", {"tie_word_embeddings": True}),
        ("nanochat", {"final_logit_softcapping": None}),
    ],
)
def test_same_logits_loss_and_gradients(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_theirs(kind, **changes)
    theirs.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    ours = GPT(shape, 61)
    ours.load_state_dict(from_hugging_face(shape, theirs.state_dict()), strict=False)
    tokens = torch.randint(61, (3, 17))
    expected = theirs(input_ids=tokens[:, :-1]).logits
    assert torch.allclose(ours(tokens[:, :-1]), expected, atol=1e-5)
    sums = ours(tokens[:, :-1], tokens[:, 1:])
    our_loss = sums.objective / sums.num_targets
    targets = tokens[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets)
    assert our_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    our_loss.backward()
    loss.backward()
    gradient = GPT(shape, 61)
    with torch.no_grad():
        for mine, p in zip(gradient.parameters(), ours.parameters(), strict=True):
            assert p.grad is not None
            mine.copy_(p.grad)
    named = dict(theirs.named_parameters())
    translated = to_hugging_face(gradient)
    assert set(translated) == set(named)
    for name, grad in translated.items():
        assert torch.allclose(grad, named[name].grad, atol=1e-5), name


def kinds_of_characters(tokenizer: Tokenizer, rng: random.Random) -> list[list[str]]:
    """Characters of the text, of any Unicode, and those that pre-tokenizers argue about.

    Of a tokenizer of characters only those that it knows.
    """
    if tokenizer.kind == "char":
        known = b"".join(tokenizer.token_bytes[: tokenizer.eos]).decode()
        return [sorted(known)]
    below = rng.choices(range(0xD800), k=8)  # surrogates
    above = rng.choices(range(0xE000, 0x110000), k=8)
    return [
        list(make_text(5)),
        [*map(chr, below)],
        [*map(chr, above)],
        list(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2028\u3000\u200b'sdmtlrve19²½ABab_-!"),
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_same_tokens(name: str, tmp_path: Path) -> None:
    """10,000 random strings become the same tokens, and come back."""
    tokenizer = TOKENIZERS[name]
    rng = random.Random(0)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(to_tokenizer_json(tokenizer)), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    for _ in range(2000):
        kinds = kinds_of_characters(tokenizer, rng)
        for _ in range(5):
            length = rng.randrange(1, 30)
            text = "".join(rng.choice(rng.choice(kinds)) for _ in range(length))
            tokens = tokenizer.encode(text).tolist()
            assert theirs.encode(text) == tokens, ascii(text)
            assert theirs.decode(tokens, clean_up_tokenization_spaces=False) == text
            assert tokenizer.decode(tokens) == text
    again = from_tokenizer_json(json.loads(path.read_bytes()), name)
    token_bytes = [*tokenizer.token_bytes]
    if tokenizer.eos is not None:
        token_bytes[-1] = EOS
    assert again.kind == tokenizer.kind
    assert again.token_bytes == token_bytes


def gpt2_json(**changes: Any) -> dict[str, Any]:
    """A file as OpenAI's own is: without the type of the model, merges as text."""
    found = to_tokenizer_json(TOKENIZERS["gpt2"])
    model = found["model"]
    del model["type"]
    model["merges"] = [" ".join(merge) for merge in model["merges"]]
    return found | changes


def with_merges_reversed() -> dict[str, Any]:
    model = gpt2_json()["model"]
    model["merges"].reverse()
    return model


def test_the_tokenizer_of_the_hub_is_read() -> None:
    assert from_tokenizer_json(gpt2_json(), "gpt2") == TOKENIZERS["gpt2"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cannot be used"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            "splits text in another way",
        ),
        ({"added_tokens": [{"id": 9999, "content": "x"}]}, "not 0, 1, 2"),
        ({"model": []}, "cannot be used"),
        ({"model": with_merges_reversed()}, "in that order"),
        ({"model": ONE_TOKEN, "added_tokens": []}, "256 bytes"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_tokenizer_json(gpt2_json(**change), "a tokenizer")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several kinds, what each was exported to, and the runs that were made of that."""
    folder = tmp_path_factory.mktemp("huggingface")
    with training_in(folder):
        Path("part.txt").write_text(make_text(100), encoding="utf-8")
        for name, *arguments in (
            ["char"],
            ["lines", "--documents=lines", "--tied"],
            ["bpe", "--tokenizer=bpe", "--vocab_size=300", *GPT2_FORM],
        ):
            call("train.py", "--corpus=text.txt", f"--out_dir={name}", *EXPORTABLE, *arguments)
            call("convert.py", name, f"{name}_exported")
            call("convert.py", f"{name}_exported", f"{name}_back")
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    train_in(runs, monkeypatch)
    return runs


@pytest.mark.parametrize("name", ["char", "lines", "bpe"])
def test_transformers_loads_what_is_exported(name: str, here: Path) -> None:
    run = open_run(Path(name))
    ours, _ = read_model(run, "best")
    exported = f"{name}_exported"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    prompt = run.tokenizer.encode_prompt("the")
    assert tokenizer.encode("the") == prompt[-len(tokenizer.encode("the")) :]
    tokens = torch.tensor([prompt])
    ours.eval()
    with torch.inference_mode():
        expected = theirs(tokens).logits
        assert torch.allclose(ours(tokens), expected, atol=1e-5)
    room = run.cfg.model.block_size - len(prompt)
    greedy = []
    for (token,) in generate(ours, prompt, CPU, max_new_tokens=room, temperature=0):
        greedy.append(token)
    written = theirs.generate(
        tokens, max_new_tokens=room, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert greedy == written[0, len(prompt) :].tolist()
    card = Path(exported, "README.md").read_text(encoding="utf-8")
    assert "| uniform, log\\|V\\| | " in card
    assert re.search(r"\| 6-gram \| [\d.]+ \| yes \| no \|", card)
    assert re.search(r"\| trained PPMd \| [\d.]+ \| yes \| yes \|", card)
    assert f"{run.read_metrics()[-1]['best_val_nll']:.4f}" in card


@pytest.mark.parametrize("name", ["char", "lines", "bpe"])
def test_an_exported_model_comes_back(name: str, here: Path) -> None:
    before = read_model(open_run(Path(name)), "best")[0].eval()
    after = read_model(open_run(Path(f"{name}_back")), "best")[0].eval()
    tokens = torch.randint(before.vocab_size, (2, before.cfg.block_size))
    with torch.inference_mode():
        assert torch.allclose(before(tokens), after(tokens), atol=1e-6)
    sampled = call("sample.py", f"{name}_back", "--prompt=the", "--max_new_tokens=5").stdout
    assert sampled.startswith("the")
    assert loss_on(f"{name}_back") == pytest.approx(loss_on(name), abs=1e-6)


def loss_on(run: Path | str, text: str = "part.txt") -> dict[str, float]:
    done = call("evaluate.py", str(run), f"--text={text}", "--dtype=float32", "--json")
    loss = json.loads(done.stdout)["loss"]
    return {unit: interval["value"] for unit, interval in loss.items()}


def back(folder: Path) -> Path:
    """A run made of a directory in their format."""
    run = folder.with_name(f"{folder.name}_back")
    shutil.rmtree(run, ignore_errors=True)
    call("convert.py", str(folder), str(run))
    return run


def assert_refused(folder: Path, says: str) -> None:
    """No run can be made of a directory; nothing is left of the attempt."""
    before = sorted(folder.parent.iterdir())
    run = folder.with_name("refused")
    done = call("convert.py", str(folder), str(run), check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert re.search(says, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.parent.iterdir()) == before


def copy_of(name: str, to: Path) -> Path:
    shutil.copytree(name, to)
    return to


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    cfg = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(cfg), encoding="utf-8")


def test_other_files_of_weights_are_ignored(here: Path, tmp_path: Path) -> None:
    """An old copy beside the real file, and what macOS leaves."""
    folder = copy_of("char_exported", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model (copy).safetensors", "zz.safetensors", "model-00001-of-00002.safetensors"):
        save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / name)
    (folder / "._model.safetensors").write_bytes(b"\0")
    assert loss_on(back(folder)) == loss_on("char_back")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, r"has no model.safetensors and no model.safetensors.index.json")


def test_the_index_says_which_files_count(here: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained("bpe_exported")
    folder = copy_of("bpe_exported", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    save_file({"transformer.wte.weight": torch.zeros(2, 2)}, folder / "zz.safetensors")
    stale = load_file(shards[0])
    save_file({name: tensor + 1 for name, tensor in stale.items()}, folder / "model.safetensors")
    assert loss_on(back(folder)) == loss_on("bpe_back")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_bytes())
    name = next(iter(content["weight_map"]))
    for wrong, says in (
        ("../x.safetensors", "names ../x.safetensors, which is not there"),
        ("gone", "names gone, which"),
        (5, "cannot be used"),
    ):
        content["weight_map"][name] = wrong
        index.write_text(json.dumps(content))
        assert_refused(folder, says)
    for damaged in ("[]", "{", '{"weight_map": []}'):
        index.write_text(damaged)
        assert_refused(folder, r"index.json: cannot be used")


def test_an_exported_model_of_documents_keeps_its_eos(here: Path, tmp_path: Path) -> None:
    """Its prompts start with it, its texts end with it, and documents are read as in training."""
    before = open_run(Path("lines"))
    after = open_run(Path("lines_back"))
    assert after.tokenizer == before.tokenizer
    assert after.tokenizer.encode_prompt("") == [after.tokenizer.vocab_size - 1]
    assert after.cfg.data.documents == "lines"
    call(
        "train.py",
        "--corpus=part.txt",
        "--documents=lines",
        "--padded",
        *EXPORTABLE,
        "--max_iters=1",
        "--out_dir=padded",
    )
    call("convert.py", "padded", str(tmp_path / "padded"))
    run = back(tmp_path / "padded")
    assert open_run(run).cfg.data.padded
    assert loss_on(run) == pytest.approx(loss_on("padded"), abs=1e-6)


def test_a_text_ends_with_a_foreign_eos_too(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without a note on documents, such as GPT-2, ends only what it writes with eos."""
    folder = copy_of("lines_exported", tmp_path / "model")
    cfg = json.loads((folder / "config.json").read_bytes())
    del cfg["surprisal"]
    (folder / "config.json").write_text(json.dumps(cfg))
    run = back(folder)
    tokenizer = open_run(run).tokenizer
    assert (tokenizer.eos, tokenizer.end) == (None, tokenizer.vocab_size - 1)
    ends: list[int] = []

    def generate_little(*_: Any, **options: Any) -> Iterator[list[int]]:
        eos = options["eos"]
        ends.append(eos)
        yield from ([3], [eos])

    monkeypatch.setattr("engine.generate.generate", generate_little)
    assert call("sample.py", str(run), "--prompt=t").stdout == f"t{tokenizer.decode([3])}\n"
    assert ends == [tokenizer.end]
    change_config(folder, surprisal={"documents": "pages"})
    assert_refused(folder, r"config.json: surprisal: cannot be used")


@pytest.mark.parametrize("name", ["char", "lines", "bpe"])
def test_a_padded_vocabulary_is_cut(name: str, here: Path, tmp_path: Path) -> None:
    folder = copy_of(f"{name}_exported", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    vocab_size = open_run(Path(name)).info.vocab_size
    for key, tensor in weights.items():
        if len(tensor) == vocab_size and tensor.ndim == 2:
            padding = torch.randn(7, tensor.shape[1])
            weights[key] = torch.cat([tensor, padding])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, vocab_size=vocab_size + 7)
    assert loss_on(back(folder)) == loss_on(f"{name}_back")
    for key, tensor in weights.items():
        weights[key] = tensor[:9].clone()
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, r"tokenizer.json has \d+ tokens, and its embedding has 9 rows")


@pytest.mark.parametrize("name", ["char", "lines", "bpe"])
def test_an_added_padding_token_is_left_out(name: str, here: Path, tmp_path: Path) -> None:
    """People add it with transformers, which gives it a row of its own."""
    folder = copy_of(f"{name}_exported", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    run = open_run(back(folder))
    assert run.tokenizer == open_run(Path(f"{name}_back")).tokenizer
    assert loss_on(run.path) == pytest.approx(loss_on(f"{name}_back"), abs=1e-6)
    if name == "lines":
        call(
            "train.py",
            "--corpus=part.txt",
            "--documents=lines",
            f"--init_from={run.path}",
            "--max_iters=1",
            f"--out_dir={tmp_path / 'further'}",
        )


def test_the_eos_token_has_to_be_the_last() -> None:
    (eos_token,) = gpt2_json()["added_tokens"]
    last = eos_token["id"]
    pad_token = {"id": last + 1, "content": "[PAD]", "special": True}
    with_pad = gpt2_json(added_tokens=[eos_token, pad_token])
    for eos in (None, last, [last], 50256, [5, last]):
        assert from_tokenizer_json(with_pad, "gpt2", eos) == TOKENIZERS["gpt2"]
    second_eos = {"id": last + 1, "content": "</s>", "special": True}
    both = gpt2_json(added_tokens=[eos_token, second_eos])
    tokens = from_tokenizer_json(both, "gpt2", last + 1).token_bytes
    assert len(tokens) == last + 2
    assert tokens[-1] == EOS
    first = to_tokenizer_json(TOKENIZERS["char"])
    first["added_tokens"] = [{"id": 0, "content": "\n", "special": True}]
    says = r"its eos token is number 0 of .*; here it can only be the last one"
    with pytest.raises(UserError, match=says):
        from_tokenizer_json(first, "char", 0)


@pytest.mark.parametrize("source", ["char", "char_back", "bpe_back"])
def test_training_starts_with_its_weights(source: str, here: Path) -> None:
    printed = call(
        "train.py",
        "--corpus=part.txt",
        f"--init_from={source}",
        "--max_iters=1",
        "--batch_size=2",
        "--dtype=float32",
        "--eval_tokens=0",
        f"--out_dir=from_{source}",
    ).stdout
    assert f"starts with the weights of {source}\n" in printed
    assert "step 0: loss" not in printed
    run = open_run(Path(f"from_{source}"))
    first = run.read_metrics()[0]["val_nll"]
    text = make_eval_text(run, open_corpus(run).val)
    model = read_model(open_run(Path(source)), "best")[0].eval()
    with torch.inference_mode():
        nll = 0.0
        for batch in text.batches():
            inputs, targets = CPU.to_device(batch.inputs, batch.targets)
            nll += model(inputs, targets).nll.item()
    assert first == pytest.approx(nll / len(text.positions), abs=1e-5)
    assert np.isfinite(run.read_metrics()[-1]["best_val_nll"])


def test_a_smaller_block_size_may_be_named_and_nothing_else(here: Path) -> None:
    shape = read_shape(Path("bpe_exported"))
    smaller = load_config(["--init_from=bpe_back", "--block_size=3", "--dropout=0.2"])[0]
    assert smaller.model == shape.model_copy(update={"block_size": 3, "dropout": 0.2})
    printed = call(
        "train.py",
        "--corpus=part.txt",
        "--init_from=bpe_back",
        "--block_size=3",
        "--max_iters=1",
        "--out_dir=smaller",
    ).stdout
    assert "block_size=3" in printed
    with pytest.raises(UserError) as told:
        load_config(
            [
                "--init_from=bpe_back",
                "--block_size=99",
                "--n_layer=7",
                "--tokenizer=char",
                "--tied",
                "--max_ngram=3",
            ]
        )
    for line in (
        f"block_size=99: bpe_back has block_size={shape.block_size}",
        "n_layer=7: bpe_back has n_layer=2",
        "tied=True: bpe_back has tied=False",
        "max_ngram=3: bpe_back has max_ngram=0",
        "tokenizer=char: bpe_back has tokens of its own",
    ):
        assert line in str(told.value)


def test_a_model_is_not_trained_in_its_own_directory(here: Path) -> None:
    with pytest.raises(UserError, match="init_from=char is out_dir too"):
        load_config(["--corpus=part.txt", "--init_from=char", "--out_dir=./char"])
    assert Path("char/config.toml").exists()


def test_a_run_resumes_when_the_model_it_started_from_is_gone(here: Path) -> None:
    shutil.copytree("lines", "moved")
    call(
        "train.py",
        "--corpus=part.txt",
        "--documents=lines",
        "--init_from=moved",
        "--max_iters=1",
        "--out_dir=child",
    )
    shutil.rmtree("moved")
    shutil.rmtree("data")
    call("train.py", "child", "--init_from=resume", "--max_iters=2")
    assert "nats per token" in call("evaluate.py", "child").stdout


def test_a_run_that_dies_before_its_first_evaluation_has_its_weights(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "train.py",
        "--corpus=part.txt",
        "--init_from=char",
        "--max_iters=1",
        "--eval_tokens=0",
    ]
    call(*command, "--out_dir=whole")
    with monkeypatch.context() as patch:
        patch.setattr("train.validate", lambda *_: sys.exit(9))
        assert call(*command, "--out_dir=died", check=False).returncode == 9
    call("train.py", "died", "--init_from=resume")
    with monkeypatch.context() as patch:  # or before it is a run
        patch.setattr("engine.run.Run.start", lambda *_: sys.exit(9))
        for _ in range(3):
            assert call(*command, "--out_dir=again", check=False).returncode == 9
    with monkeypatch.context() as patch:
        patch.setattr("train.validate", lambda *_: sys.exit(9))
        call("train.py", "--corpus=part.txt", *EXPORTABLE, "--out_dir=again", check=False)
    assert not list(Path("again").glob("*.safetensors"))  # of what it does not start from
    assert without_clocks(Path("died")) == without_clocks(Path("whole"))


def test_a_model_in_their_format_has_a_page_and_compresses(here: Path) -> None:
    call("evaluate.py", "char_back", "--text=part.txt", "--html=page.html", "--against=char")
    assert "char_back" in Path("page.html").read_text(encoding="utf-8")
    call("evaluate.py", "char_back", "--explain=the cat", "--html=page.html")
    text = Path("part.txt").read_bytes()
    call("compress.py", "char_back", "part.txt", "--overwrite")
    Path("part.txt").rename("before.txt")
    call("compress.py", "char_back", "part.txt.srp")
    assert Path("part.txt").read_bytes() == text


def test_a_run_without_a_text_says_so(here: Path) -> None:
    """Commands that need the text, the metrics or the last checkpoint say that it is missing."""
    for command, says in (
        (["evaluate.py", "char_back"], "came without the text that it was trained on; use --text"),
        (["curves.py", "char_back"], "no metrics yet"),
        (["sample.py", "char_back", "--checkpoint=last"], "no such checkpoint; try --checkpoint=b"),
        (["train.py", "char_back"], "corpus is empty: name a text"),
        (
            ["train.py", "char_back", "--init_from=resume", "--corpus=part.txt"],
            "train another run from it: --init_from=char_back",
        ),
    ):
        done = call(*command, check=False)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert {path.name for path in Path("char_back").iterdir()} == {
        "config.toml",
        "corpus.json",
        "tokenizer.json",
        "best.safetensors",
        "history.jsonl",
    }


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--corpus=part.txt", "--init_from=MODEL"],
        ["train.py", "--corpus=part.txt", "--tokenizer=MODEL"],
        ["train.py", "--corpus=part.txt", "--teacher=MODEL"],
        ["train.py", "MODEL"],
        ["sample.py", "MODEL"],
        ["evaluate.py", "MODEL", "--text=part.txt"],
        ["compress.py", "MODEL", "part.txt"],
        ["curves.py", "MODEL"],
    ],
    ids=" ".join,
)
def test_a_model_that_is_no_run_is_told_how_to_become_one(command: list[str], here: Path) -> None:
    for model in ("gpt2-medium", "char_exported"):
        done = call(*(word.replace("MODEL", model) for word in command), check=False)
        assert done.returncode == 2
        assert f"`python convert.py {model} out/{model}` makes a run of it" in done.stderr


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("source", ["char", "char_exported"])
def test_nothing_is_left_half_written(
    source: str, error: BaseException, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or Ctrl-C ends the export while the weights are written."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("engine.checkpoint.save_file", fail)
    before = sorted(here.iterdir())
    done = call("convert.py", source, "to", check=False)
    if isinstance(error, OSError):
        assert done.stderr == "error: to: could not be written (No space left)\n"
    assert done.returncode == (2 if isinstance(error, OSError) else 130)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing", "to"], "nothing: should be the directory of a run"),
        (["char", "bpe"], "bpe: exists already"),
        (["char_exported", "to", "--checkpoint=last"], "char_exported is no run"),
        (["part.txt", "to"], "part.txt: should be"),
    ],
)
def test_mistakes_in_converting(arguments: list[str], says: str, here: Path) -> None:
    done = call("convert.py", *arguments, check=False)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert not Path("to").exists()


def test_the_card_has_the_loss_of_the_weights_in_it(here: Path) -> None:
    run = open_run(Path("char"))
    final = run.read_metrics()[-1]
    assert f"Its loss is {final['best_val_nll']:.4f} nats" in model_card(
        run, int(final["best_step"]), "a GPT"
    )
    assert "Its loss was not measured." in model_card(run, int(final["best_step"]) + 1, "a GPT")


@pytest.mark.parametrize(
    ("last_line", "says"),
    [
        (
            '{"device": "cpu with 2 threads, AVX512, bfloat16"}',
            " It was measured with matrix products in bfloat16; in float32, as these weights are, "
            "it differs a little.\n",
        ),
        (
            '{"device": "cpu with 2 threads, AVX2, float32"}',
            " It was measured in float32, as these weights are.\n",
        ),
        ('{"device": 5}', "\n"),
        ("[]", "\n"),
        ('{"device"', "\n"),
    ],
)
def test_the_card_says_the_dtype_of_its_loss(
    last_line: str, says: str, here: Path, tmp_path: Path
) -> None:
    shutil.copytree(here / "char", tmp_path / "run")
    (tmp_path / "run/history.jsonl").write_text(f"{{}}\n{last_line}\n")
    run = open_run(tmp_path / "run")
    card = model_card(run, int(run.read_metrics()[-1]["best_step"]), "a GPT")
    (loss,) = [line for line in card.splitlines(keepends=True) if "Its loss is" in line]
    assert loss.endswith(says)
    assert ("measured" in loss) == ("measured" in says)


def test_an_exported_model_is_evaluated_in_float32_unless_told_otherwise(here: Path) -> None:
    def device(*options: str) -> str:
        done = call("evaluate.py", "char_back", "--text=part.txt", "--json", *options)
        return json.loads(done.stdout)["device"]

    assert device().endswith("float32")
    assert device("--dtype=bfloat16").endswith("bfloat16")


def test_an_eos_token_that_this_text_does_not_need(here: Path) -> None:
    Path("line.txt").write_text("the cat sat on a mat; " * 40, encoding="utf-8")
    call("train.py", "--corpus=line.txt", "--init_from=lines", "--max_iters=1", "--out_dir=plain")
    assert "kind of character" in call("evaluate.py", "lines_back", "--text=line.txt").stdout


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (
            "--max_ngram=3",
            "NanoChatForCausalLM, the nearest model of transformers, has no max_ngram=3; "
            "train with --max_ngram=0 to export it",
        ),
        ("--document_attention --smear", "no smear=true, document_attention=true; train with"),
        ("--qk_norm=false", "has no qk_norm=false; train with --qk_norm=true"),
        (
            "--form=gpt2 --qk_norm",
            "GPT2LMHeadModel, the nearest model of transformers, has no qk_norm",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    option: str, named: str, here: Path, tmp_path: Path
) -> None:
    text = [
        "--corpus=part.txt",
        "--documents=lines",
        *EXPORTABLE,
        "--max_iters=1",
        f"--out_dir={tmp_path / 'odd'}",
    ]
    call("train.py", *text, *option.split())
    done = call("convert.py", str(tmp_path / "odd"), str(tmp_path / "to"), check=False)
    assert (done.returncode, named in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "llama"}, "is a llama; should be one of gpt2, nanochat"),
        (
            {"activation_function": "relu"},
            "activation_function is relu; here it can only be gelu_new",
        ),
        ({"n_inner": 7}, "n_inner is 7"),
        ({"n_layer": None}, "n_layer should be a whole number"),
        ({"n_layer": 5}, "do not hold"),
        ({"n_head": 5}, "24 in 5 heads"),
        ({"n_embd": 48}, "do not hold"),
        ({"rope_theta": 5.0}, "rope_theta is 5.0"),
        ({"n_positions": 0}, "cannot be used"),
    ],
)
def test_other_models_are_refused(
    change: dict[str, Any], says: str, here: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    vocab_size = open_run(Path("bpe")).info.vocab_size
    make_theirs("gpt2", vocab_size=vocab_size).save_pretrained(folder)
    shutil.copy("bpe_exported/tokenizer.json", folder)
    change_config(folder, **change)
    assert_refused(folder, says)


def test_gpt2_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, without a network, and with what the hub would give."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError,
        match=r"'.\[huggingface\]'; or put config.json, tokenizer.json, model.safetensors",
    ):
        fetch("gpt2")
    hub = ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    hub.snapshot_download = offline  # type: ignore[attr-defined]
    with pytest.raises(
        UserError,
        match=r"could not be fetched \(ConnectionError\); connect to the network once, or",
    ):
        fetch("gpt2-xl")
    hub.snapshot_download = lambda name, allow_patterns: {  # type: ignore[attr-defined]
        "openai-community/gpt2": str(here / "bpe_exported")
    }[name]
    assert "16,032 parameters of gpt2" in call("convert.py", "gpt2", "out/gpt2").stdout
    sampled = call("sample.py", "out/gpt2", "--prompt=the", "--max_new_tokens=2").stdout
    assert sampled.startswith("the")
    with pytest.raises(UserError, match=r"init_from=gpt2: .*; did you mean out/gpt2\?"):
        load_config(["--init_from=gpt2"])
    with pytest.raises(
        UserError, match=r"init_from=nothing_here: should be scratch, resume, auto, or the"
    ):
        load_config(["--init_from=nothing_here"])


def test_the_file_holds_a_gpt2_of_the_hub(tmp_path: Path) -> None:
    """The hub's file has no prefix, and has masks among the weights."""
    theirs = make_theirs("gpt2")
    tensors = {
        name.removeprefix("transformer."): p
        for name, p in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    weights = from_hugging_face(
        ModelConfig(n_layer=2, n_head=3, n_embd=24, block_size=9, form="gpt2"), tensors
    )
    assert weights["wpe.weight"].shape == (9, 24)
    assert torch.equal(
        weights["blocks.1.mlp.fc.weight"], theirs.state_dict()["transformer.h.1.mlp.c_fc.weight"].T
    )
