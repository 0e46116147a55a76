"""The body of POST /prompt: taking it apart, and building the one that a backend gets.

The graph stays raw bytes on this path. Source: ComfyUI 0.25.0, `server.py` (`post_prompt`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from comfyproxy.core import options
from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs import Payload
from comfyproxy.core.options import Options

SECRET_KEYS = ("auth_token_comfy_org", "api_key_comfy_org")

# In a prompt's extra_data towards a backend: the id that we know it by. Old servers mint ids of their own, and where
# their answer is lost this alone tells which prompt is ours. History and queue do not show it to clients.
MARK = "comfyproxy_prompt_id"

# A queue number behind everything that a server would count up to, and still exact as a float.
BEHIND_ALL = 2**52

# A server copies graphs recursively, and one of some hundred levels ends its worker (0.25.0, `execution.py`).
MAX_DEPTH = 200
MAX_ID_LENGTH = 200

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = re.compile(rb"[^\[\]{}]+")

# Keys that we set ourselves towards the backend; all others travel in Payload.rest.
_OURS = frozenset({"prompt", "prompt_id", "client_id", "extra_data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One submitted prompt, taken apart."""

    payload: Payload
    secrets: Mapping[str, bytes]  # raw JSON by key; lives in memory only
    client_id: str | None
    prompt_id: str | None  # the client's own; None asks for a new one
    number: float | None  # as the client set it; `front` then says nothing
    front: bool
    workflow_id: str | None
    fingerprint: str
    options: Options


def parse(body: bytes, asked: Mapping[str, Any] | None = None) -> Envelope | None:
    """Take a request body apart.

    Args:
        asked: options from the request's headers. They are written into the payload, to be found there after a restart,
            and do not count for the fingerprint.

    Returns None where there is no `prompt` in it, for a backend to refuse in its own words.
    Raises BadRequest where the body is not JSON or a key has a type that makes ComfyUI answer 500.
    """
    members = _members(body)
    if members is None or "prompt" not in members:
        return None
    extra_data = _extra_data(members.get("extra_data"))
    secrets = {key: extra_data.pop(key) for key in SECRET_KEYS if key in extra_data}
    # The server writes `client_id` over what extra_data may say, and executes by extra_data.
    own_client = extra_data.pop("client_id", None)
    client_id = _text(members.get("client_id", own_client))
    rest = {key: raw for key, raw in members.items() if key not in _OURS}
    prompt_id = _text(members.get("prompt_id"))
    if prompt_id is not None and not _is_usable_id(prompt_id):
        raise BadRequest("invalid_prompt_id", "prompt_id must be a UUID, or a short text", details=prompt_id[:100])
    if is_deeper(members["prompt"], MAX_DEPTH):
        raise BadRequest("invalid_prompt", "The prompt is nested too deeply", details=f"over {MAX_DEPTH} levels")
    extra_data.pop(options.ASKED, None)
    payload = Payload(graph=members["prompt"], extra_data=_object(extra_data), rest=_object(rest))
    fingerprint = _fingerprint(payload, client_id)
    if asked:
        extra_data[options.ASKED] = json.dumps(asked).encode()
        payload = replace(payload, extra_data=_object(extra_data))
    return Envelope(
        payload=payload,
        secrets=secrets,
        client_id=client_id,
        prompt_id=prompt_id,
        number=_number(members.get("number")),
        front=bool(_decode(members.get("front", b"false"))),
        workflow_id=_workflow_id(extra_data.get("extra_pnginfo")),
        fingerprint=fingerprint,
        options=options.of_extra_data(extra_data),
    )


def build(
    payload: Payload,
    *,
    prompt_id: str,
    client_id: str,
    secrets: Mapping[str, bytes],
    graph: bytes | None = None,
    number: float | None = None,
) -> bytes:
    """Build the body of POST /prompt for a backend.

    Args:
        client_id: the link's own, so that the events come to the link.
        graph: instead of the payload's, where file names had to be rewritten.
        number: instead of the client's `number` and `front`.
    """
    rest = _split(payload.rest)
    if number is not None:
        rest.pop("front", None)
        rest["number"] = json.dumps(number).encode()
    extra_data = {**_split(payload.extra_data), **secrets, MARK: json.dumps(prompt_id).encode()}
    members = {
        "prompt": graph if graph is not None else payload.graph,
        "prompt_id": json.dumps(prompt_id).encode(),
        "client_id": json.dumps(client_id).encode(),
        "extra_data": _object(extra_data),
        **rest,
    }
    return _object(members)


