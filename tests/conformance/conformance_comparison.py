"""Compares a recording with those of real servers, and says where it differs.

With one reference every step must be equal to its own, in the normal form. With several, as for a proxy in front of
servers of several versions, each part of a step must be equal to the same part of one of them, as a whole: a part is
what one server makes, so it is of one version or of another and never a mixture of both. Parts are an answer; where the
answer is a history of several prompts, each of its entries; and of what a websocket received everything from the start
of its prompt on, and each frame before that, which a proxy sends by itself.

Of a server error in the reference only the fact counts that it was the request that was wrong: a 4xx is as good.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from conformance_driver import SCENARIOS
from conformance_normal import is_id, normal
from conformance_recording import Recording, Step

_EXACT_BODIES = frozenset({"uploads"})  # what was uploaded comes back byte by byte
_LONG = 160  # characters of a value that are shown


def differences(
    recording: Recording,
    references: Mapping[str, Recording],
    *,
    nodes: Collection[str] = (),
    only: Collection[str] = SCENARIOS,
) -> list[str]:
    """Return how a recording differs from the references, a line for each difference.

    Args:
        references: recordings by the names that the lines show, if there are several.
        nodes: names of the servers behind a proxy; see `normal`.
        only: names of the scenarios to compare.
    """
    found: list[str] = []
    for name in SCENARIOS:
        if name in only:
            found += _of_scenario(name, recording, references, nodes)
    return found


def _of_scenario(
    name: str, recording: Recording, references: Mapping[str, Recording], nodes: Collection[str]
) -> Iterator[str]:
    if name in recording["errors"]:
        yield f"{name}: broke off: {recording['errors'][name]}"
        return
    if name not in recording["scenarios"]:
        yield f"{name}: not played"
        return
    exact = name in _EXACT_BODIES
    got = normal(recording["scenarios"][name], nodes=nodes, exact_bodies=exact)
    wanted = {known: normal(real["scenarios"][name], exact_bodies=exact) for known, real in references.items()}
    for steps in wanted.values():
        if parted := list(_of_value("steps", list(map(_label, got)), list(map(_label, steps)))):
            yield f"{name}: {parted[0]}"
            return
    for index, step in enumerate(got):
        for line in _of_step(step, {known: steps[index] for known, steps in wanted.items()}):
            yield f"{name}: {_label(step)}: {line}"


def _of_step(got: Step, wanted: Mapping[str, Step]) -> Iterator[str]:
    if any(step.get("status", 0) >= 500 and 400 <= got.get("status", 0) < 500 for step in wanted.values()):
        return
    parts, wanted_parts = _parts(got), {known: _parts(step) for known, step in wanted.items()}
    for part in dict.fromkeys(name for cut in (parts, *wanted_parts.values()) for name in cut):
        found = {
            known: list(_of_value(part, parts.get(part, _NOTHING), cut.get(part, _NOTHING)))
            for known, cut in wanted_parts.items()
        }
        if not all(found.values()):
            continue
        if len(found) == 1:
            yield from found.popitem()[1]
        else:
            yield "; ".join(f"{lines[0]} in {known}" for known, lines in found.items())


class _Nothing:
    """Stands for what is not there."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _parts(step: Step) -> dict[str, Any]:
    """Cut a step into what one server has made as a whole."""
    if "ws" in step:
        frames = step["frames"]
        begin = next((i for i, frame in enumerate(frames) if frame.get("text") == "execution_start"), len(frames))
        return {f"frame {i}": frame for i, frame in enumerate(frames[:begin])} | {f"frames[{begin}:]": frames[begin:]}
    entries = step.get("json")
    if isinstance(entries, dict) and len(entries) > 1 and all(map(is_id, entries)):
        return {"answer": {**step, "json": "<entries>"}, **{f"json.{key}": entry for key, entry in entries.items()}}
    return {"answer": step}


def _of_value(place: str, got: Any, want: Any) -> Iterator[str]:
    if isinstance(got, dict) and isinstance(want, dict):
        for key in sorted(got.keys() | want.keys()):
            yield from _of_value(f"{place}.{key}", got.get(key, _NOTHING), want.get(key, _NOTHING))
    elif isinstance(got, list) and isinstance(want, list):
        yield from _of_list(place, got, want)
    elif got != want:
        yield f"{place} is {_brief(got)}, recorded {_brief(want)}"


def _of_list(place: str, got: list[Any], want: list[Any]) -> Iterator[str]:
    """Go by item if the lists are alike; else tell where they part, for all that follows would differ, too."""
    names, wanted_names = list(map(_event, got)), list(map(_event, want))
    if names == wanted_names:
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            yield from _of_value(f"{place}[{index}]", one, other)
        return
    if not any(names) and not any(wanted_names):
        names, wanted_names = got, want
    index = next(i for i, (one, other) in enumerate(zip_longest(names, wanted_names)) if one != other)
    one, other = (_brief(items[index] if index < len(items) else _NOTHING) for items in (names, wanted_names))
    yield f"{place}[{index}] is {one}, recorded {other}; {len(got)} items, recorded {len(want)}"


def _event(item: Any) -> Any:
    """Return the name of a frame's event, None for anything else."""
    if not isinstance(item, dict):
        return None
    return item["text"] if isinstance(item.get("text"), str) else item.get("binary")


def _label(step: Step) -> str:
    return str(step.get("http") or f"ws {step['ws']}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
