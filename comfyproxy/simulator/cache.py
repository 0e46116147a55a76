"""The node cache of a simulated server: results by what a node and all it depends on were given.

Source: ComfyUI 0.25.0, `comfy_execution/caching.py` (`CacheKeySetInputSignature`), `execution.py` (`IsChangedCache`).
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import Graph, is_link

# ComfyUI 0.25.0 keeps old results until memory runs short; a simulated server, until there are this many.
KEPT = 200


@dataclass(frozen=True, slots=True)
class Result:
    """What a node made: its outputs, and what it showed with the facts about the node, if it showed anything."""

    outputs: tuple[Any, ...]
    shown: dict[str, Any] | None
    meta: dict[str, Any] | None


class Cache:
    """Results under the signature of their node; looked up by node id within the current prompt."""

    def __init__(self, *, keeps_old: bool) -> None:
        self._keeps_old = keeps_old
        self._results: dict[Hashable, Result] = {}  # least recently used first
        self._keys: dict[str, Hashable] = {}

    def begin(self, graph: Graph, fingerprints: Mapping[str, Any]) -> None:
        """Turn to a prompt, and forget what it cannot use if this version does so.

        Args:
            fingerprints: for every node what it says about the world beside its inputs (`IS_CHANGED`), or False.
        """
        self._keys = {node: _signature(graph, node, fingerprints) for node in graph}
        used = set(self._keys.values())
        unused = [key for key in self._results if key not in used]
        for key in unused[: max(0, len(self._results) - KEPT)] if self._keeps_old else unused:
            del self._results[key]

    def get(self, node: str) -> Result | None:
        """Return what is known of a node of the current prompt."""
        key = self._keys[node]
        result = self._results.pop(key, None)
        if result is not None:
            self._results[key] = result
        return result

    def put(self, node: str, result: Result) -> None:
        self._results[self._keys[node]] = result

    def nodes(self) -> list[str]:
        """Return the ids of all nodes of the current prompt."""
        return list(self._keys)

    def clear(self) -> None:
        self._results.clear()


def _signature(graph: Graph, node: str, fingerprints: Mapping[str, Any]) -> Hashable:
    ancestors = _ancestors(graph, node)
    order = {ancestor: index for index, ancestor in enumerate(ancestors)}
    parts: list[Hashable] = []
    for member in (node, *ancestors):
        inputs = graph[member]["inputs"]
        parts.append(
            (
                graph[member]["class_type"],
                _hashable(fingerprints.get(member, False)),
                tuple(
                    (name, ("link", order.get(value[0]), value[1])) if is_link(value) else (name, _hashable(value))
                    for name, value in sorted(inputs.items())
                ),
            )
        )
    return tuple(parts)


def _ancestors(graph: Graph, node: str) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()
    stack = [_sources(graph, node)]
    while stack:
        if not stack[-1]:
            stack.pop()
            continue
        source = stack[-1].pop(0)
        if source not in seen and source in graph:
            seen.add(source)
            found.append(source)
            stack.append(_sources(graph, source))
    return found


def _sources(graph: Graph, node: str) -> list[str]:
    return [value[0] for _, value in sorted(graph[node]["inputs"].items()) if is_link(value)]


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(_hashable(inner) for inner in value)
    # 1, 1.0 and True are one key to Python, and to ComfyUI's cache as well.
    return value if isinstance(value, int | float | str | bytes | type(None)) else repr(value)
