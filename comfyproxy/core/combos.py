"""Which inputs of which node classes are lists, on any backend of the fleet."""

from collections.abc import Iterator, Mapping

from comfyproxy.core.catalog import Catalog, Definition
from comfyproxy.core.jobs import BackendId

_NOTHING: Mapping[str, Definition] = {}


class Combos(Mapping[str, frozenset[str]]):
    """The names of list inputs by node class, kept up to date as catalogs come and go.

    A thousand backends with one catalog cost no more than one. Where a backend has another catalog than before, the
    classes are compared one by one, and only those that differ are looked into.
    """

    def __init__(self) -> None:
        self._catalogs: dict[BackendId, Catalog] = {}
        self._held: dict[int, tuple[Catalog, int]] = {}  # by identity: equality says nothing about the definitions
        self._definitions: dict[str, dict[Definition, int]] = {}  # class -> how many catalogs describe it like that
        self._names: dict[str, frozenset[str]] = {}

    def __getitem__(self, node_class: str) -> frozenset[str]:
        return self._names[node_class]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

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
            if left.get(name) is not definition and definition.choices:
                known = self._definitions.setdefault(name, {})
                known[definition] = known.get(definition, 0) + 1
                if known[definition] == 1:
                    self._unite(name)
        for name, definition in left.items():
            if came.get(name) is not definition and definition.choices:
                known = self._definitions[name]
                known[definition] -= 1
                if not known[definition]:
                    del known[definition]
                    self._unite(name)

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

    def _unite(self, name: str) -> None:
        known = self._definitions[name]
        if known:
            self._names[name] = frozenset().union(*(definition.choices for definition in known))
        else:
            del self._definitions[name], self._names[name]
