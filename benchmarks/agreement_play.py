"""A trace, played in real time: the proxy and simulated backends as processes, and clients that submit and listen."""

import asyncio
import json
import re
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from chaos_processes import HOST, ChaosFailed, Child, free_ports

from comfyproxy.core.needs import read
from comfyproxy.planning.fleet import Fleet, FleetBackend
from comfyproxy.planning.trace import TraceJob

READY_S = 60.0
PATIENCE = 3.0  # times as long as it should take, and then it has failed
SAMPLER_STEP_S = 0.05  # of the simulated KSampler, on a backend of speed 1
ENDS = ("execution_success", "execution_error", "execution_interrupted")
NO_REASON = "(no reason in the log)"
PLACED = re.compile(r"prompt (\S+) is on (\S+): (.*)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trace, as predicted or as played; times in seconds.

    Attributes:
        jobs_on: how many jobs each backend ran.
        reasons: why jobs went where they went, and how many.
        decisions: the jobs by their places in the trace, in the order in which they went out, and where.
    """

    makespan_s: float
    completion_s: float  # of a job, from its time in the trace to its end: the mean
    loads: int
    jobs_on: Mapping[str, int]
    reasons: Mapping[str, int]
    decisions: Sequence[tuple[int, str]]


def file_of(model: str) -> str:
    """Return the checkpoint of a trace's model."""
    return f"{model}.safetensors"


def graph_of(job: TraceJob, kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """Return a workflow that loads a job's model and runs for `run_s` on a backend of speed 1.

    Jobs of one kind and model differ in nothing that the proxy takes for a sign of their length, as in the trace, where
    their lengths scatter: the kind is the picture's width, and what remains to be spent is a node's `seconds`.
    """
    rest_s = max(job.run_s - SAMPLER_STEP_S, 0.0)
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=file_of(job.model)),
        "2": _node("CLIPTextEncode", text=f"a picture for {job.client}", clip=["1", 1]),
        "3": _node("EmptyLatentImage", width=64 + 8 * kinds.index(job.kind), height=64, batch_size=1),
        "4": _node(
            "KSampler",
            model=["1", 0],
            positive=["2", 0],
            negative=["2", 0],
            latent_image=["3", 0],
            seed=seed,
            steps=1,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "5": _node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": _node("ConformanceSampler", image=["5", 0], seed=seed, steps=4, seconds=rest_s, preview=False, fail_at=0),
        "7": _node("SaveImage", filename_prefix="agreement", images=["6", 0]),
    }


def check_kinds(jobs: Sequence[TraceJob]) -> None:
    """Raise ChaosFailed unless the proxy tells the kinds and models of a trace apart, and nothing else."""
    kinds = sorted({job.kind for job in jobs})
    readings = [read(json.dumps(graph_of(job, kinds, seed)).encode(), {}) for seed, job in enumerate(jobs)]
    if any(reading.needs.models != {file_of(job.model)} for job, reading in zip(jobs, readings, strict=True)):
        raise ChaosFailed("the proxy takes other models for needed than the trace says")
    pairs = {(job.kind, job.model, reading.kind) for job, reading in zip(jobs, readings, strict=True)}
    if not len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[2] for pair in pairs}):
        raise ChaosFailed("the proxy takes other jobs for alike than the trace does")


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


async def play(jobs: Sequence[TraceJob], fleet: Fleet, strategy: str, folder: Path, *, expected_s: float) -> Outcome:
    """Play a trace; all its models take equally long to load.

    Args:
        folder: for the configuration, the store and the logs.
        expected_s: how long it should take.
    Raises ChaosFailed if a process does not run, or the jobs do not come to their ends.
    """
    check_kinds(jobs)
    ports = free_ports(2 * len(fleet.backends) + 1)
    backends = [
        _Backend(about, fleet, folder, *ports[2 * index : 2 * index + 2]) for index, about in enumerate(fleet.backends)
    ]
    proxy = _Proxy(strategy, backends, folder, ports[-1])
    children: list[Child] = [*backends, proxy]
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # no process is left behind
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30.0), connector=connector) as session:
        try:
            await asyncio.gather(*(child.start(session) for child in children))
            await proxy.ready(session)
            audience = _Audience(jobs, proxy.url, session)
            await audience.run(PATIENCE * expected_s + READY_S)
            journals = {backend.name: await backend.journal(session) for backend in backends}
        finally:
            await asyncio.gather(*(child.end(signal.SIGTERM) for child in children))
    if sorted(prompt_id for journal in journals.values() for prompt_id in journal["executed"]) != sorted(audience.ids):
        raise ChaosFailed("something was not run once, but never or twice")
    ends, placed = audience.ends, _placed(proxy.log)
    places = {prompt_id: place for place, prompt_id in enumerate(audience.ids)}
    return Outcome(
        makespan_s=max(ends.values()),
        completion_s=sum(ends[prompt_id] - job.at_s for prompt_id, job in audience.ids.items()) / len(jobs),
        loads=sum(len(journal["loads"]) for journal in journals.values()),
        jobs_on={name: len(journal["executed"]) for name, journal in journals.items()},
        reasons=dict(Counter(placed.get(prompt_id, ("", NO_REASON))[1] for prompt_id in places)),
        decisions=[(places[prompt_id], backend) for prompt_id, (backend, _) in placed.items()],
    )


