"""What the jobs API makes of a job's outputs: how many there are, which one previews the job, and their shape.

Source: ComfyUI 0.25.0, `comfy_execution/jobs.py` (`get_outputs_summary`, `normalize_outputs`).
"""

from collections.abc import Iterator
from typing import Any

_PREVIEWABLE_TYPES = frozenset({"images", "video", "audio", "3d", "text"})
_THREE_D_EXTENSIONS = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_MAX_TEXT_PREVIEW = 1024  # characters


def summarise_outputs(outputs: Any) -> tuple[int, dict[str, Any] | None]:
    """Return how many outputs there are and the one to preview: the first saved file, else the first of any kind."""
    count = 0
    preview: dict[str, Any] | None = None
    fallback: dict[str, Any] | None = None
    for node_id, media_type, item in _items(outputs):
        if not isinstance(item, dict):
            model = _model_file(item)
            if model is None:
                if media_type == "text":
                    count += 1
                    fallback = fallback or {**_text_preview(item), "nodeId": node_id, "mediaType": media_type}
                continue
            item = model
        count += 1
        if preview is None and _is_previewable(media_type, item):
            enriched = {**item, "nodeId": node_id}
            enriched.setdefault("mediaType", media_type)
            if item.get("type") == "output":
                preview = enriched
            else:
                fallback = fallback or enriched
    return count, preview or fallback


def normalise(outputs: Any) -> Any:
    """Return the outputs with names of 3D files made into file entries, and without nulls."""
    if not isinstance(outputs, dict):
        return outputs
    return {
        node_id: {media_type: _normalise_items(media_type, items) for media_type, items in node.items()}
        if isinstance(node, dict)
        else node
        for node_id, node in outputs.items()
    }


def _normalise_items(media_type: str, items: Any) -> Any:
    if media_type == "animated" or not isinstance(items, list):
        return items
    return [_model_file(item) or item for item in items if item is not None]


def _items(outputs: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (node id, media type, item) of what counts; `animated` is a flag, not an output."""
    for node_id, node in outputs.items() if isinstance(outputs, dict) else ():
        for media_type, items in node.items() if isinstance(node, dict) else ():
            if media_type != "animated" and isinstance(items, list):
                for item in items:
                    yield node_id, media_type, item


def _model_file(item: Any) -> dict[str, Any] | None:
    """Return the file entry of a bare name of a 3D file."""
    if isinstance(item, str) and item.lower().endswith(_THREE_D_EXTENSIONS):
        return {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
    return None


def _text_preview(item: Any) -> dict[str, Any]:
    # Nodes wrap texts in tuples, of which ComfyUI shows the first; JSON knows them as lists.
    text = str(item[0] if isinstance(item, list) and item else item)
    if len(text) <= _MAX_TEXT_PREVIEW:
        return {"content": text}
    return {"content": text[:_MAX_TEXT_PREVIEW], "truncated": True}


def _is_previewable(media_type: str, item: dict[str, Any]) -> bool:
    if media_type in _PREVIEWABLE_TYPES:
        return True
    # Custom nodes say by a MIME type what their files are; what is no string ComfyUI could not list at all.
    if str(item.get("format") or "").startswith(("video/", "audio/")):
        return True
    return str(item.get("filename") or "").lower().endswith(_THREE_D_EXTENSIONS)
