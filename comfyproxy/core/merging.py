"""What several backends say they have, put together so that it reads as if one server had it all.

Each function takes the answers of the backends, the home backend's first, and puts what the others have beyond it
behind. Where they have nothing beyond it, the first answer stays the bytes that it came as. An answer that is not what
ComfyUI would say counts as if it were not there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from comfyproxy.core import rawjson
from comfyproxy.core.catalog import Catalog
from comfyproxy.core.definitions import key_of, merge_definitions


def unite_classes(catalogs: Sequence[Catalog]) -> bytes:
    """Return the `/object_info` of all node classes; where several backends have one, with all their choices."""
    variants: dict[str, dict[bytes, None]] = {}
    for catalog in catalogs:
        for name, definition in catalog.definitions.items():
            variants.setdefault(name, {})[definition.json] = None
    return rawjson.obj({name: merge_definitions(list(found)) for name, found in variants.items()})


def unite_class(name: str) -> Callable[[Sequence[bytes]], bytes]:
    """Return what merges answers of `/object_info/{class}`, which are `{}` where a backend lacks the class."""

    def unite(answers: Sequence[bytes]) -> bytes:
        found = [raw for answer in answers if (raw := _members(answer).get(name)) is not None]
        if not found:
            return answers[0]
        merged = merge_definitions(list(dict.fromkeys(found)))
        return answers[0] if merged == _members(answers[0]).get(name) else rawjson.obj({name: merged})

    return unite


def unite_names(answers: Sequence[bytes]) -> bytes:
    """Merge lists of names: `/models`, `/models/{folder}`, `/embeddings`."""

    def unite(first: list[Any], others: Sequence[list[Any]]) -> list[Any]:
        known = {key_of(item) for item in first}
        beyond: dict[Any, Any] = {}
        for item in (item for items in others for item in items):
            if (key := key_of(item)) not in known:
                beyond.setdefault(key, item)
        return first + list(beyond.values())

    return _united(answers, unite)


def unite_folders(answers: Sequence[bytes]) -> bytes:
    """Merge `/experiment/models`: of each kind of model all the folders where it may lie."""

    def unite(first: list[Any], others: Sequence[list[Any]]) -> list[Any]:
        kinds = {_name_of(kind): kind for kind in first}
        for kind in (kind for items in others for kind in items):
            name = _name_of(kind)
            kinds[name] = _with_folders(kinds[name], kind) if name in kinds else kind
        return list(kinds.values())

    return _united(answers, unite)


def unite_models(answers: Sequence[bytes]) -> bytes:
    """Merge `/experiment/models/{folder}`, whose items have a `name` and the `pathIndex` of their folder.

    One server may have the same name in two of its folders, and then lists both. But a prompt says only the name, so a
    model that two servers have is one to choose, wherever each of them keeps it: the page would show it twice.
    """

    def unite(first: list[Any], others: Sequence[list[Any]]) -> list[Any]:
        merged, known = list(first), set(map(_name_of, first))
        for items in others:
            beyond = [item for item in items if _name_of(item) not in known]
            merged += beyond
            known.update(map(_name_of, beyond))
        return merged

    return _united(answers, unite)


def unite_stats(answers: Sequence[bytes]) -> bytes:
    """Merge `/system_stats`: the first one's system, and the devices of all."""
    stats = [_decoded(answer) for answer in answers]
    first, *others = stats
    if not isinstance(first, dict) or not isinstance(first.get("devices"), list):
        return answers[0]
    devices = [
        device
        for other in others
        if isinstance(other, dict) and isinstance(other.get("devices"), list)
        for device in other["devices"]
    ]
    return rawjson.encode({**first, "devices": first["devices"] + devices}) if devices else answers[0]


def listed(answer: bytes) -> Iterator[tuple[str, int]]:
    """Yield the name and the `pathIndex` of each model of a list; 0 for one that is a mere name."""
    items = _decoded(answer)
    for item in items if isinstance(items, list) else ():
        name = item.get("name") if isinstance(item, dict) else item
        if isinstance(name, str):
            index = item.get("pathIndex") if isinstance(item, dict) else 0
            yield name, index if isinstance(index, int) else 0


def _united(answers: Sequence[bytes], unite: Callable[[list[Any], Sequence[list[Any]]], list[Any]]) -> bytes:
    lists = [(answer, items) for answer in answers if isinstance(items := _decoded(answer), list)]
    if len(lists) < 2:
        return lists[0][0] if lists else answers[0]
    (answer, first), *others = lists
    merged = unite(first, [items for _, items in others])
    return answer if merged == first else rawjson.encode(merged)


def _with_folders(known: Any, other: Any) -> Any:
    """Return a kind of model with the folders that another backend has beyond."""
    if not isinstance(known, dict) or not isinstance(other, dict):
        return known
    folders, more = known.get("folders"), other.get("folders")
    if not isinstance(folders, list) or not isinstance(more, list):
        return known
    return {**known, "folders": folders + [path for path in more if path not in folders]}


def _name_of(item: Any) -> Any:
    """Return what tells items with a name apart."""
    name = item.get("name") if isinstance(item, dict) else item
    return key_of(name) if isinstance(name, str) else key_of(item)


def _decoded(answer: bytes) -> Any:
    try:
        return rawjson.decode(answer)
    except (ValueError, RecursionError):
        return None


def _members(answer: bytes) -> dict[str, bytes]:
    try:
        return rawjson.members(answer)
    except (ValueError, RecursionError):
        return {}
