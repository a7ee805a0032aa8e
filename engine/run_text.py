"""Opens the corpus that a run was trained on, and cuts any text as the run reads it."""

from config.errors import UserError
from data.documents import Split
from data.eval_text import EvalText
from data.prepare import Corpus, prepare_corpus
from engine.run import Run


def open_corpus(run: Run) -> Corpus:
    """Open the prepared corpus of a run; UserError if its text has changed or cannot be found."""
    name = run.cfg.data.corpus
    if not run.info.has_text:
        raise UserError(
            f"{run.path}: came without the text that it was trained on; use --text=FILE"
        )
    try:
        corpus = prepare_corpus(run.cfg.data, run.tokenizer)
    except UserError as error:
        raise UserError(
            f"{error}\n  {run.path} was trained on it; if the text has moved, set corpus in "
            f"{run.path}/config.toml"
        ) from None
    if corpus.info.sha256 != run.info.sha256:
        raise UserError(
            f"{run.path}: its corpus, {name}, has changed since (sha256 was "
            f"{run.info.sha256[:8]} and is now {corpus.info.sha256[:8]})"
        )
    if corpus.tokenizer != run.tokenizer:
        raise UserError(f"{run.path}: its corpus, {name}, now has other tokens")
    return corpus


def make_eval_text(run: Run, split: Split, max_tokens: int = 0, stride: int = 0) -> EvalText:
    """Cut a text in a run's tokens into windows, to be evaluated as the run reads text."""
    eos = run.tokenizer.window_border(run.cfg.data.padded)
    return EvalText(split, run.cfg.model.block_size, eos, stride, max_tokens)
