"""Register the implementations of each extension point.

Each role has a registry that maps a name in YAML to a class or function. A registry lists our own implementations by
their paths and imports them at first use, so that names can be checked without loading PyTorch. The name is one of
ours, one that a user registered with a decorator, or a dotted path. A dotted path runs code, so only `microdit` and the
modules that the configuration lists in `plugins` can be named. The exception is `data.name`, which may be any dotted
path, because recorded runs name datasets that `plugins` does not list.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from microdit.common.errors import ConfigError, nearest
from microdit.common.moved import import_hint, present_path

T = TypeVar("T")
Item = TypeVar("Item")

_allowed = {"microdit"}  # modules that dotted paths may name; never shrinks


def import_plugins(modules: Iterable[str]) -> None:
    """Import the user's modules, and allow dotted paths into them.

    The paths may also name their submodules. The working directory is searched last.

    Args:
        modules: dotted names.

    Raises:
        ConfigError: if a module can't be imported.
    """
    for name in modules:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # last, so that it shadows no other module
        try:
            importlib.import_module(name)
        except (ImportError, TypeError, ValueError) as error:  # the latter two for invalid module names
            hint = import_hint(error) if isinstance(error, ImportError) else ""
            raise ConfigError(f"'plugins' names module '{name}', which can't be imported: {error}{hint}") from None
        _allowed.add(name)


class Registry(Mapping[str, T], Generic[T]):
    """Map names to the implementations of one role.

    Args:
        key: the setting that names an implementation, for messages.
        entries: our implementations, or their dotted paths.
        base: the class that implementations must derive from, or its dotted path; None accepts any class or function.
        open_paths: allow dotted paths into modules that `plugins` does not list.
    """

    def __init__(
        self, key: str, entries: Mapping[str, T | str], base: type | str | None = None, open_paths: bool = False
    ) -> None:
        self.key = key
        self.bundled = tuple(entries)
        self._base = base
        self._entries = dict(entries)
        self._open_paths = open_paths

    @property
    def base(self) -> type | None:
        """Return the class that implementations must derive from."""
        return _import_path(self._base) if isinstance(self._base, str) else self._base

    def __getitem__(self, name: str) -> T:
        entry: Any = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = _import_path(entry)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without importing the entry, as a Mapping would

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, name: str) -> Callable[[Item], Item]:
        """Return a decorator that adds a class or function under a name.

        Registering the same definition again (a notebook's cell, a reloaded module) replaces it.

        Args:
            name: letters, digits, "_" and "-".

        Raises:
            ConfigError: from the decorator, if `name` has other characters or is taken, or the class does not derive
                from `base`.
        """

        def decorate(item: Item) -> Item:
            if not name or not name.replace("-", "_").isidentifier():
                raise ConfigError(f"'{name}' can't be registered for '{self.key}'; use letters, digits, '_' and '-'")
            old: Any = self._entries.get(name)
            if name in self.bundled or (old is not None and _definition(old) != _definition(item)):
                raise ConfigError(f"'{name}' is already registered for '{self.key}'; choose another name")
            self._entries[name] = self._checked(name, item, self.key)
            return item

        return decorate

    def check(self, name: str, key: str | None = None) -> None:
        """Check that a name is registered or dotted, without importing anything.

        Args:
            name: of an implementation.
            key: the setting that holds the name, if not the registry's own.

        Raises:
            ConfigError: if it is neither; suggests the nearest valid choice.
        """
        if name not in self._entries and "." not in name:
            hint = nearest(name, self._entries)
            raise ConfigError(f"'{key or self.key}' is '{name}'; {hint} (or name a class of yours by its dotted path)")

    def check_importable(self, name: str, key: str | None = None) -> None:
        """Check that `name` is registered, or import what it names.

        Args:
            name: a registered name, or the dotted path of an implementation.
            key: the setting that an error names; by default the registry's.

        Raises:
            ConfigError: as `resolve` does.
        """
        if name not in self._entries:
            self.resolve(name, key)

    def resolve(self, name: str, key: str | None = None) -> T:
        """Return the implementation of a name, importing it if it is a dotted path.

        Args:
            name: of an implementation.
            key: the setting that holds the name, if not the registry's own.

        Raises:
            ConfigError: if there is none, its module is not listed in `plugins`, or it does not derive from `base`.
        """
        key = key or self.key
        self.check(name, key)
        if name in self._entries:
            return self[name]
        return self._checked(name, self._load(present_path(name) or name, key), key)

    def _load(self, path: str, key: str) -> Any:
        module, _, attribute = path.rpartition(".")
        if not self._open_paths and not _is_allowed(module):
            raise ConfigError(f"'{key}' is '{path}'; to use it, list its module '{module}' in 'plugins'")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            hint = import_hint(error) if isinstance(error, ImportError) else ""
            raise ConfigError(f"'{key}' is '{path}', which can't be imported: {error}{hint}") from None

    def _checked(self, name: str, item: Any, key: str) -> T:
        if self.base is not None and not (isinstance(item, type) and issubclass(item, self.base)):
            required = f"{self.base.__module__}.{self.base.__name__}"
            raise ConfigError(f"'{key}' is '{name}', which is no class derived from {required}")
        return item


def _import_path(path: str) -> Any:
    """Return our own class or function at a dotted path."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: its dotted name.
        modules: the public names, each with its module's name within the package.

    Raises:
        AttributeError: from the returned function, if the package has no such name.
    """

    def getattribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute


def _is_allowed(module: str) -> bool:
    return any(module == allowed or module.startswith(f"{allowed}.") for allowed in _allowed)


def _definition(item: Any) -> tuple[Any, Any]:
    """Return module and qualified name of a definition.

    They stay the same if the definition is executed again.
    """
    return getattr(item, "__module__", None), getattr(item, "__qualname__", repr(item))
