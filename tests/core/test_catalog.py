"""What a backend can run, and which nodes of a graph it will."""

import json
from typing import Any

import msgspec
import pytest

from comfyproxy.core import catalog
from comfyproxy.core.catalog import classes_of, outputs_to_execute


def info(**inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": ["IMAGE"], "output_node": False, "category": "x"}


def parse(**classes: Any) -> catalog.Catalog:
    return catalog.parse(json.dumps(classes).encode())


def test_classes_and_output_classes_are_told_apart() -> None:
    found = parse(Load=info(), Save={**info(), "output_node": True}, Bare={})
    assert found.classes == {"Load", "Save", "Bare"}
    assert found.output_classes == {"Save"}


def test_what_a_backend_lacks_is_missing() -> None:
    found = parse(A={}, B={})
    assert found.missing(["A", "C", "B", "D"]) == {"C", "D"}
    assert found.missing([]) == frozenset()


def test_inputs_that_take_uploads_are_found() -> None:
    found = parse(
        LoadImage=info(image=[["a.png"], {"image_upload": True}], other=[["x"], {"tooltip": "upload it"}]),
        LoadVideo={"input": {"optional": {"file": ["COMBO", {"video_upload": True, "options": []}]}}},
        Hidden={"input": {"hidden": {"file": ["COMBO", {"image_upload": True}]}}},
        Off=info(image=[["a.png"], {"image_upload": False, "upload_to": "input"}]),
    )
    assert found.upload_inputs == {("LoadImage", "image"), ("LoadVideo", "file")}


@pytest.mark.parametrize(
    "spec", [None, "IMAGE", [], ["IMAGE"], [["a"], None], [["a"], ["image_upload"]], {"image_upload": True}, 5]
)
def test_an_odd_input_takes_no_upload(spec: Any) -> None:
    assert parse(A=info(x=spec)).upload_inputs == frozenset()


def offered(spec: Any, name: str = "x") -> list[str] | None:
    """Return what an input of this description offers; None where it is no list for sure."""
    choices = parse(A=info(x=spec)).choices("A", name)
    return sorted(choices.values) if choices is not None else None


@pytest.mark.parametrize("spec", [[["a", "b"]], [["a", "b"], {}], ["COMBO", {"options": ["a", "b"], "default": "a"}]])
def test_the_choices_of_lists_in_either_form_are_known(spec: Any) -> None:
    assert offered(spec) == ["a", "b"]


@pytest.mark.parametrize("spec", [[[]], ["COMBO", {"options": []}]])
def test_an_empty_list_offers_nothing(spec: Any) -> None:
    assert offered(spec) == []


@pytest.mark.parametrize(
    "spec",
    [
        ["COMBO"],
        ["COMBO", {}],
        ["COMBO", {"options": None}],
        ["COMBO", {"options": ["a"], "remote": {"route": "/x"}}],
        ["COMBO", {"options": ["a"], "multiselect": True}],
        [["a"], {"multi_select": {"placeholder": "some"}}],
        [["a", 1], {}],
        [[{"key": "a", "inputs": {}}], {}],
        ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {}}]}],
        ["STRING", {"options": ["a"]}],
        [["a.png"], {"image_upload": True}],
        None,
        [],
        "COMBO",
    ],
)
def test_what_is_no_list_for_sure_constrains_nothing(spec: Any) -> None:
    assert offered(spec) is None


def test_inputs_and_classes_that_are_not_there_constrain_nothing() -> None:
    assert offered([["a"]], "other") is None
    assert parse(A=info(x=[["a"]])).choices("B", "x") is None


def test_optional_lists_count_and_the_required_one_of_two_comes_first() -> None:
    found = parse(A={"input": {"optional": {"x": [["a"]], "y": [["b"]]}, "required": {"x": [["c"]]}}})
    assert {name: choices.values for name, choices in found.definitions["A"].choices.items()} == {
        "x": {"c"},
        "y": {"b"},
    }


