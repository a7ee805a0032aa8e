"""report/notebook.py: what a notebook shows of a run is what the commands say of it."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.errors import UserError
from data.tokenizer import char_tokenizer
from engine.run import open_run
from report.characters import draw_terminal
from report.many import make_picture
from report.notebook import Model, SampledText, ScoredText
from surprisal import LN2
from tests.conftest import ROOT, call, trained_dtype

TEXT = "the cat sat\non a mat; doré"


@pytest.fixture(scope="module")
def model(trained) -> Model:
    return Model(trained[0])


class Tags(HTMLParser):
    """The tags and the text of HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.titles: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        self.text += data


def scored(text: str, eos_text: str | None = None) -> ScoredText:
    """A text whose tokens cost 1, 2, ... bits."""
    tokenizer = char_tokenizer(text + "\n", eos_text)
    tokens = tokenizer.encode_after_context(text)
    bits = np.arange(1.0, len(tokens))
    return ScoredText(tokens, bits * LN2, np.ones(len(bits), int), tokenizer)


def test_the_scores_are_those_of_evaluate(model: Model) -> None:
    score = model.score(TEXT)
    said = call("evaluate.py", str(model.run.path), f"--explain={TEXT}").stdout
    _, tokens = said.split("\n\n")
    nats = [*map(float, re.findall(r"\S (\d+\.\d{3})\b", tokens))]
    np.testing.assert_allclose(score.bits * LN2, nats, atol=6e-4)
    assert f"{score.bits_per_byte:.3f} bits per byte" in said
    assert f"{score.total * LN2:.2f} nats, {score.total:.2f} bits, for {len(TEXT)} tokens" in said
    assert "".join(score.tokens) == TEXT.replace("\n", "⏎")


def test_the_dtype_is_that_of_training_unless_another_is_named(trained) -> None:
    assert Model(trained[0]).device.dtype_name == trained_dtype()
    assert Model(trained[0], dtype="bfloat16").device.dtype_name == "bfloat16"
    with pytest.raises(
        UserError, match="dtype=int8: should be one of auto, float32, bfloat16, float16"
    ):
        Model(trained[0], dtype="int8")


def test_a_score_prints_itself_in_bits(model: Model) -> None:
    score = model.score(TEXT)
    costs, summary = str(score).split("\n\n")
    assert costs.split()[:8] == [
        "bits",
        "of",
        "each",
        "token:",
        "⏎",
        "given",
        "t",
        f"{score.bits[0]:.3f}",
    ]
    assert summary.startswith(
        f"{score.total:.2f} bits for {len(TEXT)} tokens: {score.bits.mean():.3f} per token"
    )
    assert repr(score) == str(score)


def test_in_jupyter_each_token_has_its_colour_and_its_numbers(model: Model) -> None:
    score = model.score(TEXT)
    shown = score._repr_html_()
    page = Tags(shown)
    V = model.run.info.vocab_size
    assert page.tags == {"div", "span", "br", "p"}
    assert page.text.startswith("⏎" + TEXT.replace("\n", "⏎"))  # the context, then the text
    assert page.text.endswith(score.summary())
    assert page.titles[1 : len(TEXT) + 1] == [
        f"{bits:.2f} bits, probability {2**-bits:.3g}, rank {rank} of {V}"
        for bits, rank in zip(score.bits, score.rank, strict=True)
    ]
    strengths = re.findall(r"rgba\(213, 94, 0, ([\d.]+)\)", shown)
    of_the_text = [*map(float, strengths[: len(TEXT)])]
    expected = 0.8 * np.minimum(1, score.bits / np.log2(V))
    np.testing.assert_allclose(of_the_text, expected, atol=0.0051)


def test_ranks_are_places_among_all_tokens(model: Model) -> None:
    score = model.score(TEXT)
    assert score.rank.min() >= 1
    assert score.rank.max() <= model.run.info.vocab_size
    sure = score.bits < 1  # more than half of the probability
    assert (score.rank[sure] == 1).all()


@pytest.mark.parametrize(
    ("eos_text", "start", "tags"), [(None, "⏎", "br div p span"), ("\n", "<|eos|>", "div p span")]
)
def test_a_strangers_text_stays_text(eos_text: str | None, start: str, tags: str) -> None:
    evil = """<script>alert("1")</script> <img src=x onerror='alert(2)'> &lt;b&gt; --></div>"""
    shown = scored(evil, eos_text)._repr_html_()
    page = Tags(shown)
    assert page.tags == set(tags.split())
    assert evil in page.text
    assert html.escape("<") in shown
    assert page.text.startswith(start)


