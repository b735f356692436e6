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
from functools import partial
from typing import TYPE_CHECKING

from models.store.base import NewObject, ObjectInfo, ObjectStore, check_range
from models.store.descriptors import (
    ABSENT,
    FOLDER_FLAGS,
    FOLDER_MODE,
    NO_LINK,
    READ_FLAGS,
    clear_errors,
    copy_file,
    link_file,
    make_folder,
    make_ready,
    regular,
    split_key,
    write_file,
)
from models.store.errors import ObjectMissingError
from models.store.keys import check_key, check_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

TEMP_FOLDER = ".tmp"
"""No key begins with a dot, so nothing in here is ever an object; it is on the store's own file system."""
TEMP_MAX_AGE_S = 3600.0

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
        await asyncio.to_thread(self._adopt_files, [NewObject(check_key(key), path, "")])

    async def adopt_files(self, files: Sequence[NewObject]) -> None:
        """See ObjectStore; one thread for all, and one flush of each folder."""
        for file in files:
            check_key(file.key)
        await asyncio.to_thread(self._adopt_files, files)

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
        self._place([(key, lambda name, fd: copy_file(path, name, fd))])

    def _adopt_files(self, files: Sequence[NewObject]) -> None:
        """Have all bytes on the disk, then give the files their keys as second names: no temporary one for each."""
        new: dict[tuple[str, ...], None] = {}
        with clear_errors():
            self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            ours = {file.key for file in files if make_ready(file.path, flush=file.lasting)}
            others = [file for file in files if file.key not in ours or not self._link(file, new)]
            self._flush_folders(new)
        if others:  # that lie on another disk, are another user's, or whose names are taken
            self._place([(file.key, partial(link_file, file.path)) for file in others])

    def _link(self, file: NewObject, new: dict[tuple[str, ...], None]) -> bool:
        """Give a file an object's name, if that is free and the file system can; adds folders to flush to `new`."""
        folders, name = split_key(file.key)
        with self._folder(folders, make=True, made=new) as fd:
            try:
                os.link(file.path, name, dst_dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK and error.errno != errno.EEXIST:
                    raise
                return False
        if file.lasting:
            new[tuple(folders)] = None
        return True

    def _put(self, key: str, data: bytes) -> None:
        self._place([(key, lambda name, fd: write_file(name, iter([data]), fd))])

    def _place(self, objects: Sequence[tuple[str, Callable[[str, int], None]]]) -> None:
        """Have temporary files written, each by its name in a folder's descriptor, and give them the objects' names.

        All bytes are on the disk before the first of them has its name, and all names are there at the end. One
        flush then is for many: a file system that keeps a journal writes out what came before with it.
        """
        temporary = {secrets.token_hex(16): made for made in objects}
        with clear_errors():
            self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            with self._folder([TEMP_FOLDER], make=True) as temp_fd:
                try:
                    for name, (_, write) in temporary.items():
                        write(name, temp_fd)
                    self._give_names({name: key for name, (key, _) in temporary.items()}, temp_fd)
                finally:
                    # after a failure; or the object was this very file, which rename(2) leaves under both names
                    for name in temporary:
                        with suppress(OSError):
                            os.unlink(name, dir_fd=temp_fd)

    def _give_names(self, keys: dict[str, str], temp_fd: int) -> None:
        new: dict[tuple[str, ...], None] = {}
        """Folders with new names in them, in the order of their making."""
        for temporary, key in keys.items():
            folders, name = split_key(key)
            with self._folder(folders, make=True, made=new) as fd:
                os.rename(temporary, name, src_dir_fd=temp_fd, dst_dir_fd=fd)
            new[tuple(folders)] = None
        self._flush_folders(new)

    def _flush_folders(self, changed: Iterable[tuple[str, ...]]) -> None:
        for folder in changed:
            with self._folder(folder) as fd:
                os.fsync(fd)

    def _get_file(self, key: str, path: Path) -> int:
        with self._object(key) as (fd, size), path.open("wb", buffering=0) as target:
            done = 0
            while done < size and (sent := os.sendfile(target.fileno(), fd, done, size - done)):
                done += sent
        return size

    def _borrow_file(self, key: str, path: Path) -> None:
        folders, name = split_key(key)
        with ExitStack() as stack:
            with clear_errors(reading=True):
                fd = stack.enter_context(self._folder(folders))
                if not stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    raise ObjectMissingError
            try:
                os.link(name, path, src_dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK and error.errno not in ABSENT:
                    raise
                self._get_file(key, path)  # which says what is absent: the object, deleted by now, or the folder

    def _sizes(self, keys: _Names) -> dict[str, int]:
        found = {}
        for key in keys:
            with suppress(ObjectMissingError), clear_errors(reading=True), self._file(key) as fd:
                found[key] = regular(fd).st_size
        return found

    def _read(self, key: str, start: int, end: int | None) -> bytes:
        with clear_errors(reading=True), self._file(key) as fd:
            size = regular(fd).st_size
            stop = size if end is None else min(end, size)
            parts = bytearray()
            while len(parts) < stop - start:
                part = os.pread(fd, stop - start - len(parts), start + len(parts))
                if not part:
                    break
                parts += part
            return bytes(parts)

    def _head(self, key: str) -> ObjectInfo:
        with clear_errors(reading=True), self._file(key) as fd:
            found = regular(fd)
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        return ObjectInfo(found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC))

    def _delete(self, key: str) -> None:
        folders, name = split_key(key)
        with clear_errors(reading=True), self._folder(folders) as fd:
            if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)
                os.fsync(fd)

    def _scan(self, folder: str) -> tuple[_Names, _Names]:
        below: _Names = []
        keys: _Names = []
        parts = folder.split("/") if folder else []
        try:
            with clear_errors(reading=True), self._folder(parts) as fd, os.scandir(fd) as entries:
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
        with clear_errors(), self._folder([TEMP_FOLDER], make=True) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process sweeps, or its writer has just renamed it
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=fd)

    @contextmanager
    def _object(self, key: str) -> Iterator[tuple[int, int]]:
        """An object's descriptor and size; errors of the block are the block's."""
        with ExitStack() as stack:
            with clear_errors(reading=True):
                fd = stack.enter_context(self._file(key))
                size = regular(fd).st_size
            yield fd, size

    @contextmanager
    def _file(self, key: str) -> Iterator[int]:
        folders, name = split_key(key)
        with self._folder(folders) as folder_fd:
            fd = os.open(name, READ_FLAGS, dir_fd=folder_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _folder(
        self, names: Sequence[str], *, make: bool = False, made: dict[tuple[str, ...], None] | None = None
    ) -> Iterator[int]:
        """A descriptor of a folder below the root; the root itself may be a link, the operator chose it.

        Folders above new ones are added to `made`, for the caller to flush.
        """
        fd = os.open(self.root, FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            for depth, name in enumerate(names):
                try:
                    below = os.open(name, FOLDER_FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    if make_folder(name, fd) and made is not None:
                        made[tuple(names[:depth])] = None
                    below = os.open(name, FOLDER_FLAGS, dir_fd=fd)
                fd, above = below, fd
                os.close(above)
            yield fd
        finally:
            os.close(fd)
