"""RunPod's management API: REST v2, and GraphQL for the one setting that v2 does not have, cached models.

REST v1 (rest.runpod.io) was retired on 2026-11-15 in favour of v2 (https://docs.runpod.io/api-reference-v2/migrate-from-v1).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Protocol, Self

import aiohttp
from yarl import URL

from scripts.deploying.errors import DeployError, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

API = "https://api.runpod.io"
TRIES = 4
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 60.0
TOO_MANY = 429
MASK = "****"
SHORTEST_SECRET = 4  # masking shorter ones would tear texts apart and hide nothing

Body = dict[str, Any]


class Api(Protocol):
    """What the deployment asks of RunPod."""

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Body:
        """One call; an empty object where the answer has no body.

        Raises:
            DeployError: RunPod refused it or cannot be reached.

        """


class Missing(DeployError):  # noqa: N818 - a state of the thing asked for, not a fault
    """RunPod knows nothing of this id."""


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret value masked, longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
            text = text.replace(json.dumps(secret)[1:-1], MASK)
    return text


class RunpodApi:
    """The real API. Use as an async context manager."""

    def __init__(
        self,
        key: str,
        base: str = API,
        secrets: Iterable[str] = (),
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        """Take the account's key.

        Args:
            key: sent to `base` alone.
            base: where the API is.
            secrets: values that no message may show; RunPod repeats bodies in some of its refusals.
            sleep: waits between tries, in seconds.

        Raises:
            DeployError: `base` is no https address; plain http is for this machine alone.

        """
        url = URL(base)
        if url.scheme != "https" and url.host not in ("127.0.0.1", "localhost", "::1"):
            raise DeployError(f"{base}: the key is sent over https only")
        self._key = key
        self._base = base.rstrip("/")
        self._secrets = (*secrets, key)
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}", "User-Agent": "igen-deploy"},
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            trust_env=self._base.startswith("https:"),  # an operator's HTTPS_PROXY
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Body:
        """One call. RunPod's 429 is waited out; a lost answer is not tried again, for the call may have been done.

        Raises:
            Missing: 404.
            DeployError: RunPod refused it or cannot be reached.

        """
        for attempt in range(1, TRIES + 1):
            status, wait_s, text = await self._send(method, path, body)
            if status != TOO_MANY or attempt == TRIES or wait_s > LONGEST_WAIT_S:
                break
            await self._sleep(wait_s)
        return self._read(f"{method} {path}", status, text)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, float, str]:
        assert self._session is not None
        try:
            async with self._session.request(method, self._base + path, json=body, allow_redirects=False) as answer:
                return answer.status, _retry_after(answer.headers.get("Retry-After")), await answer.text()
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as problem:
            reason = str(problem) or type(problem).__name__
            raise DeployError(
                f"No answer from RunPod's API at {method} {path} ({reason}). Run the same command again: "
                "it looks for what was made before it makes anything."
            ) from None

    def _read(self, call: str, status: int, text: str) -> Body:
        found = _json(text)
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP's range of success
            if not text:
                return {}
            if isinstance(found, dict):
                return found
            raise DeployError(f"RunPod's API answered {call} with something that is no JSON object.")
        detail = scrub(_detail(found), self._secrets)
        if status == 404:  # noqa: PLR2004
            raise Missing(explain(status, detail, call))
        raise DeployError(explain(status, detail, call))


def _retry_after(text: str | None) -> float:
    try:
        return max(0.0, float(text or 5))
    except ValueError:
        return 5.0


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _detail(found: Any) -> str:
    """RunPod's words in a problem document (RFC 9457); empty for a page of HTML."""
    if not isinstance(found, dict):
        return ""
    words = [str(found.get("detail") or found.get("message") or found.get("title") or "")]
    errors = found.get("errors")
    words += [str(item) for item in errors] if isinstance(errors, list) else []
    return "; ".join(filter(None, words))
