"""What a fetch may do, and the checks of a URL that need no network.

A URL is parsed here once, and the parsed object is the one that aiohttp connects to, so checker and connector
cannot read the same text differently.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from yarl import URL

from models.fetch.addresses import is_public
from models.fetch.errors import FetchBlockedError
from models.settings import SettingsError

WEB_PORTS = (80, 443)
URL_MAX_CHARS = 8192
ALLOW_HOSTS_VARIABLE = "IGEN_FETCH_ALLOW_HOSTS"

_URL_CHARS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x1f\x7f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER_LABEL = re.compile(r"0x[0-9a-f]*|[0-9]+")

HostPort = tuple[str, int]


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The bounds of every fetch. Times in seconds, sizes in bytes.

    `allow_hosts` lifts the check for a public address, and the port rule, for exactly those pairs of host and port.
    Wire bytes are counted as received, decoded bytes after gzip or deflate.
    """

    allow_hosts: frozenset[HostPort] = field(default_factory=frozenset)
    max_redirects: int = 3
    total_timeout_s: float = 20.0
    connect_timeout_s: float = 5.0
    max_wire_bytes: int = 32 * 2**20
    max_decoded_bytes: int = 64 * 2**20

    def allows(self, host: str, port: int) -> bool:
        """Whether the operator named this host and port."""
        return (host, port) in self.allow_hosts


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed: `host` is canonical, `url` is what to connect to."""

    url: URL
    host: str
    port: int
    allowed: bool

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.url.scheme, self.host, self.port


def check_url(url: str, policy: FetchPolicy) -> None:
    """Check what can be known without the network, for use when a request is accepted.

    Raises:
        FetchBlockedError: scheme, credentials, host, port or a literal address that is not public.

    """
    parse_target(url, policy)


def parse_target(url: str, policy: FetchPolicy) -> Target:
    """Parse and check one URL.

    Raises:
        FetchBlockedError: as `check_url`.

    """
    parsed = _parse(url)
    if parsed.scheme not in ("http", "https"):
        raise FetchBlockedError("The address must begin with http:// or https://.")
    if "@" in parsed.raw_authority:
        raise FetchBlockedError("The address must not contain a user name or password.")
    raw_host, port = _host_and_port(parsed)
    host = canonical_host(raw_host)
    target = Target(parsed, host, port, policy.allows(host, port))
    if not target.allowed:
        _check_outside(host, port)
    return target


def canonical_host(raw: str) -> str:
    """One spelling for each host: lower case, no final dot, IPv6 compressed.

    Numbers that name an IPv4 address in any spelling but the plain one (127.1, 0x7f.1, 2130706433, 0177.0.0.1, a
    final dot) are refused, whatever address they mean: nobody needs them and parsers differ on them.

    Raises:
        FetchBlockedError: no host, or not one that can be trusted to mean one thing.

    """
    if ":" in raw:
        return _canonical_ipv6(raw)
    host = raw.lower().removesuffix(".")
    if _NUMBER_LABEL.fullmatch(host.rsplit(".", 1)[-1]):
        return _canonical_ipv4(raw)
    if not _HOST_NAME.fullmatch(host):
        raise FetchBlockedError("The address has no valid host name.")
    return host


def parse_allow_hosts(text: str) -> frozenset[HostPort]:
    """Read `host`, `host:port`, `[v6]` and `[v6]:port`, comma-separated. A host without port: 80 and 443 only.

    Raises:
        SettingsError: naming the variable and the place of the wrong entry.

    """
    pairs: set[HostPort] = set()
    for number, entry in enumerate(text.split(","), start=1):
        if entry.strip():
            pairs.update(_parse_allowed(entry.strip(), number))
    return frozenset(pairs)


def _parse_allowed(entry: str, number: int) -> list[HostPort]:
    host, port = entry, ""
    if entry.startswith("["):
        host, bracket, port = entry[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _wrong_entry(number)
        port = port[1:] if port else ""
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    if (port or entry.endswith(":")) and not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise _wrong_entry(number)
    try:
        name = canonical_host(host)
    except FetchBlockedError:
        raise _wrong_entry(number) from None
    return [(name, int(port))] if port else [(name, each) for each in WEB_PORTS]


def _wrong_entry(number: int) -> SettingsError:
    return SettingsError(f"{ALLOW_HOSTS_VARIABLE}: entry {number} is not `host`, `host:port` or `[v6]:port`")


def _parse(url: str) -> URL:
    if len(url) > URL_MAX_CHARS or _FORBIDDEN_CHARS.search(url):
        raise FetchBlockedError("The address is too long or contains control characters or a backslash.")
    try:
        # a URL that is already in its wire form is sent byte for byte: signatures cover its spelling
        return URL(url, encoded=_URL_CHARS.fullmatch(url) is not None).with_fragment(None)
    except (ValueError, TypeError):
        raise FetchBlockedError("The address is not a valid URL.") from None


def _host_and_port(parsed: URL) -> tuple[str, int]:
    try:  # yarl splits the authority when first asked
        host, port = parsed.raw_host or "", parsed.port
    except ValueError:
        raise FetchBlockedError("The address has no valid host name or port.") from None
    if port is None or ("[" in parsed.raw_authority and ":" not in host):  # RFC 3986's IPvFuture
        raise FetchBlockedError("The address has no valid host name or port.")
    return host, port


def _check_outside(host: str, port: int) -> None:
    if port not in WEB_PORTS:
        raise FetchBlockedError("Only the ports 80 and 443 may be used.")
    if host == "localhost" or host.endswith(".localhost"):
        raise FetchBlockedError("The address is not on the public internet.")
    if _is_literal(host) and not is_public(host):
        raise FetchBlockedError("The address is not on the public internet.")


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _canonical_ipv6(raw: str) -> str:
    try:
        address = ipaddress.IPv6Address(raw)
    except ValueError:
        raise FetchBlockedError("The address has no valid host name.") from None
    if address.scope_id is not None:
        raise FetchBlockedError("The address must not have a zone id.")
    return address.compressed


def _canonical_ipv4(raw: str) -> str:
    try:
        return str(ipaddress.IPv4Address(raw))
    except ValueError:
        raise FetchBlockedError("Write an IP address as four plain decimal numbers.") from None
