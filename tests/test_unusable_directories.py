"""Places that are missing, that cannot be read, or that cannot be written."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import train
from ray_imuckpt import Checkpointer, CheckpointNotFoundError, SaveFailedError, StorageError
from ray_imuckpt.errors import from_wire, to_wire
from ray_imuckpt.storage import in_use, open_storage


def start(directory: Path, **options: Any) -> int:
    return Checkpointer(directory, **options).start(nn.Linear(2, 2)).start_epoch


def failing(
    monkeypatch: pytest.MonkeyPatch, function: str, code: int, when: Callable[[str], bool]
) -> None:
    """Let the operating system answer `code` to calls with such a first path."""
    real = getattr(os, function)

    def fake(path: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and when(os.fspath(path)):
            raise OSError(code, os.strerror(code), path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, function, fake)


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.EACCES, "right to read and write"),
        (errno.EROFS, "read only"),
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "disk"),
    ],
)
@pytest.mark.parametrize("continue_from", ["last", "none"])
def test_start_makes_sure_that_it_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cure: str, continue_from: str
) -> None:
    """What would stop the first save is told before the first epoch, with place and cure."""
    failing(monkeypatch, "open", code, lambda path: "probe" in path)
    with pytest.raises(StorageError) as caught:
        start(tmp_path / "run", continue_from=continue_from)
    assert caught.value.url == str(tmp_path / "run")
    assert cure in str(caught.value.hint)
    assert os.strerror(code) in str(caught.value)
    assert isinstance(from_wire(to_wire(caught.value)), StorageError)


def test_a_full_disk_is_noticed_by_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may still fit where bytes do not; nothing is left."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="make room"):
        start(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


def test_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """What was written to try is gone; a directory that is missing is made, however deep."""
    assert start(tmp_path / "a" / "b" / "run") == 1
    assert os.listdir(tmp_path / "a" / "b" / "run") == []


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    """Neither a file nor what lies below one is a directory."""
    (tmp_path / "file").write_bytes(b"x")
    for name in ("file", "file/run", "file/deep/run"):
        with pytest.raises(StorageError, match="is a file"):
            start(tmp_path / name)
    with pytest.raises(StorageError, match="is a file"):
        Checkpointer(tmp_path / "file").index_of_last_checkpoint()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_what_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that may be written but not listed must not be begun anew."""
    train(tmp_path, 2)
    failing(monkeypatch, "scandir", errno.EACCES, lambda path: path == str(tmp_path))
    checkpointer = Checkpointer(tmp_path)
    for use in (
        lambda: checkpointer.start(nn.Linear(2, 2)),
        lambda: checkpointer.load(nn.Linear(2, 2)),
        checkpointer.index_of_last_checkpoint,
        checkpointer.list_existing_checkpoint_indices,
        checkpointer.path_to_last_checkpoint,
    ):
        with pytest.raises(StorageError, match="could not be listed") as caught:
            use()
        assert caught.value.url == str(tmp_path)


