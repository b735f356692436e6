"""Which IP addresses are public: reachable over the internet and nobody's inside.

`ipaddress.is_global` alone is not enough: it passes multicast (224.0.0.1), NAT64 (64:ff9b::a9fe:a9fe, which is
169.254.169.254 behind a translator) and 168.63.129.16, Azure's host agent. Sources: IANA's special-purpose
registries for IPv4 and IPv6.
"""

from __future__ import annotations

import ipaddress

NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep their metadata service here
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, in public space
        "169.254.0.0/16",  # link-local, metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")

NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo (2001::/32), benchmarking (2001:2::/48), ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, carries any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # returned test network
        "3fff::/20",  # documentation
    )
)


def is_public(text: str) -> bool:
    """Whether `text` is a plain IP address of the public internet. False for anything else, zone ids too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    return address in GLOBAL_UNICAST_V6 and not any(address in network for network in NOT_PUBLIC_V6)
