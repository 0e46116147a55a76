"""Stop working for a client that has gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

LOOK_EVERY_S = 0.5
# nginx's status for a client that left; nobody reads it but the access log.
CLIENT_CLOSED_REQUEST = 499


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


def is_gone(request: web.Request) -> bool:
    """Whether the connection of a request is closed."""
    return request.transport is None or request.transport.is_closing()


def cut(request: web.Request) -> None:
    """Break the connection, so that the client knows its answer to be incomplete."""
    if request.transport is not None:
        request.transport.abort()


@asynccontextmanager
async def while_connected(request: web.Request, *, every_s: float = LOOK_EVERY_S) -> AsyncIterator[None]:
    """Cancel what runs inside once the client has gone, and raise ClientGone.

    aiohttp tells a handler of a lost connection only where it reads or writes; a handler that waits for a backend
    would wait on. Its own `handler_cancellation` is for a whole application, and would cut through a prompt that is
    being dispatched.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal timer
        if is_gone(request):
            scope.reschedule(loop.time())
        else:
            timer = loop.call_later(every_s, look)

    timer = loop.call_later(every_s, look)
    try:
        async with asyncio.timeout(None) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise ClientGone from None
        raise
    finally:
        if timer is not None:
            timer.cancel()