def test_a_vocabulary_of_one_token_costs_nothing() -> None:
    tokenizer = char_tokenizer("\n")
    nll = np.zeros(1)
    rank = np.ones(1, int)
    score = ScoredText([0, 0], nll, rank, tokenizer)
    assert "rgba(213, 94, 0, 0.00)" in score._repr_html_()


def test_a_sample_is_that_of_the_command(model: Model) -> None:
    sample = model.sample("the", max_new_tokens=40, seed=3, temperature=1.0)
    said = call(
        "sample.py",
        str(model.run.path),
        "--prompt=the",
        "--max_new_tokens=40",
        "--seed=3",
        "--temperature=1",
    )
    assert sample + "\n" == said.stdout
    assert repr(SampledText("a\nb")) == "a\nb"


@pytest.mark.precision
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_itself_can_be_called_under_every_dtype(trained, dtype: str) -> None:
    """Called, it computes with the weights as they were trained; scoring computes in its dtype."""
    model = Model(trained[0], device="cpu", dtype=dtype)
    exact = Model(trained[0], device="cpu", dtype="float32")
    tokens = torch.arange(5)[:, None]
    assert model.gpt(tokens).dtype == torch.float32
    assert torch.equal(model.gpt(tokens), exact.gpt(tokens))
    near = {"float32": 0.0, "bfloat16": 0.1, "float16": 0.01}[dtype]
    costs = model.score(TEXT).nll
    expected = exact.score(TEXT).nll
    assert abs(costs - expected).max() <= near
    assert (costs == expected).all() == (dtype == "float32")
    assert model.sample("the", max_new_tokens=3).startswith("the")


def test_tokens_may_be_on_another_device_than_the_model(trained) -> None:
    """So it is after a training on a GPU; "meta" stands for it."""
    model = Model(trained[0], device="cpu")
    model.gpt.to("meta")
    assert model.gpt(torch.arange(5)[:, None]).device.type == "meta"


def test_curves_are_a_picture_in_jupyter_and_characters_in_a_terminal(model: Model) -> None:
    options = {"x": "tokens", "scale": "linear", "unit": "bits_per_byte"}
    curves = model.curves(model, model.run.path, **options)
    png, metadata = curves._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert metadata == {"width": 720}
    assert repr(curves) == "the loss curves of tiny, tiny, tiny"
    runs = [open_run(model.run.path)] * 3
    assert str(curves) == draw_terminal(make_picture(runs, *options.values()))


def test_nothing_else_is_shown(trained, capfd: pytest.CaptureFixture[str]) -> None:
    model = Model(trained[0], checkpoint="last", device="cpu")
    model.score(TEXT)._repr_html_()
    model.sample(max_new_tokens=5)
    model.curves()._repr_png_()
    assert capfd.readouterr() == ("", "")
    assert repr(model) == f"tiny: a GPT with {model.gpt.num_params():,} parameters, after 6 steps"


def test_a_path_may_be_relative_to_the_repository(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("report.notebook.ROOT", model.run.path.parent)
    assert Model("tiny").run.path == model.run.path
    monkeypatch.chdir(model.run.path.parent)
    assert Model("tiny").run.path == Path("tiny")


def test_mistakes_are_told(model: Model) -> None:
    with pytest.raises(UserError, match="nowhere: not a run"):
        Model("nowhere")
    with pytest.raises(UserError, match="no such checkpoint"):
        Model(model.run.path, checkpoint="first")
    with pytest.raises(UserError, match="empty"):
        model.score("")
    with pytest.raises(UserError, match="not in this char vocabulary"):
        model.score("<script>")
    assert model.score("<the\udcff>", unknown="replace").tokens == ["t", "h", "e"]
    assert model.sample("<the>", unknown="replace", max_new_tokens=3).startswith("the")
    with pytest.raises(UserError, match="nowhere: not a run"):
        model.curves("nowhere")
    for wrong in ({"x": "flops"}, {"scale": "foo"}, {"unit": "bits"}):
        with pytest.raises(UserError, match="use one of"):
            model.curves(**wrong)
    for wrong_sample in (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
    ):
        with pytest.raises(UserError, match="sample: "):
            model.sample(**wrong_sample)


def test_the_lines_in_the_readme_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a notebook's: what a line returns is shown."""
    (lines,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    monkeypatch.chdir(model.run.path.parent.parent)
    names: dict[str, object] = {}
    exec(
        re.sub(r'"out/\w+"', '"out/tiny"', lines)
        .replace("To be, or not to be", "on a mat")
        .replace("ROMEO:", "the"),
        names,
    )
    assert isinstance(names["model"], Model)
    assert {"Model(", ".score(", ".sample(", ".curves("} <= {
        *re.findall(r"(?:Model|\.\w+)\(", lines)
    }
