"""What the list inputs of a node class offer.

Choices stand in `/object_info` in two forms, `[["a", "b"], {...}]` and `["COMBO", {"options": ["a", "b"], ...}]`.
Source: ComfyUI 0.25.0, `execution.py` (`validate_inputs`), `comfy_api/latest/_io.py`.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyproxy.core.model_names import canonical

GROUPS = ("required", "optional")
COMBO = "COMBO"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Choices:
    """The choices of one list, in the spelling of the server that offers them."""

    values: frozenset[str]
    by_canonical: Mapping[str, str]  # canonical form -> the choice, of those that are spelled otherwise

    @classmethod
    def of(cls, values: frozenset[str]) -> "Choices":
        """Take the choices of a list."""
        others = [value for value in values if canonical(value) != value]
        # Sorted: of two that look like one model (a backslash can be part of a name on Linux) always the same is taken.
        return cls(values, {canonical(value): value for value in sorted(others)})

    def spelling(self, value: str) -> str | None:
        """Return how this list spells a choice; None where it does not offer it."""
        if value in self.values:
            return value
        name = canonical(value)
        return name if name in self.values else self.by_canonical.get(name)


def lists_of(inputs: Mapping[str, Any], *, uploads: Container[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the list inputs of a class, and what they offer.

    Only where it is certain that nothing else is taken: not for the inputs that take uploaded files (`uploads`), nor
    for lists that the server fills on demand, of which several may be chosen, or that hold something else than strings.
    """
    found: set[str] = set()
    for group in GROUPS:
        declared = inputs.get(group)
        for name, spec in declared.items() if isinstance(declared, dict) else ():
            choices = _choices(spec)
            if choices is not None and name not in uploads and name not in found:
                found.add(name)
                yield name, frozenset(choices)


def _choices(spec: Any) -> list[str] | None:
    if not isinstance(spec, list) or not spec:
        return None
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options") if spec[0] == COMBO else None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return None
    if "remote" in options or options.get("multiselect") or options.get("multi_select"):
        return None
    return choices
