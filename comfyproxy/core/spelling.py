"""A graph as its backend spells the models in it, and what comes of it as the client spelled them.

A client may have read the names off another server than the one that runs its prompt, and ComfyUI takes a choice only
in the spelling of its own list (`core/model_names.py`).
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from comfyproxy.core import graph as graphs
from comfyproxy.core.catalog import Catalog
from comfyproxy.core.graph import Place
from comfyproxy.core.steps import literals, steps_of


class Spelled(NamedTuple):
    """A graph in a backend's spelling."""

    graph: bytes
    spellings: Mapping[str, str]  # the client's -> the backend's, of those that were replaced


def spelled(graph: bytes, catalog: Catalog | None) -> Spelled:
    """Return the graph with every chosen model as this backend lists it, and what was replaced.

    What it does not list in any spelling stays as it is, and the graph itself stays where nothing was replaced.
    """
    if catalog is None:
        return Spelled(graph, {})
    places: dict[Place, str] = {}
    spellings: dict[str, str] = {}
    for node_id, step in steps_of(graph).items():
        for name, value in literals(step):
            choices = catalog.choices(step.class_type, name)
            its = choices.spelling(value) if choices is not None else None
            if its is not None and its != value:
                places[node_id, name] = spellings[value] = its
    return Spelled(graphs.rewrite(graph, places), spellings)


def unspelled(raw: bytes, spellings: Mapping[str, str]) -> bytes:
    """Return JSON with the client's spellings again, where one of the backend's is a whole string; else as it came.

    Not inside longer strings: those are the backend's own words, which may name the file where it lies there.
    """
    clients: dict[bytes, bytes] = {}
    for client, backend in spellings.items():
        for ascii_only in (True, False):  # servers write other letters in either way
            clients[_string(backend, ascii_only)] = _string(client, ascii_only)
    if not any(string in raw for string in clients):
        return raw
    # In one pass, so that nothing is put back twice. A quote inside a string has a backslash before it, so what ends
    # like a whole string is one.
    return re.sub(b"|".join(map(re.escape, clients)), lambda found: clients[found[0]], raw)


def _string(text: str, ascii_only: bool) -> bytes:
    return json.dumps(text, ensure_ascii=ascii_only).encode(errors="surrogatepass")
