"""Mutate valid files: flip, cut and insert bytes, and change the types of parsed values."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

HOSTILE_BYTES = [
    b"\0", b"\xff", b"[" * 3000, b"9" * 5000, b"&a [*a]", b"!!python/name:os", b"{", b'"', b"\xed\xa0\x80", b"\n",
    b"NaN", b"-1e999", b": ", b"- ", b"\\ud800", b"../", b"\x1b[31m", b"\xe2\x80\xa8",
]  # fmt: skip
HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 1e300, 2**70, "", "x" * 300, "../x", "\x1b", "é", [], {}, [[]], {"a": 1}, [1], 10**9, 0.5, "nan",
]  # fmt: skip


@st.composite
def mutated_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """Return `seed` after one to three mutations of its bytes."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "hostile", "repeat", "delete")))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "hostile":
            data[place:place] = draw(st.sampled_from(HOSTILE_BYTES))
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        else:
            del data[place : place + draw(st.integers(1, 16))]
    return bytes(data)


@st.composite
def mutated_structure(draw: st.DrawFn, seed: Any) -> Any:
    """Return a copy of `seed` in which one to three values were replaced, removed, renamed or doubled."""
    value = copy.deepcopy(seed)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            return draw(st.sampled_from(HOSTILE_VALUES))
        owner, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap")))
        if kind == "replace":
            owner[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE_VALUES)))
        elif kind == "remove":
            del owner[key]
        elif kind == "rename" and isinstance(owner, dict):
            owner[draw(st.text(max_size=6))] = owner.pop(key)
        elif kind == "wrap":
            owner[key] = [owner[key]]
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        found += [(value, key), *_places(part)]
    return found


def structured(seed: bytes, kind: str) -> st.SearchStrategy[bytes]:
    """Return mutations of a JSON, JSON Lines or YAML file's structure, written again."""
    if kind == "yaml":
        value = yaml.safe_load(seed)
        return mutated_structure(value).map(lambda found: yaml.safe_dump(found, allow_unicode=True).encode())
    if kind == "jsonl":
        rows = [json.loads(line) for line in seed.splitlines()]
        return mutated_structure(rows).map(_lines)
    return mutated_structure(json.loads(seed)).map(lambda found: json.dumps(found).encode())


def _lines(rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in (rows if isinstance(rows, list) else [rows])).encode()
