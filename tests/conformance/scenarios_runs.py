"""Scenarios of prompts that run to their end, and of what their clients see meanwhile."""

import asyncio

from conformance_graphs import previewing, sampling, text
from conformance_stage import NEW_PREVIEWS, Stage

SHOWN_WORKFLOW = {"extra_pnginfo": {"workflow": {"id": "wf-1"}}}


async def handshake(stage: Stage) -> None:
    """A client connects to a server that has done nothing yet, and asks what there is."""
    for path in ("prompt", "queue", "history", "features", "api/features", "embeddings", "models"):
        await stage.ask("GET", f"/{path}")
    for path in ("models/checkpoints", "models/nonsense", "history/no-such-prompt"):
        await stage.ask("GET", f"/{path}")
    for node in ("NoSuchNode", "SaveImage", "ConformanceSampler"):
        await stage.ask("GET", f"/object_info/{node}")
    async with stage.listener("conf-hs") as listener:
        stage.keep("handshake with feature flags", listener.frames)
    async with stage.listener(flags=None) as listener:
        stage.keep("connect without clientId", listener.frames)


async def run_simple(stage: Stage) -> None:
    """One prompt, from its submission to its picture."""
    async with stage.listener("conf-a") as listener:
        prompt_id = await stage.submit(sampling(), "conf-a", extra_data=SHOWN_WORKFLOW)
        await listener.until_left(prompt_id)
        # At once: a client that was told of the end finds the entry.
        await stage.ask("GET", f"/history/{prompt_id}", "GET /history/{id}")
        await listener.until_quiet()
        stage.keep("submitter", listener.frames)
        await stage.ask("GET", "/queue")


async def run_cached(stage: Stage) -> None:
    """A client submits the same prompt twice; the second run comes from the node cache of the server that ran it."""
    async with stage.listener("conf-c") as listener:
        for run in ("first run", "second run, cached"):
            listener.frames.clear()
            prompt_id = await stage.submit(sampling(5), "conf-c")
            await listener.until_over(prompt_id)
            stage.keep(run, listener.frames)
            await stage.ask("GET", f"/history/{prompt_id}", f"GET /history/{{id}} {run}")


async def previews(stage: Stage) -> None:
    """Previews come with metadata to the client that asked for that, and without to another."""
    for name, flags, seed in (("metadata", NEW_PREVIEWS, 7), ("legacy", None, 8)):
        async with stage.listener(f"conf-p-{name}", flags) as listener:
            prompt_id = await stage.submit(previewing(seed, preview=True), f"conf-p-{name}")
            await listener.until_over(prompt_id)
            stage.keep(f"previews, {name}", listener.frames)


async def runtime_error(stage: Stage) -> None:
    """A node fails in mid-run."""
    async with stage.listener("conf-e") as listener:
        prompt_id = await stage.submit(sampling(31, fail_at=2), "conf-e")
        await listener.until_over(prompt_id)
        stage.keep("submitter", listener.frames)
        await stage.ask("GET", f"/history/{prompt_id}", "GET /history/{id} failed")


async def two_clients(stage: Stage) -> None:
    """Two clients at the same time: each hears of its own prompt and not of the other's."""
    async with stage.listener("conf-1") as first, stage.listener("conf-2") as second:
        one = await stage.submit(sampling(81, preview=True), "conf-1")
        two = await stage.submit(sampling(82, preview=True), "conf-2")
        await asyncio.gather(first.until_left(one), second.until_left(two))
        await asyncio.gather(first.until_quiet(), second.until_quiet())
        stage.keep("first client sees only its own prompt", first.frames)
        stage.keep("second client sees only its own prompt", second.frames)


async def text_output(stage: Stage) -> None:
    """An output that is no file, in more than ASCII."""
    async with stage.listener("conf-t") as listener:
        prompt_id = await stage.submit(text("hello ✓ 你好"), "conf-t")
        await listener.until_over(prompt_id)
        stage.keep("submitter", listener.frames)
        await stage.ask("GET", f"/history/{prompt_id}", "GET /history/{id}")
