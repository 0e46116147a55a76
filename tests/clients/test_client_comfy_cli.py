"""comfy-cli, the command that ComfyUI's makers offer: `comfy run`, `upload`, `download` and `jobs`."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from client_packages import python_with
from client_programs import ClientFailedError, fleet, impossible, picture, run, running, saved, unending
from proxying import running_proxy
from simulator_support import png


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with("comfy-cli")


@dataclass
class Comfy:
    """The command, told to use one server."""

    python: Path
    url: str
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def workflow(self, graph: dict[str, Any]) -> str:
        path = self.folder / "workflow.json"
        path.write_text(json.dumps(graph))
        return str(path)

    @property
    def address(self) -> tuple[str, ...]:
        parts = urlsplit(self.url)
        return ("--host", str(parts.hostname), "--port", str(parts.port))

    def command(self, *args: str) -> tuple[str | Path, ...]:
        return (self.python, "-m", "comfy_cli", "--skip-prompt", "--json-stream", "--where", "local", *args)

    async def events(self, *args: str) -> list[dict[str, Any]]:
        """Run a command; return what it tells, the outcome last."""
        code, out, err = await run(self.command(*args), self.folder, COMFY_LOCAL_URL=self.url)
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if not lines:
            raise ClientFailedError(f"comfy {args} ended with {code}:\n{out}\n{err}")
        return lines

    async def outcome(self, *args: str) -> dict[str, Any]:
        """Run a command that must succeed; return its data."""
        outcome = (await self.events(*args))[-1]
        assert outcome["ok"], outcome
        data: dict[str, Any] = outcome["data"]
        return data

    async def submit(self, graph: dict[str, Any]) -> str:
        """Submit and do not wait; return the prompt's id."""
        data = await self.outcome("run", "--workflow", self.workflow(graph), "--no-watch", *self.address)
        prompt_id: str = data["prompt_id"]
        return prompt_id


async def test_comfy_run_uploads_runs_and_downloads(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png(color=(1, 2, 3)))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        comfy = Comfy(python, proxy.url, tmp_path / "home")
        (uploaded,) = (await comfy.outcome("upload", str(source), *comfy.address))["uploads"]
        assert (uploaded["cloud_name"], uploaded["type"]) == ("source.png", "input")

        workflow = comfy.workflow(picture(1, image="source.png"))
        *events, outcome = await comfy.events("run", "--workflow", workflow, "--wait", *comfy.address)
        assert outcome["data"]["status"] == "completed"
        assert [e["node"] for e in events if e["type"] == "executing"] == ["1", "2", "3"]
        assert len([e for e in events if e["type"] == "progress" and e["total"] == 20]) > 1
        prompt_id = outcome["data"]["prompt_id"]
        (image,) = (await proxy.ended(prompt_id))["outputs"]["3"]["images"]
        (url,) = outcome["data"]["outputs"]
        assert url.startswith(f"{proxy.url}/view?")
        assert await proxy.get(url.removeprefix(proxy.url)) == saved(backends, image)

        (file,) = (await comfy.outcome("download", prompt_id, "--out-dir", str(tmp_path / "out")))["files"]
        assert Path(file["path"]).read_bytes() == saved(backends, image)


async def test_comfy_run_tells_why_a_workflow_is_refused(python: Path, tmp_path: Path) -> None:
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        comfy = Comfy(python, proxy.url, tmp_path / "home")
        workflow = comfy.workflow(impossible())
        error = (await comfy.events("run", "--workflow", workflow, "--wait", *comfy.address))[-1]["error"]
        assert error["code"] in ("prompt_rejected", "workflow_unknown_nodes")
        assert not any(backends.executed.values())


async def test_comfy_jobs_watches_a_running_prompt_and_cancels_it(python: Path, tmp_path: Path) -> None:
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        comfy = Comfy(python, proxy.url, tmp_path / "home")
        prompt_id = await comfy.submit(unending(1))
        watch = comfy.command("jobs", "watch", prompt_id, *comfy.address)
        async with running(watch, comfy.folder) as output:
            await _line(output, type="progress", node="2", prompt_id=prompt_id)
            assert (await comfy.outcome("jobs", "status", prompt_id, *comfy.address))["status"] == "running"
            cancelled = await comfy.outcome("jobs", "cancel", prompt_id, *comfy.address)
            assert cancelled["interrupt_ok"]
            assert (await _line(output, type="envelope"))["error"]["code"] == "cancelled"
        assert (await comfy.outcome("jobs", "status", prompt_id, *comfy.address))["status"] == "cancelled"


async def test_comfy_jobs_cancel_takes_a_waiting_prompt_out_and_leaves_the_running_ones(
    python: Path, tmp_path: Path
) -> None:
    async with fleet() as backends, running_proxy(backends, tmp_path / "data", max_concurrent=1) as proxy:
        comfy = Comfy(python, proxy.url, tmp_path / "home")
        running_ids = [await proxy.submit(unending(seed), f"client {seed}") for seed in range(3)]
        prompt_id = await comfy.submit(unending(4))
        assert (await comfy.outcome("jobs", "status", prompt_id, *comfy.address))["status"] == "pending"
        await comfy.outcome("jobs", "cancel", prompt_id, *comfy.address)
        running_now, waiting = await proxy.queue()
        assert (sorted(running_now), waiting) == (sorted(running_ids), [])
        assert all(prompt_id not in executed for executed in backends.executed.values())


async def test_comfy_jobs_cancel_interrupts_nobody_where_interrupts_need_an_id(python: Path, tmp_path: Path) -> None:
    # It knows the id and does not send it; the command then says that its interrupt was refused.
    async with (
        fleet() as backends,
        running_proxy(backends, tmp_path / "data", interrupt_without_id="reject") as proxy,
    ):
        comfy = Comfy(python, proxy.url, tmp_path / "home")
        prompt_id = await comfy.submit(unending(1))
        async with asyncio.timeout(10):
            while prompt_id not in (await proxy.queue())[0]:
                await asyncio.sleep(0.01)
        assert not (await comfy.outcome("jobs", "cancel", prompt_id, *comfy.address))["interrupt_ok"]
        assert (await proxy.queue())[0] == [prompt_id]


async def _line(output: asyncio.StreamReader, **fields: str) -> dict[str, Any]:
    """Wait for an event with these fields."""
    async with asyncio.timeout(60):
        async for line in output:
            event: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
            if fields.items() <= event.items():
                return event
    raise ClientFailedError(f"the command ended without {fields}")
