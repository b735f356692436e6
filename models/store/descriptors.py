"""Files and folders by descriptors: what a store in a folder of this machine is made of."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from models.store.base import PIECE_BYTES
from models.store.errors import ObjectMissingError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_MODE = 0o640
FOLDER_MODE = 0o750
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Another disk, a file system without hard links, a file of another user's, or one with too many names."""
_MESSAGES = {
    errno.ENOSPC: "The object store's disk is full.",
    errno.EDQUOT: "The object store's disk quota is used up.",
    errno.EROFS: "The object store's disk is read-only.",
    errno.EACCES: "The object store's folder may not be used by this process.",
    errno.EPERM: "The object store's folder may not be used by this process.",
}


def split_key(key: str) -> tuple[list[str], str]:
    """A key's folders, and the name in the last of them."""
    *folders, name = key.split("/")
    return folders, name


def make_folder(name: str, parent_fd: int) -> bool:
    """Make a folder; whether it was not there before."""
    try:
        os.mkdir(name, FOLDER_MODE, dir_fd=parent_fd)
    except FileExistsError:
        return False
    return True


def copy_file(path: Path, name: str, folder_fd: int) -> None:
    """Copy a file into a folder; its bytes are on the disk afterwards."""
    with path.open("rb") as source:
        write_file(name, iter(lambda: source.read(PIECE_BYTES), b""), folder_fd)


def make_ready(path: Path, *, flush: bool) -> bool:
    """Give a file the mode of objects and have its bytes on the disk; False: another user's, which is left alone."""
    fd = os.open(path, READ_FLAGS)
    try:
        if stat.S_IMODE(regular(fd).st_mode) != FILE_MODE:
            os.fchmod(fd, FILE_MODE)
        if flush:
            os.fsync(fd)
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def link_file(path: Path, name: str, folder_fd: int) -> None:
    """Give a file a second name, or copy it where that cannot be; its bytes are on the disk afterwards."""
    try:
        os.link(path, name, dst_dir_fd=folder_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        copy_file(path, name, folder_fd)
        return
    fd = os.open(name, READ_FLAGS, dir_fd=folder_fd)
    try:
        os.fchmod(fd, FILE_MODE)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(name: str, pieces: Iterator[bytes], folder_fd: int) -> None:
    """Write a new file in a folder; its bytes are on the disk afterwards."""
    with os.fdopen(os.open(name, WRITE_FLAGS, FILE_MODE, dir_fd=folder_fd), "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def regular(fd: int) -> os.stat_result:
    """What is known of an open file, which must be one; ObjectMissingError."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise ObjectMissingError
    return found


@contextmanager
def clear_errors(*, reading: bool = False) -> Iterator[None]:
    """Turn the system's errors into the store's."""
    try:
        yield
    except OSError as error:
        if reading and error.errno in ABSENT:
            raise ObjectMissingError from error
        raise StoreError(_MESSAGES.get(error.errno or 0)) from error
