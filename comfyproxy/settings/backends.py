"""Backends as they are named on a command line, and what must differ between any two."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from comfyproxy.settings.addresses import COMFYUI_PORT, Address, parse_backend_url
from comfyproxy.settings.problems import Problem
from comfyproxy.settings.rules import MAX_NAME, checked_name, name_fault
from comfyproxy.settings.schema import NodeSettings


@dataclass(frozen=True, slots=True)
class Placed:
    """A node as it was read, and where that was; what could not be read of it is None."""

    name: str | None
    url: str | None
    where: str
    path: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)  # key -> line

    def said(self, *keys: str) -> str:
        """Say which node this is; the line is that of the first of `keys` that was given."""
        line = next((self.lines[key] for key in keys if key in self.lines), None)
        return f'"{self.name}" ({self.url})' if line is None else f"{self.path} (line {line})"

    def problem(self, key: str, message: str) -> Problem:
        """Return a problem with one of its keys."""
        return Problem(self.where, message, f"{self.path}.{key}" if self.path else "", self.lines.get(key))


def parse_backends(texts: Iterable[str], where: str) -> tuple[tuple[NodeSettings, ...], list[Problem]]:
    """Read `[NAME=]URL`s; a URL may be a mere `host[:port]`."""
    nodes: list[NodeSettings] = []
    problems: list[Problem] = []
    for text in texts:
        name, equals, url = text.partition("=")
        if not equals or "://" in name:
            name, url = "", text
        elif not name:
            problems.append(Problem(where, f'expected [NAME=]URL, found "{text}"'))
            continue
        try:
            address = parse_backend_url(url)
            node_id = checked_name(name.strip()) if name else derived_name(address)
            nodes.append(NodeSettings(node_id=node_id, url=str(address)))
        except ValueError as exc:
            problems.append(Problem(where, str(exc)))
    problems += clashes([Placed(node.node_id, node.url, where) for node in nodes])
    return tuple(nodes), problems


def derived_name(address: Address) -> str:
    """Name a backend after its host, and its port where that is not ComfyUI's: the same whatever else there is."""
    port = "" if address.port == COMFYUI_PORT else f"-{address.port}"
    host = re.sub(r"[^\w.-]", "-", address.host)[: MAX_NAME - len(port)].strip("-.")
    name = f"{host or 'node'}{port}"
    return f"node-{name}"[:MAX_NAME] if name_fault(name) else name


def clashes(placed: Sequence[Placed]) -> list[Problem]:
    """Return a problem for every node that has the name or the URL of one before it."""
    problems: list[Problem] = []
    names: dict[str, Placed] = {}
    urls: dict[str, Placed] = {}
    for node in placed:
        if node.name is not None:
            # Folders that differ in case, or in how an umlaut is composed, are one folder on some systems.
            first = names.setdefault(unicodedata.normalize("NFKC", node.name).casefold(), node)
            if first is not node:
                how = "" if node.path else "; write NAME=URL to give it another"
                message = f'the name "{node.name}" is taken by {first.said("node_id")}{how}'
                problems.append(node.problem("node_id", message))
        if node.url is not None:
            first = urls.setdefault(node.url, node)
            if first is not node:
                key = "url" if "url" in node.lines else "host"
                problems.append(
                    node.problem(key, f"{node.url} is also {first.said('url', 'host')}; name a server once")
                )
    return problems
