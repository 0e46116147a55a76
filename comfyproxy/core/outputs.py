"""Names of files: a backend's name in front of a subfolder, and ComfyUI's annotated names (`x.png [output]`).

Two backends both make `ComfyUI_00001_.png`, so towards clients an output's subfolder starts with the backend that
has it. Source of the annotations: ComfyUI 0.25.0, `folder_paths.py` (`annotated_filepath`).
"""

from collections.abc import Container
from typing import Any, NamedTuple

from comfyproxy.core.jobs import BackendId

# Inputs are not among them: those have one name on every backend.
PREFIXED_TYPES = frozenset({"output", "temp"})
ANNOTATIONS = ("output", "input", "temp")


class Annotated(NamedTuple):
    """A file name as a node's input holds it."""

    path: str  # the subfolder is part of it
    type: str | None  # output, input or temp; None where the name does not say


def prefix_outputs(value: Any, backend: str) -> Any:
    """Return `value` with `backend` in front of the subfolder of every output file in it.

    Args:
        value: any JSON value: `output` of an `executed` message, or `outputs` of a history entry.

    Nothing is changed in place: what holds no output file is returned as it is, and parts without one are shared.
    """
    if isinstance(value, dict):
        return _prefix_dict(value, backend)
    if isinstance(value, list):
        return _prefix_list(value, backend)
    return value


def _prefix_dict(value: dict[str, Any], backend: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict | list) and item and (new := prefix_outputs(item, backend)) is not item:
            changed[key] = new
    subfolder = value.get("subfolder")
    if (
        isinstance(subfolder, str)
        and isinstance(value.get("filename"), str)
        and isinstance(value.get("type"), str)
        and value["type"] in PREFIXED_TYPES
    ):
        changed["subfolder"] = add_prefix(subfolder, backend)
    return {**value, **changed} if changed else value


def _prefix_list(value: list[Any], backend: str) -> list[Any]:
    changed: list[Any] | None = None
    for index, item in enumerate(value):
        if isinstance(item, dict | list) and item and (new := prefix_outputs(item, backend)) is not item:
            if changed is None:
                changed = value.copy()
            changed[index] = new
    return value if changed is None else changed


def add_prefix(subfolder: str, backend: str) -> str:
    """Return the subfolder as clients see it: `gpu-a`, `gpu-a/sub`."""
    return f"{backend}/{subfolder}" if subfolder else backend


def split_subfolder(subfolder: str, names: Container[str]) -> tuple[BackendId | None, str]:
    """Split `gpu-a/sub` into the backend and its own subfolder; (None, subfolder) where no backend is named.

    Clients on Windows join path and name with a backslash, so either separator ends the prefix.
    """
    head, rest = _split_first(subfolder)
    return (BackendId(head), rest) if head in names else (None, subfolder)


def split_path(path: str, names: Container[str]) -> tuple[BackendId | None, str]:
    """Split `gpu-a/sub/x.png` into the backend and its own path; (None, path) where no backend is named."""
    head, rest = _split_first(path)
    return (BackendId(head), rest) if rest and head in names else (None, path)


def split_name(path: str) -> tuple[str, str]:
    """Split a path into (subfolder, name); either separator counts, as servers may run on Windows."""
    cut = max(path.rfind("/"), path.rfind("\\"))
    return (path[:cut], path[cut + 1 :]) if cut >= 0 else ("", path)


def join_name(subfolder: str, name: str) -> str:
    """Return the path that a node's input holds: `sub/x.png`."""
    return f"{subfolder}/{name}" if subfolder else name


def parse_annotated(value: str) -> Annotated:
    """Take `sub/x.png [output]` apart.

    ComfyUI cuts off one character before the bracket whatever it is; only a space makes sense of that, so nothing
    else counts as an annotation here, and the backend says itself what it makes of it.
    """
    if value.endswith("]"):
        for file_type in ANNOTATIONS:
            if value.endswith(f" [{file_type}]"):
                return Annotated(value[: -len(file_type) - 3], file_type)
    return Annotated(value, None)


def format_annotated(path: str, file_type: str | None) -> str:
    """Put an annotated name together; the inverse of `parse_annotated`."""
    return path if file_type is None else f"{path} [{file_type}]"


def _split_first(path: str) -> tuple[str, str]:
    cuts = [cut for cut in (path.find("/"), path.find("\\")) if cut >= 0]
    if not cuts:
        return path, ""
    cut = min(cuts)
    return path[:cut], path[cut + 1 :]
