"""Whether a host, a Redis or a Postgres is on this machine.

In doubt it is not.
"""

import ipaddress
import os
from urllib.parse import parse_qs, unquote, urlsplit

from storage.redis.cluster import is_cluster, nodes_of


def is_loopback(host: str) -> bool:
    """Whether an address or name can be reached from this machine only."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_local_redis(url: str) -> bool:
    """Whether a URL of Redis leads to loopback or a Unix socket."""
    if is_cluster(url):
        return all(is_loopback(host) for host, _ in nodes_of(url))
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    if parts.hostname:
        return is_loopback(parts.hostname)
    # redis-py takes the host from the query when the URL lacks one, and else the local host.
    return all(is_loopback(host) for host in parse_qs(parts.query).get("host", ()))


def is_local_database(url: str) -> bool:
    """Whether a Postgres URL leads to loopback or a Unix socket.

    The URL is read as asyncpg reads it.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if "service" in query or "hostaddr" in query or os.environ.get("PGSERVICE"):
        return False  # the host is given elsewhere
    named = parts.netloc.rpartition("@")[2]
    hosts = [_without_port(host) for host in named.split(",") if host]
    hosts = [host for host in hosts if host] or [
        host for value in query.get("host", ()) for host in value.split(",")
    ]
    hosts = hosts or [host for host in os.environ.get("PGHOST", "").split(",") if host]
    return all(host.startswith("/") or is_loopback(_without_port(host)) for host in hosts)


def _without_port(place: str) -> str:
    """The host of ``host:port``, percent-decoded; an IPv6 address may have brackets."""
    if place.startswith("["):
        return place.partition("]")[0][1:]
    host, colon, port = place.rpartition(":")
    if colon and ":" not in host and (port.isdigit() or not port):
        return unquote(host)
    return unquote(place)
