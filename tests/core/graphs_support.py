"""Graphs of any kind, and catalogs to hold them against."""

import json
from typing import Any

from hypothesis import strategies as st

from comfyproxy.core import catalog

MODELS = st.sampled_from(["a.ckpt", "x/a.ckpt", "x\\a.ckpt", "x/y\\a.CKPT", "b\\c", "b/c", "z.png", "", "\ud800\\x.pt"])
_SCALARS = st.one_of(
    MODELS,
    st.text(max_size=4),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.just(10**400),
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=5,
)
CLASSES = st.sampled_from(["A", "B", "C", "\ud800", ""])
INPUTS = st.sampled_from(["x", "y", "steps", "scheduler", "\udfff"])
STEPS = st.fixed_dictionaries({"class_type": CLASSES, "inputs": st.dictionaries(INPUTS, VALUES, max_size=4)})
GRAPHS = st.dictionaries(st.sampled_from(["1", "2", "5:1", "\ud800"]), STEPS, max_size=4)
ODD_GRAPHS = st.dictionaries(st.text(max_size=2), st.one_of(STEPS, VALUES), max_size=4) | VALUES


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def loader(**choices: Any) -> dict[str, Any]:
    """Return what `/object_info` says of a class with these lists."""
    return {"input": {"required": {name: [values, {}] for name, values in choices.items()}}}


def catalog_of(**classes: Any) -> catalog.Catalog:
    return catalog.parse(json.dumps(classes).encode())


def prompt(*steps: tuple[str, dict[str, Any]]) -> bytes:
    """Return a graph of (class, inputs)."""
    return as_json({str(number): {"class_type": name, "inputs": inputs} for number, (name, inputs) in enumerate(steps)})
