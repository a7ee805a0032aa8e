"""dtype decides all arithmetic: nothing computes in 16 bits unless dtype says so."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import chunked_loss
from config.cli import load_config
from config.errors import UserError
from data.batches import TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from data.tokenizer import Tokenizer
from engine.checkpoint import for_prediction
from engine.device import Device, setup_device
from engine.evaluation import measure_loss
from engine.generate import Window, generate, generate_texts
from engine.optim import Muon, make_optimizers
from engine.scoring import predict, score_targets
from engine.state import TrainState
from model import GPT
from report.step_zero import check_step_zero
from tests.conftest import TINY, call, draw_nothing, read_metrics, take_step

CPU = torch.device("cpu")
V = 13
FORMS = {
    "muon": [],
    "adamw": ["--optimizer=adamw"],
    "gpt2": ["--form=nanogpt", "--qk_norm"],
    "all parts": [
        "--max_ngram=3",
        "--table_dropout=0.3",
        "--label_smoothing=0.1",
        "--z_loss=0.01",
        "--softcap=5",
        "--dropout=0.1",
    ],
    "teacher": ["--teacher=out/teacher"],
}


class Watch(TorchDispatchMode):
    """Notes every operation with a 16-bit tensor among its arguments or results.

    Not the conversion to and from float16, which CPUs do fast: the rows of tables are rounded so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_16_bits: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if str(func) == "aten._to_copy.default":
            return out
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16):
                self.in_16_bits.add(str(func))
        return out


def train_a_step(device: Device, *argv: str) -> GPT:
    cfg, _ = load_config([*TINY, *argv])
    torch.manual_seed(0)
    model = GPT(cfg.model, V, cfg.tables)
    optimizers = make_optimizers(model, cfg.optim, device)
    batches = TrainBatches(Split(TOKENS), 8, 4, seed=0)
    teacher = None
    if cfg.loss.teacher:
        teacher = for_prediction(GPT(cfg.model, V), device)
    for step in range(2):  # the second one has momentum
        batch = batches(4 * step)
        result = take_step(model, optimizers, batch, cfg, device, step=step, teacher=teacher)
        assert result.is_valid
    return model


TOKENS = np.random.default_rng(0).integers(V, size=300)
TEXT = EvalText(Split(TOKENS), 8)
BATCH = TrainBatches(Split(TOKENS), 8, 4, seed=0)(0)


def sample(model: GPT, device: Device) -> None:
    predictor = for_prediction(model, device)
    options = {"num_samples": 2, "top_k": 3, "max_new_tokens": 12}
    list(generate(predictor, [1], device, **options))


def score(model: GPT, device: Device) -> None:
    score_targets(predict(model, TEXT.batches(), device), [0.5, 1.0])


USES: dict[str, Callable[[GPT, Device], object]] = {
    "step zero": lambda model, device: check_step_zero(model, [BATCH], V, device),
    "evaluation": lambda model, device: measure_loss(model, TEXT, device),
    "scoring": score,
    "sampling": sample,
}


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize("form", FORMS)
def test_a_training_step_is_in_float32(
    form: str, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunked:
        monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 0)
    with Watch() as watch:
        train_a_step(Device(CPU, torch.float32), *FORMS[form])
    assert watch.in_16_bits == set()


@pytest.mark.parametrize("form", ["muon", "all parts"])
@pytest.mark.parametrize("use", USES)
def test_a_prediction_is_in_float32(use: str, form: str) -> None:
    device = Device(CPU, torch.float32)
    model = train_a_step(device, *FORMS[form])
    with Watch() as watch:
        USES[use](model, device)
    assert watch.in_16_bits == set()


