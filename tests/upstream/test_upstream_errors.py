"""How failures are named, without a socket."""

import errno
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown, NotDelivered, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream.errors import Attempt, upstream_errors

KEY = cast(Any, SimpleNamespace(host="gpu", port=8188, ssl=True, is_ssl=False))
REFUSED = OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 8188)")


def named(exc: BaseException, attempt: Attempt | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught, upstream_errors(BackendId("gpu-a"), attempt):
        raise exc
    assert str(caught.value).startswith("gpu-a: ")
    assert caught.value.__cause__ is exc
    return caught.value


def connector_error(os_error: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(KEY, os_error)


@pytest.mark.parametrize(
    "os_error",
    [
        REFUSED,
        ConnectionRefusedError(1225, "The remote computer refused the network connection"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 8188, 0, 0), [Errno 111] Connect call"),
        OSError("Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 111] Connect call failed"),
    ],
)
def test_nothing_listening_at_any_address_is_a_refusal(os_error: OSError) -> None:
    error = named(connector_error(os_error))
    assert type(error) is ConnectionRefused
    assert str(error) == "gpu-a: connection to gpu:8188 refused"


def test_a_group_of_refusals_is_a_refusal() -> None:
    error = connector_error(OSError(errno.ENETUNREACH, "unreachable"))
    group = ExceptionGroup("several", [REFUSED, OSError(errno.EADDRNOTAVAIL, "no IPv6 here")])
    error._os_error = cast(Any, group)
    assert type(named(error)) is ConnectionRefused


@pytest.mark.parametrize(
    "os_error",
    [
        OSError(errno.EHOSTUNREACH, "No route to host"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 110] Connection timed out"),
        OSError("Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 101] Network is unreachable"),
    ],
)
def test_an_address_that_was_not_reached_proves_nothing(os_error: OSError) -> None:
    assert type(named(connector_error(os_error))) is NotDelivered


def test_a_name_that_is_not_known_was_not_reached() -> None:
    error = named(aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "Name or service not known")))
    assert type(error) is NotDelivered
    assert str(error) == "gpu-a: cannot connect to gpu:8188: Name or service not known"


def test_a_timeout_while_connecting_was_not_delivered() -> None:
    assert type(named(TimeoutError(), Attempt(is_safe=False, is_connecting=True))) is NotDelivered
    assert type(named(aiohttp.ConnectionTimeoutError())) is NotDelivered


def test_a_timeout_later_leaves_it_open() -> None:
    error = named(TimeoutError(), Attempt(is_safe=False, has_stood=True))
    assert type(error) is DeliveryUnknown
    assert str(error) == "gpu-a: no answer in time"


def test_a_timeout_of_which_nothing_is_known_leaves_it_open() -> None:
    assert type(named(TimeoutError())) is DeliveryUnknown


def test_a_change_that_was_sent_once_and_then_refused_leaves_it_open() -> None:
    attempt = Attempt(is_safe=False, is_connecting=True, has_stood=True)
    assert type(named(connector_error(REFUSED), attempt)) is DeliveryUnknown
    assert type(named(TimeoutError(), attempt)) is DeliveryUnknown


def test_a_question_that_was_sent_once_and_then_refused_is_refused() -> None:
    attempt = Attempt(is_safe=True, is_connecting=True, has_stood=True)
    assert type(named(connector_error(REFUSED), attempt)) is ConnectionRefused


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (aiohttp.ServerDisconnectedError(), "closed the connection without an answer"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"), "connection lost: Connection reset"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "connection lost: Connection reset"),
        (aiohttp.ClientPayloadError("not completed"), "not completed"),
    ],
)
def test_a_connection_lost_on_the_way_leaves_it_open(exc: Exception, said: str) -> None:
    error = named(exc)
    assert type(error) is DeliveryUnknown
    assert said in str(error)


def test_what_is_no_http_is_a_bad_answer() -> None:
    info = cast(Any, SimpleNamespace(real_url="http://gpu"))
    error = named(aiohttp.ClientResponseError(info, (), status=400, message="Bad status line:\n\n  b'SSH-2.0'"))
    assert type(error) is BadAnswer
    assert str(error) == "gpu-a: no proper HTTP answer: Bad status line: b'SSH-2.0'"


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(ZeroDivisionError), upstream_errors(BackendId("gpu-a")):
        raise ZeroDivisionError
