"""What is wrong with a configuration, said so that whoever wrote it finds the place."""

from collections.abc import Sequence
from dataclasses import dataclass

from comfyproxy.core.errors import ComfyproxyError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; its str() is one line."""

    where: str  # a file, an environment variable, or the command line
    message: str
    path: str = ""  # dotted, as nodes.static_nodes[1].max_concurrent; empty if it concerns the whole
    line: int | None = None

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class BadSettings(ComfyproxyError):
    """The configuration cannot be used. Holds every problem of it, in the order of the file; str() has a line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)
