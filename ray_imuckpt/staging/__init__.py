"""Host copies of tensors, from which a save writes while training goes on: torch, threads."""

from __future__ import annotations

from ray_imuckpt.staging.buffers import Copy, HostBuffers
from ray_imuckpt.staging.copies import in_place
from ray_imuckpt.staging.windows import Windows

__all__ = ["Copy", "HostBuffers", "Windows", "in_place"]
