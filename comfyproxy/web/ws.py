"""GET /ws: one client's websocket, as ComfyUI speaks it (0.25.0, `server.py`, `websocket_handler`)."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web

from comfyproxy.core import messages
from comfyproxy.core.errors import SocketsFull
from comfyproxy.service.hub import ClientHub
from comfyproxy.service.outbox import ClientSession, Close

log = logging.getLogger(__name__)

# aiohttp's default and so ComfyUI's: a client that sends more at once is dropped.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# So many heartbeats without a sign of life and the client is dead.
_SILENT_BEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What the handler needs of the proxy."""

    hub: ClientHub
    queue_remaining: Callable[[], int]  # over the whole fleet: a 0 tells some clients that their prompt is done
    features: Callable[[], dict[str, Any]]  # what we answer to a client's feature flags
    running_node: Callable[[str], str | None]  # the node that the client's running job is at
    max_sockets: int = 20_000
    heartbeat_s: float = 25.0
    close_grace_s: float = 5.0  # what a client has to read the rest before it is cut off

    def status(self, sid: str) -> str:
        """Return the first message of a socket, from which the web page learns its client id."""
        return messages.status(self.queue_remaining(), sid=sid)


LIVE = web.AppKey("live", Live)


async def websocket_handler(request: web.Request) -> web.WebSocketResponse:
    """GET /ws: greet the client, tell it what it missed, and then its events until one side goes."""
    live = request.app[LIVE]
    if live.hub.connected >= live.max_sockets:
        raise SocketsFull("Too many websockets are open", details=f"{live.max_sockets} may be")
    # Pings are ours to answer: aiohttp's heartbeat takes a client for dead whose pong is late because it is still
    # reading the images that were sent before the ping.
    ws = web.WebSocketResponse(autoping=False, max_msg_size=MAX_MESSAGE_BYTES)
    await ws.prepare(request)
    transport = request.transport
    if transport is None:  # gone while we answered
        return ws
    session = live.hub.open(request.query.get("clientId"), running_node=live.running_node)
    try:
        try:
            await _Conversation(live, ws, transport, session).run()
        finally:
            live.hub.close(session)
        await _flush(request, transport, live.close_grace_s)
    except BaseException:
        # Also when the server cancels us: a plain close would wait for a client that does not read, for ever.
        transport.abort()
        raise
    return ws


async def _flush(request: web.Request, transport: asyncio.Transport, grace_s: float) -> None:
    """Wait until the last of what was written has left; cut the client off if it takes too long."""
    if transport.is_closing():
        return
    transport.set_write_buffer_limits(high=0)  # `drain` now means: all of it
    try:
        async with asyncio.timeout(grace_s):
            await request.writer.drain()
    except (TimeoutError, ConnectionError):
        transport.abort()


class _Conversation:
    """One socket from the greeting to the end: a reader, a writer, and a guard that ends what hangs."""

    def __init__(
        self, live: Live, ws: web.WebSocketResponse, transport: asyncio.Transport, session: ClientSession
    ) -> None:
        self._live, self._ws, self._transport, self._session = live, ws, transport, session
        self._heard = 0  # messages of the client, pongs among them
        self._sent = 0

    async def run(self) -> None:
        """Talk until the client goes, or the hub closes the session."""
        client_id = self._session.client_id
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(), name=f"websocket writer of {client_id}")
            guard = tasks.create_task(self._guard(), name=f"websocket guard of {client_id}")
            await self._read()
            if self._session.closing.is_set():
                await asyncio.wait([writer])  # it is saying goodbye; the guard sees to it that this ends
            writer.cancel()
            guard.cancel()

    async def _write(self) -> None:
        session, ws = self._session, self._ws
        try:
            # Only the first status names the sid. It is not in the outbox, where what was missed stands already.
            await ws.send_str(self._live.status(session.client_id))
            while not isinstance(item := await session.get(), Close):
                if isinstance(item, str):
                    await ws.send_str(item)
                else:
                    await ws.send_bytes(item)
                self._sent += 1
            await ws.close(code=item.code, message=item.reason.encode(), drain=False)
        except ConnectionError:
            pass  # the reader sees it, too, and ends the conversation

    async def _read(self) -> None:
        awaits_flags = True
        try:
            async for message in self._ws:
                self._heard += 1
                if message.type is WSMsgType.PING:
                    await self._ws.pong(message.data)
                elif message.type is WSMsgType.TEXT and awaits_flags:
                    awaits_flags = not self._first(message.data)
        except ConnectionError:
            pass  # gone while we answered its ping

    def _first(self, text: str) -> bool:
        """Take the client's first message, its feature flags if it has any; False if it was none (not an object)."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            log.debug("client %s sent something that is not JSON", self._session.client_id)
            return False
        if not isinstance(message, dict):
            return False
        if message.get("type") == "feature_flags":
            flags = message.get("data")
            self._session.flags = flags if isinstance(flags, dict) else {}
            self._live.hub.send(self._session, messages.encode("feature_flags", self._live.features()))
        return True

    async def _guard(self) -> None:
        """Ping the client, and cut it off when it is dead, or does not let a closed session go."""
        silent_beats, before = 0, self._progress()
        while not self._session.closing.is_set():
            try:
                async with asyncio.timeout(self._live.heartbeat_s):
                    await self._session.closing.wait()
            except TimeoutError:
                now = self._progress()
                silent_beats = silent_beats + 1 if now == before else 0
                if silent_beats >= _SILENT_BEATS:
                    log.info("client %s gives no sign of life: its socket is cut off", self._session.client_id)
                    self._transport.abort()
                    return
                before = now
                # While bytes wait, whether they leave tells as much as a pong, and a ping would stand behind them.
                if not self._transport.get_write_buffer_size():
                    await self._ping()
        await asyncio.sleep(self._live.close_grace_s)
        self._transport.abort()

    def _progress(self) -> tuple[int, int, int]:
        """Return what differs from beat to beat while the client lives.

        Messages sent count only while some wait: into an empty buffer one can write to a dead client, too.
        """
        waiting = self._transport.get_write_buffer_size()
        return self._heard, waiting, self._sent if waiting else 0

    async def _ping(self) -> None:
        with suppress(ConnectionError):  # the reader sees it, too
            await self._ws.ping()
