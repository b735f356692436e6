"""A frame, a feed of two products, a run watched over a WebSocket, its pictures, the output feed; and away again."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import aiohttp
from PIL import Image

from scripts.smoking.drawing import picture_size
from scripts.smoking.steps import StepError, Steps, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.calling.gateway import Gateway

SIDE, HOLE = 240, 40
PRODUCTS = 2
ENDS = ("completed", "completed_with_failures", "cancelled", "failed")
REFUSED_HERE = ("source_blocked", "source_refused", "source_unavailable", "source_not_found")
ALLOW = (
    "The workers may not fetch these product pictures. Set IGEN_FETCH_ALLOW_HOSTS=host:port for the gateway's own "
    "address at the workers, give an address of this machine that they allow and reach (--origin), or leave framing "
    "out (--no-framing)."
)


class Framing:
    """The steps of a run, over two products with the pictures `links`."""

    def __init__(self, gateway: Gateway, links: Sequence[str], *, run_s: float) -> None:
        self._gateway = gateway
        self._links = links
        self._run_s = run_s
        self._frame: dict[str, Any] = {}
        self._run: dict[str, Any] = {}
        self._outputs: list[str] = []

    async def take(self, steps: Steps) -> None:
        """All of them; the frame is deleted whatever happened."""
        try:
            await steps.take("frame", self._make_frame)
            await steps.take("run", self._watch_run, after="frame")
            await steps.take("outputs", self._check_outputs, after="run")
            await steps.take("output feed", self._check_feed, after="run")
        finally:
            if self._frame:
                await steps.take("clean up", self._delete)

    async def _make_frame(self) -> str:
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("name", "scripts/smoke")
        form.add_field("picture", frame_picture(), filename="frame.png", content_type="image/png")
        form.add_field("feed", feed_of(self._links), filename="feed.xml", content_type="application/xml")
        box = {"x": HOLE, "y": HOLE, "width": SIDE - 2 * HOLE, "height": SIDE - 2 * HOLE}
        form.add_field("design", json.dumps({"placement": {"box": box}}))
        reply = await ask(self._gateway, "POST", "/api/frames", 201, form=form)
        self._frame = reply.body
        return f"no. {self._frame['id']}, with a feed of {PRODUCTS} products"

    async def _watch_run(self) -> str:
        """The run is started once the socket is open, so that all of it is seen."""
        frame = self._frame["id"]
        messages = 0
        address = f"{self._gateway.access.url}/ws/progress/{frame}/"
        try:
            async with (
                asyncio.timeout(self._run_s),
                self._gateway.http.ws_connect(address, headers=self._gateway.access.headers) as socket,
            ):
                self._run = (await ask(self._gateway, "POST", f"/api/frames/{frame}/runs", 202)).body
                last: dict[str, Any] = {}
                while last.get("run_id") != self._run["id"] or last.get("state") not in ENDS:
                    last = await _next_message(socket)
                    messages += 1
        except TimeoutError:
            raise StepError(await self._too_slow()) from None
        except aiohttp.WSServerHandshakeError as problem:
            raise StepError(
                f"the WebSocket was answered {problem.status}: does what is in front pass it on?"
            ) from None
        except aiohttp.ClientError as problem:
            raise StepError(f"the WebSocket broke: {problem}") from None
        await self._check_run(last)
        return f"{last['state']}, {messages} messages over the WebSocket"

    async def _check_run(self, last: dict[str, Any]) -> None:
        frame, run = self._frame["id"], self._run["id"]
        self._run = (await ask(self._gateway, "GET", f"/api/frames/{frame}/runs/{run}")).body
        numbers = {name: self._run[name] for name in ("total", "completed", "failed", "skipped")}
        if self._run["state"] != "completed" or numbers["completed"] != PRODUCTS:
            raise StepError(await self._why(numbers))
        if (last.get("processed"), last.get("total")) != (PRODUCTS, PRODUCTS):
            raise StepError(f"the WebSocket's last word is {last.get('processed')} of {last.get('total')}")

    async def _why(self, numbers: dict[str, int]) -> str:
        if self._run.get("error"):
            return f"the run ended {self._run['state']}: {self._run['error']['message']}"
        reply = await ask(self._gateway, "GET", f"/api/frames/{self._frame['id']}/failures?run_id={self._run['id']}")
        reasons = {row["code"]: row["reason"] for row in reply.body["outputs"]}
        said = "; ".join(f"{code}: {reason.rstrip('.')}" for code, reason in reasons.items())
        advice = f" {ALLOW}" if reasons.keys() & set(REFUSED_HERE) else ""
        return f"the run ended {self._run['state']} with {numbers}: {said}.{advice}"

    async def _too_slow(self) -> str:
        told = f"the run has not ended in {self._run_s:g} s"
        if not self._run:
            return f"{told}: the WebSocket did not open"
        reply = await ask(self._gateway, "GET", f"/api/frames/{self._frame['id']}/runs/{self._run['id']}")
        state = reply.body["state"]
        return f"{told}, it is {state}" + (": does a compositor worker run?" if state == "queued" else "")

    async def _check_outputs(self) -> str:
        reply = await ask(self._gateway, "GET", f"/api/frames/{self._frame['id']}/outputs?run_id={self._run['id']}")
        rows = reply.body["outputs"]
        self._outputs = [output["url"] for row in rows for output in row["outputs"]]
        if len(rows) != PRODUCTS or len(self._outputs) != PRODUCTS:
            raise StepError(f"{len(rows)} products with {len(self._outputs)} pictures are listed, not {PRODUCTS}")
        for link in self._outputs:
            picture = await ask(self._gateway, "GET", self._gateway.path_of(link))
            if picture_size(picture.raw) != (SIDE, SIDE):
                raise StepError(f"{link} is not {SIDE}x{SIDE} pixels")
        return f"{len(self._outputs)} pictures of {SIDE}x{SIDE}"

    async def _check_feed(self) -> str:
        frame = (await ask(self._gateway, "GET", f"/api/frames/{self._frame['id']}")).body
        path = self._gateway.path_of(frame["output_feed"]["xml"])
        reply = await ask(self._gateway, "GET", path, anonymous=True)
        missing = [link for link in self._outputs if link.encode() not in reply.raw]
        if missing or any(f">{escape(link)}<".encode() in reply.raw for link in self._links):
            raise StepError("the output feed does not have the framed pictures' links in place of the products'")
        return f"{len(reply.raw)} bytes, both links replaced"

    async def _delete(self) -> str:
        path = f"/api/frames/{self._frame['id']}"
        await ask(self._gateway, "DELETE", path, 204)
        await ask(self._gateway, "GET", path, 404)
        return "the frame, its outputs and its feed are gone"


async def _next_message(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise StepError(f"the WebSocket closed ({socket.close_code}) before the run ended")
    found = json.loads(message.data)
    if not isinstance(found, dict) or found.get("type") == "error":
        raise StepError(f"the WebSocket tells of an error: {message.data[:300]}")
    return found


def frame_picture() -> bytes:
    """A square frame with a hole, as PNG."""
    picture = Image.new("RGBA", (SIDE, SIDE), (20, 60, 120, 255))
    picture.paste((0, 0, 0, 0), (HOLE, HOLE, SIDE - HOLE, SIDE - HOLE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def feed_of(links: Sequence[str]) -> bytes:
    """A Google Merchant feed, an entry for each link."""
    entries = "".join(
        f"<entry><g:id>smoke-{number}</g:id><title>Thing {number}</title><g:price>10.00 EUR</g:price>"
        f"<g:image_link>{escape(link)}</g:image_link></entry>"
        for number, link in enumerate(links, 1)
    )
    head = '<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{entries}</feed>\n'.encode()
