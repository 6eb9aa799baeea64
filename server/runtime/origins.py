"""Origins whose pages may use this server, as browsers write them.

A browser sends an origin in one form: lower case, without the default port, names in ASCII (RFC
6454 section 6.2, the URL standard). Configured origins are converted to that form when they are
read. An entry that no browser would ever send prevents the start, and the error names the entry.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from server import limits as server_limits
from server.runtime.metrics import Metrics

log = structlog.get_logger("taximeter.origins")

ANY: Final = "*"
WILDCARD: Final = "*."
"""Prefix of the host of an entry that matches all names below a domain, as in CSP."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)\.?$")
_NOT_IDNA2003 = re.compile("[\u00df\u1e9e\u03c2\u200c\u200d]")
"""Letters that browsers encode differently from Python."""


class Origin(NamedTuple):
    """An origin that a browser would send, in the browser's form."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        default = self.port == DEFAULT_PORTS[self.scheme]
        return f"{self.scheme}://{self.host}" + ("" if default else f":{self.port}")


def parse_origin(text: str) -> Origin:
    """The origin that ``text`` means; raises ValueError with the reason."""
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("it has spaces")  # urlsplit would drop these characters
    parts = urlsplit(text)
    port = parts.port
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError("it does not begin with http:// or https://")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("an origin has a scheme, a host and perhaps a port, and nothing else")
    return Origin(
        parts.scheme, _host(parts.netloc), DEFAULT_PORTS[parts.scheme] if port is None else port
    )


def parse_entry(text: str) -> str:
    """An entry of ``TAXIMETER_ORIGINS`` in the browser's form.

    Raises ValueError with the entry's name.
    """
    if text == ANY:
        return ANY
    scheme, separator, rest = text.partition("://")
    is_wildcard = bool(separator) and rest.startswith(WILDCARD)
    try:
        origin = parse_origin(f"{scheme}://{rest.removeprefix(WILDCARD)}" if is_wildcard else text)
        if is_wildcard:
            is_domain = "." in origin.host.strip(".") or origin.host == "localhost"
            if not is_domain or _is_address(origin.host):
                raise ValueError("behind *. a domain is expected")
            origin = origin._replace(host=f"{WILDCARD}{origin.host}")
    except ValueError as error:
        raise ValueError(
            f'{text!r} is no origin that a browser sends: {error}. Write "https://example.com" or '
            '"https://*.example.com", separated by commas'
        ) from None
    return str(origin)


class Origins:
    """Pages that may open sockets: the server's own, and those of ``entries``."""

    def __init__(self, entries: Iterable[str], metrics: Metrics) -> None:
        self.metrics = metrics
        self.entries = frozenset(parse_entry(entry) for entry in entries)
        self._reported: set[str] = set()

    def lists(self, origin: str) -> bool:
        """Whether an entry of the configuration contains this origin."""
        if ANY in self.entries:
            return True
        try:
            found = parse_origin(origin)
        except ValueError:
            return False
        if str(found) in self.entries:
            return True
        labels = found.host.split(".")
        return any(
            str(found._replace(host=f"{WILDCARD}{'.'.join(labels[first:])}")) in self.entries
            for first in range(1, len(labels))
        )

    def refused(self, origin: str, host: str) -> None:
        """Counts a refused origin, and names it in the log once."""
        self.metrics.origins_refused.inc()
        shown = ascii(origin[: server_limits.ORIGIN_CHARACTERS_SHOWN])[1:-1]
        if shown in self._reported or len(self._reported) >= server_limits.ORIGINS_REPORTED_MAX:
            return
        self._reported.add(shown)
        log.warning(
            "origin_refused",
            origin=shown,
            host=ascii(host[: server_limits.ORIGIN_CHARACTERS_SHOWN])[1:-1],
            hint="if the page is yours, name its origin in TAXIMETER_ORIGINS, or have the proxy "
            "send the Host that the browser sent",
        )


class Reached(NamedTuple):
    """Names and schemes under which a browser may have reached this server."""

    hosts: tuple[str, ...]
    schemes: frozenset[str]

    def is_own(self, origin: str) -> bool:
        """Whether a page of ``origin`` came from this server."""
        try:
            found = parse_origin(origin)
        except ValueError:
            return False
        if found.scheme not in self.schemes:
            return False
        for host in self.hosts:
            try:
                if parse_origin(f"{found.scheme}://{host}") == found:
                    return True
            except ValueError:
                continue
        return False


def reached(headers: Mapping[str, str], scheme: str, port: int | None, *, proxied: bool) -> Reached:
    """How a request reached this server, which listens on ``port``.

    ``proxied`` says that the peer is a trusted proxy: then ``X-Forwarded-Host``,
    ``X-Forwarded-Port`` and ``X-Forwarded-Proto`` count. Without ``X-Forwarded-Proto`` a proxy may
    have ended TLS, unless the browser's own ``Host`` names this port, where the server speaks only
    plain HTTP.
    """
    host = headers.get("host", "")
    hosts, told = [host], ""
    if proxied:
        forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip()
        told = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
        hosts += [forwarded] if forwarded else []
        forwarded_port = headers.get("x-forwarded-port", "").split(",")[0].strip()
        if forwarded_port.isdecimal():
            hosts += [f"{one}:{forwarded_port}" for one in hosts if one and not _has_port(one)]
    schemes = frozenset(DEFAULT_PORTS)
    if told in ("https", "wss") or scheme in ("https", "wss"):
        schemes = frozenset({"https"})
    elif told in ("http", "ws") or (port is not None and host.endswith(f":{port}")):
        schemes = frozenset({"http"})
    return Reached(tuple(one for one in hosts if one), schemes)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _host(netloc: str) -> str:
    """The host of an origin in the browser's form.

    Raises ValueError for an invalid one.
    """
    if netloc.startswith("["):
        inside, closed, rest = netloc[1:].partition("]")
        if not closed or "%" in inside or (rest and not rest.startswith(":")):
            raise ValueError("its address is invalid")
        return f"[{ipaddress.IPv6Address(inside).compressed}]"
    host = netloc.partition(":")[0]
    if not host.isascii():
        if _NOT_IDNA2003.search(host):
            raise ValueError("write its host in ASCII, as in the browser's requests (xn--…)")
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise ValueError("its host cannot be written in ASCII") from None
    host = host.lower()
    if _NAME.fullmatch(host) is None or len(host) > 254:
        raise ValueError("its host is invalid")
    if _NUMBER.search(host.rpartition(".")[2]) and not _is_address(host):
        raise ValueError("its host is a number but not an address")
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
