import threading

import pytest

from gitseg_tf.viewer.cache import Cache


def test_the_least_recently_used_value_is_evicted_first():
    cache = Cache(len, 10)
    for key in "abc":
        cache.get(key, lambda: "xxx")
    cache.get("a", pytest.fail)
    cache.get("d", lambda: "xxxx")
    assert [cache.peek(key) for key in "abcd"] == ["xxx", None, "xxx", "xxxx"]


def test_a_value_larger_than_the_limit_is_cached_alone():
    cache = Cache(len, 3)
    cache.put("a", "x")
    cache.put("b", "xxxx")
    assert cache.peek("b") == "xxxx" and cache.peek("a") is None
    cache.put("c", "x")
    assert cache.peek("b") is None and cache.peek("c") == "x"


def test_concurrent_requests_compute_a_value_once():
    cache, calls, begun, go_on, results = Cache(len, 10), [], threading.Event(), threading.Event(), []

    def make():
        calls.append(1)
        begun.set()
        assert go_on.wait(30)
        return "x"

    threads = [threading.Thread(target=lambda: results.append(cache.get("a", make))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    assert cache.peek("a") is None
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert calls == [1] and results == ["x"] * 3


def test_a_failed_computation_is_retried():
    cache = Cache(len, 10)
    with pytest.raises(KeyError):
        cache.get("a", {}.popitem)
    assert cache.get("a", lambda: "x") == "x"
