"""A least-recently-used cache, limited by size in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Cache:
    """Values by key; if two threads request the same one, the second waits for the first.

    Args:
        size_of: function from a value to its size in bytes.
        limit: maximum size in bytes; beyond it, the least recently used values are dropped. The newest value always
            stays.
    """

    def __init__(self, size_of: Callable[[Any], int], limit: int):
        self._size_of, self._limit = size_of, limit
        self._values: OrderedDict[Hashable, Future] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key, computing it with `make` if it is missing.

        Raises:
            Whatever `make` raises; the next call tries again.
        """
        with self._lock:
            future = self._values.get(key)
            is_new = future is None
            if future is None:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
        if is_new:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    del self._values[key]
                future.set_exception(error)
            self._trim(key)
        return future.result()

    def put(self, key: Hashable, value: Any) -> None:
        """Store a value."""
        self.get(key, lambda: value)

    def peek(self, key: Hashable) -> Any:
        """Return the value of a key, or None if it is missing or not yet computed."""
        with self._lock:
            future = self._values.get(key)
            if future is None or not future.done():
                return None
            self._values.move_to_end(key)
            return future.result()

    def _trim(self, newest: Hashable) -> None:
        with self._lock:
            sizes = {key: self._size_of(f.result()) for key, f in self._values.items() if f.done()}
            total = sum(sizes.values())
            for key, size in sizes.items():
                if total <= self._limit or key == newest:
                    return
                del self._values[key]
                total -= size
