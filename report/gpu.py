"""Measures how well a training uses its GPUs."""

import re
from collections.abc import Sequence

import torch

from engine.device import Device
from engine.metrics import Record
from engine.state import StepResult

# FLOP/s of 16-bit products without sparsity, by the makers' data sheets; the first name that fits.
PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
}
OTHERS = r"\b(MIG|Laptop|Ti|D)\b"  # a part of such a GPU, or another that has its name too


def measure_gpus(
    device: Device,
    results: Sequence[StepResult],
    *,
    step_positions: int,
    flops_per_position: int,
    steps_left: int,
) -> Record:
    """Measure tokens per second of each GPU, its memory at the peak, and its MFU; {} without GPUs.

    The model FLOPs utilisation is the share of the GPU's best FLOP/s in the model's products, where
    that is known; masked tokens and padding count. Chowdhery et al. 2022 defined it, with 12 T C
    per layer for attention. Here that is the causal half, 6 T C (config/size.py), so
    this MFU is lower than theirs and nanoGPT's. Also the seconds that the steps left will take.
    All ranks call it.
    """
    if device.torch_device.type != "cuda" or not results:
        return {}
    total_seconds = sum(result.seconds for result in results)
    step_seconds = max(1e-9, total_seconds) / len(results)
    positions_per_second = step_positions / step_seconds / device.world_size
    peak_bytes = device.max(torch.cuda.max_memory_allocated(device.torch_device))
    record = {
        "gpu_tokens_per_second": positions_per_second,
        "gpu_gigabytes": peak_bytes / 1e9,
        "seconds_left": steps_left * step_seconds,
    }
    peak_flops = find_peak(torch.cuda.get_device_name(device.torch_device))
    if peak_flops is not None:
        record["mfu"] = positions_per_second * flops_per_position / peak_flops
    return record


def find_peak(gpu: str) -> float | None:
    """Return the best FLOP/s of a GPU by its name; None if that is unknown."""
    if re.search(OTHERS, gpu):
        return None
    for name, flops in PEAKS.items():
        if re.search(rf"\b{name}\b", gpu):
            return flops
    return None
