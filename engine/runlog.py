"""What a run measured, a flat JSON object a line."""

import json
import math
import time
from pathlib import Path

from config.schema import LossConfig
from data.corpora import write_atomically
from engine.distributed import World
from engine.step import StepResult
from loss import LossMeans, divide_once
from runs import Record, read_metrics
from surprisal import bits_per_byte, perplexity, smoothed_entropy


def training_record(results: list[StepResult], since: float, config: LossConfig, vocab_size: int, world: World
                    ) -> Record:
    """Means over some steps, begun at that time.perf_counter(); rate and gradient norm are the last one's.

    Steps that were skipped measured nothing: if all were, there is no loss here, and no token a second.
    The objective comes with its parts, where it has more than the NLL; and with label smoothing, also
    with the floor H(p) under the cross-entropy of the smoothed target p, and the excess KL(p || q); with a
    teacher, also with KL(teacher || model), both softened.
    """
    loss = divide_once((sums for result in results for sums in result.sums), world.sum)  # waits for the device
    seconds = time.perf_counter() - since
    record = {"lr": results[-1].learning_rate, "tokens_per_second": loss.tokens / seconds}
    norms = [result.grad_norm for result in results if result.grad_norm is not None]
    if not norms:
        return record
    record |= {"grad_norm": float(norms[-1]), "train_nll": loss.nll, "objective": loss.objective}
    if config.label_smoothing:
        floor = smoothed_entropy(vocab_size, config.label_smoothing)
        record |= {"smoothing": loss.smoothing, "smoothed_floor": floor,
                   "smoothed_kl": loss.nll + loss.smoothing - floor}
    if config.z_loss:
        record["z_loss"] = loss.z_loss
    if config.teacher:
        record["distillation"] = loss.distillation
    if config.teacher and config.alpha:
        record["teacher_kl"] = (loss.distillation / config.alpha + loss.nll + loss.smoothing) / config.temperature**2
    return record


def validation_record(loss: LossMeans, bytes_per_token: float, floor: float | None = None) -> Record:
    """`floor` is what the text's source itself pays for the same tokens, in nats per token, where that is known."""
    record = {"val_nll": loss.nll, "val_ppl": perplexity(loss.nll), "val_accuracy": loss.accuracy,
              "val_bits_per_byte": bits_per_byte(loss.nll, bytes_per_token)}
    return record if floor is None else record | {"kl_gap": loss.nll - floor}


class RunLog:
    """Appends to metrics.jsonl; a resumed run first drops the lines after the step it goes on from."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [record for record in read_metrics(path) if record["step"] <= step] if step else []
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write(self, record: Record) -> None:
        record = {key: value for key, value in record.items() if math.isfinite(value)}  # JSON knows no NaN
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
