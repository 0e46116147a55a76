"""All sources of the configuration, put together: the command line over the environment over the file."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from comfyproxy.core.words import nearest
from comfyproxy.settings.backends import parse_backends
from comfyproxy.settings.kinds import Kind, convert, every_key, from_text
from comfyproxy.settings.problems import BadSettings, Problem
from comfyproxy.settings.reading import read_file
from comfyproxy.settings.schema import Settings

PREFIX = "COMFYPROXY_"
BACKENDS = f"{PREFIX}BACKENDS"
CONFIG = f"{PREFIX}CONFIG"
_COMMAND_LINE = "command line"
_NODES = "nodes.static_nodes"

# Kubernetes puts these into every container next to a service called comfyproxy (or comfyproxy-...), unasked.
_OF_KUBERNETES = re.compile(
    r"COMFYPROXY(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
_URL_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://\S+")


def load(
    file: Path | None,
    *,
    backends: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str],
) -> Settings:
    """Return the settings of this process.

    Args:
        file: a YAML file; None for the defaults.
        backends: `[NAME=]URL` each; any at all replace the nodes of the environment and the file.
        overrides: dotted path -> value, from the command line; None means that nothing was said there.
        environ: the environment; a variable that is empty counts as not set.
    Raises BadSettings, with all that is wrong in all of them.
    """
    settings, problems = read_file(file) if file is not None else (Settings(), [])
    values: dict[str, Any] = {}
    for source in (_of_environment(environ), _of_command_line(backends, overrides or {})):
        values.update(source[0])
        problems += source[1]
    if problems:
        raise BadSettings(problems)
    for path, value in values.items():
        settings = _with(settings, path.split("."), value)
    return settings


@cache
def variables() -> dict[str, str]:
    """Return environment variable -> dotted path, of every key that can be set there."""
    return {PREFIX + path.replace(".", "_").upper(): path for path in _settable()}


@cache
def _settable() -> dict[str, Kind]:
    return {path: kind for path, kind in every_key(Settings) if kind.is_scalar and "[" not in path}


def _of_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG or not text.strip() or _is_of_kubernetes(name, text):
            continue
        if name == BACKENDS:
            values[_NODES], found = parse_backends(re.split(r"[\s,]+", text.strip(" \t\r\n,")), name)
            problems += found
        elif name in variables():
            path = variables()[name]
            _set(values, problems, name, path, text.strip())
        else:
            near = nearest(name, [*variables(), BACKENDS, CONFIG])
            problems.append(Problem(name, f"unknown variable; did you mean {near}?" if near else "unknown variable"))
    return values, problems


def _of_command_line(backends: Sequence[str], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    if backends:
        values[_NODES], problems = parse_backends(backends, _COMMAND_LINE)
    for path, value in overrides.items():
        if value is None:
            continue
        if path in _settable():
            _set(values, problems, _COMMAND_LINE, path, value)
        else:
            near = nearest(path, _settable())
            problems.append(
                Problem(_COMMAND_LINE, f"unknown key; did you mean {near}?" if near else "unknown key", path)
            )
    return values, problems


def _set(values: dict[str, Any], problems: list[Problem], where: str, path: str, value: Any) -> None:
    kind = _settable()[path]
    try:
        values[path] = convert(kind, from_text(kind, value) if isinstance(value, str) else value)
    except ValueError as exc:
        problems.append(Problem(where, str(exc), path))


def _with(section: Any, path: Sequence[str], value: Any) -> Any:
    """Return a section with one value changed, at any depth."""
    name, *rest = path
    return dataclasses.replace(section, **{name: _with(getattr(section, name), rest, value) if rest else value})


def _is_of_kubernetes(name: str, text: str) -> bool:
    return bool(_OF_KUBERNETES.fullmatch(name) or (name.endswith("_PORT") and _URL_OF_KUBERNETES.fullmatch(text)))
