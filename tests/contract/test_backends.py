"""Every backend keeps the one contract of a storage."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from contract.conditions import ConditionContract
from contract.storage import StorageContract
from contract.subjects import (
    AzureSide,
    GoogleSide,
    LocalSide,
    MemorySide,
    MotoSide,
    SimulatedSide,
    Subject,
)
from ray_imuckpt.storage import from_arrow, open_storage
from ray_imuckpt.storage.engines import sftp_files
from servers import azurite, gcs, moto, sftp
from tools.simulated_store import Settings, SimulatedStore

pytestmark = pytest.mark.usefixtures("loopback_only")


def by_url(
    url: str, options: dict[str, Any], side: Any, *, objects: bool, missing: str = ""
) -> Subject:
    """Return what is tried at a URL; `missing` is one whose bucket is not there."""
    return Subject(
        storage=open_storage(url, options),
        side=side,
        missing=open_storage(missing or f"{url}/not/there", options),
        url=url,
        options=options,
        objects=objects,
        again=lambda: open_storage(url, options),
    )


def by_arrow(filesystem: Any, path: str, side: Any, *, objects: bool, missing: str = "") -> Subject:
    """Return what is tried on a pyarrow file system, as Ray hands it over."""
    return Subject(
        storage=from_arrow(filesystem, path),
        side=side,
        missing=from_arrow(filesystem, missing or f"{path}/not/there"),
        url=None,
        options={},
        objects=objects,
        again=lambda: from_arrow(filesystem, path),
    )


class TestLocal(StorageContract):
    """A path of the local disk."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        """A directory that is not there yet."""
        return by_url(f"{tmp_path}/run", {}, LocalSide(tmp_path / "run"), objects=False)


def not_here(*_: object, **__: object) -> None:
    """Refuse, as a file system does that lacks an operation."""
    raise OSError(errno.ENOTSUP, "not here")


class TestLocalWithoutLinks(ConditionContract):
    """A path of a file system without hard links."""

    @pytest.fixture
    def subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        """A directory that is not there yet."""
        monkeypatch.setattr(os, "link", not_here)
        return by_url(f"{tmp_path}/run", {}, LocalSide(tmp_path / "run"), objects=False)


class TestLocalWithoutLocks(ConditionContract):
    """A path of a file system without locks."""

    @pytest.fixture
    def subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        """A directory that is not there yet."""
        monkeypatch.setattr("fcntl.flock", not_here)
        return by_url(f"{tmp_path}/run", {}, LocalSide(tmp_path / "run"), objects=False)


class TestLocalByPyarrow(StorageContract):
    """The local disk as Ray hands it over, a directory of it made the root."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        """A directory that is not there yet."""
        subtree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        return by_arrow(subtree, "run", LocalSide(tmp_path / "run"), objects=False)


@pytest.fixture
def memory_root(tmp_path: Path) -> Iterator[str]:
    """Return a path of ``memory://``, which is emptied after the test."""
    yield f"/{tmp_path.name}/run"
    MemoryFileSystem.store.clear()


class TestMemory(StorageContract):
    """``memory://``."""

    @pytest.fixture
    def subject(self, memory_root: str) -> Subject:
        """A directory that holds nothing."""
        return by_url(f"memory:/{memory_root}", {}, MemorySide(memory_root), objects=False)


class TestMemoryThroughCache(StorageContract):
    """``simplecache::``, which is seen through."""

    @pytest.fixture
    def subject(self, memory_root: str) -> Subject:
        """A directory that holds nothing."""
        url = f"simplecache::memory:/{memory_root}"
        return by_url(url, {}, MemorySide(memory_root), objects=False)


class TestMemoryByPyarrow(StorageContract):
    """An fsspec file system inside of one of pyarrow's."""

    @pytest.fixture
    def subject(self, memory_root: str) -> Subject:
        """A directory that holds nothing."""
        inside = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
        return by_arrow(inside, memory_root, MemorySide(memory_root), objects=False)


class TestSimulatedS3(StorageContract):
    """S3 by the simulated store, whose listings come in small pages."""

    @pytest.fixture
    def subject(self, simulated_store: SimulatedStore) -> Subject:
        """A prefix that holds nothing."""
        simulated_store.configure(Settings(page=7))
        side = SimulatedSide(simulated_store, "runs/a")
        options = simulated_store.options
        return by_url("s3://bucket/runs/a", options, side, objects=True, missing="s3://typo/runs/a")


