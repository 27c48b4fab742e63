"""Read the tensors of a file written by `torch.save`, without unpickling it.

Networks are published in this format, whose pickle may name any code. Here the pickle is only parsed: `pickletools`
splits it into opcodes, and a small stack machine turns those of a state dict into dicts, lists, numbers and tensors.
Names of functions and classes remain text, a few of them with a fixed meaning, so the file cannot cause any import or
call. Both layouts are read: the zip archive (since torch 1.6) and the older stream.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from microdit.common.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C  # value of the first pickle of the older layout
MAX_PICKLE_BYTES = 256 << 20  # larger than the structure of any state dict
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
ORDERED = "collections OrderedDict"
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
MARK = object()


class ForeignCode(CheckpointError):
    """Report a file that names code which is not part of a state dict."""


@dataclass(frozen=True)
class _Name:
    """Hold the name of a function or class in the pickle."""

    words: str


@dataclass(frozen=True)
class _Storage:
    """Describe where a tensor's values are stored."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    """Describe a tensor that is not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(path: Path, values: bool = True) -> Any:
    """Return the dicts, lists, numbers and tensors of a file.

    Args:
        path: the file.
        values: read the values; otherwise tensors have shapes and types only (device "meta").

    Raises:
        ForeignCode: if the file has anything else.
        CheckpointError: if it is missing or damaged.
    """
    try:
        with open(path, "rb") as stream:
            if zipfile.is_zipfile(path):
                found, load = _open_zip(path)
            else:
                found, load = _open_stream(stream)
            made: dict[_View, Tensor] = {}
            return _with_tensors(found, load if values else None, {}, made)
    except ForeignCode as error:
        raise ForeignCode(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # whatever the parsers raise for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: can't be read as weights: {reason}") from None


Load = Callable[[_Storage], bytearray]


def _open_zip(path: Path) -> tuple[Any, Load]:
    archive = zipfile.ZipFile(path)
    [name] = [one for one in archive.namelist() if one == "data.pkl" or one.endswith("/data.pkl")]
    root = name.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
        raise ValueError("its structure is too large")

    def load(storage: _Storage) -> bytearray:
        entry = archive.getinfo(f"{root}data/{storage.key}")
        if entry.file_size != storage.count * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has {entry.file_size} bytes")
        return bytearray(archive.read(entry))  # verifies the archive's own checksum

    return _parse(io.BytesIO(archive.read(name))), load


def _open_stream(stream: IO[bytes]) -> tuple[Any, Load]:
    if _parse(stream) != MAGIC:
        raise ValueError("neither a zip archive nor torch's older format")
    _parse(stream)  # the protocol's version
    system = _parse(stream)
    if not system.get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    found = _parse(stream)
    keys = _parse(stream)
    storages = {storage.key: storage for storage in _storages(found)}
    places: dict[str, int] = {}
    for key in keys:
        if int.from_bytes(stream.read(8), "little") != storages[key].count:
            raise ValueError(f"storage {key} has another length")
        places[key] = stream.tell()
        stream.seek(storages[key].count * storages[key].dtype.itemsize, io.SEEK_CUR)

    def load(storage: _Storage) -> bytearray:
        stream.seek(places[storage.key])
        content = bytearray(stream.read(storage.count * storage.dtype.itemsize))
        if len(content) != storage.count * storage.dtype.itemsize:
            raise ValueError("it is truncated")
        return content

    return found, load


def _storages(found: Any) -> list[_Storage]:
    if isinstance(found, _View):
        return [found.storage]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else ()
    return [storage for part in parts for storage in _storages(part)]


def _with_tensors(found: Any, load: Load | None, loaded: dict[str, Tensor], made: dict[_View, Tensor]) -> Any:
    """Return `found` with a tensor for each view.

    Tensors share storages as they did when they were saved.
    """
    if isinstance(found, _View):
        if found not in made:
            made[found] = _tensor(found, load, loaded)
        return made[found]
    if isinstance(found, Mapping):
        return {key: _with_tensors(value, load, loaded, made) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return type(found)(_with_tensors(value, load, loaded, made) for value in found)
    if isinstance(found, (_Name, _Storage)):
        raise ForeignCode(f"has more than weights ({found}), so it is not opened")
    return found


def _tensor(view: _View, load: Load | None, loaded: dict[str, Tensor]) -> Tensor:
    storage = view.storage
    last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
    if min((view.offset, *view.size, *view.stride)) < 0 or (0 not in view.size and last >= storage.count):
        raise ValueError(f"a tensor of shape {view.size} is outside its storage")
    if load is None:
        return torch.empty_strided(view.size, view.stride, dtype=storage.dtype, device="meta")
    if storage.key not in loaded:
        content = load(storage)
        empty = torch.empty(0, dtype=storage.dtype)
        loaded[storage.key] = torch.frombuffer(content, dtype=storage.dtype) if content else empty
    return loaded[storage.key].as_strided(view.size, view.stride, view.offset)


def _parse(stream: IO[bytes]) -> Any:
    """Return the next pickle of `stream`, from opcodes that build data.

    Raises:
        ForeignCode: if it has any other opcode.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in LITERALS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in STEPS:
            STEPS[name](stack, argument)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ForeignCode(f"has more than weights (pickle opcode {name}), so it is not opened")
    raise ValueError("its pickle has no end")


def _marked(stack: list[Any]) -> list[Any]:
    """Remove and return everything above the last mark, and the mark."""
    place = len(stack) - 1 - stack[::-1].index(MARK)
    taken = stack[place + 1 :]
    del stack[place:]
    return taken


def _tuple(count: int | None) -> Callable[[list[Any], Any], None]:
    def step(stack: list[Any], _: Any) -> None:
        taken = _marked(stack) if count is None else stack[len(stack) - count :]
        if count is not None:
            del stack[len(stack) - count :]
        stack.append(tuple(taken))

    return step


def _global(stack: list[Any], argument: Any) -> None:
    stack.append(_Name(str(argument)))


def _stack_global(stack: list[Any], _: Any) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_Name(f"{module} {name}"))


def _items(stack: list[Any], _: Any) -> None:
    taken = _marked(stack)
    _dict(stack[-1]).update(zip(taken[::2], taken[1::2], strict=True))


def _item(stack: list[Any], _: Any) -> None:
    value, key = stack.pop(), stack.pop()
    _dict(stack[-1])[key] = value


def _appends(stack: list[Any], _: Any) -> None:
    taken = _marked(stack)
    _list(stack[-1]).extend(taken)


def _append(stack: list[Any], _: Any) -> None:
    value = stack.pop()
    _list(stack[-1]).append(value)


def _build(stack: list[Any], _: Any) -> None:
    stack.pop()  # an OrderedDict's attributes, such as a state dict's versions, don't affect tensors
    _dict(stack[-1])


def _persistent(stack: list[Any], _: Any) -> None:
    kind, storage, key, *more = stack.pop()
    count = more[1] if len(more) > 1 else None
    words = storage.words.split(" ")[-1] if isinstance(storage, _Name) else ""
    if kind != "storage" or words not in DTYPES or not isinstance(count, int) or count < 0:
        raise ForeignCode(f"has more than weights (a storage of {storage}), so it is not opened")
    stack.append(_Storage(DTYPES[words], str(key), count))


def _reduce(stack: list[Any], _: Any) -> None:
    arguments, function = stack.pop(), stack.pop()
    words = function.words if isinstance(function, _Name) else repr(function)
    if words == ORDERED:
        stack.append(dict(*arguments))
    elif words == PARAMETER:
        stack.append(arguments[0])
    elif words == TENSOR and isinstance(arguments[0], _Storage):
        storage, offset, size, stride, *_rest = arguments
        if not all(type(number) is int for number in (offset, *size, *stride)):
            raise ValueError("a tensor's shape is not a list of integers")
        stack.append(_View(storage, offset, tuple(size), tuple(stride)))
    else:
        raise ForeignCode(f"has more than weights ({words}), and such a pickle could run any code, so it is not opened")


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ForeignCode("has more than weights (an object's state), so it is not opened")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("its pickle appends to something that is not a list")
    return value


CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
)
EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
STEPS: Mapping[str, Callable[[list[Any], Any], None]] = {
    "TUPLE": _tuple(None),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "SETITEMS": _items,
    "SETITEM": _item,
    "APPENDS": _appends,
    "APPEND": _append,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
}
