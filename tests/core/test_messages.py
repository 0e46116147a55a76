"""Text messages: whose they are, and what changes on their way."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import messages
from comfyproxy.core.messages import Message
from comfyproxy.core.outputs import prefix_outputs


def parse(event: object, data: Any = None) -> Message:
    return parse_raw(json.dumps({"type": event, "data": data}))


def parse_raw(raw: str) -> Message:
    message = messages.parse(raw)
    assert message is not None
    return message


def rewritten(message: Message, **changes: Any) -> Any:
    return json.loads(messages.rewrite(message, **changes))


def nothing(output: Any) -> Any:
    raise AssertionError(f"asked about {output}")


# Whose a message is


def test_a_message_names_its_prompt_and_its_node() -> None:
    message = parse("executing", {"node": "5:1", "display_node": "5", "prompt_id": "p"})
    assert (message.event, message.prompt_id, message.node, message.is_final) == ("executing", "p", "5:1", False)
    assert messages.parse(message.raw) == message


def test_only_executing_with_node_null_and_a_prompt_is_final() -> None:
    assert parse("executing", {"node": None, "prompt_id": "p"}).is_final
    assert not parse("executing", {"node": None}).is_final
    assert not parse("executing", {"prompt_id": "p"}).is_final
    assert not parse("executing", {"node": 5, "prompt_id": "p"}).is_final
    assert not parse("executing", {"node": "1", "prompt_id": "p"}).is_final
    assert not parse("progress", {"node": None, "prompt_id": "p"}).is_final


def test_what_is_built_is_read() -> None:
    final = parse_raw(messages.final("p"))
    assert (final.event, final.prompt_id, final.node, final.is_final) == ("executing", "p", None, True)
    assert json.loads(messages.final("p")) == {"type": "executing", "data": {"node": None, "prompt_id": "p"}}
    assert messages.queue_remaining(parse_raw(messages.status(3))) == 3
    assert "sid" not in json.loads(messages.status(3))["data"]
    assert json.loads(messages.status(0, sid="s"))["data"] == {
        "status": {"exec_info": {"queue_remaining": 0}},
        "sid": "s",
    }


@pytest.mark.parametrize(
    "data",
    [None, [], "x", 5, True, {}, [{"prompt_id": "p"}], {"prompt_id": None}, {"prompt_id": 5}, {"prompt_id": ["p"]}],
)
def test_custom_data_may_be_anything_and_names_no_prompt(data: Any) -> None:
    message = parse("some.node", data)
    assert (message.event, message.prompt_id, message.node) == ("some.node", None, None)
    assert json.loads(message.data) == data


@pytest.mark.parametrize("node", [5, ["1"], {"a": 1}, True, 1.5])
def test_a_node_of_another_type_does_not_hide_the_prompt(node: Any) -> None:
    message = parse("some.node", {"node": node, "prompt_id": "p"})
    assert (message.prompt_id, message.node) == ("p", None)


def test_a_message_may_have_no_data() -> None:
    message = parse_raw('{"type": "crystools.monitor"}')
    assert (message.event, message.data, message.prompt_id) == ("crystools.monitor", b"null", None)


def test_nan_and_lone_surrogates_do_not_hide_whose_it_is() -> None:
    for value in ("NaN", "-Infinity", '"\\ud800"'):
        message = parse_raw('{"type": "executed", "data": {"node": "1", "output": [' + value + '], "prompt_id": "p"}}')
        assert (message.event, message.prompt_id) == ("executed", "p")
        assert messages.executed_node(message) == "1"


@pytest.mark.parametrize(
    "raw",
    [
        *("", "[]", "null", "5", '"x"', "{}", "{", '{"data": {}}', "NaN", '{"type": NaN', "\x00\x00\x00\x01\x00\x00"),
        *('["type"]', '{"Type": "x"}', '{"data": NaN}', "\ufffdPNG\r\n\x1a\n", '{"type": "x", "data": '),
    ],
)
def test_what_has_not_comfyuis_shape_is_no_message(raw: str) -> None:
    assert messages.parse(raw) is None


def test_nesting_to_the_limit_is_a_message_or_none_and_no_failure() -> None:
    for depth in (*range(850, 1000), 5000):
        message = messages.parse('{"type": "x", "data": ' + "[" * depth + "]" * depth + "}")
        assert message is None or message.event == "x"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "prompt_id", "x"]), inner),
    max_leaves=6,
)


@given(st.text(max_size=30) | values.map(json.dumps))
def test_whatever_comes_is_read_or_is_none(raw: str) -> None:
    messages.parse(raw)


@given(st.text(max_size=8), values)
def test_whatever_a_node_says_can_be_passed_on(event: str, data: Any) -> None:
    message = parse(event, data)
    messages.executed_node(message)
    messages.queue_remaining(message)
    assert message.event == event
    is_named = isinstance(data, dict) and isinstance(data.get("prompt_id"), str)
    assert message.prompt_id == (data["prompt_id"] if is_named else None)
    same = messages.rewrite(message, output=lambda output: output)
    assert json.dumps(json.loads(same)) == json.dumps({"type": event, "data": data})


@pytest.mark.parametrize("data", [None, {}, {"status": None}, {"status": {"exec_info": {"queue_remaining": "3"}}}, 5])
def test_a_status_without_a_count_counts_nothing(data: Any) -> None:
    assert messages.queue_remaining(parse("status", data)) is None


@pytest.mark.parametrize("data", [None, {}, {"node": None}, {"node": 5}, [], "node"])
def test_an_executed_without_a_node_tells_of_none(data: Any) -> None:
    assert messages.executed_node(parse("executed", data)) is None
    assert messages.executed_node(parse("executed", {"node": "7"})) == "7"


def test_an_executed_with_nan_and_without_a_node_tells_of_none() -> None:
    for data in ('{"output": NaN}', '{"node": 5, "output": NaN}', "[NaN]"):
        assert messages.executed_node(parse_raw('{"type": "executed", "data": ' + data + "}")) is None


# What changes


def test_another_prompt_id_takes_the_place_of_the_old() -> None:
    message = parse("progress", {"value": 1, "prompt_id": "old", "node": "old"})
    assert rewritten(message, prompt_id="new") == {
        "type": "progress",
        "data": {"value": 1, "prompt_id": "new", "node": "old"},
    }


def test_progress_state_names_the_prompt_in_each_node() -> None:
    nodes = {"1": {"state": "running", "prompt_id": "old"}, "2": {"prompt_id": "old"}, "3": {"state": "x"}, "4": None}
    data = rewritten(parse("progress_state", {"prompt_id": "old", "nodes": nodes}), prompt_id="new")["data"]
    assert data == {
        "prompt_id": "new",
        "nodes": {
            "1": {"state": "running", "prompt_id": "new"},
            "2": {"prompt_id": "new"},
            "3": {"state": "x"},
            "4": None,
        },
    }


@pytest.mark.parametrize("nodes", [None, [], ["old"], "old", 5])
def test_nodes_of_another_shape_stay(nodes: Any) -> None:
    data = rewritten(parse("execution_cached", {"prompt_id": "old", "nodes": nodes}), prompt_id="new")["data"]
    assert data == {"prompt_id": "new", "nodes": nodes}


def test_the_output_can_be_changed_alone() -> None:
    message = parse("executed", {"node": "1", "output": {"images": []}, "prompt_id": "p"})
    assert rewritten(message, output=lambda output: [output])["data"] == {
        "node": "1",
        "output": [{"images": []}],
        "prompt_id": "p",
    }


@pytest.mark.parametrize("data", [{"node": "1", "prompt_id": "p"}, None, [], "output", ["output"], 5])
def test_without_an_output_there_is_nothing_to_change(data: Any) -> None:
    assert rewritten(parse("executed", data), output=nothing) == {"type": "executed", "data": data}


def test_nan_is_kept_on_the_way() -> None:
    message = parse_raw('{"type": "executed", "data": {"prompt_id": "old", "output": {"x": [NaN, -Infinity]}}}')
    text = messages.rewrite(message, prompt_id="new")
    assert text == '{"type": "executed", "data": {"prompt_id": "new", "output": {"x": [NaN, -Infinity]}}}'


def test_what_is_nested_too_deeply_goes_as_it_came() -> None:
    def prefixed(output: Any) -> Any:
        return prefix_outputs(output, "gpu-a")

    for depth in range(300, 1000, 7):
        message = messages.parse('{"type": "executed", "data": {"output": ' + "[" * depth + "]" * depth + "}}")
        if message is not None:
            assert messages.rewrite(message, output=prefixed).count("[") == depth
