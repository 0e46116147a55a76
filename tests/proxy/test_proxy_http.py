"""HTTP as clients and servers really speak it: heads, bodies and connections, through the whole proxy."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from aiohttp import web
from proxying import Fleet, Proxy, running_proxy
from simulator_support import Client, endless, png, text
from yarl import URL

from comfyproxy.settings import ServerSettings
from comfyproxy.simulator import SimulatedBackend

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}
PATIENCE_S = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Answer(NamedTuple):
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection, on which nothing is sent or read but what a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, server: str) -> Self:
        url = URL(server)
        return cls(*await asyncio.open_connection(url.host, url.port, limit=MIB))

    async def ask(self, method: str, target: str, headers: Mapping[str, str] = {}, body: bytes = b"") -> None:
        """Send a request; one with a body says its length, unless the headers speak of it."""
        lines = [f"{method} {target} HTTP/1.1", "Host: comfyui.example"]
        framed = {name.lower() for name in headers} & {"content-length", "transfer-encoding"}
        if body and not framed:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self, *, is_head: bool = False) -> Answer:
        """Read one whole answer."""
        status, headers = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            if is_head or status in (204, 304):
                return Answer(status, headers, b"")
            if headers.get("transfer-encoding") == "chunked":
                return Answer(status, headers, await self._chunks())
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def ended(self) -> bool:
        """Whether the server hangs up now."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read() == b""

    def leave(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


class Rigged(SimulatedBackend):
    """A simulated server that answers single paths as a test wants it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rigged: dict[str, Handler] = {}

    def app(self) -> web.Application:
        @web.middleware
        async def rig(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self.rigged.get(request.path, handler)(request)

        app = super().app()
        app.middlewares.insert(0, rig)
        return app


class RiggedFleet(Fleet):
    """Rigged servers by name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.rigged = {name: Rigged(name=name, speed=20.0) for name in names}
        self.backends.update(self.rigged)


class Source:
    """Gives bytes without an end, or up to one, and notes how many went out and when they stopped."""

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self.sent = 0
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(self._size)} if self._size else {})
        await answer.prepare(request)
        self.begun.set()
        block = bytes(64 * 1024)
        try:
            while self._size is None or self.sent < self._size:
                await answer.write(block)
                self.sent += len(block)
        finally:
            self.ended.set()
        return answer

    async def stalled(self) -> int:
        """Wait until it gets no more bytes rid; return how many it got rid of."""
        async with asyncio.timeout(PATIENCE_S):
            last = -1
            while last != self.sent:
                last = self.sent
                await asyncio.sleep(0.2)  # that nothing happens has no event
        return last


