"""Names that the gateway makes: sortable row ids, picture capabilities, request ids."""

from __future__ import annotations

import re
import secrets
import time

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
PICTURE_NAME = re.compile(r"[0-9a-z]{26}")
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def new_id(prefix: str) -> str:
    """`<prefix>_` and 26 base32 characters: 48 bits of milliseconds, then 80 random bits, so that ids sort by age."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return f"{prefix}_{_base32(number)}"


def new_picture_name() -> str:
    """A capability: 128 random bits that nobody can guess."""
    return _base32(secrets.randbits(128))


def new_feed_token() -> str:
    """A capability for an output feed, as hard to guess as a picture's name."""
    return _base32(secrets.randbits(128))


def new_ticket() -> str:
    """A ticket for one WebSocket, as hard to guess."""
    return _base32(secrets.randbits(128))


def new_request_id() -> str:
    """A correlation id for a request that came without one."""
    return f"req_{secrets.token_hex(12)}"


def _base32(number: int) -> str:
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
