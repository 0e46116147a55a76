"""The body of POST /prompt, taken apart and put together."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import prompts
from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs import Payload
from comfyproxy.core.prompts import Envelope

GRAPH = b'{"1": {"class_type": "X",  "inputs": {}}}'


def parse(body: bytes) -> Envelope:
    envelope = prompts.parse(body)
    assert envelope is not None
    return envelope


def parsed(**members: Any) -> Envelope:
    return parse(json.dumps({"prompt": {}, **members}).encode())


def built(envelope: Envelope, **options: Any) -> Any:
    body = prompts.build(envelope.payload, prompt_id="p", client_id="link", **{"secrets": envelope.secrets, **options})
    sent = json.loads(body)
    assert sent["extra_data"].pop(prompts.MARK) == "p"  # so that it can be found
    return sent


def test_the_graph_stays_the_bytes_it_came_as() -> None:
    assert parse(b'{"prompt": ' + GRAPH + b"}").payload.graph == GRAPH


def test_all_that_a_request_may_say_is_found() -> None:
    envelope = parsed(
        client_id="c",
        prompt_id="p",
        number=5,
        front=True,
        partial_execution_targets=["1"],
        extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}, "more": 1},
    )
    assert (envelope.client_id, envelope.prompt_id, envelope.workflow_id) == ("c", "p", "w")
    assert (envelope.number, envelope.front) == (5.0, True)
    assert prompts.execution_targets(envelope.payload) == ("1",)
    assert json.loads(envelope.payload.extra_data) == {"extra_pnginfo": {"workflow": {"id": "w"}}, "more": 1}


def test_a_bare_prompt_has_none_of_it() -> None:
    envelope = parsed()
    assert (envelope.client_id, envelope.prompt_id, envelope.workflow_id) == (None, None, None)
    assert (envelope.number, envelope.front, envelope.secrets) == (None, False, {})
    assert prompts.execution_targets(envelope.payload) is None
    assert (envelope.payload.extra_data, envelope.payload.rest) == (b"{}", b"{}")


@pytest.mark.parametrize("body", [b"[]", b"{}", b"5", b"null", b'"prompt"', b'{"Prompt": {}}', b"[NaN]", b'["prompt"]'])
def test_without_a_prompt_a_backend_shall_refuse_in_its_own_words(body: bytes) -> None:
    assert prompts.parse(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'prompt': 1}",
        b'{"prompt": }',
        b"prompt=1",
        b"\xff\xfe",
        b'{"\xff": 1}',
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        prompts.parse(body)
    assert caught.value.kind == "invalid_json"


@pytest.mark.parametrize("graph", [b"null", b"5", b"[]", b'"x"', b'{"1": null}', b'{"1": NaN}', b'{"1": "\xff"}'])
def test_a_graph_of_any_type_is_the_backends_to_judge(graph: bytes) -> None:
    assert parse(b'{"prompt": ' + graph + b"}").payload.graph == graph


@pytest.mark.parametrize("extra_data", [b"null", b"[]", b"5", b'"x"', b"true", b'{"\xff": 1}'])
def test_extra_data_must_be_an_object(extra_data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        prompts.parse(b'{"prompt": {}, "extra_data": ' + extra_data + b"}")
    assert caught.value.kind in ("invalid_extra_data", "invalid_json")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("number", "expected"),
    [(b"3", 3.0), (b"-2.5", -2.5), (b'"7"', 7.0), (b"true", 1.0), (b"Infinity", math.inf), (b"1e999", math.inf)],
)
def test_a_number_is_whatever_python_makes_a_float_of(number: bytes, expected: float) -> None:
    assert parse(b'{"prompt": {}, "number": ' + number + b"}").number == expected


@pytest.mark.parametrize("number", [b"null", b"[]", b"{}", b'"x"', b'""', b"1" * 400, b"1" * 5000, b'"\xff"'])
def test_what_is_no_number_is_refused(number: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        prompts.parse(b'{"prompt": {}, "number": ' + number + b"}")
    assert caught.value.kind in ("invalid_number", "invalid_json")
    assert len(caught.value.details) < 300


@pytest.mark.parametrize(
    ("front", "expected"), [(True, True), (1, True), ("no", True), ([0], True), (0, False), ("", False), (None, False)]
)
def test_front_is_taken_for_true_as_python_takes_it(front: object, expected: bool) -> None:
    assert parsed(front=front).front is expected


@pytest.mark.parametrize(("given_id", "expected"), [("p", "p"), (5, "5"), (None, None), (True, "True")])
def test_a_prompt_id_of_another_type_becomes_text(given_id: object, expected: str | None) -> None:
    assert parsed(prompt_id=given_id).prompt_id == expected


@pytest.mark.parametrize("key", ["client_id", "prompt_id", "front"])
def test_text_that_is_not_utf8_is_refused_where_it_must_be_read(key: str) -> None:
    with pytest.raises(BadRequest):
        prompts.parse(b'{"prompt": {}, "' + key.encode() + b'": "\xff"}')


@pytest.mark.parametrize("given_id", ["", " ", " x", "a\nb", "\ud83d", "x" * 201])
def test_a_prompt_id_that_nobody_could_ask_for_is_refused(given_id: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(prompt_id=given_id)
    assert caught.value.kind == "invalid_prompt_id"


@pytest.mark.parametrize(("depth", "is_fine"), [(150, True), (198, True), (202, False), (5000, False)])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}"), ('[["[{", ', "]]")])
def test_a_graph_is_refused_that_is_too_deep_to_be_copied(depth: int, is_fine: bool, opens: str, closes: str) -> None:
    levels = depth // len(closes)
    body = b'{"prompt": ' + (opens * levels + "1" + closes * levels).encode() + b"}"
    if is_fine:
        prompts.parse(body)
    else:
        with pytest.raises(BadRequest):
            prompts.parse(body)


def test_brackets_in_texts_are_no_depth() -> None:
    graph = {str(number): "[" * 500 + '\\" {' for number in range(50)}
    assert not prompts.is_deeper(json.dumps(graph).encode(), 2)
    assert prompts.is_deeper(b'[[["x"]]]', 2)


def test_a_lone_surrogate_is_text_like_any_other() -> None:
    envelope = parse(b'{"prompt": {"1": "\\ud800"}, "client_id": "\\ud83d"}')
    assert envelope.client_id == "\ud83d"
    assert envelope.payload.graph == b'{"1": "\\ud800"}'
    assert envelope.fingerprint


@pytest.mark.parametrize("where", ["prompt", "extra_data", "rest"])
def test_nan_and_infinity_are_kept(where: str) -> None:
    odd = {"a": math.nan, "b": [math.inf, -math.inf], "c": "\ud800"}
    members: dict[str, Any] = {"prompt": {}, "client_id": "c"}
    members |= {"rest": odd} if where == "rest" else {where: odd}
    sent = built(parse(json.dumps(members).encode()))
    assert repr(sent[where]) == repr(odd)


# The client's id


def test_the_client_is_named_outside_or_inside_of_extra_data() -> None:
    assert parsed(client_id="a", extra_data={"client_id": "b"}).client_id == "a"
    assert parsed(extra_data={"client_id": "b"}).client_id == "b"
    assert parsed(client_id=5).client_id == "5"
    assert parsed(client_id=None, extra_data={"client_id": "b"}).client_id is None


def test_extra_data_keeps_no_client_id() -> None:
    assert json.loads(parsed(extra_data={"client_id": "b", "x": 1}).payload.extra_data) == {"x": 1}


# Secrets


def test_secrets_are_taken_out_and_go_to_the_backend_only() -> None:
    secrets = {"auth_token_comfy_org": "tok", "api_key_comfy_org": "key"}
    envelope = parsed(extra_data={**secrets, "x": 1})
    assert envelope.secrets == {key: json.dumps(value).encode() for key, value in secrets.items()}
    for part in (envelope.payload.graph, envelope.payload.extra_data, envelope.payload.rest):
        assert b"comfy_org" not in part
    assert built(envelope)["extra_data"] == {**secrets, "x": 1}
    assert built(envelope, secrets={})["extra_data"] == {"x": 1}


# Fingerprints


def test_a_retry_has_the_same_fingerprint_whatever_the_space_between_the_keys() -> None:
    tight = b'{"prompt":' + GRAPH + b',"client_id":"c","extra_data":{"a":1},"front":true}'
    loose = b'{ "prompt" : ' + GRAPH + b' , "client_id" :\n"c", "extra_data": { "a" : 1 }, "front": true }\n'
    moved = b'{"front":true,"extra_data":{"a":1},"client_id":"c","prompt":' + GRAPH + b"}"
    assert parse(tight).fingerprint == parse(loose).fingerprint == parse(moved).fingerprint


def test_a_retry_has_the_same_fingerprint_whatever_its_secrets_and_its_id() -> None:
    first = parsed(prompt_id="p", extra_data={"api_key_comfy_org": "old"})
    assert first.fingerprint == parsed(prompt_id="p", extra_data={"api_key_comfy_org": "new"}).fingerprint
    assert first.fingerprint == parsed(prompt_id="q").fingerprint


def test_another_prompt_has_another_fingerprint() -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"prompt": {"1": 1}},
        {"client_id": "c"},
        {"client_id": "d"},
        {"extra_data": {"a": 1}},
        {"extra_data": {"a": 2}},
        {"front": True},
        {"number": 1},
        {"number": 2},
        {"partial_execution_targets": ["1"]},
        {"something": "new"},
    ]
    assert len({parsed(**members).fingerprint for members in asked}) == len(asked)


def test_what_moves_from_one_part_to_another_changes_the_fingerprint() -> None:
    assert (
        parse(b'{"prompt":1,"extra_data":{}}').fingerprint != parse(b'{"prompt":1,"extra_data":{},"{}":{}}').fingerprint
    )
    assert parsed(a=1).fingerprint != parsed(extra_data={"a": 1}).fingerprint


# Putting it together


def test_what_was_taken_apart_is_put_together_again() -> None:
    body = {
        "prompt": {"1": {"class_type": "X"}},
        "extra_data": {"a": [1, {"b": None}], "api_key_comfy_org": "k"},
        "number": 3,
        "front": True,
        "partial_execution_targets": ["1"],
        "unknown": {"x": "\u00e9\U0001f600"},
    }
    envelope = parse(json.dumps({**body, "client_id": "c", "prompt_id": "own"}).encode())
    assert built(envelope) == {**body, "prompt_id": "p", "client_id": "link"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
odd_keys = st.text(max_size=8).filter(
    lambda key: (
        key
        not in ("prompt", "prompt_id", "client_id", "extra_data", "number", "front", prompts.MARK, *prompts.SECRET_KEYS)
    )
)


@given(graph=values, extra=st.dictionaries(odd_keys, values, max_size=3), rest=st.dictionaries(odd_keys, values))
def test_whatever_is_asked_reaches_the_backend_unchanged(
    graph: Any, extra: dict[str, Any], rest: dict[str, Any]
) -> None:
    body = {"prompt": graph, "extra_data": extra, **rest}
    for ensure_ascii in (True, False):
        raw = json.dumps(body, ensure_ascii=ensure_ascii).encode(errors="surrogatepass")
        assert built(parse(raw)) == {**body, "prompt_id": "p", "client_id": "link"}


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: json.dumps(text).encode()))
def test_whatever_comes_is_read_or_refused(junk: bytes) -> None:
    bodies = [junk, *(b'{"prompt": {}, "' + key + b'": ' + junk + b"}" for key in (b"x", b"client_id", b"number"))]
    for body in bodies:
        try:
            envelope = prompts.parse(body)
        except BadRequest:
            continue
        if envelope is not None:
            prompts.execution_targets(envelope.payload)


def test_a_mark_of_the_clients_does_not_mislead() -> None:
    assert built(parsed(extra_data={prompts.MARK: "another"}))["extra_data"] == {}


def test_a_number_of_ours_takes_the_place_of_the_clients_number_and_front() -> None:
    sent = built(parsed(number=1, front=True, other=1), number=prompts.BEHIND_ALL)
    assert sent["number"] == prompts.BEHIND_ALL
    assert "front" not in sent
    assert sent["other"] == 1
    assert float(prompts.BEHIND_ALL) + 1 != float(prompts.BEHIND_ALL)


def test_a_rewritten_graph_takes_the_place_of_the_clients() -> None:
    assert built(parsed(), graph=b'{"2": {}}')["prompt"] == {"2": {}}


# The place in the queue


def test_without_a_number_prompts_are_counted() -> None:
    assert prompts.queue_number(parsed(), 7) == 7.0


def test_front_puts_the_last_before_all_others() -> None:
    assert prompts.queue_number(parsed(front=True), 7) == -7.0
    assert prompts.queue_number(parsed(front=False), 7) == 7.0


def test_a_number_is_kept_and_front_means_nothing_then() -> None:
    # ComfyUI 0.25.0, `server.py` (`post_prompt`): it looks at `front` only where it counts itself.
    for front in (True, False):
        assert prompts.queue_number(parsed(number=3, front=front), 7) == 3.0
        assert prompts.queue_number(parsed(number=-3, front=front), 7) == -3.0
        assert prompts.queue_number(parsed(number=0, front=front), 7) == 0.0


# Partial execution


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (b'["1", "2"]', ("1", "2")),
        (b"[]", ()),
        (b'["1", 2, null]', ("1",)),
        (b"null", None),
        (b'"1"', None),
        (b"{}", None),
        (b'"\xff"', None),
    ],
)
def test_targets_are_a_list_or_all(targets: bytes, expected: tuple[str, ...] | None) -> None:
    rest = b'{"partial_execution_targets": ' + targets + b"}"
    assert prompts.execution_targets(Payload(graph=b"{}", rest=rest)) == expected


def test_nesting_to_the_limit_is_no_target_and_no_failure() -> None:
    for depth in range(850, 1000):
        rest = b'{"partial_execution_targets": ' + b"[" * depth + b"]" * depth + b"}"
        assert not prompts.execution_targets(Payload(graph=b"{}", rest=rest))
