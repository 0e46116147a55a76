"""Reading request bodies, within a bound, as lenient as ComfyUI: any content type, chunked, compressed.

The server runs with aiohttp's own decompression off, because uploads and unknown routes pass through as they are; so
what must be read is inflated here.
"""

import zlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from comfyproxy.core import rawjson
from comfyproxy.core.errors import BadRequest

# Of requests that name jobs: a hundred thousand ids fit.
MAX_CONTROL_BYTES = 8 * 1024 * 1024

_GZIP, _ZLIB, _RAW_DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


async def read_json(request: web.Request, limit: int = MAX_CONTROL_BYTES) -> Any:
    """Return the decoded body.

    Raises BadRequest if it is no JSON, HTTPRequestEntityTooLarge if it has more than `limit` bytes.
    """
    body = await read_body(request, limit)
    try:
        return rawjson.decode(_as_utf8(body, request.charset))
    except (ValueError, RecursionError) as exc:
        raise BadRequest("invalid_json", "The request body is not JSON", details=str(exc)) from None


async def read_object(request: web.Request, limit: int = MAX_CONTROL_BYTES) -> dict[str, Any]:
    """Return the decoded body, which must be an object; raises as `read_json` does."""
    value = await read_json(request, limit)
    if not isinstance(value, dict):
        raise BadRequest("invalid_json", "The request body is not a JSON object")
    return value


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return the body, inflated.

    Raises BadRequest if it cannot be inflated, HTTPRequestEntityTooLarge if it has more than `limit` bytes.
    """
    if request.content_length is not None and request.content_length > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length)
    body = bytearray()
    try:
        async for chunk in _inflated(request, limit):
            body += chunk
            if len(body) > limit:
                raise web.HTTPRequestEntityTooLarge(limit, len(body))
    except zlib.error as exc:
        raise BadRequest("invalid_encoding", "The request body cannot be decompressed", details=str(exc)) from None
    return bytes(body)


async def _inflated(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body's chunks; none of them inflates to more than just over `limit`."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in request.content.iter_any():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadRequest("invalid_encoding", f"Unknown Content-Encoding {encoding[:50]!r}")
    inflater = None
    async for chunk in request.content.iter_any():
        if inflater is None:
            inflater = zlib.decompressobj(_window_bits(encoding, chunk[0]))
        yield inflater.decompress(chunk, limit + 1)
    if inflater is not None and not inflater.eof:
        raise zlib.error("the end is missing")


def _window_bits(encoding: str, first_byte: int) -> int:
    if encoding != "deflate":
        return _GZIP
    # Some send deflate without the zlib header that the standard asks for; a header's first byte ends in 8.
    return _ZLIB if first_byte & 0x0F == 8 else _RAW_DEFLATE


def _as_utf8(body: bytes, charset: str | None) -> bytes:
    if charset is None or charset.lower() in ("utf-8", "utf8", "us-ascii"):
        return body
    try:
        return body.decode(charset).encode()
    except LookupError as exc:
        raise ValueError(str(exc)) from None
