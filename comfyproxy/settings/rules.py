"""What a value must be beyond its type. Where one is not, the ValueError's text is for whoever wrote it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from comfyproxy import plugins

MAX_NAME = 64
_UNFIT = re.compile(r'[/\\:*?"<>|]')
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/\\@?#,;]+", re.IGNORECASE)
# Windows opens a device under these names, whatever the extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that are allowed; never an infinity or NaN."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # as `minimum`, without the bound itself
    unit: str = ""  # in the plural

    def __contains__(self, number: float) -> bool:
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
        )

    def __str__(self) -> str:
        of = f"of {self.unit} " if self.unit else ""
        if self.minimum is not None and self.maximum is not None:
            return f"{of}from {self.minimum} to {self.maximum}"
        return f"{of}above {self.above}" if self.minimum is None else f"{of}from {self.minimum} up"


@dataclass(frozen=True, slots=True)
class BareWord:
    """The word that may stand for a whole section; it sets the boolean key of that name."""

    word: str


def checked_text(text: str) -> str:
    """Return a text that is not empty."""
    if not text.strip():
        raise ValueError("expected a text, found an empty one")
    return text


def checked_path(path: Path) -> Path:
    """Return a folder's path, with the user's home in place of a leading `~`."""
    if not str(path).isprintable():
        raise ValueError("expected a path, found one with control characters in it")
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise ValueError(f"expected a path, found {path} ({exc})") from None


def checked_strategy(name: str) -> str:
    """Return the name of a strategy that is built in, or installed and fit for use."""
    plugins.make_strategy(name)
    return name


def checked_origin(text: str) -> str:
    """Return what a browser may send as `Origin`, or `*`."""
    if text == "*":
        return text
    origin = _ORIGIN.match(text)
    if origin and origin.group() == text and text.isprintable():
        return text.lower()
    fix = f'; write "{origin.group()}"' if origin else ""
    raise ValueError(f'expected "*" or one origin such as https://app.example, found "{text}"{fix}')


def checked_name(name: str) -> str:
    """Return a backend's name if it can be a folder on any system and a part of a URL: outputs are put under it."""
    fault = name_fault(name)
    if fault:
        raise ValueError(f'expected a name that can be a folder, found "{name}": {fault}')
    return name


def name_fault(name: str) -> str | None:
    """Return what keeps a name from being a folder's on Linux or Windows; None if nothing does."""
    if not name:
        return "it is empty"
    if unfit := _UNFIT.search(name):
        return f"{unfit.group()} is not allowed"
    if not name.isprintable():
        return "control characters are not allowed"
    if name != name.strip(" ."):
        return "it begins or ends with a space or a dot"
    if _DEVICES.fullmatch(name):
        return "Windows keeps this name for a device"
    if len(name) > MAX_NAME:
        return f"it is longer than {MAX_NAME} characters"
    return None
