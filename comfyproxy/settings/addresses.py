"""Where a backend is: hosts, base URLs and the one form in which they are kept."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

COMFYUI_PORT = 8188
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NEARLY_A_URL = re.compile(r"https?(?:/|:(?!\d))", re.IGNORECASE)  # a host called http has a port behind it, or nothing
_LABEL = re.compile(r"[\w-]{1,63}")


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, taken apart."""

    scheme: str
    host: str  # lower case; an IPv6 address without its brackets
    port: int
    path: str = ""  # empty, or with a slash in front and none at the end

    def __str__(self) -> str:
        """Return the URL without a trailing slash; two addresses are the same server if these are equal."""
        # A zone such as fe80::1%eth0 is written with %25 in a URL (RFC 6874).
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


def checked_host(text: str) -> str:
    """Return a host name or IP address in the form that is kept.

    Raises ValueError, with a text for whoever wrote it.
    """
    if "://" in text:
        raise ValueError(f'expected a host name or an IP address, found a whole URL: "{text}"')
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            return str(ipaddress.IPv6Address(bare))
        except ValueError:
            pass
        if re.fullmatch(r"[^:]+:\d+", bare):
            host, _, port = bare.partition(":")
            raise ValueError(f'expected a host name or an IP address, found "{text}"; write "{host}", and port: {port}')
    labels = bare.removesuffix(".").split(".")
    if bare != text or len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f'expected a host name or an IP address, found "{text}"')
    return bare.lower()


def parse_url(text: str, *, default_port: int | None = None) -> Address:
    """Take a base URL apart.

    Args:
        default_port: for a URL that names none; by default that of its scheme.
    Raises ValueError, with a text for whoever wrote it.
    """
    if "://" not in text:
        raise ValueError(f'expected a URL such as http://gpu-1:8188, found "{text}"; write "http://{text}"')
    if " " in text or "\\" in text or not text.isprintable():
        raise ValueError("expected a URL, found one with spaces, backslashes or control characters in it")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f'expected a URL such as http://gpu-1:8188, found "{text}" ({exc})') from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f'expected a URL that begins with http:// or https://, found "{text}"')
    if "@" in parts.netloc:
        raise ValueError("expected a URL without a user name or password (they would appear in logs)")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError(f'expected a base URL, without "?" and "#", found "{text}"')
    if not parts.hostname:
        raise ValueError(f'expected a URL with a host in it, found "{text}"')
    if port == 0:
        raise ValueError(f'expected a port from 1 to 65535, found "{text}"')
    host = checked_host(parts.hostname.replace("%25", "%"))
    return Address(parts.scheme, host, port or default_port or _DEFAULT_PORTS[parts.scheme], parts.path.rstrip("/"))


def checked_url(text: str) -> str:
    """Return a base URL in the form that is kept."""
    return str(parse_url(text))


def parse_backend_url(text: str) -> Address:
    """Take apart what is written on a command line: a base URL, or `host[:port][/path]`, which means http."""
    if "://" in text:
        return parse_url(text)
    if _NEARLY_A_URL.match(text):
        raise ValueError(f'expected a URL such as http://gpu-1:8188, found "{text}"; "://" is missing')
    if not text.startswith("[") and text.partition("/")[0].count(":") > 1:
        raise ValueError(f'expected a URL such as http://gpu-1:8188, found "{text}"; an IPv6 address needs brackets')
    return parse_url(f"http://{text}", default_port=COMFYUI_PORT)
