"""Files of a part that do not make up whole tensors, checksums right: damage, before any change."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import same_bytes
from ray_imuckpt import Checkpointer, CorruptCheckpointError
from ray_imuckpt.encoding.tensors import Piece
from support.pieces import Sharded, along
from test_pieces import build, saved

W = "large.weight"  # (9, 300), three rows a rank
Change = Callable[[Sharded], object]


def model(it: Sharded, rank: int) -> Any:
    """The model's file of a rank."""
    return it.files["model", rank]


def without_piece(it: Sharded) -> None:
    """One rank's piece is nowhere."""
    del model(it, 1).tensors[W], model(it, 1).pieces[W]


def longer(it: Sharded) -> None:
    """One rank's piece has a row of the next rank's as well."""
    model(it, 1).tensors[W] = torch.zeros(4, 300)


def shorter(it: Sharded) -> None:
    """One rank's piece lacks a row."""
    model(it, 1).tensors[W] = torch.zeros(2, 300)


def same_twice(it: Sharded) -> None:
    """Two ranks hold the piece of one."""
    model(it, 1).tensors[W], model(it, 1).pieces[W] = model(it, 0).tensors[W], piece(0)


def two_copies(it: Sharded) -> None:
    """A whole tensor in the files of two ranks."""
    (rank,) = [rank for rank in range(3) if "one" in model(it, rank).tensors]
    model(it, (rank + 1) % 3).tensors["one"] = torch.zeros(())


def whole_and_pieces(it: Sharded) -> None:
    """All of a tensor in one file, and pieces of it in others."""
    model(it, 0).tensors[W] = torch.zeros(9, 300)
    del model(it, 0).pieces[W]


def huge(it: Sharded) -> None:
    """All ranks claim that the whole is larger than any memory."""
    for rank in range(3):
        model(it, rank).pieces[W] = piece(3 * rank, 10**10, 300)


def tied_over_files(it: Sharded) -> None:
    """A tied name that is that of a tensor in another file."""
    (rank,) = [rank for rank in range(3) if "one" in model(it, rank).tensors]
    model(it, (rank + 1) % 3).aliases["one"] = W


def piece(row: int, *shape: int) -> Piece:
    """A piece that begins at a row."""
    return Piece((row, 0), shape or (9, 300))


def note(text: Any) -> Change:
    """Other notes on pieces in the file of rank 1."""

    def change(it: Sharded) -> None:
        model(it, 1).pieces = {}
        model(it, 1).metadata["imuckpt.pieces"] = text if type(text) is str else json.dumps(text)

    return change


def note_of(**fields: Any) -> Change:
    """Another note on one piece."""
    return note({W: {"offset": [3, 0], "shape": [9, 300], **fields}})


def trees(change: Callable[[dict[int, Any]], object]) -> Change:
    """Other trees of the ``state`` part."""
    return lambda it: change(it.trees)


