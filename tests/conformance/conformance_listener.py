"""A websocket client that keeps all it receives."""

import asyncio
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import aiohttp
from conformance_recording import Frame

WAIT_S = 30.0  # for anything that a server is to do; it only ever passes where the server does not do it
QUIET_S = 0.15  # a client that heard nothing for so long after the end of its prompt will not hear more

_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_FOLDERS = re.compile(r"(?<![\w:/])(?:/[\w.-]+)+/")


class ScenarioBrokenError(Exception):
    """The server did something after which a scenario cannot go on."""


def decoded(text: str | bytes) -> Any:
    """Decode JSON, and take the folders of the server's machine out of error messages."""
    return json.loads(text, object_hook=_without_folders)


def _without_folders(data: dict[str, Any]) -> dict[str, Any]:
    message = data.get("exception_message")
    if isinstance(message, str):
        data["exception_message"] = _FOLDERS.sub("<path>/", message)
    return data


class Listener:
    """One open websocket, and the frames it has received."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.frames: list[Frame] = []
        self._socket = socket
        self._closed = False
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="conformance listener")

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                said = decoded(message.data)
                self.frames.append({"text": said.get("type"), "data": said.get("data")})
            elif message.type is aiohttp.WSMsgType.BINARY:
                self.frames.append(_binary(message.data))
            self._news.set()
        self._closed = True
        self._news.set()

    async def send(self, message: dict[str, Any]) -> None:
        await self._socket.send_json(message)

    async def close(self) -> None:
        await self._socket.close()
        await self._reader

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something is true of the frames. Raises ScenarioBrokenError if the socket closes before."""
        async with asyncio.timeout(WAIT_S):
            while not happened():
                if self._closed:
                    raise ScenarioBrokenError("the server closed the websocket")
                self._news.clear()
                await self._news.wait()

    async def until_event(self, event: str) -> None:
        await self.until(lambda: any(frame.get("text") == event for frame in self.frames))

    async def until_left(self, prompt_id: str) -> None:
        """Wait until the server says that a prompt has left the executor."""
        await self.until(lambda: self._has_left(prompt_id))

    async def until_steps(self, prompt_id: str, more: int) -> None:
        """Wait until a prompt has told of some more steps. Raises ScenarioBrokenError if it ends instead."""
        enough = self._steps(prompt_id) + more
        await self.until(lambda: self._steps(prompt_id) >= enough or self._has_left(prompt_id))
        if self._has_left(prompt_id):
            raise ScenarioBrokenError("a prompt ended that was to go on")

    async def until_over(self, prompt_id: str) -> None:
        """Wait until a prompt has left the executor, and nothing more is said of it."""
        await self.until_left(prompt_id)
        await self.until_quiet()

    async def until_quiet(self) -> None:
        """Wait until nothing has been received for a while."""
        async with asyncio.timeout(WAIT_S):
            while not self._closed:
                self._news.clear()
                try:
                    async with asyncio.timeout(QUIET_S):
                        await self._news.wait()
                except TimeoutError:
                    return

    def ends(self) -> list[Frame]:
        """Return the frames that say how prompts ended."""
        return [frame for frame in self.frames if frame.get("text") in _ENDS]

    def _steps(self, prompt_id: str) -> int:
        steps = [frame["data"] for frame in self.frames if frame.get("text") == "progress"]
        return sum(data.get("prompt_id") == prompt_id for data in steps)

    def _has_left(self, prompt_id: str) -> bool:
        told = [frame["data"] for frame in self.frames if frame.get("text") == "executing"]
        return any(data.get("node") is None and data.get("prompt_id") == prompt_id for data in told)


def _binary(data: bytes) -> Frame:
    (kind,) = struct.unpack_from(">I", data)
    frame: Frame = {"binary": kind, "bytes": len(data)}
    if kind == 1:
        (frame["image_type"],) = struct.unpack_from(">I", data, 4)
    elif kind == 4:
        (length,) = struct.unpack_from(">I", data, 4)
        frame["metadata"] = json.loads(data[8 : 8 + length])
    return frame
