"""Workflows in the form that the web page saves and loads.

Their nodes need no model, so that a real ComfyUI can run them.
"""

import random
from typing import Any

Workflow = dict[str, Any]

SHADE = 3 * 37  # the grey that the sampler makes of seed 3, and the red of its previews


def sampling(*, steps: int, seconds: float, prefix: str, seed: int = 3, after: str = "fixed") -> Workflow:
    """EmptyImage, ConformanceSampler with previews, SaveImage; never the same twice, so that nothing is cached.

    Args:
        after: what the page does to the seed once the prompt is queued.
    """
    color = random.randrange(16) << 16 | random.randrange(256)  # without green, which is what progress is shown in
    sampler = [seed, after, steps, seconds, True, 0]
    return _workflow(
        [
            _node(1, "EmptyImage", 40, (270, 130), outputs=["IMAGE"], values=[256, 256, 1, color]),
            _node(2, "ConformanceSampler", 360, (270, 400), inputs=["image"], outputs=["IMAGE"], values=sampler),
            _node(3, "SaveImage", 680, (300, 330), inputs=["images"], values=[prefix]),
        ],
        [(1, 0, 2, 0), (2, 0, 3, 0)],
    )


def copying(image: str, prefix: str) -> Workflow:
    """LoadImage, SaveImage."""
    return _workflow(
        [
            _node(1, "LoadImage", 40, (300, 340), outputs=["IMAGE", "MASK"], values=[image, "image"]),
            _node(2, "SaveImage", 480, (300, 300), inputs=["images"], values=[prefix]),
        ],
        [(1, 0, 2, 0)],
    )


def _node(
    node_id: int,
    kind: str,
    x: int,
    size: tuple[int, int],
    *,
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
    values: list[Any],
) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": kind,
        "pos": [x, 100],
        "size": list(size),
        "flags": {},
        "order": node_id,
        "mode": 0,
        "inputs": [{"name": name, "type": "IMAGE", "link": None} for name in inputs or []],
        "outputs": [{"name": name, "type": name, "links": []} for name in outputs or []],
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }


def _workflow(nodes: list[dict[str, Any]], links: list[tuple[int, int, int, int]]) -> Workflow:
    """Connect nodes. A link goes from a node and its output to a node and its input."""
    by_id = {node["id"]: node for node in nodes}
    for number, (source, output, target, slot) in enumerate(links, 1):
        by_id[source]["outputs"][output]["links"].append(number)
        by_id[target]["inputs"][slot]["link"] = number
    return {
        "last_node_id": max(by_id),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": [[number, *link, "IMAGE"] for number, link in enumerate(links, 1)],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
