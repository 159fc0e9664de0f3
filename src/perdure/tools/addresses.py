"""Which network addresses a fetch may reach: the public ones, and what the operator allows (architecture, Security).

Pure. An address that carries an IPv4 address inside (mapped, 6to4, NAT64) is judged by that one as well. The lists are
written out because Python's own idea of "global" differs between versions. `egress` is above.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

PRIVATE_V4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # private
        "100.64.0.0/10",  # carrier-grade NAT; also Alibaba's metadata at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; also metadata of most clouds
        "168.63.129.16/32",  # Azure's host, although the address looks public
        "192.0.0.0/24", "192.88.99.0/24", "192.175.48.0/24",  # protocol assignments, relays
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15",  # documentation, benchmarks
        "224.0.0.0/4", "240.0.0.0/4",  # multicast, reserved, broadcast
    )
)  # fmt: skip
GLOBAL_V6 = ip_network("2000::/3")
PRIVATE_V6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, which tunnels to any IPv4 address
        "2001:db8::/32", "3fff::/20",  # documentation
        "2620:4f:8000::/48",  # relays
    )
)  # fmt: skip
SIX_TO_FOUR = ip_network("2002::/16")
NAT64 = ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in PRIVATE_V4)
    inner = embedded(address)
    if inner is not None:
        return is_public(inner)
    return address in GLOBAL_V6 and not any(address in network for network in PRIVATE_V6)


def embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that traffic to an IPv6 address ends at, if its form says so."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in SIX_TO_FOUR:
        return IPv4Address((int(address) >> 80) & 0xFFFF_FFFF)
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


class Allowed:
    """The operator's exceptions: host names, addresses and CIDR ranges. Raises ValueError for an empty entry."""

    def __init__(self, entries: Iterable[str] = ()):
        networks, hosts = [], set()
        for entry in entries:
            try:
                networks.append(ip_network(entry.strip().strip("[]"), strict=False))
            except ValueError:
                hosts.add(_host_name(entry))
        self._networks, self._hosts = tuple(networks), frozenset(hosts)

    def reaches(self, host: str, address: Address) -> bool:
        """Whether a fetch from `host`, which is at `address`, is in order."""
        if is_public(address) or host.lower().rstrip(".") in self._hosts:
            return True
        inner = embedded(address) if isinstance(address, IPv6Address) else None
        return any(one in network for network in self._networks for one in (address, inner) if one is not None)


def _host_name(entry: str) -> str:
    name = entry.strip().lower().rstrip(".")
    if not name or any(sign in name for sign in "/:@ *"):
        raise ValueError(f"{entry!r} is neither a host name nor an address nor a CIDR range such as 10.0.0.0/8.")
    return name


def literal(host: str) -> Address | None:
    """The address a host is written as, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
