"""What a request may ask of the proxy itself: in `extra_data.comfyproxy`, or by headers, which come first.

    {"prompt": {...}, "extra_data": {"comfyproxy": {"capabilities": ["video"], "backend": "gpu-a", "priority": 5}}}

Servers ignore the member, and show it in history like all that a client puts into extra_data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfyproxy.core import rawjson
from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs import Payload
from comfyproxy.core.words import nearest

MEMBER = "comfyproxy"  # of extra_data
# Where the options of headers are kept beside it; queue and history show only what the client itself has written.
ASKED = "comfyproxy_asked"
CAPABILITIES_HEADER = "X-Comfyproxy-Capabilities"
BACKEND_HEADER = "X-Comfyproxy-Backend"
PRIORITY_HEADER = "X-Comfyproxy-Priority"
HEADERS = (CAPABILITIES_HEADER, BACKEND_HEADER, PRIORITY_HEADER)
MAX_PRIORITY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a request asks for.

    Attributes:
        capabilities: declared ones that the backend must have.
        backend: the only one that may run it.
        priority: from -10 to 10; the larger, the more urgent.
    """

    capabilities: frozenset[str] = frozenset()
    backend: str | None = None
    priority: int = 0


def of_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return those options that headers name, as `extra_data.comfyproxy` would have them. Raises BadRequest."""
    asked: dict[str, Any] = {}
    if (text := headers.get(CAPABILITIES_HEADER)) is not None:
        asked["capabilities"] = [name for part in text.split(",") if (name := part.strip())]
    if (text := headers.get(BACKEND_HEADER)) is not None:
        asked["backend"] = text
    if (text := headers.get(PRIORITY_HEADER)) is not None:
        try:
            asked["priority"] = _priority(PRIORITY_HEADER, int(text))
        except ValueError:
            raise _bad(PRIORITY_HEADER, _PRIORITIES, text) from None
    return asked


def of_extra_data(extra_data: Mapping[str, bytes]) -> Options:
    """Return what a request asks for, by the raw members of its extra_data. Raises BadRequest, which names the key."""
    own = _read(extra_data.get(MEMBER))
    return Options(**{**own, **_read(extra_data.get(ASKED))})


def options_of(payload: Payload) -> Options:
    """Return what a stored prompt asks for; nothing where it is from a time when nobody looked at it."""
    try:
        return of_extra_data(rawjson.members(payload.extra_data))
    except (BadRequest, ValueError):
        return Options()


def _read(raw: bytes | None) -> dict[str, Any]:
    try:
        value = None if raw is None else rawjson.decode(raw)
    except ValueError as exc:
        raise _bad(f"extra_data.{MEMBER}", "JSON", str(exc)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(f"extra_data.{MEMBER}", "an object", value)
    found: dict[str, Any] = {}
    for key, each in value.items():
        if key not in _CHECKS:
            near = nearest(key, _CHECKS)
            meant = f"did you mean {near}?" if near else f"known are {', '.join(_CHECKS)}"
            raise BadRequest("invalid_option", f"extra_data.{MEMBER} has no key {_shown(key)}", details=meant)
        if each is not None:
            found[key] = _CHECKS[key](f"extra_data.{MEMBER}.{key}", each)
    return found


def _capabilities(key: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise _bad(key, "a list of texts", value)
    return frozenset(name.strip() for name in value)


def _backend(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _bad(key, "a backend's name", value)
    return value


def _priority(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_PRIORITY:
        raise _bad(key, _PRIORITIES, value)
    return value


_PRIORITIES = f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "capabilities": _capabilities,
    "backend": _backend,
    "priority": _priority,
}


def _bad(key: str, wanted: str, found: Any) -> BadRequest:
    return BadRequest("invalid_option", f"{key} must be {wanted}", details=f"found {_shown(found)}")


def _shown(value: Any) -> str:
    try:
        text = rawjson.encode(value).decode()
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 100 else f"{text[:100]}..."
