"""Models as the backend spells them, and as the client did."""

import json
from typing import Any

import pytest
from graphs_support import GRAPHS, MODELS, ODD_GRAPHS, as_json, catalog_of, loader, prompt
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.model_names import canonical
from comfyproxy.core.spelling import spelled, unspelled

LISTS = st.lists(MODELS.filter(str.isascii), max_size=4)


def replaced(name: str, *offered: str) -> Any:
    """Return what becomes of a name on a backend that offers others."""
    graph = prompt(("Load", {"name": name, "text": name}), ("Other", {"name": name}))
    found = spelled(graph, catalog_of(Load=loader(name=list(offered)), Other=loader()))
    inputs = [node["inputs"] for node in json.loads(found.graph).values()]
    assert (inputs[0]["text"], inputs[1]["name"]) == (name, name)
    assert found.spellings == ({} if inputs[0]["name"] == name else {name: inputs[0]["name"]})
    if not found.spellings:
        assert found.graph is graph
    return inputs[0]["name"]


def test_a_model_is_named_as_its_backend_lists_it() -> None:
    assert replaced("x/a.pt", "b.pt", "x\\a.pt") == "x\\a.pt"
    assert replaced("x\\a.pt", "b.pt", "x/a.pt") == "x/a.pt"
    assert replaced("x\\y/a.pt", "x\\y\\a.pt") == "x\\y\\a.pt"


@pytest.mark.parametrize(
    ("name", "offered"),
    [("x/a.pt", ["x/a.pt", "x\\a.pt"]), ("x/a.pt", ["x/b.pt"]), ("x/a", ["x\\a"]), ("a.pt", []), ("A.pt", ["a.pt"])],
)
def test_what_is_listed_or_in_no_spelling_stays(name: str, offered: list[str]) -> None:
    assert replaced(name, *offered) == name


def test_nothing_is_spelled_for_a_backend_of_which_nothing_is_known() -> None:
    assert spelled(b"anything", None) == (b"anything", {})


def test_all_else_keeps_its_bytes() -> None:
    graph = (
        b'{"1":  {"class_type": "Load", "_meta": {"t":1.50}, "inputs": {"name": "x/a.pt", "seed":  1e3, "l":["2", 0]}}}'
    )
    found = spelled(graph, catalog_of(Load=loader(name=["x\\a.pt"]))).graph
    for same in (b'{"t":1.50}', b"1e3", b'["2", 0]', b'"x\\\\a.pt"'):
        assert same in found


@pytest.mark.parametrize("odd", [b"NaN", b'"\\ud800"', b"1e999", b'{"\\ud800": -Infinity}'])
def test_values_that_only_python_takes_for_json_are_no_hindrance(odd: bytes) -> None:
    graph = b'{"1": {"class_type": "Load", "inputs": {"name": "x/a.pt", "odd": ' + odd + b"}}}"
    found = spelled(graph, catalog_of(Load=loader(name=["x\\a.pt"])))
    assert found.spellings == {"x/a.pt": "x\\a.pt"}
    expected = json.loads(graph)
    expected["1"]["inputs"]["name"] = "x\\a.pt"
    assert repr(json.loads(found.graph)) == repr(expected)


@given(ODD_GRAPHS, LISTS)
def test_no_graph_is_too_odd(graph: Any, offered: list[str]) -> None:
    spelled(as_json(graph), catalog_of(A=loader(x=offered), B=loader(y=offered)))


@given(GRAPHS, LISTS, LISTS)
def test_a_graph_comes_back_as_the_client_wrote_it_but_for_two_spellings_of_one_model(
    graph: Any, of_a: list[str], of_b: list[str]
) -> None:
    raw = as_json(graph)
    found = spelled(raw, catalog_of(A=loader(x=of_a), B=loader(y=of_b)))
    assert all(client != its and canonical(client) == canonical(its) for client, its in found.spellings.items())
    back = json.loads(unspelled(found.graph, found.spellings))
    assert repr(_canonical(back)) == repr(_canonical(json.loads(raw)))


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return canonical(value) if isinstance(value, str) else value


# On the way back

SPELLINGS = {"x/ä.pt": "x\\ä.pt"}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_whole_strings_get_the_clients_spelling_again(ascii_only: bool) -> None:
    event = {"current_inputs": {"name": ["x\\ä.pt"]}, "exception_message": 'C:\\m\\x\\ä.pt is "x\\ä.pt"', "n": 1.50}
    raw = json.dumps(event, ensure_ascii=ascii_only).encode()
    assert json.loads(unspelled(raw, SPELLINGS)) == {**event, "current_inputs": {"name": ["x/ä.pt"]}}


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a":  ["x/a.pt", NaN]}', b'"\\\\x.pt"'])
def test_bytes_without_the_backends_spelling_are_not_touched(raw: bytes) -> None:
    assert unspelled(raw, SPELLINGS) is raw
    assert unspelled(raw, {}) is raw


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3), ODD_GRAPHS)
def test_json_stays_json_whatever_is_put_back(spellings: dict[str, str], value: Any) -> None:
    json.loads(unspelled(as_json([value, *spellings.values()]), spellings))
