"""What there is, over HTTP: compressed, conditional, and in pieces."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from proxy_support import LikeProduction, SocketClient

from comfyproxy.core.errors import NoBackend
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.catalogs import Catalogs, Document
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.sources import Refusal
from comfyproxy.web import catalog, middleware
from comfyproxy.web.catalog import MAX_ASKED, PIECE_BYTES, accepts_gzip
from comfyproxy.web.keys import CATALOGS, FLEET

LONG = Document(json.dumps([f"{number}.safetensors" for number in range(PIECE_BYTES // 8)]).encode())
SHORT = Document(b'["a"]')


class FakeCatalogs:
    """Says the same to every question, and notes what it was."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.found: Document | Refusal = LONG
        self.failure: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.holders: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: Any) -> Document | Refusal:
            self.asked.append((name, *arguments))
            if self.failure is not None:
                raise self.failure
            return self.found

        return ask

    async def holders_of_model(self, *arguments: Any) -> list[Backend]:
        self.asked.append(("holders_of_model", *arguments))
        return [backend for backend in self.fleet if backend.id in self.holders]

    async def holders_of_file(self, *arguments: Any) -> list[Backend]:
        self.asked.append(("holders_of_file", *arguments))
        return [backend for backend in self.fleet if backend.id in self.holders]


