"""aiohttp's failures, by the one question that matters: was it sent?

A request that failed before its connection stood was not. After that nobody can tell, and a POST on a connection
from the pool is no exception: the server may have closed it, or may have read the request and died. The pool lets go
of connections long before a server would (`session.KEEPALIVE_S`), which makes that rare; what remains is for the caller
to look up.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown, NotDelivered
from comfyproxy.core.jobs import BackendId

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# What an address that this machine cannot use fails with, such as ::1 where IPv6 is off: it says nothing of the server.
_NO_WAY_THERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH, errno.EHOSTUNREACH})
_ERRNO = re.compile(r"\[Errno (\d+)\]")


@dataclass(slots=True)
class Attempt:
    """How far one request came; the session's tracing fills it in.

    Attributes:
        is_safe: reading it twice changes nothing. aiohttp repeats an idempotent request once, by itself.
        is_connecting: a connection is being made, and nothing is sent meanwhile.
        has_stood: there was a connection, so something may have been sent.
    """

    is_safe: bool
    is_connecting: bool = False
    has_stood: bool = False

    @property
    def may_have_been_read(self) -> bool:
        """Whether sending it elsewhere could do harm."""
        return self.has_stood and not self.is_safe


@contextmanager
def upstream_errors(backend: BackendId, attempt: Attempt | None = None) -> Iterator[None]:
    """Translate aiohttp's failures, and a timeout, to UpstreamErrors.

    Args:
        attempt: how far the request came; without it only failures that aiohttp itself tells to be failures to
            connect count as such.
    """
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ServerFingerprintMismatch) as exc:
        message = f"{backend}: {describe(exc)}"
        if attempt is not None and attempt.may_have_been_read:
            raise DeliveryUnknown(f"{message}, after the request was sent on an earlier connection") from exc
        if isinstance(exc, aiohttp.ClientConnectorError) and is_refusal(exc.os_error):
            raise ConnectionRefused(message) from exc
        raise NotDelivered(message) from exc
    except aiohttp.ClientResponseError as exc:
        raise BadAnswer(f"{backend}: {describe(exc)}") from exc
    except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
        message = f"{backend}: {describe(exc)}"
        if attempt is not None and attempt.is_connecting and not attempt.may_have_been_read:
            raise NotDelivered(f"{message} while connecting") from exc
        raise DeliveryUnknown(message) from exc


def is_refusal(exc: BaseException) -> bool:
    """Whether a failure to connect proves that nothing listens there, at any address that can be reached."""
    if isinstance(exc, BaseExceptionGroup):
        return _all_refused({_errno(one) for one in exc.exceptions})
    if _errno(exc) is not None:
        return _errno(exc) == errno.ECONNREFUSED
    # aiohappyeyeballs joins failures of several kinds to one text without a number.
    return _all_refused({int(number) for number in _ERRNO.findall(str(exc))})


def describe(exc: BaseException) -> str:
    """Return a failure in words that an operator can read."""
    if isinstance(exc, aiohttp.ClientConnectorError):
        address = f"{exc.host}:{exc.port}"
        if is_refusal(exc.os_error):
            return f"connection to {address} refused"
        return f"cannot connect to {address}: {exc.os_error.strerror or exc.os_error}"
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(exc, aiohttp.WSServerHandshakeError):
        return f"websocket refused: HTTP {exc.status} ({exc.message})"
    if isinstance(exc, aiohttp.ClientResponseError):
        return f"no proper HTTP answer: {' '.join(exc.message.split())[:200]}"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError) and exc.strerror:
        return f"connection lost: {exc.strerror}"
    return str(exc) or repr(exc)


def tracing() -> aiohttp.TraceConfig:
    """Return what a session needs to fill in the Attempt that a request carries as its `trace_request_ctx`."""
    config = aiohttp.TraceConfig()

    async def on_create_start(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        if isinstance(attempt := context.trace_request_ctx, Attempt):
            attempt.is_connecting = True

    async def on_stands(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        if isinstance(attempt := context.trace_request_ctx, Attempt):
            attempt.is_connecting, attempt.has_stood = False, True

    config.on_connection_create_start.append(on_create_start)
    config.on_connection_create_end.append(on_stands)
    config.on_connection_reuseconn.append(on_stands)
    return config


def _errno(exc: BaseException) -> int | None:
    if isinstance(exc, ConnectionRefusedError):  # Windows has numbers of its own
        return errno.ECONNREFUSED
    return exc.errno if isinstance(exc, OSError) else None


def _all_refused(numbers: set[int] | set[int | None]) -> bool:
    return errno.ECONNREFUSED in numbers and numbers <= {errno.ECONNREFUSED, *_NO_WAY_THERE}
