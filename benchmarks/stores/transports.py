"""Clients of an object store, alone: one object out of, and into, one piece of memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import obstore
import pyarrow.fs
from obstore.store import S3Store

CONNECTIONS = 16
_MOST = 16 * 1024 * 1024  # bytes of a part or a range
_LEAST = 5 * 1024 * 1024  # bytes of a part, by the rules of S3


class Transport(Protocol):
    """Moves the bytes of an object."""

    def send(self, key: str, memory: memoryview) -> None:
        """Create or replace an object."""

    def receive(self, key: str, memory: memoryview) -> None:
        """Read the beginning of an object, as much as there is memory for."""


class Obstore:
    """obstore: parts and ranges of one size, side by side.

    Args:
        options: Of s3fs.
        bucket: The store's.
    """

    def __init__(self, options: Mapping[str, Any], bucket: str) -> None:
        self._store = S3Store(
            bucket,
            endpoint=options["endpoint_url"],
            access_key_id=options["key"],
            secret_access_key=options["secret"],
            region="us-east-1",
            virtual_hosted_style_request=False,
            unsigned_payload="config_kwargs" in options,
            client_options={"allow_http": True},
        )

    def send(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.send`."""
        size = _even(len(memory))
        parts = [memory[begin : begin + size] for begin in range(0, len(memory), size)]
        obstore.put(
            self._store,
            key,
            iter(parts),
            use_multipart=len(parts) > 1,
            chunk_size=size,
            max_concurrency=CONNECTIONS,
        )

    def receive(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.receive`."""
        _fill(
            memory,
            lambda begin, size: obstore.get_range(self._store, key, start=begin, length=size),
        )


class Arrow:
    """pyarrow, which Ray uploads with: one stream, whose parts it sends side by side itself.

    Args:
        options: Of s3fs.
        bucket: The store's.
    """

    def __init__(self, options: Mapping[str, Any], bucket: str) -> None:
        self._bucket, self._filesystem = bucket, arrow_filesystem(options)
        pyarrow.set_io_thread_count(CONNECTIONS)

    def send(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.send`."""
        with self._filesystem.open_output_stream(f"{self._bucket}/{key}") as stream:
            stream.write(memory)

    def receive(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.receive`, by ranges as of the others."""
        with self._filesystem.open_input_file(f"{self._bucket}/{key}") as file:
            _fill(memory, lambda begin, size: file.read_at(size, begin))


class S3fs:
    """s3fs, by its calls for whole objects.

    Args:
        options: Its own.
        bucket: The store's.
    """

    def __init__(self, options: Mapping[str, Any], bucket: str) -> None:
        from s3fs import S3FileSystem

        pool = {"max_pool_connections": 2 * CONNECTIONS}
        config = {"config_kwargs": {**options.get("config_kwargs", {}), **pool}}
        self._filesystem = S3FileSystem(**{**options, **config})
        self._bucket = bucket

    def send(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.send`. It takes ``bytes`` alone."""
        self._filesystem.pipe_file(
            f"{self._bucket}/{key}",
            bytes(memory),
            chunksize=_even(len(memory)),
            max_concurrency=CONNECTIONS,
        )

    def receive(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.receive`."""
        size, path = _even(len(memory)), f"{self._bucket}/{key}"
        begins = range(0, len(memory), size)
        ends = [min(begin + size, len(memory)) for begin in begins]
        read = partial(self._filesystem.cat_ranges, batch_size=CONNECTIONS)
        for begin, data in zip(begins, read([path] * len(begins), begins, ends), strict=True):
            memory[begin : begin + size] = data


class Connector:
    """The Amazon S3 Connector for PyTorch (s3torchconnector), where it is installed.

    Args:
        options: Of s3fs.
        bucket: The store's.
    """

    def __init__(self, options: Mapping[str, Any], bucket: str) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client

        os.environ["AWS_ACCESS_KEY_ID"] = options["key"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = options["secret"]
        config = S3ClientConfig(force_path_style=True)
        endpoint = options["endpoint_url"]
        self._client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
        self._bucket = bucket

    def send(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.send`."""
        with self._client.put_object(self._bucket, key) as writer:
            writer.write(memory)

    def receive(self, key: str, memory: memoryview) -> None:
        """Implement `Transport.receive`: one range, which it divides itself."""
        from s3torchconnector import S3ReaderConstructor

        of_ranges = S3ReaderConstructor.range_based(buffer_size=0)
        self._client.get_object(self._bucket, key, reader_constructor=of_ranges).readinto(memory)


def arrow_filesystem(options: Mapping[str, Any]) -> pyarrow.fs.S3FileSystem:
    """Return pyarrow's file system for the options of s3fs."""
    scheme, _, host = str(options["endpoint_url"]).partition("://")
    return pyarrow.fs.S3FileSystem(
        access_key=options["key"],
        secret_key=options["secret"],
        endpoint_override=host,
        scheme=scheme,
        region="us-east-1",
    )


def _even(total: int) -> int:
    """Return the size of pieces that give each connection the same to do."""
    rounds = max(1, math.ceil(total / (CONNECTIONS * _MOST)))
    return max(_LEAST, math.ceil(total / (CONNECTIONS * rounds)))


def _fill(memory: memoryview, read: Callable[[int, int], Any]) -> None:
    """Read by ranges side by side; `read` is given where one begins, and how long it is."""
    size = _even(len(memory))

    def one(begin: int) -> None:
        target = memory[begin : begin + size]
        target[:] = memoryview(read(begin, len(target)))

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(one, range(0, len(memory), size)))
