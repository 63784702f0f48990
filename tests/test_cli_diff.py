"""`imuckpt diff`: what it tells, and what it reads for that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.cli.comparison import _SLICE, _slices
from ray_imuckpt.encoding.tensors import TensorInfo
from ray_imuckpt.storage.local import LocalStorage

CHUNK = 8 * 1024 * 1024
Save = Callable[..., None]


class Buffers(nn.Module):
    """A module of nothing but the given tensors."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


@pytest.fixture
def save(tmp_path: Path) -> Iterator[Save]:
    """Saves modules of buffers: ``save(epoch, {"loss": 1.0}, name=tensor)``."""
    with Checkpointer(tmp_path) as checkpointer:

        def save(epoch: int, metrics: Any = None, /, **tensors: torch.Tensor) -> None:
            checkpointer.checkpoint(epoch, model=Buffers(**tensors), metrics=metrics)
            checkpointer.wait()

        yield save


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The names and offsets of what is read of files."""
    seen: list[tuple[str, int]] = []
    real = LocalStorage.read_into

    def read_into(self: LocalStorage, name: str, offset: int, *rest: Any) -> None:
        seen.append((name, offset))
        real(self, name, offset, *rest)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    return seen


def differences(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """How epochs 1 and 2 differ, by tensor: the largest difference, as a program reads it."""
    capsys.readouterr()
    status = main(["diff", str(directory), "1", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (1 if found["differences"] else 0)
    return {row["name"]: row["largest"] for row in found["differences"]}


def test_what_a_person_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal tensors are not named; the last line counts the others."""
    train(tmp_path, 3)
    assert main(["diff", str(tmp_path), "3", "3"]) == 0
    assert capsys.readouterr().out == "0 of 9 tensors differ between 3 and 3\n"
    assert main(["diff", str(tmp_path), "1", "3"]) == 1
    out = capsys.readouterr().out
    assert "  0.weight: largest difference 0." in out
    assert "3.bias" not in out, "it is frozen"
    assert "  metric loss: 0." in out
    assert " became 0." in out
    model = small_model()
    model[0] = nn.Linear(5, 8, bias=False)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.checkpoint(5, model=model)
    assert main(["diff", str(tmp_path), "3", "5"]) == 1
    out = capsys.readouterr().out
    assert "  0.bias: only in the first\n" in out
    assert "  0.weight: torch.float32 (8, 4) became torch.float32 (8, 5)\n" in out
    assert "  metric loss: only in the first: 0." in out
    assert main(["diff", str(tmp_path), "5", "3"]) == 1
    assert "  0.bias: only in the second\n" in capsys.readouterr().out


