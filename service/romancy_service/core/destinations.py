"""Destinations: where the service may send what workflows want delivered. Nothing is allowed that was not said.

Who may set a sink could otherwise have the service talk to what only it can reach. So a host is named, by name or by
network, and the address that is connected to is judged again: a name may lead anywhere by then. Addresses that are not
public are reached only in networks that were named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_OLD_MAPPED: Final = IPv6Network("::/96")
_GLOBAL: Final = IPv6Network("2000::/3")
"""All that was ever given to networks of the world. Outside of it are old and new ways to name what is near."""
_NEAR: Final[tuple[_Network, ...]] = tuple(
    ip_network(each)
    for each in (
        "192.0.0.0/24",  # of protocols; one cloud keeps its metadata there
        "192.88.99.0/24",  # the nearest relay of 6to4
        "168.63.129.16",  # the host of a virtual machine in one cloud, with what it tells its guests
        "3fff::/20",  # for documents
    )
)
"""What the library, or some versions of it, take for public."""
_ANY_PORT: Final = 0


@dataclass(frozen=True, slots=True)
class Destinations:
    """What `--sink-allow` says."""

    hosts: tuple[tuple[str, int], ...] = ()
    """Names, `*.` in front for all below one, and the port; 0: any."""
    networks: tuple[tuple[_Network, int], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Destinations:
        """Read `HOST[:PORT]`, `*.DOMAIN[:PORT]`, `ADDRESS[:PORT]` and `NETWORK`. Raises ValueError."""
        hosts, networks = [], []
        for text in texts:
            name, port = _split(text)
            if (network := _network(name)) is not None:
                networks.append((network, port))
            elif _HOST.fullmatch(name) and not _is_number(name):
                hosts.append((name, port))
            else:
                raise ValueError(
                    f"{text!r} is no host, domain (*.example.com), address or network: give one, and maybe a port"
                )
        return cls(tuple(hosts), tuple(networks))

    def allow_host(self, host: str, port: int) -> bool:
        """Whether a URL may name this host: a name, or an address without brackets."""
        address = address_of(host)
        if address is not None:
            return self._in_networks(address, port)
        name = host.lower().rstrip(".")
        return any(_fits(pattern, name) and allowed in (_ANY_PORT, port) for pattern, allowed in self.hosts)

    def allow_address(self, address: _Address, port: int) -> bool:
        """Whether to connect to this address, to which an allowed host led."""
        return self._in_networks(address, port) or is_public(address)

    def _in_networks(self, address: _Address, port: int) -> bool:
        plain = _plain(address)
        return any(
            each.version == plain.version and plain in each and allowed in (_ANY_PORT, port)
            for each, allowed in self.networks
        )


LOOPBACK: Final = ("localhost", "127.0.0.0/8", "[::1]")
"""What `dev` and tests allow: this machine."""


def address_of(host: str) -> _Address | None:
    """The address that a host is; None: it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_public(address: _Address) -> bool:
    """Whether anybody in the world can reach it, so that it is no secret that the service can."""
    plain = _plain(address)
    if (isinstance(plain, IPv6Address) and plain not in _GLOBAL) or any(plain in each for each in _NEAR):
        return False
    return plain.is_global and not (
        plain.is_multicast or plain.is_reserved or plain.is_unspecified or plain.is_loopback or plain.is_link_local
    )


def _plain(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _OLD_MAPPED and int(address) > 1)):
        inner = IPv4Address(int(address) & 0xFFFF_FFFF)
    return inner or address


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def _split(text: str) -> tuple[str, int]:
    """What stands before the port, and the port."""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", text)
    if bracketed is not None:
        name, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        name, _, port = text.partition(":")
    else:
        name, port = text, None
    if port is not None and not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError(f"{text!r} has no port after the colon: give one from 1 to 65535")
    return name.lower(), _ANY_PORT if port is None else int(port)


def _network(text: str) -> _Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _is_number(name: str) -> bool:
    """Resolvers take such names for addresses."""
    return re.fullmatch(r"[0-9.]+|0x[0-9a-f]+", name) is not None
