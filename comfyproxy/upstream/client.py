"""What the proxy asks of one backend over HTTP."""

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

import aiohttp

from comfyproxy.core.errors import DeliveryUnknown
from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream import answers, passthrough, sockets
from comfyproxy.upstream.answers import Answer, QueueView, Verdict
from comfyproxy.upstream.files import FileCalls
from comfyproxy.upstream.wire import Wire

# A gateway's own words: what became of the request behind it, it does not know either.
_GATEWAY_FAILED = (502, 503, 504)


class BackendClient(FileCalls):
    """One ComfyUI server, by its HTTP API.

    Every method raises an UpstreamError: NotDelivered (ConnectionRefused if nothing listens there), DeliveryUnknown,
    or BadAnswer where ComfyUI would not answer so.
    """

    def __init__(
        self,
        backend: BackendId,
        url: str,
        session: aiohttp.ClientSession,
        *,
        timeout_s: float,
        submit_timeout_s: float = 60.0,
        answer_timeout_s: float = 30.0,
    ) -> None:
        """Take the address of a server; nothing is sent yet.

        Args:
            url: http or https, perhaps with a path in front of ComfyUI's own.
            session: from `open_session`.
            timeout_s: for a connection to stand, and for a whole probe.
            submit_timeout_s: for POST /prompt and the list of nodes; a server whose Python is busy needs it.
            answer_timeout_s: for other answers, and for the longest pause within large ones and files.

        Raises ValueError if `url` is no address.
        """
        wire = Wire(backend, url, session)
        super().__init__(wire, connect_timeout_s=timeout_s, idle_timeout_s=max(answer_timeout_s, submit_timeout_s))
        self.backend, self.base_url = backend, wire.base
        self._submit_timeout_s, self._answer_timeout_s = submit_timeout_s, answer_timeout_s
        self.wait_for(timeout_s)

    def wait_for(self, timeout_s: float) -> None:
        """Let another timeout hold for requests from now on: for a connection to stand, and for a whole probe."""
        submit_timeout_s, answer_timeout_s = self._submit_timeout_s, self._answer_timeout_s
        self.connect_within(timeout_s)
        self._connect_timeout_s = timeout_s
        self._for_probe = aiohttp.ClientTimeout(total=timeout_s)
        self._for_submit = aiohttp.ClientTimeout(total=submit_timeout_s, connect=timeout_s)
        self._for_nodes = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=submit_timeout_s)
        self._for_small = aiohttp.ClientTimeout(total=answer_timeout_s, connect=timeout_s)
        self._for_large = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=answer_timeout_s)

    def __repr__(self) -> str:
        return f"<BackendClient {self.backend} {self.base_url}>"

    async def probe(self) -> int:
        """Return how many prompts wait or run there, whoever sent them."""
        answer = await self._wire.exchange("GET", "/prompt", timeout=self._for_probe)
        return answers.queue_remaining(answer.checked())

    async def submit(self, body: bytes) -> Verdict:
        """Send a prompt and return the server's verdict, good or bad.

        After BadAnswer nothing is known, as after DeliveryUnknown.
        """
        answer = await self._wire.exchange("POST", "/prompt", body=body, timeout=self._for_submit)
        if answer.status in _GATEWAY_FAILED:
            raise DeliveryUnknown(str(answer.bad(f"a gateway answered {answer.status}")))
        if answer.status < 400 and answer.status != 200:
            raise answer.bad(f"status {answer.status}")
        return answers.verdict(answer)

    async def queue(self) -> QueueView:
        """Return what runs and waits there."""
        answer = await self._wire.exchange("GET", "/queue", timeout=self._for_large)
        return answers.queue_view(answer.checked())

    async def history_entry(self, prompt_id: str) -> bytes | None:
        """Return a prompt's history entry as raw JSON; None if it is unknown, waiting or running."""
        path = f"/history/{quote(prompt_id, safe='')}"
        answer = await self._wire.exchange("GET", path, timeout=self._for_large)
        return answers.history_entry(answer.checked(), prompt_id)

    async def history_marks(self, *, max_items: int) -> dict[str, str]:
        """Return the ids of the last prompts that have ended here, by the ids that the proxy knows them by."""
        answer = await self._wire.exchange("GET", f"/history?max_items={max_items}", timeout=self._for_large)
        return answers.history_marks(answer.checked())

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        """Take waiting prompts out of the queue; those that run or are unknown are left alone."""
        if prompt_ids:
            await self._command("/queue", {"delete": list(prompt_ids)})

    async def interrupt(self, prompt_id: str | None) -> None:
        """Stop a prompt if it is the one that runs; with None, whichever runs."""
        await self._command("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    async def free(self, body: bytes) -> None:
        """Pass the JSON body of a POST /free on."""
        answer = await self._wire.exchange("POST", "/free", body=body.strip() or b"{}", timeout=self._for_small)
        answer.checked()

    async def features(self) -> dict[str, Any]:
        """Return what the server says of itself; nothing if it is too old to say."""
        answer = await self._wire.exchange("GET", "/features", timeout=self._for_small)
        if answer.status in (404, 405):
            return {}
        return answers.json_object(answer.checked())

    async def system_stats(self) -> dict[str, Any]:
        """Return versions, memory and devices."""
        answer = await self._wire.exchange("GET", "/system_stats", timeout=self._for_small)
        return answers.json_object(answer.checked())

    async def object_info(self) -> bytes:
        """Return all node classes as raw JSON; tens of megabytes on a server with many models."""
        answer = await self._wire.exchange("GET", "/object_info", timeout=self._for_nodes)
        return answers.raw_object(answer.checked())

    async def get(self, path: str) -> Answer:
        """Return whatever the server answers to a GET of an encoded path, be it as long as the list of all nodes."""
        return await self._wire.exchange("GET", path, timeout=self._for_nodes)

    def request(
        self,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str],
        data: AsyncIterable[bytes] | None,
        idle_timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass a request on: see `passthrough.pass_on`. The stream `data` is closed in the end."""
        return passthrough.pass_on(
            self._wire,
            method,
            path_qs,
            headers=headers,
            data=data,
            connect_timeout_s=self._connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
        )

    def websocket(
        self, path_qs: str, *, headers: Mapping[str, str], protocols: Sequence[str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        """Open a websocket for a client: see `sockets.open_websocket`."""
        return sockets.open_websocket(
            self._wire, path_qs, headers=headers, protocols=protocols, timeout_s=self._connect_timeout_s
        )

    async def _command(self, path: str, body: dict[str, Any]) -> None:
        answer = await self._wire.exchange("POST", path, body=json.dumps(body).encode(), timeout=self._for_small)
        answer.checked()
