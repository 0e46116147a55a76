"""What a recording is, and the recordings of real servers.

A recording maps scenarios to their steps. A step is an exchange over HTTP (`http`, `status`, `headers`, and `json`,
`body_text`, or `body_bytes` with `body_sha256`) or what one websocket received (`ws`, `frames`).
"""

import json
from pathlib import Path
from typing import Any, TypedDict

Step = dict[str, Any]
Frame = dict[str, Any]

VERSIONS = ("0.25.0", "0.3.64")  # June 2026, October 2025; both on the CPU, without models
_FOLDER = Path(__file__).parent.parent / "data" / "recordings"


class Recording(TypedDict):
    scenarios: dict[str, list[Step]]
    errors: dict[str, str]  # what a scenario broke off with; its steps end there


def real(version: str) -> Recording:
    """Return what a real ComfyUI of a version answered."""
    recording: Recording = json.loads((_FOLDER / f"comfyui-{version}.json").read_text(encoding="utf-8"))
    return recording
