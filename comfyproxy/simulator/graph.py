"""A prompt's graph while it runs: which node is next.

Source: ComfyUI 0.25.0, `comfy_execution/graph.py` (`ExecutionList`).
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

Graph = dict[str, dict[str, Any]]


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Whether an input is a link, `[node id, output index]`."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


class DependencyCycle(Exception):
    """Nodes wait for each other. Validation sees this coming, but not in links to inputs that a class does not know."""

    reported_as = "graph.DependencyCycleError"

    def __init__(self, node_id: str) -> None:
        super().__init__("Dependency cycle detected")
        self.node_id = node_id


class Schedule:
    """The nodes that are still to run so that all outputs are made, and which of them may run now."""

    def __init__(
        self,
        graph: Graph,
        outputs: Iterable[str],
        *,
        is_cached: Callable[[str], bool],
        is_output: Callable[[str], bool],
    ) -> None:
        self._graph, self._is_cached, self._is_output = graph, is_cached, is_output
        self._waits_for: dict[str, set[str]] = {}
        self._feeds: dict[str, list[str]] = {}
        for output in outputs:
            self._add(output)

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def next(self) -> str:
        """Return a node whose inputs are there, those first that bring a visible result soonest.

        Raises DependencyCycle if every node waits for another one.
        """
        ready = [node for node, missing in self._waits_for.items() if not missing]
        if not ready:
            raise DependencyCycle(self._on_cycle())
        for reach in range(3):
            for node in ready:
                if self._leads_to_output(node, reach):
                    return node
        return ready[0]

    def finish(self, node: str) -> None:
        """Take a node out, and let go on what waits for it."""
        del self._waits_for[node]
        for other in self._feeds.pop(node):
            self._waits_for[other].discard(node)

    def _add(self, first: str) -> None:
        stack, links = [first], []
        while stack:
            node = stack.pop()
            if node in self._waits_for:
                continue
            self._waits_for[node], self._feeds[node] = set(), []
            for value in self._graph[node]["inputs"].values():
                if is_link(value) and value[0] in self._graph and not self._is_cached(value[0]):
                    stack.append(value[0])
                    links.append((value[0], node))
        for source, target in links:
            if source not in self._waits_for[target]:
                self._waits_for[target].add(source)
                self._feeds[source].append(target)

    def _on_cycle(self) -> str:
        """Return a node that waits for itself: walk upstream until one comes again."""
        node, seen = next(iter(self._waits_for)), set[str]()
        while node not in seen:
            seen.add(node)
            node = min(self._waits_for[node])
        return node

    def _leads_to_output(self, node: str, steps: int) -> bool:
        if steps == 0:
            return self._is_output(node)
        return any(self._leads_to_output(other, steps - 1) for other in self._feeds[node])
