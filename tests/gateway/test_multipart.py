from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from gateway.multipart import remove_stale
from tests.gateway.conftest import until
from tests.support.fake_backend import png

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.conftest import RunningGateway

TYPE = {"Content-Type": "multipart/form-data; boundary=xyz"}


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"


async def send(gateway: RunningGateway, body: bytes) -> tuple[int, str | None]:
    reply = await gateway.request("POST", "/api/frames", data=body, headers=TYPE)
    return reply.status, reply.json["error"]["param"] if reply.status >= 400 else None


async def test_odd_but_sound_forms_are_read(framing: RunningGateway) -> None:
    head = b"--xyz\r\nContent-Disposition: form-data; name=name\r\nContent-Type: text/plain\r\n\r\nA\r\n"
    picture = part("picture", png(10, 10), "../../etc/passwd")
    assert await send(framing, head + picture + b"--xyz--\r\nepilogue") == (201, None)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (part("name", b"\xff\xfe") + b"--xyz--", 422, "name"),
        (part("name", b"a\0b") + b"--xyz--", 422, "name"),
        (part("name", b"a") * 2 + b"--xyz--", 422, "name"),
        (part("name", b"x" * 600_000) + b"--xyz--", 413, "name"),
        (part("x" * 3000, b"a") + b"--xyz--", 422, "x" * 100),
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--", 400, "body"),
        (b"--xyz\r\n" + b"X-A: b\r\n" * 100 + b"\r\nx\r\n--xyz--", 400, "body"),
        (b"--xyz\r\n" + b"X-A: " + b"b" * 10_000 + b"\r\n\r\nx\r\n--xyz--", 400, "body"),
        (part("name", b"a"), 400, "body"),
        (b"", 400, "body"),
    ],
)
async def test_a_bad_form_says_what_is_wrong(framing: RunningGateway, body: bytes, status: int, field: str) -> None:
    assert await send(framing, body) == (status, field)


async def test_ten_thousand_fields_are_not_read(framing: RunningGateway) -> None:
    began = time.monotonic()
    status, _ = await send(framing, part("name", b"a") * 10_000 + b"--xyz--")
    assert status in (400, 422)
    assert time.monotonic() - began < 5


async def test_a_sender_who_leaves_in_the_middle_leaves_nothing(framing: RunningGateway) -> None:
    port = framing.listening.getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /api/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {framing.key}\r\n"
    writer.write(f"{head}Content-Type: {TYPE['Content-Type']}\r\nContent-Length: 9000000\r\n\r\n".encode())
    writer.write(part("picture", b"\0" * 3_000_000, "a.png")[:-2])
    await writer.drain()
    await until(lambda: framing.settings.uploads.is_dir() and any(framing.settings.uploads.iterdir()))
    writer.close()
    await until(lambda: not any(framing.settings.uploads.iterdir()))


def test_only_old_files_are_stale(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [new]
    remove_stale(tmp_path / "none")
