"""From fsspec's options to obstore's: the same `storage_options` for either. Touches os.

What is not known here is not guessed at: `connection` returns why, and fsspec takes over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray_imuckpt.storage.engines import s3_options
from ray_imuckpt.storage.engines.connection import (
    AZURE,
    GOOGLE,
    S3,
    Connection,
    UnknownOptionError,
    checked_endpoint,
)

# Of no effect on what is asked of a store, or an order that is kept all the same.
_IGNORED = frozenset(
    {"asynchronous", "loop", "skip_instance_cache", "use_listings_cache", "listings_expiry_time"}
    | {"max_paths", "default_block_size", "default_fill_cache", "default_cache_type", "blocksize"}
    | {"max_concurrency", "block_size", "cache_timeout", "check_connection", "cache_regions"}
    | {
        "batch_size",
        "fixed_upload_size",
        "use_instance_cache",
        "project",
        "assume_container_exists",
    }
)


def knows(scheme: str) -> bool:
    """Return whether obstore has a store for a URL's scheme."""
    return scheme in S3 | GOOGLE | AZURE


def connection(scheme: str, path: str, options: Mapping[str, Any]) -> Connection:
    """Return how obstore connects with the options of an fsspec file system.

    Args:
        scheme: Of the URL.
        path: The rest of it.
        options: As s3fs, gcsfs or adlfs take them.

    Raises:
        UnknownOptionError: obstore cannot do the same.
    """
    bucket, _, key = path.partition("/")
    if "@" in bucket or bucket.startswith("arn:") or "//" in key:
        raise UnknownOptionError("a path of a form that obstore does not know")
    left = {k: v for k, v in options.items() if v is not None and k not in _IGNORED}
    if scheme in S3:
        result = s3_options.connection(scheme, left)
    elif scheme in GOOGLE:
        result = _google(scheme, left)
    elif scheme in AZURE:
        result = _azure(scheme, left)
    else:
        raise UnknownOptionError(f"obstore knows no {scheme}://")
    if left:
        raise UnknownOptionError(f"option(s) without a counterpart: {', '.join(sorted(left))}")
    return result


def _google(scheme: str, left: dict[str, Any]) -> Connection:
    token = left.pop("token", None)
    endpoint = left.pop("endpoint_url", None) or os.environ.get("STORAGE_EMULATOR_HOST")
    left.pop("access", None)
    left.pop("consistency", None)
    chosen: dict[str, Any] = {}
    if token == "anon":  # noqa: S105 - a word, as gcsfs knows it
        chosen["skip_signature"] = True
    elif isinstance(token, str) and token.endswith(".json"):
        chosen["application_credentials"] = token
    elif token not in (None, "google_default"):
        raise UnknownOptionError("token= of this kind")
    if endpoint is not None:  # an emulator, which knows no uploads in parts
        raise UnknownOptionError("an endpoint other than Google's")
    return Connection(scheme, "gs", chosen, {})


def _azure(scheme: str, left: dict[str, Any]) -> Connection:
    chosen: dict[str, Any] = {}
    client: dict[str, Any] = {}
    text = left.pop("connection_string", None) or os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    stated = dict(pair.partition("=")[::2] for pair in str(text or "").split(";") if pair)
    names = {
        "account_name": ("AccountName", "AZURE_STORAGE_ACCOUNT_NAME"),
        "account_key": ("AccountKey", "AZURE_STORAGE_ACCOUNT_KEY"),
        "sas_token": ("SharedAccessSignature", "AZURE_STORAGE_SAS_TOKEN"),
        "client_id": ("", "AZURE_STORAGE_CLIENT_ID"),
        "client_secret": ("", "AZURE_STORAGE_CLIENT_SECRET"),
        "tenant_id": ("", "AZURE_STORAGE_TENANT_ID"),
    }
    for name, (in_text, in_environment) in names.items():
        value = left.pop(name, None) or stated.get(in_text) or os.environ.get(in_environment)
        if value is not None:
            chosen["sas_key" if name == "sas_token" else name] = str(value).lstrip("?")
    anonymous = left.pop("anon", None)
    if "account_name" not in chosen:
        raise UnknownOptionError("no account_name")
    if not chosen.keys() & {"account_key", "sas_key", "client_secret"}:
        if not anonymous:
            raise UnknownOptionError("credentials that azure-identity finds")
        chosen["skip_signature"] = True
    endpoint = stated.get("BlobEndpoint")
    if endpoint is not None:
        chosen["endpoint"] = checked_endpoint(endpoint)
        client["allow_http"] = endpoint.startswith("http://")
    identity = ("az", chosen["account_name"], endpoint)
    return Connection(scheme, identity, chosen, client)
