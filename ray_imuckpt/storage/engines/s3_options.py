"""s3fs's options, for itself and as obstore's.

Touches botocore, which finds credentials where none are given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ray_imuckpt.storage.engines.budget import CONNECTIONS
from ray_imuckpt.storage.engines.connection import (
    Connection,
    UnknownOptionError,
    checked_endpoint,
    mapping,
    nothing_left,
    timeouts,
)

_RENEWED = timedelta(minutes=5)  # how long obstore holds what botocore gave it
_OF_NO_EFFECT = ("max_pool_connections", "retries", "signature_version")

Provider = Callable[[], dict[str, Any]]


@dataclass
class _Options:
    """The options of s3fs in their three layers; what is understood is taken out."""

    outer: dict[str, Any]
    client: dict[str, Any]
    config: dict[str, Any]

    def take(self, name: str, botocores: str) -> Any:
        """Take an option out of wherever it stands."""
        values = [options.pop(key, None) for options, key in self._named(name, botocores)]
        return next((value for value in values if value is not None), None)

    def _named(self, name: str, botocores: str) -> list[tuple[dict[str, Any], str]]:
        return [(self.outer, name), (self.client, botocores), (self.config, botocores)]


def for_botocore(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for s3fs, with what botocore is to do where the user does not say."""
    config: dict[str, Any] = {
        "max_pool_connections": 2 * CONNECTIONS,
        "retries": {"total_max_attempts": 1},  # we try again
    }
    if _hashes_twice(dict(options)):
        config["request_checksum_calculation"] = "when_required"
    return {**options, "config_kwargs": {**config, **(options.get("config_kwargs") or {})}}


def _hashes_twice(options: dict[str, Any]) -> bool:
    """Return whether botocore would have two checksums of a body.

    Without TLS its signature covers the body, by SHA-256; since 1.36 it adds CRC-32, always.
    """
    try:
        from botocore.config import Config

        known = "request_checksum_calculation" in Config.OPTION_DEFAULTS
        config = mapping(mapping(options, "config_kwargs"), "s3")
        url = _endpoint(_Options(options, mapping(options, "client_kwargs"), {})) or "https://"
    except (ImportError, UnknownOptionError):  # whoever opens the file system says it better
        return False
    signed = not options.get("anon") and config.get("payload_signing_enabled") is not False
    asked = "AWS_REQUEST_CHECKSUM_CALCULATION" in os.environ
    return known and signed and not asked and url.startswith("http://")


def connection(scheme: str, left: dict[str, Any]) -> Connection:
    """Return how obstore connects with s3fs's options, which are taken out of `left`.

    Raises:
        UnknownOptionError: obstore cannot do the same.
    """
    layers = _Options(left, mapping(left, "client_kwargs"), mapping(left, "config_kwargs"))
    chosen: dict[str, Any] = {}
    client = timeouts(layers.config)
    for name in _OF_NO_EFFECT:
        layers.config.pop(name, None)
    if layers.config.get("request_checksum_calculation") == "when_required":  # obstore's way
        del layers.config["request_checksum_calculation"]
    endpoint = _endpoint(layers)
    _add_transport(layers, chosen, client, endpoint)
    _add_encryption(mapping(left, "s3_additional_kwargs"), chosen)
    if left.pop("requester_pays", False):
        chosen["request_payer"] = True
    region = layers.take("region", "region_name")
    credentials, configured = _add_credentials(layers, chosen)
    nothing_left(layers.client, "client_kwargs")
    nothing_left(layers.config, "config_kwargs")
    region = region or configured or os.environ.get("AWS_REGION")
    region = region or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        raise UnknownOptionError("no region is known, and botocore would find it out")
    chosen["region"] = region or "us-east-1"
    return Connection(scheme, ("s3", endpoint), chosen, client, credentials)


def _endpoint(layers: _Options) -> str | None:
    url = layers.take("endpoint_url", "endpoint_url")
    url = url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    secure = layers.take("use_ssl", "use_ssl") is not False
    if url is None:
        if not secure:
            raise UnknownOptionError("use_ssl=False without an endpoint")
        return None
    return checked_endpoint(str(url) if "://" in url else f"http{'s' * secure}://{url}")


def _add_transport(
    layers: _Options, chosen: dict[str, Any], client: dict[str, Any], endpoint: str | None
) -> None:
    special = mapping(layers.config, "s3")
    style = special.pop("addressing_style", "auto")
    if style == "virtual" and endpoint is not None:
        raise UnknownOptionError("addressing_style='virtual' with an endpoint")
    chosen["virtual_hosted_style_request"] = style != "path" and endpoint is None
    # TLS guards the bytes on their way: SHA-256 of all of them would be most of the work (botocore
    # has it so, too). Without TLS the signature covers them, unless the user says otherwise.
    without = endpoint is not None and not endpoint.startswith("https://")
    chosen["unsigned_payload"] = not special.pop("payload_signing_enabled", without)
    nothing_left(special, "config_kwargs['s3']")
    if endpoint is not None:
        chosen["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    verify = layers.client.pop("verify", True)
    if verify is False:
        client["allow_invalid_certificates"] = True
    elif verify is not True:
        raise UnknownOptionError("verify= with a file of certificates")


def _add_encryption(extra: dict[str, Any], chosen: dict[str, Any]) -> None:
    for name, option in (
        ("ServerSideEncryption", "server_side_encryption"),
        ("SSEKMSKeyId", "sse_kms_key_id"),
    ):
        if name in extra:
            chosen[option] = extra.pop(name)
    nothing_left(extra, "s3_additional_kwargs")


def _add_credentials(
    layers: _Options, chosen: dict[str, Any]
) -> tuple[Callable[[], Provider] | None, str | None]:
    """Add what was given; else return what looks for credentials, and its region."""
    outer = layers.outer
    key = layers.take("key", "aws_access_key_id") or outer.pop("username", None)
    secret = layers.take("secret", "aws_secret_access_key") or outer.pop("password", None)
    token = layers.take("token", "aws_session_token")
    profile = outer.pop("profile", None)
    if outer.pop("anon", False):
        chosen["skip_signature"] = True
    elif key is not None and secret is not None:
        chosen.update(access_key_id=str(key), secret_access_key=str(secret))
        if token is not None:
            chosen["session_token"] = str(token)
    else:
        return _by_botocore(profile)
    return None, None


def _by_botocore(profile: str | None) -> tuple[Callable[[], Provider], str | None]:
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        region = Session(profile=profile).get_config_variable("region")
    except ImportError as error:
        why = "no key is given, and botocore, which would find one, is not installed"
        raise UnknownOptionError(why) from error
    except BotoCoreError as error:  # no such profile, say
        raise UnknownOptionError(str(error)) from error

    def provider() -> Provider:
        known = Session(profile=profile).get_credentials()  # reads files and the environment again
        if known is None:
            raise PermissionError("No credentials for S3 were given, and botocore found none")

        def credentials() -> dict[str, Any]:
            frozen = known.get_frozen_credentials()  # renewed by botocore, before they expire
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(timezone.utc) + _RENEWED,
            }

        return credentials

    return provider, region
