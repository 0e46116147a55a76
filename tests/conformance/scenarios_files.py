"""Scenarios of pictures that are made, fetched, uploaded and used again."""

import json
from typing import Any

import aiohttp
from conformance_graphs import BLACK, GREY_1, GREY_2, copying, inverting, sampling
from conformance_stage import Stage


async def views(stage: Stage) -> None:
    """A saved picture is fetched in all ways; others are not there, or not to be had."""
    prompt_id = await stage.submit(sampling(3, prefix="sub/view"))
    await stage.settle(prompt_id)
    history = await stage.ask("GET", f"/history/{prompt_id}", "GET /history/{id}")
    query = "&".join(f"{name}={value}" for name, value in _saved(history, prompt_id).items())
    part = {"headers": {"Range": "bytes=10-19"}}
    await stage.ask("GET", f"/view?{query}", "GET /view saved image")
    await stage.ask("GET", f"/api/view?{query}", "GET /api /view saved image")
    await stage.ask("HEAD", f"/view?{query}", "HEAD /view saved image")
    await stage.ask("GET", f"/view?{query}", "GET /view saved image range", **part)
    await stage.ask("GET", f"/view?{query}&preview=webp;50", "GET /view saved image preview")
    await stage.ask("GET", f"/view?{query}&channel=a", "GET /view saved image alpha")
    for refused in ("", "?filename=", "?filename=none.png", "?filename=../x.png"):
        await stage.ask("GET", f"/view{refused}")
    for refused in ("type=nonsense", "subfolder=../.."):
        await stage.ask("GET", f"/view?filename=x.png&{refused}")


async def uploads(stage: Stage) -> None:
    """Files are uploaded, some under names that are taken, and prompts use them."""
    await stage.upload("up.png", GREY_1)
    await stage.upload("up.png", GREY_1)
    await stage.upload("up.png", GREY_2)
    await stage.upload("up.png", GREY_2, overwrite="true")
    await stage.upload("up.png", GREY_1, subfolder="deep/er")
    await stage.upload("up.png", GREY_1, type="temp")
    await stage.upload("up.png", GREY_1, subfolder="../../..")
    await stage.ask("POST", "/upload/image", "POST /upload/image nothing", data=aiohttp.FormData({"x": "y"}))
    await stage.ask("GET", "/view?filename=up.png&type=input")
    await stage.ask("GET", "/view?filename=up.png&type=input&subfolder=deep/er")
    await _run(stage, inverting("up.png"), "GET /history/{id} of an uploaded image")
    original = json.dumps({"filename": "up.png", "type": "input"})
    await stage.upload("mask.png", BLACK, "/upload/mask", original_ref=original)
    await stage.upload("not-an-image.png", b"these bytes are no picture")
    await _run(stage, inverting("not-an-image.png"), "GET /history/{id} of an unreadable image")


async def outputs_as_inputs(stage: Stage) -> None:
    """What one prompt saved is what the next one loads, by the name that the history gave."""
    image = await _run(stage, sampling(91, prefix="chained"), "GET /history/{first}")
    name = "/".join(filter(None, (image["subfolder"], image["filename"])))
    await _run(stage, copying(f"{name} [output]", "chained_again"), "GET /history/{second}")


async def _run(stage: Stage, graph: Any, label: str) -> Any:
    """Run a prompt and write its history entry down; return the first picture that it saved, if any."""
    prompt_id = await stage.submit(graph)
    await stage.settle(prompt_id)
    return _saved(await stage.ask("GET", f"/history/{prompt_id}", label), prompt_id)


def _saved(history: Any, prompt_id: str) -> Any:
    outputs = history[prompt_id]["outputs"]
    return outputs["3"]["images"][0] if outputs else None
