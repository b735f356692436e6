"""API keys: `igen_<id>_<secret>`. The id finds the row, the secret's SHA-256 is compared, the secret is never kept.

A fast hash is right here: the secret is 256 random bits, which no dictionary holds.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from gateway.ids import new_id
from models.db import utc_now
from models.tables import ApiKey, User

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from models.db import Database

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY = re.compile(r"igen_([a-z2-7]{12})_([0-9A-Za-z]{43})")
NOBODY = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and with which key."""

    owner_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment when its text is known."""

    id: str
    text: str


class Keys:
    """The keys in the database."""

    def __init__(self, db: Database, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._db = db
        self._clock = clock

    async def find(self, text: str) -> Caller | None:
        """Whose key this is; None for one that is malformed, unknown, wrong, expired or revoked, or whose user is
        disabled. Asked anew each time, so a revocation holds at once.
        """
        parts = KEY.fullmatch(text)
        if parts is None:
            return None
        query = (
            select(ApiKey.owner_id, ApiKey.secret_sha256, ApiKey.expires_at, ApiKey.revoked_at, User.disabled_at)
            .join(User, User.id == ApiKey.owner_id)
            .where(ApiKey.id == parts[1])
        )
        async with self._db.read() as session:
            row = (await session.execute(query)).one_or_none()
        matches = secrets.compare_digest(_hash(parts[2]), row.secret_sha256 if row else NOBODY)
        if row is None or not matches or row.revoked_at is not None or row.disabled_at is not None:
            return None
        expired = row.expires_at is not None and row.expires_at <= self._clock()
        return None if expired else Caller(row.owner_id, parts[1])

    async def works(self, key_id: str) -> bool:
        """Whether a key that was good at the beginning of something long still is."""
        query = (
            select(ApiKey.expires_at)
            .join(User, User.id == ApiKey.owner_id)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None), User.disabled_at.is_(None))
        )
        async with self._db.read() as session:
            row = (await session.execute(query)).one_or_none()
        return row is not None and (row.expires_at is None or row.expires_at > self._clock())

    async def create(self, owner_id: str, name: str, *, expires_at: datetime | None = None) -> NewKey:
        """Make a key for a user."""
        key_id = "".join(secrets.choice(BASE32) for _ in range(12))
        secret = "".join(secrets.choice(BASE62) for _ in range(43))
        row = ApiKey(
            id=key_id,
            owner_id=owner_id,
            name=name,
            secret_sha256=_hash(secret),
            created_at=self._clock(),
            expires_at=expires_at,
        )
        async with self._db.write() as session:
            session.add(row)
        return NewKey(key_id, f"igen_{key_id}_{secret}")

    async def revoke(self, key_id: str) -> bool:
        """Make a key useless from now on. False when there is none of this id that was good."""
        query = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        async with self._db.write() as session:
            done = await session.execute(query.values(revoked_at=self._clock()).returning(ApiKey.id))
            return done.first() is not None

    async def list(self) -> list[tuple[ApiKey, User]]:
        """Every key with its user, oldest first."""
        query = select(ApiKey, User).join(User, User.id == ApiKey.owner_id).order_by(ApiKey.created_at)
        async with self._db.read() as session:
            return [(key, user) for key, user in await session.execute(query)]

    async def user(self, name: str) -> str:
        """The id of the user of this name, made if there is none."""
        async with self._db.write() as session:
            found = await session.scalar(select(User.id).where(User.name == name))
            if found is None:
                found = new_id("usr")
                session.add(User(id=found, name=name, created_at=self._clock()))
            return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
