"""Host copies of tensors, from which a save writes. Touches torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor as a contiguous CPU tensor; memory is shared where it already is one."""
    return {name: _host(tensor) for name, tensor in tensors.items()}


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
