"""`comfyproxy demo`: the proxy in front of three simulated servers, and one prompt sent through it."""

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from comfyproxy import app
from comfyproxy.commands.process import fail, loop_factory, reason, set_up_logging, stop_on_signals
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


@dataclass(frozen=True, slots=True)
class _Shown:
    """What became of the demonstration's prompt."""

    prompt_id: str
    image: dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Demonstrate until SIGINT or SIGTERM; return the exit code."""
    set_up_logging(LoggingSettings(level="warning"))
    with tempfile.TemporaryDirectory(prefix="comfyproxy-demo-") as scratch:
        settings = Settings(
            server=ServerSettings(host=args.host, port=args.port),
            store=StoreSettings(data_dir=args.data_dir or Path(scratch)),
        )
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            try:
                runner.run(_demonstrate(settings))
            except KeyboardInterrupt:  # where signals cannot be handled in the loop
                return 0
            except Exception as exc:
                if (why := reason(exc, settings.server)) is not None:
                    return fail("demo", why)
                raise
    return 0


async def _demonstrate(settings: Settings) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
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

            def listening(url: str) -> None:
                group.create_task(_show(url, stop), name="demonstration")

            await app.serve(settings, stop, on_listening=listening)


async def _show(url: str, stop: asyncio.Event) -> None:
    print(f"comfyproxy listening on {url}", flush=True)
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession(url) as session:
            shown = await _send_prompt(session)
    except (TimeoutError, aiohttp.ClientError) as exc:
        if not stop.is_set():
            print(f"the prompt did not go through: {exc!r}", flush=True)
        return
    image = shown.image
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    print(
        f"prompt {shown.prompt_id} has run on {image['subfolder']}\n"
        "\n"
        f"  its picture   {url}/view?{query}\n"
        f"  its history   {url}/history/{shown.prompt_id}\n"
        f"  the fleet     {url}/status\n"
        f"  the metrics   {url}/metrics\n"
        "\n"
        f"Point any ComfyUI client at {url} and kill it with Ctrl-C when you have seen enough.",
        flush=True,
    )


async def _send_prompt(session: aiohttp.ClientSession) -> _Shown:
    """Send the stock text-to-image workflow and follow it to its picture, as a script would."""
    while True:
        async with session.get("/readyz") as answer:
            if answer.status == 200:
                break
        await asyncio.sleep(0.1)
    async with session.ws_connect("/ws", params={"clientId": CLIENT_ID}) as socket:
        async with session.post("/prompt", json={"prompt": _workflow(), "client_id": CLIENT_ID}) as answer:
            answer.raise_for_status()
            prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            data = message.json()["data"]
            if data.get("prompt_id") == prompt_id and data.get("node", "") is None:
                break
    async with session.get(f"/history/{prompt_id}") as answer:
        entry = (await answer.json())[prompt_id]
    (image,) = entry["outputs"]["9"]["images"]
    return _Shown(prompt_id, image)


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
