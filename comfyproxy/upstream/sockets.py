"""Websockets that clients open to a backend itself, past the link."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp

from comfyproxy.core.errors import BadAnswer, UpgradeRefused
from comfyproxy.upstream.errors import upstream_errors
from comfyproxy.upstream.passthrough import forwarded, target
from comfyproxy.upstream.wire import Wire


@asynccontextmanager
async def open_websocket(
    wire: Wire, path_qs: str, *, headers: Mapping[str, str], protocols: Sequence[str], timeout_s: float
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open a websocket as a client asked for it; it carries messages of any size.

    Args:
        path_qs: encoded; goes out byte for byte.
        protocols: that the client offers.
        timeout_s: for the handshake.

    Raises UpgradeRefused where the backend answers with something else, and other UpstreamErrors.
    """
    kept = forwarded(headers, length=None, keep_authorization=not wire.has_credentials)
    for name in [name for name in kept if name.lower().startswith("sec-websocket-")]:
        kept.popall(name, None)
    try:
        with upstream_errors(wire.backend):
            async with asyncio.timeout(timeout_s):
                socket = await wire.session.ws_connect(
                    wire.url(target(path_qs)), headers=kept, protocols=protocols, max_msg_size=0
                )
    except BadAnswer as exc:
        if isinstance(exc.__cause__, aiohttp.WSServerHandshakeError):
            raise UpgradeRefused(str(exc), exc.__cause__.status) from exc
        raise
    async with socket:
        yield socket
