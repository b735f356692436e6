"""Variables that the gateway and the compositor read alike: where rows, objects and queues are, bounds of feeds."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from models.db import async_url
from models.settings import CommonSettings


def check_http_url(value: str) -> str:
    """An address of scheme and host, perhaps port and path; without its last slash. ValueError for any other."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://host... or https://host...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(check_http_url)]


class ServiceSettings(CommonSettings):
    """What both programs must agree on; a variable that only one reads is in that program's own settings."""

    port: int = Field(8000, ge=0, le=65535, description="Port of the gateway.")
    public_url: HttpUrl | None = Field(
        None,
        description="Address under which callers reach the gateway; links to pictures begin with it. "
        "Default: http://127.0.0.1:<port>.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="`sqlite:///path` or `postgresql://user:password@host/name`. Default: $IGEN_HOME/igen.db.",
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis: runs of feeds, their progress and WebSocket tickets need it; readiness reports it."
    )
    store_url: SecretStr | None = Field(
        None,
        description="Where pictures are kept: `file:///folder` or `s3://bucket/prefix`. Default: $IGEN_HOME/store.",
    )
    feed_max_bytes: int = Field(
        2 * 1024**3,
        ge=1024,
        description="Longest feed, in bytes after decompression; a longer one fails its run, or its upload.",
    )
    source_max_bytes: int = Field(
        25 * 1024**2, ge=1024, description="Largest product picture, in bytes; a larger one fails its product."
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            async_url(value.get_secret_value())
        return value

    @property
    def database(self) -> str:
        """The database's address, the default filled in."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'igen.db'}"

    @property
    def store(self) -> str:
        """The store's address, the default filled in."""
        return self.store_url.get_secret_value() if self.store_url else f"file://{(self.home / 'store').resolve()}"

    @property
    def public_base(self) -> str:
        """What links to pictures begin with, without a slash at the end."""
        return self.public_url or f"http://127.0.0.1:{self.port}"
