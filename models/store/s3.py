"""Objects in an S3 bucket, or in one of the many stores that speak its language."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from models.store.base import PIECE_BYTES, ObjectInfo, ObjectStore, check_range
from models.store.errors import ObjectMissingError, StoreError
from models.store.keys import check_key, check_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from obstore import Attributes, ObjectMeta

Result = TypeVar("Result")
CONNECT_TIMEOUT_S = 3.0
ATTEMPTS = 3
THREADS = 16
PAGE = 1000
"""Keys a request, S3's most."""


class S3Objects(ObjectStore):
    """One bucket, or a folder in it.

    A request that times out, is cut off or gets a 5xx is sent again, up to three times in all, and every call ends
    within `timeout_s`, retries included. Without keys in the arguments, the usual AWS_* variables and instance
    roles are used.

    obstore's blocking calls run in threads of our own. Its async ones (0.12.1) wake the event loop from a Rust
    thread, which aborts the process (SIGABRT) when that happens while the interpreter shuts down.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="igen-s3")
        # bulk delete is a POST, which obstore does not send again, and some stores have not got it
        config: dict[str, Any] = {"region": region, "disable_bulk_delete": True}
        if endpoint is not None:  # both names, else an AWS_ENDPOINT_URL_S3 of the environment wins
            config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
        if access_key_id is not None and secret_access_key is not None:
            config |= {"access_key_id": access_key_id, "secret_access_key": secret_access_key}
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": endpoint is not None and endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout_s / ATTEMPTS)),
                "timeout": timedelta(seconds=timeout_s / ATTEMPTS),
            },
            retry_config={
                "max_retries": ATTEMPTS - 1,
                "retry_timeout": timedelta(seconds=timeout_s),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2)},
            },
            **config,
        )

    async def put(self, key: str, data: bytes, *, media_type: str) -> None:
        """See ObjectStore."""
        check_key(key)
        attributes: Attributes = {"Content-Type": media_type}
        async with self._clear_errors(missing="The object store's bucket does not exist."):
            await self._run(lambda: obstore.put(self._store, key, data, attributes=attributes, use_multipart=False))

    async def put_file(self, key: str, path: Path, *, media_type: str) -> None:
        """See ObjectStore; in parts, with the time limit for each `PIECE_BYTES`."""
        check_key(key)
        attributes: Attributes = {"Content-Type": media_type}
        pieces = 1 + (await asyncio.to_thread(path.stat)).st_size // PIECE_BYTES
        async with self._clear_errors("The object store's bucket does not exist.", limits=pieces):
            await self._run(
                lambda: obstore.put(self._store, key, path, attributes=attributes, chunk_size=PIECE_BYTES)
            )

    async def get(self, key: str) -> bytes:
        """See ObjectStore."""
        check_key(key)
        async with self._clear_errors():
            return await self._run(lambda: bytes(obstore.get(self._store, key).bytes()))

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        check_range(start, end)
        stop = min(end, (await self.head(key)).size)  # S3 answers 416 to a range that starts past the end
        if start >= stop:
            return b""
        async with self._clear_errors():
            return await self._run(lambda: bytes(obstore.get_range(self._store, key, start=start, end=stop)))

    async def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        check_key(key)
        async with self._clear_errors():
            found = await self._run(lambda: obstore.head(self._store, key))
        return ObjectInfo(found["size"], found["e_tag"] or "", found["last_modified"])

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        check_key(key)
        with suppress(ObjectMissingError):
            async with self._clear_errors():
                await self._run(lambda: obstore.delete(self._store, key))

    async def list(self, prefix: str = "") -> AsyncIterator[str]:
        """See ObjectStore. Pages are fetched as they are read, each under the time limit."""
        stream = iter(obstore.list(self._store, check_prefix(prefix) or None, chunk_size=PAGE))
        page: Sequence[ObjectMeta] | None = ()
        while page is not None:
            for found in page:
                yield found["path"]
            async with self._clear_errors():
                page = await self._run(lambda: next(stream, None))

    async def _run(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    @asynccontextmanager
    async def _clear_errors(self, missing: str | None = None, *, limits: int = 1) -> AsyncIterator[None]:
        """Bound the time and turn obstore's errors into ours; their text holds endpoint and bucket."""
        try:
            async with asyncio.timeout(limits * self._timeout_s):
                yield
        except TimeoutError as error:
            raise StoreError("The object store did not answer in time.") from error
        except FileNotFoundError as error:
            raise (StoreError(missing) if missing else ObjectMissingError()) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError("The object store refused the server's credentials.") from error
        except (BaseError, OSError) as error:
            raise StoreError from error
