"""A source whose entropy is known, against entropies computed another way."""

import math

import numpy as np
import pytest

from config.cli import load_config
from config.errors import UserError
from config.schema import DataConfig
from data import markov
from data.eval_text import EvalText
from data.info import ENTROPY_RATE
from data.markov import MarkovSource
from data.prepare import prepare_corpus
from engine.run import open_run
from report.characters import draw_terminal
from report.figures import draw_run
from report.picture import picture_run
from surprisal import entropy
from tests.conftest import TINY, call

CASES = [  # order, size of the alphabet, temperature
    (1, 27, 0.5),
    (2, 5, 1.0),
    (3, 4, 0.1),
    (4, 2, 0.01),
    (1, 63, 100.0),
]


def matrix(source: MarkovSource) -> np.ndarray:
    """The whole transition matrix between contexts, made one entry at a time."""
    n = len(source.units)
    P = np.zeros((n, n))
    for context in range(n):
        followers = zip(source.successors[context], source.units[context], strict=True)
        for symbol, units in followers:
            P[context, (context * source.alphabet + symbol) % n] += units / 256
    return P


@pytest.mark.parametrize("case", CASES)
def test_the_entropy_rate_is_that_of_the_stationary_distribution(case) -> None:
    """The eigenvector of the transition matrix, and the entropy of each of its rows."""
    source = MarkovSource(*case)
    P = matrix(source)
    assert P.sum(axis=1) == pytest.approx(1.0, abs=1e-15)
    values, vectors = np.linalg.eig(P.T)
    assert np.sum(np.abs(values) > 1 - 1e-9) == 1  # one recurrent class, without a period
    pi = np.real(vectors[:, np.argmax(np.abs(values))])
    pi /= pi.sum()
    assert np.abs(source.stationary @ P - source.stationary).sum() < 1e-13
    assert source.stationary == pytest.approx(pi, abs=1e-9)
    by_hand = pi @ [entropy(row.tolist()) for row in P]
    assert source.entropy_rate == pytest.approx(by_hand, abs=1e-9)


