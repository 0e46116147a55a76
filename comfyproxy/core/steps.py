"""The nodes of a graph with the values of their inputs, for those who look at all of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


class Step(msgspec.Struct, gc=False):
    """One node; its inputs are whatever the client wrote there, mostly an object."""

    class_type: str = ""
    inputs: Any = None


_decoder = msgspec.json.Decoder(dict[str, Step])


def steps_of(graph: bytes) -> Mapping[str, Step]:
    """Return the nodes of a graph by their ids; empty where it is not one (the backend will say what is wrong)."""
    try:
        return _decoder.decode(graph)
    except (ValueError, RecursionError):
        # NaN, Infinity, 1e999 and lone surrogates: Python's JSON has them, and so has ComfyUI's.
        try:
            return msgspec.convert(json.loads(graph), dict[str, Step])
        except (ValueError, RecursionError):
            return {}


def literals(step: Step) -> Iterator[tuple[str, str]]:
    """Yield the inputs of a node that are strings, and no links."""
    if isinstance(step.inputs, dict):
        for name, value in step.inputs.items():
            if isinstance(value, str):
                yield name, value