def test_lists_that_offer_the_same_are_kept_once() -> None:
    shared = catalog.Shared()
    raw = [json.dumps({"A": info(x=[["m", "n"]]), name: info(y=[["n", "m"]], z=[[name]])}).encode() for name in "BC"]
    one, other = (catalog.parse(each, shared=shared) for each in raw)
    assert one.definitions["A"] is other.definitions["A"]
    assert one.choices("A", "x") is one.choices("B", "y") is other.choices("C", "y")
    assert one.choices("B", "z") is not other.choices("C", "z")


@pytest.mark.parametrize("inputs", [{}, {"required": None}, {"required": []}, {"required": "x", "optional": 5}])
def test_odd_groups_of_inputs_take_no_uploads(inputs: Any) -> None:
    assert parse(A={"input": inputs}).classes == {"A"}


def test_numbers_that_only_python_takes_for_json_do_not_hide_what_a_backend_can_run() -> None:
    raw = b'{"A": {"input": {"required": {"x": ["FLOAT", {"max": Infinity, "default": NaN}], "\\ud800": 1}}}, "B": {}}'
    assert catalog.parse(raw).classes == {"A", "B"}


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"<html>", b'{"A": 5}', b'{"A": {"input": 5}}', b'{"A": [NaN]}'])
def test_what_is_no_object_info_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        catalog.parse(raw)


# Graphs


def test_the_classes_of_a_graph_are_found_by_node() -> None:
    graph = (
        b'{"1": {"class_type": "A", "inputs": {"x": [1, {"y": 2}]}}, "5:2": {"class_type": "B", "_meta": {}}, "3": {}}'
    )
    assert classes_of(graph) == {"1": "A", "5:2": "B", "3": ""}


@pytest.mark.parametrize("value", [b"NaN", b"-Infinity", b'"\\ud800"', b"1e999"])
def test_values_that_only_python_takes_for_json_do_not_hide_the_classes(value: bytes) -> None:
    assert classes_of(b'{"1": {"class_type": "A", "inputs": {"x": ' + value + b"}}}") == {"1": "A"}


@pytest.mark.parametrize(
    "graph", [b"null", b"[]", b"5", b'"x"', b'{"1": null}', b'{"1": {"class_type": 5}}', b"{", b"", b'{"1": [NaN]}']
)
def test_what_is_no_graph_has_no_classes(graph: bytes) -> None:
    assert classes_of(graph) == {}


def test_a_graph_nested_to_the_limit_is_no_failure() -> None:
    for depth in range(850, 1000):
        value = b"[" * depth + b"]" * depth
        assert classes_of(b'{"1": {"class_type": "A", "inputs": {"x": ' + value + b"}}}") in ({"1": "A"}, {})


CLASSES = {"1": "Load", "2": "Save", "3": "Preview", "4": "Save"}
OUTPUT_CLASSES = frozenset({"Save", "Preview"})


def executed(targets: list[str] | None = None, node_errors: bytes = b"{}") -> tuple[str, ...]:
    return outputs_to_execute(CLASSES, OUTPUT_CLASSES, targets=targets, node_errors=node_errors)


def test_all_outputs_run_in_the_order_of_the_graph() -> None:
    assert executed() == ("2", "3", "4")


def test_only_the_outputs_that_are_asked_for_run() -> None:
    assert executed(["4", "2", "1", "9"]) == ("2", "4")
    assert executed([]) == ()


def test_outputs_that_depend_on_a_node_with_errors_do_not_run() -> None:
    errors = {
        "1": {"errors": [{"type": "x"}], "dependent_outputs": ["2", "3"], "class_type": "Load"},
        "9": {"errors": []},
    }
    assert executed(node_errors=json.dumps(errors).encode()) == ("4",)
    assert executed(["2", "4"], json.dumps(errors).encode()) == ("4",)


@pytest.mark.parametrize("node_errors", [b"[]", b"null", b"", b"{", b'{"1": null}', b'{"1": {"dependent_outputs": 5}}'])
def test_odd_node_errors_leave_nothing_out(node_errors: bytes) -> None:
    assert executed(node_errors=node_errors) == ("2", "3", "4")
