"""Drives comfy-api-simplified; reads what to do from stdin as JSON, and prints what came of it."""

# mypy: disable-error-code="import-not-found"

import asyncio
import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from comfy_api_simplified.exceptions import ComfyApiError


def make(url: str, workflow: str) -> dict[str, Any]:
    """Run a workflow as the package's own users do; return the pictures' names and what they hold."""
    images = ComfyApiWrapper(url).queue_and_wait_images(ComfyWorkflowWrapper(workflow), "Result")
    return {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}


def make_plainly(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Run a workflow, and fetch its picture by what history says."""
    api = ComfyApiWrapper(url)
    prompt_id, previews = asyncio.run(api.queue_prompt_and_wait(graph))
    (image,) = api.get_history(prompt_id)[prompt_id]["outputs"]["3"]["images"]
    data = api.get_image(image["filename"], image["subfolder"], image["type"])
    return {"prompt_id": prompt_id, "previews": len(previews), "image": image, "data": hashlib.sha256(data).hexdigest()}


def cancel(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Start a workflow, see it run, and interrupt it."""
    api = ComfyApiWrapper(url)
    prompt_id = api.queue_prompt(graph, "canceller")["prompt_id"]
    while api.get_queue_size_before(prompt_id) > 0:
        time.sleep(0.02)
    api.interrupt()
    while not (entry := api.get_history(prompt_id).get(prompt_id)):
        time.sleep(0.02)
    return {"prompt_id": prompt_id, "status": entry["status"]}


def refuse(url: str, graph: dict[str, Any]) -> str:
    """Submit what cannot run; return what the user reads."""
    try:
        ComfyApiWrapper(url).queue_prompt(graph)
    except ComfyApiError as exc:
        return str(exc)
    return "accepted"


def main() -> None:
    given = json.load(sys.stdin)
    url = given["url"]
    api = ComfyApiWrapper(url)
    uploaded = api.upload_image(given["file"])
    given["workflow"]["1"]["inputs"]["image"] = f"{uploaded['subfolder']}/{uploaded['name']}"
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda graph: make_plainly(url, graph), given["workflows"]))
    with open(given["file"] + ".json", "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(given["workflow"], file)
    answer = {
        "uploaded": uploaded,
        "from_upload": make(url, given["file"] + ".json"),
        "pictures": pictures,
        "cancelled": cancel(url, given["unending"]),
        "refused": refuse(url, given["impossible"]),
        "checkpoints": api.get_object_info("CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"]["required"],
        "devices": len(api.get_system_stats()["devices"]),
        "embeddings": api.get_embeddings(),
    }
    print(json.dumps(answer))


main()
