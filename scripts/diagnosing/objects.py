"""The object store: can an object be written, read and deleted, and is there room."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from models.settings import SettingsError
from models.store import StoreError, open_store
from models.store.local import LocalObjects
from scripts.diagnosing.finding import fault, good, skipped
from scripts.diagnosing.machine import check_disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scripts.diagnosing.finding import Finding

PART = "store"
TIMEOUT_S = 10.0
SHOWN_CHARS = 300
LOCAL = "see that {} is this user's to write, and its disk neither full nor read-only"
BUCKET = (
    "see that the bucket exists, that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY may read, write, list and "
    "delete in it, and that the endpoint in IGEN_STORE_URL is reached from here"
)


async def check_store(address: str) -> AsyncIterator[Finding]:
    """Try it with a small object of our own."""
    try:
        store = open_store(address, timeout_s=TIMEOUT_S)
    except SettingsError as problem:
        yield fault(PART, str(problem), "correct IGEN_STORE_URL")
        return
    local = isinstance(store, LocalObjects)
    if isinstance(store, LocalObjects) and not store.root.exists():
        yield _not_made_yet(store.root)
        return
    try:
        await store.check()
    except StoreError as problem:
        cause = str(problem.__cause__ or "").strip()[:SHOWN_CHARS]
        mend = LOCAL.format(address.removeprefix("file://")) if local else BUCKET
        yield fault(PART, f"{problem.message}" + (f" ({cause})" if cause else ""), mend)
        return
    yield good(PART, "an object was written, read and deleted")
    if isinstance(store, LocalObjects):
        yield check_disk("store's disk", store.root)


def _not_made_yet(root: Path) -> Finding:
    """It is not for the doctor to make it: the folder would be the doctor's user's."""
    above = next(each for each in root.parents if each.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return skipped(PART, f"there is no folder {root} yet; the first picture makes it")
    return fault(PART, f"there is no folder {root}, and {above} is not this user's to write", LOCAL.format(root))
