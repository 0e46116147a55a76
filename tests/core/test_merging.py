"""Lists and catalogs of several backends, put together."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import catalog, merging

NAMES = st.lists(st.text(max_size=5), unique=True, max_size=6)
FILES = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abcd"), "pathIndex": st.integers(0, 2), "size": st.integers()}),
    unique_by=lambda item: (item["name"], item["pathIndex"]),
    max_size=6,
)
FOLDERS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abcd"), "folders": st.lists(st.sampled_from("xyz"), unique=True)}),
    unique_by=lambda item: item["name"],
    max_size=4,
)


def merged(unite: Callable[[Sequence[bytes]], bytes], *answers: Any) -> Any:
    return json.loads(unite([json.dumps(answer).encode() for answer in answers]))


# Names


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_union_has_each_name_once_and_the_first_ones_in_front(lists: list[list[str]]) -> None:
    found = merged(merging.unite_names, *lists)
    assert found[: len(lists[0])] == lists[0]
    assert found == list(dict.fromkeys(name for names in lists for name in names))


@given(NAMES, NAMES)
def test_merging_again_changes_nothing(first: list[str], second: list[str]) -> None:
    once = merged(merging.unite_names, first, second)
    assert merged(merging.unite_names, once, second) == once
    assert merged(merging.unite_names, first, first) == first


def test_a_model_that_two_servers_spell_differently_is_listed_once_as_the_first_spells_it() -> None:
    windows, linux, other = ["x\\a.ckpt"], ["b.ckpt", "x/a.ckpt"], ["x\\a.ckpt", "y"]
    assert merged(merging.unite_names, windows, linux) == ["x\\a.ckpt", "b.ckpt"]
    assert merged(merging.unite_names, [], linux, other) == ["b.ckpt", "x/a.ckpt", "y"]
    assert merged(merging.unite_names, ["x/y"], ["x\\y"]) == ["x/y", "x\\y"], "these are no models"
    files = [[{"name": name, "pathIndex": 0} for name in names] for names in (windows, linux)]
    assert merged(merging.unite_models, *files) == [files[0][0], files[1][0]]


@pytest.mark.parametrize("raw", [b'["b","a"]', b' [ "a", "a" ] ', b"{}", b"nonsense", b""])
@pytest.mark.parametrize(
    "unite",
    [
        merging.unite_names,
        merging.unite_folders,
        merging.unite_models,
        merging.unite_stats,
        merging.unite_class("KSampler"),
    ],
)
def test_one_answer_stays_as_it_came(unite: Callable[[Sequence[bytes]], bytes], raw: bytes) -> None:
    assert unite([raw]) == raw


def test_the_first_answer_stays_as_it_came_if_the_others_have_nothing_beyond() -> None:
    assert merging.unite_names([b'["a" ,"b"]', b'["b"]', b"[]"]) == b'["a" ,"b"]'


@pytest.mark.parametrize("odd", [b"{}", b"null", b"<html>", b""])
def test_an_answer_that_is_none_does_not_count(odd: bytes) -> None:
    assert merging.unite_names([b'["a"]', odd]) == b'["a"]'
    assert merging.unite_names([odd, b'["a"]']) == b'["a"]'
    assert json.loads(merging.unite_models([b'["a"]', odd, b'["b"]'])) == ["a", "b"]


def test_odd_names_are_kept_apart_as_json_does() -> None:
    assert merged(merging.unite_names, [1, "1"], [True, 1.0, None, ["1"], {"a": 1}, 1]) == (
        [1, "1", True, 1.0, None, ["1"], {"a": 1}]
    )


# Models as files


@given(st.lists(FILES, min_size=1, max_size=4))
def test_a_model_that_two_servers_have_is_listed_as_the_first_of_them_lists_it(lists: list[list[Any]]) -> None:
    found = merged(merging.unite_models, *lists)
    assert found[: len(lists[0])] == lists[0]
    assert {item["name"] for item in found} == {item["name"] for items in lists for item in items}
    for name in {item["name"] for item in found}:
        owner = next(items for items in lists if any(item["name"] == name for item in items))
        assert [item for item in found if item["name"] == name] == [item for item in owner if item["name"] == name]
    keys = [(item["name"], item["pathIndex"]) for item in found]
    assert len(set(keys)) == len(keys)


def test_a_name_that_one_server_has_twice_stays_twice() -> None:
    twice = [{"name": "a", "pathIndex": 0}, {"name": "a", "pathIndex": 1}]
    assert merged(merging.unite_models, [], twice, [{"name": "a", "pathIndex": 2}]) == twice


def test_models_are_listed_by_name_and_folder() -> None:
    raw = json.dumps([{"name": "a", "pathIndex": 1}, {"name": "b"}, "c", {"pathIndex": 3}, 5, None]).encode()
    assert list(merging.listed(raw)) == [("a", 1), ("b", 0), ("c", 0)]
    assert list(merging.listed(b"{}")) == []
    assert list(merging.listed(b"nonsense")) == []


# Folders


@given(st.lists(FOLDERS, min_size=1, max_size=4))
def test_every_kind_of_model_is_there_once_with_all_its_folders(lists: list[list[Any]]) -> None:
    found = {item["name"]: item["folders"] for item in merged(merging.unite_folders, *lists)}
    for items in lists:
        for item in items:
            assert set(item["folders"]) <= set(found[item["name"]])
    for item in lists[0]:
        assert found[item["name"]][: len(item["folders"])] == item["folders"]
    assert all(len(set(folders)) == len(folders) for folders in found.values())


def test_kinds_without_folders_are_kept() -> None:
    assert merged(merging.unite_folders, [{"name": "a"}, 5], [{"name": "a", "folders": ["x"]}, "a", 5]) == (
        [{"name": "a"}, 5]
    )


# Devices


def test_the_stats_have_the_first_system_and_all_devices() -> None:
    one = {"system": {"os": "a"}, "devices": [{"index": 0}], "more": 1}
    other = {"system": {"os": "b"}, "devices": [{"index": 0}, {"index": 1}]}
    assert merged(merging.unite_stats, one, other, other) == {
        **one,
        "devices": [{"index": 0}, {"index": 0}, {"index": 1}, {"index": 0}, {"index": 1}],
    }
    assert merged(merging.unite_stats, one, {"devices": 5}, []) == one
    assert merged(merging.unite_stats, {"system": {}}, other) == {"system": {}}


# Catalogs


def catalog_of(**classes: Any) -> catalog.Catalog:
    return catalog.parse(json.dumps(classes).encode())


CLASSES = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.fixed_dictionaries({"input": st.just({}), "name": st.text(max_size=3), "x": st.floats(allow_nan=False)}),
    max_size=5,
)


@given(CLASSES)
def test_one_catalog_comes_out_as_it_went_in(classes: Any) -> None:
    raw = json.dumps(classes).encode()
    assert merging.unite_classes([catalog.parse(raw)]) == raw


@given(CLASSES, CLASSES)
def test_classes_that_both_have_are_the_first_ones_and_others_follow(first: Any, second: Any) -> None:
    found = json.loads(merging.unite_classes([catalog_of(**first), catalog_of(**second)]))
    assert found == {**second, **first}
    assert list(found) == [*first, *(name for name in second if name not in first)]


def test_the_json_of_a_class_keeps_its_bytes() -> None:
    found = catalog.parse(b' { "A" : {"x":NaN, "y": "\\ud800 \xc3\xbc"} , "B":{} } ')
    assert {name: definition.json for name, definition in found.definitions.items()} == {
        "A": b'{"x":NaN, "y": "\\ud800 \xc3\xbc"}',
        "B": b"{}",
    }


@pytest.mark.parametrize(
    "raw",
    [b"{", b"}", b"{}x", b"{,}", b'{"A": {},}', b'{"A": {} "B": {}}', b'{"A" {}}', b"{1: {}}", b"\xff", b'{"A": {}'],
)
def test_what_is_cut_or_broken_is_no_catalog(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        catalog.parse(raw)


def test_what_is_nested_too_deeply_is_no_catalog() -> None:
    with pytest.raises(msgspec.MsgspecError):
        catalog.parse(b'{"A": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


# One class


def test_one_class_is_merged_over_those_who_have_it() -> None:
    unite = merging.unite_class("A")
    one, other = {"A": {"input": {"required": {"m": [["a"]]}}}}, {"A": {"input": {"required": {"m": [["b"]]}}}}
    assert merged(unite, one, {}, other) == {"A": {"input": {"required": {"m": [["a", "b"]]}}}}
    assert merged(unite, {}, one) == one
    assert merged(unite, {}, {}) == {}
    assert unite([b'{"A":{}}', b"{}", b"nonsense"]) == b'{"A":{}}'
