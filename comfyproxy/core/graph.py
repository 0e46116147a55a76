"""Which inputs of a graph name files, and putting other names in their place.

A graph is big and mostly none of our business: nodes and inputs are found, but their values are decoded only where they
are strings, and a rewritten graph keeps every other byte as it came.
"""

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import msgspec

from comfyproxy.core import outputs
from comfyproxy.core.files import FileRef
from comfyproxy.core.jobs import BackendId

# Node id, input name, and inside a composite value (Load3D's is an object of names) the keys further down.
Place: TypeAlias = tuple[str | int, ...]


class Evidence(Enum):
    """Why a value is taken for a file's name."""

    ANNOTATED = "annotated"  # `x.png [output]`
    UPLOAD = "upload"  # the node's class declares that its input takes uploads
    LOOKS = "looks"  # it has the form of a name; only a known file makes it one


@dataclass(frozen=True, slots=True)
class FileInput:
    """One input that names a file."""

    place: Place
    value: str
    ref: FileRef  # without the backend's name
    backend: BackendId | None  # the one that the value names
    evidence: Evidence

    @property
    def node_id(self) -> str:
        """The node that reads the file."""
        return str(self.place[0])

    @property
    def input_name(self) -> str:
        """The input that names it."""
        return str(self.place[1])


class _Step(msgspec.Struct):
    class_type: str = ""
    inputs: dict[str, msgspec.Raw] = {}


_graph = msgspec.json.Decoder(dict[str, _Step])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

_ANNOTATED = re.compile(rb" \[(?:output|temp|input)\]\"")
# One line, and an extension at the end. A prompt's text can look like that, too; it is then no known file.
_LOOKS = re.compile(r"[^\x00-\x1f]{1,1000}\.[A-Za-z0-9]{1,16}")


def file_inputs(graph: bytes, *, names: Container[str], upload_inputs: Container[tuple[str, str]]) -> list[FileInput]:
    """Return the inputs that name files, in the graph's order; nothing where it is not a graph.

    Args:
        names: of all backends, as they stand in front of outputs' subfolders.
        upload_inputs: (class, input) pairs that take uploaded files.
    """
    found: list[FileInput] = []
    for node_id, step in _steps(graph).items():
        for input_name, raw in step.inputs.items():
            value = bytes(raw)
            if value[:1] == b'"':
                takes_upload = (step.class_type, input_name) in upload_inputs
                _look_at(json.loads(value), (node_id, input_name), names, takes_upload, found)
            elif value[:1] in (b"{", b"[") and _ANNOTATED.search(value):
                _look_into(json.loads(value), (node_id, input_name), names, found)
    return found


def rewrite(graph: bytes, replacements: Mapping[Place, str]) -> bytes:
    """Return the graph with other strings in the given places; all else keeps its bytes and its order."""
    if not replacements:
        return graph
    try:
        nodes = _members.decode(graph)
    except msgspec.MsgspecError:
        return _rewrite_python(graph, replacements)
    for node_id, of_node in _grouped(replacements).items():
        node = _members.decode(nodes[str(node_id)])
        inputs = _members.decode(node["inputs"])
        for input_name, of_input in _grouped(of_node).items():
            value = inputs[str(input_name)]
            inputs[str(input_name)] = msgspec.Raw(json.dumps(_replaced(json.loads(bytes(value)), of_input)).encode())
        node["inputs"] = msgspec.Raw(msgspec.json.encode(inputs))
        nodes[str(node_id)] = msgspec.Raw(msgspec.json.encode(node))
    return msgspec.json.encode(nodes)


def _steps(graph: bytes) -> Mapping[str, _Step]:
    try:
        return _graph.decode(graph)
    except msgspec.ValidationError:
        return {}
    except msgspec.DecodeError:
        # NaN, Infinity and lone surrogates: Python's JSON has them, and so has ComfyUI's.
        try:
            return _graph.decode(msgspec.json.encode(_without_nan(json.loads(graph))))
        except (ValueError, msgspec.MsgspecError):
            return {}


def _without_nan(value: Any) -> Any:
    """Return what of a graph matters for finding files, in plain JSON."""
    if isinstance(value, dict):
        return {_plain(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return _plain(value) if isinstance(value, str) else None


def _plain(text: str) -> str:
    return text.encode(errors="replace").decode()


def _look_into(value: Any, place: Place, names: Container[str], found: list[FileInput]) -> None:
    """Find annotated names inside a composite value."""
    if isinstance(value, str):
        _look_at(value, place, names, False, found, only_annotated=True)
        return
    members: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    for key, item in members:
        _look_into(item, (*place, key), names, found)


def _look_at(
    value: str,
    place: Place,
    names: Container[str],
    takes_upload: bool,
    found: list[FileInput],
    *,
    only_annotated: bool = False,
) -> None:
    path, file_type = outputs.parse_annotated(value)
    if file_type is not None:
        evidence = Evidence.ANNOTATED
    elif only_annotated or not _LOOKS.fullmatch(value):
        return
    else:
        evidence = Evidence.UPLOAD if takes_upload else Evidence.LOOKS
    backend = None
    if file_type in outputs.PREFIXED_TYPES:
        backend, path = outputs.split_path(path, names)
    subfolder, name = outputs.split_name(path)
    # A path that leaves its folder is the backend's to refuse; and no file has an empty name.
    if not name or path.startswith(("/", "\\")) or ".." in path:
        return
    found.append(FileInput(place, value, FileRef(name, subfolder, file_type or "input"), backend, evidence))


def _grouped(replacements: Mapping[Place, str]) -> dict[str | int, dict[Place, str]]:
    """Group by the first key of the places."""
    groups: dict[str | int, dict[Place, str]] = {}
    for place, value in replacements.items():
        groups.setdefault(place[0], {})[place[1:]] = value
    return groups


def _replaced(value: Any, replacements: Mapping[Place, str]) -> Any:
    for place, text in replacements.items():
        if not place:
            return text
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = text
    return value


def _rewrite_python(graph: bytes, replacements: Mapping[Place, str]) -> bytes:
    """Rewrite a graph that only Python takes for JSON."""
    nodes = json.loads(graph)
    for (node_id, *rest), text in replacements.items():
        _replaced(nodes[node_id]["inputs"], {tuple(rest): text})
    return json.dumps(nodes).encode()
