"""The hub: which sockets get what, without any socket."""

import itertools
import json
from dataclasses import dataclass, field

import pytest

from comfyproxy.core import frames
from comfyproxy.core.messages import encode
from comfyproxy.service.hub import ClientHub
from comfyproxy.service.mailbox import Mailboxes
from comfyproxy.service.outbox import TRY_AGAIN_LATER, ClientSession, Close


@dataclass
class Counts:
    previews: int = 0
    closed: int = 0

    def preview_dropped(self) -> None:
        self.previews += 1

    def slow_client_closed(self) -> None:
        self.closed += 1


@dataclass
class Stage:
    """A hub with small buffers and what surrounds it."""

    counts: Counts = field(default_factory=Counts)
    mailbox: Mailboxes = field(default_factory=lambda: Mailboxes(clock=lambda: 0.0))
    hub: ClientHub = field(init=False)

    def __post_init__(self) -> None:
        sids = (f"{number:032x}" for number in itertools.count(1))
        self.hub = ClientHub(
            client_buffer=400,
            preview_buffer=200,
            mailbox=self.mailbox,
            mint_sid=lambda: next(sids),
            observer=self.counts,
        )

    def text(self, client: str | None, event: str, what: object = None, *, prompt: str | None = "p") -> None:
        self.hub.deliver_text(client, encode(event, what), event=event, prompt_id=prompt)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def received(session: ClientSession) -> list[str | bytes | Close]:
    """Return what the session would send by now; text as event and data."""
    items: list[str | bytes | Close] = []
    while (item := session.outbox.take()) is not None:
        if isinstance(item, str):
            message = json.loads(item)
            item = f"{message['type']} {json.dumps(message['data'])}"
        items.append(item)
        if isinstance(item, Close):
            break
    return items


async def test_a_client_without_an_id_is_given_one(stage: Stage) -> None:
    assert stage.hub.open(None).client_id == f"{1:032x}"
    assert stage.hub.open("").client_id == f"{2:032x}"
    assert stage.hub.connected == 2


async def test_events_go_to_their_client_and_to_no_other(stage: Stage) -> None:
    one, other = stage.hub.open("one"), stage.hub.open("other")
    stage.text("one", "executing", 1)
    stage.hub.deliver_binary("one", b"\0\0\0\x63data")
    stage.text("other", "executing", 2)
    assert received(one) == ["executing 1", b"\0\0\0\x63data"]
    assert received(other) == ["executing 2"]


async def test_two_sockets_of_one_client_get_everything_and_one_may_go(stage: Stage) -> None:
    first, second = stage.hub.open("c"), stage.hub.open("c")
    assert stage.hub.clients() == {"c": 2}
    stage.text("c", "executing", 1)
    assert received(second) == ["executing 1"]
    stage.hub.close(first)
    stage.hub.close(first)
    stage.text("c", "executing", 2)
    assert received(second) == ["executing 2"]
    assert stage.hub.clients() == {"c": 1}


async def test_messages_of_prompts_without_a_client_are_dropped(stage: Stage) -> None:
    session = stage.hub.open("c")
    stage.text(None, "executed")
    stage.text("", "executed")
    stage.hub.deliver_binary(None, b"\0\0\0\1")
    stage.hub.deliver_binary("nobody", b"\0\0\0\1")
    assert received(session) == []
    assert len(stage.mailbox) == 0


async def test_a_client_that_was_away_finds_what_it_missed_before_what_is_new(stage: Stage) -> None:
    stage.hub.close(stage.hub.open("c"))
    stage.text("c", "executing", 1)
    stage.text("c", "executed", 1)
    stage.text("c", "executing", 2)
    session = stage.hub.open("c", running_node=lambda _: "2")
    stage.text("c", "executed", 2)
    assert received(session) == ["executed 1", "executing 2", "executed 2"]


async def test_what_a_socket_had_not_sent_when_it_went_is_not_lost(stage: Stage) -> None:
    session = stage.hub.open("c")
    stage.text("c", "executed", 1)
    stage.text("c", "logs", "never kept")
    stage.hub.send(session, encode("feature_flags", {}))
    stage.hub.broadcast_text(encode("status", 3), coalesce_key="status")
    stage.hub.close(session)
    stage.text("c", "executed", 2)
    assert received(stage.hub.open("c")) == ["executed 1", "executed 2"]


async def test_what_one_socket_had_not_sent_is_not_kept_while_another_has_it(stage: Stage) -> None:
    first, second = stage.hub.open("c"), stage.hub.open("c")
    stage.text("c", "executed", 1)
    received(second)
    stage.hub.close(first)
    stage.hub.close(second)
    assert len(stage.mailbox) == 0


