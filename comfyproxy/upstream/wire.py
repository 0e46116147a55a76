"""Requests to one backend: whole ones for its API, streams for everything else."""

import io
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from comfyproxy.core.errors import DeliveryUnknown
from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream.answers import Answer
from comfyproxy.upstream.errors import SAFE_METHODS, Attempt, describe, upstream_errors
from comfyproxy.upstream.feed import Feed

_SMALL_BYTES = 64 * 1024
# Compressing costs a Python server more than it saves on the way; a reverse proxy may do it all the same.
PLAIN = {"Accept-Encoding": "identity", "User-Agent": "comfyproxy"}


class Wire:
    """One backend's address, and how to send to it."""

    def __init__(self, backend: BackendId, url: str, session: aiohttp.ClientSession) -> None:
        """Take an address, which may have a path in front. Raises ValueError if it is none."""
        self.backend = backend
        parsed = URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{backend}: not an http or https URL: {url}")
        if parsed.raw_query_string or parsed.raw_fragment:
            raise ValueError(f"{backend}: a query or fragment makes no sense in the address of a server: {url}")
        self.base = str(parsed).rstrip("/")
        self.has_credentials = parsed.raw_user is not None
        self.session = session

    def url(self, path_qs: str) -> URL:
        """Return where an encoded path and query lead; not a byte of them changes."""
        return URL(f"{self.base}{path_qs}", encoded=True)

    async def exchange(
        self,
        method: str,
        path_qs: str,
        *,
        timeout: aiohttp.ClientTimeout,
        body: bytes | None = None,
        form: aiohttp.FormData | None = None,
        feed: Feed | None = None,
    ) -> Answer:
        """Send a request and read the whole answer, whatever its status.

        Args:
            body: JSON.
            form: instead of it; `feed` is the stream inside.

        Raises an UpstreamError.
        """
        headers: CIMultiDict[str] = CIMultiDict(PLAIN)
        data: Any = form
        if body is not None:
            headers["Content-Type"] = "application/json"
            # A small body leaves together with the head; of large bytes aiohttp warns, and writes a file in pieces.
            data = body if len(body) <= _SMALL_BYTES else io.BytesIO(body)
        async with self.open(
            method, path_qs, headers=headers, data=data, feed=feed, timeout=timeout, inflate=True
        ) as response:
            with upstream_errors(self.backend):
                content = await response.read()
        received = CIMultiDict(response.headers)
        if received.popall("Content-Encoding", None):
            received.popall("Content-Length", None)
        return Answer(f"{self.backend}: {method} {path_qs}", response.status, received, content)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        data: Any = None,
        feed: Feed | None = None,
        inflate: bool = False,
        skip_auto_headers: Iterable[str] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the answer's body is the caller's to read.

        A failure of that reading is translated, too, unless the caller catches it before; no other error of the
        caller's is touched. An answer not read to its end closes its connection. Redirects are answers like any other.

        Args:
            data: the body as aiohttp takes it.
            feed: the stream in that body; closed in the end.
            inflate: whether to undo a Content-Encoding.

        Raises an UpstreamError.
        """
        attempt = Attempt(is_safe=method in SAFE_METHODS)
        try:
            try:
                with upstream_errors(self.backend, attempt):
                    response = await self.session.request(
                        method,
                        self.url(path_qs),
                        headers=headers,
                        data=data,
                        allow_redirects=False,
                        skip_auto_headers=skip_auto_headers,
                        auto_decompress=inflate,
                        timeout=timeout,
                        trace_request_ctx=attempt,
                    )
            except DeliveryUnknown as exc:
                if feed is None or feed.failure is None:
                    raise
                reason = describe(feed.failure)
                raise DeliveryUnknown(f"{self.backend}: the request's body broke off: {reason}") from exc
            async with response:
                try:
                    yield response
                except (aiohttp.ClientError, OSError) as exc:
                    if exc is not response.content.exception():
                        raise
                    raise DeliveryUnknown(f"{self.backend}: the answer broke off: {describe(exc)}") from exc
        finally:
            if feed is not None:
                await feed.close()
