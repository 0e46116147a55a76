"""The types of the schema taken apart: what each key may hold, and the test of one value against it."""

import dataclasses
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from comfyproxy.core.words import nearest
from comfyproxy.settings.rules import BareWord, Range

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_MAX_SHOWN = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What one key may hold."""

    type: Any  # bool, int, float, str, Path, tuple, dict (free form), or the dataclass of a section
    choices: tuple[str, ...] = ()
    item: "Kind | None" = None  # of a tuple
    range: Range | None = None
    rules: tuple[Callable[[Any], Any], ...] = ()
    word: str | None = None  # may stand for the whole section
    is_optional: bool = False  # None is a value
    is_required: bool = False

    @property
    def is_section(self) -> bool:
        """Whether it holds keys of its own."""
        return dataclasses.is_dataclass(self.type)

    @property
    def is_scalar(self) -> bool:
        """Whether it holds a single value."""
        return not (self.is_section or self.type in (tuple, dict))

    def __str__(self) -> str:
        """Say what is expected."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.is_section:
            return f"a mapping or the word {self.word}" if self.word else "a mapping"
        if self.type in (int, float):
            words = "a whole number" if self.type is int else "a number"
            return f"{words} {self.range}" if self.range else words
        return {bool: "true or false", str: "a text", Path: "a path", tuple: "a list"}.get(self.type, "a mapping")


@cache
def kinds(section: type) -> dict[str, Kind]:
    """Return the keys of a section, in their order."""
    hints = get_type_hints(section, include_extras=True)
    return {
        field.name: dataclasses.replace(
            _kind(hints[field.name]),
            is_required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(section)
    }


def every_key(section: type, above: str = "") -> Iterator[tuple[str, Kind]]:
    """Yield every key with its dotted path, sections and what is in lists included: `nodes.static_nodes[].port`."""
    for name, kind in kinds(section).items():
        path = f"{above}{name}"
        yield path, kind
        if kind.is_section:
            yield from every_key(kind.type, f"{path}.")
        elif kind.item and kind.item.is_section:
            yield from every_key(kind.item.type, f"{path}[].")


def _kind(hint: Any) -> Kind:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = _kind(arguments[0])
        for extra in hint.__metadata__:
            if isinstance(extra, Range):
                kind = dataclasses.replace(kind, range=extra)
            elif isinstance(extra, BareWord):
                kind = dataclasses.replace(kind, word=extra.word)
            else:
                kind = dataclasses.replace(kind, rules=(*kind.rules, extra))
        return kind
    if origin in (Union, types.UnionType):
        return dataclasses.replace(_kind(arguments[0]), is_optional=True)
    if origin is Literal:
        return Kind(str, choices=arguments)
    if origin is tuple:
        return Kind(tuple, item=_kind(arguments[0]))
    return Kind(hint if origin is None else dict)


def convert(kind: Kind, value: Any, written: str | None = None) -> Any:
    """Return a single value as the schema wants it.

    Args:
        written: how it stands in the file, to be shown.
    Raises ValueError, with what is expected, what was found and, where it is clear, how to put it right.
    """
    if value is None and kind.is_optional:
        return None
    if not _fits(kind, value):
        raise ValueError(f"expected {kind}, found {_shown(value, written)}{_fix(kind, value, written)}")
    if kind.type in (float, Path):
        value = kind.type(value)
    for rule in kind.rules:
        value = rule(value)
    return value


def from_text(kind: Kind, text: str) -> Any:
    """Return what a text without types (from the environment) means; the text itself if that is not clear."""
    if kind.type is bool:
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(text.lower(), text)
    if kind.type in (int, float):
        try:
            return kind.type(text)
        except ValueError:
            return text
    return text


def _fits(kind: Kind, value: Any) -> bool:
    if kind.type is bool:
        return isinstance(value, bool)
    if kind.type in (int, float):
        is_number = isinstance(value, int if kind.type is int else (int, float)) and not isinstance(value, bool)
        if is_number and kind.type is float:
            try:
                value = float(value)
            except OverflowError:
                return False
        return is_number and (kind.range is None or value in kind.range)
    if kind.choices:
        return isinstance(value, str) and value in kind.choices
    return isinstance(value, (str, Path) if kind.type is Path else str) and value != ""


def _shown(value: Any, written: str | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f'the text "{_shortened(value)}"'
    return _shortened(repr(value) if written is None else written)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _fix(kind: Kind, value: Any, written: str | None) -> str:
    if kind.choices:
        meant = nearest(value, kind.choices) if isinstance(value, str) else None
        return f"; did you mean {meant}?" if meant else ""
    if kind.type in (str, Path) and isinstance(value, (bool, int, float)):
        return f'; write "{_shortened(str(value) if written is None else written)}", with quotes'
    if kind.type in (bool, int, float) and isinstance(value, (str, int)):
        meant = from_text(kind, str(value) if written is None else written)
        if _fits(kind, meant) and not isinstance(value, bool):
            quotes = ", without quotes" if isinstance(value, str) else ""
            return f"; write {str(meant).lower()}{quotes}"
    return ""