DAMAGE: dict[str, tuple[Change, str]] = {
    "a piece is missing": (without_piece, rf"{W}: its pieces hold 1800 of 2700 elements"),
    "a file is missing": (lambda it: it.files.pop(("model", 2)), "its pieces hold"),
    "a piece overlaps": (lambda it: model(it, 1).pieces.update({W: piece(2)}), "pieces overlap"),
    "a piece is longer": (longer, rf"{W}: pieces overlap .*model-\w+-1.*model-\w+-2"),
    "a piece is shorter": (shorter, "hold 2400 of 2700"),
    "a piece is there twice": (same_twice, "pieces overlap"),
    "a piece is out of bounds": (lambda it: model(it, 2).pieces.update({W: piece(7)}), "header is"),
    "a piece of another whole": (
        lambda it: model(it, 1).pieces.update({W: piece(3, 10, 300)}), "different shapes"),
    "a piece of another dtype": (
        lambda it: model(it, 1).tensors.update({W: torch.zeros(3, 300).int()}), "dtypes or strides"
    ),
    "a piece of another order in memory": (
        lambda it: model(it, 1).strides.pop("conv.weight"), "conv.weight: .*dtypes or strides"),
    "two whole copies": (two_copies, "one: it is stored twice"),
    "whole and in pieces": (whole_and_pieces, rf"{W}: it is stored twice"),
    "tied to two tensors": (
        lambda it: model(it, 1).aliases.update({"head.weight": W}), "head.weight: .*two tensors"),
    "tied under a stored name": (tied_over_files, "one: it stands for two tensors"),
    "in two parts": (
        lambda it: model(it, 0).tensors.update({"frozen.bias": torch.zeros(2)}), "in two parts"),
    "notes that differ": (
        lambda it: model(it, 1).metadata.update({"imuckpt.versions": '{"conv": 7}'}), "contradict"),
    "notes that are no JSON": (note("{"), "header is damaged"),
    "notes of a list": (note([]), "header is damaged"),
    "a note of a text": (note({W: "3"}), "header is damaged"),
    "a note on no tensor": (note({"x": {"offset": [], "shape": []}}), "header is damaged"),
    "an offset of a float": (note_of(offset=[3.5, 0]), "header is damaged"),
    "an offset of true": (note_of(offset=[True, 0]), "header is damaged"),
    "an offset below zero": (note_of(offset=[-3, 0]), "header is damaged"),
    "an offset without end": (note_of(offset=[10**30, 0]), "header is damaged"),
    "an offset of fewer dimensions": (note_of(offset=[3]), "header is damaged"),
    "a shape of more dimensions": (note_of(shape=[9, 300, 1]), "header is damaged"),
    "a shape of a text": (note_of(shape="9"), "header is damaged"),
    "no shape": (note({W: {"offset": [3, 0]}}), "header is damaged"),
    "a whole of 10 TB": (huge, "its pieces hold 2700 of 3000000000000"),
    "a rank without state": (trees(lambda t: t.pop(1)), "of 3 ranks, 2 have a state"),
    "a rank with two states": (
        trees(lambda t: t[1]["ranks"].update(t[0]["ranks"])), "ranks.0 is there twice"),
    "two logs": (trees(lambda t: t[1].update(log=[])), "log is there twice"),
    "no log": (trees(lambda t: t[0].pop("log")), "log is missing"),
    "ranks in a list": (trees(lambda t: t[1].update(ranks=[])), "wrong or missing field"),
    "trees in a list": (trees(lambda t: t.update({1: []})), "wrong or missing field"),
}  # fmt: skip


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two epochs of one model."""
    directory = tmp_path_factory.mktemp("pieces")
    saved(directory)
    checkpointer = Checkpointer(directory, blocking=True)
    live, optimizer = build(seed=2)
    checkpointer.start(live, optimizer)
    checkpointer.checkpoint(2, model=live, optimizer=optimizer)
    return directory


def sharded(committed: Path, directory: Path, change: Change | None = None) -> Path:
    """A copy whose second epoch is cut over three ranks, and then changed."""
    shutil.copytree(committed, directory / "run")
    it = Sharded(directory / "run" / "checkpoint=2", 3, along(0, 3))
    if change is not None:
        change(it)
    it.write()
    return directory / "run"


def everything(checkpointer: Checkpointer) -> tuple[Any, Any]:
    """Read all parts of the second epoch."""
    read = checkpointer.read(2)
    return read.model, read.log


def test_what_nobody_has_changed_is_sound(committed: Path, tmp_path: Path) -> None:
    """Else the rest would show nothing."""
    live, optimizer = build(seed=3)
    started = Checkpointer(sharded(committed, tmp_path)).start(live, optimizer)
    assert started.start_epoch == 3


@pytest.mark.parametrize("name", DAMAGE)
def test_it_is_damage_and_nothing_has_changed(committed: Path, tmp_path: Path, name: str) -> None:
    """Read, restored by its number, and passed over where the last is asked for."""
    change, why = DAMAGE[name]
    checkpointer = Checkpointer(sharded(committed, tmp_path, change))
    with pytest.raises(CorruptCheckpointError, match=why) as caught:
        everything(checkpointer)
    assert "checkpoint=2" in str(caught.value)
    live, optimizer = build(seed=3)
    before = {n: t.clone() for n, t in live.state_dict().items()}
    with pytest.raises(CorruptCheckpointError, match=why):
        checkpointer.start(live, optimizer, continue_from=2)
    assert same_bytes(dict(live.state_dict()), before)
    assert not optimizer.state


@pytest.mark.parametrize("name", ["a piece overlaps", "a rank without state"])
def test_the_last_sound_one_is_restored_instead(
    committed: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that says why."""
    change, why = DAMAGE[name]
    live, optimizer = build(seed=3)
    with caplog.at_level(logging.WARNING):
        started = Checkpointer(sharded(committed, tmp_path, change)).start(live, optimizer)
    assert started.start_epoch == 2
    assert any(word in caplog.text for word in (why, why.split()[0]))


@pytest.mark.parametrize("where", [40, -40], ids=["of the header", "of a tensor"])
@pytest.mark.parametrize("rank", [0, 2])
def test_altered_bytes_of_any_rank_are_found(
    committed: Path, tmp_path: Path, where: int, rank: int
) -> None:
    """By `verify` and by a restore, which goes on to the one before and makes good for it."""
    directory = sharded(committed, tmp_path)
    (path,) = (directory / "checkpoint=2").glob(f"model-*-{rank}.safetensors")
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=path.name):
        Checkpointer(directory).verify(2)
    live, optimizer = build(seed=3)
    with pytest.raises(CorruptCheckpointError, match=path.name):
        Checkpointer(directory).start(live, optimizer, continue_from=2)
    assert Checkpointer(directory).start(live, optimizer).start_epoch == 2
    expected = Checkpointer(directory).read(1).model
    assert same_bytes(dict(live.state_dict()), expected)
