"""How well a training uses its GPUs."""

import re
from collections.abc import Sequence

import torch

from config.schema import OptimConfig
from engine.device import Device
from engine.metrics import Record
from engine.state import StepResult
from model import GPT

# FLOP/s of 16-bit products without sparsity, by the makers' data sheets; the first name that fits
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


def gpu_record(
    device: Device, model: GPT, results: Sequence[StepResult], optim: OptimConfig, step: int
) -> Record:
    """For each GPU: tokens per second, its memory at the peak, and the MFU, where its best is
    known; {} without GPUs.

    The model FLOPs utilisation is the share of the GPU's best FLOP/s in the model's products;
    masked tokens and padding count. Chowdhery et al. 2022 defined it, with 12 T C per layer for
    attention. Here that is the causal half, 6 T C (ModelConfig.flops_per_token), so this MFU is
    lower than theirs and nanoGPT's. Also the seconds that the steps left will take. All ranks call
    it.
    """
    if device.torch_device.type != "cuda" or not results:
        return {}
    seconds = max(1e-9, sum(result.seconds for result in results)) / len(results)  # of a step
    each = optim.batch_size * model.cfg.block_size / seconds / device.world_size
    name = torch.cuda.get_device_name(device.torch_device)
    known = (
        []
        if re.search(OTHERS, name)
        else [PEAKS[gpu] for gpu in PEAKS if re.search(rf"\b{gpu}\b", name)]
    )
    used = device.max(torch.cuda.max_memory_allocated(device.torch_device)) / 1e9
    record = {
        "gpu_tokens_per_second": each,
        "gpu_gigabytes": used,
        "seconds_left": (optim.max_iters - step) * seconds,
    }
    return record | ({"mfu": each * model.flops_per_token() / known[0]} if known else {})
