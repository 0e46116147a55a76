"""A YAML file as a tree in which everything knows its line. Nothing here knows what the keys mean."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.constructor import SafeConstructor

from comfyproxy.settings.problems import Problem

_TAG = "tag:yaml.org,2002:"
# Dates stay as they are written: nothing here wants one, and what is free form goes out as JSON again.
_TEXTS = {f"{_TAG}{name}" for name in ("str", "timestamp", "value")}


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value: None, a bool, an int, a float or a str."""

    value: Any
    written: str
    line: int


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: "list[Tree]"
    line: int


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; its keys are texts as they are written, each with its line."""

    entries: "dict[str, tuple[int, Tree]]"
    line: int


Tree: TypeAlias = Scalar | Items | Table


def joined(path: str, key: str | int) -> str:
    """Return the dotted path of a key or an item below `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def plain(tree: Tree) -> Any:
    """Return the values without their lines."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, Items):
        return [plain(item) for item in tree.items]
    return {key: plain(value) for key, (_, value) in tree.entries.items()}


def read_document(file: Path) -> tuple[Tree | None, list[Problem]]:
    """Read a file; no tree if it is empty or no YAML."""
    where = str(file)
    try:
        data = file.read_bytes()
    except OSError as exc:
        return None, [Problem(where, exc.strerror or str(exc))]
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        return None, [Problem(where, "not valid YAML: it is not UTF-8", line=data.count(b"\n", 0, exc.start) + 1)]
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        builder = _Builder(where)
        return (None if node is None else builder.build(node, "")), builder.problems
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        return None, [Problem(where, "not valid YAML: a control character is not allowed", line=line)]
    except yaml.MarkedYAMLError as exc:
        return None, [_syntax_problem(where, exc)]
    except RecursionError:
        return None, [Problem(where, "not usable: it is nested too deeply")]


def _syntax_problem(where: str, exc: yaml.MarkedYAMLError) -> Problem:
    mark = exc.problem_mark or exc.context_mark
    said = exc.problem or exc.context or "it cannot be read"
    if exc.problem and exc.context:
        began = f" that begins on line {exc.context_mark.line + 1}" if exc.context_mark else ""
        said = f"{said} ({exc.context}{began})"
    return Problem(where, f"not valid YAML: {said}", line=mark.line + 1 if mark else None)


@dataclass(slots=True)
class _Builder:
    """Turns PyYAML's nodes into a tree. An anchor's node is built once, however often it is named."""

    where: str
    problems: list[Problem] = field(default_factory=list)
    _built: dict[int, Tree] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _constructor: SafeConstructor = field(default_factory=SafeConstructor)

    def build(self, node: yaml.Node, path: str) -> Tree:
        """Return the tree of a node, and note what is wrong with it."""
        known = self._built.get(id(node))
        if known is not None:
            return known
        line = _line(node)
        if id(node) in self._open:
            self._note("an anchor must not contain itself", path, line)
            return Scalar(None, "", line)
        self._open.add(id(node))
        built: Tree
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, "map", path)
            built = self._table(node, path)
        elif isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq", path)
            built = Items([self.build(item, joined(path, index)) for index, item in enumerate(node.value)], line)
        else:
            built = Scalar(self._value(node, path), str(node.value), line)
        self._open.discard(id(node))
        self._built[id(node)] = built
        return built

    def _table(self, node: yaml.MappingNode, path: str) -> Table:
        entries: dict[str, tuple[int, Tree]] = {}
        merged: list[Tree] = []
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._note("a key must be a text", path, line)
                continue
            key = str(key_node.value)
            value = self.build(value_node, joined(path, key))
            if key_node.tag == f"{_TAG}merge":
                merged += value.items if isinstance(value, Items) else [value]
            elif key in entries:
                self._note(f"the key is there twice, on lines {entries[key][0]} and {line}", joined(path, key), line)
            else:
                entries[key] = (line, value)
        for tree in merged:
            if not isinstance(tree, Table):
                self._note("expected a mapping to merge", joined(path, "<<"), tree.line)
                continue
            for key, entry in tree.entries.items():
                entries.setdefault(key, entry)
        return Table(entries, _line(node))

    def _value(self, node: yaml.Node, path: str) -> Any:
        if node.tag in _TEXTS:
            return node.value
        construct: Callable[[Any], Any] | None = {
            f"{_TAG}null": self._constructor.construct_yaml_null,
            f"{_TAG}bool": self._constructor.construct_yaml_bool,
            f"{_TAG}int": self._constructor.construct_yaml_int,
            f"{_TAG}float": self._constructor.construct_yaml_float,
        }.get(node.tag)
        if construct is None:
            self._note(f"the tag {_short(node.tag)} is not supported", path, _line(node))
            return None
        try:
            return construct(node)
        except (ValueError, LookupError):  # an explicit tag on something else, or thousands of digits
            self._note(f"this is no {_short(node.tag)}", path, _line(node))
            return None

    def _check_tag(self, node: yaml.Node, wanted: str, path: str) -> None:
        if node.tag != f"{_TAG}{wanted}":
            self._note(f"the tag {_short(node.tag)} is not supported", path, _line(node))

    def _note(self, message: str, path: str, line: int) -> None:
        self.problems.append(Problem(self.where, message, path, line))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")
