"""What a scenario asks a server with; it writes down every step."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, Self

import aiohttp
from conformance_listener import WAIT_S, Listener, ScenarioBrokenError, decoded
from conformance_recording import Frame, Step

NEW_PREVIEWS = {"supports_preview_metadata": True}

_POLL_S = 0.02
_LONG_TEXT = 2000  # bytes; a text from there on is kept as its hash
_HEADERS = ("Content-Type", "Content-Disposition", "Content-Range", "Accept-Ranges", "Cache-Control", "Location")


class Stage:
    """One server, as one scenario sees it.

    Attributes:
        steps: what was recorded so far.
    """

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self._base, self._session = base, session
        self.steps: list[Step] = []

    def aside(self) -> Self:
        """Return a stage for what belongs to the server's state and not into the recording."""
        return type(self)(self._base, self._session)

    async def ask(self, method: str, path: str, label: str | None = None, **request: Any) -> Any:
        """Make a request and write the exchange down; return the JSON of the answer, None if it has none."""
        async with self._session.request(method, self._base + path, **request) as response:
            body = await response.read()
        step: Step = {
            "http": label or f"{method} {path}",
            "status": response.status,
            "headers": {name: response.headers[name] for name in _HEADERS if name in response.headers},
        }
        if response.content_type == "application/json":
            step["json"] = decoded(body) if body else None
        elif response.content_type.startswith("text/") and len(body) < _LONG_TEXT:
            step["body_text"] = body.decode(errors="replace")
        else:
            step |= {"body_bytes": len(body), "body_sha256": hashlib.sha256(body).hexdigest()}
        self.steps.append(step)
        return step.get("json")

    async def submit(self, graph: Any, client_id: str | None = None, **more: Any) -> str:
        """Submit a prompt and return its id. Raises ScenarioBrokenError if it is not accepted."""
        body = {"prompt": graph, **more}
        if client_id is not None:
            body["client_id"] = client_id
        answer = await self.ask("POST", "/prompt", json=body)
        prompt_id = answer.get("prompt_id") if isinstance(answer, dict) else None
        if not isinstance(prompt_id, str):
            raise ScenarioBrokenError(f"POST /prompt: {self.steps[-1]['status']} {answer}")
        return prompt_id

    async def settle(self, prompt_id: str) -> None:
        """Wait until the history has a prompt."""
        async with asyncio.timeout(WAIT_S):
            while prompt_id not in await self.aside().ask("GET", f"/history/{prompt_id}"):
                await asyncio.sleep(_POLL_S)

    async def idle(self) -> None:
        """Wait until no prompt waits or runs."""
        async with asyncio.timeout(WAIT_S):
            while (await self.aside().ask("GET", "/prompt"))["exec_info"]["queue_remaining"]:
                await asyncio.sleep(_POLL_S)

    async def upload(self, name: str, data: bytes, path: str = "/upload/image", **fields: str) -> None:
        """Upload a file, as what the form field `image` holds."""
        form = aiohttp.FormData()
        form.add_field("image", BytesIO(data), filename=name, content_type="image/png")
        for field, value in fields.items():
            form.add_field(field, value)
        await self.ask("POST", path, f"POST {path} {name} {sorted(fields)}", data=form)

    @asynccontextmanager
    async def listener(
        self, client_id: str | None = None, flags: Mapping[str, Any] | None = NEW_PREVIEWS
    ) -> AsyncIterator[Listener]:
        """Connect a websocket, and wait until it was greeted and its flags, if any, were answered."""
        query = {} if client_id is None else {"clientId": client_id}
        listener = Listener(await self._session.ws_connect(f"{self._base}/ws", params=query, max_msg_size=0))
        try:
            await listener.until_event("status")
            if flags is not None:
                await listener.send({"type": "feature_flags", "data": flags})
                await listener.until_event("feature_flags")
            yield listener
        finally:
            await listener.close()

    def keep(self, label: str, frames: list[Frame]) -> None:
        """Write down what a websocket has received."""
        self.steps.append({"ws": label, "frames": list(frames)})
