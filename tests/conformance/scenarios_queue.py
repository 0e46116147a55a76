"""Scenarios of prompts that are watched, stopped, deleted and forgotten."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conformance_graphs import previewing, sampling, text
from conformance_listener import Listener
from conformance_stage import Stage
from scenarios_runs import SHOWN_WORKFLOW

_OWN_ID = "00000000-00c0-ffee-8000-000000000001"
_UNKNOWN_JOB = "00000000-0000-0000-0000-000000000005"
_PROMPTS_BEFORE_JOBS = 19  # in the history of the recorded server, when it came to the jobs API


async def own_prompt_id(stage: Stage) -> None:
    """A client brings the id of its prompt."""
    body = {"prompt": sampling(21), "prompt_id": _OWN_ID}
    await stage.ask("POST", "/prompt", "POST /prompt own id", json=body)
    await stage.idle()
    await stage.ask("GET", f"/history/{_OWN_ID}", "GET /history/{own id}")


async def interrupt_by_id(stage: Stage) -> None:
    """A prompt is interrupted by its id; the id of another leaves it alone."""
    async with _long_run(stage, "conf-i", 41) as (listener, running):
        other = {"prompt_id": str(uuid.uuid4())}
        await stage.ask("POST", "/interrupt", "POST /interrupt other id", json=other)
        # An interrupt takes effect between steps: the first one may have been on its way, the second one proves it.
        await listener.until_steps(running, 2)
        await stage.ask("POST", "/interrupt", "POST /interrupt by id", json={"prompt_id": running})
        await listener.until_over(running)
        stage.keep("terminal frames", listener.ends())
        await stage.ask("GET", f"/history/{running}", "GET /history/{id} interrupted")


async def interrupt_global(stage: Stage) -> None:
    """Whatever runs is interrupted."""
    async with _long_run(stage, "conf-g", 51) as (listener, running):
        await stage.ask("POST", "/interrupt", "POST /interrupt without body")
        await listener.until_over(running)
        stage.keep("terminal frames", listener.ends())


async def queue_control(stage: Stage) -> None:
    """One prompt runs and four wait, one of them in front; some are deleted, then all."""
    async with _long_run(stage, "conf-q", 61) as (listener, running):
        waiting = [await stage.submit(sampling(seed), "conf-q") for seed in (62, 63, 64)]
        front = await stage.submit(sampling(69), "conf-q", front=True)
        await stage.ask("GET", "/queue", "GET /queue one running, pending")
        await stage.ask("GET", "/prompt", "GET /prompt while busy")
        await stage.ask("POST", "/queue", "POST /queue delete one", json={"delete": [waiting[0]]})
        await stage.ask("POST", "/queue", "POST /queue delete unknown", json={"delete": ["nope"]})
        await stage.ask("GET", "/queue", "GET /queue after delete")
        await stage.ask("POST", "/queue", "POST /queue clear", json={"clear": True})
        await stage.ask("GET", "/queue", "GET /queue after clear")
        for deleted in (waiting[0], waiting[1], front):
            await stage.ask("GET", f"/history/{deleted}", "GET /history/{deleted id}")
        await stage.ask("POST", "/interrupt", "POST /interrupt by id", json={"prompt_id": running})
        await listener.until_left(running)


async def jobs(stage: Stage) -> None:
    """The jobs API, of one finished and of one running job.

    It counts all prompts so far, so it begins with as many as the recorded server had.
    """
    await _level_history(stage, _PROMPTS_BEFORE_JOBS)
    shown = {"extra_pnginfo": {"workflow": {"id": "wf-job"}}}
    finished = await stage.submit(sampling(95, prefix="job"), extra_data=shown)
    await stage.settle(finished)
    await stage.ask("GET", "/api/jobs?limit=1")
    await stage.ask("GET", f"/api/jobs/{finished}", "GET /api/jobs/{id}")
    await stage.ask("GET", "/api/jobs?status=nonsense")
    await stage.ask("GET", "/api/jobs?workflow_id=wf-job&status=completed")
    await stage.ask("GET", f"/api/jobs/{_UNKNOWN_JOB}")
    async with _long_run(stage, "conf-j", 96) as (listener, running):
        await stage.ask("GET", "/api/jobs?status=in_progress,pending")
        await stage.ask("POST", f"/api/jobs/{running}/cancel", "POST /api/jobs/{running}/cancel")
        if stage.steps[-1]["status"] == 200:
            await listener.until_left(running)
        await stage.ask("POST", "/interrupt")
        await listener.until_left(running)


async def history_control(stage: Stage) -> None:
    """The history is read in pages, and entries are deleted, one and all.

    One of the pages begins with the first prompt of all, which the scenario `run_simple` submits.
    """
    if not await stage.aside().ask("GET", "/history"):
        await stage.settle(await stage.aside().submit(sampling(), "conf-a", extra_data=SHOWN_WORKFLOW))
    ids = []
    for seed in (71, 72, 73):
        ids.append(await stage.submit(previewing(seed, steps=1, seconds=0)))
        await stage.settle(ids[-1])
    for query in ("max_items=2", "max_items=1&offset=0", "max_items=0", "max_items=abc"):
        await stage.ask("GET", f"/history?{query}")
    await stage.ask("POST", "/history", "POST /history delete", json={"delete": [ids[0]]})
    await stage.ask("GET", f"/history/{ids[0]}", "GET /history/{deleted}")
    await stage.ask("POST", "/history", "POST /history clear", json={"clear": True})
    await stage.ask("GET", "/history", "GET /history after clear")
    broken = {"data": b"{", "headers": {"Content-Type": "application/json"}}
    await stage.ask("POST", "/history", "POST /history not json", **broken)


@asynccontextmanager
async def _long_run(stage: Stage, client_id: str, seed: int) -> AsyncIterator[tuple[Listener, str]]:
    """Submit a prompt that takes longer than a scenario, and wait until it runs."""
    async with stage.listener(client_id) as listener:
        prompt_id = await stage.submit(sampling(seed, steps=200, seconds=20), client_id)
        await listener.until_steps(prompt_id, 1)
        yield listener, prompt_id


async def _level_history(stage: Stage, length: int) -> None:
    """Bring the history to a length: by short prompts, or by deleting what came last."""
    aside = stage.aside()
    await aside.idle()
    known = list(await aside.ask("GET", "/history"))
    if known[length:]:
        await aside.ask("POST", "/history", json={"delete": known[length:]})
    for number in range(len(known), length):
        await aside.settle(await aside.submit(text(f"prompt {number}")))
    await asyncio.sleep(0.002)  # jobs are listed by the millisecond of their creation