def test_a_checkpoint_that_cannot_be_looked_into_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest epoch is there, whoever may read it: an older one is not the last."""
    train(tmp_path, 3)
    failing(monkeypatch, "stat", errno.EACCES, lambda path: "checkpoint=3" in path)
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 3


def test_a_directory_that_is_not_there_yet_has_no_checkpoints(tmp_path: Path) -> None:
    """`None` and [] where it would be made; an error where a whole path is missing."""
    fresh = Checkpointer(tmp_path / "run")
    assert fresh.index_of_last_checkpoint() is None
    assert fresh.list_existing_checkpoint_indices() == []
    with pytest.raises(CheckpointNotFoundError):
        fresh.load(nn.Linear(2, 2))
    with pytest.raises(StorageError, match="not mounted"):
        Checkpointer(tmp_path / "disk" / "run").list_existing_checkpoint_indices()


def test_a_directory_is_used_where_nothing_temporary_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container whose root is read only a claim has no place, and goes without saying."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    assert start(tmp_path) == 1
    assert not open_storage(str(tmp_path)).claim(b"").held
    assert in_use(open_storage(str(tmp_path))) is None


# ---------------------------------------------------------------------- symbolic links


def linked(tmp_path: Path) -> tuple[Path, Path]:
    """An archive of three epochs, and a run whose first epoch is a link into it."""
    train(tmp_path / "archive", 3)
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "archive" / "checkpoint=1", tmp_path / "run" / "checkpoint=1")
    return tmp_path / "archive", tmp_path / "run"


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_prune_leaves_a_linked_checkpoint_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in a warning, the archive keeps every byte, and the rest is pruned."""
    archive, run = tmp_path / "archive", tmp_path / "run"
    train(run, 5)
    archive.mkdir()
    os.rename(run / "checkpoint=2", archive / "checkpoint=2")
    os.symlink(archive / "checkpoint=2", run / "checkpoint=2")
    before = contents(archive)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        dry = Checkpointer(run).prune(keep_last=1, dry_run=True)
        assert Checkpointer(run).prune(keep_last=1) == dry == [1, 3, 4]
    assert f"{run}/checkpoint=2: it is a symbolic link" in caplog.text
    assert Checkpointer(run).list_existing_checkpoint_indices() == [2, 5]
    assert contents(archive) == before
    Checkpointer(archive).verify(2)


def test_an_epoch_is_not_saved_through_a_link(tmp_path: Path) -> None:
    """Saving it again is an error that says what to do; the archive keeps every byte."""
    archive, run = linked(tmp_path)
    before = contents(archive)
    checkpointer = Checkpointer(run, blocking=True)
    with pytest.raises(SaveFailedError, match="Remove the link"):
        checkpointer.checkpoint(1, model=nn.Linear(2, 2))
    assert contents(archive) == before
    checkpointer.checkpoint(2, model=nn.Linear(2, 2))
    assert contents(archive) == before


@pytest.mark.parametrize("operation", ["put", "write", "copy", "delete"])
def test_nothing_is_changed_through_a_link(tmp_path: Path, operation: str) -> None:
    """Every operation of the storage that changes something refuses, each by itself."""
    from ray_imuckpt.encoding.chunks import Chunks

    archive, run = linked(tmp_path)
    before = contents(archive)
    (run / "own").mkdir()
    (run / "own" / "f").write_bytes(b"x")
    storage = open_storage(str(run))
    call: dict[str, Callable[[], Any]] = {
        "put": lambda: storage.put("checkpoint=1/manifest.json", b"x"),
        "write": lambda: storage.write("checkpoint=1/n", Chunks([b"x"]), lambda *_: None),
        "copy": lambda: storage.copy("own/f", "checkpoint=1/n"),
        "delete": lambda: storage.delete("checkpoint=1/manifest.json"),
    }
    with pytest.raises(OSError, match="symbolic link"):
        call[operation]()
    assert contents(archive) == before
    assert storage.is_link("checkpoint=1")
    assert not storage.is_link("own")


def test_a_run_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """`dir` and what lies above it may be links; a file that is one is replaced, not followed."""
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "link")
    train(tmp_path / "link" / "run", 2)
    os.symlink(tmp_path / "disk" / "run", tmp_path / "direct")
    train(tmp_path / "direct", 3)
    assert Checkpointer(tmp_path / "disk" / "run").list_existing_checkpoint_indices() == [1, 2, 3]
    (tmp_path / "elsewhere").write_bytes(b"another's")
    manifest = tmp_path / "disk" / "run" / "checkpoint=3" / "manifest.json"
    manifest.unlink()
    os.symlink(tmp_path / "elsewhere", manifest)
    Checkpointer(tmp_path / "direct", blocking=True).checkpoint(3, model=nn.Linear(2, 2))
    assert (tmp_path / "elsewhere").read_bytes() == b"another's"
    assert stat.S_ISREG(os.lstat(manifest).st_mode)
