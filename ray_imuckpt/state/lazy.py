"""The shapes that lazy parameters will have, as far as they are known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

UNKNOWN = -1

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def shapes_to_be(model: nn.Module) -> dict[int, list[int]]:
    """Return ``id()`` of the lazy parameters of torch's own modules to their shapes.

    torch gives them whatever shape is loaded, also one that the module was not built for.
    `UNKNOWN` stands for the sizes that depend on the first data.
    """
    shapes: dict[int, list[int]] = {}
    for module in model.modules():
        known = _shapes(module)
        for name, parameter in module.named_parameters(recurse=False) if known else ():
            if name in known and nn.parameter.is_lazy(parameter):
                shapes[id(parameter)] = known[name]
    return shapes


def may_become(shape: Sequence[int], saved: Sequence[int]) -> bool:
    """Return whether a parameter of which `shape` is known can have the shape that was saved."""
    return len(shape) == len(saved) and all(
        known in (UNKNOWN, size) for known, size in zip(shape, saved, strict=True)
    )


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    if isinstance(module, nn.Linear):
        return {"weight": [module.out_features, UNKNOWN], "bias": [module.out_features]}
    if isinstance(module, _CONVOLUTIONS):
        weight = [module.out_channels, UNKNOWN, *module.kernel_size]
    elif isinstance(module, _TRANSPOSED):
        weight = [UNKNOWN, module.out_channels // module.groups, *module.kernel_size]
    else:
        return {}
    return {"weight": weight, "bias": [module.out_channels]}
