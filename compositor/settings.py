"""The compositor's settings, read from `IGEN_*` variables by its workers and its reconciler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from models.service_settings import ServiceSettings
from models.settings import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


class CompositorSettings(ServiceSettings):
    """Variables of workers and reconciler, beside those shared with the gateway. Times are in seconds."""

    chunk_size: int = Field(50, ge=1, le=100, description="Products that a worker takes from a run at a time.")
    chunk_lease_seconds: float = Field(
        30, ge=1, le=600, description="Seconds after which a silent worker's products are taken over by another."
    )
    feed_max_items: int = Field(
        1_000_000, ge=1, description="Most entries of one feed; a feed with more fails its run."
    )
    feed_timeout: float = Field(600, gt=0, le=7200, description="Seconds that downloading a feed may take.")
    fetch_per_host: int = Field(
        8, ge=1, le=64, description="Product pictures that one worker fetches from one host at a time."
    )
    compose_timeout: float = Field(
        20, gt=0, le=600, description="Seconds that one product's picture may take to decode, compose and encode."
    )

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
    def work_folder(self) -> Path:
        """Where pictures lie while they are worked on."""
        return (self.home / "work").absolute()
