"""Options that do not go together, or not with this machine."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config.errors import WORLD_SIZE, did_you_mean
from config.files import is_run, nearest_run
from config.schema import Config
from config.values import TOKENIZERS


def find_conflicts(cfg: Config) -> list[str]:
    """Find combinations of options that make no sense on any machine, a line each."""
    changed = cfg.changed()
    found: list[str] = []
    if cfg.data.tokenizer != "bpe":
        found += unmet("vocab_size", changed, "--tokenizer=bpe")
    if cfg.data.markov:
        found += unmet(
            "tokenizer documents mask",
            changed,
            "another corpus: the entropy of markov is known per character of the whole text only",
        )
    if cfg.tables.are_used:
        found += unmet(
            "document_attention", changed, "--max_ngram=0: n-grams look across documents"
        )
    else:
        found += unmet(
            "table_rows table_dropout table_learning_rate", changed, "--max_ngram=2 or more"
        )
    if not cfg.loss.teacher:
        found += unmet("alpha temperature", changed, "a --teacher")
    if cfg.optim.optimizer != "muon":
        found += unmet("muon_learning_rate momentum", changed, "--optimizer=muon")
    if cfg.optim.schedule == "constant":
        found += unmet("decay_fraction min_lr_ratio", changed, "--schedule=cosine or linear")
    unit = 2 * cfg.model.n_head  # rotary positions need an even width of each head
    if cfg.model.n_embd % unit:
        nearest = max(1, round(cfg.model.n_embd / unit)) * unit
        found.append(
            f"n_embd={cfg.model.n_embd} is not a multiple of 2 n_head = {unit}; "
            f"try n_embd={nearest}"
        )
    return found


def find_problems(cfg: Config) -> list[str]:
    """Find the conflicts, and what this machine lacks for such a training, a line each."""
    changed = cfg.changed()
    found = find_conflicts(cfg)
    if cfg.data.is_jsonl:
        found += unmet(
            "documents",
            changed,
            "another corpus: the documents of this one are its records already",
        )
    if cfg.data.is_large:
        found += unmet(
            "documents mask padded predict_eos", changed, "one file of text, not compressed"
        )
    if cfg.data.eos_text is None:
        found += unmet(
            "padded predict_eos document_attention",
            changed,
            "documents: use --documents=lines or paragraphs, or a .jsonl corpus",
        )
    for name in cfg.run.watcher_names:
        # A folder of that name, such as the one that wandb writes, has no origin: it is not the
        # package.
        if name != "page" and not getattr(find_spec(name), "origin", None):
            found.append(f"watchers={name} needs its package: pip install -e '.[{name}]'")
    tokenizer = cfg.data.tokenizer
    is_known = tokenizer in TOKENIZERS or is_run(Path(tokenizer))
    if not is_known and not cfg.run.resumes:
        meant = did_you_mean(tokenizer, TOKENIZERS) or nearest_run(Path(tokenizer))
        found.append(
            f"tokenizer={tokenizer}: should be char, bpe, gpt2, or the directory of a run{meant}"
        )
    if not cfg.data.corpus:  # as in the config.toml of a converted model
        found.append("corpus is empty: name a text, --corpus=FILE")
    if cfg.optim.batch_size < WORLD_SIZE:
        found.append(
            f"batch_size={cfg.optim.batch_size} with {WORLD_SIZE} ranks: each needs a sequence of "
            "its own"
        )
    out_dir = os.path.abspath(cfg.run.out_dir)
    for teacher in cfg.loss.teachers:
        if os.path.abspath(teacher) == out_dir:
            found.append(f"teacher={teacher} is out_dir too: a run cannot be its own teacher")
    source = cfg.run.source
    if source and os.path.abspath(source) == out_dir:
        found.append(
            f"init_from={source} is out_dir too: name another --out_dir, or resume with "
            "--init_from=resume"
        )
    return found


def unmet(names: str, changed: dict[str, Any], needs: str) -> list[str]:
    """Say what those of the options need that were changed from their defaults."""
    return [f"{name}={changed[name]} needs {needs}" for name in names.split() if name in changed]
