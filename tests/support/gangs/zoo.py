"""The ways in which a model and its optimizer may be spread over the ranks of a gang.

All layouts of `PLAIN` and `FOUR` are of one model, so that what one has saved fits all others;
those of `OTHERS` have a model of their own. Sizes do not divide: some ranks hold less, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

Run = tuple[nn.Module, torch.optim.Optimizer]
WIDTH = 6


class Block(nn.Module):
    """A residual block, with an adapter perhaps."""

    def __init__(self, width: int, *, adapter: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 8)
        self.down = nn.Linear(8, width)
        self.adapter = nn.Linear(width, width, bias=False) if adapter else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return y if self.adapter is None else y + self.adapter(x)


class Net(nn.Module):
    """Two blocks between two layers, and a buffer."""

    seen: torch.Tensor

    def __init__(self, *, adapter: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, adapter=adapter) for _ in range(2))
        self.last = nn.Linear(WIDTH, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.last(x)
        return y


class Tied(nn.Module):
    """An embedding that is the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 5, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.middle(self.embedding(x[:, 0].abs().long() % 5)))
        return y


def _mesh(*shape: int) -> DeviceMesh:
    names = ("one",) if len(shape) == 1 else ("one", "two")
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def _all() -> DeviceMesh:
    return _mesh(dist.get_world_size())


def _adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.01, **options)


def _fully(model: nn.Module, **options: Any) -> nn.Module:
    for block in model.get_submodule("blocks").children():
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def _alone() -> Run:
    model = Net()
    return model, _adamw(model)


def _ddp() -> Run:
    model = DistributedDataParallel(Net())
    return model, _adamw(model)


def _zero() -> Run:
    model = DistributedDataParallel(Net())
    return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)


def _fsdp(**options: Any) -> Run:
    model = _fully(Net(), mesh=_all(), **options)
    return model, _adamw(model)


def _mixed_precision() -> Run:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return _fsdp(mp_policy=policy)


def _offloaded() -> Run:
    return _fsdp(offload_policy=CPUOffloadPolicy(pin_memory=False))


def _recomputed() -> Run:
    model = Net()
    for number, block in enumerate(model.blocks):
        model.blocks[number] = checkpoint_wrapper(block)
    _fully(model, mesh=_all())
    return model, _adamw(model)


def _replicated_rest() -> Run:
    model = Net()
    for block in model.blocks:
        fully_shard(block, mesh=_all())
    return model, _adamw(model, foreach=False)


def _meta() -> Run:
    with torch.device("meta"):
        model = Net()
    _fully(model, mesh=_all()).to_empty(device="cpu")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            local(parameter).fill_(0.01 * (number + 1))
        model.seen.zero_()
    return model, _adamw(model)


def _adapted() -> Run:
    model = Net(adapter=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    _fully(model, mesh=_all())
    return model, _adamw(model)


def _tied() -> Run:
    model = Tied()
    fully_shard(model, mesh=_all())
    return model, _adamw(model)


def _parallel(model: Net, mesh: DeviceMesh) -> None:
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def _tensor_parallel() -> Run:
    model = Net()
    _parallel(model, _all())
    return model, _adamw(model, foreach=False)


def _hybrid() -> Run:
    model = _fully(Net(), mesh=_mesh(2, 2))
    return model, _adamw(model)


def _both() -> Run:
    mesh = _mesh(2, 2)
    model = Net()
    _parallel(model, mesh["two"])
    _fully(model, mesh=mesh["one"])
    return model, _adamw(model, foreach=False)


PLAIN: dict[str, Callable[[], Run]] = {
    "ddp": _ddp,
    "fsdp": _fsdp,
    "mixed precision": _mixed_precision,
    "offloaded": _offloaded,
    "recomputed": _recomputed,
    "replicated rest": _replicated_rest,
    "meta": _meta,
    "tensor parallel": _tensor_parallel,
    "zero": _zero,
}
FOUR: dict[str, Callable[[], Run]] = {"hybrid": _hybrid, "fsdp and tensor parallel": _both}
OTHERS: dict[str, Callable[[], Run]] = {"adapted": _adapted, "tied": _tied}
ALONE: dict[str, Callable[[], Run]] = {"alone": _alone}


def names() -> list[str]:
    """Return the layouts of the one model that this gang is large enough for."""
    return [*PLAIN, *(FOUR if dist.get_world_size() == 4 else ())]


def build(name: str, seed: int = 0) -> Run:
    """Return a model and its optimizer, spread over the ranks as the layout of that name is."""
    torch.manual_seed(seed)
    return {**PLAIN, **FOUR, **OTHERS, **ALONE}[name]()


def train(run: Run, first: int, last: int) -> None:
    """Take steps, by number; all ranks see the same data, so that what is replicated stays so."""
    model, optimizer = run
    for number in range(first, last + 1):
        optimizer.zero_grad()
        data = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(number))
        model(data).float().square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of the tensor is on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(run: Run) -> dict[str, torch.Tensor]:
    """Return the model's and the optimizer's tensors as torch has them; a collective of the gang.

    Under the name of the parameter in the bare model, that of state with its key behind.
    """
    model, optimizer = run
    by_parameter = {p: _bare(name) for name, p in model.named_parameters()}
    found: dict[str, Any] = {name: p for p, name in by_parameter.items()}
    found |= {_bare(name): buffer for name, buffer in model.named_buffers()}
    spread = isinstance(optimizer, ZeroRedundancyOptimizer)
    states: Any = optimizer.optim.state if spread else optimizer.state  # type: ignore[attr-defined]
    of_optimizer = {
        f"{by_parameter[parameter]} {key}": value
        for parameter, values in states.items()
        for key, value in values.items()
    }
    if spread:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, of_optimizer)
        of_optimizer = {key: value for held in everyone for key, value in held.items()}
    found |= of_optimizer
    return {name: _full(found[name]) for name in sorted(found)}


def _full(tensor: torch.Tensor) -> torch.Tensor:
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach().clone().contiguous()


def _bare(name: str) -> str:
    return name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")
