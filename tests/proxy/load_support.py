"""Clients that keep a fleet busy, and an account of all that each of them is told."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import aiohttp
from PIL import Image
from proxying import Fleet, Proxy
from simulator_support import sampling

from comfyproxy.core import frames
from comfyproxy.core.messages import OUTCOMES

_SHADES_APART = 5  # the red of two clients' previews: more than a JPEG loses
_SEED_OF_SHADE = 173  # the sampler paints red `seed * 37 % 256`, and 37 * 173 % 256 is 1


def coloured(color: int, client: int = 0, *, seconds: float = 0.0) -> dict[str, Any]:
    """Save a picture of one colour under a name that all share, after a step whose preview tells the client."""
    seed = client * _SHADES_APART * _SEED_OF_SHADE % 256
    sampling = {"image": ["1", 0], "seed": seed, "steps": 1, "seconds": seconds, "preview": True, "fail_at": 0}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "same", "images": ["1", 0]}},
        "3": {"class_type": "ConformanceSampler", "inputs": sampling},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def ceaseless(seed: int = 1) -> dict[str, Any]:
    """A prompt that outlasts any test, on servers of twenty times the nominal speed, too; to be interrupted."""
    return sampling(seed, steps=800, seconds=800)


async def running(proxy: Proxy, *prompt_ids: str) -> None:
    """Wait until all of these prompts run."""
    async with asyncio.timeout(10):
        while not set(prompt_ids) <= set((await proxy.queue())[0]):
            await asyncio.sleep(0.01)


async def interrupted(proxy: Proxy, *prompt_ids: str) -> None:
    """Let these prompts begin, interrupt them, and wait for their end, one after the other."""
    for prompt_id in prompt_ids:
        await running(proxy, prompt_id)
        await proxy.post("/interrupt", {"prompt_id": prompt_id})
        await proxy.ended(prompt_id)


def pixel_of(picture: bytes) -> tuple[int, int, int]:
    """Return the colour in a picture's corner."""
    with Image.open(BytesIO(picture)) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    return red, green, blue


def color_of(picture: bytes) -> int:
    """Return the colour in a picture's corner as EmptyImage takes it."""
    red, green, blue = pixel_of(picture)
    return red << 16 | green << 8 | blue


def client_of_preview(frame: bytes) -> int:
    """Return which client's sampler painted a preview, in either form."""
    has_metadata = frames.kind(frame) == frames.FrameKind.PREVIEW_WITH_METADATA
    image = frames.split_metadata(frame)[1] if has_metadata else frame[8:]
    return round(pixel_of(image)[0] / _SHADES_APART)


def view_of(file: dict[str, str]) -> str:
    """Return the address of an output as a history entry names it."""
    return f"/view?filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"


class Listener:
    """One socket and all that it receives; waits without looking through it again and again."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self.messages: list[dict[str, Any]] = []
        self.previews: list[bytes] = []
        self._ended: dict[str, asyncio.Event] = {}
        self._task = asyncio.create_task(self._read(), name="listener")

    async def until_done(self, prompt_id: str) -> None:
        """Wait until a prompt is said to have left the executor."""
        await self._end_of(prompt_id).wait()

    async def until_told(self, event: str, times: int) -> None:
        """Wait until an event has come so many times."""
        while sum(message["type"] == event for message in self.messages) < times:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Close the socket; raise what the reading failed of."""
        await self._ws.close()
        await self._task

    async def _read(self) -> None:
        async for received in self._ws:
            if received.type is aiohttp.WSMsgType.BINARY:
                self.previews.append(received.data)
                continue
            message = json.loads(received.data)
            self.messages.append(message)
            if is_end(message):
                self._end_of(message["data"]["prompt_id"]).set()

    def _end_of(self, prompt_id: str) -> asyncio.Event:
        return self._ended.setdefault(prompt_id, asyncio.Event())


def is_end(message: dict[str, Any]) -> bool:
    """Whether a message says that a prompt has left the executor."""
    return message["type"] == "executing" and message["data"]["node"] is None


