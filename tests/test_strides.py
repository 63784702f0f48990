"""Strides on disk: dense ones come back, others by value, and what cannot be is damage."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer, CorruptCheckpointError
from ray_imuckpt.encoding import tree
from ray_imuckpt.encoding.tensors import encode, parse_header


def test_elements_that_share_memory_come_back_by_value(tmp_path: Path) -> None:
    """What is expanded, sliced or overlapping is not dense: it comes back contiguous, as before."""
    base = torch.arange(24.0).reshape(4, 6)
    values: dict[str, Any] = {
        "expanded": base[:1].expand(3, 6),
        "sliced": base[:, ::2],
        "transposed_slice": base[:, :3].t(),
        "overlapping": base.reshape(-1).as_strided((4, 4), (2, 1)),
        "conjugated": torch.view_as_complex(base.reshape(4, 3, 2)).t().conj(),
        "fortran": np.asfortranarray(base.numpy()),
    }
    expected = copy.deepcopy(values)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=nn.Linear(1, 1), **values)
    read = checkpointer.read(1).other
    assert same_bytes(read, expected)
    tensors = {name: value for name, value in read.items() if name != "fortran"}
    assert [n for n, t in tensors.items() if not t.is_contiguous()] == ["conjugated"]
    assert read["fortran"].flags.f_contiguous
    assert read["fortran"].flags.writeable


def test_an_array_in_the_order_of_fortran_keeps_it() -> None:
    """Sums and products of the other order differ in their last bits."""
    tensors: dict[str, torch.Tensor] = {}
    value = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    data = tree.encode(value, tensors, "x")
    assert data["order"] == "F"
    assert tree.decode(data, tensors).strides == value.strides


@pytest.mark.parametrize(
    "strides",
    [
        '{"a": [1]}', '{"a": [2, 2]}', '{"a": [1, 4]}', '{"a": [1.0, 3]}', '{"a": [true, 3]}',
        '{"a": "13"}', '{"a": 3}', '{"b": [1, 3]}', '["a"]', '{"a": [-1, 3]}', "{", '{"a": null}',
    ],
)  # fmt: skip
def test_strides_that_no_dense_tensor_has_are_damage(strides: str) -> None:
    """Nothing is made of them."""
    file = b"".join(
        view[:] for view in encode({"a": torch.ones(3, 2)}, metadata={"imuckpt.strides": strides})
    )
    with pytest.raises(CorruptCheckpointError):
        parse_header(file, len(file), "here")