def test_what_is_stored_elsewhere_in_the_file_is_compared_all_the_same(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another tensor before it moves all that follow."""
    tensor = torch.arange(3 * CHUNK // 4, dtype=torch.float32)
    save(1, before=torch.zeros(3), one=tensor, two=tensor + 1)
    save(2, before=torch.zeros(5), one=tensor, two=tensor + 1.5)
    assert differences(tmp_path, capsys) == {"before": None, "two": 0.5}


def test_chunks_of_the_same_checksum_are_not_read(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str], reads: list[tuple[str, int]]
) -> None:
    """Of three chunks and a header, the one that differs is, in both files."""
    tensor = torch.zeros(3 * CHUNK // 4)
    save(1, one=tensor)
    changed = tensor.clone()
    changed[CHUNK // 4 + 5] = 3.0
    save(2, one=changed)
    reads.clear()
    assert differences(tmp_path, capsys) == {"one": 3.0}
    assert sorted(offset for name, offset in reads if "model" in name) == [0, 0, CHUNK, CHUNK]


def test_a_file_is_read_once_from_front_to_back(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str], reads: list[tuple[str, int]]
) -> None:
    """Also with many tensors across the borders of chunks."""
    tensors = {f"t{i}": torch.full((CHUNK // 16 + 3,), float(i)) for i in range(9)}
    save(1, **tensors)
    save(2, **{name: tensor + 1 for name, tensor in tensors.items()})
    reads.clear()
    assert differences(tmp_path, capsys) == dict.fromkeys(tensors, 1.0)
    data = [read for read in reads if read[1]]
    assert len(data) == len(set(data)) == 4


@pytest.mark.parametrize(
    ("one", "two", "largest"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.5]), 2.5),
        (torch.tensor([0.0]), torch.tensor([-0.0]), 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 2.0]), 1.0),
        (torch.tensor([float("inf"), 1.0]), torch.tensor([float("inf"), 2.0]), 1.0),
        (torch.tensor([float("nan"), 9.0]), torch.tensor([1.0, 1.0]), "nan"),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.tensor(3 + 4j), torch.tensor(0j), 5.0),
        (torch.tensor(3 + 4j, dtype=torch.complex128), torch.zeros((), dtype=torch.complex128), 5),
        (torch.tensor([250], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8), 247.0),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16), 1.0),
        (torch.ones(2).to(torch.float8_e5m2), torch.zeros(2).to(torch.float8_e5m2), 1.0),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), None),
        (torch.ones(2), torch.ones(2, 1), None),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, torch.Tensor) else None,
)
def test_the_largest_difference(
    tmp_path: Path,
    save: Save,
    capsys: pytest.CaptureFixture[str],
    one: torch.Tensor,
    two: torch.Tensor,
    largest: Any,
) -> None:
    """Of every dtype; where both are no number, or infinite, nothing differs."""
    save(1, x=one)
    save(2, x=two)
    assert differences(tmp_path, capsys) == {"x": largest}


def test_values_that_cannot_be_subtracted_are_other_bytes(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of them in a byte: torch knows the dtype, and no values of it."""
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no such dtype")
    for epoch in (1, 2):
        save(epoch, x=torch.full((3,), epoch, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    assert differences(tmp_path, capsys) == {"x": None}
    assert main(["diff", str(tmp_path), "1", "2"]) == 1
    assert "  x: other bytes\n" in capsys.readouterr().out


@pytest.mark.parametrize("begin", [0, 64, _SLICE - 4, 3 * _SLICE, 5 * _SLICE + 64, 71])
@pytest.mark.parametrize("size", [0, 4, 100, _SLICE, 3 * _SLICE + 8])
def test_slices_cover_a_tensor_and_cut_no_element(begin: int, size: int) -> None:
    """Each byte once, in order; they end where chunks do, if elements do."""
    slices = list(_slices(TensorInfo(torch.float32, (size // 4,), begin, begin + size)))
    ends = [end for _, end in slices]
    assert [start for start, _ in slices] == [0, *ends][: len(slices)]
    assert (ends or [0])[-1] == size
    assert all(end % 4 == 0 for end in ends)
    assert begin % 4 or all((begin + end) % _SLICE == 0 for end in ends[:-1])
    assert all(0 < end - start <= _SLICE for start, end in slices)


def test_empty_tensors_are_equal(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing in them to differ."""
    save(1, x=torch.empty(0, 3), y=torch.tensor(1.0))
    save(2, x=torch.empty(0, 3), y=torch.tensor(1.0))
    assert differences(tmp_path, capsys) == {}


def test_metrics_and_versions(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each one that is not the same is named; they alone are no difference of models."""
    save(1, {"a": 1, "b": float("nan"), "c": 1, "d": 2}, x=torch.ones(2))
    save(2, {"a": 1, "b": float("nan"), "c": 2, "e": 3}, x=torch.ones(2))
    capsys.readouterr()
    assert main(["diff", str(tmp_path), "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [change["name"] for change in found["metrics"]] == ["c", "d", "e"]
    assert found["metrics"][1] == {
        "name": "d",
        "first": 2,
        "second": None,
        "only": "first",
    }
    assert found["versions"] == []


def test_damage_that_is_read_is_an_error(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is said of models whose bytes are not what was committed."""
    save(1, x=torch.zeros(4))
    save(2, x=torch.ones(4))
    file = next((tmp_path / "checkpoint=2").glob("model-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["diff", str(tmp_path), "1", "2"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert file.name in error
    assert "altered" in error
