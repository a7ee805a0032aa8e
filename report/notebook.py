"""A run in a notebook: what a Model returns shows itself in Jupyter; elsewhere, print it.

model = Model("out/shakespeare_char")
model.score("To be, or not to be")
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from config.errors import UserError
from config.files import is_run, unique_names
from config.values import UnknownCharacters
from data.documents import Split
from data.info import end_of_prompt
from data.show import show_token
from data.tokenizer import Tokenizer
from data.unknown import make_replacer
from engine.checkpoint import read_model
from engine.device import setup_device
from engine.generate import generate_texts
from engine.run import Run, open_run
from engine.run_text import make_eval_text
from engine.scoring import predict, score_targets
from report.characters import draw_terminal
from report.costs import paint_costs, show_costs
from report.figures import make_figure
from report.many import make_picture
from report.picture import X_LABELS, Y_LABELS
from surprisal import LN2, bits_per_byte, perplexity

ROOT = Path(__file__).resolve().parent.parent


class Model:
    """The best or last model of a run, whose path may be relative to the repository.

    Like evaluate.py it computes where and as the run was trained, unless `device` or `dtype` say
    otherwise.
    UserError for a device or dtype that is not there.

    `gpt` is the model itself, with its weights in float32: `gpt(tokens)` takes tokens (B, T) of any
    device and returns logits (B, T, V), under every dtype. `score` and `sample` compute in the
    dtype.
    """

    def __init__(
        self, path: str | Path, checkpoint: str = "best", device: str = "", dtype: str = ""
    ) -> None:
        self.run = _open_run(path)
        trained = self.run.cfg.run
        self.device = setup_device(device or trained.device, dtype or trained.dtype)
        gpt, self.state = read_model(self.run, checkpoint)
        self.gpt = gpt.to(self.device.torch_device).eval()
        self.gpt.register_forward_pre_hook(_to_its_device)

    def __repr__(self) -> str:
        num_params = self.gpt.num_params()
        steps = self.state.step
        return f"{self.run.name}: a GPT with {num_params:,} parameters, after {steps:,} steps"

    def score(self, text: str, unknown: UnknownCharacters = "refuse") -> "ScoredText":
        """Measure what each token of a text costs, as `evaluate.py --explain` does.

        UserError for unknown characters; with unknown="replace" similar ones stand for them, or
        they are left out, and the costs are of the text that this makes.
        """
        text = self._read(text, unknown)
        if not text:
            raise UserError("score: the text is empty")
        tokens = self.run.tokenizer.encode_after_context(text)
        windows = make_eval_text(self.run, Split(np.array(tokens)))
        predictions = predict(self.gpt, windows.batches(), self.device)
        scores = score_targets(predictions, temperatures=[1.0])
        return ScoredText(tokens, scores.nll, 1 + scores.higher, self.run.tokenizer)

    def _read(self, text: str, unknown: UnknownCharacters) -> str:
        replacer = make_replacer([self.run.tokenizer], unknown)
        return text if replacer is None else replacer.replace(text)

    def sample(
        self,
        prompt: str = "",
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        *,
        seed: int = 1337,
        unknown: UnknownCharacters = "refuse",
    ) -> "SampledText":
        """Continue a prompt, which is shown too; sample.py has the same options."""
        if not (0 <= temperature < float("inf") and 0 < top_p <= 1 and top_k >= 0):
            raise UserError(
                "sample: temperature and top_k are 0 or more, and top_p is above 0 and at most 1"
            )
        prompt = self._read(prompt, unknown)
        shown = prompt
        if not prompt:  # the corpus's own may be long
            prompt = self.run.info.prompt
            shown = end_of_prompt(prompt)
        (text,) = generate_texts(
            self.gpt,
            self.run.tokenizer,
            prompt,
            self.device,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        return SampledText(shown + text)

    def curves(
        self, *others: "Model | str | Path", x: str = "step", scale: str = "log", unit: str = "nats"
    ) -> "Curves":
        """Draw the loss curves of this run and others; curves.py has the same options."""
        _check("x", x, list(X_LABELS))
        _check("scale", scale, ["log", "linear"])
        _check("unit", unit, list(Y_LABELS))
        runs = [self.run]
        for other in others:
            if isinstance(other, Model):
                runs.append(other.run)
            else:
                runs.append(_open_run(other))
        return Curves(runs, x, scale, unit)


def _check(name: str, value: str, known: list[str]) -> None:
    """Raise a UserError if an option of `Model.curves` has no such value."""
    if value not in known:
        raise UserError(f"curves: {name}={value!r}: use one of {', '.join(known)}")


def _to_its_device(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    device = next(model.parameters()).device
    return tuple(tensor.to(device) for tensor in inputs)


@dataclass(frozen=True, repr=False)
class ScoredText:
    """N tokens with their costs, after one that is their context."""

    token_ids: list[int]  # (N + 1,), the context first
    nll: np.ndarray  # (N,) nats
    rank: np.ndarray  # (N,) 1 = the token that the model held most probable
    tokenizer: Tokenizer

    @property
    def tokens(self) -> list[str]:
        """The N tokens as text, with visible line ends."""
        return [show_token(self.tokenizer, token) for token in self.token_ids[1:]]

    @property
    def bits(self) -> np.ndarray:
        """(N,) The surprisal of each token."""
        return self.nll / LN2

    @property
    def total(self) -> float:
        """Bits of the whole text."""
        return float(self.bits.sum())

    @property
    def bits_per_byte(self) -> float:
        num_bytes = self.tokenizer.count_bytes(np.array(self.token_ids[1:]))
        return bits_per_byte(float(self.nll.sum()), num_bytes)

    def summary(self) -> str:
        mean_nll = float(self.nll.mean())
        return (
            f"{self.total:.2f} bits for {len(self.nll):,} tokens: {self.bits.mean():.3f} per "
            f"token, perplexity {perplexity(mean_nll):.2f}, {self.bits_per_byte:.3f} bits per byte"
        )

    def __repr__(self) -> str:
        costs = show_costs(self.token_ids, self.bits, self.tokenizer, "bits")
        return f"{costs}\n\n{self.summary()}"

    def _repr_html_(self) -> str:
        costs = paint_costs(self.token_ids, self.bits, self.rank, self.tokenizer)
        return f"{costs}<p>{self.summary()}</p>"


class SampledText(str):
    """A text that shows itself with its line ends, not in quotes."""

    __repr__ = str.__str__


@dataclass(frozen=True, repr=False)
class Curves:
    """Loss curves from metrics.jsonl as it is now: a picture in Jupyter, characters elsewhere."""

    runs: list[Run]
    x: str
    scale: str
    unit: str

    def __repr__(self) -> str:
        return f"the loss curves of {', '.join(unique_names([run.path for run in self.runs]))}"

    def __str__(self) -> str:
        return draw_terminal(make_picture(self.runs, self.x, self.scale, self.unit))

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Draw a PNG; also returns its width on the screen, where it may have more pixels."""
        figure = make_figure(make_picture(self.runs, self.x, self.scale, self.unit))
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue(), {"width": round(100 * figure.get_figwidth())}


def _open_run(path: str | Path) -> Run:
    """Open a run by its path, or by its path in the repository.

    A notebook is often in a directory of its own.
    """
    path = Path(path).expanduser()
    if not is_run(path) and is_run(ROOT / path):
        path = ROOT / path
    return open_run(path)
