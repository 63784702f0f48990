"""Stand-ins for wrappers of packages that are not installed here: the attributes, nothing else.

Each has the attributes, properties and pass-throughs of the class it is named after (accelerate
1.15, Lightning 2.6).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


class FabricModule(nn.Module):
    """As ``lightning.fabric.wrappers._FabricModule``."""

    def __init__(self, forward_module: nn.Module, original_module: nn.Module) -> None:
        super().__init__()
        self._forward_module = forward_module
        self._original_module = original_module

    @property
    def module(self) -> nn.Module:
        return self._original_module

    def forward(self, *args: Any) -> Any:
        return self._forward_module(*args)

    def state_dict(self, **options: Any) -> Any:
        return self._original_module.state_dict(**options)

    def load_state_dict(self, state: Any, strict: bool = True, **options: Any) -> Any:  # type: ignore[override]
        return self._original_module.load_state_dict(state, strict=strict, **options)


class LightningOptimizer:
    """As Lightning's; `load_state_dict` is inherited, and would load the wrapper alone."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        kind = type(optimizer)
        self.__class__ = type(f"Fabric{kind.__name__}", (type(self), kind), {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class FabricOptimizer(LightningOptimizer):
    """As ``lightning.fabric.wrappers._FabricOptimizer``."""

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As accelerate's; it does not call ``torch.optim.Optimizer.__init__``."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.optimizer.param_groups = groups

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class AcceleratedScheduler:
    """As accelerate's, no scheduler of torch's."""

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        self.scheduler = scheduler

    def step(self) -> None:
        self.scheduler.step()

    def state_dict(self) -> Any:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.scheduler.load_state_dict(state)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-ins be found where the real ones would be."""
    modules: dict[str, dict[str, object]] = {
        "lightning.fabric.wrappers": {
            "_FabricModule": FabricModule,
            "_FabricOptimizer": FabricOptimizer,
        },
        "lightning.pytorch.core.optimizer": {"LightningOptimizer": LightningOptimizer},
        "accelerate.optimizer": {"AcceleratedOptimizer": AcceleratedOptimizer},
        "accelerate.scheduler": {"AcceleratedScheduler": AcceleratedScheduler},
    }
    for name, classes in modules.items():
        module = ModuleType(name)
        vars(module).update(classes)
        monkeypatch.setitem(sys.modules, name, module)
