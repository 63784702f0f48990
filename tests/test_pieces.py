"""A part in several files: tensors whole in any of them, or in pieces, come back to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.encoding.tensors import Piece, encode, flat, parse_header
from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone
from ray_imuckpt.loading import filling, reader
from ray_imuckpt.loading.opening import open_checkpoint
from ray_imuckpt.storage.local import LocalStorage
from support.pieces import Cut, Sharded, Share, along, grid, whole


def build(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Parameters of all ranks, tied, frozen, in another order in memory; buffers of odd dtypes."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.conv = nn.Conv2d(4, 6, 3)
    weight = model.get_parameter("conv.weight")
    weight.data = weight.data.to(memory_format=torch.channels_last)
    model.embed = nn.Embedding(7, 5)
    model.head = nn.Linear(5, 7, bias=False)
    model.head.weight = model.embed.weight
    model.large = nn.Linear(300, 9)
    model.frozen = nn.Linear(3, 2).requires_grad_(requires_grad=False)
    model.register_buffer("phase", torch.randn(5, 3, dtype=torch.complex128))
    model.register_buffer("wave", torch.randn(4, 4, dtype=torch.complex64))
    model.register_buffer("low", torch.randn(6, 2).bfloat16())
    model.register_buffer("flags", torch.rand(5, 5) > 0.5)
    model.register_buffer("odd", torch.randint(0, 9, (3, 5), dtype=torch.int8))
    model.register_buffer("scale", torch.randint(0, 99, (4, 6)).byte().view(torch.float8_e8m0fnu))
    model.register_buffer("one", torch.randn(()))
    model.register_buffer("none", torch.randn(3, 0, 2))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.1)


def saved(directory: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Save epoch 1 after a step, and return what was saved."""
    model, optimizer = build()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    Checkpointer(directory, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, log=[1], table=torch.arange(12).reshape(3, 4)
    )
    return model, optimizer


def pinwheel(name: str, shape: tuple[int, ...]) -> list[Share]:
    """Cut one matrix in five pieces that no straight line parts."""
    if name != "large.weight":
        return whole(name, shape)
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((0, 0), (5, 100)), ((5, 0), (4, 200)), ((0, 100), (3, 200)), ((3, 200), (6, 100)),
        ((3, 100), (2, 100)),
    ]  # fmt: skip
    return [(rank % 3, *box) for rank, box in enumerate(boxes) if rank < 3] + [
        (rank, *box) for rank, box in enumerate(boxes) if rank >= 3
    ]


def all_and_nothing(name: str, shape: tuple[int, ...]) -> list[Share]:
    """Leave the whole to one rank, and to another a piece without elements."""
    if not shape or name.startswith("ranks."):
        return whole(name, shape)
    return [(0, (0,) * len(shape), shape), (2, shape, (0,) * len(shape))]


CUTS: dict[str, tuple[int, Cut]] = {
    "whole": (3, whole),
    "rows": (3, along(0, 3)),
    "columns": (3, along(-1, 3)),
    "the middle": (4, along(1, 4)),
    "a grid": (4, grid),
    "a pinwheel": (5, pinwheel),
    "more ranks than rows": (9, along(0, 9)),
    "all and nothing": (3, all_and_nothing),
}


@pytest.mark.parametrize("name", CUTS)
def test_what_was_cut_comes_back_to_the_byte(tmp_path: Path, name: str) -> None:
    """Read in fresh memory: values, dtypes, strides, ties, trees, each rank's state."""
    saved(tmp_path / "a")
    expected = Checkpointer(tmp_path / "a").read(1)
    model, optimizer, other = expected.model, expected.optimizer, expected.other
    ranks = CUTS[name][0]
    rank = expected.ranks[0]
    Sharded(tmp_path / "a" / "checkpoint=1", *CUTS[name]).write()
    checkpointer = Checkpointer(tmp_path / "a")
    checkpointer.verify(1)
    read = checkpointer.read(1)
    assert same_bytes(read.model, model)
    assert {n: t.stride() for n, t in read.model.items()} == {
        n: t.stride() for n, t in model.items()
    }
    assert read.model["head.weight"] is read.model["embed.weight"]
    assert same_bytes(read.optimizer, optimizer)
    assert same_bytes(read.other, other)
    assert read.frozen == expected.frozen
    assert len(read.ranks) == ranks
    assert all(same_bytes(state, rank) for state in read.ranks)


@pytest.mark.parametrize("name", CUTS)
def test_what_was_cut_is_restored_in_place(tmp_path: Path, name: str) -> None:
    """Into live tensors, of which rows are contiguous and columns are not."""
    expected, stepped = saved(tmp_path)
    Sharded(tmp_path / "checkpoint=1", *CUTS[name]).write()
    model, optimizer = build(seed=1)
    weight = model.get_parameter("large.weight")
    where = weight.data_ptr()
    started = Checkpointer(tmp_path).start(model, optimizer, continue_from=1)
    assert started.start_epoch == 2
    assert model.get_parameter("large.weight") is weight
    assert weight.data_ptr() == where
    assert same_bytes(dict(model.state_dict()), dict(expected.state_dict()))
    assert same_bytes(optimizer.state_dict(), stepped.state_dict())


