"""The workflows and pictures that the scenarios send; the recordings show them, so they stay as they are."""

import base64
from typing import Any

Graph = dict[str, Any]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampling(
    seed: int = 1,
    *,
    steps: int = 4,
    seconds: float = 0.2,
    preview: bool = False,
    fail_at: int = 0,
    prefix: str = "conf",
) -> Graph:
    """A picture is sampled and saved."""
    sampler = {"seed": seed, "steps": steps, "seconds": seconds, "preview": preview, "fail_at": fail_at}
    return {
        "1": _blank(seed),
        "2": _node("ConformanceSampler", image=["1", 0], **sampler),
        "3": _node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }


def previewing(seed: int, **sampler: Any) -> Graph:
    """A picture is sampled and shown, not saved."""
    return {**sampling(seed, **sampler), "3": _node("PreviewImage", images=["2", 0])}


def text(words: str) -> Graph:
    """A text is shown; it takes no time."""
    return {"1": _node("ConformanceText", text=words)}


def inverting(image: str) -> Graph:
    """A file is loaded, inverted and saved."""
    return {
        "1": _node("LoadImage", image=image),
        "2": _node("ImageInvert", image=["1", 0]),
        "3": _node("SaveImage", images=["2", 0], filename_prefix="inverted"),
    }


def copying(image: str, prefix: str) -> Graph:
    """A file is loaded and saved."""
    return {
        "1": _node("LoadImage", image=image),
        "3": _node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def with_missing_file() -> Graph:
    """Two outputs, of which one needs a file that is not there."""
    return {
        **sampling(),
        "4": _node("LoadImage", image="missing.png"),
        "5": _node("PreviewImage", images=["4", 0]),
    }


def with_missing_model() -> Graph:
    return {
        "1": _node("ConformanceModel", ckpt_name="absent.safetensors", image=["2", 0]),
        "2": _blank(0),
        "3": _node("PreviewImage", images=["1", 0]),
    }


def changed(node_id: str, **inputs: Any) -> Graph:
    """Return the sampling workflow with other inputs; those that are None are left out."""
    graph = sampling()
    known = graph[node_id]["inputs"] | inputs
    graph[node_id]["inputs"] = {name: value for name, value in known.items() if value is not None}
    return graph


def _blank(color: int) -> dict[str, Any]:
    return _node("EmptyImage", width=64, height=64, batch_size=1, color=color)


# 64 x 64 pixels of RGB. As bytes, for the recordings hold their hashes and zlib's output varies.
BLACK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAIklEQVR4nO3BAQ0AAADCoPdPbQ8HFAAAAAAAAAAAAAAA8G4wQAABiwCo9wAAAABJ"
    "RU5ErkJggg=="
)
GREY_1 = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAXklEQVR4nO3PMQ0AMAzAsI4/6YLYYVWKESTzjhsd8KsBrQGtAa0BrQGtAa0BrQGt"
    "Aa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BbQF0GjABbwSiJAAAAABJRU5ErkJggg=="
)
GREY_2 = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAXklEQVR4nO3PQQkAMAzAwDL/oitij6OQU5DMO250wK8GtAa0BrQGtAa0BrQGtAa0"
    "BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAa0BrQGtAW39GABo5epJwAAAABJRU5ErkJggg=="
)
