"""From a configuration file to settings, with everything that is wrong in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyproxy.core.words import nearest
from comfyproxy.settings.backends import Placed, clashes
from comfyproxy.settings.document import Items, Scalar, Table, Tree, joined, plain, read_document
from comfyproxy.settings.kinds import Kind, convert, every_key, kinds
from comfyproxy.settings.problems import Problem
from comfyproxy.settings.schema import NodeSettings, Preference, Settings

_BAD: Any = object()  # in the place of a value whose problem is noted


def read_file(file: Path) -> tuple[Settings, list[Problem]]:
    """Return what a file says, and its problems by line; where there is one, the settings are the defaults."""
    tree, problems = read_document(file)
    if tree is None:
        return Settings(), problems
    reader = _Reader(str(file), problems)
    settings = reader.value(Kind(Settings), tree, "")
    problems += clashes(reader.placed)
    problems.sort(key=lambda problem: problem.line or 0)
    return Settings() if problems else settings, problems


@dataclass(slots=True)
class _Reader:
    where: str
    problems: list[Problem]
    placed: list[Placed] = field(default_factory=list)

    def value(self, kind: Kind, tree: Tree, path: str) -> Any:
        """Return a tree as the schema wants it, or `_BAD`."""
        # `server:` with nothing below it is what is left when everything in it is commented out.
        is_absent = isinstance(tree, Scalar) and tree.value is None
        if kind.is_section and (is_absent or isinstance(tree, Table)):
            return self._section(kind.type, tree if isinstance(tree, Table) else Table({}, tree.line), path)
        if kind.word and isinstance(tree, Scalar) and tree.value == kind.word:
            return kind.type(**{kind.word: True})
        if kind.type is dict and (is_absent or isinstance(tree, Table)):
            return plain(tree) or {}
        if kind.item and (is_absent or isinstance(tree, Items)):
            items = tree.items if isinstance(tree, Items) else []
            return tuple(self.value(kind.item, item, joined(path, index)) for index, item in enumerate(items))
        if kind.is_scalar and isinstance(tree, Scalar):
            try:
                return convert(kind, tree.value, tree.written)
            except ValueError as exc:
                return self._note(str(exc), path, tree.line)
        return self._note(f"expected {kind}, found {_named(tree)}{_fix(kind, tree)}", path, tree.line)

    def _section(self, section: type, table: Table, path: str) -> Any:
        before = len(self.problems)
        known = kinds(section)
        given: dict[str, Any] = {}
        for key, (line, tree) in table.entries.items():
            if key in known:
                given[key] = self.value(known[key], tree, joined(path, key))
            else:
                self._note(f"unknown key; {_meant(key, known)}", joined(path, key), line)
        for key, kind in known.items():
            if kind.is_required and key not in given:
                self._note(f"{key} is missing", path, table.line)
        if section is NodeSettings:
            if isinstance(metadata := table.entries.get("metadata", (0, None))[1], Table):
                self._check_metadata(metadata, joined(path, "metadata"))
            self._place({key: value for key, value in given.items() if value is not _BAD}, table, path)
        return section(**given) if len(self.problems) == before else _BAD

    def _check_metadata(self, table: Table, path: str) -> None:
        """Look at what strategies read of a node's metadata, which is free form otherwise."""
        for key, kind in kinds(Preference).items():
            if key in table.entries:
                self.value(kind, table.entries[key][1], joined(path, key))

    def _place(self, good: Mapping[str, Any], table: Table, path: str) -> None:
        """Note where a node is, also where something else in it is wrong: no two may be in one place."""
        lines = {key: line for key, (line, _) in table.entries.items()}
        url = None
        if "url" in good:
            node = NodeSettings(node_id="-", url=good["url"])
            url = node.url
            for key, own in (("host", node.host), ("port", node.port)):
                if good.get(key, own) != own:
                    message = f"{good[key]} contradicts url, which says {own}; write one or the other"
                    self._note(message, joined(path, key), lines[key])
        elif "url" not in lines and "host" not in lines:
            self._note("host is missing (or url in its place)", path, table.line)
        elif "host" in good and ("port" in good or "port" not in lines):
            address = {key: good[key] for key in ("host", "port") if key in good}
            url = NodeSettings(node_id="-", **address).url
        self.placed.append(Placed(good.get("node_id"), url, self.where, path, lines))

    def _note(self, message: str, path: str, line: int) -> Any:
        self.problems.append(Problem(self.where, message, path, line))
        return _BAD


def _meant(key: str, known: Mapping[str, Kind]) -> str:
    if near := nearest(key, known):
        return f"did you mean {near}?"
    elsewhere = [path for path, _ in every_key(Settings) if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"did you mean {min(elsewhere, key=len)}?"
    return f"known here are {', '.join(known)}"


def _named(tree: Tree) -> str:
    if isinstance(tree, Table):
        return "a mapping"
    if isinstance(tree, Items):
        return "a list"
    return "nothing" if tree.value is None else f'"{tree.written}"'


def _fix(kind: Kind, tree: Tree) -> str:
    if kind.item and kind.item.is_section:
        return '; begin each entry with "- "'
    return f"; write [{tree.written}]" if kind.item and isinstance(tree, Scalar) else ""
