"""How large a step is: the learning rates' share of their peak."""

import math

from config.schema import OptimConfig


def rate_scale(config: OptimConfig, step: int) -> float:
    """The share, 0 to 1, of the peak learning rates at step 0, 1, ... max_iters - 1.

    Linear warm-up, then the peak, then a linear or cosine decay over the last `decay_fraction` of
    the steps to `min_lr_ratio`.

    >>> config = OptimConfig(max_iters=10, warmup_iters=2, decay_fraction=0.5, schedule="linear")
    >>> [round(rate_scale(config, step), 2) for step in range(10)]
    [0.33, 0.67, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step < config.warmup_iters:
        return (step + 1) / (config.warmup_iters + 1)
    decay_iters = min(config.decay_fraction * config.max_iters, config.max_iters - config.warmup_iters)
    done = 1 - (config.max_iters - step) / decay_iters if decay_iters else 0.0  # of the decay
    if config.schedule == "constant" or done <= 0:
        return 1.0
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * left
