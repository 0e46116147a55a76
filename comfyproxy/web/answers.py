"""Giving answers away: small ones whole, long ones as they are made."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import islice

from aiohttp import web

# An answer up to here is sent whole and with its length, as ComfyUI sends all.
WHOLE_BYTES = 4 * 1024 * 1024

# So many parts are made before others get their turn.
STEP = 500

_JSON = {"Content-Type": "application/json; charset=utf-8"}


def json_bytes(body: bytes, *, status: int = 200) -> web.Response:
    """Answer with JSON that is encoded already, with the headers of aiohttp's `json_response`."""
    return web.Response(body=body, status=status, headers=_JSON)


async def send_parts(request: web.Request, parts: AsyncIterator[bytes]) -> web.StreamResponse:
    """Answer with JSON that comes in parts."""
    async with AsyncExitStack() as stack:
        if hasattr(parts, "aclose"):
            stack.push_async_callback(parts.aclose)
        if request.method == "HEAD":
            length = 0
            async for part in parts:
                length += len(part)
            return web.Response(headers={**_JSON, "Content-Length": str(length)})
        begun = bytearray()
        async for part in parts:
            begun += part
            if len(begun) > WHOLE_BYTES:
                break
        else:
            return json_bytes(bytes(begun))
        response = web.StreamResponse(headers=_JSON)
        await response.prepare(request)
        await response.write(begun)
        async for part in parts:
            await response.write(part)
        await response.write_eof()
        return response


async def stepwise(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield parts that cost time to make, some at once, and let others work in between."""
    while step := b"".join(islice(parts, STEP)):
        yield step
        await asyncio.sleep(0)
