"""Lets torchrun's processes meet, compare their options, and notice that one is gone."""

import atexit
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from config.errors import RANK, START_RANKS, WORLD_SIZE, UserError, first_line


def join_ranks(backend: str, options: dict[str, Any]) -> None:
    """Meet the other ranks; UserError if they have other options.

    torchrun keeps the addresses of dead ranks: each restart uses a prefix of its own.
    """
    try:
        store, *_ = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"rank {RANK} could not meet the others at MASTER_ADDR:MASTER_PORT = {place} "
            f"({first_line(error):.150}); {START_RANKS}"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = PrefixStore(f"attempt {attempt}", store)
    if store.add(f"processes of rank {RANK}", 1) > 1:
        raise UserError(f"another process has RANK={RANK} too; {START_RANKS}")
    _compare_options(store, options)
    patience = timedelta(hours=2)  # rank 0 may prepare a corpus meanwhile
    dist.init_process_group(
        backend, store=store, rank=RANK, world_size=WORLD_SIZE, timeout=patience
    )
    atexit.register(dist.destroy_process_group)


def _compare_options(store: Store, options: dict[str, Any]) -> None:
    """Raise a UserError on all ranks if one of them has other options than rank 0."""
    texts = {name: json.dumps(value) for name, value in options.items()}
    store.set(f"options of rank {RANK}", json.dumps(texts))
    expected = json.loads(store.get("options of rank 0"))
    for rank in range(1, WORLD_SIZE):
        found = json.loads(store.get(f"options of rank {rank}"))
        differ = []
        for name in expected | found:
            first = expected.get(name)
            other = found.get(name)
            if first != other:
                differ.append(f"{name} is {first} on rank 0 and {other} on rank {rank}")
        if not differ:
            continue
        store.set(f"rank {RANK} knows", "")
        # rank 0 has the store: it ends after the others have read it
        everyone = [f"rank {number} knows" for number in range(WORLD_SIZE)]
        with suppress(RuntimeError):
            store.wait(everyone, timedelta(seconds=10))
        raise UserError(
            f"the ranks differ: {'; '.join(differ)}; start all of them with the same options"
        )


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Raise a UserError if another rank is gone, which the next exchange with it shows."""
    try:
        yield
    except RuntimeError as error:
        signs = r"gloo|nccl|connection|timed? ?out|socket|store"
        is_gone = WORLD_SIZE > 1 and re.search(signs, str(error), re.IGNORECASE)
        if not is_gone or "out of memory" in str(error):
            raise
        raise UserError(
            f"another process of this training is gone ({first_line(error):.120}); start all of "
            "them again with --init_from=resume, or let torchrun do that: torchrun "
            "--max-restarts=3 ... --init_from=auto"
        ) from None
