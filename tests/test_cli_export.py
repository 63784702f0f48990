"""`imuckpt export`: one plain file, whole or not at all, and never over another."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from conftest import same_bytes, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.storage.local import LocalStorage
from ray_imuckpt.units import size


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Epochs 1 to 3."""
    train(tmp_path / "run", 3)
    return tmp_path / "run"


def without_links(*_: Any) -> None:
    """What a file system says that has none."""
    raise PermissionError(1, "Operation not permitted")


def test_another_reader_finds_every_weight(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under its own name, with its own bytes, frozen ones among them."""
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(directory), "3", str(file)]) == 0
    model = dict(Checkpointer(directory).read(3).model)
    assert same_bytes(safetensors.torch.load_file(file), model)
    assert capsys.readouterr().out == f"9 tensors, {size(file.stat().st_size)}: {file}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"run", file.name}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    """Tied, transposed, empty, without dimensions, of several chunks, and of odd dtypes."""
    model = nn.Module()
    large = torch.arange(5_000_001, dtype=torch.float32)
    kinds = {
        "large": large,
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7, dtype=torch.int16),
        "short": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "tied": large,
    }
    for name, tensor in kinds.items():
        model.register_buffer(name, tensor)
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.checkpoint(1, model=model)
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(tmp_path / "run"), "1", str(file)]) == 0
    exported = safetensors.torch.load_file(file)
    assert same_bytes(exported, {name: tensor.contiguous() for name, tensor in kinds.items()})


def test_shards_and_their_index_as_other_libraries_read_them(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every weight once, no file larger than said unless one tensor is; all are there or none."""
    target = tmp_path / "out" / "model.safetensors"
    target.parent.mkdir()
    command = ["export", str(directory), "3", str(target), "--max-shard-size"]
    assert main([*command, "130B"]) == 0
    index = json.loads((target.parent / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    count = len(files)
    assert count > 1
    assert files == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert capsys.readouterr().out.startswith("9 tensors, ")
    assert sorted(p.name for p in target.parent.iterdir()) == [*files, f"{target.name}.index.json"]
    model = dict(Checkpointer(directory).read(3).model)
    found: dict[str, torch.Tensor] = {}
    for name in files:
        stored = safetensors.torch.load_file(target.parent / name)
        assert {n for n, file in index["weight_map"].items() if file == name} == stored.keys()
        assert sum(t.nbytes for t in stored.values()) <= 130 or len(stored) == 1
        with safetensors.safe_open(target.parent / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        found |= stored
    assert same_bytes(found, model)
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in model.values())}

    before = {path: path.read_bytes() for path in target.parent.iterdir()}
    assert main([*command, "130B"]) == 2
    assert "It is there" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before
    assert main([*command[:3], str(tmp_path / "one.safetensors"), "--max-shard-size", "1 GB"]) == 0
    assert same_bytes(safetensors.torch.load_file(tmp_path / "one.safetensors"), model)


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0GB", "5GiB", "nan GB"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is opened, with an example."""
    with pytest.raises(SystemExit) as ended:
        main(["export", "run", "1", "file", f"--max-shard-size={text}"])
    assert ended.value.code == 2
    assert "give one such as 5GB" in capsys.readouterr().err


def test_of_shards_none_is_left_where_one_is_damaged(directory: Path, tmp_path: Path) -> None:
    """The bytes of the last tensor are altered: what was written before is removed again."""
    file = next((directory / "checkpoint=3").glob("model-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    target = tmp_path / "out" / "model.safetensors"
    target.parent.mkdir()
    assert main(["export", str(directory), "3", str(target), "--max-shard-size", "8B"]) == 2
    assert [*target.parent.iterdir()] == []


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_what_is_there_stays(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    """Status 2, also for a link that leads nowhere; nothing is left beside it."""
    target = tmp_path / "weights.safetensors"
    if there == "file":
        target.write_bytes(b"precious")
    elif there == "link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
    assert main(["export", str(directory), "3", str(target)]) == 2
    error = capsys.readouterr().err
    assert "nothing is written over it" in error
    assert str(target) in error
    assert {path.name for path in tmp_path.iterdir()} == {"run", target.name}
    assert there != "file" or target.read_bytes() == b"precious"
    assert there != "link" or not target.exists()


@pytest.mark.parametrize("links", [True, False])
def test_what_comes_meanwhile_stays(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Two exports under one name: the second one is refused in the end."""
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    target = tmp_path / "weights.safetensors"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target.write_bytes(b"precious")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(["export", str(directory), "3", str(target)]) == 2
    assert target.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"run", target.name}


def test_a_file_system_without_links(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there as well."""
    monkeypatch.setattr(os, "link", without_links)
    target = tmp_path / "weights.safetensors"
    assert main(["export", str(directory), "3", str(target)]) == 0
    model = dict(Checkpointer(directory).read(3).model)
    assert same_bytes(safetensors.torch.load_file(target), model)
    assert {path.name for path in tmp_path.iterdir()} == {"run", target.name}


def test_a_directory_that_is_not_there_is_named(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is made; of a URL it is said that a local path is wanted."""
    target = tmp_path / "nowhere" / "weights.safetensors"
    assert main(["export", str(directory), "3", str(target)]) == 2
    assert str(target) in capsys.readouterr().err
    assert not target.parent.exists()
    assert main(["export", str(directory), "3", "s3://bucket/weights.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "s3://bucket/weights.safetensors is a URL" in error
    assert "local path" in error


def test_a_damaged_model_leaves_no_file(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a model would pass for a whole one."""
    file = next((directory / "checkpoint=3").glob("model-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["export", str(directory), "3", str(tmp_path / "weights.safetensors")]) == 2
    assert "altered" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_interrupt_leaves_no_file(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the bytes are read."""
    real = LocalStorage.read_into

    def interrupted(self: LocalStorage, name: str, offset: int, *rest: Any) -> None:
        if list(tmp_path.glob("weights.safetensors.*.tmp")):
            raise KeyboardInterrupt
        real(self, name, offset, *rest)

    monkeypatch.setattr(LocalStorage, "read_into", interrupted)
    assert main(["export", str(directory), "3", str(tmp_path / "weights.safetensors")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