def test_bfloat16_is_used_where_it_is_asked_for() -> None:
    """The watch sees it in the products of the model, the gradient, Muon, and every use."""
    device = Device(CPU, torch.bfloat16)
    with Watch() as watch:
        model = train_a_step(device)
    assert {"aten.mm.default", "aten.baddbmm.default"} <= watch.in_16_bits
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for use in USES.values():
        with Watch() as watch:
            use(model, device)
        assert "aten.linear.default" in watch.in_16_bits


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_auto_is_what_the_hardware_multiplies(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.device._has_bfloat16", lambda kind: has_bfloat16)
    device = setup_device("cpu", "auto")
    assert (device.dtype, device.is_emulated) == (
        torch.bfloat16 if has_bfloat16 else torch.float32,
        False,
    )
    assert setup_device("cpu", "float32").dtype == torch.float32
    asked_for = setup_device("cpu", "bfloat16")
    assert (asked_for.dtype, asked_for.is_emulated) == (torch.bfloat16, not has_bfloat16)


def test_a_device_that_is_not_there_is_a_mistake() -> None:
    for device in ("cuda:99", "gpu", "cpu:1"):
        with pytest.raises(UserError, match=f"device={device}"):
            setup_device(device, "auto")


def test_devices() -> None:
    assert setup_device("cpu", "float32") == Device(CPU, torch.float32)
    assert setup_device("cpu", "bfloat16").dtype == torch.bfloat16
    assert setup_device("auto", "auto").torch_device.type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no cuda"):
            setup_device("cuda:1", "auto")
    with pytest.raises(UserError, match=r"^device=tpu: should be auto, cpu, mps, cuda or cuda:N$"):
        setup_device("tpu", "auto")


AUTO = [option for option in TINY if "dtype" not in option]


def without_pictures_and_long_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings draw nothing and write three tokens: more would take most of their time."""

    def generate_little(*arguments: Any, **options: Any) -> list[str]:
        options["max_new_tokens"] = 3
        return generate_texts(*arguments, **options)

    draw_nothing(monkeypatch)
    monkeypatch.setattr("train.generate_texts", generate_little)


def test_the_samples_of_a_training_in_bfloat16_are_in_float32() -> None:
    """For one token at a time, autocast would spend more on casts of weights than on products."""
    cfg, _ = load_config(TINY)
    tokenizer = Tokenizer(kind="char", token_bytes=[b"a", b"b", b"c"])
    model = GPT(cfg.model, tokenizer.vocab_size, cfg.tables)
    with Watch() as watch:
        generate_texts(model, tokenizer, "a", Device(CPU, torch.bfloat16), max_new_tokens=3)
    assert watch.in_16_bits == set()


def test_whole_commands_follow_the_hardware(data_dir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16 nothing uses it; a run that was started so keeps its dtype elsewhere."""
    monkeypatch.setattr("engine.device._has_bfloat16", lambda kind: False)
    without_pictures_and_long_samples(monkeypatch)
    with Watch() as watch:
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", "--device=cpu", *AUTO)
        monkeypatch.setattr("engine.device._has_bfloat16", lambda kind: True)
        call("train.py", "out/run", "--init_from=resume", "--max_iters=8")
        call("evaluate.py", "out/run")
        call("sample.py", "out/run", "--device=cpu", "--max_new_tokens=5")
    assert watch.in_16_bits == set()
    assert read_metrics(data_dir / "out/run")[-1]["step"] == 8


def test_a_run_in_bfloat16_that_moves_to_a_cpu_without_it_keeps_it_and_says_so(
    data_dir, monkeypatch
) -> None:
    without_pictures_and_long_samples(monkeypatch)
    monkeypatch.setattr("engine.device._has_bfloat16", lambda kind: True)
    first = call(
        "train.py", "--corpus=text.txt", "--out_dir=out/run", "--device=cpu", *AUTO, "--max_iters=2"
    ).stdout
    assert 'dtype = "bfloat16"' in (data_dir / "out/run/config.toml").read_text()
    assert "emulates" not in first
    monkeypatch.setattr("engine.device._has_bfloat16", lambda kind: False)
    resumed = call("train.py", "out/run", "--init_from=resume", "--max_iters=3").stdout
    assert "warning: this cpu has no bfloat16 products and emulates them" in resumed
    assert 'dtype = "bfloat16"' in (data_dir / "out/run/config.toml").read_text()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "teacher"])
@pytest.mark.parametrize("vocab_size", [V, 4096])
def test_every_tensor_is_made_on_the_device_of_the_model(
    form: str, vocab_size: int, monkeypatch
) -> None:
    """A dry run without data, where PyTorch refuses to mix devices: training, Muon and decoding."""
    # so that the large vocabulary takes the chunked path
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 64 * V + 1)
    # which this device does not know
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device: False)
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())
    cfg, _ = load_config([*TINY, *FORMS[form]])
    meta = torch.device("meta")
    model = GPT(cfg.model, vocab_size, cfg.tables).to(meta)
    tokens = torch.zeros(4, cfg.model.block_size, dtype=torch.int64, device=meta)
    sums = model(tokens, tokens)
    assert {number.device for number in sums} == {meta}
    sums.objective.backward()
    for optimizer in make_optimizers(model, cfg.optim):
        if isinstance(optimizer, Muon):  # AdamW is PyTorch's
            optimizer.step()
    model.eval()
    window = Window(model, Device(meta, torch.float32))
    with torch.inference_mode():
        window.prefill(tokens[:, :1])
        for _ in range(2 * cfg.model.block_size):  # it moves on
            assert window.decode(tokens[:, :1]).shape == (4, vocab_size)


