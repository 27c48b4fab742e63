"""Convert the path of a sqlite file to its URI and back, for any characters.

SQLAlchemy reads '?' in a URI as the start of options and decodes '%XX', so a path can't simply be appended to
`sqlite:///`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from microdit.common.errors import ConfigError

PLAIN = re.compile(r"[\w.,:;@=+~/ &()!-]*")  # characters that no reader of a URI changes
SCHEME = re.compile(r"sqlite(\+[\w]+)?://")
OPTION = re.compile(r"[\w.]+=[^&]*")


def sqlite_uri(path: Path | str) -> str:
    """Return the URI of the sqlite file at a path.

    Args:
        path: absolute, or relative to the working directory.

    Raises:
        ConfigError: if the path can't be written as a URI.
    """
    text = os.path.abspath(path)
    check_utf8(text)
    if PLAIN.fullmatch(text):
        return f"sqlite:///{text}"
    from sqlalchemy.engine import make_url

    # With the driver's name, because MLflow creates the folder of a plain sqlite:/// URI without decoding its path.
    uri = f"sqlite+pysqlite:///{quote(text, safe='/ +')}"
    if make_url(uri).database != text:
        raise ConfigError(f"'{text}' has characters that need SQLAlchemy 2.1 or newer in a database's URI; rename it")
    return uri


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a sqlite URI; None for other databases or one in memory.

    Raises:
        ConfigError: if the path contains an unquoted '?', or the text is not a URI.
    """
    if not SCHEME.match(uri):
        return None
    check_utf8(uri)
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    _, mark, options = uri.partition("?")
    wrong = [option for option in options.split("&") if not OPTION.fullmatch(option)]
    if mark and wrong:
        raise ConfigError(
            f"'?' begins options such as ?timeout=60, but '{wrong[0]}' is not an option; write a path's '?' as %3F"
        )
    try:
        name = make_url(uri).database
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"not a URI: {error}") from None
    if name is not None and name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
        name = re.sub(r"^//[^/]*", "", name)  # an authority
    return None if name in (None, "", ":memory:") or "mode=memory" in options else Path(str(name))


def check_utf8(text: str) -> None:
    """Check that a text has no bytes that aren't UTF-8.

    Stores and YAML can't contain such bytes.

    Raises:
        ConfigError: if it has.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise ConfigError(f"'{shown}' holds bytes that aren't UTF-8; rename it") from None
