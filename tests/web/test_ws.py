"""GET /ws over real sockets: what a client that reads sees."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from ws_support import FEATURES, Stage, stage_of

from comfyproxy.core import frames
from comfyproxy.core.messages import encode

PREVIEW = frames.preview_with_metadata({"image_type": "image/jpeg", "prompt_id": "p"}, b"image")
PLAIN_PREVIEW = frames.preview(frames.ImageFormat.JPEG, b"image")
FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with stage_of() as stage:
        yield stage


async def answered(ws: aiohttp.ClientWebSocketResponse) -> Any:
    """Send flags and return the next message: by then the server has read all that was sent before."""
    await ws.send_json(FLAGS)
    return await ws.receive_json(timeout=5)


async def test_the_first_message_is_the_status_with_a_sid_that_is_minted(stage: Stage) -> None:
    async with stage.connect() as ws:
        text = await ws.receive_str(timeout=5)
        message = json.loads(text)
        sid = message["data"]["sid"]
        assert message == {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 3}}, "sid": sid}}
        assert text == json.dumps(message)
        assert len(sid) == 32
        assert int(sid, 16)
        stage.text(sid, "executing", {"node": "1"})
        assert (await ws.receive_json(timeout=5))["type"] == "executing"
    async with stage.connect(sid) as ws:
        assert (await ws.receive_json(timeout=5))["data"]["sid"] == sid


async def test_an_empty_client_id_is_no_client_id(stage: Stage) -> None:
    async with stage.connect("") as ws:
        assert len((await ws.receive_json(timeout=5))["data"]["sid"]) == 32


async def test_text_and_binary_arrive_in_the_order_of_delivery(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        for node in range(50):
            stage.text("c", "executing", node)
            stage.hub.deliver_binary("c", b"\0\0\0\x63" * (1 + node * 100))
        for node in range(50):
            assert await ws.receive_json(timeout=5) == {"type": "executing", "data": node}
            assert await ws.receive_bytes(timeout=5) == b"\0\0\0\x63" * (1 + node * 100)


async def test_flags_in_the_first_message_are_answered_and_change_the_previews(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        stage.hub.deliver_binary("c", PREVIEW)
        assert await ws.receive_bytes(timeout=5) == PLAIN_PREVIEW
        assert await answered(ws) == {"type": "feature_flags", "data": FEATURES}
        stage.hub.deliver_binary("c", PREVIEW)
        assert await ws.receive_bytes(timeout=5) == PREVIEW


@pytest.mark.parametrize("data", [None, [], {}, {"supports_preview_metadata": "yes"}])
async def test_flags_that_do_not_say_true_leave_previews_plain(stage: Stage, data: Any) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        await ws.send_json({"type": "feature_flags", "data": data})
        assert (await ws.receive_json(timeout=5))["type"] == "feature_flags"
        stage.hub.deliver_binary("c", PREVIEW)
        assert await ws.receive_bytes(timeout=5) == PLAIN_PREVIEW


async def test_what_is_no_message_is_ignored_and_the_flags_may_still_come(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        for nonsense in ("{", "[1]", "[" * 100_000, "null", ""):
            await ws.send_str(nonsense)
        await ws.send_bytes(b"\0\1")
        assert await answered(ws) == {"type": "feature_flags", "data": FEATURES}


async def test_flags_after_another_message_are_ignored(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        await ws.send_json({"type": "hello"})
        await ws.send_json(FLAGS)
        await ws.ping(b"all read")
        stage.text("c", "executing", 1)
        assert await ws.receive_json(timeout=5) == {"type": "executing", "data": 1}


async def test_a_ping_is_answered(stage: Stage) -> None:
    async with stage.connect("c", autoping=False) as ws:
        await ws.receive(timeout=5)
        await ws.ping(b"are you there")
        pong = await ws.receive(timeout=5)
        assert (pong.type, pong.data) == (WSMsgType.PONG, b"are you there")


async def test_a_message_over_four_megabytes_costs_the_connection(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
        with suppress(ConnectionError):  # the server need not read it to the end
            await ws.send_str("x" * (4 * 1024 * 1024 + 1))
        await stage.ended()
        assert stage.hub.connected == 0


async def test_two_sockets_of_one_client_both_get_everything_and_one_may_go(stage: Stage) -> None:
    async with stage.connect("c") as second:
        await second.receive(timeout=5)
        async with stage.connect("c") as first:
            await first.receive(timeout=5)
            stage.text("c", "executing", 1)
            assert await first.receive_json(timeout=5) == await second.receive_json(timeout=5)
        await stage.ended()
        stage.text("c", "executing", 2)
        assert await second.receive_json(timeout=5) == {"type": "executing", "data": 2}
        assert stage.hub.connected == 1


async def test_a_client_that_comes_back_gets_what_it_missed_after_the_status_and_before_the_new(stage: Stage) -> None:
    async with stage.connect("c") as ws:
        await ws.receive(timeout=5)
    await stage.ended()
    for event in ("executing", "executed", "executing"):
        stage.text("c", event, event)
    async with stage.connect("c") as ws:
        got = [await ws.receive_json(timeout=5) for _ in range(3)]
        stage.text("c", "execution_success")
        got.append(await ws.receive_json(timeout=5))
    assert [message["type"] for message in got] == ["status", "executed", "executing", "execution_success"]


async def test_a_client_whose_job_runs_is_told_the_node_without_a_prompt_id(stage: Stage) -> None:
    stage.running["c"] = "7"
    for _ in range(2):
        async with stage.connect("c") as ws:
            await ws.receive(timeout=5)
            assert await ws.receive_json(timeout=5) == {"type": "executing", "data": {"node": "7"}}


async def test_deflate_is_offered(stage: Stage) -> None:
    async with stage.connect("c", compress=15) as ws:
        assert ws.compress
        await ws.receive(timeout=5)
        stage.text("c", "executed", "x" * 100_000)
        assert (await ws.receive_json(timeout=5))["data"] == "x" * 100_000


async def test_at_a_stop_every_client_reads_the_rest_and_then_1001(stage: Stage) -> None:
    async with stage.connect("a") as one, stage.connect("b") as other:
        for ws in (one, other):
            await ws.receive(timeout=5)
        stage.text("a", "executed", 1)
        stage.hub.close_all()
        assert await one.receive_json(timeout=5) == {"type": "executed", "data": 1}
        for ws in (one, other):
            message = await ws.receive(timeout=5)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        async with stage.connect("late") as late:
            assert (await late.receive_json(timeout=5))["type"] == "status"
            assert (await late.receive(timeout=5)).data == 1001
        for _ in range(3):
            await stage.ended()
    assert stage.hub.connected == 0


async def test_a_broadcast_reaches_two_hundred_clients(stage: Stage) -> None:
    async with asyncio.TaskGroup() as tasks:
        ready = asyncio.Barrier(201)

        async def client(number: int) -> None:
            async with stage.connect(f"c{number}") as ws:
                await ws.receive(timeout=20)
                await ready.wait()
                assert await ws.receive_json(timeout=20) == {"type": "some.event", "data": 1}
                assert await ws.receive_bytes(timeout=20) == PLAIN_PREVIEW
                assert await ws.receive_json(timeout=20) == {"type": "executed", "data": number}

        for number in range(200):
            tasks.create_task(client(number))
        await ready.wait()
        stage.hub.broadcast_text(encode("some.event", 1))
        stage.hub.broadcast_binary(PREVIEW)
        for number in range(200):
            stage.text(f"c{number}", "executed", number)
    for _ in range(200):
        await stage.ended()
    assert stage.hub.connected == 0


async def test_a_request_that_is_no_websocket_is_a_400(stage: Stage) -> None:
    async with stage.session.get(stage.server.make_url("/ws")) as answer:
        assert answer.status == 400
    assert stage.hub.connected == 0
