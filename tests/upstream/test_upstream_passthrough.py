"""Requests that are passed on: byte for byte, as streams, and without a trace once they are over."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict
from upstream_support import (
    LOAD,
    Cut,
    RawServer,
    answering,
    client_of,
    idle_connections,
    ok,
    raw_server,
    session_of,
    until_whole,
)

from comfyproxy.core.errors import ConnectionRefused, DeliveryUnknown
from comfyproxy.simulator import SimulatedBackend
from comfyproxy.upstream import BackendClient


class Body:
    """A client's body, chunk by chunk, that tells what became of it."""

    def __init__(self, *chunks: bytes, endless: bool = False, stuck: bool = False) -> None:
        self._chunks, self._endless, self._stuck = chunks, endless, stuck
        self.begun = asyncio.Event()
        self.is_closed = False

    async def stream(self) -> AsyncIterator[bytes]:
        self.begun.set()
        try:
            for chunk in self._chunks:
                yield chunk
            if self._stuck:
                await asyncio.Event().wait()
            while self._endless:
                yield b"x" * 65536
        finally:
            self.is_closed = True


async def passed(
    client: BackendClient, method: str, path_qs: str, headers: Any = None, body: bytes | None = None
) -> tuple[aiohttp.ClientResponse, bytes]:
    data = Body(body).stream() if body is not None else None
    async with client.request(method, path_qs, headers=headers or {}, data=data) as answer:
        return answer, await answer.content.read()


def head_of(server: RawServer) -> list[str]:
    return server.received[-1].partition(b"\r\n\r\n")[0].decode().split("\r\n")


@pytest.mark.parametrize(
    "path_qs",
    [
        "/userdata/workflows%2Fa.json",
        "/a/../b/./c//d",
        "//elsewhere/x",
        "/x?a=b+c%20d&&e=%2B&=&f",
        "/%e4%F6~!$'()*,;:@[]|",
        "/view?filename=%F0%9F%99%82.png&subfolder=a%2Fb%5Cc",
    ],
)
async def test_path_and_query_arrive_byte_for_byte(path_qs: str) -> None:
    async with raw_server(ok()) as server, client_of(server.url) as client:
        await passed(client, "GET", path_qs)
        assert head_of(server)[0] == f"GET {path_qs} HTTP/1.1"


@pytest.mark.parametrize(
    ("path_qs", "sent"),
    [
        ("*", "/*"),
        ("@elsewhere/x", "/@elsewhere/x"),
        ("/ä b#c\udcff", "/%C3%A4%20b%23c%FF"),
        ("/x\r\nHost: y", "/x%0D%0AHost:%20y"),
    ],
)
async def test_what_cannot_stand_in_a_request_line_is_encoded(path_qs: str, sent: str) -> None:
    async with raw_server(ok()) as server, client_of(server.url) as client:
        await passed(client, "GET", path_qs)
        assert head_of(server)[0] == f"GET {sent} HTTP/1.1"


async def test_nothing_is_added_to_a_request() -> None:
    async with raw_server(ok()) as server, client_of(server.url) as client:
        await passed(client, "GET", "/")
        assert head_of(server) == ["GET / HTTP/1.1", f"Host: {server.url.removeprefix('http://')}"]


