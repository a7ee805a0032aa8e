"""Refuses a model that does not fit into memory, before it is built."""

import os
from pathlib import Path

import torch

from config.errors import UserError
from config.schema import Config
from config.size import count_params, count_table_params

# of a container
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(cfg: Config, device: torch.device) -> None:
    """Raise a UserError if a model cannot be trained in all of a device's memory.

    Counted are its weights, their gradients and the optimizers' states, in float32. The vocabulary
    may be unknown yet: it counts as one token. What a step computes needs memory too, but how much
    depends on the size of the micro-batches.
    """
    num_params = count_params(cfg.model, vocab_size=1)
    in_tables = count_table_params(cfg.tables, cfg.model.n_embd)  # which have no such copies
    copies = 4  # weights, gradients, and AdamW's two states
    if cfg.optim.optimizer == "muon":  # which has one state
        copies = 3
    needed = 4 * (copies * num_params + in_tables)
    there = total_memory(device)
    if there is not None and needed > there:
        raise UserError(
            f"a model of {num_params + in_tables:,} parameters needs at least "
            f"{needed / 1e9:,.1f} GB to be trained, and {device} has {there / 1e9:,.1f} GB: use a "
            "smaller --n_layer, --n_embd or --table_rows"
        )


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of a GPU, or of this machine or container; None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # on Windows
        return None
    for limit in map(Path, LIMITS):
        try:
            sizes.append(int(limit.read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return min(sizes)
