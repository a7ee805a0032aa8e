"""The model in a run's page: page/web/model.js beside PyTorch, and the text that one types to it.

The browser's tests need Chromium, as those of tests/test_browser.py do.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config.schema import ModelConfig
from data.documents import Split
from data.info import PASSAGE, PASSAGES
from engine.checkpoint import MODEL, read_model
from engine.generate import generate
from engine.run import Run, open_run
from evaluate import EvaluateOptions, score_run
from model import GPT
from page.page import write_live_page, write_runs
from page.weights import DType, content_of_model, shapes_of, to_text
from surprisal import nats_to_bits
from tests.chromium import NEEDS_BROWSER, Tab, open_page
from tests.conftest import CPU, ROOT, TINY, call, make_model
from tests.one_run import write_data

SIZES = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
FORMS: dict[str, dict[str, Any]] = {
    "nanochat": {},
    "gpt2": {"form": "gpt2"},
    "nanogpt": {"form": "nanogpt"},
    "switched": {"qk_norm": False, "embedding_norm": False, "tied": True, "softcap": 3.0},
    "gpt2 switched": {"form": "gpt2", "qk_norm": True, "embedding_norm": True, "tied": False},
    "smear": {"smear": True},
    "documents": {"document_attention": True, "smear": True},
}
READS_ALL = "typing && typing.logits.length === typing.tokens.length"
SENTENCE = "the mat;"  # with its context it fits the tiny run's 8 positions


@pytest.fixture(scope="module")
def scripts(browser: Any) -> Iterator[Any]:
    """Open an empty page with model.js alone."""
    page = browser.new_page()
    page.add_script_tag(path=ROOT / "page/web/model.js")
    yield page
    page.close()


@pytest.fixture
def tab(browser: Any, own: Path) -> Iterator[Tab]:
    """Open the page of a run, whose model has read the first text; no network is there."""
    tab = open_and_read(browser, own)
    tab.page.context.set_offline(True)
    yield tab
    tab.close()


def open_and_read(browser: Any, own: Path, **kinds: Any) -> Tab:
    tab = open_page(browser, own, **kinds)
    tab.page.wait_for_function(READS_ALL)
    return tab


def type_text(tab: Tab, text: str) -> None:
    """Type a text in place of what is there, key by key, and wait until the model has read it."""
    tab.page.click("#typing textarea")
    tab.page.keyboard.press("Control+A")
    tab.page.keyboard.press("Delete")
    tab.page.keyboard.type(text)
    tab.page.wait_for_function(READS_ALL)


def text_of(tab: Tab) -> str:
    return str(tab("typing.text"))


def form_of(name: str, std: float = 0.2, **options: Any) -> GPT:
    """Make a model with weights that are nowhere zero."""
    chosen = ModelConfig(**{**SIZES, **FORMS[name], **options})
    return make_model(std=std, **chosen.model_dump())


def saved_of(model: GPT, dtype: DType) -> dict[str, Any]:
    """Write a model of 13 tokens as a page has it."""
    weights = {}
    for name, p in model.named_parameters():
        weights[name] = to_text(p.detach().numpy(), dtype)
    cfg = model.cfg.model_dump() | {"is_gpt2": model.cfg.is_gpt2}
    return {"cfg": cfg, "vocabulary": list("abcdefghijklm"), "weights": weights}


def logits_in(page: Any, saved: dict[str, Any], tokens: list[int]) -> np.ndarray:
    script = "([saved, ids]) => read_model(saved).forward(ids).map(row => [...row])"
    return np.array(page.evaluate(script, [saved, tokens]))


@NEEDS_BROWSER
@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_pytorch(scripts: Any, name: str) -> None:
    model = form_of(name)
    tokens = np.random.default_rng(0).integers(13, size=32)
    tokens[[5, 20]] = 12  # the eos token, where there are documents
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens)[None])[0].numpy()
    exact = logits_in(scripts, saved_of(model, "float32"), tokens.tolist())
    assert exact == pytest.approx(expected, abs=1e-4)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes_of(model.cfg, 13) == shapes  # which a file must have
    half = logits_in(scripts, saved_of(model, "float16"), tokens.tolist())
    assert half == pytest.approx(expected, abs=1e-2)
    assert np.abs(half - exact).max() > 0


@NEEDS_BROWSER
@pytest.mark.parametrize("name", ["nanochat", "gpt2", "nanogpt"])
@pytest.mark.parametrize("block_size", [1, 7, 256])
def test_greedy_text_is_that_of_generate(scripts: Any, name: str, block_size: int) -> None:
    """Over 200 tokens the window moves, if it is smaller."""
    model = form_of(name, std=0.8, block_size=block_size)
    for own, p in model.named_parameters():
        if own.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)  # larger ones choose the same token everywhere
    prompt = [3, 1, 4, 1][: min(4, block_size)]
    steps = generate(model, prompt, CPU, max_new_tokens=200, temperature=0)
    expected = [tokens[0] for tokens in steps]
    assert block_size == 1 or len(set(expected)) > 2
    script = "([saved, ids]) => [...generate(read_model(saved), ids, 200, {temperature: 0})]"
    assert scripts.evaluate(script, [saved_of(model, "float32"), prompt]) == expected


@NEEDS_BROWSER
def test_samples_follow_the_probabilities_and_the_seed(scripts: Any) -> None:
    script = """seed => {
        const random = make_random(seed), counts = [0, 0, 0];
        const logits = Float32Array.from([1, 4, 2].map(Math.log));
        for (let n = 0; n < 8000; n++) counts[sample_token(logits, random(), 0.5)] += 1;
        return counts.map(count => count / 8000);
    }"""
    shares = scripts.evaluate(script, 1)
    squares = np.array([1, 16, 4])  # at temperature 0.5
    assert shares == pytest.approx(squares / squares.sum(), abs=0.02)
    assert scripts.evaluate(script, 1) == shares
    assert scripts.evaluate(script, 2) != shares
    last = "sample_token(Float32Array.from([0, 0, -Infinity]), 1 - 2 ** -40, 1)"
    assert scripts.evaluate(last) == 1
    cold = "sample_token(Float32Array.from([7, 9, 8]), 0.9, 1e-300)"
    assert scripts.evaluate(cold) == 1


@NEEDS_BROWSER
def test_each_new_token_costs_one_position(scripts: Any) -> None:
    """Also where somebody changes the text's end, and back."""
    model = form_of("nanochat")
    script = """saved => {
        const model = read_model(saved), tokens = [1, 2, 3, 4, 5];
        const window = new ContextWindow(model);
        let count = 0;
        const compute = model.hidden_state;
        model.hidden_state = (...all) => { count += 1; return compute.apply(model, all); };
        const read = (places, ids) => places.map(place => [...window.read(ids, place)]);
        const before = read([0, 1, 2, 3, 4], tokens);
        read([3, 4], [1, 2, 3, 9, 9]);
        return [before.slice(3), read([3, 4], tokens), count];
    }"""
    before, after, count = scripts.evaluate(script, saved_of(model, "float32"))
    assert after == before
    assert count == 5 + 2 + 2


