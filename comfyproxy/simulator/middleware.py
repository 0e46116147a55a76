"""What a simulated server does with every request: faults, the origin check, cache headers.

Source: ComfyUI 0.25.0 and 0.3.64, `server.py` (`create_origin_only_middleware`), `middleware/cache_middleware.py`.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlparse, urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .faults import Faults
from .profile import Profile

_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def disturb(faults: Faults, received: Callable[[str, str], None], working: set[asyncio.Task[None]]) -> Middleware:
    """Note every request and its task, and let the faults loose on it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        received(request.method, request.rel_url.raw_path)
        working.add(task)
        try:
            await faults.gate()
            if faults.delay_s:
                await asyncio.sleep(faults.delay_s)
            response = await handler(request)
            await faults.gate()
        finally:
            working.discard(task)
        return response

    return middleware


def cache_headers(profile: Profile) -> Middleware:
    """Say how long scripts and pictures may be kept."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        name = request.path.rsplit("/", 1)[-1]
        value = None
        if name.endswith((".js", ".css")) or (name.startswith("index") and name.endswith(".json")):
            value = profile.script_cache_control
        elif request.path.lower().endswith(_IMAGES):
            if response.status == 404:
                value = "public, max-age=3600"
            elif response.status in (200, 201, 202, 203, 204, 205, 206, 301, 308):
                value = "public, max-age=86400"
            elif response.status in (302, 303, 307):
                value = "no-cache"
        if value is not None:
            response.headers.setdefault("Cache-Control", value)
        return response

    return middleware


def same_origin_only(profile: Profile) -> Middleware:
    """Refuse what a page of another origin sends to a server on this machine, and answer every OPTIONS with 200."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if profile.refuses_cross_site and request.headers.get("Sec-Fetch-Site") == "cross-site":
            return web.Response(status=403)
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if host is not None and origin is not None and _foreign(host, origin):
            return web.Response(status=403)
        if request.method == "OPTIONS":
            return web.Response()
        return await handler(request)

    return middleware


def _foreign(host: str, origin: str) -> bool:
    own, other = urlsplit(f"//{host.lower()}"), urlparse(origin)
    own_domain = own.hostname if other.port is None else host.lower()
    other_domain = other.hostname if own.port is None else other.netloc.lower()
    return bool(_is_loopback(own.hostname) and own_domain and other_domain and own_domain != other_domain)


def _is_loopback(host: str | None) -> bool:
    """Whether a host is this machine; ComfyUI asks the resolver, even for names."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    found = False
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            addresses = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
        except socket.gaierror:
            continue
        for *_, address in addresses:
            if not ipaddress.ip_address(address[0]).is_loopback:
                return False
            found = True
    return found
