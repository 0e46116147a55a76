"""What backends answer, taken apart as far as the proxy needs it; graphs and outputs stay the bytes they came as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from multidict import CIMultiDict

from comfyproxy.core import rawjson
from comfyproxy.core.errors import BadAnswer
from comfyproxy.core.files import FileRef

_T = TypeVar("_T")

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, its body as it was before any compression."""

    request: str  # `backend: METHOD path`, for messages
    status: int
    headers: CIMultiDict[str]
    body: bytes = field(repr=False)

    def bad(self, what: str) -> BadAnswer:
        """Return the error that says what is wrong with this answer, and how it begins."""
        shown = " ".join(self.body[: 4 * _SHOWN_CHARS].decode(errors="replace").split())[:_SHOWN_CHARS]
        return BadAnswer(f"{self.request}: {what}{f': {shown}' if shown else ''}")

    def checked(self) -> "Answer":
        """Return the answer itself. Raises BadAnswer unless its status is 2xx."""
        if not 200 <= self.status < 300:
            raise self.bad(f"status {self.status}")
        return self


@dataclass(frozen=True, slots=True)
class Verdict:
    """A backend's answer to POST /prompt.

    Attributes:
        prompt_id: the id under which the backend has accepted the prompt; older servers mint it themselves.
        node_errors: raw JSON. There may be some though the prompt was accepted.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str
    prompt_id: str | None = None
    node_errors: bytes = b"{}"

    @property
    def accepted(self) -> bool:
        """Whether the prompt is in the backend's queue now."""
        return self.status == 200 and self.prompt_id is not None


@dataclass(frozen=True, slots=True)
class QueueView:
    """A backend's queue: the number of every prompt by its id there.

    Attributes:
        marks: the id there by the id that the proxy has put into the prompt.
    """

    running: Mapping[str, float]
    pending: Mapping[str, float]
    marks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UploadAnswer:
    """A backend's answer to an upload; `ref` says under which name it keeps the file, if it does."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    ref: FileRef | None


class _ExecInfo(msgspec.Struct):
    queue_remaining: int


class _Load(msgspec.Struct):
    exec_info: _ExecInfo


class _Item(msgspec.Struct, array_like=True):
    """A queue item; its graph is skipped unread."""

    number: int | float
    prompt_id: str
    graph: msgspec.Raw = msgspec.Raw(b"null")
    extra_data: msgspec.Raw = msgspec.Raw(b"null")


_NOTHING = msgspec.Raw(b"null")


class _Marked(msgspec.Struct):
    comfyproxy_prompt_id: str | None = None


class _Queue(msgspec.Struct):
    queue_running: list[_Item]
    queue_pending: list[_Item]


class _Stored(msgspec.Struct):
    name: str
    subfolder: str = ""
    type: str = "input"


_load = msgspec.json.Decoder(_Load)
_queue = msgspec.json.Decoder(_Queue)
_marked = msgspec.json.Decoder(_Marked)
_stored = msgspec.json.Decoder(_Stored)


def queue_remaining(answer: Answer) -> int:
    """Read GET /prompt. Raises BadAnswer."""
    return _read(answer, _load.decode).exec_info.queue_remaining


def queue_view(answer: Answer) -> QueueView:
    """Read GET /queue without decoding its graphs, which may be megabytes. Raises BadAnswer."""
    queue = _read(answer, _decode_queue)
    return QueueView(
        running={item.prompt_id: item.number for item in queue.queue_running},
        pending={item.prompt_id: item.number for item in queue.queue_pending},
        marks={
            mark: item.prompt_id
            for item in (*queue.queue_running, *queue.queue_pending)
            if (mark := _mark(bytes(item.extra_data))) is not None
        },
    )


def history_marks(answer: Answer) -> dict[str, str]:
    """Read GET /history: the id there by the id that the proxy has put into the prompt. Raises BadAnswer."""
    found = {}
    for prompt_id, raw in _read(answer, _members).items():
        prompt = rawjson.items(rawjson.members(raw).get("prompt", b"null"))
        mark = _mark(prompt[3]) if len(prompt) > 3 else None
        if mark is not None:
            found[mark] = prompt_id
    return found


def _mark(extra_data: bytes) -> str | None:
    try:
        return _marked.decode(extra_data).comfyproxy_prompt_id
    except msgspec.MsgspecError:
        return None


def history_entry(answer: Answer, prompt_id: str) -> bytes | None:
    """Return the value under the id in GET /history/{id}. Raises BadAnswer."""
    return _read(answer, _members).get(prompt_id)


def json_object(answer: Answer) -> dict[str, Any]:
    """Decode an answer that is an object. Raises BadAnswer."""
    value = _read(answer, rawjson.decode)
    if not isinstance(value, dict):
        raise answer.bad("no JSON object")
    return value


def raw_object(answer: Answer) -> bytes:
    """Return an answer that is an object, as it came; only its ends are looked at. Raises BadAnswer."""
    body = answer.body.strip()
    if not (body.startswith(b"{") and body.endswith(b"}")):
        raise answer.bad("no JSON object")
    return body


def verdict(answer: Answer) -> Verdict:
    """Read the answer to POST /prompt. Raises BadAnswer if it says 200 and names no prompt."""
    try:
        said = rawjson.members(answer.body)
    except ValueError:
        said = {}
    prompt_id = None
    if answer.status == 200:
        value = rawjson.decode(said.get("prompt_id", b"null"))
        if not isinstance(value, str):
            raise answer.bad("accepted, but without a prompt_id")
        prompt_id = value
    content_type = answer.headers.get("Content-Type", "application/octet-stream")
    return Verdict(answer.status, answer.body, content_type, prompt_id, said.get("node_errors", b"{}"))


def upload_answer(answer: Answer) -> UploadAnswer:
    """Read the answer to an upload. Raises BadAnswer if it says 200 and names no file."""
    ref = None
    if answer.status == 200:
        stored = _read(answer, _stored.decode)
        ref = FileRef(stored.name, stored.subfolder, stored.type)
    return UploadAnswer(answer.status, answer.headers, answer.body, ref)


def _decode_queue(body: bytes) -> _Queue:
    try:
        return _queue.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # NaN in a graph
        queue = rawjson.decode(body)
        if not isinstance(queue, dict):
            raise ValueError("no queue") from None
        return _Queue(*(_python_items(queue.get(name)) for name in ("queue_running", "queue_pending")))


def _python_items(items: Any) -> list[_Item]:
    """Return the items of a queue that only Python takes for JSON. Raises ValueError."""
    if not isinstance(items, list) or not all(isinstance(item, list) and len(item) > 1 for item in items):
        raise ValueError("no list of prompts")
    return [
        msgspec.convert([*item[:2], _NOTHING, msgspec.Raw(rawjson.encode(item[3] if len(item) > 3 else None))], _Item)
        for item in items
    ]


def _members(body: bytes) -> dict[str, bytes]:
    if not body.lstrip().startswith(b"{"):
        raise ValueError("no JSON object")
    return rawjson.members(body)


def _read(answer: Answer, decode: Callable[[bytes], _T]) -> _T:
    try:
        return decode(answer.body)
    except (ValueError, RecursionError) as exc:  # msgspec's errors are ValueErrors
        raise answer.bad(f"not what ComfyUI answers ({exc})") from exc
