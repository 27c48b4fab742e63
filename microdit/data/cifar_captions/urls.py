"""Decide which urls of a third-party list may be downloaded: http(s) urls of public hosts.

A list of urls from the web must not make this machine read its own files, access its own network, or pass options to a
tool. Names are checked as they are written, without a name server. Redirects, which img2dataset follows, are not
checked.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from urllib.parse import urlsplit

NOT_WEB = "url: neither http nor https"
ODD_CHARACTERS = "url: blanks or control characters"
USER = "url: a user name or a backslash before the host"
NO_HOST = "url: no valid host or port"
LOCAL_NAME = "url: a host name of a local network"
ODD_ADDRESS = "url: an address in an unusual spelling"
LOCAL_ADDRESS = "url: an address that is not public"
REASONS = (ODD_CHARACTERS, NOT_WEB, USER, NO_HOST, LOCAL_NAME, ODD_ADDRESS, LOCAL_ADDRESS)

LOCAL_DOMAINS = frozenset(
    {"localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "home.arpa"}
)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
MAX_HOST_CHARACTERS = 253  # of a host name
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def rejection_reason(url: str) -> str | None:
    """Return why a url is rejected, one of `REASONS`, or None if it may be downloaded."""
    if any(c.isspace() or unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in url):
        return ODD_CHARACTERS
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return NO_HOST if url.lower().startswith(("http:", "https:")) else NOT_WEB
    if parts.scheme not in ("http", "https"):
        return NOT_WEB
    if "@" in parts.netloc or "\\" in url:
        return USER
    try:
        if not host or parts.port == 0:
            return NO_HOST
    except ValueError:
        return NO_HOST
    return _of_address(host) if ":" in host else _of_name(host)


def _of_name(host: str) -> str | None:
    try:
        # Clients do this before they look up a name; full-width digits and dots become plain ones.
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        return NO_HOST
    if not name or len(name) > MAX_HOST_CHARACTERS:
        return NO_HOST
    try:
        number = ipaddress.IPv4Address(socket.inet_aton(name))  # also 127.1, 0x7f000001, 017700000001, 2130706433
    except OSError:
        pass
    else:
        return _of_number(number) or (None if str(number) == host else ODD_ADDRESS)
    labels = name.split(".")
    if not all(LABEL.fullmatch(label) for label in labels) or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        return NO_HOST
    ends = {".".join(labels[-count:]) for count in (1, 2)}
    return LOCAL_NAME if len(labels) == 1 or ends & LOCAL_DOMAINS else None


def _of_address(host: str) -> str | None:
    try:
        return _of_number(ipaddress.IPv6Address(host))
    except ValueError:
        return NO_HOST


def _of_number(address: Address) -> str | None:
    return None if all(map(_is_public, _meanings(address))) else LOCAL_ADDRESS


def _meanings(address: Address) -> list[Address]:
    """Return the addresses that a packet to `address` may reach, such as an embedded IPv4 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    return [address]


def _is_public(address: Address) -> bool:
    closed = address.is_private or address.is_loopback or address.is_link_local or address.is_unspecified
    special = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    return address.is_global and not closed and not special and getattr(address, "scope_id", None) is None
