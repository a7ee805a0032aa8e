"""Counts the parameters and the FLOPs of a GPT by its options, before it is built."""

from config.schema import ModelConfig, TablesConfig


def count_params(cfg: ModelConfig, vocab_size: int) -> int:
    """Count the parameters of a GPT without tables, from their sizes (width = n_embd)."""
    width = cfg.n_embd
    norm = 0  # RMSNorm has no weights
    if cfg.is_gpt2:
        norm = width
    if cfg.has_bias:
        norm += width
    # Attention has 3 matrices (width, width) for q, k and v, and one after them; the MLP has 4 + 4.
    block = (3 + 1 + 4 + 4) * width**2 + 2 * norm
    if cfg.has_bias:
        block += (3 + 1 + 4 + 1) * width
    rows = vocab_size  # of tables with `width` columns: wte,
    if cfg.smear:
        rows += 1  # smear,
    if not cfg.tied:
        rows += vocab_size  # lm_head,
    if cfg.is_gpt2:
        rows += cfg.block_size  # and wpe
    return cfg.n_layer * block + rows * width + norm


def count_table_params(cfg: TablesConfig, width: int) -> int:
    """Count the parameters of the tables of n-grams, whose rows are as wide as the model."""
    num_tables = max(0, cfg.max_ngram - 1)
    return num_tables * cfg.table_rows * width


def count_flops(cfg: ModelConfig, vocab_size: int) -> int:
    """Count the FLOPs of training per position: 6 a weight, and 6 T C a layer for attention.

    The forward pass multiplies and adds once for each weight of a matrix, which is 2 FLOPs, and the
    backward pass takes twice as many. In attention a position meets T / 2 others on average, twice,
    with C features each: 2 T C FLOPs forward, 6 T C in all (Kaplan et al. 2020). Chowdhery et al.
    2022 and nanoGPT have 12 T C, because they count masked pairs too.
    """
    weights = 12 * cfg.n_layer * cfg.n_embd**2 + cfg.n_embd * vocab_size
    attention = 6 * cfg.n_layer * cfg.block_size * cfg.n_embd
    return 6 * weights + attention
