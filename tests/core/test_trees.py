"""JSON and YAML of damaged files give a ValueError in one line, whatever is wrong with them."""

import tracemalloc

import pytest

from gitseg_tf.core.trees import ParseError, parse_json, parse_yaml, shown

# Each line repeats the one before nine times: 9^12 values.
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


def test_valid_text_is_parsed():
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    assert parse_json('{"a": 1}', sorted) == [("a", 1)]
    assert parse_yaml("base: &b {x: 1}\nother: {<<: *b, y: 2}") == {"base": {"x": 1}, "other": {"x": 1, "y": 2}}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "", "[1e", b"\xff\xfe{", "1" * 5000])
def test_invalid_json_is_a_value_error(text):
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 3000,
            "{a: " * 3000,
            "a: [",
            "a: 2024-99-99",
            "!!bool maybe",
            "!!timestamp x",
            "!!int ''",
            "? [a]\n: 1",
        ),
        *("!!python/name:os.system", "a: &x [*x]", "a: 0x" + "f" * 5000, "a: \x01", "a: 1\n---\nb: 2"),
    ],
)
def test_invalid_yaml_is_a_parse_error(text):
    with pytest.raises(ParseError) as caught:
        parse_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_the_line_of_a_yaml_error_is_known():
    with pytest.raises(ParseError) as caught:
        parse_yaml("a: 1\nb: [\n")
    assert caught.value.line == 3


def test_aliases_that_expand_to_billions_of_values_are_refused():
    tracemalloc.start()
    with pytest.raises(ParseError, match="more than"):
        parse_yaml(ALIASES)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_long_values_are_cut_in_messages():
    for value in ("x" * 10**6, list(range(10**5)), {"a": ["b" * 1000] * 100}, 10**500):
        assert len(shown(value)) < 2000
    assert shown("a\nb") == r"'a\nb'" and shown([1, "a"]) == "[1, 'a']"
