"""What lies in a directory of an fsspec file system, and since when. Touches nothing by itself.

Uploads in parts that were never ended are S3's alone to list: Google's and Azure's stores drop them
by themselves after a week.
"""

from __future__ import annotations

import contextlib
import posixpath
from typing import Any

from ray_imuckpt.errors import StorageError
from ray_imuckpt.storage import Entry, Upload, filesystems
from ray_imuckpt.storage.client import Client
from ray_imuckpt.storage.filesystems import Kind
from ray_imuckpt.storage.refusals import store_error


def holding(client: Client, root: str, url: str, marker: str) -> list[str]:
    """See `Storage.holding`."""
    try:
        paths = client.files_below(root)
    except FileNotFoundError as error:
        _check_absent(client, root, url, error)
        if client.kind is Kind.OBJECTS:
            return []
        raise
    except OSError as error:
        raise unusable(client, url, "could not be listed", error) from error
    names = []
    for path in paths:
        if path.strip("/") == root.strip("/"):
            raise StorageError("This is a file, not a directory.", url=url, hint="Look at `dir`.")
        directory, _, name = _inside(path, root).rpartition("/")
        if name == marker and "/" not in directory:
            names.append(directory)
    return names


def _check_absent(client: Client, root: str, url: str, error: FileNotFoundError) -> None:
    """Raise unless the listing that holds this directory says that it is not there.

    On a disk that is the directory above. In an object store a directory is there by what is in
    it: the first one above that is there decides, at last the bucket.
    """
    path = root
    while parent := posixpath.dirname(path):
        try:
            names = [entry["name"].strip("/") for entry in client.entries(parent)]
        except FileNotFoundError:
            if client.kind is not Kind.OBJECTS:
                break
            if parent == "/":
                return
            path = parent
            continue
        except PermissionError:
            return  # what may not be looked at says nothing against the answer
        except OSError as failed:
            raise unusable(client, url, "could not be listed", failed) from failed
        if path.strip("/") in names:
            raise StorageError(
                "The directory is there, but its listing says that it is not.",
                url=url,
                hint="The storage contradicts itself; try again.",
            ) from error
        return
    raise unusable(client, url, "could not be listed", error) from error


def unusable(client: Client, url: str, what: str, error: OSError) -> StorageError:
    """Return what to raise when a directory cannot be used."""
    return store_error(what, url, error, objects=client.kind is Kind.OBJECTS)


def written(client: Client, path: str) -> float:
    """Return when a file was written, by the store's own clock.

    Raises:
        OSError: The store does not tell.
    """
    found = client.modified(path)
    if found is None:
        raise OSError(f"There is no telling when {path} was written")
    return found


def entries(client: Client, root: str) -> list[Entry]:
    """See `Storage.entries`."""
    try:
        found = client.details_below(root)
    except FileNotFoundError:
        return []
    named = [Entry(_inside(path, root), size, modified) for path, size, modified in found]
    return [entry for entry in named if entry.name.count("/") < 2]


def uploads(client: Client, root: str) -> list[Upload]:
    """See `Storage.uploads`."""
    if not filesystems.speaks_s3(client.filesystem):
        return []
    bucket, _, prefix = root.strip("/").partition("/")
    found: list[Upload] = []
    page: dict[str, Any] = {}
    while True:
        asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **page}
        with client.calling() as filesystem:
            answer = filesystem.call_s3("list_multipart_uploads", **asked)
        for upload in answer.get("Uploads", []):
            name = upload["Key"].removeprefix(asked["Prefix"])
            found.append(Upload(name, upload["UploadId"], upload["Initiated"].timestamp()))
        if not answer.get("IsTruncated"):
            return found
        page = {
            "KeyMarker": answer["NextKeyMarker"],
            "UploadIdMarker": answer["NextUploadIdMarker"],
        }


def abort(client: Client, path: str, upload: Upload) -> None:
    """See `Storage.abort`."""
    if not filesystems.speaks_s3(client.filesystem):
        return
    bucket, _, key = path.strip("/").partition("/")
    with contextlib.suppress(FileNotFoundError), client.calling() as filesystem:
        filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)


def _inside(path: str, root: str) -> str:
    return path.strip("/").removeprefix(root.strip("/")).strip("/")
