"""Takes out of a scenario's steps what two honest runs differ in.

Left out are times, counters of files and prompts, texts written for people, sizes of generated pictures, stack traces,
bodies and headers of refusals, and how often a status or a state of progress is told. Ids are kept as identities: each
is named after the place where the scenario first saw it, so that two runs agree if the same ids are in the same places.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from conformance_recording import Frame, Step

_ID = re.compile(r"\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})\b")
_FILE_COUNTER = re.compile(r"_\d{5}_")
_TEMPORARY = re.compile(r"temp_[a-z]{5}")

_TIMES = frozenset(
    {"timestamp", "create_time", "execution_start_time", "execution_end_time", "created", "modified", "mtime"}
)
_TEXTS = frozenset({"tooltip", "description", "search_aliases", "traceback"})
_MACHINE = frozenset({"bytes", "size", "asset", "asset_hash", "created_at"})
_ANY = _TIMES | _TEXTS | _MACHINE  # that the key is there counts, and what it holds does not
_NUMBERS = frozenset({"number", "priority"})
_SETS = frozenset({"executed", "current_outputs", "nodes"})  # of node ids, in the order of a Python set
_QUEUES = frozenset({"queue_running", "queue_pending"})


def normal(steps: Sequence[Step], *, nodes: Collection[str] = (), exact_bodies: bool = False) -> list[Step]:
    """Return the steps of one scenario without what may differ.

    Args:
        nodes: names that a proxy puts in front of output subfolders; they are taken off.
        exact_bodies: whether the bytes of bodies count, or only whether there are any.
    """
    form = _Form(nodes)
    plain = [_frames(step) if "ws" in step else _answer(step, exact_bodies) for step in steps]
    return [form.of_step(step) for step in plain]


def is_id(key: str) -> bool:
    """Whether a key of a normal form names an id."""
    return key.startswith("<id ")


def _answer(step: Step, exact_bodies: bool) -> Step:
    kept: Step = {name: step[name] for name in ("http", "status", "headers", "json", "body_text") if name in step}
    if "body_bytes" in step and exact_bodies:
        kept["body"] = [step["body_bytes"], step["body_sha256"]]
    elif step["status"] >= 400:
        kept.pop("body_text", None)
    elif "body_bytes" in step:
        kept["body"] = "some" if step["body_bytes"] else "none"
    if step["status"] >= 400:
        kept["headers"] = {}
    return kept


def _frames(step: Step) -> Step:
    """Keep the first status, which holds the sid, and the last of several states of progress in a row."""
    kept: list[Frame] = []
    for position, frame in enumerate(step["frames"]):
        event = frame.get("text")
        if event == "status" and (position or "sid" not in frame["data"]):
            continue
        if event == "progress_state" and kept and kept[-1].get("text") == event:
            kept.pop()
        kept.append(frame)
    return {"ws": step["ws"], "frames": kept}


class _Form:
    """The names that the ids of one scenario have got."""

    def __init__(self, nodes: Collection[str]) -> None:
        self._nodes = frozenset(nodes)
        self._names: dict[str, str] = {}
        self._seen: Counter[str] = Counter()

    def of_step(self, step: Step) -> Step:
        kind = "ws" if "ws" in step else "http"
        content = {name: value for name, value in step.items() if name != kind}
        return {kind: step[kind], **self.of(content, step[kind])}

    def of(self, value: Any, place: str, key: str | None = None) -> Any:
        if key in _ANY:
            return f"<{key}>"
        if key in _NUMBERS and isinstance(value, int | float):
            return "<number>"
        if isinstance(value, dict):
            # Objects have no order; only that of ids as keys is kept, for they are told apart by where they come.
            items = sorted(value.items(), key=lambda item: "" if _ID.search(item[0]) else item[0])
            return {self._text(name, place): self.of(inner, f"{place}.{name}", name) for name, inner in items}
        if isinstance(value, list):
            return self._list(value, place, key)
        if isinstance(value, str):
            return self._text(self._without_node(value, whole=key == "subfolder"), place)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def _list(self, value: list[Any], place: str, key: str | None) -> list[Any]:
        items = [self.of(item, f"{place}[{index}]") for index, item in enumerate(value)]
        if key == "prompt" and len(items) == 5:
            items[0] = "<number>"
        elif key in _QUEUES:
            items = [["<number>", *item[1:]] for item in items]
        elif key in _SETS and all(isinstance(item, str) for item in items):
            items.sort()
        return items

    def _without_node(self, value: str, *, whole: bool) -> str:
        """Take a node's name off a subfolder, which may be nothing else, or off a file such as `gpu-a/x.png`."""
        head, _, tail = value.partition("/")
        return tail if head in self._nodes and (tail or whole) else value

    def _text(self, value: str, place: str) -> str:
        value = _ID.sub(lambda found: self._name(found.group(), place), value)
        return _TEMPORARY.sub("temp_*", _FILE_COUNTER.sub("_#_", value))

    def _name(self, known: str, place: str) -> str:
        if known not in self._names:
            place = _ID.sub("*", place)
            self._seen[place] += 1
            nth = f" #{self._seen[place]}" if self._seen[place] > 1 else ""
            self._names[known] = f"<id of {place}{nth}>"
        return self._names[known]
