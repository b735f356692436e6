"""From the text of IGEN_STORE_URL to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from obstore.exceptions import BaseError

from models.settings import SettingsError
from models.store.errors import InvalidKeyError
from models.store.keys import check_prefix
from models.store.local import LocalObjects
from models.store.s3 import S3Objects

if TYPE_CHECKING:
    from models.store.base import ObjectStore

VARIABLE = "IGEN_STORE_URL"
S3_OPTIONS = {"endpoint", "region"}


def open_store(
    url: str,
    *,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    timeout_s: float = 30.0,
) -> ObjectStore:
    """The store that a URL names. Nothing is contacted or written yet; `check()` does that.

    `file:///srv/pictures` is an absolute folder, `file://var/pictures` one below the working folder.
    `s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1`; both options may be left out. Credentials
    come from the arguments, else from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and the other AWS_* variables),
    else from the instance's role; they do not belong in the URL.

    Raises:
        SettingsError: naming the variable and what is wrong with it.

    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong("it is not a URL") from None
    if parts.scheme == "file":
        return LocalObjects(_folder(parts))
    if parts.scheme == "s3":
        return _open_s3(parts, access_key_id, secret_access_key, timeout_s)
    raise _wrong("it must begin with file:// or s3://")


def _folder(parts: SplitResult) -> Path:
    if parts.query or parts.fragment:
        raise _wrong("a file:// URL takes no options")
    host = "" if parts.netloc == "localhost" else parts.netloc
    path = unquote(host + parts.path)
    if not path or "\0" in path:
        raise _wrong("it names no folder")
    return Path(path)


def _open_s3(
    parts: SplitResult, access_key_id: str | None, secret_access_key: str | None, timeout_s: float
) -> S3Objects:
    if "@" in parts.netloc:
        raise _wrong("credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not in the URL")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not parts.netloc or set(options) - S3_OPTIONS or parts.fragment:
        raise _wrong("write s3://bucket/prefix?endpoint=...&region=...")
    endpoint = options.get("endpoint")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise _wrong("the endpoint must begin with http:// or https://")
    try:
        prefix = check_prefix(parts.path.strip("/"))
    except InvalidKeyError:
        raise _wrong("the prefix may hold letters, digits and . _ - /") from None
    try:
        return S3Objects(
            parts.netloc,
            prefix=prefix,
            endpoint=endpoint,
            region=options.get("region") or "us-east-1",
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            timeout_s=timeout_s,
        )
    except (BaseError, ValueError):  # its text may hold what the URL held
        raise _wrong("bucket or endpoint cannot be used") from None


def _wrong(reason: str) -> SettingsError:
    return SettingsError(f"{VARIABLE}: {reason}")
