"""The gateway's settings, read from `IGEN_*` variables."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from models.service_settings import HttpUrl, ServiceSettings, check_http_url

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
WILDCARD_BINDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to


class BackendKind(StrEnum):
    """Which rules a backend follows when a job is sent twice."""

    SELFHOSTED = "selfhosted"
    """Our own server: the gateway's id is the job's id, so sending it again joins the running job."""
    RUNPOD = "runpod"
    """RunPod makes its own id, so a job whose answer was lost must never be sent again."""


def _origin(value: str) -> str:
    parts = urlsplit(value)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if parts.port in (None, default) else f":{parts.port}")


def _origins(value: str) -> str:
    for each in filter(None, (part.strip() for part in value.split(","))):
        check_http_url(each)
        if urlsplit(each).path not in ("", "/"):
            raise ValueError("an origin has no path")
    return value


class GatewaySettings(ServiceSettings):
    """Variables of the gateway, beside those shared with the compositor. Times are in seconds."""

    allowed_hosts: str = Field(
        "",
        description="Host names that requests may be addressed to, comma-separated; `*.example.org` allows every "
        "name below it, `*` allows any. IGEN_PUBLIC_URL's host always may. Default: loopback names and IGEN_BIND.",
    )
    allowed_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "",
        description="Origins whose pages may open WebSockets here, comma-separated, such as https://shop.example. "
        "IGEN_PUBLIC_URL's own always may.",
    )
    backend_url: HttpUrl = Field(
        "http://127.0.0.1:8001/v2/igen",
        description="Generator of pictures, the endpoint in it; for RunPod https://api.runpod.ai/v2/<endpoint id>.",
    )
    backend_key: SecretStr = Field(
        SecretStr(""),
        description="Key that the backend demands. Default: the content of $IGEN_HOME/inference-key, if it exists.",
    )
    backend_kind: Literal["auto", "selfhosted", "runpod"] = Field(
        "auto",
        description="Rules of the backend: `auto` takes RunPod's queue for RunPod, and its load-balancing endpoints "
        "for a server of ours.",
    )
    backend_max_answer_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="Longest answer that is read from the backend, in bytes."
    )
    media_auth: Literal["none", "owner"] = Field(
        "none", description="`none`: whoever has a picture's link may see it; `owner`: only with a key of its owner."
    )
    max_inflight: int = Field(
        64, ge=1, le=10_000, description="Callers that may wait for pictures at once; more get 503 with Retry-After."
    )
    max_body_bytes: int = Field(1024 * 1024, ge=1024, description="Longest request body, in bytes; longer gets 413.")
    max_generate_bytes: int = Field(
        9_900_000,
        ge=1024,
        le=19_000_000,
        description="Longest request for a picture, in bytes, the pictures in it included. RunPod takes 10 MB with "
        "what the gateway adds, our own server 20 MB.",
    )
    preview_processes: int = Field(2, ge=1, le=64, description="Previews of a frame that are drawn at once.")
    max_zips: int = Field(
        4, ge=1, le=1000, description="Archives that one owner may download at once; more get 429 with Retry-After."
    )
    max_uploads: int = Field(
        4, ge=1, le=1000, description="Uploads that one owner may send at once; more get 429 with Retry-After."
    )
    keep_runs: int = Field(10, ge=1, description="Newest runs of each frame that are kept, however old they are.")
    keep_days: float = Field(
        30,
        gt=0,
        le=36_500,
        description="Days that any run is kept, and a product's picture that no kept run uses. A frame's published "
        "run is always kept.",
    )
    generation_timeout: float = Field(
        300, gt=0, le=86_400, description="Seconds from a request to its end; then the job is cancelled and 504 sent."
    )
    lease_seconds: float = Field(
        15, ge=1, le=600, description="Seconds after which a silent gateway's jobs are taken over by another."
    )
    drain_seconds: float = Field(
        10,
        ge=0,
        le=3600,
        description="Seconds that running jobs get to finish after SIGTERM; recovery does the rest.",
    )

    @property
    def backend_rules(self) -> BackendKind:
        """The kind of the backend, `auto` resolved by its host."""
        if self.backend_kind != "auto":
            return BackendKind(self.backend_kind)
        host = urlsplit(self.backend_url).hostname or ""
        balanced = host.endswith(".api.runpod.ai")  # in front of our own server: <endpoint id>.api.runpod.ai
        is_queue = f".{host}".endswith(".runpod.ai") and not balanced
        return BackendKind.RUNPOD if is_queue else BackendKind.SELFHOSTED

    @property
    def backend_secret(self) -> str:
        """The backend's key: the variable, else the file that the supervisor writes, else empty."""
        key = self.backend_key.get_secret_value()
        path = self.home / "inference-key"
        return key or (path.read_text().strip() if path.is_file() else "")

    @property
    def origins(self) -> frozenset[str]:
        """Allowed origins as browsers spell them: scheme, host, and the port where it is not the scheme's own."""
        named = [each.strip().rstrip("/").lower() for each in self.allowed_origins.split(",") if each.strip()]
        return frozenset(_origin(each) for each in [*named, self.public_base])

    @property
    def uploads(self) -> Path:
        """Where files of requests under way lie."""
        return self.home.absolute() / "tmp" / "uploads"

    @property
    def previews(self) -> Path:
        """Where feeds and product pictures are kept between previews, for some minutes."""
        return self.home.absolute() / "tmp" / "previews"

    @property
    def feeds(self) -> Path:
        """Where published feeds are made anew."""
        return self.home.absolute() / "tmp" / "feeds"

    @property
    def hosts(self) -> frozenset[str]:
        """Allowed host names in lower case, without ports."""
        named = [host.strip().lower() for host in self.allowed_hosts.split(",") if host.strip()]
        if not named:
            named = [*LOOPBACK_NAMES, *([] if self.bind in WILDCARD_BINDS else [self.bind.lower()])]
        public = urlsplit(self.public_base).hostname or ""
        return frozenset([*named, f"[{public}]" if ":" in public else public])
