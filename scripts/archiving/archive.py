"""The archive: a plain tar of `objects/<key>`, the database, `SHA256SUMS` over both, and `backup.json` at its end.

Whatever reads it finds out whether it is whole: an archive that broke off has no `backup.json`, and each member has
its hash. `tar -x` and `sha256sum -c SHA256SUMS` read it without this program.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Self

from scripts.calling.folder import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1
OBJECTS = "objects/"
SUMS, HEADER = "SHA256SUMS", "backup.json"
DATABASES = {"sqlite": "database.sqlite", "postgresql": "database.pgdump"}
PIECE_BYTES = 2**20
MOST_HEADER_BYTES = 2**26
SUM_CHARS = 64


class ArchiveError(Exception):
    """The archive cannot be written, or is not one, or is damaged; the message says which and where."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an archive is. `missing` are keys that rows name and that the store did not have."""

    format: int
    version: str
    revision: str
    database: str
    created_at: str
    objects: int
    bytes: int
    missing: list[str]


class ArchiveWriter:
    """Writes `path` whole or not at all; use it as a context manager, and `finish` at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._sums = tempfile.TemporaryFile("w+b", dir=path.parent)  # noqa: SIM115 - closed at the end
        self._file: IO[bytes] = self._part.open("wb")
        self._part.chmod(0o600)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - as above
        self.written: set[str] = set()
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sums.close()
        self._part.unlink(missing_ok=True)

    def add(self, name: str, path: Path) -> None:
        """Put a file in, with its hash."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            info = self._info(name, os.fstat(file.fileno()).st_size)
            self._tar.addfile(info, _Hashed(file, digest))
        self._sums.write(f"{digest.hexdigest()}  {name}\n".encode())
        self.bytes += info.size
        self.written.add(name)

    def finish(self, header: Header) -> None:
        """Write hashes and header, and give the archive its name."""
        size = self._sums.tell()
        self._sums.seek(0)
        self._tar.addfile(self._info(SUMS, size), self._sums)
        with tempfile.TemporaryFile(dir=self._path.parent) as text:
            size = text.write(json.dumps(asdict(header), indent=1).encode())
            text.seek(0)
            self._tar.addfile(self._info(HEADER, size), text)
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        sync_folder(self._path.parent)

    @staticmethod
    def _info(name: str, size: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        return info


class _Hashed:
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece


def verify(path: Path) -> Header:
    """Read a whole archive and hold every member against its hash.

    Raises:
        ArchiveError: it is not whole, or not as it was written.

    """
    found: dict[str, str] = {}
    sums, header = b"", b""
    with reading(path) as members:
        for info, file in members:
            if info.name in (SUMS, HEADER):
                data = file.read(MOST_HEADER_BYTES if info.name == HEADER else info.size)
                sums, header = (data, header) if info.name == SUMS else (sums, data)
                continue
            digest = hashlib.sha256()
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
            found[info.name] = digest.hexdigest()
    told = _header(path, header)
    wanted = {line[SUM_CHARS + 2 :]: line[:SUM_CHARS] for line in sums.decode().splitlines()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArchiveError(f"{path}: {name} is damaged or missing; this backup cannot be trusted")
    if DATABASES.get(told.database) not in found:
        raise ArchiveError(f"{path}: has no database")
    return told


@contextmanager
def reading(path: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    """Members of an archive with their content, one after the other.

    Raises:
        ArchiveError: it cannot be read, or breaks off, which reading a member's content may show too.

    """
    try:
        with tarfile.open(path, "r:") as tar:
            yield _members(path, tar)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: there is no such file") from None
    except (tarfile.TarError, EOFError) as problem:
        raise ArchiveError(f"{path}: is no backup of IGen, or it breaks off: {problem}") from None


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for info in tar:
        file = tar.extractfile(info) if info.isreg() else None
        if file is None or info.name.startswith("/") or ".." in info.name.split("/"):
            raise ArchiveError(f"{path}: has a member that is none of ours: {info.name!r}")
        yield info, file


def _header(path: Path, data: bytes) -> Header:
    if not data:
        raise ArchiveError(f"{path}: is no backup of IGen, or it breaks off before its end")
    try:
        header = Header(**json.loads(data))
    except (ValueError, TypeError):
        raise ArchiveError(f"{path}: {HEADER} cannot be read") from None
    if header.format != FORMAT:
        raise ArchiveError(f"{path}: is of format {header.format}, this program knows {FORMAT}: use a newer one")
    return header
