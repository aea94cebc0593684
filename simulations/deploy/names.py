"""Checks of device names, addresses and ports. Each check returns how to mend a mistake, or empty text."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable

MAX_DEVICES = 10_000
FIRST_RUNTIME_PORT = 9094  # Flower's own default; devices that share a machine need different ones

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_LONGEST = 253  # characters of a DNS name


def device(name: str) -> str:
    """A device's name becomes a folder, a service and an environment variable."""
    return "" if _NAME.fullmatch(name) else "use a-z, 0-9 and -, at most 63 characters, and no - at the start"


def duplicates(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def port(number: int) -> str:
    return "" if 1 <= number <= 65535 else "must be from 1 to 65535"


def address(host: str) -> str:
    """The address by which devices find the server: an IP address or a DNS name, without a port."""
    if "://" in host:
        return "leave out the scheme: fl.example.org"
    if (parsed := ip(host)) is not None:
        is_unreachable = parsed.is_unspecified or parsed.is_multicast
        return "no device can connect to it: write the address at which devices reach this machine" * is_unreachable
    if host.startswith("["):
        return "leave out the brackets: ::1"
    if host.count(":") == 1:
        return f"the port goes into --port: --address {host.partition(':')[0]} --port {host.partition(':')[2]}"
    labels = host.split(".")
    if len(host) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        return "write a DNS name or an IP address, e.g. fl.example.org or 192.168.1.10"
    return ""


def ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The parsed IP address; None for a name, and for an address with a zone (fe80::1%eth0)."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if getattr(parsed, "scope_id", None) else parsed


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it."""
    parsed = ip(host)
    return host == "localhost" if parsed is None else parsed.is_loopback


def with_port(host: str, port: int) -> str:
    """`host:port`, as Flower reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def runtime_port(client: int, taken: int) -> int:
    """The local port of a client's SuperNode: unique on one machine, and never the SuperLink's (`taken`)."""
    port = FIRST_RUNTIME_PORT + client
    return port + (FIRST_RUNTIME_PORT <= taken <= port)
