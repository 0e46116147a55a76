"""The jobs API's view of queue and history (0.4 on).

Source: ComfyUI 0.25.0, `comfy_execution/jobs.py` and `server.py` (`get_jobs`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d", "text"})
_THREE_D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_TEXT_LIMIT = 1024
_ENDS = ("execution_success", "execution_error", "execution_interrupted")

Job = dict[str, Any]


def queue_job(item: Iterable[Any], status: str) -> Job:
    """Return the job of a prompt that waits or runs."""
    number, prompt_id, _, extra_data, *_ = item
    created, workflow_id = _origin(extra_data)
    return _without_none(
        {
            "id": prompt_id,
            "status": status,
            "priority": number,
            "create_time": created,
            "outputs_count": 0,
            "workflow_id": workflow_id,
        }
    )


def history_job(prompt_id: str, entry: Mapping[str, Any], *, full: bool = False) -> Job:
    """Return the job of a history entry; `full` adds outputs, messages and the workflow."""
    number, _, graph, extra_data, _ = entry["prompt"]
    created, workflow_id = _origin(extra_data)
    times: dict[str, Any] = {}
    error = None
    interrupted = False
    for event, data in entry["status"]["messages"]:
        if event == "execution_start":
            times["execution_start_time"] = data["timestamp"]
        elif event in _ENDS:
            times["execution_end_time"] = data["timestamp"]
            error = data if event == "execution_error" else error
            interrupted = interrupted or event == "execution_interrupted"
    status = "completed"
    if entry["status"]["status_str"] == "error":
        status = "cancelled" if interrupted else "failed"
    count, preview = _summary(entry["outputs"])
    job = _without_none(
        {
            "id": prompt_id,
            "status": status,
            "priority": number,
            "create_time": created,
            **times,
            "execution_error": error,
            "outputs_count": count,
            "preview_output": preview,
            "workflow_id": workflow_id,
        }
    )
    if full:
        job["outputs"] = {node_id: _normal(shown) for node_id, shown in entry["outputs"].items()}
        job["execution_status"] = entry["status"]
        job["workflow"] = {"prompt": graph, "extra_data": extra_data}
    return job


def sort_key(job: Job, field: str) -> Any:
    """Return what `sort_by` compares: when the job was made, or how long it ran."""
    if field == "execution_duration":
        start, end = job.get("execution_start_time", 0), job.get("execution_end_time", 0)
        return end - start if start and end else 0
    return job.get("create_time", 0)


def _origin(extra_data: Mapping[str, Any]) -> tuple[Any, Any]:
    workflow = extra_data.get("extra_pnginfo", {}).get("workflow", {})
    return extra_data.get("create_time"), workflow.get("id")


def _without_none(job: Job) -> Job:
    return {key: value for key, value in job.items() if value is not None}


def _as_file(item: Any) -> Any:
    """Turn the bare name of a 3D file into what other files look like; leave the rest."""
    if isinstance(item, str) and item.lower().endswith(_THREE_D):
        return {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
    return item


def _normal(shown: Any) -> Any:
    if not isinstance(shown, dict):
        return shown
    return {
        kind: [_as_file(item) for item in items if item is not None] if _is_media(kind, items) else items
        for kind, items in shown.items()
    }


def _is_media(kind: str, items: Any) -> bool:
    return kind != "animated" and isinstance(items, list)


def _summary(outputs: Mapping[str, Any]) -> tuple[int, Job | None]:
    """Count the outputs, and choose one to show: a saved one before a temporary one or a text."""
    count = 0
    best: Job | None = None
    fallback: Job | None = None
    for node_id, shown in outputs.items():
        for kind, items in shown.items() if isinstance(shown, dict) else ():
            if not _is_media(kind, items):
                continue
            for item in map(_as_file, items):
                candidate = _candidate(node_id, kind, item)
                if candidate is None and not isinstance(item, dict):
                    continue  # neither file nor text: not counted
                count += 1
                if candidate is None or best is not None:
                    continue
                if isinstance(item, dict) and item.get("type") == "output":
                    best = candidate
                else:
                    fallback = fallback or candidate
    return count, best or fallback


def _candidate(node_id: str, kind: str, item: Any) -> Job | None:
    """Return what would be shown of an output, or None if it cannot be shown."""
    if isinstance(item, dict):
        form = item.get("format", "")
        name = item.get("filename", "").lower()
        if kind in _PREVIEWABLE or form.startswith(("video/", "audio/")) or name.endswith(_THREE_D):
            return {**item, "nodeId": node_id, "mediaType": item.get("mediaType", kind)}
        return None
    if kind != "text" or item is None:
        return None
    text = str(item)
    short: Job = {"content": text} if len(text) <= _TEXT_LIMIT else {"content": text[:_TEXT_LIMIT], "truncated": True}
    return {**short, "nodeId": node_id, "mediaType": kind}
