"""What a backend can run, read from its `/object_info`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from comfyproxy.core.choices import GROUPS, Choices, lists_of

_decoder = json.JSONDecoder()
_space = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Definition:
    """One node class as a backend describes it."""

    json: bytes
    choices: Mapping[str, Choices] = field(default_factory=dict, repr=False)  # by list input


class Shared:
    """What many catalogs have in common, once for as long as one of them has it.

    A thousand equal backends describe each class alike, and a hundred loaders of one backend offer the same files.
    """

    def __init__(self) -> None:
        self._definitions: WeakValueDictionary[bytes, Definition] = WeakValueDictionary()
        self._choices: WeakValueDictionary[frozenset[str], Choices] = WeakValueDictionary()

    def definition(self, json: bytes, inputs: Mapping[str, Any], uploads: frozenset[str]) -> Definition:
        """Return what is kept of a class; `inputs`, from its JSON, are looked into only where it is new."""
        known = self._definitions.get(json)
        if known is None:
            choices = {name: self._offered(values) for name, values in lists_of(inputs, uploads=uploads)}
            known = self._definitions[json] = Definition(json, choices)
        return known

    def _offered(self, values: frozenset[str]) -> Choices:
        known = self._choices.get(values)
        if known is None:
            known = Choices.of(values)
            self._choices[known.values] = known
        return known


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Catalog:
    """The node classes of one backend."""

    classes: frozenset[str]
    output_classes: frozenset[str]  # those whose nodes make a prompt's outputs
    upload_inputs: frozenset[tuple[str, str]]  # (class, input) that name an uploaded file
    definitions: Mapping[str, Definition] = field(default_factory=dict, repr=False, compare=False)

    def missing(self, classes: Iterable[str]) -> frozenset[str]:
        """Return those of `classes` that this backend lacks."""
        return frozenset(classes) - self.classes

    def choices(self, node_class: str, input_name: str) -> Choices | None:
        """Return what an input offers; None where it is no list here, so that anything may be put into it."""
        definition = self.definitions.get(node_class)
        return definition.choices.get(input_name) if definition is not None else None


def parse(object_info: bytes, *, shared: Shared | None = None) -> Catalog:
    """Read an `/object_info` answer.

    Args:
        shared: where what other catalogs have, too, is kept.

    Raises msgspec.MsgspecError if it is no such answer.
    """
    shared = Shared() if shared is None else shared
    definitions: dict[str, Definition] = {}
    output_classes: set[str] = set()
    upload_inputs: set[tuple[str, str]] = set()
    try:
        for name, raw, info in _classes(object_info.decode()):
            inputs = info.get("input", {}) if isinstance(info, dict) else None
            if not isinstance(inputs, dict):
                raise msgspec.ValidationError(f"{name!r} is described by what is no node class")
            uploads = frozenset(_upload_inputs(inputs))
            definitions[name] = shared.definition(raw.encode(), inputs, uploads)
            if info.get("output_node") is True:
                output_classes.add(name)
            upload_inputs.update((name, input_name) for input_name in uploads)
    except (UnicodeError, json.JSONDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError(str(exc)) from exc
    return Catalog(frozenset(definitions), frozenset(output_classes), frozenset(upload_inputs), definitions)


def _classes(text: str) -> Iterator[tuple[str, str, Any]]:
    """Yield name, JSON and value of each member of an object, in order. Raises JSONDecodeError.

    Class by class, because a decoder lets no other thread run until it is done, and there may be 20 MB of them.
    """
    place = _after("{", text, 0)
    separator = "" if text[place : place + 1] == "}" else ","
    while separator:
        name, place = _decoder.raw_decode(text, place)
        if not isinstance(name, str):
            raise json.JSONDecodeError("A name is no string", text, place)
        start = _after(":", text, place)
        value, end = _decoder.raw_decode(text, start)
        yield name, text[start:end], value
        place = _skip(text, end)
        separator = "," if text[place : place + 1] == "," else ""
        place = _after(separator, text, place)
    place = _after("}", text, place)
    if place != len(text):
        raise json.JSONDecodeError("Something follows the object", text, place)


def _after(mark: str, text: str, place: int) -> int:
    """Return where the next thing begins, after a mark and the space around it. Raises JSONDecodeError without it."""
    place = _skip(text, place)
    if not text.startswith(mark, place):
        raise json.JSONDecodeError(f"{mark!r} is missing", text, place)
    return _skip(text, place + len(mark))


def _skip(text: str, place: int) -> int:
    found = _space.match(text, place)
    return place if found is None else found.end()


def _upload_inputs(inputs: dict[str, Any]) -> Iterable[str]:
    """Yield the inputs declared with `image_upload`, `video_upload` and the like."""
    for group in GROUPS:
        declared = inputs.get(group)
        if not isinstance(declared, dict):
            continue
        for name, spec in declared.items():
            options = spec[1] if isinstance(spec, list) and len(spec) > 1 else None
            if isinstance(options, dict) and any(value is True for key, value in options.items() if "upload" in key):
                yield name


class _Step(msgspec.Struct):
    class_type: str = ""


_graph = msgspec.json.Decoder(dict[str, _Step])


def classes_of(graph: bytes) -> dict[str, str]:
    """Return node id -> class of a graph; empty where it is not one (the backend will say what is wrong)."""
    try:
        return {node: step.class_type for node, step in _steps(graph).items()}
    except (ValueError, RecursionError):
        return {}


def _steps(graph: bytes) -> dict[str, _Step]:
    try:
        return _graph.decode(graph)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # NaN, Infinity and lone surrogates: Python's JSON has them, and so has ComfyUI's.
        return msgspec.convert(json.loads(graph), dict[str, _Step])


def outputs_to_execute(
    classes: dict[str, str], output_classes: frozenset[str], *, targets: Iterable[str] | None, node_errors: bytes
) -> tuple[str, ...]:
    """Return the output nodes that a server will run, as its queue shows them.

    Args:
        classes: node id -> class.
        targets: the request's `partial_execution_targets`; None for all outputs.
        node_errors: the verdict's; an output that depends on a node with errors is left out.

    Source: ComfyUI 0.25.0, `execution.py` (`validate_prompt`).
    """
    try:
        errors = msgspec.json.decode(node_errors, type=dict[str, _NodeErrors])
    except msgspec.MsgspecError:
        errors = {}
    left_out = {output for error in errors.values() for output in error.dependent_outputs}
    wanted = None if targets is None else frozenset(targets)
    return tuple(
        node
        for node, class_type in classes.items()
        if class_type in output_classes and node not in left_out and (wanted is None or node in wanted)
    )


class _NodeErrors(msgspec.Struct):
    dependent_outputs: list[str] = []
