"""The pages of the documentation, and what is said in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    language: str
    text: str


def text_of(name: str) -> str:
    """Return a page."""
    return (ROOT / name).read_text("utf-8")


def blocks(language: str) -> list[Block]:
    """Return the fenced blocks of a language on all pages."""
    return [
        Block(page, *found)
        for page in PAGES
        for found in _BLOCK.findall(page.read_text("utf-8"))
        if found[0] == language
    ]


def spans(text: str) -> list[str]:
    """Return what stands between single backticks."""
    return _SPAN.findall(_BLOCK.sub("", text))


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of the rows of all tables."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def anchors(text: str) -> set[str]:
    """Return what a link to a heading of the page may name, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
