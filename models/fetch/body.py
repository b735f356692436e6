"""Reading an answer under two caps: bytes on the wire and bytes after decoding."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from models.fetch.errors import FetchFailedError, FetchTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

ACCEPT_ENCODING = "gzip, deflate"
READ_BYTES = 64 * 1024
_INFLATE_BYTES = 1024 * 1024


async def read_body(response: aiohttp.ClientResponse, max_wire_bytes: int, max_decoded_bytes: int) -> bytes:
    """Read and decode the whole body. Neither Content-Length nor its absence is believed.

    Raises:
        FetchTooLargeError: over one of the caps; nothing more is read or decoded.
        FetchFailedError: unknown or broken content encoding.

    """
    decoder = make_decoder(response.headers.get("Content-Encoding", ""), max_decoded_bytes)
    await pump_body(response, decoder, max_wire_bytes)
    return decoder.finish()


async def pump_body(response: aiohttp.ClientResponse, decoder: PlainDecoder, max_wire_bytes: int) -> None:
    """Feed the body to `decoder` as it comes.

    Raises:
        FetchTooLargeError, FetchFailedError: as `read_body`.

    """
    declared = response.content_length
    if declared is not None and declared > max_wire_bytes and response.method != "HEAD":
        raise FetchTooLargeError
    received = 0
    async for chunk in response.content.iter_chunked(READ_BYTES):
        received += len(chunk)
        if received > max_wire_bytes:
            raise FetchTooLargeError
        decoder.feed(chunk)


def make_decoder(
    content_encoding: str, max_bytes: int, write: Callable[[bytes], object] | None = None
) -> PlainDecoder:
    """The decoder for a Content-Encoding header; with `write` the decoded bytes go there and are not collected.

    Raises:
        FetchFailedError: an encoding that was not asked for, or several.

    """
    match content_encoding.strip().lower():
        case "" | "identity":
            return PlainDecoder(max_bytes, write)
        case "gzip" | "x-gzip":
            return InflateDecoder(max_bytes, write, gzip=True)
        case "deflate":
            return InflateDecoder(max_bytes, write, gzip=False)
    raise FetchFailedError("The answer has a content encoding that is not supported.")


class PlainDecoder:
    """Collects bytes, or hands them on to `write`, up to a cap."""

    def __init__(self, max_bytes: int, write: Callable[[bytes], object] | None = None) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._out = bytearray()
        self._write = write or self._out.extend

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the wire."""
        self._keep(chunk)

    def finish(self) -> bytes:
        """The decoded body; empty where it was handed on."""
        return bytes(self._out)

    def _keep(self, decoded: bytes) -> None:
        self._size += len(decoded)
        if self._size > self._max_bytes:
            raise FetchTooLargeError
        self._write(decoded)


class InflateDecoder(PlainDecoder):
    """Inflates in bounded slices, so a bomb costs at most the cap. Several members may follow each other."""

    def __init__(self, max_bytes: int, write: Callable[[bytes], object] | None = None, *, gzip: bool) -> None:
        super().__init__(max_bytes, write)
        self._gzip = gzip
        self._inflater: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the wire."""
        while chunk:
            if self._inflater is None or self._inflater.eof:
                self._inflater = zlib.decompressobj(self._wbits(chunk))
            self._inflate(self._inflater, chunk)
            chunk = self._inflater.unconsumed_tail or self._inflater.unused_data

    def finish(self) -> bytes:
        """The decoded body; one that ends in mid-stream is broken, an empty one is not."""
        inflater = self._inflater
        while inflater is not None and not inflater.eof:
            if not self._inflate(inflater, b""):  # zlib may hold output back after it took all input
                raise FetchFailedError("The answer's compressed body is incomplete.")
        return super().finish()

    def _inflate(self, inflater: zlib._Decompress, chunk: bytes) -> int:
        try:
            decoded = inflater.decompress(chunk, _INFLATE_BYTES)
        except zlib.error:
            raise FetchFailedError("The answer's compressed body is broken.") from None
        self._keep(decoded)
        return len(decoded)

    def _wbits(self, chunk: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        zlib_header = chunk[0] & 0x0F == zlib.DEFLATED  # RFC 1950 2.2; some servers send bare RFC 1951
        return zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
