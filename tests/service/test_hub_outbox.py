"""The outbox: order, bounds, and what gives way."""

from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.service.outbox import TRY_AGAIN_LATER, ClientSession, Close, Outbox, TextEvent


def drain(outbox: Outbox) -> list[str | bytes]:
    sent: list[str | bytes] = []
    while (item := outbox.take()) is not None and not isinstance(item, Close):
        sent.append(item)
    return sent


def test_text_and_binary_leave_in_the_order_in_which_they_came() -> None:
    outbox = Outbox(client_buffer=100, preview_buffer=100)
    outbox.put_text("executing 1")
    outbox.put_binary(b"preview", is_preview=True)
    outbox.put_text("executing 2")
    assert drain(outbox) == ["executing 1", b"preview", "executing 2"]
    assert outbox.take() is None
    assert outbox.bytes_waiting == 0


def test_the_oldest_previews_give_way_and_the_newest_stays() -> None:
    dropped: list[None] = []
    outbox = Outbox(client_buffer=1000, preview_buffer=20, on_preview_dropped=lambda: dropped.append(None))
    outbox.put_text("before")
    for number in range(5):
        outbox.put_binary(b"preview %d" % number, is_preview=True)
        outbox.put_text(f"{number}")
    assert drain(outbox) == ["before", "0", "1", "2", "3", b"preview 4", "4"]
    assert len(dropped) == 4


def test_an_image_that_is_a_result_is_never_dropped() -> None:
    outbox = Outbox(client_buffer=1000, preview_buffer=1)
    outbox.put_binary(b"result 1", is_preview=False)
    outbox.put_binary(b"result 2", is_preview=False)
    assert drain(outbox) == [b"result 1", b"result 2"]


def test_one_message_larger_than_the_whole_buffer_still_goes_out_and_so_does_the_next() -> None:
    outbox = Outbox(client_buffer=10, preview_buffer=5)
    assert outbox.put_binary(b"x" * 1000, is_preview=False)
    assert outbox.put_text("executing")
    assert drain(outbox) == [b"x" * 1000, "executing"]


def test_all_previews_go_before_the_connection_does() -> None:
    outbox = Outbox(client_buffer=10, preview_buffer=10)
    outbox.put_text("first")
    outbox.put_binary(b"preview!", is_preview=True)
    assert outbox.put_text("second")
    assert drain(outbox) == ["first", "second"]


def test_too_much_text_closes_and_what_was_not_sent_can_be_had_once() -> None:
    outbox = Outbox(client_buffer=10, preview_buffer=10)
    events = [TextEvent(f"message {number}", "executed", "p") for number in range(3)]
    assert outbox.put_text(events[0].message, event=events[0])
    assert outbox.put_text(events[1].message, event=events[1])
    assert not outbox.put_text(events[2].message, event=events[2])
    close = outbox.take()
    assert isinstance(close, Close)
    assert close.code == TRY_AGAIN_LATER
    assert outbox.take() is close
    assert outbox.bytes_waiting == 0
    assert outbox.abandon(Close(1001)) == events
    assert outbox.abandon(Close(1001)) == []


def test_nothing_is_taken_once_closed_and_what_waits_is_sent_first() -> None:
    outbox = Outbox(client_buffer=10, preview_buffer=10)
    outbox.put_text("last")
    outbox.finish(Close(1001))
    outbox.finish(Close(1013))
    assert outbox.put_text("too late")
    assert [outbox.take(), outbox.take()] == ["last", Close(1001)]


def test_a_newer_status_takes_the_older_ones_away_and_is_not_seen_before_what_led_to_it() -> None:
    outbox = Outbox(client_buffer=100, preview_buffer=100)
    outbox.put_text("status 2", coalesce_key="status")
    outbox.put_text("executing null")
    outbox.put_text("status 1", coalesce_key="status")
    outbox.put_text("status 0", coalesce_key="status")
    assert drain(outbox) == ["executing null", "status 0"]
    outbox.put_text("status 5", coalesce_key="status")
    assert drain(outbox) == ["status 5"]


def test_characters_are_counted_as_the_bytes_they_become() -> None:
    outbox = Outbox(client_buffer=100, preview_buffer=100)
    outbox.put_text("äöü")
    assert outbox.bytes_waiting == 6


async def test_a_session_hands_out_what_was_put_in_before_and_while_it_waits() -> None:
    session = ClientSession("c", Outbox(client_buffer=100, preview_buffer=100))
    session.outbox.put_text("one")
    session.wake()
    assert await session.get() == "one"
    session.outbox.finish(Close(1001))
    session.wake()
    assert session.closing.is_set()
    assert await session.get() == Close(1001)
    assert "closed=Close(code=1001" in repr(session)


CLIENT_BUFFER, PREVIEW_BUFFER = 60, 25
puts = st.tuples(st.sampled_from(["text", "preview", "result"]), st.integers(0, 40))


@given(st.lists(st.one_of(puts, st.just(("take", 0))), max_size=120))
def test_whatever_comes_order_is_kept_bytes_are_bounded_and_only_previews_are_lost(
    steps: list[tuple[str, int]],
) -> None:
    outbox = Outbox(client_buffer=CLIENT_BUFFER, preview_buffer=PREVIEW_BUFFER)
    put: list[tuple[str, str | bytes]] = []
    sent: list[str | bytes] = []
    for serial, (what, size) in enumerate(steps):
        if what == "take":
            item = outbox.take()
            if item is not None:
                assert not isinstance(item, Close)
                sent.append(item)
            continue
        body = f"{serial:04}" + "x" * size
        payload: str | bytes = body if what == "text" else body.encode()
        put.append((what, payload))
        if isinstance(payload, str):
            fits = outbox.put_text(payload, event=TextEvent(payload, "executed", None))
        else:
            fits = outbox.put_binary(payload, is_preview=what == "preview")
        if not fits:
            # It closed, and rightly: what must not be lost did not fit.
            must = [p for kind, p in put if kind != "preview" and p not in sent]
            assert sum(map(len, must[1:])) > CLIENT_BUFFER
            lost = [event.message for event in outbox.abandon(Close(1001))]
            assert lost == [p for p in must if isinstance(p, str)]
            return
        assert outbox.bytes_waiting <= CLIENT_BUFFER + 44
        waiting_must = [p for kind, p in put if kind != "preview" and p not in sent]
        assert outbox.bytes_waiting <= max(PREVIEW_BUFFER, sum(map(len, waiting_must)) + 44)
    sent += drain(outbox)
    must = [p for kind, p in put if kind != "preview"]
    assert [p for p in sent if p in must] == must
    order = [p for _, p in put]
    assert sent == [p for p in order if p in sent]
