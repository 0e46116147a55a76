"""JSON in pieces: what is not decoded stays as it came, and what is is what Python makes of it."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import rawjson

numbers = st.integers() | st.floats() | st.integers(2**62, 2**66) | st.integers(-(2**66), -(2**62))
texts = st.text(st.characters(codec="utf-8") | st.characters(categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)  # NaN is not equal to itself


@given(values)
def test_a_value_is_decoded_as_by_python(value: Any) -> None:
    assert same(rawjson.decode(rawjson.encode(value)), value)


@given(st.dictionaries(texts, values, max_size=4), st.sampled_from([None, 1]))
def test_an_object_comes_apart_and_together(value: dict[str, Any], indent: int | None) -> None:
    members = rawjson.members(json.dumps(value, indent=indent).encode())
    assert list(members) == list(value)
    assert all(same(json.loads(raw), value[key]) for key, raw in members.items())
    assert same(json.loads(rawjson.obj(members)), value)


@given(st.lists(values, max_size=4), st.sampled_from([None, 1]))
def test_an_array_comes_apart_and_together(value: list[Any], indent: int | None) -> None:
    items = rawjson.items(json.dumps(value, indent=indent).encode())
    assert same([json.loads(raw) for raw in items], value)
    assert same(json.loads(rawjson.array(items)), value)


def test_values_stay_the_bytes_they_came_as() -> None:
    assert rawjson.members(b'{ "a" : [1,  2.50] , "b":"\\u00e9" }') == {"a": b"[1,  2.50]", "b": b'"\\u00e9"'}
    assert rawjson.items(b'[ {"a":  1.0}, 1e5 ]') == [b'{"a":  1.0}', b"1e5"]


def test_they_are_put_together_as_python_does() -> None:
    assert rawjson.obj({"a": b"1", '"': b"2"}) == json.dumps({"a": 1, '"': 2}).encode()
    assert rawjson.array([b"1", b"{}"]) == json.dumps([1, {}]).encode()
    assert (rawjson.obj({}), rawjson.array([])) == (b"{}", b"[]")


@pytest.mark.parametrize("raw", [b"null", b"5", b'"x"', b"NaN", b"[NaN]", b"[]"])
def test_json_of_another_kind_has_no_members(raw: bytes) -> None:
    assert rawjson.members(raw) == {}


@pytest.mark.parametrize("raw", [b"null", b"5", b'"x"', b"NaN", b'{"a": NaN}', b"{}"])
def test_json_of_another_kind_has_no_items(raw: bytes) -> None:
    assert rawjson.items(raw) == []


BROKEN_OBJECTS = [b"", b"nan", b"\xff", b"{", b'{"a": }', b'{"a": NaN', b'{"a" 1}']
BROKEN_ARRAYS = [b"", b"nan", b"\xff", b"[", b"[1", b"[NaN,", b"[1 2]"]


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        *product([rawjson.members, rawjson.decode], BROKEN_OBJECTS),
        *product([rawjson.items, rawjson.decode], BROKEN_ARRAYS),
    ],
)
def test_what_is_no_json_raises_value_error(read: Callable[[bytes], Any], raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read(raw)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(3.0, b"3"), (-3.0, b"-3"), (-0.0, b"0"), (0.5, b"0.5"), (2.0**60, str(2**60).encode()), (math.nan, b"NaN")],
)
def test_a_queue_number_is_an_integer_where_it_can_be(number: float, expected: bytes) -> None:
    assert rawjson.number(number) == expected
    assert rawjson.number(math.inf) == b"Infinity"


def test_what_is_nested_too_deeply_raises_value_error() -> None:
    deep = b"[" * 5000 + b"]" * 5000
    for read, raw in (
        (rawjson.decode, deep),
        (rawjson.items, b"[" + deep + b"]"),
        (rawjson.members, b'{"a": ' + deep + b"}"),
    ):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(raw)


def test_nesting_to_the_limit_is_read_or_raises_value_error() -> None:
    for depth in range(850, 1000):
        with suppress(ValueError):
            rawjson.decode(b"[" * depth + b"]" * depth)
