"""The two checks between a name and a socket: every address that DNS gives, and the address connected to."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from models.fetch.addresses import is_public
from models.fetch.errors import FetchBlockedError
from models.fetch.policy import canonical_host

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohappyeyeballs import AddrInfoType

    from models.fetch.policy import FetchPolicy

MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_HOST = 8
KEEP_ALIVE_S = 15.0
DNS_THREADS = 8
"""getaddrinfo cannot be cancelled, so dead name servers may fill this pool, and never the loop's own."""

hop_is_allowed: ContextVar[bool] = ContextVar("hop_is_allowed", default=False)
"""Whether the operator named the host of the hop under way; aiohttp tells the socket factory only an address."""


class RefusedAddressError(PermissionError):
    """The socket factory's refusal. An OSError, since aiohappyeyeballs loses any other kind."""


class CheckedResolver(AbstractResolver):
    """Resolves a name once and rejects the whole answer when one address in it is not public."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="igen-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            FetchBlockedError: an address is not public and the operator did not name the host.
            OSError: the name cannot be resolved.

        """
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._threads, _look_up, host, port, family)
        if not addresses:
            raise OSError(None, "DNS gave no address")
        if not self._policy.allows(canonical_host(host), port) and not all(map(is_public, addresses)):
            raise FetchBlockedError("The host name does not lead to the public internet.")
        return [_result(host, address, port) for address in addresses]

    async def close(self) -> None:
        """Give the threads back; a lookup under way ends by the system's own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def checked_socket(addr_info: AddrInfoType) -> socket.socket:
    """Make the socket for one address, after a last look at it: a literal in a URL never meets the resolver.

    Raises:
        RefusedAddressError: the address is not public and the hop's host is not one that the operator named.

    """
    family, kind, protocol, _, address = addr_info
    if not hop_is_allowed.get() and not is_public(str(address[0])):
        raise RefusedAddressError("address refused")
    return socket.socket(family, kind, protocol)


def make_connector(
    resolver: CheckedResolver, ssl_context: SSLContext | None, *, pooled: bool = False
) -> aiohttp.TCPConnector:
    """A connector whose every connection is checked when it is made.

    There is no DNS cache. Unless `pooled` there is no keep-alive either: both checks run for each request, and
    aiohttp never repeats a request by itself on a stale connection. A pooled one is for bulk GETs alone: a kept
    connection serves only the scheme, host and port that it was checked for, so no check is lost.
    """
    return aiohttp.TCPConnector(
        resolver=resolver,
        socket_factory=checked_socket,
        use_dns_cache=False,
        force_close=not pooled,
        keepalive_timeout=KEEP_ALIVE_S if pooled else None,
        limit=MAX_CONNECTIONS,
        limit_per_host=MAX_CONNECTIONS_PER_HOST,
        ssl=True if ssl_context is None else ssl_context,
    )


def _look_up(host: str, port: int, family: int) -> list[str]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST
    )