@pytest.mark.parametrize("missed", [[], ["executed"]])
async def test_the_running_node_is_told_when_no_missed_event_tells_it(stage: Stage, missed: list[str]) -> None:
    for event in missed:
        stage.text("c", event, 1)
    session = stage.hub.open("c", running_node={"c": "7"}.get)
    assert received(session) == [f"{event} 1" for event in missed] + ['executing {"node": "7"}']
    second = stage.hub.open("c", running_node={"c": "7"}.get)
    assert received(second) == ['executing {"node": "7"}']


async def test_a_mailbox_larger_than_the_buffer_does_not_close_the_socket_that_came_for_it(stage: Stage) -> None:
    for number in range(20):
        stage.text("c", "executed", f"{number:020}")
    session = stage.hub.open("c")
    stage.text("c", "executed", "live")
    got = received(session)
    assert got[-1] == 'executed "live"'
    assert got[:-1] == [f'executed "{number:020}"' for number in range(20 - len(got) + 1, 20)]
    assert stage.counts.closed == 0


async def test_previews_fit_what_each_socket_can_read(stage: Stage) -> None:
    old, new = stage.hub.open("c"), stage.hub.open("c")
    new.flags = {"supports_preview_metadata": True}
    frame = frames.preview_with_metadata({"image_type": "image/png"}, b"image")
    stage.hub.deliver_binary("c", frame)
    stage.hub.broadcast_binary(frame)
    assert received(new) == [frame, frame]
    assert received(old) == [frames.preview(frames.ImageFormat.PNG, b"image")] * 2


async def test_a_preview_is_converted_once_for_all_sockets(stage: Stage) -> None:
    sessions = [stage.hub.open("c") for _ in range(2)]
    stage.hub.deliver_binary("c", frames.preview_with_metadata({"image_type": "image/jpeg"}, b"image"))
    one, other = [received(session)[0] for session in sessions]
    assert one is other


@pytest.mark.parametrize("frame", [b"", b"\0\0", b"\0\0\0\4broken", frames.text("1", "hello")])
async def test_frames_that_are_no_previews_pass_as_they_are(stage: Stage, frame: bytes) -> None:
    session = stage.hub.open("c")
    stage.hub.deliver_binary("c", frame)
    assert received(session) == [frame]


async def test_a_socket_that_does_not_read_is_closed_and_its_client_gets_the_rest_later(stage: Stage) -> None:
    slow, quick = stage.hub.open("slow"), stage.hub.open("quick")
    preview = frames.preview(frames.ImageFormat.JPEG, b"x" * 92)
    for _ in range(4):
        stage.hub.deliver_binary("slow", preview)
    assert stage.counts == Counts(previews=2, closed=0)
    for number in range(10):
        stage.text("slow", "executed", f"{number:050}")
    stage.text("quick", "executed", 1)
    assert stage.counts == Counts(previews=4, closed=1)
    assert slow.closing.is_set()
    close = await slow.get()
    assert isinstance(close, Close)
    assert close.code == TRY_AGAIN_LATER
    assert stage.hub.clients() == {"quick": 1}
    assert received(quick) == ["executed 1"]
    kept = [json.loads(event.message)["data"] for event in stage.mailbox.take("slow")]
    assert kept == [f"{number:050}" for number in range(10)]
    stage.hub.close(slow)


async def test_statuses_do_not_pile_up(stage: Stage) -> None:
    session = stage.hub.open("c")
    for number in range(10_000):
        stage.hub.broadcast_text(encode("status", number), coalesce_key="status")
    assert received(session) == ["status 9999"]


async def test_at_a_stop_every_socket_sends_the_rest_and_closes_and_new_ones_close_at_once(stage: Stage) -> None:
    session = stage.hub.open("c")
    stage.text("c", "executed", 1)
    stage.hub.close_all()
    stage.text("c", "executed", 2)
    first, close = received(session)
    assert first == "executed 1"
    assert isinstance(close, Close)
    assert close.code == 1001
    late = stage.hub.open("d")
    assert received(late) == [close]
    assert late.closing.is_set()


async def test_a_broadcast_that_closes_a_slow_socket_reaches_all_the_others(stage: Stage) -> None:
    sessions = [stage.hub.open(f"c{number}") for number in range(5)]
    for _ in range(3):
        stage.hub.send(sessions[2], encode("x", "x" * 150))
    stage.hub.broadcast_text(encode("some.event", "x" * 150))
    assert stage.hub.connected == 4
    assert all(len(received(session)) == 1 for session in sessions if session is not sessions[2])
