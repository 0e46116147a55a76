"""The end of a prompt, told to a client that heard only part of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import job_of, raw, recorded

from comfyproxy.core import messages, missed
from comfyproxy.core.jobs import Job

OUTPUTS = {"9": {"images": [{"filename": "a.png"}]}, "12:3": {"text": ["x"]}}
META = {"12:3": {"node_id": "12:3", "display_node": "12", "parent_node": None, "real_node_id": "12:3"}}
SUCCESS: list[Any] = ["execution_success", {"prompt_id": "p", "timestamp": 5}]
JOB = Job(prompt_id="p", number=1.0, client_id="c", fingerprint="", created_s=1.0)
FINAL = messages.final("p")


def entry(*, outputs: Any = OUTPUTS, meta: Any = META, last: Any = SUCCESS, **changes: Any) -> bytes:
    status = {"status_str": "x", "completed": True, "messages": [["execution_start", {"prompt_id": "p"}], last]}
    return raw({"prompt": [], "outputs": outputs, "status": status, "meta": meta, **changes})


def ending(whole: bytes, heard: list[str] | None = None, executed: set[str] | None = None) -> list[Any]:
    told = missed.ending(JOB, whole, heard=heard or [], executed=executed or set())
    return [json.loads(text) for text in told]


def events(told: list[Any]) -> list[str]:
    return [message["type"] for message in told]


def test_whoever_heard_nothing_is_told_all_that_matters() -> None:
    assert ending(entry()) == [
        {
            "type": "executed",
            "data": {"node": "9", "display_node": "9", "output": OUTPUTS["9"], "prompt_id": "p"},
        },
        {
            "type": "executed",
            "data": {"node": "12:3", "display_node": "12", "output": OUTPUTS["12:3"], "prompt_id": "p"},
        },
        {"type": "execution_success", "data": {"prompt_id": "p", "timestamp": 5}},
        json.loads(FINAL),
    ]


def test_whoever_heard_all_is_told_what_came() -> None:
    heard = [messages.encode(*SUCCESS), messages.encode("some.node", {}), FINAL]
    assert missed.ending(JOB, entry(), heard=heard, executed={"9", "12:3"}) == heard
    assert missed.ending(JOB, b"{}", heard=[FINAL], executed=set()) == [FINAL]


def test_an_output_that_was_lost_in_mid_run_is_told_before_the_end() -> None:
    heard = [messages.encode(*SUCCESS), FINAL]
    told = ending(entry(), heard, {"9"})
    assert events(told) == ["executed", "execution_success", "executing"]
    assert told[0]["data"]["node"] == "12:3"


def test_whoever_heard_only_the_last_is_told_what_came_before() -> None:
    told = ending(entry(), [messages.encode("some.node", {}), FINAL], {"9"})
    assert events(told) == ["executed", "some.node", "execution_success", "executing"]


def test_outputs_are_told_once() -> None:
    told = ending(entry(), executed={"9"})
    assert [message["data"]["node"] for message in told if message["type"] == "executed"] == ["12:3"]
    assert events(ending(entry(), executed={"9", "12:3", "other"})) == ["execution_success", "executing"]


def test_the_outcome_is_told_once_behind_the_outputs() -> None:
    heard = [messages.encode("execution_success", {"prompt_id": "p", "timestamp": 77})]
    told = ending(entry(), heard, {"9"})
    assert events(told) == ["executed", "execution_success", "executing"]
    assert told[1]["data"]["timestamp"] == 77


def test_what_came_behind_the_outcome_stays_behind_it() -> None:
    heard = [messages.encode("execution_error", {"prompt_id": "p"}), messages.encode("some.node", {}), "no message"]
    told = missed.ending(JOB, entry(outputs={}), heard=heard, executed=set())
    assert told == [*heard, FINAL]


@pytest.mark.parametrize("name", sorted(messages.OUTCOMES))
def test_every_outcome_is_told(name: str) -> None:
    data = {"prompt_id": "p", "node_id": "1", "exception_message": "no"}
    assert ending(entry(outputs={}, last=[name, data])) == [{"type": name, "data": data}, json.loads(FINAL)]


LAST: list[list[Any]] = [
    SUCCESS,
    ["execution_error", {"prompt_id": "p"}],
    ["execution_interrupted", {"prompt_id": "p"}],
]
tails = st.lists(st.sampled_from(["some.node", "progress"]), max_size=3)


@given(
    st.sampled_from(LAST),
    st.sets(st.sampled_from(["9", "12:3", "7"])),
    tails,
    st.booleans(),
    st.booleans(),
)
def test_whatever_was_heard_the_story_ends_once(
    last: Any, executed: set[str], tail: list[str], has_outcome: bool, has_final: bool
) -> None:
    heard = [messages.encode(*last)] if has_outcome else []
    heard += [messages.encode(name, {}) for name in tail]
    heard += [FINAL] if has_final else []
    told = missed.ending(JOB, entry(last=last), heard=heard, executed=executed)
    assert told[-1] == FINAL
    assert told.count(FINAL) == 1
    assert [text for text in told if text in heard and text != FINAL] == [text for text in heard if text != FINAL]
    found = events([json.loads(text) for text in told])
    assert sum(name in messages.OUTCOMES for name in found) == 1
    nodes = {json.loads(text)["data"]["node"] for text in told if json.loads(text)["type"] == "executed"}
    assert nodes == set(OUTPUTS) - executed


ODD: dict[str, list[Any]] = {
    "outputs": [None, [], "x", 5],
    "meta": [None, [], {"9": None}, {"9": "x"}, {"9": {}}],
    "status": [None, [], {}, {"messages": None}, {"messages": [None, "x", [], ["a"], {}, 5]}],
    "last": [None, [], [[], {}], [{}, {}], ["execution_success"], [None, None], "xx", [1, 2, 3]],
}


@pytest.mark.parametrize("changes", [{key: odd} for key, values in ODD.items() for odd in values])
def test_an_odd_entry_ends_the_story_all_the_same(changes: dict[str, Any]) -> None:
    told = ending(entry(**changes))
    assert told[-1] == json.loads(FINAL)
    assert sum(message["type"] in messages.OUTCOMES for message in told) <= 1


def test_an_entry_without_any_of_it_ends_the_story() -> None:
    assert ending(b"{}") == [json.loads(FINAL)]


def test_nan_in_an_output_is_told() -> None:
    whole = b'{"outputs": {"9": {"x": NaN}}}'
    assert '"output": {"x": NaN}' in missed.ending(JOB, whole, heard=[], executed=set())[0]


@pytest.mark.parametrize("name", ["succeeded", "failed", "interrupted", "text"])
def test_an_entry_of_a_real_server_tells_outputs_and_outcome(name: str) -> None:
    whole = recorded(name)
    job = job_of(whole)
    told = [json.loads(text) for text in missed.ending(job, raw(whole), heard=[], executed=set())]
    assert all(message["data"]["prompt_id"] == job.prompt_id for message in told)
    assert [message["data"]["node"] for message in told[:-2]] == list(whole["outputs"])
    assert told[-2]["type"] in messages.OUTCOMES
