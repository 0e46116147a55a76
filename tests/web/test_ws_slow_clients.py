"""GET /ws with clients that do not read, or are dead, or merely slow."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from ws_support import Stage, stage_of

from comfyproxy.core import frames

PREVIEW = frames.preview(frames.ImageFormat.JPEG, b"x" * 10_000)
RESULT = frames.preview(frames.ImageFormat.PNG, b"x" * 10_000)


@asynccontextmanager
async def raw_client(stage: Stage, client_id: str) -> AsyncIterator[socket.socket]:
    """Open a websocket that reads its handshake and from then on only what the test reads; it answers no ping."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, (stage.server.host, stage.server.port))
        await loop.sock_sendall(
            sock,
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode(),
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await loop.sock_recv(sock, 1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        yield sock


async def rest(sock: socket.socket) -> bytes:
    """Read until the connection is gone."""
    got = b""
    async with asyncio.timeout(10):
        try:
            while chunk := await asyncio.get_running_loop().sock_recv(sock, 65536):
                got += chunk
        except ConnectionResetError:
            pass
    return got


async def fill(stage: Stage, client_id: str) -> None:
    """Send to a client that does not read until previews are dropped."""
    async with asyncio.timeout(10):
        while not stage.counts.previews:
            stage.hub.deliver_binary(client_id, PREVIEW)
            await asyncio.sleep(0)


async def test_a_client_that_does_not_read_loses_previews_then_its_connection_and_delays_nobody() -> None:
    async with (
        stage_of(client_buffer=400_000, preview_buffer=100_000) as stage,
        raw_client(stage, "slow") as slow,
        stage.connect("quick") as quick,
    ):
        await quick.receive(timeout=5)
        await fill(stage, "slow")
        assert stage.counts.closed == 0
        for number in range(100):
            stage.hub.deliver_binary("slow", RESULT)
            stage.text("quick", "executing", number)
            assert await quick.receive_json(timeout=5) == {"type": "executing", "data": number}
        assert stage.counts.closed == 1
        assert stage.hub.clients() == {"quick": 1}
        await stage.ended()
        assert len(await rest(slow)) < 1_000_000
        stage.text("quick", "executing", "still here")
        assert (await quick.receive_json(timeout=5))["data"] == "still here"


async def test_a_slow_client_that_reads_on_is_told_to_come_again_later() -> None:
    async with stage_of(client_buffer=400_000, preview_buffer=100_000) as stage, raw_client(stage, "slow") as slow:
        await fill(stage, "slow")
        for _ in range(100):
            stage.hub.deliver_binary("slow", RESULT)
        assert stage.counts.closed == 1
        got = await rest(slow)
        assert (1013).to_bytes(2, "big") + b"too slow: messages are not being read" == got[-39:]
        await stage.ended()


async def test_a_writer_stuck_on_a_client_goes_with_the_client() -> None:
    async with stage_of() as stage:
        async with raw_client(stage, "slow"):
            await fill(stage, "slow")
        await stage.ended()
        assert stage.hub.connected == 0


async def test_a_writer_stuck_on_a_client_does_not_hold_up_a_stop() -> None:
    async with stage_of() as stage, raw_client(stage, "slow") as slow:
        await fill(stage, "slow")
        stage.hub.close_all()
        await stage.ended()
        await rest(slow)


async def test_a_client_that_says_goodbye_and_reads_nothing_is_cut_off() -> None:
    async with stage_of(heartbeat_s=0.05) as stage, raw_client(stage, "slow") as slow:
        await fill(stage, "slow")
        await asyncio.get_running_loop().sock_sendall(slow, b"\x88\x82\0\0\0\0\x03\xe8")
        await stage.ended()
        await rest(slow)


async def test_a_cancelled_handler_cuts_its_client_off() -> None:
    async with stage_of() as stage, raw_client(stage, "slow") as slow:
        await fill(stage, "slow")
        stage.handlers[0].cancel()
        await stage.ended()
        with pytest.raises(asyncio.CancelledError):
            await stage.handlers[0]
        await rest(slow)


async def test_a_client_that_answers_no_ping_is_taken_for_dead() -> None:
    async with stage_of(heartbeat_s=0.05) as stage, raw_client(stage, "dead") as dead:
        await stage.ended()
        assert (await rest(dead)).endswith(b"\x89\0\x89\0")


async def test_a_client_that_answers_pings_stays_though_it_says_nothing() -> None:
    async with stage_of(heartbeat_s=0.05) as stage, stage.connect("c", autoping=False) as ws:
        await ws.receive(timeout=5)
        for _ in range(8):  # more than the silence that is allowed
            ping = await ws.receive(timeout=5)
            assert ping.type is aiohttp.WSMsgType.PING
            await ws.pong(ping.data)
        assert stage.hub.connected == 1


async def test_a_slow_reader_that_is_too_busy_reading_to_answer_a_ping_gets_it_all() -> None:
    image = b"\0\0\0\x63" + b"x" * 500_000
    loop = asyncio.get_running_loop()
    async with stage_of(heartbeat_s=0.1) as stage, raw_client(stage, "slow") as slow:
        stage.hub.deliver_binary("slow", image)
        started_s, count = loop.time(), 0
        while chunk := await loop.sock_recv(slow, 16_384):
            count += len(chunk)
            if count > len(image):
                break
            await asyncio.sleep(0.006)
        assert count > len(image)
        assert loop.time() - started_s > 0.5  # longer than a silent client would have had
    assert stage.counts.closed == 0
