"""Text messages of a backend's websocket: whose they are, and how they are changed on the way to a client.

Source: ComfyUI 0.25.0, `execution.py` and `comfy_execution/progress.py` (`send_sync`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

# After one of these nothing of the prompt follows but the final `executing`.
OUTCOMES = frozenset({"execution_success", "execution_error", "execution_interrupted"})


class _Outer(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Inner(msgspec.Struct):
    prompt_id: str | None = None
    node: str | msgspec.UnsetType | None = msgspec.UNSET


class _ExecInfo(msgspec.Struct):
    queue_remaining: int


class _StatusBody(msgspec.Struct):
    exec_info: _ExecInfo


class _Status(msgspec.Struct):
    status: _StatusBody


class _Executed(msgspec.Struct):
    node: str


_executed = msgspec.json.Decoder(_Executed)
_outer = msgspec.json.Decoder(_Outer)
_inner = msgspec.json.Decoder(_Inner)
_status = msgspec.json.Decoder(_Status)


@dataclass(frozen=True, slots=True)
class Message:
    """What the relay must know of a message; `raw` is what travels."""

    event: str
    prompt_id: str | None
    node: str | None  # the node an `executing` names
    is_final: bool  # `executing` with node null: the prompt has left the executor
    raw: str
    data: bytes


def parse(raw: str) -> Message | None:
    """Read a message; None if it is not one of ComfyUI's shape (then nobody can read it)."""
    try:
        outer = _outer.decode(raw)
        data = bytes(outer.data)
        event = outer.type
    except (msgspec.MsgspecError, RecursionError):
        # Python's json writes NaN, which is not JSON; a node's output may hold one.
        try:
            value = json.loads(raw)
            event, data = str(value["type"]), json.dumps(value.get("data")).encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
    prompt_id, node = _whose(data)
    is_final = event == "executing" and node is None and prompt_id is not None
    return Message(event, prompt_id, node if isinstance(node, str) else None, is_final, raw, data)


def queue_remaining(message: Message) -> int | None:
    """Return the count that a `status` message carries."""
    try:
        return _status.decode(message.data).status.exec_info.queue_remaining
    except msgspec.MsgspecError:
        return None


def executed_node(message: Message) -> str | None:
    """Return the node that an `executed` tells the outputs of."""
    try:
        return _executed.decode(message.data).node
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError:
        data = json.loads(message.data)  # NaN
        node = data.get("node") if isinstance(data, dict) else None
        return node if isinstance(node, str) else None


def final(prompt_id: str) -> str:
    """Return the `executing` that ends a prompt."""
    return encode("executing", {"node": None, "prompt_id": prompt_id})


def status(count: int, *, sid: str | None = None) -> str:
    """Return a `status` message; `sid` only in the first one of a socket."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": count}}}
    if sid is not None:
        data["sid"] = sid
    return encode("status", data)


def encode(event: str, data: Any) -> str:
    """Return a message as ComfyUI writes it."""
    return json.dumps({"type": event, "data": data})


def rewrite(message: Message, *, prompt_id: str | None = None, output: Callable[[Any], Any] | None = None) -> str:
    """Return the message with another prompt id, or another `output`, or both.

    `progress_state` names the prompt in each of its nodes, too. What is nested too deeply to be read goes as it came.
    """
    try:
        return _rewritten(message, prompt_id, output)
    except RecursionError:
        return message.raw


def _rewritten(message: Message, prompt_id: str | None, output: Callable[[Any], Any] | None) -> str:
    data = json.loads(message.data)
    if not isinstance(data, dict):
        return message.raw  # a custom node's own: it names no prompt and has no output
    if prompt_id is not None:
        data["prompt_id"] = prompt_id
        nodes = data.get("nodes")
        if isinstance(nodes, dict):
            for node in nodes.values():
                if isinstance(node, dict) and "prompt_id" in node:
                    node["prompt_id"] = prompt_id
    if output is not None and "output" in data:
        data["output"] = output(data["output"])
    return encode(message.event, data)


def _whose(data: bytes) -> tuple[str | None, str | msgspec.UnsetType | None]:
    try:
        inner = _inner.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        # `node` may be anything in a custom node's message, and the whole may be a list.
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None, msgspec.UNSET
        prompt_id = value.get("prompt_id") if isinstance(value, dict) else None
        return (prompt_id if isinstance(prompt_id, str) else None), msgspec.UNSET
    return inner.prompt_id, inner.node
