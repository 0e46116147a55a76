"""What a backend can run, read from its `/object_info`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec


class _Class(msgspec.Struct):
    input: dict[str, Any] = {}
    output_node: bool = False


_decoder = msgspec.json.Decoder(dict[str, _Class])


@dataclass(frozen=True, slots=True)
class Catalog:
    """The node classes of one backend."""

    classes: frozenset[str]
    output_classes: frozenset[str]  # those whose nodes make a prompt's outputs
    upload_inputs: frozenset[tuple[str, str]]  # (class, input) that name an uploaded file

    def missing(self, classes: Iterable[str]) -> frozenset[str]:
        """Return those of `classes` that this backend lacks."""
        return frozenset(classes) - self.classes


def parse(object_info: bytes) -> Catalog:
    """Read an `/object_info` answer. Raises msgspec.MsgspecError if it is not one."""
    classes = _decoder.decode(object_info)
    return Catalog(
        classes=frozenset(classes),
        output_classes=frozenset(name for name, info in classes.items() if info.output_node),
        upload_inputs=frozenset(
            (name, input_name) for name, info in classes.items() for input_name in _upload_inputs(info.input)
        ),
    )


def _upload_inputs(inputs: dict[str, Any]) -> Iterable[str]:
    """Yield the inputs declared with `image_upload`, `video_upload` and the like."""
    for group in ("required", "optional"):
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
        return {node: step.class_type for node, step in _graph.decode(graph).items()}
    except msgspec.MsgspecError:
        return {}


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