def _placed(log: Path) -> dict[str, tuple[str, str]]:
    """Return where prompts went and why, as the proxy's log has it; where one was moved, the last that it says."""
    placed: dict[str, tuple[str, str]] = {}
    for match in map(PLACED.search, log.read_text().splitlines()):
        if match is not None:
            prompt_id, backend, why = match.groups()
            placed.pop(prompt_id, None)
            placed[prompt_id] = backend, why
    return placed


class _Backend(Child):
    """A simulated backend as fast as one of the fleet."""

    def __init__(self, about: FleetBackend, fleet: Fleet, folder: Path, port: int, control_port: int) -> None:
        self.about = about
        self.url, self._control_url = f"http://{HOST}:{port}", f"http://{HOST}:{control_port}"
        (load_s,) = {model.load_s for model in fleet.models.values()}
        checkpoints = [file_of(model) for model in sorted(fleet.models) if about.has(model)]
        # The simulator divides loading times by the speed, too.
        load_seconds = load_s / about.load_speed * about.speed
        command = [sys.executable, "-m", "comfyproxy", "simulate", "--name", about.name, "--port", str(port)]
        command += ["--control-port", str(control_port), "--speed", str(about.speed)]
        command += ["--load-seconds", str(load_seconds), "--checkpoints", ",".join(checkpoints)]
        super().__init__(about.name, command, folder / f"{about.name}.log", f"{self.url}/prompt")

    async def journal(self, session: aiohttp.ClientSession) -> Any:
        """Return what it has run and loaded."""
        async with session.get(f"{self._control_url}/journal") as answer:
            return await answer.json()


class _Proxy(Child):
    """The proxy, in front of some backends."""

    def __init__(self, strategy: str, backends: Sequence[_Backend], folder: Path, port: int) -> None:
        self.url, self.log = f"http://{HOST}:{port}", folder / "proxy.log"
        nodes = []
        for backend in backends:
            about = backend.about
            said = {"weight": about.weight, "priority": about.priority}
            metadata = {key: value for key, value in said.items() if value is not None}
            node = {"node_id": about.name, "url": backend.url, "max_concurrent": about.max_concurrent}
            nodes.append({**node, "metadata": metadata})
        settings = {
            "nodes": {"static_nodes": nodes, "load_balancing": {"strategy": strategy}},
            "server": {"port": port, "shutdown_timeout": 3.0},
            "store": {"data_dir": str(folder / "data")},
        }
        config = folder / "comfyproxy.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "comfyproxy", "serve", "--config", str(config)]
        super().__init__("proxy", command, self.log, f"{self.url}/healthz")

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until all backends are."""
        states: dict[str, str] = {}
        try:
            async with asyncio.timeout(READY_S):
                while not states or set(states.values()) != {"ready"}:
                    await asyncio.sleep(0.1)
                    async with session.get(f"{self.url}/readyz") as answer:
                        states = (await answer.json())["backends"]
        except TimeoutError:
            raise ChaosFailed(f"the backends are not ready: {states}") from None


class _Audience:
    """All clients of a trace: each has a websocket, and submits its jobs at their times.

    Attributes:
        ids: the jobs by prompt id, in the trace's order.
        ends: when their clients heard of their ends, seconds after the trace's beginning.
    """

    def __init__(self, jobs: Sequence[TraceJob], url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session
        self._kinds = sorted({job.kind for job in jobs})
        self.ids = {str(uuid.uuid4()): job for job in jobs}
        self.ends: dict[str, float] = {}
        self._all_ended = asyncio.Event()
        self._began_s = 0.0

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s

    async def run(self, timeout_s: float) -> None:
        """Submit all, and wait until all have ended. Raises ChaosFailed if that takes too long, or one fails."""
        clients = sorted({job.client for job in self.ids.values()})
        sockets = [await self._session.ws_connect(f"{self._url}/ws?clientId={client}") for client in clients]
        self._began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                listening = [group.create_task(self._listen(socket)) for socket in sockets]
                for seed, (prompt_id, job) in enumerate(self.ids.items()):
                    await asyncio.sleep(job.at_s - self._now_s)
                    group.create_task(self._submit(prompt_id, job, seed))
                await self._all_ended.wait()
                for task in listening:
                    task.cancel()
        except TimeoutError:
            raise ChaosFailed(f"{len(self.ids) - len(self.ends)} jobs have not ended in {timeout_s:.0f} s") from None
        except ExceptionGroup as failed:
            raise ChaosFailed(str(failed.exceptions[0])) from failed

    async def _submit(self, prompt_id: str, job: TraceJob, seed: int) -> None:
        extra = {"comfyproxy": {"priority": job.priority}} if job.priority else {}
        body: dict[str, Any] = {
            "prompt": graph_of(job, self._kinds, seed),
            "client_id": job.client,
            "prompt_id": prompt_id,
        }
        body |= {"extra_data": extra, **({"front": True} if job.front else {})}
        async with self._session.post(f"{self._url}/prompt", json=body) as answer:
            if answer.status != 200:
                raise ChaosFailed(f"a prompt was refused: {await answer.text()}")

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            said = message.json()
            if said["type"] in ENDS and said["data"]["prompt_id"] in self.ids:
                if said["type"] != "execution_success":
                    raise ChaosFailed(f"a prompt failed: {said}")
                self.ends[said["data"]["prompt_id"]] = self._now_s
                if len(self.ends) == len(self.ids):
                    self._all_ended.set()
        raise ChaosFailed("a websocket was closed")