def is_deeper(raw: bytes, depth: int) -> bool:
    """Whether a JSON value is nested more deeply than that; takes one pass over it for each level that it has."""
    brackets = _NO_BRACKETS.sub(b"", _STRINGS.sub(b"", raw))
    for _ in range(depth):
        shorter = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(brackets):
            return False  # empty, or no JSON
        brackets = shorter
    return bool(brackets)


def _is_usable_id(prompt_id: str) -> bool:
    """Whether an id can stand in a URL; old servers would take any, and then nobody could ask for it."""
    return 0 < len(prompt_id) <= MAX_ID_LENGTH and prompt_id.isprintable() and prompt_id.strip() == prompt_id


def queue_number(envelope: Envelope, next_number: int) -> float:
    """Return the job's place in the queue as ComfyUI computes it: smaller runs first."""
    if envelope.number is not None:
        return envelope.number
    return float(-next_number if envelope.front else next_number)


def execution_targets(payload: Payload) -> tuple[str, ...] | None:
    """Return the request's `partial_execution_targets`; None where it asks for all outputs."""
    try:
        value = json.loads(_split(payload.rest).get("partial_execution_targets", b"null"))
    except (ValueError, RecursionError):
        return None  # nested to the limit of what could be read at all: no list of ids
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None


def _members(body: bytes) -> dict[str, bytes] | None:
    """Return the raw values of a JSON object; None for JSON of another kind."""
    try:
        return _split(body)
    except msgspec.ValidationError:
        return None
    except (ValueError, RecursionError) as exc:
        raise BadRequest("invalid_json", "The request body is not JSON", details=str(exc)) from None


def _split(raw: bytes) -> dict[str, bytes]:
    try:
        return {key: bytes(value) for key, value in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items()}
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Python writes and reads NaN and Infinity, which are not JSON; so does ComfyUI.
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise msgspec.ValidationError("not an object") from None
        return {key: json.dumps(item).encode() for key, item in value.items()}


def _object(members: Mapping[str, bytes]) -> bytes:
    """Join raw values to a JSON object without encoding them again."""
    return b"{" + b",".join(json.dumps(key).encode() + b":" + raw for key, raw in members.items()) + b"}"


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        # Where a value is cut out unread, nobody has looked whether its text is UTF-8.
        raise BadRequest("invalid_json", "The request body is not JSON", details=str(exc)) from None


def _text(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    value = _decode(raw)
    return value if value is None or isinstance(value, str) else str(value)


def _number(raw: bytes | None) -> float | None:
    if raw is None:
        return None
    try:
        number = float(_decode(raw))
        if number != number:
            raise ValueError("NaN comes neither before nor behind anything")
        return number
    except (TypeError, ValueError, OverflowError):
        details = raw.decode(errors="replace")[:100]
        raise BadRequest("invalid_number", "`number` must be a number", details=details) from None


def _extra_data(raw: bytes | None) -> dict[str, bytes]:
    if raw is None:
        return {}
    try:
        return _split(raw)
    except (msgspec.MsgspecError, ValueError):
        raise BadRequest("invalid_extra_data", "`extra_data` must be an object") from None


def _workflow_id(extra_pnginfo: bytes | None) -> str | None:
    """Return `extra_pnginfo.workflow.id`, by which the jobs API filters."""
    if extra_pnginfo is None:
        return None
    try:
        return msgspec.json.decode(extra_pnginfo, type=_PngInfo).workflow.id
    except msgspec.MsgspecError:
        return None


class _Workflow(msgspec.Struct):
    id: str | None = None


class _PngInfo(msgspec.Struct):
    workflow: _Workflow


def _fingerprint(payload: Payload, client_id: str | None) -> str:
    """Digest what is asked for; a client's retry has the same, whatever the white space between the keys."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (payload.graph, payload.extra_data, payload.rest, (client_id or "").encode(errors="surrogatepass")):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
