"""Configuration files for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from comfyproxy.settings import BadSettings, Settings, load


def read(folder: Path, text: str | bytes, *, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
    """Load `text` as the file `my.yaml`."""
    file = folder / "my.yaml"
    file.write_bytes(dedent(text).encode() if isinstance(text, str) else text)
    return load(file, environ=environ or {}, **options)


def complaints(folder: Path, text: str | bytes, **options: Any) -> list[str]:
    """Return the lines of the error that `text` leads to; a line break in front of it does not count as a line."""
    text = text.removeprefix("\n") if isinstance(text, str) else text
    with pytest.raises(BadSettings) as caught:
        read(folder, text, **options)
    lines = str(caught.value).replace(f"{folder / 'my.yaml'}", "my.yaml").splitlines()
    assert len(lines) == len(caught.value.problems)
    return lines


def refused(
    *,
    backends: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the lines of the error that a command line and an environment lead to."""
    with pytest.raises(BadSettings) as caught:
        load(None, backends=backends, overrides=overrides, environ=environ or {})
    return str(caught.value).splitlines()
