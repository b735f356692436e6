"""An answer's body into a file: in constant memory, hashed on the way, and either whole or not there."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from models.fetch.body import make_decoder, pump_body
from models.fetch.errors import FetchStorageError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import aiohttp

    from models.fetch.policy import FetchPolicy

PART_SUFFIX = ".part"
"""Ending of a file under way. Only a killed process leaves one; whoever owns the folder may delete it."""

HEAD_BYTES = 2048
"""Of a body's beginning, enough to tell its kind without opening the file again."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """An answer whose body, when the status is 200, lies in a file. `headers` ignores case.

    `bytes` counts the decoded body, `sha256` is its hash in hexadecimal and `head` its first `HEAD_BYTES`; 0 and
    empty where there is no file. `url` is the last one after redirects.
    """

    status: int
    headers: Mapping[str, str]
    bytes: int
    sha256: str
    url: str
    head: builtins.bytes = b""

    @property
    def stored(self) -> bool:
        """Whether the file was written."""
        return self.status == HTTPStatus.OK


async def save_body(response: aiohttp.ClientResponse, url: str, target: Path, policy: FetchPolicy) -> Downloaded:
    """Write the body of a 200 to `target`, atomically; any other answer's body is left unread.

    Raises:
        FetchTooLargeError: over one of the caps.
        FetchFailedError: unknown or broken content encoding.
        FetchStorageError: the file could not be written.

    """
    if response.status != HTTPStatus.OK:
        return Downloaded(response.status, response.headers, 0, "", url)
    with WholeFile(target) as file:
        encoding = response.headers.get("Content-Encoding", "")
        decoder = make_decoder(encoding, policy.max_decoded_bytes, file.write)
        await pump_body(response, decoder, policy.max_wire_bytes)
        decoder.finish()
        file.keep()
    return Downloaded(response.status, response.headers, file.size, file.sha256, url, file.head)


class WholeFile:
    """A file that appears under its name only when `keep` is called; until then it is a hidden one beside it.

    Not synced to the disk: what is fetched can be fetched again. Every method raises `FetchStorageError` where the
    system refuses.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
        self._hash = hashlib.sha256()
        self._kept = False
        self.size = 0
        self.head = b""

    def __enter__(self) -> Self:
        try:
            self._file = self._part.open("xb")
        except OSError as error:
            raise FetchStorageError from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as problem:
            if error is None:
                raise FetchStorageError from problem
        finally:
            if not self._kept:
                self._part.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append `data`."""
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self._hash.update(data)
        self.size += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise FetchStorageError from error

    def keep(self) -> None:
        """The content is whole: give the file its name."""
        try:
            self._file.close()
            self._part.replace(self._target)
        except OSError as error:
            raise FetchStorageError from error
        self._kept = True

    @property
    def sha256(self) -> str:
        """Hash of what was written, in hexadecimal."""
        return self._hash.hexdigest()
