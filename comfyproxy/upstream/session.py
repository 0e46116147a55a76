"""The HTTP session that all backends share: without the limits that aiohttp means for a browser's part."""

import socket

import aiohttp
from aiohttp.connector import AddrInfoType

from comfyproxy.upstream import errors

# ComfyUI (aiohttp) closes an idle connection after 75 s. Ours are gone long before, so that no POST meets the closing.
KEEPALIVE_S = 20.0
# For requests that do not say it themselves, the link's above all.
CONNECT_WITHIN_S = 10.0
MAX_HEADER_BYTES = 64 * 1024

# A host that is gone without a word: found out in a minute on an idle connection, in two on one that waits for it.
_TCP_OPTIONS = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,  # macOS's word for it
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 120_000,  # ms
}


def open_session() -> aiohttp.ClientSession:
    """Open the session; the caller closes it. Needs a running event loop."""
    connector = aiohttp.TCPConnector(
        limit=0, limit_per_host=0, keepalive_timeout=KEEPALIVE_S, socket_factory=_socket_for
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN_S),
        trust_env=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        trace_configs=[errors.tracing()],
    )


def _socket_for(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _TCP_OPTIONS.items():
        option = getattr(socket, name, None)  # each system has its own selection
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
