"""Objects as files below one folder of this machine.

Own code and not obstore's LocalStore, which (0.12.1) reads and lists through symbolic links to outside the folder,
makes files readable for everybody and does not flush them to the disk before the rename.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from models.store.base import PIECE_BYTES, ObjectInfo, ObjectStore, check_range
from models.store.errors import ObjectMissingError, StoreError
from models.store.keys import check_key, check_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator
    from pathlib import Path

TEMP_FOLDER = ".tmp"
"""No key begins with a dot, so nothing in here is ever an object; it is on the store's own file system."""
TEMP_MAX_AGE_S = 3600.0
FILE_MODE = 0o640
FOLDER_MODE = 0o750

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Another disk, a file system without hard links, a file of another user's, or one with too many names."""
_MESSAGES = {
    errno.ENOSPC: "The object store's disk is full.",
    errno.EDQUOT: "The object store's disk quota is used up.",
    errno.EROFS: "The object store's disk is read-only.",
    errno.EACCES: "The object store's folder may not be used by this process.",
    errno.EPERM: "The object store's folder may not be used by this process.",
}


_Names = list[str]  # the class has a method `list`, which hides the built-in in its own annotations


class LocalObjects(ObjectStore):
    """Files below `root`; the folder is made at the first write. Work runs in threads, off the event loop.

    A write goes to a temporary file, to the disk, and then takes the object's name by one rename: after a kill
    there is the old object or the new one. Folders are opened one by one without following links.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    async def put(self, key: str, data: bytes, *, media_type: str) -> None:  # noqa: ARG002 - files have no type
        """See ObjectStore."""
        await asyncio.to_thread(self._put, check_key(key), data)

    async def put_file(self, key: str, path: Path, *, media_type: str) -> None:  # noqa: ARG002 - as above
        """See ObjectStore."""
        await asyncio.to_thread(self._put_file, check_key(key), path)

    async def adopt_file(self, key: str, path: Path, *, media_type: str) -> None:  # noqa: ARG002 - as above
        """See ObjectStore; the object is a second name of the file where their disk is the same."""
        await asyncio.to_thread(self._adopt_file, check_key(key), path)

    async def get_file(self, key: str, path: Path) -> int:
        """See ObjectStore."""
        return await asyncio.to_thread(self._get_file, check_key(key), path)

    async def borrow_file(self, key: str, path: Path) -> None:
        """See ObjectStore; the file is a second name of the object where their disk is the same."""
        await asyncio.to_thread(self._borrow_file, check_key(key), path)

    async def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """See ObjectStore; one thread for all."""
        return await asyncio.to_thread(self._sizes, [check_key(key) for key in keys])

    async def get(self, key: str) -> bytes:
        """See ObjectStore."""
        return await asyncio.to_thread(self._read, check_key(key), 0, None)

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        check_range(start, end)
        return await asyncio.to_thread(self._read, check_key(key), start, end)

    async def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return await asyncio.to_thread(self._head, check_key(key))

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        check_key(key)
        with suppress(ObjectMissingError):
            await asyncio.to_thread(self._delete, key)

    async def list(self, prefix: str = "") -> AsyncIterator[str]:
        """See ObjectStore. Memory is bounded by the largest folder."""
        folders = [check_prefix(prefix)]
        while folders:
            folder = folders.pop()
            below, keys = await asyncio.to_thread(self._scan, folder)
            folders.extend(below)
            for key in keys:
                yield key

    async def check(self) -> None:
        """As ObjectStore, and remove temporary files that a killed process left."""
        await super().check()
        await asyncio.to_thread(self._sweep)

    def _put_file(self, key: str, path: Path) -> None:
        self._place(key, lambda name, fd: _copy_file(path, name, fd))

    def _adopt_file(self, key: str, path: Path) -> None:
        self._place(key, lambda name, fd: _link_file(path, name, fd))

    def _put(self, key: str, data: bytes) -> None:
        self._place(key, lambda name, fd: _write_file(name, iter([data]), fd))

    def _place(self, key: str, write: Callable[[str, int], None]) -> None:
        """Have a temporary file written, by its name in a folder's descriptor, and give it the object's name."""
        folders, name = _split(key)
        temporary = secrets.token_hex(16)
        with _clear_errors():
            self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            with self._folder([TEMP_FOLDER], make=True) as temp_fd:
                try:
                    write(temporary, temp_fd)
                    with self._folder(folders, make=True) as fd:
                        os.rename(temporary, name, src_dir_fd=temp_fd, dst_dir_fd=fd)
                        os.fsync(fd)
                finally:
                    # after a failure; or the object was this very file, which rename(2) leaves under both names
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=temp_fd)

    def _get_file(self, key: str, path: Path) -> int:
        with self._object(key) as (fd, size), path.open("wb", buffering=0) as target:
            done = 0
            while done < size and (sent := os.sendfile(target.fileno(), fd, done, size - done)):
                done += sent
        return size

    def _borrow_file(self, key: str, path: Path) -> None:
        folders, name = _split(key)
        with ExitStack() as stack:
            with _clear_errors(reading=True):
                fd = stack.enter_context(self._folder(folders))
                if not stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    raise ObjectMissingError
            try:
                os.link(name, path, src_dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK and error.errno not in _ABSENT:
                    raise
                self._get_file(key, path)  # which says what is absent: the object, deleted by now, or the folder

    def _sizes(self, keys: _Names) -> dict[str, int]:
        found = {}
        for key in keys:
            with suppress(ObjectMissingError), _clear_errors(reading=True), self._file(key) as fd:
                found[key] = _regular(fd).st_size
        return found

    def _read(self, key: str, start: int, end: int | None) -> bytes:
        with _clear_errors(reading=True), self._file(key) as fd:
            size = _regular(fd).st_size
            stop = size if end is None else min(end, size)
            parts = bytearray()
            while len(parts) < stop - start:
                part = os.pread(fd, stop - start - len(parts), start + len(parts))
                if not part:
                    break
                parts += part
            return bytes(parts)

    def _head(self, key: str) -> ObjectInfo:
        with _clear_errors(reading=True), self._file(key) as fd:
            found = _regular(fd)
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        return ObjectInfo(found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC))

    def _delete(self, key: str) -> None:
        folders, name = _split(key)
        with _clear_errors(reading=True), self._folder(folders) as fd:
            if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)
                os.fsync(fd)

    def _scan(self, folder: str) -> tuple[_Names, _Names]:
        below: _Names = []
        keys: _Names = []
        parts = folder.split("/") if folder else []
        try:
            with _clear_errors(reading=True), self._folder(parts) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        below.append(key)
                    elif entry.is_file(follow_symlinks=False):
                        keys.append(key)
        except ObjectMissingError:
            return [], []
        return below, keys

    def _sweep(self) -> None:
        oldest = time.time() - TEMP_MAX_AGE_S
        with _clear_errors(), self._folder([TEMP_FOLDER], make=True) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process sweeps, or its writer has just renamed it
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=fd)

    @contextmanager
    def _object(self, key: str) -> Iterator[tuple[int, int]]:
        """An object's descriptor and size; errors of the block are the block's."""
        with ExitStack() as stack:
            with _clear_errors(reading=True):
                fd = stack.enter_context(self._file(key))
                size = _regular(fd).st_size
            yield fd, size

    @contextmanager
    def _file(self, key: str) -> Iterator[int]:
        folders, name = _split(key)
        with self._folder(folders) as folder_fd:
            fd = os.open(name, _READ_FLAGS, dir_fd=folder_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _folder(self, names: _Names, *, make: bool = False) -> Iterator[int]:
        """A descriptor of a folder below the root; the root itself may be a link, the operator chose it."""
        fd = os.open(self.root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        above: list[int] = []  # folders with a new one in them: synced at the end, when one flush is for all
        try:
            for name in names:
                made = make and _make_folder(name, fd)
                below = os.open(name, _FOLDER_FLAGS, dir_fd=fd)
                if made:
                    above.append(fd)
                else:
                    os.close(fd)
                fd = below
            yield fd
            for folder in reversed(above):
                os.fsync(folder)
        finally:
            for folder in (*above, fd):
                os.close(folder)


def _split(key: str) -> tuple[list[str], str]:
    *folders, name = key.split("/")
    return folders, name


def _make_folder(name: str, parent_fd: int) -> bool:
    """Whether it was not there before."""
    try:
        os.mkdir(name, FOLDER_MODE, dir_fd=parent_fd)
    except FileExistsError:
        return False
    return True


def _copy_file(path: Path, name: str, folder_fd: int) -> None:
    with path.open("rb") as source:
        _write_file(name, iter(lambda: source.read(PIECE_BYTES), b""), folder_fd)


def _link_file(path: Path, name: str, folder_fd: int) -> None:
    """Give a file a second name, or copy it where that cannot be; its bytes are on the disk afterwards."""
    try:
        os.link(path, name, dst_dir_fd=folder_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy_file(path, name, folder_fd)
        return
    fd = os.open(name, _READ_FLAGS, dir_fd=folder_fd)
    try:
        os.fchmod(fd, FILE_MODE)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_file(name: str, pieces: Iterator[bytes], folder_fd: int) -> None:
    with os.fdopen(os.open(name, _WRITE_FLAGS, FILE_MODE, dir_fd=folder_fd), "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def _regular(fd: int) -> os.stat_result:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise ObjectMissingError
    return found


@contextmanager
def _clear_errors(*, reading: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if reading and error.errno in _ABSENT:
            raise ObjectMissingError from error
        raise StoreError(_MESSAGES.get(error.errno or 0)) from error
