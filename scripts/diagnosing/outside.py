"""The gateway as this machine and as callers reach it; and what composing needs of the imaging library."""

from __future__ import annotations

import ipaddress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PIL import ImageFont, features

import compositor
from models.db import utc_now
from scripts.calling.access import Access
from scripts.calling.gateway import Gateway, UnreachableError
from scripts.diagnosing.finding import clock, fault, good, skipped, warning
from scripts.supervise.settings import connect_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from gateway.settings import GatewaySettings
    from scripts.calling.gateway import Reply
    from scripts.diagnosing.finding import Finding
    from scripts.supervise.settings import SupervisorSettings

ANSWER_S = 10.0
PART = "public address"
FONTS = Path(str(compositor.__file__)).parent / "fonts"
LIBRARIES = ("jpg", "zlib", "webp", "freetype2")


async def gateway_answers(settings: GatewaySettings) -> bool:
    """Whether a gateway listens where these settings say."""
    return _is_ours(await _health(f"http://{connect_host(settings.bind)}:{settings.port}", settings.public_url))


async def generator_answers(settings: SupervisorSettings) -> bool:
    """Whether an inference server listens where these settings say, loading or ready."""
    reply = await _ask(f"http://{connect_host(settings.bind)}:{settings.inference_port}", "/ping")
    return not isinstance(reply, str) and reply.status in (200, 204)


async def check_public_address(settings: GatewaySettings, *, runs: bool) -> AsyncIterator[Finding]:
    """Whether links to pictures lead to this gateway."""
    if settings.public_url is None:
        if _is_loopback(settings.bind):
            yield good(
                PART, f"IGEN_PUBLIC_URL is not set; links begin with {settings.public_base}, for this machine alone"
            )
        else:
            mend = "set IGEN_PUBLIC_URL to the address by which callers reach it, such as https://igen.example"
            told = f"the gateway listens on {settings.bind}, but links to pictures begin with {settings.public_base}"
            yield fault(PART, told, mend)
        return
    address = settings.public_url
    if address.startswith("http://") and not _is_loopback(urlsplit(address).hostname or ""):
        mend = "put a proxy with TLS in front, and https:// in IGEN_PUBLIC_URL"
        yield warning(PART, f"{address} is not encrypted: keys and pictures can be read on the way", mend)
    if not runs:
        yield skipped(PART, f"whether {address} leads here is seen once the gateway runs")
        return
    reply = await _health(address)
    if isinstance(reply, str):
        mend = "see name, certificate, proxy and firewall (from inside a network its own public name may be closed)"
        yield fault(PART, f"{address}/healthz is not reached from here: {reply}", mend)
    elif not _is_ours(reply):
        mend = "correct IGEN_PUBLIC_URL, or the proxy's way to the gateway"
        yield fault(PART, f"{address}/healthz was answered {reply.status}, not as a gateway of IGen does", mend)
    else:
        yield good(PART, f"{address} leads to a gateway")
        if (date := reply.headers.get("Date")) is not None:
            yield clock("proxy's clock", (parsedate_to_datetime(date) - utc_now()).total_seconds())


async def _health(address: str, host_of: str | None = None) -> Reply | str:
    """The answer of /healthz, or why there is none. `host_of` is an address whose name the gateway answers to."""
    return await _ask(address, "/healthz", {"Host": urlsplit(host_of).netloc} if host_of else {})


async def _ask(address: str, path: str, headers: Mapping[str, str] | None = None) -> Reply | str:
    async with Gateway(Access(address, ""), answer_s=ANSWER_S) as http:
        try:
            return await http.request("GET", path, headers=headers, anonymous=True)
        except UnreachableError as problem:
            return str(problem)


def _is_ours(reply: Reply | str) -> bool:
    if isinstance(reply, str):
        return False
    return reply.status == 200 and reply.body == {"status": "ok"}  # noqa: PLR2004


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_composing(fonts: Path = FONTS, has: Callable[[str], bool | None] = features.check) -> Iterator[Finding]:
    """Whether pictures can be read and text be drawn in every script."""
    lacking = [name for name in LIBRARIES if not has(name)]
    if lacking:
        mend = "install the pinned Pillow again: .venv/bin/pip install --force-reinstall -c constraints.txt pillow"
        yield fault("composing", f"Pillow was built without {', '.join(lacking)}", mend)
    if not has("raqm"):
        mend = "apt-get install libfribidi0, which Pillow's own wheel looks for; another Pillow must have Raqm in it"
        told = "Raqm or its FriBiDi is missing: Arabic, Hebrew, Hindi and others come out broken"
        yield fault("fonts", told, mend)
    try:
        names = [
            " ".join(filter(None, ImageFont.truetype(path, 20).getname())) for path in sorted(fonts.glob("*.ttf"))
        ]
    except OSError as problem:
        names = []
        yield fault("fonts", f"a font in {fonts} cannot be read: {problem}", "check the installation out again")
    else:
        if not names:
            yield fault("fonts", f"there are no fonts in {fonts}", "check the installation out again")
    if names and not lacking and has("raqm"):
        yield good("fonts", f"{', '.join(names)}; Raqm shapes every script")
