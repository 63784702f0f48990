"""What `export` does: a model's weights as one plain safetensors file. Touches that file."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ray_imuckpt.encoding import tensors
from ray_imuckpt.loading.stored import LoadedCheckpoint


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: The file.
        tensors: How many tensors it holds.
        size: Its bytes.
    """

    file: str
    tensors: int
    size: int


def export(loaded: LoadedCheckpoint, file: str) -> Exported:
    """Write the weights of a checkpoint's model; the memory of one model is needed.

    Args:
        loaded: The checkpoint.
        file: A local path, under which nothing is yet.

    Raises:
        FileExistsError: Something is there; it was left as it is.
        CorruptCheckpointError: The model's bytes are damaged; no file was made.
        OSError: It cannot be written; no file was left.
    """
    model = loaded.model
    with open(file, "xb") as target:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in model.items()}
            target.writelines(view[:] for view in tensors.encode(contiguous))
        except BaseException:
            os.unlink(file)  # half a file would pass for a whole one
            raise
    return Exported(file, len(model), os.path.getsize(file))
