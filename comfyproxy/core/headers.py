"""Which headers of an answer belong to one connection only and end at the proxy (RFC 9110, 7.6.1)."""

from collections.abc import Mapping

from multidict import CIMultiDict, CIMultiDictProxy

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def end_to_end(headers: CIMultiDictProxy[str] | Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers to pass on: duplicates and their order are kept."""
    # A list may be spread over several lines of the same name.
    connection = ",".join(value for name, value in headers.items() if name.lower() == "connection")
    named = {name.strip().lower() for name in connection.split(",")}
    dropped = HOP_BY_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)
