"""Fully sharded training, --parallel=fsdp: each rank keeps a part of the weights, gradients and optimizer states.

torch's fully_shard does the work (Zhao et al. 2023). Evaluation, sampling and checkpoints use a whole model, which each
rank has too; `gather` brings it up to date. So a checkpoint is the same file as with ddp, for any number of ranks.
"""

import copy

import torch
from torch import Tensor

from engine.distributed import Distributed, is_sharded, whole
from model import GPT

State = dict[int, dict[str, Tensor]]  # of an optimizer: for each number of a parameter, tensors by their names


def shard(model: GPT, parallel: str, dist: Distributed) -> GPT:
    """With fsdp and several ranks a copy of the model of which each rank holds a part; else the model."""
    if parallel != "fsdp" or dist.world_size == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded, mesh = copy.deepcopy(model), init_device_mesh(dist.device.type, (dist.world_size,))
    for module in (*sharded.blocks, sharded):
        module = fully_shard(module, mesh=mesh)
        # Sums, not means: each loss is already divided by the targets of the global batch.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other sum
    return sharded


@torch.no_grad()
def gather(sharded: GPT, model: GPT) -> None:
    """Copy the weights of all ranks to the whole model, if it is not the same. All ranks call it."""
    if sharded is not model:
        for part, p in zip(sharded.parameters(), model.parameters(), strict=True):
            p.copy_(whole(part))


@torch.no_grad()
def scatter(model: GPT, sharded: GPT) -> None:
    """Copy the whole model's weights to the parts, if they are not the same model."""
    if sharded is not model:
        for p, part in zip(model.parameters(), sharded.parameters(), strict=True):
            part.copy_(part_of(p, part))


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole, divided as `like` is; scalars are not divided."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_state(optimizer: torch.optim.Optimizer, dist: Distributed) -> State:
    """On rank 0 the whole state of an optimizer, on the CPU; nothing on other ranks. All ranks call it."""
    state = optimizer.state_dict()["state"]
    found: State = {index: {} for index in state}
    for index, values in state.items():
        for key, tensor in values.items():
            full = whole(tensor)
            if dist.rank == 0:
                found[index][key] = full.cpu()
    return found
