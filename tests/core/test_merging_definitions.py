"""One node class of several backends: the first one's definition with the choices of all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.definitions import merge_definitions

CHOICE = st.one_of(st.text(max_size=4), st.integers(-2, 2), st.booleans(), st.sampled_from([0.5, 1.0, None]))
CHOICES = st.lists(CHOICE, max_size=5)


def old(choices: list[Any]) -> Any:
    return [choices, {"tooltip": "x"}]


def new(choices: list[Any]) -> Any:
    return ["COMBO", {"default": None, "options": choices, "multiselect": False}]


FORMS = st.sampled_from([old, new])


def definition(spec: Any, *, group: str = "required", **more: Any) -> Any:
    return {"input": {group: {"model": spec, "seed": ["INT", {"default": 0}]}}, "name": "A", **more}


def merge(*definitions: Any) -> Any:
    return json.loads(merge_definitions([json.dumps(one).encode() for one in definitions]))


def spec_of(merged: Any, group: str = "required") -> Any:
    return merged["input"][group]["model"]


def choices_of(spec: Any) -> list[Any]:
    found: list[Any] = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    return found


def distinct(choices: list[Any]) -> list[str]:
    return list(dict.fromkeys(json.dumps(choice) for choice in choices))


@given(FORMS, CHOICES, st.lists(st.tuples(FORMS, CHOICES), max_size=3))
def test_a_list_has_the_first_choices_in_front_and_all_others_once(
    form: Any, first: list[Any], others: list[tuple[Any, list[Any]]]
) -> None:
    merged = merge(definition(form(first)), *(definition(other(choices)) for other, choices in others))
    found = choices_of(spec_of(merged))
    assert found[: len(first)] == first
    assert distinct(found) == distinct(first + [choice for _, choices in others for choice in choices])
    assert len(found) - len(first) == len(distinct(found)) - len(distinct(first))
    assert spec_of(merged)[1:] == (old([])[1:] if form is old else [{**new([])[1], "options": found}])


@given(FORMS, CHOICES, FORMS, CHOICES)
def test_merging_again_changes_nothing(form: Any, first: list[Any], other: Any, second: list[Any]) -> None:
    once = merge(definition(form(first)), definition(other(second)))
    assert merge(once, definition(other(second))) == once
    assert merge(definition(form(first)), definition(form(first))) == definition(form(first))


def test_the_first_definition_stays_as_it_came_if_there_is_no_more_to_choose() -> None:
    raw = b'{"input":{"required":{"model":[["a","b"]]}},   "name":"A"}'
    assert merge_definitions([raw]) == raw
    assert merge_definitions([raw, json.dumps(definition(old(["b"]))).encode()]) == raw


def test_all_but_the_choices_is_the_first_ones() -> None:
    first = {**definition(old(["a"])), "description": "mine", "input_order": {"required": ["model", "seed"]}}
    other = {**definition(old(["b"])), "description": "yours", "deprecated": True}
    other["input"]["required"]["more"] = [["x"]]
    other["input"]["required"]["seed"] = ["INT", {"default": 7}]
    assert merge(first, other) == {**first, "input": definition(old(["a", "b"]))["input"]}


@pytest.mark.parametrize(("here", "there"), [("required", "optional"), ("optional", "required")])
def test_an_input_may_be_required_here_and_optional_there(here: str, there: str) -> None:
    merged = merge(definition(new(["a"]), group=here), definition(old(["b"]), group=there))
    assert choices_of(spec_of(merged, here)) == ["a", "b"]
    assert there not in merged["input"]


def test_hidden_inputs_are_left_alone() -> None:
    first = {"input": {"hidden": {"prompt": "PROMPT", "x": [["a"]]}}}
    assert merge(first, {"input": {"hidden": {"x": [["b"]]}}}) == first


def test_an_input_of_another_kind_adds_nothing() -> None:
    for other in ("COMBO", "STRING", ["STRING", {"options": ["x"]}], [], ["COMBO"], ["COMBO", 5], None):
        assert merge(definition(new(["a"])), definition(other)) == definition(new(["a"]))
    first = definition(["COMBO", {"remote": {"route": "/x"}}])
    assert merge(first, definition(new(["b"]))) == first


def test_options_of_an_unknown_kind_are_choices_too() -> None:
    first, other = (definition(["MY_LIST", {"options": choices}]) for choices in (["a"], ["b"]))
    assert choices_of(spec_of(merge(first, other))) == ["a", "b"]


def dynamic(**options: Any) -> Any:
    return ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": key, "inputs": inputs} for key, inputs in options.items()]}]


def test_a_dynamic_combo_gets_the_others_options_and_choices_inside_its_own() -> None:
    first = definition(dynamic(flux={"required": {"lora": new(["a"])}}, none={"required": {}}))
    other = definition(dynamic(flux={"required": {"lora": new(["b"])}}, sd={"optional": {"x": old(["c"])}}))
    assert spec_of(merge(first, other)) == dynamic(
        flux={"required": {"lora": new(["a", "b"])}}, none={"required": {}}, sd={"optional": {"x": old(["c"])}}
    )


def test_dynamic_combos_may_stand_in_one_another() -> None:
    def nested(choices: list[str]) -> Any:
        return definition(dynamic(outer={"required": {"in": dynamic(inner={"required": {"m": new(choices)}})}}))

    assert merge(nested(["a"]), nested(["b"]), nested(["a", "c"])) == nested(["a", "b", "c"])


def test_an_option_that_two_others_have_is_merged_from_both() -> None:
    def of(choices: list[str]) -> Any:
        return definition(dynamic(sd={"required": {"m": new(choices)}}))

    assert merge(definition(dynamic()), of(["a"]), of(["b"])) == of(["a", "b"])


def test_inputs_of_a_dynamic_slot_and_of_one_that_repeats_are_merged() -> None:
    def slot(choices: list[str]) -> Any:
        return definition(["COMFY_DYNAMICSLOT_V3", {"slotType": "IMAGE", "inputs": {"required": {"m": new(choices)}}}])

    def repeating(choices: list[str]) -> Any:
        template = {"input": {"required": {"m": new(choices)}}, "prefix": "m", "min": 1}
        return definition(["COMFY_AUTOGROW_V3", {"template": template}])

    assert merge(slot(["a"]), slot(["b"]), repeating(["x"])) == slot(["a", "b"])
    assert merge(repeating(["a"]), repeating(["b"]), slot(["x"])) == repeating(["a", "b"])


def test_an_output_that_is_a_list_of_choices_is_merged() -> None:
    first, other = (
        definition(old(choices), output=["MODEL", choices], output_name=["m", "c"]) for choices in (["a"], ["b"])
    )
    merged = merge(first, other, definition(old([]), output=["MODEL"]), definition(old([]), output=["MODEL", "X"]))
    assert merged["output"] == ["MODEL", ["a", "b"]]


ODD = [None, 5, "x", [], ["x"], {}, {"required": 5}, {"required": {"model": 5}}]


@pytest.mark.parametrize("odd", ODD)
def test_odd_definitions_add_nothing_and_break_nothing(odd: Any) -> None:
    first = definition(new(["a"]))
    assert merge(first, odd) == first
    assert merge(first, {"input": odd, "output": odd}) == first
    assert merge({"input": odd, "output": odd}, first) == {"input": odd, "output": odd}
    assert merge(odd, first) == odd


@pytest.mark.parametrize("depth", range(20, 300, 10))
def test_what_is_nested_too_deeply_stays_the_first_ones(depth: int) -> None:
    opening = '["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": {"required": {"m": '
    raw = '{"input": {"required": {"m": ' + opening * depth + "[[]]" + "}}}]}]" * depth + "}}}"
    assert merge_definitions([raw.encode(), raw.replace("[[]]", "[[ ]]").encode()]) == raw.encode()


@pytest.mark.parametrize("form", [old, new])
def test_a_model_that_two_servers_spell_differently_is_one_choice_as_the_first_spells_it(form: Any) -> None:
    windows, linux = ["x\\a.safetensors", "b.ckpt"], ["x/a.safetensors", "x/c.ckpt"]
    assert choices_of(spec_of(merge(definition(form(windows)), definition(form(linux))))) == [*windows, "x/c.ckpt"]
    assert choices_of(spec_of(merge(definition(form(linux)), definition(form(windows))))) == [*linux, "b.ckpt"]
    three = merge(definition(form([])), definition(form(windows)), definition(form(linux)))
    assert choices_of(spec_of(three)) == [*windows, "x/c.ckpt"]


def test_choices_that_are_no_models_stay_apart_whatever_their_separators() -> None:
    first, second = ["a\\b", "x/y.txt"], ["a/b", "x\\y.txt"]
    assert choices_of(spec_of(merge(definition(old(first)), definition(old(second))))) == first + second
