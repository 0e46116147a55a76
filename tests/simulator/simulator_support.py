"""A client for the simulator's tests, and the graphs they submit."""

import asyncio
import json
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
from PIL import Image

Frame = dict[str, Any]


class Socket:
    """One websocket, and all it received: texts as they are, binary ones as `{"type": "binary", "data": bytes}`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[Frame] = []
        self.closed_with: aiohttp.WSMsgType | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(), name="test socket")

    async def _read(self) -> None:
        while True:
            message = await self.ws.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                self.frames.append(json.loads(message.data))
            elif message.type is aiohttp.WSMsgType.BINARY:
                self.frames.append({"type": "binary", "data": message.data})
            else:
                self.closed_with = message.type
            self._changed.set()
            if self.closed_with is not None:
                return

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Wait until there is such a frame, and return it."""
        async with asyncio.timeout(10):
            while True:
                for frame in self.frames:
                    if wanted(frame):
                        return frame
                self._changed.clear()
                await self._changed.wait()

    async def until_done(self, prompt_id: str) -> None:
        """Wait until the server says that a prompt has left the executor."""
        await self.until(
            lambda f: f["type"] == "executing" and f["data"]["node"] is None and f["data"].get("prompt_id") == prompt_id
        )

    async def until_event(self, event: str) -> Frame:
        return await self.until(lambda f: f["type"] == event)

    async def ended(self) -> aiohttp.WSMsgType:
        """Wait until the connection has ended, and return how."""
        async with asyncio.timeout(10):
            await asyncio.shield(self._task)
        assert self.closed_with is not None
        return self.closed_with

    def data(self, event: str) -> list[Any]:
        """Return the data of all frames of a kind."""
        return [frame["data"] for frame in self.frames if frame["type"] == event]

    def names(self) -> list[str]:
        """Return the kinds of all frames, less the statuses and progress states."""
        return [f["type"] for f in self.frames if f["type"] not in ("status", "progress_state")]

    async def close(self) -> None:
        await self.ws.close()
        self._task.cancel()


class Served(Protocol):
    """Whatever speaks ComfyUI's API."""

    @property
    def url(self) -> str: ...


class Client:
    """Talks to one server."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        self._sockets: list[Socket] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket in self._sockets:
            await socket.close()
        await self.session.close()

    async def call(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Make a request; return its status, and its JSON or bytes."""
        async with self.session.request(method, self.server.url + path, **kwargs) as response:
            body = await response.read()
        if response.content_type == "application/json" and body:
            return response.status, json.loads(body)
        return response.status, body

    async def get(self, path: str, **kwargs: Any) -> Any:
        """Return the JSON or bytes of a GET that must succeed."""
        status, body = await self.call("GET", path, **kwargs)
        assert status == 200, (status, body)
        return body

    async def post(self, path: str, json: Any = None, **kwargs: Any) -> tuple[int, Any]:
        return await self.call("POST", path, json=json, **kwargs)

    async def socket(self, client_id: str | None, flags: dict[str, Any] | None = None) -> Socket:
        """Connect a websocket, and wait for the greeting."""
        query = {"clientId": client_id} if client_id else {}
        socket = Socket(await self.session.ws_connect(f"{self.server.url}/ws", params=query, max_msg_size=0))
        self._sockets.append(socket)
        await socket.until_event("status")
        if flags is not None:
            await socket.ws.send_json({"type": "feature_flags", "data": flags})
            await socket.until_event("feature_flags")
        return socket

    async def submit(self, graph: Any, client_id: str | None = None, **more: Any) -> str:
        """Submit a prompt that must be accepted; return its id."""
        body = {"prompt": graph, **more} | ({"client_id": client_id} if client_id else {})
        status, answer = await self.post("/prompt", body)
        assert status == 200, answer
        prompt_id: str = answer["prompt_id"]
        return prompt_id

    async def run(self, graph: Any, **more: Any) -> dict[str, Any]:
        """Run a prompt to its end, whatever that is; return its history entry."""
        socket = await self.socket("runner")
        prompt_id = await self.submit(graph, "runner", **more)
        await socket.until_done(prompt_id)
        await socket.close()
        entry: dict[str, Any] = (await self.get(f"/history/{prompt_id}"))[prompt_id]
        return entry


def sampling(seed: int = 1, steps: int = 2, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    """EmptyImage, ConformanceSampler, PreviewImage."""
    inputs = {"image": ["1", 0], "seed": seed, "steps": steps, "seconds": seconds, "preview": False, "fail_at": 0}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "ConformanceSampler", "inputs": {**inputs, **more}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def endless(seed: int = 1) -> dict[str, Any]:
    """A prompt that takes longer than a test, in steps that are just not too fast to be told."""
    return sampling(seed, steps=400, seconds=20)


def text(words: str = "hello") -> dict[str, Any]:
    """The smallest prompt there is."""
    return {"1": {"class_type": "ConformanceText", "inputs": {"text": words}}}


def txt2img(checkpoint: str = "a.safetensors", seed: int = 1, steps: int = 4, **size: int) -> dict[str, Any]:
    """The stock text-to-image workflow."""
    sampler = {"seed": seed, "steps": steps, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    latent = {"width": 64, "height": 64, "batch_size": 1, **size}
    return {
        "3": {"class_type": "KSampler", "inputs": {**sampler, **links}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "5": {"class_type": "EmptyLatentImage", "inputs": latent},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    }


def png(width: int = 8, height: int = 8, color: tuple[int, ...] = (10, 20, 30)) -> bytes:
    """A small picture; four values of colour make it one with an alpha channel."""
    buffer = BytesIO()
    Image.new("RGB" if len(color) == 3 else "RGBA", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def upload(name: str, data: bytes, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", BytesIO(data), filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    return form
