"""Whatever cannot be merged goes to one backend and back, as streams and as it came."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from proxy_support import Proxy
from yarl import URL

MIB = 1024 * 1024


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    return Proxy(tmp_path, "a", "b")


async def test_path_and_query_arrive_as_they_were_sent(proxy: Proxy) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    proxy["a"].app.router.add_route("*", "/{path:.*}", echo)
    async with proxy:
        for path in (
            "/userdata/workflows%2Fa.json",
            "/userdata/..%2F..%2Fx.json",
            "/x?a=%2F&b=a+b&c=%C3%A9&c=&d",
            "/a//b/",
            "/%E2%9C%93?q=%25",
        ):
            url = URL(f"{proxy.url.origin()}{path}", encoded=True)
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                assert await answer.text() == path
                assert answer.headers["X-Comfyproxy-Backend"] == "a"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_method_body_and_headers_go_through(proxy: Proxy, method: str) -> None:
    async def echo(request: web.Request) -> web.Response:
        assert request.headers["Comfy-User"] == "me"
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["Content-Length"] == "5"
        assert "Transfer-Encoding" not in request.headers
        return web.Response(status=201, reason="Made", body=await request.read())

    proxy["a"].app.router.add_route(method, "/x", echo)
    async with proxy:
        headers = {"Comfy-User": "me", "Content-Type": "application/json"}
        async with proxy.session.request(method, "/x", data=b"[1,2]", headers=headers) as answer:
            assert (answer.status, answer.reason, await answer.read()) == (201, "Made", b"[1,2]")


async def test_a_request_without_a_body_stays_without(proxy: Proxy) -> None:
    async def check(request: web.Request) -> web.Response:
        return web.json_response([request.body_exists, "Transfer-Encoding" in request.headers])

    proxy["a"].app.router.add_route("*", "/x", check)
    async with proxy:
        for method in ("GET", "POST", "DELETE"):
            async with proxy.session.request(method, "/x") as answer:
                assert await answer.json() == [False, False]


async def test_a_compressed_body_arrives_compressed(proxy: Proxy) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response([request.headers["Content-Encoding"], await request.text()])

    proxy["a"].app.router.add_post("/x", echo)
    async with proxy:
        data = gzip.compress(b"hello" * 100)
        async with proxy.session.post("/x", data=data, headers={"Content-Encoding": "gzip"}) as answer:
            assert await answer.json() == ["gzip", "hello" * 100]


async def test_a_gzipped_answer_stays_gzipped(proxy: Proxy) -> None:
    packed = gzip.compress(b"hello")

    async def give(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    proxy["a"].app.router.add_get("/x", give)
    async with proxy, proxy.session.get("/x", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Length"] == str(len(packed))
        assert await answer.read() == packed


async def test_the_proxy_asks_for_no_compression_of_its_own(proxy: Proxy) -> None:
    async def check(request: web.Request) -> web.Response:
        return web.json_response(sorted(request.headers))

    proxy["a"].app.router.add_get("/x", check)
    async with proxy:
        skip = ("Accept-Encoding", "Accept", "User-Agent")
        async with proxy.session.get("/x", skip_auto_headers=skip) as answer:
            assert await answer.json() == ["Host"]


async def test_repeated_headers_of_an_answer_are_all_kept(proxy: Proxy) -> None:
    async def give(request: web.Request) -> web.Response:
        answer = web.Response(text="x", headers={"Cache-Control": "no-store", "Keep-Alive": "timeout=5", "X-Odd": "é"})
        answer.set_cookie("one", "1")
        answer.set_cookie("two", "2")
        return answer

    proxy["a"].app.router.add_get("/x", give)
    async with proxy, proxy.session.get("/x") as answer:
        assert [value.split(";")[0] for value in answer.headers.getall("Set-Cookie")] == ["one=1", "two=2"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Odd"] == "é"
        assert "Keep-Alive" not in answer.headers


async def test_head_and_empty_answers_keep_their_form(proxy: Proxy) -> None:
    async def give(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1000, headers={"ETag": '"1"'})

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]), headers={"ETag": '"1"'})

    proxy["a"].app.router.add_get("/x", give)
    proxy["a"].app.router.add_get("/{status:\\d+}", nothing)
    async with proxy:
        async with proxy.session.head("/x") as answer:
            assert answer.headers["Content-Length"] == "1000"
        for status in (204, 304):
            async with proxy.session.get(f"/{status}") as answer:
                assert (answer.status, await answer.read()) == (status, b"")
                assert "Transfer-Encoding" not in answer.headers
                assert answer.headers["ETag"] == '"1"'
        async with proxy.session.get("/400") as answer:
            assert answer.headers["Content-Length"] == "0"


async def test_a_redirect_is_the_clients_to_follow(proxy: Proxy) -> None:
    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    proxy["a"].app.router.add_get("/x", away)
    async with proxy, proxy.session.get("/x", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")


async def test_an_answer_is_passed_on_as_it_comes(proxy: Proxy) -> None:
    read = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first")
        await read.wait()
        await answer.write(b"second")
        return answer

    proxy["a"].app.router.add_get("/x", drip)
    async with proxy, proxy.session.get("/x") as answer:
        assert await answer.content.readany() == b"first"
        read.set()
        assert await answer.content.read() == b"second"


async def test_64_mib_go_through_in_both_directions_without_being_held(proxy: Proxy) -> None:
    size = 64 * MIB
    block = bytes(MIB)

    async def swallow(request: web.Request) -> web.Response:
        assert request.content_length == size
        total = 0
        async for chunk in request.content.iter_any():
            total += len(chunk)
        return web.Response(text=str(total))

    async def give(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(size)})
        await answer.prepare(request)
        for _ in range(size // MIB):
            await answer.write(block)
        return answer

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield block

    proxy["a"].app.router.add_post("/x", swallow)
    proxy["a"].app.router.add_get("/x", give)
    async with proxy:
        tracemalloc.start()
        try:
            async with proxy.session.post("/x", data=blocks(), headers={"Content-Length": str(size)}) as answer:
                assert await answer.text() == str(size)
            async with proxy.session.get("/x") as answer:
                assert answer.content_length == size
                assert sum([len(chunk) async for chunk in answer.content.iter_any()]) == size
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 * MIB


async def test_a_client_that_leaves_while_its_backend_is_silent_stops_the_transfer(proxy: Proxy) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"x")
        began.set()
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
        ended.set()
        return answer

    proxy["a"].app.router.add_get("/x", hang)
    async with proxy:
        async with proxy.session.get("/x") as answer:
            await began.wait()
            answer.close()
        async with asyncio.timeout(10):
            await ended.wait()
        assert proxy.backend("a").last_error is None


async def test_a_client_that_leaves_in_mid_upload_stops_it_and_is_not_the_backends_fault(proxy: Proxy) -> None:
    began, failed = asyncio.Event(), asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        began.set()
        try:
            await request.read()
        except Exception:
            failed.set()
            raise
        return web.Response()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    proxy["a"].app.router.add_post("/x", take)
    async with proxy:
        upload = asyncio.create_task(proxy.session.post("/x", data=endless()))
        await began.wait()
        upload.cancel()
        async with asyncio.timeout(10):
            await failed.wait()
        assert proxy.backend("a").last_error is None


async def test_a_dead_home_is_replaced_and_the_request_not_lost(proxy: Proxy) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    proxy["b"].app.router.add_post("/x", echo)
    async with proxy:
        await proxy.dies("a")
        async with proxy.session.post("/x", data=b"data") as answer:
            assert (answer.status, await answer.read()) == (200, b"data")
            assert answer.headers["X-Comfyproxy-Backend"] == "b"
        assert not proxy.backend("a").health.healthy


async def test_without_any_backend_the_answer_is_a_503_in_comfyuis_shape(proxy: Proxy) -> None:
    async with proxy:
        await proxy.dies("a")
        await proxy.dies("b")
        for _ in range(2):
            async with proxy.session.get("/x") as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert set(await answer.json()) == {"error", "node_errors"}


async def test_a_backend_that_cuts_the_connection_before_its_answer_gives_a_502(proxy: Proxy) -> None:
    async def die(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    proxy["a"].app.router.add_post("/x", die)
    async with proxy, proxy.session.post("/x", data=b"x") as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["type"] == "backend_failed"
        assert proxy.backend("a").last_error is not None


async def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(proxy: Proxy) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return answer

    proxy["a"].app.router.add_get("/x", half)
    async with proxy, proxy.session.get("/x") as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_expect_100_continue_is_answered(proxy: Proxy) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    proxy["a"].app.router.add_post("/x", echo)
    async with proxy, proxy.session.post("/x", data=b"body", expect100=True) as answer:
        assert await answer.read() == b"body"
