"""The one websocket to a backend, through which the events of all its prompts come."""

import asyncio
import json
import logging
from collections.abc import Callable
from urllib.parse import quote

import aiohttp
from aiohttp import WSMsgType
from aiohttp.connector import Connection

from comfyproxy.core.errors import UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream.errors import describe, upstream_errors
from comfyproxy.upstream.wire import Wire

log = logging.getLogger(__name__)

# The first message, and all that the link ever says. Text frames keep their old form, since they are passed on to
# clients, and a client reads them by what the proxy has answered to it.
FEATURE_FLAGS = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
# A frozen server takes every connection, and answers them all once it thaws: then the end of each given-up one makes
# it forget the clientId of the last, which so goes deaf. Long patience makes few of them.
HANDSHAKE_WITHIN_S = 60.0
HEARTBEAT_S = 60.0


class BackendLink:
    """Keeps one websocket to a backend and hands on what it says.

    The callbacks are called one at a time, in the order of what happened, and must not wait. An exception of theirs is
    a bug: it ends `run`.
    """

    def __init__(
        self,
        backend: BackendId,
        url: str,
        session: aiohttp.ClientSession,
        *,
        client_id: str,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None],
        on_connected: Callable[[], None],
        on_disconnected: Callable[[str], None],
        random: Callable[[float, float], float],
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """Take an address; nothing happens before `run`.

        Args:
            client_id: the proxy's own, the same for ever: the events of prompts sent under it come to no other.
            on_connected: the socket stands; events from before are lost.
            on_disconnected: it was lost, and why; called once for each call of `on_connected`, except when `run` ends.
            random: returns a number between two, as `random.uniform` does.
            heartbeat_s: how long the server may be silent before it is pinged; it has half of that to answer.

        Raises ValueError if `url` is no address.
        """
        self._backend = backend
        self._wire = Wire(backend, url, session)
        self._target = self._wire.url(f"/ws?clientId={quote(client_id, safe='')}")
        self._session = session
        self._on_text, self._on_binary = on_text, on_binary
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._random = random
        self._heartbeat_s = heartbeat_s
        self._delay_s = FIRST_DELAY_S
        self._woken = asyncio.Event()
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._dropped_for: str | None = None
        self.last_error: str | None = None

    def __repr__(self) -> str:
        state = "connected" if self.connected else f"not connected: {self.last_error}"
        return f"<BackendLink {self._backend} {state}>"

    @property
    def connected(self) -> bool:
        """Whether the socket stands; one that is deaf stands, too."""
        return self._transport is not None

    def drop(self, reason: str = "") -> None:
        """Break the connection and make another at once: it has gone deaf. Does nothing where there is none."""
        if self._transport is not None and self._dropped_for is None:
            self._dropped_for = reason or "dropped"
            # A close handshake would have to wait for a server that may be frozen.
            self._transport.abort()

    def wake(self) -> None:
        """Try to connect now rather than later: the backend has just been seen to be up."""
        if not self.connected:  # else it would cut the pause after the next loss
            self._woken.set()

    async def run(self) -> None:
        """Be connected, for ever."""
        while True:
            if not await self._live():
                await self._pause()

    async def _live(self) -> bool:
        """Connect, and read until the connection is lost; return whether to connect again without a pause."""
        try:
            socket = await self._connect()
        except UpstreamError as exc:
            if str(exc) != self.last_error:
                log.info("%s: the link cannot be made: %s", self._backend, exc)
            self.last_error = str(exc)
            return False
        begun_s = asyncio.get_running_loop().time()
        try:
            self.last_error = None
            self._woken.clear()
            self._on_connected()
            reason = await self._read(socket)
        finally:
            await self._tear_down(socket)
        was_dropped, self._dropped_for = self._dropped_for is not None, None
        if was_dropped or asyncio.get_running_loop().time() - begun_s >= LONGEST_DELAY_S:
            self._delay_s = FIRST_DELAY_S
        self.last_error = reason
        self._on_disconnected(reason)
        return was_dropped

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Connect and say what we understand. Raises an UpstreamError."""
        with upstream_errors(self._backend):
            async with asyncio.timeout(HANDSHAKE_WITHIN_S):
                socket = await self._session.ws_connect(
                    self._target,
                    heartbeat=self._heartbeat_s,
                    max_msg_size=0,  # nodes send full-size images
                    compress=0,  # pictures do not shrink, and the server's event loop has better things to do
                )
            self._connection = socket._response.connection  # the only way to the transport
            self._transport = self._connection.transport if self._connection is not None else None
            try:
                if self._transport is None:
                    raise aiohttp.ServerDisconnectedError
                await socket.send_str(FEATURE_FLAGS)
            except BaseException:
                await self._tear_down(socket)
                raise
        return socket

    async def _tear_down(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """End the connection for good, so that the server hears of it before it hears of the next one.

        aiohttp would close it in peace: wait for the server's part, which with TLS or a full buffer may never come.
        """
        transport, self._transport = self._transport, None
        connection, self._connection = self._connection, None
        if transport is not None:
            transport.abort()
        await socket.close()  # neither sends nor waits any more; stops the heartbeat
        if connection is not None:
            connection.close()
        await asyncio.sleep(0)  # the transport closes its socket on the loop's next turn

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """Hand on what comes, and return why nothing comes any more."""
        while True:
            message = await socket.receive()
            if self._dropped_for is not None:
                return self._dropped_for
            if message.type is WSMsgType.TEXT:
                self._on_text(message.data)
            elif message.type is WSMsgType.BINARY:
                self._on_binary(message.data)
            elif message.type is WSMsgType.ERROR:
                return describe(message.data)
            elif message.type is WSMsgType.CLOSE:
                return f"closed by the server with code {message.data}"
            else:
                return "the connection broke off"

    async def _pause(self) -> None:
        """Wait before the next attempt, longer each time, unless woken."""
        delay_s = self._random(self._delay_s / 2, self._delay_s)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        try:
            async with asyncio.timeout(delay_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        finally:
            self._woken.clear()
