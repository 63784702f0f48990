"""What is not imported: a clear sentence, exit status 2, nothing written, and no code run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_imuckpt import Checkpointer, UnsupportedStateError, import_checkpoint
from ray_imuckpt.cli import main
from support.migration import Training, write_dcp


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _model() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, 2), "bias": torch.ones(3)}


def refused(source: Path, run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Import by the command, and return the error; nothing may have been written."""
    before = sorted(run.rglob("*")) if run.exists() else []
    assert main(["import", str(source), str(run), *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (sorted(run.rglob("*")) if run.exists() else []) == before
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize("where", ["file", "legacy", "index", "value", "tensor"])
def test_code_in_a_pickle_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """In a file, in an old one, in DCP's index, in a value and in the place of a tensor."""
    mark, source = tmp_path / "it ran", tmp_path / "source"
    if where in {"file", "legacy"}:
        zipped = where == "file"
        value = {"model": _model(), "config": Bomb(mark)}
        torch.save(value, source, _use_new_zipfile_serialization=zipped)
    else:
        values: dict[str, Any] = {f"model/{k}": v for k, v in _model().items()}
        if where == "value":
            values["config"] = Bomb(mark)
        write_dcp(source, values)
    if where == "index":
        (source / ".metadata").write_bytes(pickle.dumps(Bomb(mark)))
    if where == "tensor":
        data = bytearray((source / "__0_0.distcp").read_bytes())
        at = data.index(b"torch._utils\n_rebuild_tensor_v2")
        data[at : at + 31] = b"os\nsystem".ljust(31, b"m")
        (source / "__0_0.distcp").write_bytes(data)
    error = refused(source, tmp_path / "run", capsys, "--epoch", "1")
    assert not mark.exists()
    if where != "tensor":
        assert "posix.mkdir" in error
    assert "weights_only" not in error.replace("WeightsUnpickler", "")


def test_a_file_that_is_cut_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any kind, and at any place: never half a model."""
    run = tmp_path / "run"
    torch.save(_model(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 10):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        refused(tmp_path / "cut.pt", run, capsys, "--epoch", "1")
    values = {f"model/{k}": v for k, v in _model().items()}
    write_dcp(tmp_path / "dcp", values)
    index = (tmp_path / "dcp" / ".metadata").read_bytes()
    for length in (0, 10, len(index) - 1):
        (tmp_path / "dcp" / ".metadata").write_bytes(index[:length])
        refused(tmp_path / "dcp", run, capsys, "--epoch", "1")
    (tmp_path / "dcp" / ".metadata").write_bytes(index)
    file = tmp_path / "dcp" / "__0_0.distcp"
    pieces = file.read_bytes()
    file.write_bytes(pieces[:-20])
    assert "ends before" in refused(tmp_path / "dcp", run, capsys, "--epoch", "1")
    file.write_bytes(bytes(len(pieces)))
    refused(tmp_path / "dcp", run, capsys, "--epoch", "1")
    file.unlink()
    assert "missing" in refused(tmp_path / "dcp", run, capsys, "--epoch", "1")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    refused(tmp_path / "a.safetensors", run, capsys, "--epoch", "1")


def test_an_index_that_names_a_file_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads what lies in its directory, and nothing else."""
    write_dcp(tmp_path / "dcp", {"model/a": torch.ones(2)})
    (tmp_path / "x_0.distcp").write_bytes((tmp_path / "dcp" / "__0_0.distcp").read_bytes())
    index = (tmp_path / "dcp" / ".metadata").read_bytes()
    assert index.count(b"__0_0.distcp") == 1
    forged = index.replace(b"__0_0.distcp", b"../x_0.distc")
    (tmp_path / "dcp" / ".metadata").write_bytes(forged)
    assert "elsewhere" in refused(tmp_path / "dcp", tmp_path / "run", capsys, "--epoch", "1")


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch that exists is not written over, nor is one whose manifest is damaged."""
    there, run = Training(), tmp_path / "run"
    with Checkpointer(run) as checkpointer:
        checkpointer.checkpoint(3, model=there.model)
    torch.save({"model": _model(), "epoch": 3}, tmp_path / "a.pt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "nothing is written over it" in refused(tmp_path / "a.pt", run, capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    manifest = run / "checkpoint=3" / "manifest.json"
    manifest.write_bytes(b"damaged")
    assert "nothing is written over it" in refused(tmp_path / "a.pt", run, capsys)
    assert manifest.read_bytes() == b"damaged"


def test_what_is_missing_or_unclear_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No source, no epoch, no model, another key, a checkpoint of ours, a place far away."""
    run = tmp_path / "run"
    assert "nothing to import" in refused(tmp_path / "nowhere.pt", run, capsys)
    torch.save({"model": _model(), "config": {"a": 1}}, tmp_path / "a.pt")
    assert "--epoch N" in refused(tmp_path / "a.pt", run, capsys)
    error = refused(tmp_path / "a.pt", run, capsys, "--epoch", "1", "--model-key", "weights")
    assert "There are: model, config" in error
    error = refused(tmp_path / "a.pt", run, capsys, "--epoch", "1", "--optimizer-key", "config")
    assert "no state of an optimizer" in error
    assert "begins with 'x.'" in refused(
        tmp_path / "a.pt", run, capsys, "--epoch", "1", "--strip", "x."
    )
    torch.save({"config": {"a": 1}}, tmp_path / "b.pt")
    assert "--model-key" in refused(tmp_path / "b.pt", run, capsys, "--epoch", "1")
    torch.save([1, 2], tmp_path / "c.pt")
    assert "holds a list" in refused(tmp_path / "c.pt", run, capsys, "--epoch", "1")
    (tmp_path / "empty").mkdir()
    assert "nothing that is known" in refused(tmp_path / "empty", run, capsys, "--epoch", "1")
    with Checkpointer(tmp_path / "ours") as checkpointer:
        checkpointer.checkpoint(1, model=Training().model)
    ours = tmp_path / "ours" / "checkpoint=1"
    assert "ours already" in refused(ours, run, capsys, "--epoch", "1")
    with pytest.raises(Exception, match="Copy it here first"):
        import_checkpoint("s3://bucket/a.pt", run)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Its bytes are not the tensor's."""
    write_dcp(tmp_path / "dcp", {"model/a": torch.ones(200)})
    file = tmp_path / "dcp" / "__0_0.distcp"
    length = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    file.write_bytes(bytes(length - file.stat().st_size) + file.read_bytes())
    with pytest.raises(Exception, match="compressed"):
        import_checkpoint(tmp_path / "dcp", tmp_path / "run", epoch=1)


def test_what_torch_was_allowed_stays_allowed(tmp_path: Path) -> None:
    """The import allows harmless classes for itself alone, and takes nothing from the user."""
    torch.save({"model": _model(), "config": Bomb(tmp_path / "x")}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([zipfile.ZipInfo]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(UnsupportedStateError):
            import_checkpoint(tmp_path / "a.pt", tmp_path / "run", epoch=1)
        assert set(torch.serialization.get_safe_globals()) == before
