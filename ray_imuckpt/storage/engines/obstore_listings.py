"""Listings of a bucket by obstore. Touches obstore."""

from __future__ import annotations

from typing import Any

from ray_imuckpt.storage.engines.protocol import Listed

_PAGE = 1000  # entries: as many as a store returns for one request


def entries(store: Any, bucket: str, key: str) -> list[Listed]:
    """Return what is right below a key; nothing where there is no such directory."""
    import obstore

    answer = obstore.list_with_delimiter(store, key or None)
    directories = [
        Listed(f"{bucket}/{name}", is_file=False, is_directory=True)
        for name in answer["common_prefixes"]
    ]
    return directories + [_listed(bucket, entry) for entry in answer["objects"]]


def below(store: Any, bucket: str, key: str) -> list[Listed]:
    """Return all files below a key, however deep."""
    import obstore

    pages = obstore.list(store, key or None, chunk_size=_PAGE)
    return [_listed(bucket, entry) for page in pages for entry in page]


def _listed(bucket: str, entry: Any) -> Listed:
    return Listed(f"{bucket}/{entry['path']}", entry["size"], entry["last_modified"].timestamp())