def test_a_chain_whose_entropy_is_known_in_closed_form() -> None:
    """Two symbols change with probabilities a and b: pi = (b, a) / (a + b), H = pi (h(a), h(b))."""
    source = MarkovSource(1, 2, 0.5)
    P = matrix(source)
    a = P[0, 1]
    b = P[1, 0]
    pi = np.array([b, a]) / (a + b)
    h_a = entropy([a, 1 - a])
    h_b = entropy([b, 1 - b])
    H = pi @ [h_a, h_b]
    assert source.stationary == pytest.approx(pi, abs=1e-14)
    assert source.entropy_rate == pytest.approx(H, abs=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_a_long_text_pays_the_entropy_rate(case) -> None:
    source = MarkovSource(*case)
    text, nll = source.sample(200_000)
    means = nll.reshape(100, -1).mean(axis=1)  # of blocks, which hardly depend on each other
    error = means.std() / math.sqrt(len(means))
    assert nll.mean() == pytest.approx(source.entropy_rate, abs=4 * error + 1e-4)
    assert nll.max() <= math.log(256) + 1e-12
    order, alphabet, _ = case
    P = matrix(source)
    context = 0
    for i, character in enumerate(text[:2000]):
        following = (context * alphabet + markov.ALPHABET.index(character)) % len(P)
        if i >= order:  # before, the context has symbols that are not in the text
            assert -math.log(P[context, following]) == pytest.approx(nll[i])
        context = following


def test_a_text_is_sparse_and_the_same_every_time() -> None:
    text, nll = MarkovSource(2, 27, 0.5).sample(50_000)
    again, nll_again = MarkovSource(2, 27, 0.5).sample(50_000)
    assert text == again
    assert (nll == nll_again).all()
    assert set(text) <= set(markov.ALPHABET[:27])
    followers: dict[str, set[str]] = {}
    for i in range(2, len(text)):
        context = text[i - 2 : i]
        followers.setdefault(context, set()).add(text[i])
    assert max(map(len, followers.values())) == markov.SUCCESSORS
    assert MarkovSource(2, 27, 0.6).sample(50)[0] != text[:50]
    assert len(MarkovSource(1, 2, 0.5).successors[0]) == 2


def test_temperature_is_disorder() -> None:
    rates = [
        MarkovSource(2, 9, temperature).entropy_rate
        for temperature in (0.01, 0.1, 0.3, 1.0, 3.0, 100.0)
    ]
    assert rates == sorted(rates)
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(math.log(markov.SUCCESSORS), abs=1e-3)


@pytest.fixture
def short(data_dir, monkeypatch):
    """A markov corpus of a few thousand characters, in a temporary directory."""
    monkeypatch.setattr("data.corpora.LENGTH", 6000)
    return data_dir


def test_the_corpus_knows_its_entropy_rate(short) -> None:
    corpus = prepare_corpus(DataConfig(corpus="markov-2-5-0.5"))
    source = MarkovSource(2, 5, 0.5)
    text, nll = source.sample(6000)
    assert corpus.tokenizer.decode(corpus.val.tokens) == text[5400:]
    assert corpus.info.name == "markov-2-5-0.5"
    assert corpus.info.entropy_rate == source.entropy_rate
    assert corpus.info.source_nll == pytest.approx(nll[5401:].mean())
    assert corpus.source_nll is not None
    assert corpus.source_nll.tolist() == nll[5401:].tolist()  # of each target
    found = next(each for each in corpus.info.baselines if each.name == ENTROPY_RATE)
    assert found.nats_per_token == pytest.approx(source.entropy_rate)
    assert found.perplexity == pytest.approx(math.exp(source.entropy_rate))
    assert found.bits_per_byte == pytest.approx(source.entropy_rate / math.log(2))
    again = prepare_corpus(DataConfig(corpus="markov-2-5-0.5"))
    assert again.source_nll is not None
    assert again.source_nll.tolist() == corpus.source_nll.tolist()
    assert prepare_corpus(DataConfig(corpus="markov-2-6-0.5")).info.sha256 != corpus.info.sha256
    assert prepare_corpus(DataConfig(corpus="text.txt")).source_nll is None


def test_training_shows_the_gap(short) -> None:
    """The first gap is log|V| less the loss of the source on the same targets."""
    recipe = [
        "--corpus=markov-1-4-0.5",
        "--out_dir=out/run",
        *TINY,
        "--max_iters=60",
        "--eval_interval=20",
        "--eval_tokens=500",
        "--muon_learning_rate=0.1",
    ]
    printed = call("train.py", *recipe).stdout
    run = open_run(short / "out/run")
    corpus = prepare_corpus(run.cfg.data)
    assert corpus.source_nll is not None
    measured = EvalText(corpus.val, run.cfg.model.block_size, max_tokens=500).positions
    assert 400 < len(measured) < 550  # of 599
    records = [record for record in run.read_metrics() if "val_nll" in record]
    gaps = [record["kl_gap"] for record in records]
    evaluated = [0, 1, 2, 4, 8, 16, 20, 40, 60]
    assert [record["step"] for record in records] == evaluated
    of_the_targets = corpus.source_nll[measured - 1].mean()
    of_all = corpus.source_nll.mean()
    assert gaps[0] == pytest.approx(math.log(4) - of_the_targets, abs=1e-5)
    assert gaps[0] != pytest.approx(math.log(4) - of_all, abs=1e-4)
    assert -0.01 < gaps[-1] < 0.25 * gaps[0]  # on 500 targets, sampling error may take it below 0
    assert f"{gaps[-1]:.4f} above the source" in printed
    assert "H(p, q) = H(p) + KL(p || q)" in printed
    assert "beats entropy rate" not in printed
    draw_run(run, short / "c.png")
    picture = draw_terminal(picture_run(run))
    assert "entropy rate" in picture
    best = run.read_metrics()[-1]  # of all validation targets
    assert best["best_kl_gap"] == pytest.approx(
        best["best_val_nll"] - corpus.source_nll.mean(), abs=1e-9
    )
    assert f", KL {best['best_kl_gap']:.4f}" in picture
    done = call("train.py", *recipe, "--init_from=resume", "--corpus=markov-1-4-0.4", check=False)
    assert (done.returncode, "its text has changed" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--tokenizer=bpe"],
            "tokenizer=bpe needs another corpus: the entropy of markov is known per character",
        )
    ],
)
def test_mistakes(argv, message) -> None:
    with pytest.raises(UserError, match=message):
        load_config(["--corpus=markov", *argv])


@pytest.mark.parametrize(
    "corpus",
    ["markov-0-27-0.5", "markov-4-27-0.5", "markov-2-1-1", "markov-2-64-1", "markov-1-9-0"],
)
def test_a_name_of_a_source_that_cannot_be(corpus: str) -> None:
    with pytest.raises(UserError, match="has an order of 1 to 3, an alphabet of 2 to 63"):
        load_config([f"--corpus={corpus}"])
