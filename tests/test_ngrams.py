"""The n-grams that a model may start from: what they predict, what they must not know, and how they are kept."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from config.cli import load_config
from config.schema import Config, ModelConfig
from data.baselines import ngram_nll
from data.batches import TrainBatches
from data.documents import Split
from data.ngrams import PARTS, count_ngrams, kneser_ney, load_ngrams, part_of
from engine.checkpoint import load_model
from engine.distributed import World
from engine.step import nll_by_token, train_step
from errors import UserError
from files import replace_sealed, seal
from loss import next_token_loss
from model import GPT, KVCache
from prior import NGramPrior
from runs import open_run
from tests.conftest import TINY
from train import train

CPU = World(torch.device("cpu"), torch.float32)
V = 5
CONFIG = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, ngram=4)


def make_tokens(n: int, seed: int = 0) -> np.ndarray:
    """Tokens of which each is likely to be the one after the last but one."""
    rng = np.random.default_rng(seed)
    tokens = list(rng.integers(V, size=2))
    for _ in range(n - 2):
        tokens.append((tokens[-2] + 1) % V if rng.random() < 0.7 else int(rng.integers(V)))
    return np.array(tokens, dtype=np.uint16)


def make_model(order: int = 4, trained: bool = True) -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG.model_copy(update={"ngram": order}), V, count_ngrams(make_tokens(900), order, V, parts=True))
    if trained:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def by_hand(tokens: list[int], order: int, left_out: range, context: tuple[int, ...]) -> list[float]:
    """Kneser-Ney's probabilities of the token after a context, with dictionaries.

    N-grams whose last token is in a part that is left out are not counted.
    """
    grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
    for n, end in itertools.product(range(1, order + 1), range(len(tokens))):
        if end >= n - 1 and end not in left_out:
            grams[n][tuple(tokens[end - n + 1: end + 1])] += 1
    p = [1 / V] * V
    for n in range(1, min(order, len(context) + 1) + 1):
        counts = grams[n] if n == order else Counter(gram[1:] for gram in grams[n + 1])
        unique = sorted(grams[n])
        contexts = {gram[:-1]: i for i, gram in enumerate(unique)}  # the last index stands for the context
        numbers = np.array([contexts[gram[:-1]] for gram in unique])
        share, backoff = kneser_ney(np.array([counts[gram] for gram in unique]), numbers, len(unique))
        here = context[len(context) - n + 1:]
        known = dict(zip(unique, share, strict=True))
        left = backoff[contexts[here]] if here in contexts else 1.0
        p = [known.get((*here, v), 0.0) + left * p[v] for v in range(V)]
    return p


@pytest.mark.parametrize("ready", [1, 2**20])
@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_the_prior_is_the_n_gram_of_the_ladder(order: int, ready: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prior.SPELLED_OUT", ready)
    train, val = make_tokens(3000), make_tokens(400, seed=1)
    *_, nll = ngram_nll(train, val, V, order)
    log_p = NGramPrior(count_ngrams(train, order, V))(torch.from_numpy(val[None, :-1].astype(np.int64)))[0]
    own = -log_p.gather(1, torch.from_numpy(val[1:, None].astype(np.int64)))[:, 0]
    assert own[order:].numpy() == pytest.approx(nll[order:], abs=1e-5)  # the ladder's first have train before them
    assert log_p.exp().sum(dim=1).numpy() == pytest.approx(np.ones(399), abs=1e-5)


@pytest.mark.parametrize("ready", [1, 40, 2**20])
def test_views_leave_a_part_out(ready: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prior.SPELLED_OUT", ready)  # however much of the tables is spelled out
    tokens, order = make_tokens(150), 3
    prior = NGramPrior(count_ngrams(tokens, order, V, parts=True))
    contexts = torch.tensor(list(itertools.product(range(V), repeat=2)))  # (25, 2)
    where = np.flatnonzero(part_of(np.arange(150), 150) == 4)
    for part, left_out in [(0, range(0)), (4, range(where[0], where[-1] + 1))]:
        p = prior(contexts, torch.full_like(contexts, part)).exp()[:, -1]
        expected = [by_hand(tokens.tolist(), order, left_out, tuple(context)) for context in contexts.tolist()]
        assert p.numpy() == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize("block_size", [8, 64, 250])
def test_training_text_is_not_known_before(block_size: int) -> None:
    """Noise costs log|V|, or more, in every batch of an epoch: whoever predicts it better has seen it."""
    tokens = np.random.default_rng(0).integers(V, size=1000)
    prior = NGramPrior(count_ngrams(tokens, 8, V, parts=True))
    batches = TrainBatches(Split(tokens), block_size, 2, seed=0)
    known: list[float] = []
    unknown: list[float] = []
    for step in range(-(-batches.windows // 2)):
        inputs, targets, left_out = map(torch.from_numpy, batches(step))
        assert (left_out >= 1).all()
        for losses, parts in ((known, None), (unknown, left_out)):
            losses.append(-prior(inputs, parts).gather(2, targets[..., None]).mean().item())
    assert np.mean(known) < 0.85 * math.log(V)
    assert np.mean(unknown) > math.log(V)


def test_a_step_leaves_out_the_text_that_it_learns() -> None:
    model, tokens = make_model(), make_tokens(900)
    batch = TrainBatches(Split(tokens), 16, 4, seed=0)(0)
    losses = [train_step(model, [], batch._replace(left_out=left_out), Config(), CPU, 0).nll
              for left_out in (batch.left_out, np.zeros_like(batch.left_out))]
    assert abs(losses[0] - losses[1]) > 1e-3
    shown = [nll_by_token(model, batch._replace(left_out=left_out), CPU).mean()
             for left_out in (batch.left_out, np.zeros_like(batch.left_out))]
    assert shown == pytest.approx(losses, rel=1e-5)


def test_parts_are_equal_and_cover_the_text() -> None:
    parts = part_of(np.arange(1000), 1000)
    assert np.unique(parts, return_counts=True)[1].tolist() == [100] * PARTS
    assert (parts.min(), parts.max()) == (1, PARTS)
    assert (np.diff(parts) >= 0).all()


def test_an_untrained_model_knows_nothing_of_its_prior() -> None:
    model = make_model(trained=False)
    tokens = torch.randint(V, (4, 16))
    loss = next_token_loss(model(tokens), model.head, tokens.roll(-1, 1))
    assert loss.nll.item() / loss.tokens.item() == pytest.approx(math.log(V), abs=1e-6)


def test_full_trust_is_the_prior() -> None:
    model = make_model(trained=False)
    model.norm.forward = torch.ones_like
    torch.nn.init.constant_(model.trust, 1 / CONFIG.n_embd)
    tokens = torch.randint(V, (4, 16))
    q = model.logits(model(tokens)).softmax(dim=-1)
    assert model.prior is not None
    torch.testing.assert_close(q, model.prior(tokens).exp())


def test_cached_equals_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prior.SPELLED_OUT", 40)
    model = make_model(order=6)
    tokens = torch.from_numpy(make_tokens(48).astype(np.int64).reshape(3, 16))
    cache = KVCache(model.config, 3, torch.device("cpu"), torch.float32)
    pieces = [model(tokens[:, a:b], cache) for a, b in [(0, 5), (5, 6), (6, 7), (7, 10), (10, 16)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_the_network_hears_what_the_prior_says() -> None:
    model = make_model()
    tokens = torch.from_numpy(make_tokens(64).astype(np.int64).reshape(4, 16))
    loss = next_token_loss(model(tokens, left_out=torch.randint(PARTS + 1, (4, 16))), model.head, tokens.roll(-1, 1))
    loss.objective.backward()
    for parameter in (model.guess.weight, model.trust):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_saved_and_loaded(tmp_path: Path) -> None:
    ngrams = count_ngrams(make_tokens(500), 4, V, parts=True)
    (tmp_path / "ngrams.safetensors").write_bytes(ngrams.to_bytes())
    seal(tmp_path)
    loaded = load_ngrams(tmp_path / "ngrams.safetensors")
    tokens = torch.randint(V, (4, 16))
    assert torch.equal(NGramPrior(loaded)(tokens), NGramPrior(ngrams)(tokens))
    assert loaded.share.shape[0] == 1
    whole = (tmp_path / "ngrams.safetensors").read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        (tmp_path / "ngrams.safetensors").write_bytes(damage)
        with pytest.raises(UserError, match=r"ngrams\.safetensors: damaged"):
            load_ngrams(tmp_path / "ngrams.safetensors")
        seal(tmp_path)
        with pytest.raises(UserError, match=r"ngrams\.safetensors: no n-grams to load"):
            load_ngrams(tmp_path / "ngrams.safetensors")
    with pytest.raises(UserError, match="nowhere"):
        load_ngrams(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [[0], [0, 0, 0, 0], [4, 3], list(range(V)) * 3])
def test_tiny_texts(text: list[int]) -> None:
    prior = NGramPrior(count_ngrams(np.array(text), 6, V, parts=True))
    views = torch.arange(PARTS + 1)[:, None].expand(-1, 7)
    p = prior(torch.tensor([[0, 0, 0, 4, 3, 1, 2]]).expand(PARTS + 1, -1), views).exp()
    assert p.sum(dim=-1).numpy() == pytest.approx(np.ones((PARTS + 1, 7)), abs=1e-5)
    assert (p > 0).all()


def test_a_run_takes_its_counts_with_it(run, clone, tmp_path: Path) -> None:
    """Trained, evaluated, sampled and resumed by the real commands, from another place."""
    done = run("train.py", "--corpus=text.txt", "--out_dir=out/counted", *TINY, "--ngram=3")
    assert " n-grams of 1 to 3 tokens" in done.stdout
    assert "log|V|" in done.stdout
    moved = tmp_path / "moved"
    (clone / "out/counted").rename(moved)
    assert run("sample.py", str(moved), "--max_new_tokens=20", "--temperature=0").stdout
    assert "best/ of step" in run("evaluate.py", str(moved)).stdout
    known = run("evaluate.py", str(moved), "--split=train", check=False)
    assert (known.returncode, known.stderr.count("\n")) == (2, 1)
    assert "were counted in this text" in known.stderr
    run("train.py", str(moved / "config.toml"), f"--out_dir={moved}", "--init_from=resume", "--max_iters=8")
    (moved / "ngrams.safetensors").unlink()
    lost = run("sample.py", str(moved), check=False)
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1)
    assert "ngrams.safetensors is missing" in lost.stderr


def test_a_large_vocabulary_is_refused_before_anything_is_made(data_dir, monkeypatch) -> None:
    monkeypatch.setattr("data.prepare.MAX_VOCABULARY", 15)
    with pytest.raises(UserError, match=r"ngram=3: takes a vocabulary of at most 15 tokens, and this has \d\d; use"):
        train(load_config(["--corpus=text.txt", "--out_dir=out/large", *TINY, "--ngram=3"]))
    assert not (data_dir / "out").exists()


def test_a_lost_table_comes_back_and_another_is_refused(data_dir) -> None:
    argv = ["--corpus=text.txt", "--out_dir=out/counted", *TINY, "--ngram=3"]
    train(load_config(argv))
    table = data_dir / "out/counted/ngrams.safetensors"
    counted = table.read_bytes()
    table.unlink()
    train(load_config([*argv, "--init_from=resume", "--max_iters=8"]))
    assert table.read_bytes() == counted
    replace_sealed(table, count_ngrams(make_tokens(500), 3, V).to_bytes())
    with pytest.raises(UserError, match=r"ngrams\.safetensors: of another run: 3-grams of 5 tokens"):
        load_model(open_run(data_dir / "out/counted"), "best", CPU)


def test_too_many_n_grams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.ngrams.MAX_COUNTS", 2**10)
    with pytest.raises(UserError, match=r"ngram=6: [\d,]+ n-grams, which take more than 0 GB; use a smaller --ngram"):
        count_ngrams(make_tokens(900), 6, V, parts=True)


def test_what_does_not_go_together() -> None:
    config = Config.model_validate({"model": {"ngram": 3, "document_attention": True}, "data": {"documents": "lines"}})
    assert any("looks across documents" in problem for problem in config.problems())
