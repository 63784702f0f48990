"""The wrappers that torch and other packages put around models and optimizers, and their insides.

A checkpoint speaks of what is inside, so that one written under a wrapper continues under another,
and under none. Each wrapper is known by its class, which is looked for among the modules that are
loaded already: an object of a class can only exist where its module is, and importing these modules
would cost every user seconds, or packages.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# Module and class. Those of Lightning are private, as nothing public tells these wrappers from what
# is in them; what they hold is their public `module` and `optimizer`.
_FABRIC_MODULES = (
    ("lightning.fabric.wrappers", "_FabricModule"),
    ("lightning_fabric.wrappers", "_FabricModule"),
)
_OPTIMIZERS = (
    ("accelerate.optimizer", "AcceleratedOptimizer"),
    ("lightning.fabric.wrappers", "_FabricOptimizer"),
    ("lightning_fabric.wrappers", "_FabricOptimizer"),
    ("lightning.pytorch.core.optimizer", "LightningOptimizer"),
    ("pytorch_lightning.core.optimizer", "LightningOptimizer"),
)
_SCHEDULERS = (("accelerate.scheduler", "AcceleratedScheduler"),)


def loaded(module: str, name: str) -> Any:
    """Return a class for ``isinstance`` if its module was imported, else ``()``, which none is."""
    return getattr(sys.modules.get(module), name, ())


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel, ``torch.compile`` and Fabric, in any nesting."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel, *fabric_modules())):
            model = cast("nn.Module", model.module)
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) and _is_all(model):
            model = inner
        else:
            return model


def _is_all(model: nn.Module) -> bool:
    """Return whether a module has one child and nothing else, as what `torch.compile` returns."""
    itself = *model.named_parameters(recurse=False), *model.named_buffers(recurse=False)
    return not itself and len(list(model.children())) == 1


def shares_buffers(model: nn.Module) -> bool:
    """Return whether DDP gives all ranks rank 0's buffers, before each forward pass."""
    return any(
        isinstance(part, DistributedDataParallel) and part.broadcast_buffers
        for part in model.modules()
    )


def bare_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of accelerate and Lightning, in any nesting."""
    while isinstance(optimizer, _classes(_OPTIMIZERS)):
        optimizer = optimizer.optimizer
    return optimizer


def bare_object(value: Any) -> Any:
    """Return what is inside a wrapped optimizer or scheduler, or the object itself."""
    while isinstance(value, _classes(_SCHEDULERS)):
        value = value.scheduler
    return bare_optimizer(value)


def fabric_modules() -> tuple[Any, ...]:
    """Return the classes that Lightning Fabric wraps models in, as far as they are loaded."""
    return _classes(_FABRIC_MODULES)


def _classes(known: tuple[tuple[str, str], ...]) -> tuple[Any, ...]:
    found = (loaded(module, name) for module, name in known)
    return tuple(kind for kind in found if kind)