@dataclass
class Busy:
    """One client with its socket."""

    proxy: Proxy
    number: int
    listener: Listener
    seconds: float  # what each of its prompts takes, at nominal speed
    colors: dict[str, int] = field(default_factory=dict)  # by prompt id
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # what they saved, by prompt id

    @property
    def client_id(self) -> str:
        return f"client {self.number}"

    async def one_by_one(self, colors: Iterable[int]) -> None:
        """Ask for a picture when the one before is there."""
        for color in colors:
            await self._result(await self._submit(color))

    async def all_at_once(self, colors: Iterable[int]) -> None:
        """Ask for all pictures, and then look at them."""
        for prompt_id in [await self._submit(color) for color in colors]:
            await self._result(prompt_id)

    async def _submit(self, color: int) -> str:
        prompt_id = await self.proxy.submit(self._graph(color), self.client_id)
        self.colors[prompt_id] = color
        return prompt_id

    async def _result(self, prompt_id: str) -> None:
        """Wait until the end of a prompt is told. Its history entry and its picture must be there then, and right."""
        await self.listener.until_done(prompt_id)
        entry = (await self.proxy.get(f"/history/{prompt_id}"))[prompt_id]
        self.files[prompt_id] = self.checked(prompt_id, entry)
        assert color_of(await self.proxy.get(view_of(self.files[prompt_id]))) == self.colors[prompt_id]

    def _graph(self, color: int) -> dict[str, Any]:
        return coloured(color, self.number, seconds=self.seconds)

    def checked(self, prompt_id: str, entry: dict[str, Any]) -> dict[str, str]:
        """Return the file that a history entry names; it must be the entry of what was asked for."""
        _, its_id, graph, extra_data, outputs = entry["prompt"]
        assert its_id == prompt_id
        assert graph == self._graph(self.colors[prompt_id])
        assert extra_data["client_id"] == self.client_id
        assert sorted(outputs) == sorted(entry["outputs"]) == ["2", "4"]
        assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("success", True)
        (file,) = entry["outputs"]["2"]["images"]
        assert isinstance(file, dict)
        return file

    def check_events(self) -> None:
        """It must have heard of all its prompts and of no others, of each one that it began, and one end."""
        told = [message for message in self.listener.messages if "prompt_id" in message["data"]]
        assert {message["data"]["prompt_id"] for message in told} == set(self.colors)
        once = Counter(list(self.colors))
        for kind in ("execution_start", "execution_success"):
            assert Counter(m["data"]["prompt_id"] for m in told if m["type"] == kind) == once
        assert Counter(m["data"]["prompt_id"] for m in told if m["type"] in OUTCOMES) == once
        assert Counter(m["data"]["prompt_id"] for m in told if is_end(m)) == once
        assert [client_of_preview(frame) for frame in self.listener.previews] == [self.number] * len(self.colors)


@asynccontextmanager
async def crowd(proxy: Proxy, count: int, *, seconds: float) -> AsyncIterator[list[Busy]]:
    """Connect so many clients; every other one takes previews in the newer form.

    Args:
        seconds: what each of their prompts takes, at nominal speed.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        clients = []
        for number in range(count):
            ws = await session.ws_connect(f"{proxy.url}/ws", params={"clientId": f"client {number}"}, max_msg_size=0)
            await ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": number % 2 == 0}})
            clients.append(Busy(proxy, number, Listener(ws), seconds))
        try:
            for client in clients:
                await client.listener.until_told("feature_flags", 1)
            yield clients
        finally:
            for client in clients:
                await client.listener.close()


async def all_is_told(clients: list[Busy], fleet: Fleet) -> None:
    """Wait until all that the backends have sent has arrived; nothing may run."""
    for backend in fleet.backends.values():
        backend.emit("the.end", {})  # comes behind all else, and goes to everybody
    for client in clients:
        await client.listener.until_told("the.end", len(fleet.backends))