async def test_headers_of_the_clients_connection_stay_behind_and_all_others_go_on() -> None:
    headers = CIMultiDict(
        [
            ("Host", "proxy"),
            ("Origin", "http://elsewhere"),
            ("Sec-Fetch-Site", "cross-site"),
            ("sec-fetch-mode", "cors"),
            ("Connection", "keep-alive, X-Mine"),
            ("X-Mine", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Expect", "100-continue"),
            ("Content-Length", "0"),
            ("X-Broken", "caf\udce9"),
            ("Referer", "http://proxy/"),
            ("Cookie", "a=1"),
            ("cookie", "b=2"),
            ("X-Two", "1"),
            ("x-two", "2"),
            ("X-Name", "ä"),
            ("Accept-Encoding", "gzip, br"),
            ("User-Agent", "script"),
            ("Range", "bytes=0-9"),
            ("comfy-user", "default"),
        ]
    )
    async with raw_server(ok()) as server, client_of(server.url) as client:
        await passed(client, "GET", "/", headers)
        assert head_of(server)[2:] == [
            "Referer: http://proxy/",
            "Cookie: a=1",
            "Cookie: b=2",
            "X-Two: 1",
            "X-Two: 2",
            "X-Name: ä",
            "Accept-Encoding: gzip, br",
            "User-Agent: script",
            "Range: bytes=0-9",
            "comfy-user: default",
        ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
async def test_a_body_keeps_its_framing(method: str) -> None:
    async with raw_server(ok(), ok(), ok()) as server, client_of(server.url) as client:
        await passed(client, method, "/", {"Content-Length": "4"}, b"body")
        head, _, body = server.received[-1].partition(b"\r\n\r\n")
        assert b"Content-Length: 4" in head
        assert b"Transfer-Encoding" not in head
        assert b"Content-Type" not in head
        assert body == b"body"
        for headers in ({}, {"Content-Length": "4", "Transfer-Encoding": "chunked"}):
            await passed(client, method, "/", headers, b"body")
            head, _, body = server.received[-1].partition(b"\r\n\r\n")
            assert b"Content-Length" not in head
            assert b"Transfer-Encoding: chunked" in head
            assert body == b"4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(("method", "length"), [("GET", []), ("HEAD", []), ("POST", ["Content-Length: 0"])])
async def test_a_request_without_a_body_announces_none(method: str, length: list[str]) -> None:
    async with raw_server(b"HTTP/1.1 204 No Content\r\n\r\n") as server, client_of(server.url) as client:
        await passed(client, method, "/", {"Content-Length": "0"})
        assert head_of(server)[2:] == length


async def test_a_compressed_body_is_passed_on_as_it_is() -> None:
    async with raw_server(ok()) as server, client_of(server.url) as client:
        packed = gzip.compress(b"{}")
        await passed(client, "POST", "/", {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}, packed)
        assert server.received[-1].endswith(packed)
        assert "Content-Encoding: gzip" in head_of(server)


async def test_an_answer_comes_as_it_is() -> None:
    packed = gzip.compress(b"x" * 1000)
    head = b"Content-Encoding: gzip\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
    async with raw_server(ok(packed, headers=head)) as server, client_of(server.url) as client:
        answer, content = await passed(client, "GET", "/")
        assert content == packed
        assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert answer.headers["Content-Length"] == str(len(packed))


async def test_a_redirect_is_an_answer_like_any_other() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with raw_server(moved) as server, client_of(server.url) as client:
        answer, _ = await passed(client, "GET", "/")
        assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")
        assert len(server.received) == 1


async def test_the_answer_to_a_head_keeps_its_length() -> None:
    async with raw_server(ok(b"", length=12345)) as server, client_of(server.url) as client:
        answer, content = await passed(client, "HEAD", "/view")
        assert (answer.headers["Content-Length"], content) == ("12345", b"")
        assert idle_connections(client) == 1


async def test_a_page_of_another_origin_is_not_refused_by_the_backend() -> None:
    headers = {"Host": "proxy:8188", "Origin": "http://proxy:8188", "Sec-Fetch-Site": "cross-site"}
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        answer, content = await passed(client, "POST", "/queue", {**headers, "Content-Length": "2"}, b"{}")
        assert answer.status == 200, content


async def test_a_body_goes_out_as_it_comes_in() -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    more: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def answer(request: web.Request) -> web.Response:
        async for chunk in request.content.iter_any():
            arrived.put_nowait(chunk)
        return web.Response(text="done")

    async def body() -> AsyncIterator[bytes]:
        while (chunk := await more.get()) is not None:
            yield chunk

    async with answering("/", answer) as url, client_of(url) as client:
        task = asyncio.create_task(_read(client, body()))
        for chunk in (b"one", b"two"):
            more.put_nowait(chunk)
            assert await arrived.get() == chunk
        more.put_nowait(None)
        assert await task == b"done"


async def _read(client: BackendClient, data: AsyncIterator[bytes], **headers: str) -> bytes:
    async with client.request("POST", "/", headers=headers, data=data) as answer:
        return await answer.content.read()


async def test_a_body_is_not_touched_before_the_connection_stands() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        await backend.faults.refuse_connections()
        body = Body(b"x")
        with pytest.raises(ConnectionRefused):
            await _read(client, body.stream())
        assert not body.begun.is_set()


async def test_an_early_answer_ends_the_body_and_its_connection() -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.content.readany()
        return web.Response(status=413, text="too much")

    async with answering("/", refuse) as url, client_of(url) as client:
        for body in (Body(endless=True), Body(b"x", stuck=True)):
            async with client.request("POST", "/", headers={}, data=body.stream()) as answer:
                assert answer.status == 413
                assert await answer.content.read() == b"too much"
            assert body.is_closed
        await until_whole(session_of(client))
        assert idle_connections(client) == 0


async def test_a_client_that_fails_in_mid_body_leaves_the_backend_with_half_a_request() -> None:
    outcome: asyncio.Future[Exception | bytes] = asyncio.get_running_loop().create_future()

    async def answer(request: web.Request) -> web.Response:
        try:
            outcome.set_result(await request.read())
        except Exception as exc:
            outcome.set_result(exc)
            raise
        return web.Response()

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client has gone")

    async with answering("/", answer) as url, client_of(url) as client:
        with pytest.raises(DeliveryUnknown, match=r"gpu: the request's body broke off: the client has gone"):
            await _read(client, broken())
        assert isinstance(await outcome, Exception)


async def test_a_body_shorter_than_announced_is_not_waited_for() -> None:
    async with raw_server(ok()) as server, client_of(server.url) as client:
        with pytest.raises(DeliveryUnknown, match="6 bytes short"):
            await _read(client, Body(b"half").stream(), **{"Content-Length": "10"})


async def test_a_change_with_a_body_is_not_repeated_without_it() -> None:
    async with raw_server(ok(LOAD), Cut(), ok()) as server, client_of(server.url) as client:
        await client.probe()
        with pytest.raises(DeliveryUnknown):
            await passed(client, "PUT", "/userdata/a", None, b"body")
        assert len(server.received) == 2


async def test_an_answer_that_breaks_off_is_told_to_whoever_reads_it() -> None:
    half = Cut(ok(b"half", length=100))
    async with raw_server(half, half) as server, client_of(server.url) as client:
        with pytest.raises(DeliveryUnknown, match="gpu: the answer broke off"):
            await passed(client, "GET", "/")
        async with client.request("GET", "/", headers={}, data=None) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()


async def test_errors_of_whoever_reads_are_not_the_backends() -> None:
    async with raw_server(*[ok(b"x" * 100)] * 3) as server, client_of(server.url) as client:
        for error in (TimeoutError(), OSError("disk full"), aiohttp.ClientPayloadError("of another backend")):
            with pytest.raises(type(error)) as caught:
                async with client.request("GET", "/", headers={}, data=None):
                    raise error
            assert caught.value is error


async def test_a_backend_that_says_nothing_is_given_up_only_if_told_so() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url, timeout_s=0.05) as client:
        backend.faults.delay_s = 0.2
        async with client.request("GET", "/prompt", headers={}, data=None) as answer:
            assert answer.status == 200
        backend.faults.freeze()
        with pytest.raises(DeliveryUnknown):
            async with client.request("GET", "/prompt", headers={}, data=None, idle_timeout_s=0.1):
                pass


async def test_an_upload_that_is_cancelled_closes_connection_and_body() -> None:
    reading = asyncio.Event()
    gone = asyncio.Event()

    async def read(request: web.Request) -> web.Response:
        try:
            async for _ in request.content.iter_any():
                reading.set()
        finally:
            gone.set()
        return web.Response()

    async with answering("/", read) as url, client_of(url) as client:
        for body in (Body(endless=True), Body(b"x", stuck=True)):
            reading.clear()
            gone.clear()
            task = asyncio.create_task(_read(client, body.stream()))
            await reading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert body.is_closed
            await until_whole(session_of(client))
            assert idle_connections(client) == 0
            await asyncio.wait_for(gone.wait(), 5)


async def test_an_upload_to_a_server_that_does_not_read_can_be_cancelled() -> None:
    async def ignore(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering("/", ignore) as url, client_of(url) as client:
        body = Body(endless=True)
        task = asyncio.create_task(_read(client, body.stream()))
        await body.begun.wait()
        connector = session_of(client).connector
        assert connector is not None
        while not any(protocol.writing_paused for protocol in connector._acquired):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.is_closed


async def test_a_download_that_is_cancelled_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            gone.set()
            raise

    async with answering("/", endless) as url, client_of(url) as client:
        first = asyncio.Event()

        async def read() -> None:
            async with client.request("GET", "/", headers={}, data=None) as answer:
                while await answer.content.readany():
                    first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_whole(session_of(client))
        assert idle_connections(client) == 0
        await asyncio.wait_for(gone.wait(), 5)


async def test_an_answer_that_nobody_reads_to_its_end_closes_its_connection() -> None:
    async with raw_server(ok(b"half", length=10_000_000)) as server, client_of(server.url) as client:
        async with client.request("GET", "/", headers={}, data=None) as answer:
            assert answer.status == 200
        await until_whole(session_of(client))
        assert idle_connections(client) == 0
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_an_answer_read_to_its_end_leaves_its_connection_for_the_next() -> None:
    async with raw_server(ok(b"x"), ok(b"y")) as server, client_of(server.url) as client:
        for _ in range(2):
            await passed(client, "POST", "/", {}, b"body")
            assert idle_connections(client) == 1
        assert server.connections == 1


def test_the_worst_of_it_holds_under_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    stories: list[Callable[[], Coroutine[Any, Any, None]]] = [
        test_an_early_answer_ends_the_body_and_its_connection,
        test_a_client_that_fails_in_mid_body_leaves_the_backend_with_half_a_request,
        test_an_upload_that_is_cancelled_closes_connection_and_body,
        test_an_upload_to_a_server_that_does_not_read_can_be_cancelled,
        test_a_download_that_is_cancelled_closes_its_connection,
    ]
    for story in stories:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(story())
