"""Files of more than one part by way of fsspec: sent side by side where the store lets one.

Object stores publish an object when its upload is completed, never before. fsspec's buffered files
complete the upload when they are closed, *also after an error*
(``AbstractBufferedFile.__exit__`` calls ``close``), which would publish a truncated object: on an
error the upload is given up instead.

s3fs sends the parts of one object in groups, each of which waits for its slowest, and adlfs one
after the other: here each is sent as soon as a connection is free, out of the memory where it lies.
Google's store takes the parts of an object in their order alone (the engine of obstore speaks its
other protocol).
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.arrow import ArrowFSWrapper

from ray_imuckpt.storage.engines import filesystems, sftp_files
from ray_imuckpt.storage.engines.bodies import Body
from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import MIB, Kind, Source
from ray_imuckpt.storage.engines.retrying import Judge, patiently
from ray_imuckpt.storage.entries import Upload
from ray_imuckpt.threads.parallel import each

_PUT_WHOLE = 40 * MIB  # an object up to this size is sent by one call where parts have an order
_COPIES = 3  # of what is sent at once: ours, the client's with its headers, the connection's
_AHEAD = 112 * MIB  # of a stream of pyarrow's, which has up to two of its parts beside them


class Caller(Judge, Protocol):
    """The engine that an upload belongs to, as far as it needs it."""

    filesystem: fsspec.AbstractFileSystem
    kind: Kind
    budget: Budget
    writers: int

    def calling(self) -> AbstractContextManager[fsspec.AbstractFileSystem]:
        """Hold the file system for this thread."""

    def put(self, path: str, data: bytes) -> None:
        """Create or replace a file by one request."""


def upload(engine: Caller, path: str, source: Source, patience: Patience) -> None:
    """Create or replace a file; see `Engine.upload`."""
    if filesystems.is_s3fs(engine.filesystem):
        _to_s3(engine, path, source, patience)
    elif filesystems.speaks_azure(engine.filesystem) and source.size > source.part_size:
        _to_azure(engine, path, source, patience)
    elif isinstance(engine.filesystem, ArrowFSWrapper) and source.size > source.part_size:
        with engine.budget.taken(min(source.size, _AHEAD)):
            _as_stream(engine, path, source, _Bounded().write)
    elif engine.kind is Kind.OBJECTS and source.size <= _PUT_WHOLE:
        with engine.budget.taken(_COPIES * source.size):
            engine.put(path, b"".join(view for views in source.parts() for view in views))
    else:
        write = sftp_files.write if filesystems.speaks_sftp(engine.filesystem) else _write
        with engine.budget.taken(_COPIES * source.part_size):
            _as_stream(engine, path, source, write)


def _to_s3(engine: Caller, path: str, source: Source, patience: Patience) -> None:
    bucket, key, _ = engine.filesystem.split_path(path)
    where = {"Bucket": bucket, "Key": key}
    sync(engine.filesystem.loop, _announce_nothing, engine.filesystem, bucket)
    if source.size <= source.part_size:
        _whole_to_s3(engine, where, source)
        return

    def ask(what: str, method: str, **more: Any) -> Any:
        call = partial(_s3, engine, method, **where, **more)
        return patiently(patience, engine, f"{what} {path}", call)

    upload_id = ask("Beginning", "create_multipart_upload")["UploadId"]
    try:

        def send(number: int, body: Body) -> str:
            part = {**where, "UploadId": upload_id, "PartNumber": number}
            return str(_s3(engine, "upload_part", **part, Body=body)["ETag"])

        tags = _side_by_side(engine, path, source, patience, send)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        upload = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        ask("Completing", "complete_multipart_upload", **upload)
    except BaseException:
        with contextlib.suppress(Exception):  # what is not given up here is swept a day later
            _s3(engine, "abort_multipart_upload", **where, UploadId=upload_id)
        raise


def _whole_to_s3(engine: Caller, where: dict[str, str], source: Source) -> None:
    with engine.budget.taken():
        views = [view for views in source.parts() for view in views]
        _s3(engine, "put_object", **where, Body=Body(views) if source.size else b"")


async def _announce_nothing(filesystem: Any, bucket: str) -> None:
    """Let a client send bodies at once.

    botocore announces what is no ``bytes`` by a header, and aiohttp waits, without an end, until
    the store says that it goes on: a round trip for each part, and some know nothing of it.
    """
    await filesystem.set_session()
    client = await filesystem.get_s3(bucket)
    event = "before-call.s3"
    client.meta.events.register_last(event, _without_expect, unique_id="ray_imuckpt")


def _without_expect(params: dict[str, Any], **_: Any) -> None:
    params["headers"].pop("Expect", None)


def _s3(engine: Caller, method: str, **parameters: Any) -> Any:
    with engine.calling() as filesystem:
        return filesystem.call_s3(method, **parameters)


def _to_azure(engine: Caller, path: str, source: Source, patience: Patience) -> None:
    """Stage blocks, then commit their list: what is not committed goes after a week."""
    filesystem = engine.filesystem
    container, blob, _ = filesystem.split_path(path)

    def call(method: str, *arguments: Any) -> None:
        async def send() -> None:
            async with filesystem.service_client.get_blob_client(container, blob) as client:
                await getattr(client, method)(*arguments, retry_total=0)  # but ours

        with engine.calling():
            sync(filesystem.loop, send)

    def stage(number: int, body: Body) -> str:
        name = base64.b64encode(f"{number:016}".encode()).decode()
        call("stage_block", name, body)
        return name

    from azure.storage.blob import BlobBlock

    blocks = [BlobBlock(name) for name in _side_by_side(engine, path, source, patience, stage)]
    patiently(patience, engine, f"Completing {path}", lambda: call("commit_block_list", blocks))


def _side_by_side(
    engine: Caller,
    path: str,
    source: Source,
    patience: Patience,
    send: Callable[[int, Body], str],
) -> list[str]:
    """Send all parts, none of them copied, and return what `send` returned."""
    parts = enumerate(source.parts(), 1)
    count = -(-source.size // source.part_size)
    answers = [""] * count
    turn = threading.Lock()

    def one(_: int) -> None:
        with engine.budget.taken():
            with turn:  # parts come in their order, whoever takes them
                number, views = next(parts)
            what = f"Sending part {number} of {path}"
            answers[number - 1] = patiently(
                patience, engine, what, lambda: send(number, Body(views))
            )

    each(one, count, engine.writers)
    return answers


def _as_stream(
    engine: Caller, path: str, source: Source, write: Callable[[Any, list[memoryview]], None]
) -> None:
    with engine.calling() as filesystem:
        file = filesystem.open(path, "wb")
    try:
        for views in source.parts():
            with engine.calling():
                write(file, views)
        with engine.calling():
            file.close()
    except BaseException:
        _abandon(file)
        raise


def _write(file: Any, views: Sequence[memoryview]) -> None:
    for view in views:
        file.write(view)


class _Bounded:
    """Writes to one stream of pyarrow's, which copies what it is given until that has been sent.

    It sends several parts of ten MB at once: a file is sent fast, and one after the other.
    """

    def __init__(self) -> None:
        self._ahead = 0

    def write(self, file: Any, views: Sequence[memoryview]) -> None:
        """Write views, and wait where too much has not been sent."""
        _write(file, views)
        self._ahead += sum(map(len, views))
        if self._ahead >= _AHEAD:
            file.stream.flush()  # returns when nothing is left to send
            self._ahead = 0


def _abandon(file: Any) -> None:
    """Give up an upload; where that cannot be told, complete it, to be removed by the caller."""
    with contextlib.suppress(Exception):
        if hasattr(file, "discard"):
            file.discard()
            file.closed = True  # or the garbage collector's close() would still complete it
        else:
            file.close()


def unfinished(engine: Caller, root: str) -> list[Upload]:
    """Return what S3 lists; Google's and Azure's stores drop such uploads after a week."""
    if not filesystems.speaks_s3(engine.filesystem):
        return []
    bucket, _, prefix = root.strip("/").partition("/")
    uploads: list[Upload] = []
    page: dict[str, Any] = {}
    while True:
        asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **page}
        answer = _s3(engine, "list_multipart_uploads", **asked)
        for one in answer.get("Uploads", []):
            name = one["Key"].removeprefix(asked["Prefix"])
            uploads.append(Upload(name, one["UploadId"], one["Initiated"].timestamp()))
        if not answer.get("IsTruncated"):
            return uploads
        page = {
            "KeyMarker": answer["NextKeyMarker"],
            "UploadIdMarker": answer["NextUploadIdMarker"],
        }


def abort(engine: Caller, path: str, upload: Upload) -> None:
    """Give up an upload to S3; nothing happens when it has ended."""
    if not filesystems.speaks_s3(engine.filesystem):
        return
    bucket, _, key = path.strip("/").partition("/")
    with contextlib.suppress(FileNotFoundError):
        _s3(engine, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)