class Sink:
    """Takes a request's body, and notes how it ended."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: Mapping[str, str] = {}
        self.path = ""
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, request: web.Request) -> web.Response:
        self.headers, self.path = request.headers, request.raw_path
        try:
            async for chunk in request.content.iter_any():
                self.body += chunk
                self.begun.set()
        except Exception as exc:
            self.error = exc
            raise
        finally:
            self.ended.set()
        return web.json_response({"took": len(self.body)})


@asynccontextmanager
async def stage(tmp_path: Path, *names: str, **settings: Any) -> AsyncIterator[tuple[RiggedFleet, Proxy, Wire]]:
    async with RiggedFleet(*names) as fleet, running_proxy(fleet, tmp_path, **settings) as proxy:
        wire = await Wire.to(proxy.url)
        try:
            yield fleet, proxy, wire
        finally:
            wire.leave()


def prompt(**more: Any) -> bytes:
    return json.dumps({"prompt": text(), "client_id": "me", **more}).encode()


def chunked(data: bytes, size: int) -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def form(name: str, data: bytes) -> tuple[dict[str, str], bytes]:
    """Return a form with a picture, as curl writes it."""
    head = (
        f'--cut\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    )
    return {"Content-Type": "multipart/form-data; boundary=cut"}, head.encode() + data + b"\r\n--cut--\r\n"


def spooled(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "uploads").iterdir())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.01)


# Answers


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["one backend", "two backends"])
async def test_part_head_and_condition_on_one_connection(tmp_path: Path, names: tuple[str, ...]) -> None:
    whole = bytes(range(256)) * 400
    async with stage(tmp_path, *names) as (fleet, _, wire):
        (fleet[names[-1]].folders.output / "film.mp4").write_bytes(whole)
        target = f"/view?filename=film.mp4&type=output&subfolder={names[-1] if len(names) > 1 else ''}"
        await wire.ask("HEAD", target)
        head = await wire.answer(is_head=True)
        assert (head.status, head.headers["content-length"]) == (200, str(len(whole)))
        assert (head.headers["content-type"], head.headers["accept-ranges"]) == ("video/mp4", "bytes")
        # A body behind that head would be read as the beginning of this answer.
        await wire.ask("GET", target, {"Range": "bytes=1000-50999"})
        part = await wire.answer()
        assert (part.status, part.body) == (206, whole[1000:51000])
        assert part.headers["content-range"] == f"bytes 1000-50999/{len(whole)}"
        await wire.ask("GET", target, {"If-None-Match": head.headers["etag"]})
        same = await wire.answer()
        assert (same.status, same.headers["etag"]) == (304, head.headers["etag"])
        await wire.ask("GET", target, {"Range": "bytes=0-9", "If-Range": "Thu, 01 Jan 1970 00:00:00 GMT"})
        changed = await wire.answer()
        assert (changed.status, changed.body) == (200, whole)


@pytest.mark.parametrize("target", ["/queue", "/history", "/object_info", "/system_stats", "/api/settings"])
async def test_head_is_get_without_its_body(tmp_path: Path, target: str) -> None:
    async with stage(tmp_path, "a", "b") as (_, _, wire):
        await wire.ask("HEAD", target)
        head = await wire.answer(is_head=True)
        await wire.ask("GET", target)
        whole = await wire.answer()
        assert (head.status, head.headers.get("content-type")) == (whole.status, whole.headers.get("content-type"))
        if "content-length" in head.headers:
            assert head.headers["content-length"] == whole.headers.get("content-length", head.headers["content-length"])


async def test_heads_of_30_kb_go_both_ways(tmp_path: Path) -> None:
    long = "x" * 30_000
    seen: list[str] = []

    async def echo(request: web.Request) -> web.Response:
        seen.append(request.headers["X-Token"])
        return web.Response(headers={"X-Answer": long})

    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        # The simulated server keeps aiohttp's bound of 8 KB for one header, as ComfyUI does: it gets many.
        await wire.ask("GET", "/queue", {"Cookie": long, "Authorization": f"Bearer {long}"})
        assert (await wire.answer()).status == 200
        many = {f"X-{number}": "y" * 7_000 for number in range(4)}
        fleet.rigged["a"].rigged["/token"] = echo
        await wire.ask("GET", "/token", {"X-Token": "me", **many})
        answer = await wire.answer()
        assert (answer.status, answer.headers["x-answer"], seen) == (200, long, ["me"])
        await wire.ask("GET", f"/history?max_items=1&x={long}")
        assert (await wire.answer()).json == {}


async def test_an_encoded_slash_stays_one_segment_wherever_it_goes(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        for target in ("/custom/a%2Fb%2f%20c?d=%2F", "/api/custom//x%252Fy", "/comfyproxy/backends/b/custom/a%2Fb"):
            sink, path = Sink(), URL(target, encoded=True).path.removeprefix("/comfyproxy/backends/b")
            for backend in fleet.rigged.values():
                backend.rigged[path] = sink
            await wire.ask("POST", target, JSON, b"{}")
            assert (await wire.answer()).json == {"took": 2}
            assert sink.path == target.removeprefix("/comfyproxy/backends/b")


# Prompts


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"]
)
async def test_a_prompt_runs_whatever_type_it_says_it_has(tmp_path: Path, content_type: str) -> None:
    async with stage(tmp_path, "a", "b") as (_, proxy, wire):
        await wire.ask("POST", "/prompt", {"Content-Type": content_type}, prompt())
        answer = await wire.answer()
        assert answer.status == 200
        assert (await proxy.ended(answer.json["prompt_id"]))["prompt"][2] == text()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_prompt_runs_however_it_is_packed(tmp_path: Path, encoding: str, is_chunked: bool) -> None:
    packed = gzip.compress(prompt()) if encoding == "gzip" else zlib.compress(prompt())
    headers = {"Content-Encoding": encoding, **JSON}
    async with stage(tmp_path, "a", "b") as (_, proxy, wire):
        if is_chunked:
            await wire.ask("POST", "/prompt", {**headers, "Transfer-Encoding": "chunked"}, chunked(packed, 7))
        else:
            await wire.ask("POST", "/prompt", headers, packed)
        answer = await wire.answer()
        assert answer.status == 200
        assert (await proxy.ended(answer.json["prompt_id"]))["prompt"][2] == text()


async def test_a_prompt_that_comes_byte_by_byte_holds_up_nobody(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (_, proxy, wire):
        body = prompt()
        await wire.ask("POST", "/prompt", {"Content-Length": str(len(body)), **JSON})
        for start in range(0, len(body), 10):
            await wire.send(body[start : start + 10])
            if start == 50:
                await proxy.ended(await proxy.submit(text("of another")))
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_prompt_that_is_too_large_is_413_in_plain_text_as_comfyuis(tmp_path: Path, is_chunked: bool) -> None:
    server = ServerSettings(port=0, shutdown_timeout=5.0, max_body_mb=1.0)
    body = prompt(extra_data={"x": "y" * 2 * MIB})
    async with stage(tmp_path, "a", "b", server=server) as (fleet, proxy, wire):
        if is_chunked:
            await wire.ask("POST", "/prompt", {"Transfer-Encoding": "chunked", **JSON}, chunked(body, 65536))
        else:
            await wire.ask("POST", "/prompt", JSON, body)
        answer = await wire.answer()
        assert (answer.status, answer.headers["content-type"]) == (413, "text/plain; charset=utf-8")
        assert not any(backend.accepted for backend in fleet.backends.values())
        assert await proxy.queue() == ([], [])
        # What is no prompt is not bounded by it.
        other = await Wire.to(proxy.url)
        await other.ask("POST", "/userdata/large.json", JSON, body)
        assert (await other.answer()).status == 200
        other.leave()
        assert await proxy.get("/userdata/large.json") == json.loads(body)


async def test_a_client_that_leaves_within_its_prompt_has_asked_for_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path, "a") as (fleet, proxy, wire):
        await wire.ask("POST", "/prompt", {"Content-Length": str(len(prompt())), **JSON}, prompt()[:40])
        wire.leave()
        await proxy.ended(mine := await proxy.submit(text("mine")))
        assert fleet["a"].accepted == [mine]


# Expect: 100-continue


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["one backend", "two backends"])
async def test_curls_big_uploads_are_told_to_go_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    picture = png(64, 64) + bytes(2 * MIB)
    headers, body = form("big.png", picture)
    async with stage(tmp_path, *names) as (fleet, _, wire):
        expecting = {**headers, "Content-Length": str(len(body)), "Expect": "100-continue"}
        await wire.ask("POST", "/upload/image", expecting)
        assert (await wire.head())[0] == 100
        await wire.send(body)
        answer = await wire.answer()
        assert (answer.status, answer.json["name"]) == (200, "big.png")
        for backend in fleet.backends.values():
            assert (backend.folders.input / "big.png").read_bytes() == picture


async def test_whoever_asks_before_a_body_is_told_to_go_on_wherever_it_goes(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        sink = fleet.rigged["a"].rigged["/custom"] = Sink()
        for target in ("/custom", "/userdata/x.json", "/prompt"):
            await wire.ask("POST", target, {"Content-Length": str(len(prompt())), "Expect": "100-continue", **JSON})
            assert (await wire.head())[0] == 100
            await wire.send(prompt())
            answer = await wire.answer()
            assert answer.status == 200
        await proxy.ended(answer.json["prompt_id"])
        assert (bytes(sink.body), "Expect" in sink.headers) == (prompt(), False)
        assert await proxy.get("/userdata/x.json") == json.loads(prompt())


# Uploads


async def test_an_upload_in_chunks_arrives_whole_on_every_backend(tmp_path: Path) -> None:
    picture = png(200, 200) + bytes(MIB)
    headers, body = form("chunks.png", picture)
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        await wire.ask("POST", "/upload/image", {"Transfer-Encoding": "chunked", **headers}, chunked(body, 10_007))
        assert (await wire.answer()).json["name"] == "chunks.png"
        for backend in fleet.backends.values():
            assert (backend.folders.input / "chunks.png").read_bytes() == picture


async def test_what_a_backend_gets_is_framed_as_its_client_framed_it(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        sink = fleet.rigged["a"].rigged["/custom"] = Sink()
        await wire.ask("POST", "/custom", {"Transfer-Encoding": "chunked"}, chunked(b"some words", 3))
        assert (await wire.answer()).json == {"took": 10}
        assert (sink.headers.get("Transfer-Encoding"), sink.headers.get("Content-Length")) == ("chunked", None)
        await wire.ask("PUT", "/custom", {}, b"some words")
        assert (await wire.answer()).json == {"took": 20}
        assert (sink.headers.get("Transfer-Encoding"), sink.headers.get("Content-Length")) == (None, "10")


@pytest.mark.parametrize("target", ["/upload/image", "/upload/mask", "/userdata/half.json"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_half_an_upload_goes_nowhere(tmp_path: Path, target: str, is_chunked: bool) -> None:
    headers, body = form("half.png", bytes(4 * MIB))
    framing = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(len(body))}
    half = body[: 2 * MIB]
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        await wire.ask("POST", target, {**headers, **framing}, b"%x\r\n%s" % (len(body), half) if is_chunked else half)
        await until(lambda: len(spooled(tmp_path)) == 1)
        wire.leave()
        await until(lambda: not spooled(tmp_path))
        assert (await proxy.call("GET", "/userdata/half.json"))[0] == 404
        for backend in fleet.backends.values():
            assert ("POST", target) not in backend.requests


async def test_the_upload_of_a_client_that_leaves_ends_at_its_backend(tmp_path: Path) -> None:
    async with stage(tmp_path, "a") as (fleet, proxy, wire):
        sink = fleet.rigged["a"].rigged["/upload/image"] = Sink()
        headers, body = form("half.png", bytes(MIB))
        await wire.ask("POST", "/upload/image", {**headers, "Content-Length": str(len(body))}, body[: MIB // 2])
        await sink.begun.wait()
        wire.leave()
        async with asyncio.timeout(PATIENCE_S):
            await sink.ended.wait()
        assert sink.error is not None
        assert await proxy.states() == {"a": "ready"}


# Downloads


@pytest.mark.parametrize("target", ["/view?filename=a/film.mp4", "/view?filename=film.mp4&type=input", "/custom"])
async def test_the_download_of_a_client_that_leaves_ends_at_its_backend(tmp_path: Path, target: str) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        source = fleet.rigged["a"].rigged[URL(target).path] = Source()
        await wire.ask("GET", target)
        await source.begun.wait()
        assert (await wire.head())[0] == 200
        wire.leave()
        async with asyncio.timeout(PATIENCE_S):
            await source.ended.wait()
        assert await proxy.states() == {"a": "ready", "b": "ready"}


async def test_a_client_that_leaves_while_it_reads_nothing_lets_its_backend_go(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        source = fleet.rigged["a"].rigged["/view"] = Source()
        await wire.ask("GET", "/view?filename=a/film.mp4")
        await source.stalled()
        wire.leave()
        async with asyncio.timeout(PATIENCE_S):
            await source.ended.wait()


async def test_a_slow_reader_slows_its_backend_and_nobody_else(tmp_path: Path) -> None:
    size = 64 * MIB
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        source = fleet.rigged["a"].rigged["/view"] = Source(size)
        await wire.ask("GET", "/view?filename=a/film.mp4")
        assert await source.stalled() < size / 2  # what the sockets on the way hold, and no more
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(text(), "me")
        await socket.until_done(prompt_id)
        answer = await wire.answer()
        assert (answer.status, answer.body.count(0)) == (200, size)
        assert source.sent == size


# Connections


async def test_one_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        sink = fleet.rigged["a"].rigged["/custom"] = Sink()
        headers, body = form("x.png", png())
        for round_number in range(3):
            await wire.ask("POST", "/prompt", JSON, prompt())
            assert (await wire.answer()).status == 200
            await wire.ask("GET", "/view?filename=nowhere.png")
            assert (await wire.answer()).status == 404
            await wire.ask("POST", "/custom", {"Transfer-Encoding": "chunked"}, chunked(b"words", 2))
            assert (await wire.answer()).json == {"took": 5 * (round_number + 1)}
            await wire.ask("POST", "/upload/image", headers, body)
            assert (await wire.answer()).json["name"] == "x.png"
            await wire.ask("POST", "/prompt", JSON, b"not json")
            assert (await wire.answer()).status in (400, 500)
            await wire.ask("GET", "/queue")
            assert (await wire.answer()).status == 200
        assert len(sink.body) == 15
        await wire.ask("GET", "/queue", {"Connection": "close"})
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.ended()
        assert len(await proxy.get("/history?max_items=10")) <= 3


async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        fleet.rigged["a"].rigged["/custom"] = Sink()
        await wire.ask("POST", "/custom", {}, b"first")
        await wire.ask("GET", "/prompt")
        await wire.ask("HEAD", "/queue")
        await wire.ask("POST", "/prompt", JSON, prompt(prompt_id="00000000-0000-4000-8000-000000000001"))
        await wire.ask("GET", "/embeddings")
        assert (await wire.answer()).json == {"took": 5}
        assert "exec_info" in (await wire.answer()).json
        assert (await wire.answer(is_head=True)).status == 200
        assert (await wire.answer()).json["prompt_id"] == "00000000-0000-4000-8000-000000000001"
        assert (await wire.answer()).json == []


async def test_the_connections_to_a_backend_are_used_again(tmp_path: Path) -> None:
    ports = set()

    async def where(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.Response(body=await request.read())

    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        fleet.rigged["a"].rigged["/custom"] = where
        for _ in range(20):
            await wire.ask("POST", "/custom", {}, b"words")
            assert (await wire.answer()).body == b"words"
    assert len(ports) <= 3  # and not twenty; probes may have had one of them in hand


async def test_a_request_of_http_1_0_is_answered_and_hung_up_on(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        (fleet["a"].folders.output / "film.mp4").write_bytes(b"film")
        await wire.send(b"GET /view?filename=a/film.mp4 HTTP/1.0\r\nHost: x\r\n\r\n")
        assert (await wire.answer()).body == b"film"
        assert await wire.ended()


async def test_an_answer_without_a_length_ends_for_an_old_client_with_the_connection(tmp_path: Path) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(3):
            await answer.write(b"drop")
        return answer

    async with stage(tmp_path, "a", "b") as (fleet, _, wire):
        fleet.rigged["a"].rigged["/custom"] = drip
        await wire.send(b"GET /custom HTTP/1.0\r\nHost: x\r\n\r\n")
        status, headers = await wire.head()
        assert (status, "transfer-encoding" in headers) == (200, False)
        async with asyncio.timeout(PATIENCE_S):
            assert await wire.reader.read() == b"dropdropdrop"


async def test_an_unknown_route_gets_its_body_to_the_home_backend(tmp_path: Path) -> None:
    body = bytes(range(256)) * 8192
    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        sink = fleet.rigged["a"].rigged["/api/custom/node"] = Sink()
        await wire.ask("PATCH", "/api/custom/node?x=1", {"X-Of-Mine": "yes", "Content-Type": "x/y"}, body)
        answer = await wire.answer()
        assert (answer.json, answer.headers["x-comfyproxy-backend"]) == ({"took": len(body)}, "a")
        assert (bytes(sink.body), sink.headers["X-Of-Mine"], sink.headers["Content-Type"]) == (body, "yes", "x/y")
        assert ("PATCH", "/api/custom/node") not in fleet["b"].requests
        # What the backend does not have either is its own 404 or 405, and the connection goes on.
        async with Client(fleet["a"]) as direct:
            expected = await direct.call("POST", "/no/such/route", data=BytesIO(body))
        await wire.ask("POST", "/no/such/route", {}, body)
        refused = await wire.answer()
        assert (refused.status, refused.body) == expected
        await proxy.get("/queue")


async def test_a_backend_that_refuses_a_body_unread_is_heard(tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=413, text="too large")

    async with stage(tmp_path, "a", "b") as (fleet, proxy, wire):
        fleet.rigged["a"].rigged["/custom"] = refuse
        await wire.ask("POST", "/custom", {"Content-Length": str(64 * MIB)}, bytes(MIB))
        answer = await wire.answer()
        assert (answer.status, answer.body) == (413, b"too large")
        assert await proxy.states() == {"a": "ready", "b": "ready"}


async def test_a_prompt_is_not_lost_with_the_client_that_does_not_wait_for_its_answer(tmp_path: Path) -> None:
    prompt_id = "00000000-0000-4000-8000-000000000002"
    async with stage(tmp_path, "a") as (fleet, proxy, wire):
        running = await proxy.submit(endless())
        fleet["a"].faults.delay_s = 0.2
        await wire.ask("POST", "/prompt", JSON, prompt(prompt_id=prompt_id))
        await until(lambda: ("POST", "/prompt") in list(fleet["a"].requests)[-3:])
        wire.leave()
        fleet["a"].faults.delay_s = 0.0
        await proxy.post("/interrupt", {"prompt_id": running})
        assert (await proxy.ended(prompt_id))["status"]["completed"]
