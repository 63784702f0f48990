"""Indices and files that somebody has forged: an error of ours, and nothing is written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    UnsupportedStateError,
    import_checkpoint,
)
from ray_imuckpt.migration import unpickling
from support.migration import write_dcp

_CLASS = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
_FUNCTION = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
_PATH = b"cpathlib\nPosixPath\n"
_W = "model/w"

Change = Callable[[Metadata], object]


def _forged(directory: Path, change: Change) -> Path:
    """Return a checkpoint of a (2, 3) and a (3,) tensor with a changed index."""
    write_dcp(directory, {_W: torch.ones(2, 3), "model/b": torch.ones(3)})
    index = pickle.loads((directory / ".metadata").read_bytes())
    change(index)
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    return directory


def _moved(index: Metadata, at: tuple[int, ...]) -> None:
    """Let the index say that the tensor's piece lies at `at`."""
    _further(index, at)
    del index.state_dict_metadata[_W].chunks[0]  # type: ignore[union-attr]


def _further(index: Metadata, at: tuple[int, ...], rows: int = 0) -> None:
    """Let the index say that the piece lies at `at` as well, of a tensor of so many rows."""
    entry: Any = index.state_dict_metadata[_W]
    there = MetadataIndex(_W, torch.Size((0, 0)))
    index.storage_data[MetadataIndex(_W, torch.Size(at))] = index.storage_data[there]
    chunk = ChunkStorageMetadata(torch.Size(at), torch.Size((2, 3)))
    entry.chunks.append(chunk)
    entry.size = torch.Size((rows, 3)) if rows else entry.size


def _of_size(*size: Any) -> Change:
    return lambda index: vars(index.state_dict_metadata[_W]).update(size=size)


def _at_path(path: Any) -> Change:
    return lambda index: index.planner_data.update({_W: path})


_NOT_WHOLE: dict[str, Change] = {
    "a piece is missing": _of_size(4, 3),
    "nearly all is missing": _of_size(2**40, 3),
    "a size like no number": _of_size("a"),
    "a size that no tensor has": _of_size(2**80, 3),
    "a negative size": _of_size(-2, 3),
    "a piece is larger": _of_size(1, 3),
    "other dimensions": _of_size(6),
    "two pieces overlap": lambda i: _further(i, (1, 0), rows=3),
    "one piece twice": lambda i: _further(i, (0, 0), rows=4),
    "a piece outside": lambda i: _moved(i, (100, 0)),
    "a piece before": lambda i: _moved(i, (-1, 0)),
    "a piece in another dimension": lambda i: _moved(i, (1,)),
    "no path": _at_path(()),
    "a path like no path": _at_path(5),
    "a path of what cannot be a name": _at_path(([],)),
}


@pytest.mark.parametrize("change", _NOT_WHOLE.values(), ids=_NOT_WHOLE)
def test_pieces_that_do_not_make_up_a_tensor(tmp_path: Path, change: Change) -> None:
    """A gap, an overlap, a size or a place that cannot be: no checkpoint that none can read."""
    source = _forged(tmp_path / "dcp", change)
    with pytest.raises(CorruptCheckpointError):
        import_checkpoint(source, tmp_path / "run", epoch=1)
    assert not (tmp_path / "run" / "checkpoint=1").exists()


_PICKLES = {
    "of a class": _CLASS + b"(N}S'attribute'\nI5\nstb.",
    "of a function": _FUNCTION + b"(N}S'__defaults__'\n(I1\nI2\ntstb.",
    "of a method's name": _CLASS + b")\x81}S'attribute'\nI5\nsb.",
    "in no form": _CLASS + b")\x81(I1\nI2\ntb.",
    "a path that doubles": b"S'"
    + b"x" * 1000
    + b"'\np0\n0"
    + b"".join(_PATH + b"(g%d\ng%d\ntRp%d\n0" % (n, n, n + 1) for n in range(40))
    + b"g40\n.",
    "a registered extension": b"\x82\x01.",
    "an object by its name": b"Pfoo\n.",
    "a list without end": b"]p0\ng0\na.",
}


def _stand_ins() -> list[Any]:
    """Return what a pickle might change of what stands for the names in it."""
    return [
        (dict(getattr(one, "__dict__", {})), getattr(one, "__defaults__", None))
        for one in unpickling.DCP_INDEX.values()
    ]


@pytest.mark.parametrize("data", _PICKLES.values(), ids=_PICKLES)
def test_a_pickle_changes_nothing_here(tmp_path: Path, data: bytes) -> None:
    """No state for what stands for a name, no memory without end; the next one is read."""
    source = _forged(tmp_path / "dcp", lambda _: None)
    index = (source / ".metadata").read_bytes()
    (source / ".metadata").write_bytes(data)
    before = _stand_ins()
    with pytest.raises(CorruptCheckpointError):
        import_checkpoint(source, tmp_path / "run", epoch=1)
    assert _stand_ins() == before
    (source / ".metadata").write_bytes(index)
    assert import_checkpoint(source, tmp_path / "run", epoch=1).tensors == 2


def _in_itself() -> Any:
    mapping: dict[str, Any] = {}
    mapping["again"] = mapping
    return mapping


def _over_and_over() -> Any:
    value: list[Any] = [1]
    for _ in range(64):
        value = [value, value]
    return value


def _deep() -> Any:
    value: Any = 1
    for _ in range(300):
        value = (value,)
    return value


def _deep_key() -> Any:
    return {_deep(): 1}


@pytest.mark.parametrize("build", [_in_itself, _over_and_over, _deep, _deep_key])
def test_a_tree_without_end(tmp_path: Path, build: Callable[[], Any]) -> None:
    """A few bytes may hold more values than there is time for: refused."""
    torch.save({"model": {"w": torch.ones(3)}, "value": build()}, tmp_path / "a.pt")
    with pytest.raises(UnsupportedStateError, match="nested too deeply, contains itself"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "run", epoch=1)


def test_an_index_that_is_a_pipe(tmp_path: Path) -> None:
    """It is not waited for."""
    (tmp_path / "dcp").mkdir()
    os.mkfifo(tmp_path / "dcp" / ".metadata")
    with pytest.raises(CorruptCheckpointError, match="no file"):
        import_checkpoint(tmp_path / "dcp", tmp_path / "run", epoch=1)


def test_a_tensor_that_repeats_its_bytes(tmp_path: Path) -> None:
    """DCP writes none: a shape that is larger than its bytes would fill the disk."""
    write_dcp(tmp_path / "dcp", {_W: torch.ones(1).expand(1000)})
    with pytest.raises(CorruptCheckpointError, match="more elements"):
        import_checkpoint(tmp_path / "dcp", tmp_path / "run", epoch=1)


def test_a_file_that_would_fill_the_disk(tmp_path: Path) -> None:
    """A tensor that repeats one element a petabyte long: refused. A few repetitions are brought."""
    save = {"model": {"w": torch.ones(2), "table": torch.ones(1, 3).expand(50, 3)}, "epoch": 1}
    torch.save(save, tmp_path / "small.pt")
    import_checkpoint(tmp_path / "small.pt", tmp_path / "run")
    assert Checkpointer(tmp_path / "run").read(1).model["table"].shape == (50, 3)
    for name in ("model", "value"):
        forged = {**save, name: {"w": torch.ones(1).expand(2**48)}, "epoch": 2}
        torch.save(forged, tmp_path / "forged.pt")
        with pytest.raises(UnsupportedStateError, match="repeat their bytes: a file of .* would"):
            import_checkpoint(tmp_path / "forged.pt", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint=1"]
