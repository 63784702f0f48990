"""An object store in memory that keeps conditions, as S3 does, and whose answers can come late."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import fsspec
from fsspec import AbstractFileSystem


@dataclass(eq=False)
class Contents:
    """What a store holds.

    Attributes:
        objects: The bytes, the tag and the time (seconds) of each key.
        uploads: Key and time of each upload that was not ended, by its id.
        now: The store's clock.
        before: Called before each request, with its kind and key; may raise.
        after: Called when a request has done its work; may raise: then the answer is lost.
        heeds: Whether conditions are kept.
    """

    objects: dict[str, tuple[bytes, str, float]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, float]] = field(default_factory=dict)
    now: float = 1_000_000.0
    before: Callable[[str, str], None] = lambda _kind, _key: None
    after: Callable[[str, str], None] = lambda _kind, _key: None
    heeds: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)

    def data(self, key: str) -> bytes:
        return self.objects[key][0]

    def put(self, key: str, data: bytes, mode: str = "overwrite", IfMatch: str = "") -> None:  # noqa: N803
        """Put an object under a condition."""
        tag = self.objects[key][1] if key in self.objects else None
        if self.heeds and mode == "create" and tag is not None:
            raise FileExistsError(key)
        if self.heeds and IfMatch and tag != IfMatch:
            raise OSError(22, "At least one of the pre-conditions you specified did not hold")
        self.objects[key] = (data, f'"{uuid.uuid4().hex}"', self.now)


class ConditionalStore(AbstractFileSystem):
    """`Contents` for fsspec: ``conditional://bucket/…``, with the option ``contents``."""

    protocol = ("conditional", "s3")
    cachable = False

    def __init__(self, contents: Contents, **options: Any) -> None:
        super().__init__(**options)
        self.contents = contents

    def _do(self, kind: str, path: str, effect: Callable[[str], Any]) -> Any:
        key = self._strip_protocol(path)
        self.contents.calls.append((kind, key))
        self.contents.before(kind, key)
        found = effect(key)
        self.contents.after(kind, key)
        return found

    def _get(self, key: str) -> bytes:
        if key not in self.contents.objects:
            raise FileNotFoundError(key)
        return self.contents.data(key)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **condition: Any) -> None:
        self._do("put", path, lambda key: self.contents.put(key, bytes(value), mode, **condition))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return self._do("get", path, lambda key: self._get(key)[start:end])

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        data = self._get(self._strip_protocol(path1))
        self._do("copy", path2, lambda key: self.contents.put(key, data))

    def rm_file(self, path: str) -> None:
        self._do("delete", path, lambda key: self.contents.objects.pop(key, None))

    def _entry(self, key: str) -> dict[str, Any]:
        data, tag, at = self.contents.objects[key]
        modified = datetime.fromtimestamp(at, timezone.utc)
        return {
            "name": key,
            "size": len(data),
            "type": "file",
            "ETag": tag,
            "LastModified": modified,
        }

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._do("head", path, lambda key: self._get(key) and self._entry(key))

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        def below(key: str) -> list[str]:
            return sorted(n for n in self.contents.objects if n.startswith(f"{key.rstrip('/')}/"))

        names = self._do("list", path, below)
        return {name: self._entry(name) for name in names} if detail else names

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        prefix = f"{self._strip_protocol(path).rstrip('/')}/"
        names = self.find(path)
        if not names and "/" in prefix.rstrip("/"):
            raise FileNotFoundError(path)
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            first, deeper, _ = name.removeprefix(prefix).partition("/")
            directory = {"name": prefix + first, "size": 0, "type": "directory"}
            found[first] = directory if deeper else self._entry(name)
        return list(found.values())

    def call_s3(self, method: str, Bucket: str, **asked: Any) -> dict[str, Any]:  # noqa: N803
        """S3's own calls for uploads, one upload a page."""
        uploads = self.contents.uploads
        if method == "abort_multipart_upload":
            assert uploads[asked["UploadId"]][0] == f"{Bucket}/{asked['Key']}"
            del uploads[asked["UploadId"]]
            return {}
        assert method == "list_multipart_uploads"
        mine = sorted(
            i for i, (key, _) in uploads.items() if key.startswith(f"{Bucket}/{asked['Prefix']}")
        )
        page = [i for i in mine if i > asked.get("UploadIdMarker", "")]
        listed = [
            {
                "Key": uploads[i][0].removeprefix(f"{Bucket}/"),
                "UploadId": i,
                "Initiated": datetime.fromtimestamp(uploads[i][1], timezone.utc),
            }
            for i in page[:1]
        ]
        more = {"NextKeyMarker": "", "NextUploadIdMarker": page[0]} if page else {}
        return {"Uploads": listed, "IsTruncated": len(page) > 1, **more}


fsspec.register_implementation("conditional", ConditionalStore, clobber=True)
