"""Clients on real sockets, and servers that answer what no ComfyUI would."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream import BackendClient, open_session

PROMPT_ID = "12345678-1234-1234-1234-123456789abc"


@asynccontextmanager
async def client_of(url: str, *, timeout_s: float = 5.0, **timeouts: float) -> AsyncIterator[BackendClient]:
    """Give a client with a session of its own, and see in the end that it holds no connection any more."""
    async with open_session() as session:
        yield BackendClient(BackendId("gpu"), url, session, timeout_s=timeout_s, **timeouts)
        await until_whole(session)


async def until_whole(session: aiohttp.ClientSession) -> None:
    """Wait for the writers that were just cancelled; then no connection may be in use."""
    connector = session.connector
    assert connector is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert not connector._acquired


def session_of(client: BackendClient) -> aiohttp.ClientSession:
    return client._wire.session


def idle_connections(client: BackendClient) -> int:
    connector = session_of(client).connector
    assert connector is not None
    return sum(len(pooled) for pooled in connector._conns.values())


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Run an application as ComfyUI runs its own, and give its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(
    path: str, answer: Callable[[web.Request], Any] | web.Response, *, method: str = "*"
) -> AsyncIterator[str]:
    """Serve one path with a handler, or with one answer."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if isinstance(answer, web.Response):  # one object can be sent only once
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        result: web.StreamResponse = await answer(request)
        return result

    app = web.Application(client_max_size=2**40)
    app.router.add_route(method, path, handler)
    async with serving(app) as url:
        yield url


def json_text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, content_type="application/json", status=status)


class Cut(bytes):
    """A reply after which the connection is closed."""


@dataclass
class RawServer:
    """A server made of bytes: what it received, and what it says to each request in turn."""

    replies: list[bytes]
    received: list[bytes] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                if b"transfer-encoding: chunked" in request.lower():
                    request += await reader.readuntil(b"0\r\n\r\n")
                for line in request.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        request += await reader.readexactly(int(line.partition(b":")[2]))
                self.received.append(request)
                reply = self.replies.pop(0)
                writer.write(reply)
                await writer.drain()
                if isinstance(reply, Cut):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            writer.close()


@asynccontextmanager
async def raw_server(*replies: bytes) -> AsyncIterator[RawServer]:
    raw = RawServer(list(replies))
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, limit=2**24)
    host, port = server.sockets[0].getsockname()[:2]
    raw.url = f"http://{host}:{port}"
    try:
        yield raw
    finally:
        server.close()
        await server.wait_closed()


def ok(body: bytes = b"{}", *, headers: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
        headers,
        size,
        body,
    )


LOAD = b'{"exec_info": {"queue_remaining": 3}}'