class Pair(Alone):
    """Rank 0 of a gang of two whose other rank needs the same, and does not see the storage."""

    world_size = 2

    def all_gather(self, payload: bytes) -> list[bytes]:
        return [payload, payload[:1] + bytes(1) + payload[2:]]


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("window", [1, 4096, 64 * 2**20])
@pytest.mark.parametrize("ranks", [1, 2])
def test_pieces_go_through_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, window: int, ranks: int
) -> None:
    """As in a gang, and as if for a GPU: they begin and end anywhere, also within an element."""
    monkeypatch.setattr(filling, "WINDOW", window)
    monkeypatch.setattr(filling, "_is_on_host", lambda _: False)
    monkeypatch.setattr(reader, "_SMALL", 0)
    saved(tmp_path)
    expected = Checkpointer(tmp_path).read(1).model
    Sharded(tmp_path / "checkpoint=1", *CUTS[name]).write()
    manifest = Checkpointer(tmp_path).read(1).manifest
    gang = Gang(Pair()) if ranks == 2 else Gang()
    opened = open_checkpoint(LocalStorage(str(tmp_path / "checkpoint=1")), manifest, gang)
    assert same_bytes(opened.model, expected)


def test_pieces_lie_together() -> None:
    """Before whole tensors of the same element size, which all ranks need."""
    tensors = {
        "a.step": torch.zeros(()), "a.moment": torch.zeros(2, 3), "low": torch.zeros(1).half(),
        "b.step": torch.zeros(()), "b.moment": torch.zeros(2, 3), "n": torch.zeros(1).long(),
    }  # fmt: skip
    pieces = {name: Piece((2, 0), (4, 3)) for name in ("a.moment", "b.moment")}
    data = b"".join(bytes(view[:]) for view in encode(tensors, pieces=pieces))
    read = parse_header(data, len(data), "")
    assert [*read.tensors] == ["n", "a.moment", "b.moment", "a.step", "b.step", "low"]
    assert set(read.pieces) == set(pieces)


def test_the_model_alone_is_loaded(tmp_path: Path) -> None:
    """Nothing of the optimizer's files is read."""
    expected, _ = saved(tmp_path)
    Sharded(tmp_path / "checkpoint=1", 3, along(0, 3)).write()
    for path in (tmp_path / "checkpoint=1").glob("optimizer-*"):
        path.unlink()
    model, _ = build(seed=1)
    Checkpointer(tmp_path).load(model, 1)
    assert same_bytes(dict(model.state_dict()), dict(expected.state_dict()))


def test_a_writer_of_the_next_epoch_goes_on_from_pieces(tmp_path: Path) -> None:
    """And what it writes is whole again; the frozen part is not taken from several files."""
    saved(tmp_path)
    Sharded(tmp_path / "checkpoint=1", 3, along(0, 3)).write()
    model, optimizer = build(seed=1)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.start(model, optimizer)
    checkpointer.checkpoint(2, model=model, optimizer=optimizer)
    before, after = (Checkpointer(tmp_path).read(epoch) for epoch in (1, 2))
    assert same_bytes(after.model, before.model)
    assert {entry.rank for entry in after.manifest.files} == {0}
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [1, 2]


def test_the_command_line_reads_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`export` writes whole tensors, `diff` sees that two cuts of one model are the same."""
    saved(tmp_path / "a")
    for epoch in (2, 3):
        shutil.copytree(tmp_path / "a" / "checkpoint=1", tmp_path / "a" / f"checkpoint={epoch}")
        sharded = Sharded(tmp_path / "a" / f"checkpoint={epoch}", 3, along(epoch - 2, 3))
        sharded.manifest["epoch"] = epoch
        if epoch == 3:
            sharded.files["model", 1].tensors["large.weight"][2, 7] += 1.0
        sharded.write()
    expected = Checkpointer(tmp_path / "a").read(1).model
    assert main(["export", str(tmp_path / "a"), "2", str(tmp_path / "model.safetensors")]) == 0
    exported = load_file(tmp_path / "model.safetensors")
    assert {n: flat(t).tolist() for n, t in exported.items()} == {
        n: flat(t.contiguous()).tolist() for n, t in expected.items()
    }
    capsys.readouterr()
    assert main(["diff", str(tmp_path / "a"), "1", "2"]) == 0
    assert "large.weight" not in capsys.readouterr().out
    main(["diff", str(tmp_path / "a"), "2", "3"])
    assert "large.weight" in capsys.readouterr().out
