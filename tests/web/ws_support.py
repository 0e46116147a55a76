"""A server with the websocket handler, a hub with small buffers, and clients for it."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from comfyproxy.core.messages import encode
from comfyproxy.service.hub import ClientHub
from comfyproxy.service.mailbox import Mailboxes
from comfyproxy.web.ws import LIVE, Live, websocket_handler

FEATURES = {"supports_preview_metadata": True, "max_upload_size": 104857600}


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
    hub: ClientHub
    counts: Counts
    server: TestServer
    session: aiohttp.ClientSession
    running: dict[str, str]
    handlers: list["asyncio.Task[Any]"] = field(default_factory=list)
    _ended: "asyncio.Queue[None]" = field(default_factory=asyncio.Queue)

    def connect(
        self, client_id: str | None = None, **options: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        query = {} if client_id is None else {"clientId": client_id}
        return self.session.ws_connect(self.server.make_url("/ws").with_query(query), max_msg_size=0, **options)

    def text(self, client_id: str, event: str, data: Any = None) -> None:
        self.hub.deliver_text(client_id, encode(event, data), event=event, prompt_id="p")

    async def ended(self) -> None:
        """Wait until one more handler has ended."""
        async with asyncio.timeout(10):
            await self._ended.get()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.append(task)
        try:
            return await websocket_handler(request)
        finally:
            self._ended.put_nowait(None)


@asynccontextmanager
async def stage_of(
    *, client_buffer: int = 1_000_000, preview_buffer: int = 500_000, heartbeat_s: float = 25.0
) -> AsyncIterator[Stage]:
    counts, running = Counts(), dict[str, str]()
    hub = ClientHub(
        client_buffer=client_buffer,
        preview_buffer=preview_buffer,
        mailbox=Mailboxes(clock=asyncio.get_running_loop().time),
        mint_sid=lambda: uuid.uuid4().hex,
        observer=counts,
    )
    app = web.Application()
    app[LIVE] = Live(
        hub=hub,
        queue_remaining=lambda: 3,
        features=lambda: dict(FEATURES),
        running_node=running.get,
        heartbeat_s=heartbeat_s,
        close_grace_s=0.3,
    )

    def small_socket(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
        # What the system holds for a client that does not read must not hide that it does not.
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        listener.bind((host, port))
        return listener

    server = TestServer(app, socket_factory=small_socket)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        stage = Stage(hub, counts, server, session, running)
        app.router.add_get("/ws", stage.handle)
        await server.start_server()
        try:
            yield stage
        finally:
            hub.close_all()
            await server.close()
            left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("websocket ")]
            assert left == []
            assert hub.connected == 0