def put_model(run: Path, **shape: int) -> Run:
    """Give a run a model of the default's shape, but for the options, with random weights."""
    cfg = ModelConfig(**shape)
    model = GPT(cfg, open_run(run).info.vocab_size)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    tensors = {f"{MODEL}{name}": p.detach() for name, p in model.named_parameters()}
    save_file(tensors, run / "best.safetensors", {"options": "{}"})
    options = cfg.model_dump()
    lines = (run / "config.toml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        name = line.partition(" = ")[0]
        if name in SIZES:
            lines[number] = f"{name} = {options[name]}"
    (run / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    changed = open_run(run)
    assert changed.cfg.model == cfg
    return changed


DEFAULT: tuple[dict[str, int], int, float] = ({}, 335_000, 5e6)
LARGEST: tuple[dict[str, int], int, float] = ({"n_embd": 160}, 925_000, 7e6)  # nearly


def full_passages(path: Path) -> str:
    """Write as many evaluations of passages of full length as a page can have."""
    record = json.loads(path.read_text().splitlines()[-1])
    for name, column in record.items():
        if name not in ("step", "number", "temperatures"):
            record[name] = (2 * column)[:PASSAGE]
    lines = []
    for step in range(40):
        for number in range(PASSAGES):
            record |= {"step": step, "number": number}
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    return "".join(lines)


@pytest.mark.parametrize(("shape", "least_params", "most_bytes"), [DEFAULT, LARGEST])
def test_a_page_with_its_model_stays_small(
    own: Path, shape: dict[str, int], least_params: int, most_bytes: float
) -> None:
    """Also with as many passages as it can have."""
    run = put_model(own, **shape)
    (own / "passage.jsonl").write_text(full_passages(own / "passage.jsonl"))
    weights = content_of_model(run)["weights"].values()
    num_params = sum(np.prod(each["shape"]) for each in weights)
    assert num_params > least_params
    write_live_page(own / "report.html")
    write_data(own / "report.js", run, live=False)
    size = sum((own / name).stat().st_size for name in ("report.html", "report.js"))
    assert size < most_bytes
    write_runs(own / "whole.html", [own])
    assert (own / "whole.html").stat().st_size < most_bytes


@NEEDS_BROWSER
def test_the_speed_of_the_default(scripts: Any, own: Path) -> None:
    """Say it, with `pytest -s`; machines differ."""
    saved = content_of_model(put_model(own))
    script = """saved => {
        const model = read_model(saved), started = performance.now();
        for (const token of generate(model, [0], 1000)) if (token < 0) return;
        return 1e6 / (performance.now() - started);
    }"""
    speeds = [scripts.evaluate(script, saved) for _ in range(3)]
    print(f"\nmodel.js, the default: {max(speeds):,.0f} tokens a second")
    assert min(speeds) > 0


def test_a_live_page_has_no_model(own: Path) -> None:
    write_data(own / "report.js", open_run(own), live=True)
    assert '"model":null' in (own / "report.js").read_text(encoding="utf-8")
    write_data(own / "report.js", open_run(own), live=False)
    assert '"base64"' in (own / "report.js").read_text(encoding="utf-8")


def test_a_page_of_several_runs_has_no_model(own: Path) -> None:
    write_runs(own / "both.html", [own, own])
    assert '"model":null' in (own / "both.html").read_text(encoding="utf-8")


def why_not(run: Run) -> str:
    return str(content_of_model(run)["why"])


def test_a_model_that_does_not_fit_a_page_is_named(own: Path) -> None:
    assert why_not(put_model(own, n_embd=192)) == (
        "it has 1,334,976 parameters, and a page at most 1,000,000"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max_ngram=3", "--table_rows=64"], "it has tables of n-grams, which are too large for"),
        (["--tokenizer=bpe", "--vocab_size=270"], "its tokens are bpe, and only char tokens"),
    ],
)
def test_a_model_that_the_page_cannot_compute_is_named(
    data_dir: Path, options: list[str], expected: str
) -> None:
    call("train.py", "--corpus=text.txt", *TINY, "--max_iters=1", "--out_dir=out/o", *options)
    assert expected in why_not(open_run(data_dir / "out/o"))


def test_weights_that_do_not_belong_to_the_run_are_left_out(own: Path) -> None:
    run = open_run(own)
    model, _ = read_model(run, "best")
    cfg = (own / "config.toml").read_text()
    (own / "config.toml").write_text(cfg.replace("n_head = 2", "n_head = 4"))
    assert why_not(open_run(own)) == (
        "best.safetensors holds another model than config.toml describes"
    )
    (own / "config.toml").write_text(cfg)
    path = own / "best.safetensors"
    saved = {}
    for name, p in model.named_parameters():
        saved[f"{MODEL}{name}"] = p.detach().reshape(-1, 1)  # as many numbers, in another shape
    save_file(saved, path)
    assert why_not(run) == "best.safetensors holds another model than config.toml describes"
    path.write_bytes(path.read_bytes()[:1000])
    assert why_not(run).startswith("best.safetensors cannot be read (")
    tensors = {f"{MODEL}{name}": p.detach().clone() for name, p in model.named_parameters()}
    tensors[f"{MODEL}lm_head.weight"][3, 3] = torch.nan
    save_file(tensors, path)
    assert why_not(run) == "its weights, in lm_head.weight, are too large for float16: it diverged"
    path.unlink()
    assert why_not(run) == "there is no best.safetensors"


@NEEDS_BROWSER
def test_the_address_has_what_somebody_typed(tab: Tab) -> None:
    type_text(tab, SENTENCE)
    tab.page.reload()
    tab.page.wait_for_function(READS_ALL)
    assert tab("typing.text") == SENTENCE


def test_typing_colours_each_token_by_what_it_costs(tab: Tab, own: Path) -> None:
    type_text(tab, SENTENCE)
    run = open_run(own)
    tokens = run.tokenizer.encode_after_context(SENTENCE)
    scores = score_run(run, Split(np.array(tokens)), EvaluateOptions(explain=SENTENCE))
    expected = [nats_to_bits(nats) for nats in scores.columns["nll"].tolist()]
    costs = tab("typing.costs")[1:]
    assert costs == pytest.approx(expected, abs=1e-2)
    colours = tab("[...typing.back.children].map(span => span.style.background)")[:-1]
    paint = "costs => costs.map(cost => { const s = element('i', ''); paint(s, cost); return s; })"
    same = tab.page.evaluate(f"costs => ({paint})(costs).map(s => s.style.background)", costs)
    assert colours == same
    assert f"8 characters: {sum(costs):.1f} bits" in tab.text("#typing-sum")
    assert f"“;” before the cursor: {costs[-1]:.2f} bits" in tab.text(".typing-token")
    printed = call("evaluate.py", str(own), f"--explain={SENTENCE}").stdout
    bits = float(printed.split(" nats, ")[1].split(" bits")[0])
    assert sum(costs) == pytest.approx(bits, abs=0.02)


@NEEDS_BROWSER
def test_the_bars_follow_the_cursor_and_the_temperature(tab: Tab) -> None:
    type_text(tab, SENTENCE)
    names = "typing.bars.map(bar => bar.firstChild?.textContent ?? '')"
    shares = "typing.bars.map(bar => Number(bar.style.getPropertyValue('--share')))"
    assert not any("✓" in name for name in tab(names))  # nothing comes after the end
    tab.page.keyboard.press("Home")
    tab.page.wait_for_function(f"{names}.includes('“t” ✓')")
    tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_function(f"{names}.includes('“h” ✓')")
    assert "after “t”" in tab.text("#typing-title")
    assert tab("typing.button.textContent") == "Go on, replacing the rest"
    plain = np.array(tab(shares))
    all_of_it = tab("[...softmax(typing.logits[1])]")
    assert plain[:8] == pytest.approx(sorted(all_of_it, reverse=True)[:8])
    tab.page.fill("#typing input", "0.5")
    squares = plain**2 / (np.array(all_of_it) ** 2).sum()
    assert tab(shares) == pytest.approx(squares.tolist(), rel=1e-4)
    tab.page.fill("#typing input", "0")
    assert tab(shares) == [1, *[0] * 8]


@NEEDS_BROWSER
def test_the_model_goes_on_until_somebody_stops_it(tab: Tab) -> None:
    type_text(tab, SENTENCE)
    button = tab.page.get_by_role("button", name="Let the model go on")
    assert "In mid-text it replaces what follows" in tab.text("#typing")
    button.focus()
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_function(f"typing.text.length > {len(SENTENCE) + 5}")
    tab.page.keyboard.press("Enter")  # it now says Stop
    assert tab("typing.button.textContent") == "Let the model go on"
    text = text_of(tab)
    time.sleep(0.2)
    assert text_of(tab) == text
    assert text.startswith(SENTENCE)
    written = len(text) - len(SENTENCE)
    own_bits = sum(tab("typing.costs")[-written:]) / written
    before = f"…{text[-12:]}".replace("\n", "⏎")
    assert re.sub("[␣ ]", "", before) in re.sub("[␣ ]", "", tab.text("#typing-title"))
    expected = f"The model wrote the last {written} characters: {own_bits:.2f} bits each."
    assert expected in tab.text("#typing")
    tab.page.click("#typing button:has-text('Undo')")
    assert text_of(tab) == SENTENCE
    # a key ends it too, and nothing is lost of what somebody types
    tab.page.click("#typing button:has-text('Let the model go on')")
    tab.page.wait_for_function(f"typing.text.length > {len(SENTENCE) + 2}")
    tab.page.locator("#typing textarea").focus()
    tab.page.keyboard.type("cat")
    assert text_of(tab).endswith("cat")
    assert not tab("typing.timer")


@NEEDS_BROWSER
def test_a_token_can_be_replaced_by_another(tab: Tab) -> None:
    type_text(tab, SENTENCE)
    tab.page.keyboard.press("Home")
    for _ in range(4):
        tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_function("typing.cursor === 4")
    tab("typing.drawCursor()")  # a browser under load tells late that the cursor moved
    other = "typing.bars.find(bar => !bar.textContent.includes('m') && !bar.disabled)"
    name = tab(f"typing.saved.vocabulary[{other}.dataset.token]")
    tab(f"{other}.click()")
    tab.page.wait_for_function("typing.text.length > 8")
    tab.page.click("#typing button:has-text('Stop')")
    assert text_of(tab).startswith(f"the {name}")
    tab.page.click("#typing button:has-text('Undo')")
    assert text_of(tab) == SENTENCE
    # at the end it is one more token, and the model waits
    first = tab("typing.saved.vocabulary[typing.bars[0].dataset.token]")
    tab("typing.bars[0].click()")
    assert text_of(tab) == SENTENCE + first
    assert not tab("typing.timer")


@NEEDS_BROWSER
def test_an_unknown_character_is_shown_and_costs_nothing(tab: Tab) -> None:
    type_text(tab, "the mat")
    costs = tab("typing.costs")
    assert not tab.page.is_visible(".typing-unknown")
    type_text(tab, "the X😀mat")
    assert tab("typing.costs") == costs
    assert "The model does not know “X” “😀” (hatched)" in tab.text(".typing-unknown")
    assert tab("[...document.querySelectorAll('.typing-stranger')].map(s => s.textContent)") == [
        "X",
        "😀",
    ]
    for _ in range(3):
        tab.page.keyboard.press("ArrowLeft")
    tab.page.wait_for_function("typing.token.textContent.includes('does not know it')")


@NEEDS_BROWSER
def test_a_long_text_is_read_in_steps_and_its_windows_move(tab: Tab, own: Path) -> None:
    text = "the cat sat on a mat;\n" * 40
    tab.page.fill("#typing textarea", text)
    tab.page.wait_for_function(READS_ALL)
    run = open_run(own)
    tokens = torch.from_numpy(run.tokenizer.encode("\n" + text).astype(np.int64))
    steps = "typing.logits.map(row => [...row])"
    window = tokens[8 - 3 : 8 + 1]  # the fifth to the ninth: half a window of 8, with the new one
    model = content_of_model(run, "float32")
    expected = logits_in(tab.page, model, window.tolist())[-1]
    assert tab(steps)[8] == pytest.approx(expected.tolist(), abs=1e-2)
    assert f"{len(text)} characters: " in tab.text("#typing-sum")
    assert "The model sees at most the last 8 characters; at times" in tab.text("#typing-sum")


@NEEDS_BROWSER
def test_the_eos_token_begins_and_ends_a_text(browser: Any, data_dir: Path) -> None:
    options = ["--documents=lines", "--max_iters=1", "--out_dir=out/lines"]
    call("train.py", "--corpus=text.txt", *TINY, *options)
    tab = open_and_read(browser, data_dir / "out/lines")
    type_text(tab, "\n")
    assert "does not know “⏎”" in tab.text(".typing-unknown")  # as evaluate.py says
    assert tab.text("#typing-title") == "Expected first, as after <|eos|>"
    type_text(tab, "the")
    tab("typing.random = () => 1")  # chooses the last token of the vocabulary
    tab.page.click("#typing button:has-text('Let the model go on')")
    tab.page.wait_for_selector("text=The model ends the text here.")
    assert text_of(tab) == "the"
    tab.close()


@NEEDS_BROWSER
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_field_lies_over_its_colours(browser: Any, own: Path, width: int, scheme: str) -> None:
    tab = open_and_read(browser, own, width=width, color_scheme=scheme)
    text = "the cat sat on a mat; " * 8
    tab.page.fill("#typing textarea", f"{text}\n\n")
    tab.page.wait_for_function(READS_ALL)
    layers = [tab.page.locator(f".typing-paper > {name}") for name in ("div", "textarea")]
    assert layers[0].bounding_box() == layers[1].bounding_box()
    scroll = tab("[typing.field.scrollHeight, typing.field.clientHeight]")
    assert scroll[0] == scroll[1]  # no line is hidden
    assert tab("document.documentElement.scrollWidth") <= width
    tab.close()


@NEEDS_BROWSER
def test_a_page_without_a_model_says_why(browser: Any, own: Path) -> None:
    (own / "best.safetensors").unlink()
    write_runs(own / "whole.html", [own])
    tab = Tab(browser, own / "whole.html")
    said = tab.text("#typing")
    assert "The model cannot be typed to here: there is no best.safetensors." in said
    assert f'python evaluate.py {own} --explain="a sentence"' in said
    assert f"python sample.py {own}" in said
    tab.close()


@NEEDS_BROWSER
def test_an_open_page_gets_the_model_at_the_end(browser: Any, own: Path) -> None:
    write_live_page(own / "report.html")
    write_data(own / "report.js", open_run(own), live=True)
    tab = Tab(browser, own / "report.html")
    assert not tab.page.is_visible("#typing")
    time.sleep(0.2)
    write_data(own / "report.js", open_run(own), live=False)
    tab.page.wait_for_function(READS_ALL, timeout=10_000)
    assert tab.page.is_visible("#typing textarea")
    (own / "report.js").unlink()
    tab.close()
