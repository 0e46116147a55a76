"""One definition of a node class out of several: the first one's, with the choices that the others have beyond it.

A client may choose any model of the fleet; which backend has it is the proxy's affair. All else (types, defaults,
tooltips, inputs that only another version has) is the first one's alone, so that it fits together. A model that two
backends spell differently (`core/model_names.py`) is one choice, in the spelling of the first.

Choices stand in `/object_info` in two forms (`core/choices.py`), and dynamic inputs hold further inputs. Source:
ComfyUI 0.25.0, `comfy_api/latest/_io.py`.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from comfyproxy.core import rawjson
from comfyproxy.core.choices import COMBO, GROUPS
from comfyproxy.core.model_names import canonical


def merge_definitions(variants: Sequence[bytes]) -> bytes:
    """Merge the descriptions of one class; the first stays as it came if the others have no more choices."""
    first, *others = variants
    if not others:
        return first
    try:
        wanted = json.loads(first)
        merged = _definition(wanted, [json.loads(other) for other in others])
    except (ValueError, RecursionError):
        return first
    return first if merged == wanted else rawjson.encode(merged)


def key_of(value: Any) -> Any:
    """Return what tells values apart as JSON does: 1 is neither true nor 1.0. But a model is one in all spellings."""
    return canonical(value) if isinstance(value, str) else (type(value).__name__, json.dumps(value, sort_keys=True))


def _definition(first: Any, others: Sequence[Any]) -> Any:
    if not isinstance(first, dict):
        return first
    merged = dict(first)
    if "input" in first:
        merged["input"] = _inputs(first["input"], _members(others, "input"))
    if isinstance(first.get("output"), list):
        merged["output"] = _outputs(first["output"], _members(others, "output"))
    return merged


def _inputs(first: Any, others: Sequence[Any]) -> Any:
    """Merge inputs by group and name; what is required here may be optional there."""
    if not isinstance(first, dict):
        return first
    merged = dict(first)
    for group in GROUPS:
        if isinstance(first.get(group), dict):
            merged[group] = {
                name: _input(declared, [found for other in others for found in _declared(other, name)])
                for name, declared in first[group].items()
            }
    return merged


def _input(first: Any, others: Sequence[Any]) -> Any:
    if not others or not isinstance(first, list) or not first:
        return first
    kind, *rest = first
    if isinstance(kind, list):
        return [_choices(kind, [choices for other in others for choices in _plain(other)]), *rest]
    options = _options(first)
    if options is None:
        return first
    merged = dict(options)
    alike = [found for other in others if _kind(other) == kind and (found := _options(other)) is not None]
    if isinstance(options.get("options"), list):
        if kind == COMBO:
            merged["options"] = _choices(options["options"], [choices for other in others for choices in _plain(other)])
        else:
            merged["options"] = _choices(options["options"], [o for o in _members(alike, "options") if _is_list(o)])
    if "inputs" in options:  # of a dynamic slot
        merged["inputs"] = _inputs(options["inputs"], _members(alike, "inputs"))
    template = options.get("template")  # of an input that repeats
    if isinstance(template, dict) and "input" in template:
        of_others = _members(_members(alike, "template"), "input")
        merged["template"] = {**template, "input": _inputs(template["input"], of_others)}
    return [kind, merged, *rest[1:]]


def _choices(first: list[Any], others: Iterable[list[Any]]) -> list[Any]:
    """Merge lists of choices; those of a dynamic combo have a `key`, and inputs of their own to be merged."""
    known = {_choice_key(choice): choice for choice in first}
    merged = list(first)
    inner: dict[Any, list[Any]] = {}
    for choice in (choice for choices in others for choice in choices):
        key = _choice_key(choice)
        if key not in known:
            known[key] = choice
            merged.append(choice)
        elif isinstance(choice, dict) and isinstance(known[key], dict):
            inner.setdefault(key, []).append(choice)
    return [_dynamic(choice, inner.get(_choice_key(choice), ())) for choice in merged] if inner else merged


def _dynamic(choice: Any, others: Sequence[Any]) -> Any:
    if not others or not isinstance(choice, dict) or "inputs" not in choice:
        return choice
    return {**choice, "inputs": _inputs(choice["inputs"], _members(others, "inputs"))}


def _choice_key(choice: Any) -> Any:
    return ("key", key_of(choice["key"])) if isinstance(choice, dict) and "key" in choice else key_of(choice)


def _outputs(first: list[Any], others: Sequence[Any]) -> list[Any]:
    """Merge types of outputs, which are lists of choices, too, where they can be put into such inputs."""
    return [
        _choices(kind, [other[index] for other in others if _is_list(other, at=index)])
        if isinstance(kind, list)
        else kind
        for index, kind in enumerate(first)
    ]


def _declared(inputs: Any, name: str) -> Iterable[Any]:
    for group in GROUPS:
        declared = inputs.get(group) if isinstance(inputs, dict) else None
        if isinstance(declared, dict) and name in declared:
            yield declared[name]
            return


def _plain(declared: Any) -> Iterable[list[Any]]:
    """Yield the choices of an input of either form, if it has such."""
    kind, options = _kind(declared), _options(declared)
    if isinstance(kind, list):
        yield kind
    elif kind == COMBO and options is not None and isinstance(options.get("options"), list):
        yield options["options"]


def _kind(declared: Any) -> Any:
    return declared[0] if isinstance(declared, list) and declared else None


def _options(declared: Any) -> dict[str, Any] | None:
    options = declared[1] if isinstance(declared, list) and len(declared) > 1 else None
    return options if isinstance(options, dict) else None


def _members(values: Iterable[Any], key: str) -> list[Any]:
    return [value[key] for value in values if isinstance(value, dict) and key in value]


def _is_list(value: Any, *, at: int | None = None) -> bool:
    """Whether a value, or that in one place of a list, is a list."""
    return isinstance(value, list) and (at is None or (at < len(value) and isinstance(value[at], list)))
