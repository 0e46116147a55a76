"""Requests that are passed on as they came: what of their head belongs to the client's connection stays behind."""

import re
from collections.abc import AsyncIterable, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict

from comfyproxy.core.headers import end_to_end
from comfyproxy.upstream.feed import Feed
from comfyproxy.upstream.wire import Wire

# Host is the backend's own. An Origin beside a loopback Host, or `Sec-Fetch-Site: cross-site`, is answered 403 (ComfyUI
# 0.25.0, `server.py`, `create_origin_only_middleware`); the proxy itself has looked at them. Expect was answered by it.
_DROPPED = frozenset({"host", "origin", "expect", "content-length"})
_DROPPED_PREFIX = "sec-fetch-"
# What aiohttp would add where the client sent none.
_AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_NOT_IN_A_TARGET = re.compile(r"[^!-~]|#")


def pass_on(
    wire: Wire,
    method: str,
    path_qs: str,
    *,
    headers: Mapping[str, str],
    data: AsyncIterable[bytes] | None,
    connect_timeout_s: float,
    idle_timeout_s: float | None = None,
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    """Send a client's request on and give its answer, neither inflated nor redirected, as a stream.

    Args:
        path_qs: encoded; goes out byte for byte.
        idle_timeout_s: how long the backend may say nothing, once it has the request; None: as long as it likes.

    Raises an UpstreamError.
    """
    length = _length(headers) if data is not None else None
    feed = Feed(data, length=length) if data is not None else None
    return wire.open(
        method,
        target(path_qs),
        headers=forwarded(headers, length=length, keep_authorization=not wire.has_credentials),
        data=feed,
        feed=feed,
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_read=idle_timeout_s),
        skip_auto_headers=_AUTOMATIC,
    )


def forwarded(headers: Mapping[str, str], *, length: int | None, keep_authorization: bool = True) -> CIMultiDict[str]:
    """Return the headers that go on to the backend; duplicates and their order are kept.

    Args:
        length: of the body, if the client announced one: then the backend gets it in the same framing.
        keep_authorization: False where the configured URL has credentials of its own.
    """
    names: dict[str, str] = {}
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in end_to_end(headers).items():
        key = name.lower()
        if key in _DROPPED or key.startswith(_DROPPED_PREFIX) or not _is_text(value):
            continue
        if key == "authorization" and not keep_authorization:
            continue
        # Of duplicates that differ in case aiohttp would keep the last only.
        kept.add(names.setdefault(key, name), value)
    if length is not None:
        kept["Content-Length"] = str(length)
    return kept


def target(path_qs: str) -> str:
    """Return path and query so that they can stand in a request line; what is properly encoded does not change."""
    rooted = path_qs if path_qs.startswith("/") else f"/{path_qs}"
    return _NOT_IN_A_TARGET.sub(lambda found: quote(found.group().encode("utf-8", "surrogateescape")), rooted)


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not (value.isascii() and value.isdecimal()):
        return None
    return int(value)


def _is_text(value: str) -> bool:
    """Whether aiohttp can send a header: bytes that are no UTF-8 reach us as lone surrogates, and it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
