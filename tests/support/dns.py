"""Name resolution and connects under a test's control: no query and no packet leaves the machine."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

PUBLIC = "93.184.216.34"


class ScriptedDns:
    """Stands in for getaddrinfo, one answer a lookup, and counts; numbers go to the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        name = str(host).rstrip(".").lower()
        if not name.endswith(".test"):
            return self._real(host, port, *args, **{**kwargs, "flags": socket.AI_NUMERICHOST})
        self.asked.append(host)
        addresses = self._answers.pop(0) if self._answers else []
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in addresses
        ]


class RefusedConnects:
    """Takes the place of the loop's connect: records each address and refuses, so no packet leaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", self)

    async def __call__(self, _sock: socket.socket, address: tuple[Any, ...]) -> None:
        self.tried.append(address[0])
        raise ConnectionRefusedError(f"cannot reach {address}")
