"""Which addresses the gateway may connect to for somebody else: public ones, unless the operator names the host.

aiohttp connects to exactly what the resolver hands it, so a name cannot mean one address when it is judged and another
when it is used. A host that is itself an address never comes to the resolver; `check_host` judges it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from adapters_registry.errors import BadSource, Problem

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local, and where clouds tell machines their secrets
            "168.63.129.16/32",  # the same of Azure, a public address
            "100.100.100.200/32",  # the same of Alibaba
            "fd00:ec2::254/128",  # the same of AWS
            "fe80::/10",
            "0.0.0.0/8",
            "::/128",
        ),
    )
)
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.88.99.0/24",  # relays of 6to4
            "2002::/16",  # 6to4 and Teredo carry an IPv4 address to somebody else's relay
            "2001::/23",
            "::/96",
            "64:ff9b:1::/48",
            "fec0::/10",
            "3fff::/20",
            "5f00::/16",
        ),
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is an ordinary address of the internet; what carries an IPv4 address is judged by that."""
    address = _inner(address)
    if _is_never(address) or any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def is_reachable(address: IPv4Address | IPv6Address, *, is_private_host: bool) -> bool:
    """Whether to connect: to public addresses; for hosts that the operator named as private also to private ones.

    Multicast, link-local and the addresses where clouds keep their machines' secrets are out of reach for all.
    """
    if not is_private_host:
        return is_public(address)
    inner = _inner(address)
    return not (_is_never(inner) or inner.is_multicast)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that a mapped or NAT64 one stands for."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_never(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in _NEVER if network.version == address.version)


def check_host(host: str, private_hosts: Collection[str]) -> None:
    """Judge a host that is written as an address; names are judged when they are resolved. Raises BadSource."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return
    if not is_reachable(address, is_private_host=host in private_hosts):
        raise refused(host)


class CheckedResolver(AbstractResolver):
    """Looks names up and refuses a name if one of its addresses may not be connected to.

    Args:
        private_hosts: Names that may have private addresses.
        inner: What looks up; None is the operating system.
    """

    def __init__(self, private_hosts: Collection[str], inner: AbstractResolver | None = None) -> None:
        self._private_hosts = private_hosts
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host; raises BadSource, or OSError if it has none."""
        found = await self._inner.resolve(host, port, family)
        for each in found:
            text, _, scope = each["host"].partition("%")
            address = ipaddress.ip_address(text)
            if scope or not is_reachable(address, is_private_host=host in self._private_hosts):
                raise refused(host)
        return found

    async def close(self) -> None:
        """Close what looks up."""
        await self._inner.close()


def refused(host: str) -> BadSource:
    """The error for a host that may not be connected to; it does not tell the address."""
    fix = "Use a public host, or let the operator name this one in sources.private_hosts."
    return BadSource([Problem("source", f"the host {host} has an address that is not public", fix)])
