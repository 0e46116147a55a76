"""`comfyproxy demo`: the proxy in front of three simulated servers, and one prompt sent through it."""

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

from comfyproxy import app
from comfyproxy.commands.process import run_until_stopped
from comfyproxy.settings import (
    HealthCheck,
    LoggingSettings,
    Nodes,
    NodeSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from comfyproxy.simulator import SimulatedBackend

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # the one that the web page's default workflow names
NAMES = ("sim-a", "sim-b", "sim-c")
CLIENT_ID = "comfyproxy-demo"
PATIENCE_S = 60.0
GRACE_S = 2.0  # whoever ends a demonstration does not want to wait for its prompt


class _Failed(Exception):
    """The demonstration's prompt made no picture."""


def run(args: argparse.Namespace) -> int:
    """Demonstrate until SIGINT or SIGTERM; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="comfyproxy-demo-") as scratch:
        settings = Settings(
            server=ServerSettings(host=args.host, port=args.port, shutdown_timeout=GRACE_S),
            store=StoreSettings(data_dir=args.data_dir or Path(scratch)),
            logging=LoggingSettings(level="warning"),
        )

        async def work(stop: asyncio.Event, listening: Callable[[str], None]) -> None:
            await _demonstrate(settings, stop, listening)

        return run_until_stopped("demo", settings, work)


async def _demonstrate(settings: Settings, stop: asyncio.Event, listening: Callable[[str], None]) -> None:
    async with AsyncExitStack() as stack:
        print("There is no real ComfyUI here: the servers are simulated, and their pictures are patterns.", flush=True)
        nodes = []
        for seed, name in enumerate(NAMES):
            backend = SimulatedBackend(name=name, checkpoints=(CHECKPOINT,), load_seconds=2.0, seed=seed)
            await stack.enter_async_context(backend)
            print(f"  {name}: simulated ComfyUI {backend.options.version} at {backend.url}", flush=True)
            nodes.append(NodeSettings(node_id=name, url=backend.url))
        check = HealthCheck(interval=2.0)
        settings = replace(settings, nodes=Nodes(static_nodes=tuple(nodes), health_check=check))
        async with asyncio.TaskGroup() as group:
            shows: list[asyncio.Task[None]] = []

            def show(url: str) -> None:
                listening(url)
                shows.append(group.create_task(_show(url, stop), name="demonstration"))

            await app.serve(settings, stop, on_listening=show)
            for task in shows:  # whoever stops the proxy in the middle of it has seen enough
                task.cancel()


async def _show(url: str, stop: asyncio.Event) -> None:
    """Send a prompt and tell what became of it, and where to look."""
    print("  sending one prompt: the stock text-to-image workflow ...", flush=True)
    try:
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(url) as session:
            prompt_id, image = await _send_prompt(session)
    except (TimeoutError, aiohttp.ClientError, _Failed) as exc:
        if not stop.is_set():
            why = f"no answer in {PATIENCE_S:g} s" if isinstance(exc, TimeoutError) else exc
            print(f"the prompt did not go through: {why}\nThe fleet is shown at {url}/status", flush=True)
        return
    print(
        f"prompt {prompt_id} has run on {image['subfolder']}\n"
        "\n"
        f"  its picture   {url}/view?{urlencode(image)}\n"
        f"  its history   {url}/history/{prompt_id}\n"
        f"  the fleet     {url}/status\n"
        f"  the metrics   {url}/metrics\n"
        "\n"
        f"Point any ComfyUI client at {url}; Ctrl-C stops everything.\n"
        "With servers of your own: comfyproxy serve --backend http://HOST:8188 --backend http://...",
        flush=True,
    )


async def _send_prompt(session: aiohttp.ClientSession) -> tuple[str, dict[str, str]]:
    """Send the stock text-to-image workflow and follow it to its picture, as a script would.

    Returns the prompt's id and how its history names the picture.
    """
    while True:
        async with session.get("/readyz") as answer:
            if answer.status == 200:
                break
        await asyncio.sleep(0.1)
    async with session.ws_connect("/ws", params={"clientId": CLIENT_ID}) as socket:
        async with session.post("/prompt", json={"prompt": _workflow(), "client_id": CLIENT_ID}) as answer:
            if answer.status != 200:
                raise _Failed(f"{answer.status} {await answer.text()}")
            prompt_id: str = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            data = message.json()["data"]
            if data.get("prompt_id") == prompt_id and data.get("node", "") is None:
                break
    async with session.get(f"/history/{prompt_id}") as answer:
        entry = (await answer.json()).get(prompt_id)
    if entry is None:
        raise _Failed("the proxy was stopped before it was done")
    images: list[dict[str, str]] = entry["outputs"].get("9", {}).get("images", [])
    if not images:
        raise _Failed(f"it ended with {entry['status']}")
    return prompt_id, images[0]


def _workflow() -> dict[str, Any]:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "3": node(
            "KSampler",
            seed=1,
            steps=20,
            cfg=8.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a lighthouse in a storm", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="demo", images=["8", 0]),
    }
