"""What is told of a prompt is held back until its POST has been answered."""

import json

from service_support import FakeStreams

from comfyproxy.service.answering import Answering


def progress(value: int) -> str:
    return json.dumps({"type": "progress", "data": {"value": value}})


def told(streams: FakeStreams) -> list[object]:
    return [message["data"]["value"] if isinstance(message, dict) else message for message in streams.to("me")]


def test_what_is_held_comes_in_order_when_the_answer_is_out() -> None:
    streams = FakeStreams()
    answering = Answering(streams)
    answering.hold("p")
    answering.deliver_text("me", progress(1), event="progress", prompt_id="p")
    answering.deliver_binary("me", b"frame", prompt_id="p")
    answering.deliver_preview("me", b"preview", progress(2), prompt_id="p")
    assert told(streams) == []
    answering.release("p")
    assert told(streams)[:2] == [1, b"frame"]
    assert len(told(streams)) == 3
    answering.deliver_text("me", progress(3), event="progress", prompt_id="p")
    assert told(streams)[3:] == [3]


def test_other_prompts_and_what_is_for_everybody_are_not_held() -> None:
    streams = FakeStreams()
    answering = Answering(streams)
    answering.hold("p")
    answering.deliver_text("me", progress(1), event="progress", prompt_id="q")
    answering.deliver_text("me", progress(2), event="progress", prompt_id=None)
    answering.deliver_binary("me", b"frame")
    answering.broadcast_text(progress(3))
    answering.broadcast_binary(b"for all")
    assert told(streams) == [1, 2, b"frame"]
    assert len(streams.to("*")) == 2


def test_more_than_may_be_held_is_told_at_once() -> None:
    streams = FakeStreams()
    answering = Answering(streams, max_bytes=10)
    answering.hold("p")
    answering.hold("q")
    answering.deliver_binary("me", b"12345678", prompt_id="p")
    answering.deliver_binary("me", b"abc", prompt_id="q")
    assert told(streams) == [b"abc"]
    answering.deliver_binary("me", b"90x", prompt_id="p")
    assert told(streams) == [b"abc", b"12345678", b"90x"]
    answering.hold("r")
    answering.deliver_binary("me", b"1234567890", prompt_id="r")
    assert len(told(streams)) == 3


def test_a_release_without_a_hold_is_nothing() -> None:
    streams = FakeStreams()
    answering = Answering(streams)
    answering.release("p")
    answering.hold("p")
    answering.release("p")
    answering.release("p")
    assert told(streams) == []
