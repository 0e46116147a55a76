"""Which inputs of which node classes are lists, on any backend of the fleet."""

from collections.abc import Iterator, KeysView, Mapping

from comfyproxy.core.catalog import Catalog, Definition
from comfyproxy.core.jobs import BackendId

_NOTHING: Mapping[str, Definition] = {}


class Combos(Mapping[str, KeysView[str]]):
    """The names of list inputs by node class, kept up to date as catalogs come and go.

    A thousand backends with one catalog cost no more than one. Where a backend has another catalog than before, the
    classes are compared one by one, and only those that differ are looked into.
    """

    def __init__(self) -> None:
        self._catalogs: dict[BackendId, Catalog] = {}
        self._held: dict[int, tuple[Catalog, int]] = {}  # by identity: equality says nothing about the definitions
        self._counts: dict[str, dict[str, int]] = {}  # class -> input -> how many of the catalogs have it as a list

    def __getitem__(self, node_class: str) -> KeysView[str]:
        return self._counts[node_class].keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, backend: BackendId, new: Catalog | None) -> None:
        """Take note of a backend's catalog; None where it is not known, or the backend is gone."""
        old = self._catalogs.pop(backend, None)
        if new is not None:
            self._catalogs[backend] = new
        if old is new:
            return
        came = new.definitions if new is not None and self._hold(new) else _NOTHING
        left = old.definitions if old is not None and self._let_go(old) else _NOTHING
        for name, definition in came.items():
            if definition.choices and left.get(name) is not definition:
                self._count(name, definition, +1)
        for name, definition in left.items():
            if definition.choices and came.get(name) is not definition:
                self._count(name, definition, -1)

    def _hold(self, catalog: Catalog) -> bool:
        """Count one more backend with a catalog; return whether it is the first."""
        _, count = self._held.get(id(catalog), (catalog, 0))
        self._held[id(catalog)] = catalog, count + 1
        return not count

    def _let_go(self, catalog: Catalog) -> bool:
        """Count one backend less with a catalog; return whether it was the last."""
        _, count = self._held.pop(id(catalog))
        if count > 1:
            self._held[id(catalog)] = catalog, count - 1
        return count == 1

    def _count(self, name: str, definition: Definition, change: int) -> None:
        counts = self._counts.setdefault(name, {})
        for input_name in definition.choices:
            counts[input_name] = counts.get(input_name, 0) + change
            if not counts[input_name]:
                del counts[input_name]
        if not counts:
            del self._counts[name]
