"""What is different between two configurations, by dotted path; nothing here knows what the keys mean.

Nodes are told apart by their names, not by their place in the list: `nodes.static_nodes[gpu-a].max_concurrent`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comfyproxy.settings.kinds import kinds
from comfyproxy.settings.schema import NodeSettings, Settings

NODES = "nodes.static_nodes"  # as a key of a change: their order
NODE = f"{NODES}[]"  # as a key of a change: that there is one


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value is another."""

    path: str  # as people read it
    key: str  # as the schema has it: nodes.static_nodes[].max_concurrent


def changes(old: Settings, new: Settings) -> list[Change]:
    """Return what is different, in the order of the schema."""
    return list(_changes(old, new, "", ""))


def merged(old: Settings, new: Settings, is_taken: Callable[[str], bool]) -> Settings:
    """Return the old settings with those values of the new ones whose keys are taken."""
    result: Settings = _merged(old, new, "", is_taken)
    return result


def _changes(old: Any, new: Any, path: str, key: str) -> Iterator[Change]:
    """Compare two sections; `path` and `key` are what stands in front of their keys."""
    section: type = type(old)
    for name, kind in kinds(section).items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if kind.is_section:
            yield from _changes(before, after, f"{path}{name}.", f"{key}{name}.")
        elif f"{key}{name}" == NODES:
            yield from _changed_nodes(before, after)
        else:
            yield Change(f"{path}{name}", f"{key}{name}")


def _changed_nodes(old: Sequence[NodeSettings], new: Sequence[NodeSettings]) -> Iterator[Change]:
    before, after = _by_name(old), _by_name(new)
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield Change(NODES, NODES)
    for name in dict.fromkeys((*before, *after)):
        path = f"{NODES}[{name}]"
        if name in before and name in after:
            yield from _changes(before[name], after[name], f"{path}.", f"{NODE}.")
        else:
            yield Change(path, NODE)


def _merged(old: Any, new: Any, key: str, is_taken: Callable[[str], bool]) -> Any:
    values: dict[str, Any] = {}
    section: type = type(old)
    for name, kind in kinds(section).items():
        before, after = getattr(old, name), getattr(new, name)
        if kind.is_section:
            values[name] = _merged(before, after, f"{key}{name}.", is_taken)
        elif f"{key}{name}" == NODES:
            values[name] = _merged_nodes(before, after, is_taken)
        else:
            values[name] = after if is_taken(f"{key}{name}") else before
    return dataclasses.replace(old, **values)


def _merged_nodes(
    old: Sequence[NodeSettings], new: Sequence[NodeSettings], is_taken: Callable[[str], bool]
) -> tuple[NodeSettings, ...]:
    before, after = _by_name(old), _by_name(new)
    leading, other = (after, before) if is_taken(NODES) else (before, after)
    names = dict.fromkeys((*leading, *other))
    kept = after if is_taken(NODE) else before
    return tuple(
        _merged(before[name], after[name], f"{NODE}.", is_taken) if name in before and name in after else kept[name]
        for name in names
        if name in kept
    )


def _by_name(nodes: Sequence[NodeSettings]) -> dict[str, NodeSettings]:
    return {node.node_id: node for node in nodes}
