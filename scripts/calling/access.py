"""Where the gateway is, and the key to it: from the command line, else from the environment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from models.settings import CommonSettings, SettingsError, load_settings

FIRST_KEY = "first-key"


class AccessError(Exception):
    """The address or the key is missing or wrong; the message names the option."""


class CallerSettings(CommonSettings):
    """What commands that call a gateway read."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    api_key: SecretStr = Field(
        SecretStr(""),
        description="Key with which scripts/generate and scripts/smoke call a gateway. "
        "Default: the content of $IGEN_HOME/first-key.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port of the gateway.")


@dataclass(frozen=True, slots=True)
class Access:
    """A gateway's address without a slash at its end, and a key."""

    url: str
    key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def identity(self) -> str:
        """What tells one gateway and key from another, without the key."""
        return f"{self.url} {hashlib.sha256(self.key.encode()).hexdigest()[:16]}"


def find_access(url: str | None, key: str | None) -> Access:
    """The gateway that the options, else the environment, name.

    Raises:
        AccessError: no http address, or no key anywhere.

    """
    try:
        settings = load_settings(CallerSettings)
    except SettingsError as problem:
        raise AccessError(str(problem)) from None
    address = (url or f"http://127.0.0.1:{settings.port}").rstrip("/")
    _check_address(address)
    return Access(address, _checked_key(key or settings.api_key.get_secret_value() or _first_key(settings)))


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
        parts = urlsplit("")
    if not usable or parts.query or parts.fragment or parts.username:
        raise AccessError(
            f"--url: {address!r} is not an address such as https://igen.example or http://127.0.0.1:8000"
        )


def _first_key(settings: CallerSettings) -> str:
    path = settings.home / FIRST_KEY
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise AccessError(f"--key: give a key, or set IGEN_API_KEY; there is no {path} either") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise AccessError(f"--key: {path} cannot be read: {problem}") from None


def _checked_key(key: str) -> str:
    text = key.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise AccessError("--key: that is no key; one looks like igen_…_…")
    return text
