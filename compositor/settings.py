"""The compositor's settings, read from `IGEN_*` variables by its workers and its reconciler."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from models.db import async_url
from models.settings import CommonSettings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path


class CompositorSettings(CommonSettings):
    """Variables of workers and reconciler. Times are in seconds. Those shared with the gateway mean the same."""

    port: int = Field(8000, ge=0, le=65535, description="Port of the gateway.")
    public_url: str | None = Field(None, description="Address under which callers reach the gateway.")
    database_url: SecretStr | None = Field(None, description="The database. Default: $IGEN_HOME/igen.db.")
    redis_url: SecretStr | None = Field(None, description="Redis, which carries the queues and progress.")
    store_url: SecretStr | None = Field(None, description="Where pictures are kept. Default: $IGEN_HOME/store.")
    chunk_size: int = Field(50, ge=1, le=100, description="Products that a worker takes from a run at a time.")
    chunk_lease_seconds: float = Field(
        30, ge=1, le=600, description="Seconds after which a silent worker's products are taken over by another."
    )
    feed_max_bytes: int = Field(
        2 * 1024**3, ge=1024, description="Longest feed, in bytes after decompression; a longer one fails its run."
    )
    feed_max_items: int = Field(
        1_000_000, ge=1, description="Most entries of one feed; a feed with more fails its run."
    )
    feed_timeout: float = Field(600, gt=0, le=7200, description="Seconds that downloading a feed may take.")
    source_max_bytes: int = Field(
        25 * 1024**2, ge=1024, description="Largest product picture, in bytes; a larger one fails its product."
    )
    fetch_per_host: int = Field(
        8, ge=1, le=64, description="Product pictures that one worker fetches from one host at a time."
    )
    compose_timeout: float = Field(
        20, gt=0, le=600, description="Seconds that one product's picture may take to decode, compose and encode."
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            async_url(value.get_secret_value())
        return value

    @field_validator("public_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http://host... or https://host...")
        return value.rstrip("/")

    @property
    def database(self) -> str:
        """The database's address, the default filled in."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'igen.db'}"

    @property
    def store(self) -> str:
        """The store's address, the default filled in."""
        return self.store_url.get_secret_value() if self.store_url else f"file://{(self.home / 'store').resolve()}"

    @property
    def redis(self) -> str:
        """Redis's address.

        Raises:
            SettingsError: there is none.

        """
        if self.redis_url is None or not self.redis_url.get_secret_value():
            raise SettingsError("IGEN_REDIS_URL: the compositor needs a Redis for its queues")
        return self.redis_url.get_secret_value()

    @property
    def public_base(self) -> str:
        """What links to pictures begin with, without a slash at the end."""
        return self.public_url or f"http://127.0.0.1:{self.port}"

    @property
    def work_folder(self) -> Path:
        """Where pictures lie while they are worked on."""
        return (self.home / "work").absolute()
