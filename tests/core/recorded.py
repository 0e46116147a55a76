"""What a real ComfyUI 0.25.0 answered, for tests to measure against."""

import json
from pathlib import Path
from typing import Any

from comfyproxy.core.jobs import Job, Payload

_RECORDED: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data" / "recorded_entries.json").read_text())


def recorded(name: str) -> Any:
    """Return a fresh copy of a recorded value."""
    return json.loads(json.dumps(_RECORDED[name]))


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def job_of(entry: Any, **changes: Any) -> Job:
    """Return the job that an entry is of, as the proxy would have known it."""
    number, prompt_id, _, extra_data, outputs = entry["prompt"][:5]
    workflow = extra_data.get("extra_pnginfo", {}).get("workflow", {})
    known: dict[str, Any] = {
        "prompt_id": prompt_id,
        "number": float(number),
        "client_id": extra_data.get("client_id"),
        "fingerprint": "",
        "created_s": extra_data["create_time"] / 1000,
        "outputs_to_execute": tuple(outputs),
        "workflow_id": workflow.get("id"),
    }
    return Job(**{**known, **changes})


def payload_of(entry: Any) -> Payload:
    graph, extra_data = entry["prompt"][2:4]
    own = {key: value for key, value in extra_data.items() if key not in ("client_id", "create_time")}
    return Payload(graph=raw(graph), extra_data=raw(own))
