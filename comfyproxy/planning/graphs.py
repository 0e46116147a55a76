"""What of a recorded graph matters for a plan: its models, and what decides how long it takes."""

import hashlib
from typing import Any, NamedTuple

from comfyproxy.core import rawjson

_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
_NUMBERS = frozenset({"steps", "width", "height", "batch_size", "length", "num_frames", "frames"})


class Described(NamedTuple):
    """What a graph tells.

    Attributes:
        model: the names of its model files as one text, for they are in a memory together; "" without any.
        kind: a digest that graphs share which differ in texts and seeds alone.
    """

    model: str
    kind: str


def describe(graph: bytes) -> Described:
    """Read a graph; what is not one has no models."""
    try:
        nodes = rawjson.decode(graph)
    except ValueError:
        nodes = None
    models: set[str] = set()
    traits: list[str] = []
    for node in nodes.values() if isinstance(nodes, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict):
            continue
        traits.append(str(node.get("class_type")))
        for name, value in inputs.items():
            if isinstance(value, str) and value.lower().endswith(_SUFFIXES):
                models.add(value.replace("\\", "/"))  # as servers on Windows write it
            elif name in _NUMBERS and _is_number(value):
                traits.append(f"{name}={float(value)}")
    text = "\0".join(sorted(traits) + sorted(models))
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return Described(" + ".join(sorted(models)), digest)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
