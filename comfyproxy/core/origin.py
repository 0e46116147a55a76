"""Whether a web page of another origin made a request: without this check any page could post to the proxy.

The rule is ComfyUI's (0.25.0, `server.py`, `create_origin_only_middleware`): a loopback `Host` with another `Origin` is
foreign, and so is whatever the browser itself calls cross-site.
"""

import ipaddress
from collections.abc import Container
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"localhost"})


def is_foreign(
    host: str | None,
    origin: str | None,
    sec_fetch_site: str | None,
    *,
    loopback_names: Container[str] = LOOPBACK_NAMES,
) -> bool:
    """Return whether to refuse a request.

    Args:
        host: the `Host` header.
        origin: the `Origin` header; `null`, as pages from files send it, is not foreign.
        sec_fetch_site: the `Sec-Fetch-Site` header.
        loopback_names: host names (lower case) known to mean this machine.
    """
    if sec_fetch_site == "cross-site":
        return True
    if not host or not origin:
        return False
    try:
        own, other = urlsplit("//" + host.lower()), urlsplit(origin.lower())
        # A side without a port is compared without: some browsers leave it out.
        own_domain = own.hostname if other.port is None else own.netloc
        other_domain = other.hostname if own.port is None else other.netloc
    except ValueError:  # no browser sends these; ComfyUI answers them with a 500
        return True
    if not own_domain or not other_domain or not is_loopback(own.hostname, loopback_names):
        return False
    return own_domain != other_domain


def is_loopback(hostname: str | None, names: Container[str] = LOOPBACK_NAMES) -> bool:
    """Whether a host name means this machine.

    ComfyUI asks the resolver. A look-up per request would stall the event loop for everybody as long as a name
    server is slow, so here only what needs none counts: addresses, `localhost` (by RFC 6761 with all below it), and
    the names handed in. A page that rebinds its own name to 127.0.0.1 has equal host and origin and passes in both.
    """
    if not hostname:
        return False
    if hostname in names or hostname.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return False
    # 0.0.0.0 reaches the loopback interface, too, and no honest page of another origin has a reason to use it.
    return address.is_loopback or address.is_unspecified
