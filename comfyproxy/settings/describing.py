"""Settings said to people: everything that was understood, and what to be warned of."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

from comfyproxy.settings.kinds import kinds
from comfyproxy.settings.schema import Settings


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write out everything where it is used: a reader must not look for anchors."""
        return True


def describe(settings: Settings) -> str:
    """Return every key with its value, as YAML that says the same if it is loaded."""
    text: str = yaml.dump(_plain(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def warnings(settings: Settings) -> list[str]:
    """Return what is allowed and yet not what somebody would expect; a line each."""
    lines = []
    if settings.outputs.keep and settings.outputs.shared:
        lines.append("outputs.keep: copies are shown only where outputs are not shared; they are made for nothing")
    check = settings.nodes.health_check
    if check.heartbeat_timeout < check.interval + check.timeout:
        lines.append(
            f"nodes.health_check.heartbeat_timeout: {check.heartbeat_timeout:g} s is less than interval and timeout "
            f"together ({check.interval + check.timeout:g} s): one slow answer is enough to give up a backend's jobs"
        )
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        section: type = type(value)
        return {name: _plain(getattr(value, name)) for name in kinds(section)}
    return value
