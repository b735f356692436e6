"""Uploads to a bucket that a caller named: signed here without the network, sent through the safe fetch."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from models.errors import InvalidInputError
from models.fetch import FetchFailedError, FetchTimeoutError
from models.store.keys import check_key

if TYPE_CHECKING:
    from obstore.store import S3Credential

    from models.fetch import Fetched, SafeFetcher

LINK_EXPIRES_S = 604_800
"""Seven days: the most that SigV4 allows, and what RunPod's SDK gives."""
UPLOAD_ATTEMPTS = 3
RETRY_BASE_S = 0.5
"""Pause before the second try; it doubles."""
ANSWER_MAX_BYTES = 64 * 1024

_REGION_IN_HOST = re.compile(
    r"(?:^|\.)s3[.-](?:dualstack\.)?(?P<aws>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com)$"
    r"|(?:^|\.)(?P<spaces>[a-z0-9-]+)\.digitaloceanspaces\.com$"
)


@dataclass(frozen=True, slots=True)
class PresignTarget:
    """A caller's bucket. `endpoint` may have the bucket as first label of its host, or not.

    `region` None: the one in the endpoint's host where a known provider puts it there, else us-east-1.
    """

    endpoint: str
    bucket: str
    access_id: str
    access_secret: str = field(repr=False)
    region: str | None = None

    @property
    def signing_region(self) -> str:
        """The region that goes into the signature."""
        if self.region:
            return self.region
        found = _REGION_IN_HOST.search(urlsplit(self.endpoint).hostname or "")
        return (found["aws"] or found["spaces"]) if found else "us-east-1"


def presign(s3: PresignTarget, method: Literal["GET", "PUT", "HEAD"], key: str, expires_s: int) -> str:
    """A URL that allows `method` on one object for `expires_s` seconds. Nothing is contacted.

    Raises:
        InvalidInputError: the endpoint is not a URL.
        InvalidKeyError: the key is not one.

    """
    check_key(key)
    try:
        return obstore.sign(_signing_store(s3), method, key, timedelta(seconds=expires_s))
    except (BaseError, ValueError):
        raise InvalidInputError.for_field("s3Config.endpointUrl", "is not a usable S3 endpoint") from None


async def upload_presigned(
    fetcher: SafeFetcher, target: PresignTarget, key: str, data: bytes, media_type: str
) -> str:
    """Put an object into a caller's bucket and return a link to read it, valid for seven days.

    A timeout, a broken connection or a 5xx is tried again, three times in all.

    Raises:
        FetchError: the endpoint may not be contacted, or failed, or refused the upload.
        InvalidInputError: the endpoint is not a URL.

    """
    url = presign(target, "PUT", key, LINK_EXPIRES_S)
    for attempt in range(1, UPLOAD_ATTEMPTS + 1):
        answer = await _put_once(fetcher, url, data, media_type, last=attempt == UPLOAD_ATTEMPTS)
        if answer is not None:
            break
        await asyncio.sleep(RETRY_BASE_S * 2 ** (attempt - 1))
    if answer is None or not answer.ok:
        status = "nothing" if answer is None else answer.status
        raise FetchFailedError(f"The S3 endpoint answered {status} to the upload.")
    return presign(target, "GET", key, LINK_EXPIRES_S)


async def _put_once(fetcher: SafeFetcher, url: str, data: bytes, media_type: str, *, last: bool) -> Fetched | None:
    """The endpoint's answer, or None where another try may help."""
    headers = {"Content-Type": media_type}
    try:
        answer = await fetcher.put(url, data, headers, max_wire_bytes=ANSWER_MAX_BYTES)
    except (FetchTimeoutError, FetchFailedError):
        if last:
            raise
        return None
    return answer if last or answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else None


def _signing_store(s3: PresignTarget) -> S3Store:
    """A store that signs and is never asked to connect.

    Every value that the environment could replace is given: this server's own AWS_* variables, its session token
    among them, must not get into a caller's URL.
    """
    parts = urlsplit(s3.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the endpoint is not the address of a server")
    return S3Store(
        s3.bucket,
        endpoint=s3.endpoint,
        aws_endpoint_url_s3=s3.endpoint,
        region=s3.signing_region,
        credential_provider=lambda: _credential(s3),
        virtual_hosted_style_request=parts.hostname.startswith(f"{s3.bucket.lower()}."),
        skip_signature=False,
        s3_express=False,
        request_payer=False,
        client_options={"allow_http": True},
    )


def _credential(s3: PresignTarget) -> S3Credential:
    return {
        "access_key_id": s3.access_id,
        "secret_access_key": s3.access_secret,
        "token": None,
        "expires_at": None,
    }
