import threading

import pytest

from gitseg_tf.viewer.cache import Cache


def test_what_was_wanted_longest_ago_is_let_go_first():
    cache = Cache(len, 10)
    for key in "abc":
        cache.get(key, lambda: "xxx")
    cache.get("a", pytest.fail)
    cache.get("d", lambda: "xxxx")
    assert [cache.peek(key) for key in "abcd"] == ["xxx", None, "xxx", "xxxx"]


def test_a_value_larger_than_the_limit_is_there_alone():
    cache = Cache(len, 3)
    cache.put("a", "x")
    cache.put("b", "xxxx")
    assert cache.peek("b") == "xxxx" and cache.peek("a") is None
    cache.put("c", "x")
    assert cache.peek("b") is None and cache.peek("c") == "x"


def test_two_that_want_the_same_make_it_once():
    cache, made, begun, go_on, found = Cache(len, 10), [], threading.Event(), threading.Event(), []

    def make():
        made.append(1)
        begun.set()
        assert go_on.wait(30)
        return "x"

    threads = [threading.Thread(target=lambda: found.append(cache.get("a", make))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    assert cache.peek("a") is None
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert made == [1] and found == ["x"] * 3


def test_what_failed_is_tried_again():
    cache = Cache(len, 10)
    with pytest.raises(KeyError):
        cache.get("a", {}.popitem)
    assert cache.get("a", lambda: "x") == "x"
