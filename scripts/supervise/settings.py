"""What the supervisor itself reads, and which services follow from it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from models.settings import CommonSettings

if TYPE_CHECKING:
    from pathlib import Path


class SupervisorSettings(CommonSettings):
    """Variables of `scripts/up`. Those that it shares with the gateway or the inference server have their names."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    torch_index: str = Field(
        "", description="Package index that scripts/up installs torch from. Empty: the default one."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port of the gateway.")
    inference_port: int = Field(8001, ge=1, le=65535, description="Port of the inference server.")
    endpoint: str = Field("igen", description="Endpoint name in `/v2/<endpoint>/...`.")
    inference_key: str = Field(
        "",
        repr=False,
        description="Key that the inference server demands. Empty: made once, kept in `$IGEN_HOME/inference-key`.",
    )
    backend_url: str = Field(
        "",
        description="Where pictures are drawn, with the endpoint in it. Empty: the inference server of scripts/up, "
        "`http://127.0.0.1:8001/v2/igen`.",
    )
    redis_url: str = Field("", description="A Redis to use. Empty: scripts/up starts one of its own.")
    workers: int = Field(
        2,
        ge=0,
        le=64,
        description="Compositor workers that scripts/up starts; 0: none, feeds are worked on elsewhere.",
    )
    checkpoint: str = Field("tiny", description="Checkpoint to draw with. `tiny` is the bundled demonstration one.")
    stop_timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds that scripts/up gives its programs to stop before it kills them."
    )

    @property
    def local_backend_url(self) -> str:
        """The address of the inference server that the supervisor itself starts."""
        return f"http://{connect_host(self.bind)}:{self.inference_port}/v2/{self.endpoint}"

    @property
    def draws_here(self) -> bool:
        """Whether the backend is the supervisor's own inference server."""
        if not self.backend_url:
            return True
        there = urlsplit(self.backend_url)
        local = there.hostname in ("localhost", connect_host(self.bind).strip("[]"))
        return local and there.port == self.inference_port

    @property
    def address(self) -> str:
        """The gateway's address as this machine reaches it."""
        return f"http://{connect_host(self.bind)}:{self.port}"

    @property
    def logs(self) -> Path:
        """Folder of the services' logs."""
        return self.home / "logs"


def connect_host(bind: str) -> str:
    """The host by which this machine reaches a server bound to `bind`; IPv6 addresses in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bind, bind)  # noqa: S104 - only translated
    return f"[{host}]" if ":" in host else host
