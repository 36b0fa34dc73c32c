"""Parse JSON and YAML from files that may be damaged: every fault is a ValueError with a short message."""

import json
import reprlib
from collections.abc import Callable
from typing import Any

import yaml

# More nodes than any config has; YAML's aliases can make a few lines expand to billions.
_MOST_NODES = 100_000
_MOST_BITS = 4096  # Python refuses to print numbers of more than 4300 digits
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 12
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxlevel = 4


class ParseError(ValueError):
    """A text is not valid JSON or YAML.

    Attributes:
        line: the number of the faulty line, from 1, or None.
    """

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.line = line


def parse_json(content: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON.

    Args:
        content: text, or bytes in UTF-8, UTF-16 or UTF-32.
        pairs: function from the (key, value) pairs of an object to its value; None makes a dict.

    Raises:
        ValueError: invalid JSON, text that is not Unicode, or JSON that is nested too deeply.

    Example:
        >>> parse_json('{"folds": 5}')
        {'folds': 5}
    """
    try:
        return json.loads(content, object_pairs_hook=pairs)
    except RecursionError:
        raise ParseError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Args:
        text: the document.

    Raises:
        ParseError: invalid YAML, a value that does not fit its tag, too deep nesting, or aliases that make it huge.

    Example:
        >>> parse_yaml("epochs: 3")
        {'epochs': 3}
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ParseError(" ".join(str(reason).split()), mark.line + 1 if mark else None) from None
    except RecursionError:
        raise ParseError("it is nested too deeply") from None
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, OverflowError) as error:  # "!!bool maybe"
        raise ParseError(" ".join(f"a value does not fit its type: {error}".split())) from None
    _check_size(tree)
    return tree


def shown(value: Any) -> str:
    """Format a value for a message in one line of limited length.

    Example:
        >>> shown(["spleen", 3]), len(shown("x" * 10_000)) < 200
        ("['spleen', 3]", True)
    """
    return _REPR.repr(value)


def _check_size(tree: Any) -> None:
    nodes, todo = 0, [tree]
    while todo:
        node = todo.pop()
        nodes += 1
        if isinstance(node, int) and node.bit_length() > _MOST_BITS:
            raise ParseError("it has a number with thousands of digits")
        if nodes > _MOST_NODES:
            raise ParseError(f"it has more than {_MOST_NODES} values, or an alias that contains itself")
        if isinstance(node, dict):
            todo += node.values()
        elif isinstance(node, list):
            todo += node
