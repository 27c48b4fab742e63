"""Quote values so that Hydra's override grammar reads them back unchanged."""

from __future__ import annotations

import json
import re
from typing import Any

PATHS = ("output_dir", "cache_dir", "data.path", "autoencoder.path", "text.path", "evaluation.prompts")
SIMPLE = re.compile(r"[\w./~:+-]*")


def quoted(text: str) -> str:
    """Return `text` in quotes.

    Quotes in it are escaped, and backslashes before a quote or at the end are doubled.
    """
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    return "'" + re.sub(r"\\+\Z", lambda found: found[0] * 2, text) + "'"


def quoted_path(word: str) -> str:
    """Return `key=value` with its value quoted if Hydra's grammar would misread it.

    Only keys of paths are changed.
    """
    key, sep, value = word.partition("=")
    if not sep or key not in PATHS or SIMPLE.fullmatch(value) or _is_quoted(word, value):
        return word
    plain = value.replace("${", "\\${")  # no interpolation
    return f"{key}={quoted(plain)}"


def _is_quoted(word: str, value: str) -> bool:
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        [parsed] = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return False
    return isinstance(parsed.value(), str)


def as_value(value: Any) -> str:
    """Return a YAML value in Hydra's grammar."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(as_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
