"""What a directory may be called: one place for each name, or an error at construction."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from conftest import train
from ray_imuckpt import Checkpointer, CheckpointNotFoundError, StorageError, load
from ray_imuckpt.storage import absolute, open_storage
from ray_imuckpt.storage.local import LocalStorage

STRANGE = [
    *("exp::seed1", "exp::seed2", "a?b", "a#b", "run*", "run[1]", "50%", "a%20b", "with space"),
    *("2026-01-01T10:00", "C:", "memory", "ä", "a\nb", "deep/exp::1"),
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_path_is_that_very_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever characters a local name has, it is that directory, and no other's."""
    monkeypatch.chdir(tmp_path)
    expected = f"{tmp_path}/{name}"
    for given in (name, expected, Path(name), f"file://{expected}", f"./{name}", f"x/../{name}"):
        if given == "C:":
            continue  # alone it begins like a URL
        checkpointer = Checkpointer(given)
        assert checkpointer.dir == expected
        assert pickle.loads(pickle.dumps(checkpointer)).dir == expected
        assert isinstance(checkpointer._storage(), LocalStorage)
        assert checkpointer._storage().url == expected


def test_two_names_are_two_runs(tmp_path: Path) -> None:
    """A name with `::` is not the place before it, nor another seed's."""
    model = nn.Linear(2, 2)
    with Checkpointer(f"{tmp_path}/exp::seed1") as checkpointer:
        checkpointer.checkpoint(5, model=model)
    assert Checkpointer(f"{tmp_path}/exp::seed2").start(nn.Linear(2, 2)).start_epoch == 1
    assert sorted(os.listdir(tmp_path)) == ["exp::seed1", "exp::seed2"]
    again = nn.Linear(2, 2)
    assert Checkpointer(f"{tmp_path}/exp::seed1").start(again).start_epoch == 6
    assert torch.equal(again.weight, model.weight)
    load(again, f"{tmp_path}/exp::seed1/checkpoint=5")


MEANT = {
    "s3:/bucket/x": "s3://bucket/x",
    "s3:bucket/x": "s3://bucket/x",
    "s3//bucket/x": "s3://bucket/x",
    "S3:/bucket/x": "s3://bucket/x",
    "s4://bucket/x": "s3://",
    "gss://bucket/x": "gs://",
    "word:/x": "./word:/x",
    "s3:": "./s3:",
    "s3://": "<bucket>",
    "s3:///x": "<bucket>",
    "gs:///x/y": "<bucket>",
    "file://runs/x": "file:///runs/x",
    "~nobody-of-this-name/x": "./~nobody",
    "/data/s3://bucket/x": "in the middle",
    "exp::s3://bucket/x": "in the middle",
    "zip::s3://bucket/x": "only caches",
    "dir::memory://x": "only caches",
    "memory::x": "./memory::x",
    "memory://a/x::y": "chain",
    "s3://bucket/x::y": "chain",
    "s3://bucket/../x": "depends on the store",
    "memory://a/./x": "depends on the store",
    "sftp://host/run?1": "storage_options",
    "s3://bucket/run?versionId=1": "storage_options",
    "": "'.'",
    "a\0b": "names no directory",
    "half\ud800": "half a character",
    "s3://bucket/a\nb": "control character",
    "memory://half\udcff": "control character or half a character",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_name_that_may_mean_two_places_is_refused(name: str) -> None:
    """The error says how to write what was probably meant; `load` takes the same names."""
    with pytest.raises(ValueError) as caught:
        Checkpointer(name)
    assert MEANT[name] in str(caught.value)
    with pytest.raises(ValueError, match=".") as again:
        load(nn.Linear(2, 2), name)
    assert str(again.value) == str(caught.value)


def test_a_name_is_text() -> None:
    """Bytes are no name."""
    with pytest.raises(TypeError, match="bytes"):
        Checkpointer(cast("str", b"runs"))


def test_names_that_mean_the_same_are_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemes are told apart without case; ``file:/x`` is what RFC 8089 says; `~` is home."""
    monkeypatch.setenv("HOME", "/home/me")
    for name, place in {
        "MEMORY://Bucket/x/": "memory://Bucket/x",
        "S3://Bucket/x": "s3://Bucket/x",
        "s3://bucket/50%?#*": "s3://bucket/50%?#*",
        "file:/x/y": "/x/y",
        "file:///x/y/": "/x/y",
        "FILE://localhost/x": "/x",
        "local:///x": "/x",
        "~/runs": "/home/me/runs",
        "simplecache::/x": "/x",
        "simplecache::memory://x": "simplecache::memory://x",
    }.items():
        assert absolute(name) == place
        assert absolute(place) == place


def test_a_relative_path_needs_a_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that was removed, the error says what to do; an absolute path needs none."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for use in (lambda: Checkpointer("runs"), lambda: Checkpointer().start(nn.Linear(2, 2))):
        with pytest.raises(StorageError, match="path that begins with /"):
            use()
    assert Checkpointer(tmp_path).start(nn.Linear(2, 2)).start_epoch == 1


def test_a_cache_before_a_store_is_seen_through(tmp_path: Path) -> None:
    """A cache would show a record as it was before another process replaced it."""
    behind = open_storage(f"memory://{tmp_path.name}")
    cached = open_storage(f"simplecache::memory://{tmp_path.name}")
    behind.put("m", b"old")
    assert cached.get("m") == b"old"
    behind.put("m", b"new")
    assert cached.get("m") == b"new"
    assert isinstance(open_storage(f"simplecache::file://{tmp_path}"), LocalStorage)


def test_a_checkpoint_is_not_a_directory_of_checkpoints(tmp_path: Path) -> None:
    """Neither by its name, at construction, nor by what it holds, at start; loading is well."""
    train(tmp_path / "run", 2)
    with pytest.raises(ValueError, match=r"continue_from=2 to begin") as caught:
        Checkpointer(tmp_path / "run" / "checkpoint=2")
    assert f"dir={str(tmp_path / 'run')!r}" in str(caught.value)
    with pytest.raises(ValueError, match="is a checkpoint"):
        Checkpointer("s3://bucket/run/checkpoint=7/")
    os.rename(tmp_path / "run" / "checkpoint=2", tmp_path / "best")
    before = sorted(os.listdir(tmp_path / "best"))
    uses: list[Callable[[Checkpointer], object]] = [
        lambda c: c.start(nn.Linear(2, 2)),
        lambda c: c.list_existing_checkpoint_indices(),
        lambda c: c.load(nn.Linear(2, 2)),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="the directory that holds it"):
            use(Checkpointer(tmp_path / "best"))
    assert sorted(os.listdir(tmp_path / "best")) == before
    with pytest.raises(CheckpointNotFoundError, match="no manifest"):
        Checkpointer(tmp_path / "run").load(nn.Linear(2, 2), tmp_path / "run")


def test_another_programs_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    """Only ours makes a directory a checkpoint."""
    (tmp_path / "manifest.json").write_bytes(b'{"name": "an app"}')
    assert Checkpointer(tmp_path).start(nn.Linear(2, 2)).start_epoch == 1
