"""Train GPT2LMHeadModel with Hugging Face's Trainer on a recipe in GPT-2 form, for bench/peers.py.

    python bench/hf_trainer.py RECIPE.toml STEPS

It prints each step's time.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from config.cli import load_config
from config.schema import ModelConfig
from data.prepare import prepare_corpus


def make_model(cfg: ModelConfig, vocab_size: int, block_size: int) -> Any:
    """Make one of random weights; its linear layers have biases, nanoGPT's recipes have none."""
    # Imported where it is used: the project does without this package.
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=block_size,
            n_embd=cfg.n_embd,
            n_layer=cfg.n_layer,
            n_head=cfg.n_head,
            resid_pdrop=cfg.dropout,
            embd_pdrop=cfg.dropout,
            attn_pdrop=cfg.dropout,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


class Windows:
    """The windows of a text, as Trainer wants them."""

    def __init__(self, tokens: np.ndarray, block_size: int) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.block_size = block_size

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        first = number * self.block_size
        window = self.tokens[first : first + self.block_size]
        return {"input_ids": window, "labels": window}


def main(recipe: str, steps: int) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        last = 0.0

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            milliseconds = 1000 * (now - self.last)
            print(f"iter {state.global_step}: time {milliseconds:.2f}ms", flush=True)
            self.last = now

    cfg = load_config([recipe])[0]
    corpus = prepare_corpus(cfg.data)
    optim = cfg.optim
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=optim.batch_size,
            max_steps=steps,
            use_cpu=True,
            learning_rate=optim.learning_rate,
            warmup_steps=optim.warmup_iters,
            lr_scheduler_type="cosine",
            weight_decay=optim.weight_decay,
            adam_beta2=optim.beta2,
            max_grad_norm=optim.grad_clip,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = make_model(cfg.model, corpus.info.vocab_size, cfg.model.block_size)
        Trainer(
            model,
            arguments,
            train_dataset=Windows(corpus.train.tokens, cfg.model.block_size),
            callbacks=[Clock()],
        ).train()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