class Proxy:
    """The routes of catalogs, in front of servers that have some files and nothing else."""

    def __init__(self, url: str, fleet: Fleet, catalogs: FakeCatalogs) -> None:
        self.url, self.fleet, self.catalogs = url, fleet, catalogs
        self.files: dict[str, set[str]] = {backend.id: set() for backend in fleet}
        self.requests: list[str] = []
        self.servers: dict[str, TestServer] = {}

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        """Return an answer, as it is on the wire."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as session,
            session.request(method, self.url + path, headers=headers) as answer,
        ):
            return answer, await answer.read()


@asynccontextmanager
async def proxy_of(*names: str) -> AsyncIterator[Proxy]:
    async with AsyncExitStack() as stack:
        proxies: list[Proxy] = []

        def answering(name: str) -> Handler:
            async def answer(request: web.Request) -> web.Response:
                proxies[0].requests.append(f"{name} {request.method} {request.path_qs}")
                if request.path_qs in proxies[0].files[name]:
                    return web.Response(body=f"of {name}".encode(), content_type="image/webp")
                return web.Response(status=404, text=f"not at {name}")

            return answer

        backends: list[Backend] = []
        servers: dict[str, TestServer] = {}
        for name in names:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", answering(name))
            servers[name] = TestServer(app)
            await servers[name].start_server()
            stack.push_async_callback(servers[name].close)
            client = SocketClient(servers[name].make_url("/"))
            stack.push_async_callback(client.session.close)
            backends.append(Backend(BackendId(name), cast(Any, None), cast(Any, client), health=Health(healthy=True)))
        quiet = cast(Any, SimpleNamespace(upstream_error=lambda backend, kind: None))
        check = cast(Any, SimpleNamespace(rise=1, fall=3))
        fleet = Fleet(backends, health_check=check, prefix_outputs=True, now=lambda: 0.0, observer=quiet)
        catalogs = FakeCatalogs(fleet)
        app = web.Application()
        middleware.install(app)
        app[FLEET], app[CATALOGS] = fleet, cast(Catalogs, catalogs)
        app.add_routes(catalog.routes)
        server = LikeProduction(app)
        await server.start_server(auto_decompress=False)
        stack.push_async_callback(server.close)
        proxies.append(Proxy(str(server.make_url("")), fleet, catalogs))
        proxies[0].servers = servers
        yield proxies[0]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with proxy_of("a", "b") as proxy:
        yield proxy


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/object_info", ("object_info",)),
        ("/object_info/Upscale%20%2F%2F%20x", ("object_info_of", "Upscale // x")),
        ("/models", ("model_kinds",)),
        ("/models/loras?x=1", ("models", "loras")),
        ("/embeddings", ("embeddings",)),
        ("/experiment/models", ("model_folders",)),
        ("/experiment/models/loras", ("model_files", "loras")),
        ("/system_stats", ("system_stats",)),
        ("/features", ("features",)),
    ],
)
async def test_each_route_has_its_answer(proxy: Proxy, prefix: str, path: str, asked: tuple[str, ...]) -> None:
    answer, body = await proxy.ask(prefix + path)
    assert (answer.status, body) == (200, LONG.body)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(LONG.body))
    assert "Content-Encoding" not in answer.headers
    assert proxy.catalogs.asked == [asked]


async def test_who_takes_gzip_gets_it_and_the_answer_says_so(proxy: Proxy) -> None:
    answer, body = await proxy.ask("/object_info", Accept_Encoding="gzip, deflate, br")
    assert gzip.decompress(body) == LONG.body
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["Vary"] == "Accept-Encoding"
    plain, _ = await proxy.ask("/object_info", Accept_Encoding="identity")
    assert plain.headers["Vary"] == "Accept-Encoding"
    assert plain.headers["ETag"] != answer.headers["ETag"]
    assert not answer.headers["ETag"].startswith("W/")


async def test_what_is_short_is_not_compressed(proxy: Proxy) -> None:
    proxy.catalogs.found = SHORT
    answer, body = await proxy.ask("/models", Accept_Encoding="gzip")
    assert body == b'["a"]'
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_head_says_what_get_would(proxy: Proxy, encoding: str) -> None:
    answer, body = await proxy.ask("/object_info", Accept_Encoding=encoding)
    head, nothing = await proxy.ask("/object_info", "HEAD", Accept_Encoding=encoding)
    assert (head.status, nothing) == (200, b"")
    for name in ("Content-Length", "Content-Type", "Content-Encoding", "ETag", "Vary"):
        assert head.headers.get(name) == answer.headers.get(name)
    assert int(head.headers["Content-Length"]) == len(body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_who_has_it_already_is_told_so(proxy: Proxy, encoding: str, method: str) -> None:
    answer, _ = await proxy.ask("/object_info", Accept_Encoding=encoding)
    etag = answer.headers["ETag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again, body = await proxy.ask("/object_info", method, Accept_Encoding=encoding, If_None_Match=condition)
        assert (again.status, body) == (304, b"")
        assert (again.headers["ETag"], again.headers["Vary"]) == (etag, "Accept-Encoding")
    proxy.catalogs.found = SHORT
    again, body = await proxy.ask("/object_info", Accept_Encoding=encoding, If_None_Match=etag)
    assert (again.status, body) == (200, SHORT.body)


async def test_who_has_it_compressed_has_it(proxy: Proxy) -> None:
    answer, _ = await proxy.ask("/object_info", Accept_Encoding="gzip")
    again, _ = await proxy.ask("/object_info", If_None_Match=answer.headers["ETag"])
    assert again.status == 304


async def test_a_refusal_is_passed_on_as_it_came(proxy: Proxy) -> None:
    proxy.catalogs.found = Refusal(404, b"", None)
    answer, body = await proxy.ask("/models/none")
    assert (answer.status, body) == (404, b"")
    proxy.catalogs.found = Refusal(404, b"404: Not Found", "text/plain; charset=utf-8")
    answer, body = await proxy.ask("/features")
    assert (answer.status, body) == (404, b"404: Not Found")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_an_absence_of_backends_has_comfyuis_shape(proxy: Proxy) -> None:
    proxy.catalogs.failure = NoBackend("No ComfyUI backend is available")
    answer, body = await proxy.ask("/object_info")
    assert answer.status == 503
    assert json.loads(body)["error"]["type"] == "no_backend_available"


async def test_a_client_that_leaves_in_the_middle_harms_nobody(proxy: Proxy) -> None:
    proxy.catalogs.found = Document(b'"' + b"x" * 64 * PIECE_BYTES + b'"')
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    writer.write(b"GET /object_info HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.read(100)
    writer.transport.abort()
    answer, body = await proxy.ask("/object_info")
    assert (answer.status, len(body)) == (200, 64 * PIECE_BYTES + 2)


@pytest.mark.parametrize(
    ("accepted", "does"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("br, x-gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity, br", False),
        ("gzip;q=nonsense", True),
        (",;,", False),
    ],
)
def test_what_a_client_accepts_is_read_as_the_standard_says(accepted: str, does: bool) -> None:
    assert accepts_gzip(accepted) is does


# What is not merged

PREVIEW = "/experiment/models/preview/loras/1/sub/x.webp"
METADATA = "/view_metadata/loras?filename=sub/x.safetensors"


@pytest.mark.parametrize("path", [PREVIEW, METADATA])
@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_the_backend_that_has_it_answers(proxy: Proxy, prefix: str, path: str) -> None:
    proxy.catalogs.holders = ["a", "b"]
    proxy.files["b"].add(prefix + path)
    answer, body = await proxy.ask(prefix + path)
    assert (answer.status, body) == (200, b"of b")
    assert answer.headers["X-Comfyproxy-Backend"] == "b"
    assert proxy.requests == [f"a GET {prefix}{path}", f"b GET {prefix}{path}"]


async def test_a_backend_without_the_model_is_not_asked(proxy: Proxy) -> None:
    proxy.catalogs.holders = ["b"]
    for path in (PREVIEW, METADATA):
        proxy.files["b"].add(path)
        assert (await proxy.ask(path))[1] == b"of b"
    assert proxy.requests == [f"b GET {PREVIEW}", f"b GET {METADATA}"]
    assert proxy.catalogs.asked == [
        ("holders_of_file", "loras", "sub/x.webp", 1),
        ("holders_of_model", "loras", "sub/x.safetensors"),
    ]


async def test_where_nobody_has_it_the_first_refusal_is_the_answer(proxy: Proxy) -> None:
    proxy.catalogs.holders = ["a", "b"]
    answer, body = await proxy.ask(PREVIEW)
    assert (answer.status, body) == (404, b"not at a")
    assert len(proxy.requests) == 2


async def test_no_more_than_a_few_are_asked() -> None:
    names = [f"gpu-{number}" for number in range(2 * MAX_ASKED)]
    async with proxy_of(*names) as proxy:
        proxy.catalogs.holders = names
        assert (await proxy.ask(PREVIEW))[0].status == 404
        assert len(proxy.requests) == MAX_ASKED


async def test_a_dead_backend_does_not_hide_what_another_has(proxy: Proxy) -> None:
    proxy.catalogs.holders = ["a", "b"]
    proxy.files["b"].add(PREVIEW)
    await proxy.servers["a"].close()
    assert (await proxy.ask(PREVIEW))[1] == b"of b"
    backend = proxy.fleet.get("a")
    assert backend is not None
    assert not backend.health.healthy


async def test_where_all_are_dead_they_have_failed(proxy: Proxy) -> None:
    proxy.catalogs.holders = ["a"]
    await proxy.servers["a"].close()
    assert (await proxy.ask(PREVIEW))[0].status == 502


@pytest.mark.parametrize("path", ["/experiment/models/preview/loras/x/y.webp", "/view_metadata/loras"])
async def test_what_makes_no_sense_is_the_home_backends_to_refuse(proxy: Proxy, path: str) -> None:
    assert (await proxy.ask(path))[1] == b"not at a"
    assert proxy.catalogs.asked == []


@pytest.mark.parametrize("path", [PREVIEW, METADATA])
async def test_a_single_backend_is_asked_straight(path: str) -> None:
    async with proxy_of("a") as proxy:
        assert (await proxy.ask(path))[1] == b"not at a"
        assert proxy.catalogs.asked == []