@pytest.mark.parametrize(
    ("bfloat16", "capability", "dtype"),
    [
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (6, 1), torch.float32),
    ],
)
def test_what_auto_is_on_a_gpu(
    bfloat16, capability, dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An A100, a T4 and a GTX 1080, whose float16 is slow; a GPU evaluates more tokens at once."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bfloat16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    precisions: list[str] = []
    monkeypatch.setattr("torch.set_float32_matmul_precision", precisions.append)
    device = setup_device("auto", "auto")
    assert (device.torch_device.type, device.dtype, device.is_emulated, precisions) == (
        "cuda",
        dtype,
        False,
        ["high"],
    )
    assert device.eval_batch_tokens > setup_device("cpu", "float32").eval_batch_tokens


HALF = Device(CPU, torch.float16)


def test_float16_trains_with_a_loss_scale() -> None:
    """The gradients are those of float32."""
    cfg, _ = load_config([*TINY, "--form=nanogpt"])

    def gradient(dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        model = GPT(cfg.model, V)
        assert take_step(model, [], BATCH, cfg, Device(CPU, dtype)).is_valid
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return parameters_to_vector(gradients)

    exact = gradient(torch.float32)
    half = gradient(torch.float16)
    assert 0 < (half - exact).norm() < 0.01 * exact.norm()


def test_a_gradient_too_large_for_float16_changes_nothing_and_halves_the_scale() -> None:
    cfg, _ = load_config([*TINY, "--form=nanogpt"])
    torch.manual_seed(0)
    model = GPT(cfg.model, V)
    before = parameters_to_vector(model.parameters()).detach()
    state = TrainState()
    optimizers = make_optimizers(model, cfg.optim, HALF)
    result = take_step(model, optimizers, BATCH, cfg, HALF, loss_scale=2.0**40)
    state.step += 1
    state.count_step(result)
    assert not result.is_valid
    assert state.loss_scale == 2.0**14
    assert torch.equal(parameters_to_vector(model.parameters()), before)


def test_a_run_in_float16(data_dir) -> None:
    """It warns on a CPU, keeps its loss scale in the checkpoint, and resumes."""
    options = ["--corpus=text.txt", "--out_dir=out/run", "--device=cpu", *AUTO, "--dtype=float16"]
    printed = call("train.py", *options, "--max_iters=3").stdout
    assert "no float16 products and emulates them" in printed
    assert "float16: 3 steps" in printed
    call("train.py", "out/run", "--init_from=resume", "--max_iters=5")
    assert read_metrics(data_dir / "out/run")[-1]["step"] == 5


@pytest.mark.precision
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_command_works_in_each_dtype(dtype: str, data_dir: Path) -> None:
    """Train, resume, evaluate, sample, compress and export: the losses are near each other."""
    options = ["--corpus=text.txt", *TINY, "--device=cpu", f"--dtype={dtype}", "--smear=false"]
    call("train.py", *options, "--out_dir=out/run", "--max_iters=4")
    call("train.py", "out/run", "--init_from=resume", "--max_iters=6")
    final = read_metrics(data_dir / "out/run")[-1]["best_val_nll"]

    def evaluate_split(run: str, *arguments: str) -> float:
        printed = call("evaluate.py", run, "--json", *arguments).stdout
        return float(json.loads(printed)["loss"]["nats_per_token"]["value"])

    assert evaluate_split("out/run") == pytest.approx(final, abs=1e-6)
    assert evaluate_split("out/run", "--dtype=float32") == pytest.approx(final, abs=0.01)
    call("convert.py", "out/run", "exported")
    call("convert.py", "exported", "out/back")
    exact = evaluate_split("out/back", "--text=text.txt", "--dtype=float32")
    assert evaluate_split("out/back", "--text=text.txt", f"--dtype={dtype}") == pytest.approx(
        exact, abs=0.01
    )

    assert call(
        "sample.py", "out/run", "--prompt=the", f"--dtype={dtype}", "--max_new_tokens=20"
    ).stdout
    Path("part.txt").write_text(
        Path("text.txt").read_text(encoding="utf-8")[:300], encoding="utf-8"
    )
    content = Path("part.txt").read_bytes()
    call("compress.py", "out/run", "part.txt", f"--dtype={dtype}")
    Path("part.txt").unlink()
    call("compress.py", "out/run", "part.txt.srp", f"--dtype={dtype}")
    assert Path("part.txt").read_bytes() == content
