"""Shard weights over the processes of a run (FSDP).

It is meant for networks too large for one GPU.

Each process holds a part of every weight, of its average and of its optimizer state; a block's weights are gathered
while it runs. Checkpoints are sharded, too, but a run can be resumed with any number of processes. What is evaluated is
unsharded. The torch modules for sharding take a second to import, so only runs that use them import them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from microdit.common.errors import listed
from microdit.model import DiT
from microdit.model.layers.blocks import DiTBlock
from microdit.training.init_weights import MAX_LISTED
from microdit.training.optim.optimizers import NORMS
from microdit.training.stored_tensors import StoredTensor, row_splits

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(accelerator: Accelerator) -> DeviceMesh:
    """Return a one-dimensional mesh of all processes of the run."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(module: nn.Module, mesh: DeviceMesh, half: bool = False) -> None:
    """Shard every weight of a module in place, block by block.

    Weights on the CPU are moved to the mesh's device one block at a time, so no device holds all of them.

    Args:
        module: a network or another part of the training state; nothing happens if it has no weights.
        mesh: the processes that share the weights.
        half: gather the blocks' matrices in bf16, for a network that runs under bf16 autocast. Its results don't
            change, since autocast rounds these matrices anyway; it computes norms in fp32, so their weights stay fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not any(True for _ in module.parameters()):
        return
    # Inputs are left to autocast: casting them would round the residual stream.
    rounded = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = rounded if half else MixedPrecisionPolicy()
    for part in [part for part in module.modules() if isinstance(part, DiTBlock)]:
        norms: list[nn.Module] = [
            norm for norm in part.modules() if isinstance(norm, NORMS) and norm.weight is not None
        ]
        if half:
            fully_shard(norms, mesh=mesh)
        fully_shard(part, mesh=mesh, mp_policy=policy)
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


def is_split(tensor: Tensor) -> bool:
    """Return whether each process holds some rows of a tensor.

    Args:
        tensor: a plain tensor or torch's DTensor.
    """
    return is_shared(tensor) and tensor.placements[0].is_shard(0)  # type: ignore[attr-defined]


def own_rows(tensor: Tensor) -> slice:
    """Return the rows that this process holds.

    Args:
        tensor: a split tensor.
    """
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    splits, rank = row_splits(len(tensor), mesh.size()), mesh.get_local_rank()
    return slice(splits[rank], splits[rank + 1])


@torch.no_grad()
def load_weights(module: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Load a state dict, tensor by tensor.

    Of a split tensor, only this process's rows are read.

    Args:
        module: the module to load into, sharded or not.
        stored: the tensors by name.

    Raises:
        ValueError: if names or shapes differ.
        CheckpointError: if a file is missing or damaged.
    """
    own = module.state_dict()
    wrong = [n for n in {**own, **stored} if n not in own or n not in stored or stored[n].shape != own[n].shape]
    if wrong:
        raise ValueError(f"names or shapes of tensors differ: {listed(sorted(wrong), MAX_LISTED)}")
    for name, tensor in own.items():
        if is_split(tensor):
            tensor.to_local().copy_(stored[name].read(own_rows(tensor)))
        else:
            tensor.copy_(stored[name].read())


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Load an optimizer state.

    Of the moments of a split parameter, only this process's rows are read.

    Args:
        optimizer: the optimizer to load into, sharded or not.
        stored: a state dict with stored tensors.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers: Iterable[int] = (number for group in stored["param_groups"] for number in group["params"])
    owners = dict(zip(numbers, parameters, strict=True))
    state = {number: _read(kept, owners[number]) for number, kept in stored["state"].items()}
    optimizer.load_state_dict({**stored, "state": state})


def _read(value: Any, owner: Tensor) -> Any:
    """Return a part of a parameter's state, with its tensors read."""
    if isinstance(value, Mapping):
        return {name: _read(part, owner) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_read(part, owner) for part in value)
    if not isinstance(value, StoredTensor):
        return value
    if value.shape != owner.shape or not is_split(owner):
        return value.read()
    from torch.distributed.tensor import DTensor

    assert isinstance(owner, DTensor)
    rows = value.read(own_rows(owner)).to(owner.device)
    mesh, placements = owner.device_mesh, owner.placements
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=owner.shape, stride=owner.stride())


def text_of_main(text: str, device: torch.device) -> str:
    """Return the main process's text.

    All processes must call it, with ASCII texts of one length.

    Args:
        text: this process's.
        device: of the communication.
    """
    sent = torch.tensor([*text.encode("ascii")], dtype=torch.uint8, device=device)
    torch.distributed.broadcast(sent, 0)
    return bytes(sent.tolist()).decode("ascii")


def texts_of_all(text: str, device: torch.device) -> list[str]:
    """Return every process's text, in order.

    All processes must call it, with ASCII texts of one length.

    Args:
        text: this process's.
        device: of the communication.
    """
    sent = torch.tensor([*text.encode("ascii")], dtype=torch.uint8, device=device)
    received = [torch.empty_like(sent) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(received, sent)
    return [bytes(part.tolist()).decode("ascii") for part in received]


@torch.no_grad()
def unsharded_copy(net: DiT) -> DiT:
    """Return a network that one process can run alone; all processes must call it.

    It is `net` itself unless its weights are sharded.
    """
    if not any(is_shared(parameter) for parameter in net.parameters()):
        return net
    copy = DiT(net.config, seed=None).to(next(net.parameters()).device)
    own = copy.state_dict()
    for name, tensor in net.state_dict().items():  # one at a time, so that no device holds the weights twice
        own[name].copy_(full_tensor(tensor))
    return copy.train(net.training)
