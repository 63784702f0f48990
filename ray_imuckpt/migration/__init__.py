"""Checkpoints of other programs, brought into ours. Touches pickle and torch.load, in two files.

Everywhere else no pickle is read: what is imported becomes safetensors and JSON once, and is never
looked at again. `unpickling` and `torch_files` say how those pickles are held.
"""

from __future__ import annotations

from ray_imuckpt.migration.importing import Imported, import_checkpoint

__all__ = ["Imported", "import_checkpoint"]
