"""Which internet addresses may be connected to: public ones, and no disguise of another."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

# Source: IANA's special-purpose address registries for IPv4 and IPv6, and what clouds use inside.
# Python's `is_global` has True for multicast, NAT64, 6to4 and site-local addresses.
_NOT_PUBLIC = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a carrier (CGNAT)",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's metadata",
    "169.254.0.0/16": "link-local, metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "of protocols",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "2001::/23": "of protocols, Teredo",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "AS112",
    "3fff::/20": "documentation",
}
_NETWORKS = [(ipaddress.ip_network(text), kind) for text, kind in _NOT_PUBLIC.items()]
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface id that holds an IPv4 address


def refusal(text: str) -> str | None:
    """Return why nobody may connect to the address, or None if it is public.

    Of IPv6, only 2000::/3 is public: mapped, NAT64, unique local, site-local, link-local and
    multicast addresses lie outside.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "not an address"
    for network, kind in _NETWORKS:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, ipaddress.IPv6Address):
        if address not in _GLOBAL_IPV6 or address.scope_id:
            return "not public"
        if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
            return "ISATAP"
    return None


def resolve(host: str, port: int) -> Sequence[str]:
    """Return every address that the system has for the host, each once.

    Raises:
        OSError: if there is none.
    """
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))
