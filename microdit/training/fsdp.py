"""Shard weights over the processes of a run (FSDP).

It is meant for networks too large for one GPU.

Each process holds a part of every weight, of its average and of its optimizer state; a block's weights are gathered
while it runs. What is written or evaluated is unsharded, so a run can be resumed with any number of processes. The
torch modules for sharding take a second to import, so only runs that use them import them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from microdit.model import DiT
from microdit.model.layers.blocks import DiTBlock

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(accelerator: Accelerator) -> DeviceMesh:
    """Return a one-dimensional mesh of all processes of the run."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every weight of a module in place, block by block.

    Args:
        module: a network or another part of the training state; nothing happens if it has no weights.
        mesh: the processes that share the weights.
    """
    from torch.distributed.fsdp import fully_shard

    if not any(True for _ in module.parameters()):
        return
    for part in module.modules():
        if isinstance(part, DiTBlock):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_shared(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded.

    Args:
        tensor: a plain tensor or torch's DTensor.
    """
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Return an unsharded tensor; all processes must call it.

    Args:
        tensor: sharded or not.

    Returns:
        The whole tensor; an unsharded one is returned as it is.
    """
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, own: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor.

    Args:
        tensor: the whole tensor, equal in all processes.
        own: a tensor of the same shape whose sharding is used.

    Returns:
        A DTensor on the device of `own`, or `tensor` itself if `own` is not sharded.
    """
    if not is_shared(own):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the unsharded state dict of a module; all processes must call it.

    Args:
        module: sharded or not.

    Returns:
        Contiguous tensors by name.
    """
    return {name: full_tensor(tensor).detach().contiguous() for name, tensor in module.state_dict().items()}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an unsharded state dict.

    Args:
        module: the module to load into, sharded or not.
        weights: whole tensors by name, equal in all processes.
    """
    own = module.state_dict()
    module.load_state_dict({name: shard_like(t, own[name]) if name in own else t for name, t in weights.items()})


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's unsharded state dict; all processes must call it."""
    stored = optimizer.state_dict()
    state = {number: {name: _whole(value) for name, value in kept.items()} for number, kept in stored["state"].items()}
    return stored | {"state": state}


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Load an unsharded optimizer state.

    Args:
        optimizer: the optimizer to load into, sharded or not.
        stored: a state dict from `whole_optimizer`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers: Iterable[int] = (number for group in stored["param_groups"] for number in group["params"])
    owners = dict(zip(numbers, parameters, strict=True))
    state = {
        number: {
            name: shard_like(value, owners[number])
            if isinstance(value, Tensor) and value.shape == owners[number].shape
            else value
            for name, value in kept.items()
        }
        for number, kept in stored["state"].items()
    }
    optimizer.load_state_dict({**stored, "state": state})


def unsharded_copy(net: DiT) -> DiT:
    """Return a network that one process can run alone; all processes must call it.

    It is `net` itself unless its weights are sharded.
    """
    if not any(is_shared(parameter) for parameter in net.parameters()):
        return net
    copy = DiT(net.config, seed=None).to(next(net.parameters()).device)
    copy.load_state_dict(whole_weights(net))
    return copy.train(net.training)


def _whole(value: Any) -> Any:
    return full_tensor(value) if isinstance(value, Tensor) else value
