"""Registries that map the names used in configs and commands to objects, which are imported on first use."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gitseg_tf.errors import ConfigError


class Registry:
    """A table of named objects, such as all decoders. Each name is declared once, by `register`.

    A row holds either the object itself or "module:attribute", which is imported when the row is first used, so
    declaring a table and checking a name do not import TensorFlow.

    Args:
        kind: what a name denotes, in the singular, for error messages ("decoder").

    Example:
        >>> shapes = Registry("shape")
        >>> shapes.register("circle", "math:pi")
        >>> @shapes.register("square", corners=4)
        ... def square():
        ...     return 1.0
        >>> shapes.names()
        ('circle', 'square')
        >>> shapes.get("circle"), shapes.facts("square")
        (3.141592653589793, {'corners': 4})
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._rows: dict[str, tuple[Any, dict[str, Any]]] = {}

    def register(self, name: str, target: Any = None, **facts: Any) -> Callable[[Any], Any] | None:
        """Declare a name: `register(name, target)`, or `@register(name)` above a function or class.

        Args:
            name: the name used in configs and commands; it cannot be registered again with another target.
            target: the object, or "module:attribute" for one that is imported on first use.
            facts: properties of the target that must be known without importing it; returned by `facts`.

        Returns:
            None, or without a target a decorator, which returns the object unchanged.

        Raises:
            ConfigError: the name is taken.
        """
        if target is None:

            def decorate(target: Any) -> Any:
                self._add(name, target, facts)
                return target

            return decorate
        self._add(name, target, facts)
        return None

    def names(self, **facts: Any) -> tuple[str, ...]:
        """List the names in the order of their declaration, optionally only those declared with these facts."""
        return tuple(n for n, (_, known) in self._rows.items() if all(known.get(k) == v for k, v in facts.items()))

    def check(self, name: str) -> str:
        """Return the name if it is registered.

        Raises:
            ConfigError: it is not; the message suggests a similar name.
        """
        if name in self._rows:
            return name
        raise ConfigError(f"unknown {self.kind} {name!r}; {suggestion(name, self._rows)}")

    def get(self, name: str) -> Any:
        """Return the object registered under a name, importing it if necessary.

        Raises:
            ConfigError: no such name; see `check`.
        """
        target, facts = self._rows[self.check(name)]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            self._rows[name] = target, facts
        return target

    def facts(self, name: str) -> dict[str, Any]:
        """Return the facts declared with a name, without importing the target.

        Raises:
            ConfigError: no such name; see `check`.
        """
        return dict(self._rows[self.check(name)][1])

    def remove(self, name: str) -> None:
        """Unregister a name, for tests.

        Raises:
            ConfigError: no such name; see `check`.
        """
        del self._rows[self.check(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _add(self, name: str, target: Any, facts: dict[str, Any]) -> None:
        # The same target may be registered again, for example when a notebook cell is run twice.
        if name in self._rows and not _has_same_origin(self._rows[name][0], target):
            raise ConfigError(f"{self.kind} {name!r} is already registered; choose another name")
        self._rows[name] = target, facts


def suggestion(name: str, known: Iterable[str]) -> str:
    """Suggest the most similar known name for an error message, or list all of them.

    Example:
        >>> suggestion("Resnet35", ["plain", "resnet34"])
        'did you mean resnet34?'
        >>> suggestion("vgg", ["plain", "resnet34"])
        'choose one of plain, resnet34'
    """
    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"


def _has_same_origin(one: Any, other: Any) -> bool:
    def origin(target: Any) -> Any:
        if isinstance(target, str):
            return target
        module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        return target if name is None else f"{module}:{name}"

    return bool(origin(one) == origin(other))
