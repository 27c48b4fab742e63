"""Mask passwords in URIs, and known passwords in any text.

URIs are parsed as SQLAlchemy or an HTTP client parses them. A URI's password extends up to the last '@' of the line, as
in SQLAlchemy's grammar: a hand-written password may contain '@', '/', '?', ':' or spaces. In case of doubt, too much is
masked.
"""

from __future__ import annotations

import contextlib
import os
import re
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

HIDDEN = "***"
URI_VARIABLES = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "MLFLOW_REGISTRY_URI")
SECRET_VARIABLES = (
    "PGPASSWORD",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
)
SHORTEST_KNOWN = 3  # characters; shorter passwords are not searched in free text
SCHEME = re.compile(r"(?P<name>[A-Za-z][\w+.\-]{0,40})://")  # bounded: a text of one long word stays quick
HOST = re.compile(r"(?:\[[^\]\s]*\]|[\w.\-%]+)(?::\d*)?")  # an '@' without a host after it is part of a password
PORT = re.compile(r"\d{1,5}(?=[/?#\s'\"),;]|$)")
SECRET_KEY = re.compile(r"pass(word|wd|phrase|code)?$|pwd$|secret|token|credential|api_?key|access_?key", re.IGNORECASE)
QUERY = re.compile(r"(?P<lead>[?&](?P<key>[^=&\s?]+)=)(?P<value>(?:[^&\s'\"]|['\"](?=\w))*)")
WHOLE_QUERY = re.compile(r"(?P<lead>[?&](?P<key>[^=&?]+)=)(?P<value>[^&]*)", re.DOTALL)
KEYWORDS = re.compile(r"(?<![\w.?&])(?P<lead>(?:ssl)?pass(?:word|wd)\s?=\s?)(?P<value>'(?:\\.|[^'\\])*'|[^\s'\"]+)")
TOKEN = re.compile(r"([A-Za-z][\w+.\-]{0,40}://\S*)")
_known: set[str] = set()


def masked(text: str) -> str:
    """Return a text with `***` for the passwords of its URIs and all known ones.

    Args:
        text: a URI, or any text.
    """
    for start, end in reversed(_passwords(text)):
        text = text[:start] + HIDDEN + text[end:]
    text = (WHOLE_QUERY if _is_whole(text) else QUERY).sub(_hide_value, text)
    text = KEYWORDS.sub(rf"\g<lead>{HIDDEN}", text)
    parts = TOKEN.split(text)  # names in a URI may equal its password, as in postgres:postgres@localhost
    return "".join(part if number % 2 else without_known(part) for number, part in enumerate(parts))


def remember(uri: str) -> None:
    """Mask the passwords of a URI in all later calls of `masked`.

    They are then masked outside of a URI too.
    """
    _known.update(_forms(uri))


@lru_cache(maxsize=64)
def _forms(uri: str) -> frozenset[str]:
    """Return the passwords in a URI in every spelling that a message may use."""
    found = [uri[start:end] for start, end in _passwords(uri)]
    found += [m["value"] for m in WHOLE_QUERY.finditer(uri) if _is_secret(m["key"])] if SCHEME.match(uri) else []
    if "://" in uri:  # otherwise it is no URI to SQLAlchemy, which takes long to import
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        with contextlib.suppress(ArgumentError, ValueError):
            found.append(str(make_url(uri).password or ""))
    with contextlib.suppress(ValueError):
        found.append(urlsplit(uri).password or "")
    spelled: set[str] = set()
    for word in found:
        for plain in (word, unquote(word), unquote_plus(word)):
            spelled |= {plain, quote(plain), quote(plain, safe=""), quote(plain, safe=" +"), quote_plus(plain)}
            spelled |= {repr(plain)[1:-1]}
    return frozenset(word for word in spelled if len(word) >= SHORTEST_KNOWN and word != HIDDEN)


def _passwords(text: str) -> list[tuple[int, int]]:
    """Return start and end of each URI's password in `text`, in order, without overlaps."""
    found: list[tuple[int, int]] = []
    place, whole = 0, _is_whole(text)
    user_name = re.compile(r"[^:/]*:" if whole else r"[^:/\n]*:")
    while (scheme := SCHEME.search(text, place)) is not None:
        place = scheme.end()
        user = user_name.match(text, place)
        if user is None:
            continue
        end = _end(text, user.end(), scheme["name"].lower() in ("http", "https"), whole)
        if end > user.end() or text[end : end + 1] == "@":
            found.append((user.end(), end))
            place = end
    return found


def _end(text: str, start: int, http: bool, whole: bool) -> int:
    """Return the end of the password that may begin at `start`.

    Args:
        text: contains the URI.
        start: the character after the user's colon.
        http: whether an HTTP client reads the URI.
        whole: whether the text is nothing but the URI, whose password may then have white space and '://'.

    Returns:
        The position of an '@', or `start` if there is no password.
    """
    port = PORT.match(text, start)
    if http:
        end = start + len(re.split(r"[/?#\s]", text[start:], maxsplit=1)[0])
        at = text.rfind("@", start, end)
        continues = whole and text[end : end + 1].isspace() and "@" in text[end:]
        if at >= 0 and HOST.fullmatch(text, at + 1, end) and not continues:
            return at
        if at < 0 and port is not None:
            return start
    rest = text[start:]
    another = SCHEME.search(rest)
    before = rest[: another.start()] if another else ""
    if before and (port or "@" in before) and (not whole or re.search(r"\s", before)):  # the next URI is separate
        rest, whole = before, False
    if not whole:
        rest = rest.partition("\n")[0]
    return start + max(rest.rfind("@"), 0)


def _is_whole(text: str) -> bool:
    """Return whether `text` is one URI, or one argument such as tracking_uri=URI."""
    begin = SCHEME.search(text)
    return begin is not None and re.fullmatch(r"(?:[\w.+-]+=)?", text[: begin.start()]) is not None


def _is_secret(key: str) -> bool:
    return SECRET_KEY.search(unquote_plus(key)) is not None


def _hide_value(found: re.Match[str]) -> str:
    return found["lead"] + HIDDEN if _is_secret(found["key"]) else found[0]


def without_known(text: str) -> str:
    """Return a text with `***` for every known password."""
    words = set(_known)
    for name in URI_VARIABLES:
        words |= _forms(os.environ.get(name, ""))
    words |= {os.environ.get(name, "") for name in SECRET_VARIABLES}
    for word in sorted((w for w in words if len(w) >= SHORTEST_KNOWN), key=len, reverse=True):
        if word in text:
            text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", HIDDEN, text)
    return text
