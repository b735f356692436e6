"""Is it alive, does the key work, does it draw, and is a repeated request answered without drawing again?"""

from __future__ import annotations

import asyncio
import io
import secrets
from typing import TYPE_CHECKING, Any

from PIL import Image

from scripts.smoking.steps import StepError, Steps, ask

if TYPE_CHECKING:
    from scripts.calling.gateway import Gateway, Reply

BUSY = 503
RETRIES_S = 120.0
DEFAULT_PAUSE_S = 5.0


class Drawing:
    """The steps of generation. Afterwards `picture_url` is the link to a picture."""

    def __init__(self, gateway: Gateway, prompt: str) -> None:
        self._gateway = gateway
        self._prompt = prompt
        self._key = f"smoke-{secrets.token_hex(12)}"
        self._first: dict[str, Any] = {}

    @property
    def picture_url(self) -> str:
        """The picture's link, as the gateway tells it."""
        return str(self._first.get("image_url", ""))

    async def take(self, steps: Steps) -> None:
        """All of them."""
        await steps.take("alive", self._alive)
        await steps.take("ready", self._ready, after="alive")
        await steps.take("key", self._key_works, after="alive")
        await steps.take("generate", self._generate, after="key")
        await steps.take("picture", self._picture, after="generate")
        await steps.take("replay", self._replay, after="generate")

    async def clean_up(self, steps: Steps) -> None:
        """Delete the picture, where one was drawn."""
        if self._first:
            await steps.take("delete", self._delete)

    async def _alive(self) -> str:
        reply = await ask(self._gateway, "GET", "/healthz", anonymous=True)
        if not isinstance(reply.body, dict) or reply.body.get("status") != "ok":
            raise StepError("/healthz answers, but not as a gateway of IGen does: is this its address?")
        return "/healthz answers"

    async def _ready(self) -> str:
        reply = await ask(self._gateway, "GET", "/readyz", 200, BUSY, anonymous=True)
        told = reply.body if isinstance(reply.body, dict) else {}
        checks = told.get("checks", {})
        bad = ", ".join(f"{name}: {state}" for name, state in checks.items() if state != "ok")
        if told.get("status") != "ready" or bad:
            raise StepError(
                f"{told.get('status', 'no status')}: {bad or 'it is stopping'} (scripts/doctor says more)"
            )
        return f"{', '.join(checks)}"

    async def _key_works(self) -> str:
        await ask(self._gateway, "GET", "/api/generations/?limit=1")
        refused = await self._gateway.request("GET", "/api/generations/?limit=1", anonymous=True)
        if refused.status != 401:  # noqa: PLR2004
            raise StepError(f"without a key the answer is {refused.status}, not 401: something in front adds one")
        return "accepted; without it 401"

    async def _generate(self) -> str:
        reply = await self._post()
        told = reply.body if isinstance(reply.body, dict) else {}
        if not told.get("images"):
            raise StepError("the answer names no pictures")
        self._first = told
        demonstration = ", the demonstration checkpoint" if told.get("demonstration") else ""
        return f"{told['id']}, {told['width']}x{told['height']}, checkpoint {told.get('checkpoint')}{demonstration}"

    async def _picture(self) -> str:
        path = self._gateway.path_of(self.picture_url)
        reply = await ask(self._gateway, "GET", path)
        size = picture_size(reply.raw)
        if size != (self._first["width"], self._first["height"]):
            raise StepError(f"the picture is {size[0]}x{size[1]}, not as the answer says")
        return f"{len(reply.raw)} bytes from {path}"

    async def _replay(self) -> str:
        reply = await self._post()
        if reply.body.get("id") != self._first["id"] or reply.headers.get("Idempotency-Replayed") != "true":
            raise StepError("the same Idempotency-Key began another generation: it would be paid for twice")
        if reply.body.get("image_url") != self.picture_url:
            raise StepError("the same generation is told with another picture")
        return "the same Idempotency-Key, the same answer"

    async def _delete(self) -> str:
        path = f"/api/generations/{self._first['id']}"
        await ask(self._gateway, "DELETE", path, 204)
        await ask(self._gateway, "GET", path, 404)
        await ask(self._gateway, "GET", self._gateway.path_of(self.picture_url), 404)
        await ask(self._gateway, "DELETE", path, 204)
        return "the picture and its link are gone"

    async def _post(self) -> Reply:
        """The request, made again while the gateway says that it is full or that the backend is still loading."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RETRIES_S
        while True:
            reply = await self._gateway.request(
                "POST", "/api/generate/", body={"prompt": self._prompt}, headers={"Idempotency-Key": self._key}
            )
            pause = reply.retry_after_s or DEFAULT_PAUSE_S
            if not reply.error.get("retryable") or loop.time() + pause > give_up:
                break
            await asyncio.sleep(pause)
        if reply.status != 200:  # noqa: PLR2004
            raise StepError(f"POST /api/generate/ was answered {reply.status} {reply.code}: {reply.reason}")
        return reply


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture that decodes whole.

    Raises:
        StepError: it does not.

    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture.size
    except (OSError, SyntaxError, ValueError) as problem:
        raise StepError(f"that is no whole picture: {problem}") from None
