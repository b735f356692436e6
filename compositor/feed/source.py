"""A feed's file as text: gunzipped under a cap, its encoding found, a chunk at a time.

The encoding is a byte order mark's, else the XML declaration's, else UTF-8. Bytes that are not valid in it do not
stop the reading: they are taken as Windows-1252, which is what such feeds nearly always hold, and `repaired` is set.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from compositor.feed.errors import FeedCode, FeedError, FeedLimits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

CHUNK_BYTES = 64 * 1024
GZIP_MAGIC = b"\x1f\x8b"
OTHER_ARCHIVES = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MARKS = (  # UTF-32 before UTF-16: the latter's mark begins the former's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UNMARKED = ((b"<\0\0\0", "utf-32-le"), (b"\0\0\0<", "utf-32-be"), (b"<\0", "utf-16-le"), (b"\0<", "utf-16-be"))
_DECLARED = re.compile(rb"^\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z][\w.-]*)")
_CHARACTER_SETS = re.compile(
    r"utf-8|ascii|iso8859|cp\d|koi8|kz1048|mac-|ptcp154|tis-|shift_jis|euc_|gb|big5|iso2022_|johab|hz", re.IGNORECASE
)
"""Python's own names of encodings of text; its codecs also know escapes and compressions, not wanted here."""
_REPAIR = "igen-as-windows-1252"


class FeedSource:
    """One feed's text. Iterating `chunks` once reads it through.

    Attributes:
        encoding: the name under which Python knows its encoding.
        repaired: whether bytes were met that are not valid in that encoding, or it was not known.

    Raises:
        FeedError: from `chunks` and on entering: empty, over the cap, or its gzip is broken or cut off.
        OSError: the file cannot be read.

    """

    def __init__(self, path: Path, limits: FeedLimits) -> None:
        self._path = path
        self._limits = limits
        self._taken = 0
        self._first = b""
        self._file: BinaryIO | None = None
        self.encoding = "utf-8"
        self.repaired = False
        self.is_gzip = False

    def __enter__(self) -> Self:
        """Open the file and look at its beginning."""
        self._file = self._path.open("rb")
        try:
            self._look()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _look(self) -> None:
        file = cast("BinaryIO", self._file)
        magic = file.read(8)
        file.seek(0)
        for start, name in OTHER_ARCHIVES.items():
            if magic.startswith(start):
                raise FeedError(FeedCode.NOT_XML, f"The feed is a {name} archive; send it plain or as .gz.")
        self.is_gzip = magic.startswith(GZIP_MAGIC)
        if self.is_gzip:
            self._file = cast("BinaryIO", _Gunzipped(file))
        self._first = self._read()
        while self._first and len(self._first) < CHUNK_BYTES and (more := self._read()):
            self._first += more
        if not self._first.strip(b"\0\t\r\n "):
            raise FeedError(FeedCode.EMPTY, "The feed is empty.")
        self._find_encoding()

    def _read(self) -> bytes:
        """The next bytes, after decompression; counted against the cap."""
        try:
            data = cast("BinaryIO", self._file).read(CHUNK_BYTES)
        except EOFError:
            raise FeedError(FeedCode.TRUNCATED, "The feed's gzip data ends too early.") from None
        except (gzip.BadGzipFile, zlib.error):
            raise FeedError(FeedCode.BAD_GZIP, "The feed's gzip data is damaged.") from None
        self._taken += len(data)
        if self._taken > self._limits.max_bytes:
            raise FeedError(FeedCode.TOO_LARGE, f"The feed is larger than {self._limits.max_bytes} bytes.")
        return data

    def _find_encoding(self) -> None:
        for mark, encoding in MARKS:
            if self._first.startswith(mark):
                self.encoding = encoding
                self._first = self._first[len(mark) :]
                return
        for start, encoding in UNMARKED:
            if self._first.startswith(start):
                self.encoding = encoding
                return
        declared = _DECLARED.match(self._first)
        if declared is None:
            return
        try:
            found = codecs.lookup(declared[1].decode("ascii")).name
        except LookupError:
            self.repaired = True
            return
        if found.startswith(("utf-16", "utf-32")):
            return  # it says so in single bytes, so it is not
        if _CHARACTER_SETS.match(found):
            self.encoding = found
        else:
            self.repaired = True

    def raw_chunks(self) -> Iterator[bytes]:
        """The bytes after decompression, without byte order mark."""
        data, self._first = self._first, b""
        while data:
            yield data
            data = self._read()

    def decoded(self) -> Iterator[tuple[bytes, str]]:
        """Each chunk as UTF-8, for a parser, and as text; a repaired chunk's bytes are as they came."""
        codecs.register_error(_REPAIR, _as_windows_1252)
        decoder = codecs.getincrementaldecoder(self.encoding)("strict")
        plain = self.encoding == "utf-8"
        for data in self.raw_chunks():
            text = self._decode(decoder, data, final=False)
            yield (data if plain else text.encode()), text
        rest = self._decode(decoder, b"", final=True)
        if rest:
            yield rest.encode(), rest

    def _decode(self, decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool) -> str:
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError:
            self.repaired = True
            decoder.errors = _REPAIR
            return decoder.decode(data, final)


class _Gunzipped(gzip.GzipFile):
    """A gunzipped stream that closes the file beneath it too."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._beneath = file

    def close(self) -> None:
        """Close both."""
        super().close()
        self._beneath.close()


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: the bytes at fault are read as Windows-1252."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    fault = error.object[error.start : error.end]
    return fault.decode("cp1252", errors="replace"), error.end
