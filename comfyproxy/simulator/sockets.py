"""The websockets of a simulated server: who is connected, and what is sent to whom.

One publisher sends everything in order, to one socket after the other, as ComfyUI's `publish_loop` does.
Source: ComfyUI 0.25.0, `server.py` (`websocket_handler`, `send`, `send_sync`).
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiohttp import ClientError, WSMsgType, web
from PIL import Image, ImageOps

from ..core import frames
from .faults import Faults, cut

_SMALL = 128 * 128  # pixels; anything larger is compressed off the event loop
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png"}
_FORMAT = {"JPEG": frames.ImageFormat.JPEG, "PNG": frames.ImageFormat.PNG}


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture on its way to a client: `JPEG` or `PNG`, scaled to fit `max_size` pixels unless that is None."""

    kind: str
    image: Image.Image
    max_size: int | None


@dataclass(frozen=True, slots=True)
class _Letter:
    sid: str | None  # None: everybody
    event: str
    data: Any
    preview: Preview | None = None
    metadata: dict[str, Any] | None = None
    frame: bytes | None = None


class Sockets:
    """The registry of sockets by client id, and the queue of what is to be sent.

    It holds one socket per client id. A second one takes the first one's place, and whichever handler ends first
    takes the entry away, whoever's it is by then: the deaf link.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._flags: dict[str, dict[str, Any]] = {}
        self._connections: set[asyncio.Transport] = set()
        self._outbox: asyncio.Queue[_Letter] = asyncio.Queue()

    def __contains__(self, sid: str) -> bool:
        return sid in self._sockets

    def __len__(self) -> int:
        return len(self._sockets)

    def supports(self, sid: str | None, feature: str) -> bool:
        """Whether a client said that it supports a feature."""
        return sid is not None and self._flags.get(sid, {}).get(feature) is True

    def send(self, event: str, data: Any, sid: str | None = None) -> None:
        """Queue a message for one client, or for all; it is dropped if the client is not there when its turn comes."""
        self._outbox.put_nowait(_Letter(sid, event, data))

    def send_preview(self, preview: Preview, sid: str | None, metadata: dict[str, Any] | None = None) -> None:
        """Queue a picture; `metadata` makes it the newer kind of frame."""
        self._outbox.put_nowait(_Letter(sid, "", None, preview, metadata))

    def send_text(self, node_id: str, message: str, sid: str | None = None) -> None:
        """Queue a text frame."""
        self._outbox.put_nowait(_Letter(sid, "", None, frame=frames.text(node_id, message)))

    async def publish(self) -> None:
        """Send what is queued, for ever."""
        while True:
            letter = await self._outbox.get()
            await self._faults.gate()
            if letter.preview is not None:
                await self._send_bytes(await _encoded(letter.preview, letter.metadata), letter.sid)
            elif letter.frame is not None:
                await self._send_bytes(letter.frame, letter.sid)
            else:
                await self._send_json(letter.event, letter.data, letter.sid)

    async def serve(
        self,
        request: web.Request,
        greet: Callable[[str], list[tuple[str, Any]]],
        features: Callable[[], dict[str, Any]],
    ) -> web.WebSocketResponse:
        """Serve one websocket until it closes; `greet` tells what a client id hears first."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        transport = request.transport
        if transport is not None:
            self._connections.add(transport)
        sid = request.rel_url.query.get("clientId", "")
        if sid:
            self._sockets.pop(sid, None)
        else:
            sid = uuid.uuid4().hex
        self._sockets[sid] = socket
        self._flags[sid] = {}
        try:
            for event, data in greet(sid):
                await self._send_json(event, data, sid)
            first = True
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    continue
                try:
                    said = json.loads(message.data)
                except json.JSONDecodeError:
                    continue
                if not isinstance(said, dict):
                    continue
                if first and said.get("type") == "feature_flags":
                    flags = said.get("data", {})
                    self._flags[sid] = flags if isinstance(flags, dict) else {}
                    await self._send_json("feature_flags", features(), sid)
                first = False
        finally:
            self._sockets.pop(sid, None)
            self._flags.pop(sid, None)
            if transport is not None:
                self._connections.discard(transport)
        return socket

    def cut_all(self) -> None:
        """Reset the connection of every socket."""
        for transport in list(self._connections):
            cut(transport)

    def close_all(self) -> None:
        """Close the connection of every socket without a close frame, as the end of ComfyUI's process does."""
        for transport in list(self._connections):
            transport.close()

    def pause(self, paused: bool) -> None:
        """Stop reading what clients send, or go on; not even a ping is answered meanwhile."""
        for transport in self._connections:
            if transport.is_closing():
                continue
            if paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _targets(self, sid: str | None) -> list[web.WebSocketResponse]:
        if sid is None:
            return list(self._sockets.values())
        return [self._sockets[sid]] if sid in self._sockets else []

    async def _send_json(self, event: str, data: Any, sid: str | None) -> None:
        targets = self._targets(sid)
        if targets:
            text = json.dumps({"type": event, "data": data})
            for socket in targets:
                await _unless_gone(socket.send_str(text))

    async def _send_bytes(self, frame: bytes, sid: str | None) -> None:
        for socket in self._targets(sid):
            await _unless_gone(socket.send_bytes(frame))


async def _unless_gone(sending: Awaitable[None]) -> None:
    try:
        await sending
    except (ClientError, ConnectionError):
        return  # its handler is about to notice, too


async def _encoded(preview: Preview, metadata: dict[str, Any] | None) -> bytes:
    image = preview.image
    size = image.size if preview.max_size is None else (preview.max_size, preview.max_size)
    if size[0] * size[1] <= _SMALL:
        data = _compressed(preview)
    else:
        data = await asyncio.to_thread(_compressed, preview)
    if metadata is None:
        return frames.preview(_FORMAT[preview.kind], data)
    return frames.preview_with_metadata({**metadata, "image_type": _MIME[preview.kind]}, data)


def _compressed(preview: Preview) -> bytes:
    image = preview.image
    if preview.max_size is not None:
        image = ImageOps.contain(image, (preview.max_size, preview.max_size), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    image.save(buffer, format=preview.kind, quality=95, compress_level=1)
    return buffer.getvalue()
