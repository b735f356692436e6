"""A folder for what a command makes: one process at a time, files whole or absent, a full disk said plainly."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderError(Exception):
    """The folder cannot be used; the message says why."""


class FolderBusyError(FolderError):
    """Another process works in it."""


def disk_words(problem: OSError, path: Path) -> str:
    """What an error of the file system means for whoever started the command."""
    if problem.errno in FULL:
        return f"The disk of {path} is full. Make room, then run the same command again to go on."
    return f"{problem.filename or path}: {problem.strerror or problem}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; the kernel lets go however the process ends.

    Raises:
        FolderBusyError: another process has it.
        FolderError: it cannot be made or written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as problem:
        raise FolderError(disk_words(problem, folder)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusyError(f"another process is at work in {folder}") from None
        yield


def write_whole(path: Path, data: bytes) -> None:
    """Write `path` so that it is whole or absent, whatever happens, and on the disk when this returns.

    Raises:
        OSError: it cannot be written; nothing of it is left.

    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See that the names of a folder's new files are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
