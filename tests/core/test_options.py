"""What a request may ask of the proxy: in its body, by headers, and again after a restart."""

import json
from typing import Any

import pytest

from comfyproxy.core import prompts
from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs import Payload
from comfyproxy.core.options import Options, of_extra_data, of_headers, options_of

ALL = {"capabilities": ["video", "text"], "backend": "gpu-a", "priority": -3}


def body(asked: Any, **extra_data: Any) -> bytes:
    return json.dumps({"prompt": {}, "extra_data": {"comfyproxy": asked, **extra_data}}).encode()


def envelope(raw: bytes, headers: dict[str, str] | None = None) -> prompts.Envelope:
    found = prompts.parse(raw, of_headers(headers or {}))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        (None, Options()),
        (b"null", Options()),
        (b"{}", Options()),
        (b'{"capabilities": null, "backend": null, "priority": null}', Options()),
        (b'{"capabilities": ["a", " a ", "b"]}', Options(capabilities=frozenset("ab"))),
        (json.dumps(ALL).encode(), Options(capabilities=frozenset({"video", "text"}), backend="gpu-a", priority=-3)),
        (b'{"priority": 10}', Options(priority=10)),
    ],
)
def test_options_are_read_from_extra_data(raw: bytes | None, options: Options) -> None:
    assert of_extra_data({} if raw is None else {"comfyproxy": raw}) == options


@pytest.mark.parametrize(
    ("asked", "said", "details"),
    [
        ([], "extra_data.comfyproxy must be an object", "found []"),
        ({"capabilities": "a"}, "extra_data.comfyproxy.capabilities must be a list of texts", 'found "a"'),
        ({"capabilities": [1]}, "extra_data.comfyproxy.capabilities must be a list of texts", "found [1]"),
        ({"capabilities": [" "]}, "extra_data.comfyproxy.capabilities must be a list of texts", 'found [" "]'),
        ({"backend": 5}, "extra_data.comfyproxy.backend must be a backend's name", "found 5"),
        ({"priority": 11}, "extra_data.comfyproxy.priority must be a whole number from -10 to 10", "found 11"),
        ({"priority": True}, "extra_data.comfyproxy.priority must be a whole number from -10 to 10", "found true"),
        ({"priority": 1.5}, "extra_data.comfyproxy.priority must be a whole number from -10 to 10", "found 1.5"),
        ({"prority": 1}, 'extra_data.comfyproxy has no key "prority"', "did you mean priority?"),
        ({"x": 1}, 'extra_data.comfyproxy has no key "x"', "known are capabilities, backend, priority"),
        ("x" * 200, "extra_data.comfyproxy must be an object", f'found "{"x" * 99}...'),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_key(asked: Any, said: str, details: str) -> None:
    with pytest.raises(BadRequest) as caught:
        envelope(body(asked))
    assert (caught.value.kind, caught.value.message, caught.value.details) == ("invalid_option", said, details)


def test_what_is_nested_beyond_reading_is_refused_like_the_rest() -> None:
    for depth in (700, 5_000, 200_000):
        with pytest.raises(BadRequest):
            of_extra_data({"comfyproxy": b"[" * depth + b"]" * depth})


@pytest.mark.parametrize("text", ["", "high", "1.5", "11", "9" * 5_000])
def test_a_header_that_is_no_priority_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        of_headers({"X-Comfyproxy-Priority": text})
    assert caught.value.message == "X-Comfyproxy-Priority must be a whole number from -10 to 10"


def test_headers_come_before_the_body_each_for_itself() -> None:
    found = envelope(body(ALL), {"X-Comfyproxy-Capabilities": " audio,, speech ", "X-Comfyproxy-Priority": "7"})
    assert found.options == Options(capabilities=frozenset({"audio", "speech"}), backend="gpu-a", priority=7)
    assert envelope(body(ALL), {"X-Comfyproxy-Capabilities": ""}).options.capabilities == frozenset()


def test_a_wrong_body_is_refused_though_a_header_comes_before_it() -> None:
    with pytest.raises(BadRequest):
        envelope(body({"priority": "x"}), {"X-Comfyproxy-Priority": "7"})


def test_what_headers_ask_for_is_stored_and_does_not_tell_a_retry_from_another_prompt() -> None:
    bare = envelope(b'{"prompt": {}}')
    asked = envelope(b'{"prompt": {}}', {"X-Comfyproxy-Priority": "7", "X-Comfyproxy-Backend": "gpu-b"})
    assert asked.fingerprint == bare.fingerprint
    assert options_of(bare.payload) == Options()
    assert options_of(asked.payload) == asked.options == Options(backend="gpu-b", priority=7)


def test_what_the_client_wrote_stays_as_it_wrote_it() -> None:
    raw = b'{"prompt": {}, "extra_data": {"comfyproxy": {"priority":   1}, "x": 1}}'
    assert envelope(raw).payload.extra_data == b'{"comfyproxy":{"priority":   1},"x":1}'


def test_only_headers_can_write_what_headers_write() -> None:
    raw = b'{"prompt": {}, "extra_data": {"comfyproxy_asked": {"priority": 1}}}'
    assert envelope(raw).payload.extra_data == b"{}"
    assert envelope(raw).options == Options()


@pytest.mark.parametrize("extra_data", [b"{}", b"[]", b"?", b'{"comfyproxy": 5}', b'{"comfyproxy": {"later": 1}}'])
def test_stored_prompts_that_say_nothing_usable_ask_for_nothing(extra_data: bytes) -> None:
    assert options_of(Payload(graph=b"{}", extra_data=extra_data)) == Options()