class TestSimulatedS3ByFsspec(StorageContract):
    """The same by s3fs, since one option has no counterpart in obstore."""

    @pytest.fixture
    def subject(self, simulated_store: SimulatedStore) -> Subject:
        """A prefix that holds nothing."""
        simulated_store.configure(Settings(page=7))
        side = SimulatedSide(simulated_store, "runs/a")
        options = simulated_store.options | {"config_kwargs": {"user_agent_extra": "tests"}}
        return by_url("s3://bucket/runs/a", options, side, objects=True, missing="s3://typo/runs/a")


class TestMotoS3(StorageContract):
    """S3 by moto's server."""

    @pytest.fixture
    def subject(self, moto_server: moto.MotoServer, tmp_path: Path) -> Subject:
        """A prefix that holds nothing."""
        root, options = f"{tmp_path.name}/run", moto_server.options
        url = f"s3://{moto.BUCKET}/{root}"
        side = MotoSide(moto_server, root)
        return by_url(url, options, side, objects=True, missing="s3://typo/runs/a")


class TestS3ByPyarrow(StorageContract):
    """S3 by pyarrow's own client, as Ray makes one of ``s3://``."""

    @pytest.fixture
    def subject(self, simulated_store: SimulatedStore) -> Subject:
        """A prefix that holds nothing."""
        filesystem = pyarrow.fs.S3FileSystem(
            access_key="nobody",
            secret_key="nothing",
            region="us-east-1",
            scheme="http",
            endpoint_override=simulated_store.endpoint.removeprefix("http://"),
        )
        side = SimulatedSide(simulated_store, "runs/a")
        return by_arrow(filesystem, "bucket/runs/a", side, objects=True, missing="typo/runs/a")


class TestAzure(StorageContract):
    """Azure's blobs by Azurite."""

    @pytest.fixture
    def subject(self, azurite_server: azurite.Azurite, tmp_path: Path) -> Subject:
        """A prefix that holds nothing."""
        root, options = f"{tmp_path.name}/run", azurite_server.options
        url = f"az://{azurite.CONTAINER}/{root}"
        side = AzureSide(azurite_server, root)
        return by_url(url, options, side, objects=True, missing="az://typo/runs/a")


class TestAzureByFsspec(StorageContract):
    """The same by adlfs, since one option has no counterpart in obstore."""

    missing_is_listed = True  # adlfs says so; `check_writable` finds it out

    @pytest.fixture
    def subject(self, azurite_server: azurite.Azurite, tmp_path: Path) -> Subject:
        """A prefix that holds nothing."""
        root = f"{tmp_path.name}/run"
        options = azurite_server.options | {"location_mode": "primary"}
        url = f"az://{azurite.CONTAINER}/{root}"
        side = AzureSide(azurite_server, root)
        return by_url(url, options, side, objects=True, missing="az://typo/runs/a")


class TestGoogle(StorageContract):
    """Google's store by fake-gcs-server."""

    @pytest.fixture
    def subject(self, google_server: gcs.GoogleServer, tmp_path: Path) -> Subject:
        """A prefix that holds nothing."""
        root, options = f"{tmp_path.name}/run", google_server.options
        url = f"gs://{gcs.BUCKET}/{root}"
        side = GoogleSide(google_server, root)
        return by_url(url, options, side, objects=True, missing="gs://typo/runs/a")


class TestSftp(StorageContract):
    """SFTP by an sshd."""

    large = 9 * 1024 * 1024  # two parts: the server of this machine is not the fastest

    @pytest.fixture
    def subject(self, sshd_server: sftp.Sshd, tmp_path: Path) -> Subject:
        """A directory that is not there yet."""
        root = sshd_server.directory / tmp_path.name / "run"
        root.parent.mkdir()
        url, options = f"sftp://127.0.0.1{root}", sshd_server.options
        return by_url(url, options, LocalSide(root), objects=False)

    @pytest.mark.parametrize("size", [10, 100_000, 10_000_000])
    def test_no_error_is_passed_over(self, sshd_server: sftp.Sshd, size: int) -> None:
        """Whichever of the requests that are under way at once it meets; and the client goes on."""
        filesystem = fsspec.filesystem("sftp", host="127.0.0.1", **sshd_server.options)
        with filesystem.open("/dev/full", "wb") as file, pytest.raises(OSError):
            sftp_files.write(file, [memoryview(bytes(size))] * 2)
        assert filesystem.exists("/dev/full")
