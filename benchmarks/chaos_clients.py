"""Clients that submit prompts all the time, and write down what they are told."""

import asyncio
import json
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

UNHEARD = (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)
ENDS = ("execution_success", "execution_error", "execution_interrupted")
ATTEMPTS = 200  # to get one prompt accepted
AT_ONCE = 3  # unfinished prompts of one client
GRACE_S = 10.0  # from a history entry to the event, on a machine with much to do
SIDE = 16  # of a picture


@dataclass(slots=True)
class Prompt:
    """One prompt, as its client knows it."""

    colour: int  # of its picture: no other prompt has it
    client: str
    prompt_id: str | None  # the client's own; None until the proxy has told
    fails: bool
    graph: dict[str, Any]
    is_accepted: bool = False  # a 200 was read
    life: int | None = None  # of the websocket that was connected when it was submitted
    is_deleted: bool = False  # the client has asked for that, or to interrupt it
    status: str | None = None  # what the history says
    is_gone: bool = False  # deleted, and neither in queue nor history
    is_untold: bool = False  # connected all the time, and not told of its end


class Books:
    """What all clients write down."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.is_over = False  # no more prompts
        self._colours = iter(range(0x010203, 0xFFFFFF, 7))

    def prompt(self, client: str, rng: random.Random) -> Prompt:
        """Return a new one."""
        colour = next(self._colours)
        fails = rng.random() < 0.05
        seconds = rng.choice((0.0, 0.05, 0.1, 0.2, 0.4, 0.4, 0.8, 3.0))
        steps = rng.randint(2, 6)
        sampler = {"image": ["1", 0], "seed": colour, "steps": steps, "seconds": seconds}
        sampler |= {"preview": rng.random() < 0.5, "fail_at": 1 if fails else 0}
        size = {"width": SIDE, "height": SIDE, "batch_size": 1}
        graph = {
            "1": {"class_type": "EmptyImage", "inputs": size | {"color": colour}},
            "2": {"class_type": "ConformanceSampler", "inputs": sampler},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
            # The same name on all backends: the wrong one would be found by a proxy that mixes them up.
            "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "chaos", "images": ["1", 0]}},
        }
        own_id = str(uuid.UUID(int=rng.getrandbits(128), version=4)) if rng.random() < 0.7 else None
        prompt = Prompt(colour, client, own_id, fails, graph)
        self.prompts.append(prompt)
        return prompt


class Client:
    """One client, with a websocket or polling."""

    def __init__(
        self,
        name: str,
        url: str,
        session: aiohttp.ClientSession,
        books: Books,
        rng: random.Random,
        *,
        has_socket: bool,
    ) -> None:
        self.name, self._url, self._session, self._books, self._rng = name, url, session, books, rng
        self._has_socket = has_socket
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._life = 0
        self._watching: set[asyncio.Task[None]] = set()
        self.heard: set[str] = set()  # ids that it was told anything about
        self.ends: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def is_idle(self) -> bool:
        """Whether all its prompts have ended."""
        return not self._watching

    async def run(self) -> None:
        """Submit, until it is over; then wait until all has ended. To be cancelled."""
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen()) if self._has_socket else None
            try:
                while not self._books.is_over:
                    if len(self._watching) < AT_ONCE:
                        self._start(self._one())
                    await asyncio.sleep(self._rng.uniform(0.05, 1.2))
                while self._watching:
                    await asyncio.wait(self._watching)
                    for task in [task for task in self._watching if task.done()]:
                        self._watching.discard(task)
                        task.result()
                await asyncio.Event().wait()
            finally:
                if listening is not None:
                    listening.cancel()
                for task in self._watching:
                    task.cancel()

    def cut(self) -> bool:
        """Reset its websocket; tell whether there was one."""
        response = self._socket._response if self._socket is not None else None
        if response is None or response.connection is None or response.connection.transport is None:
            return False
        response.connection.transport.abort()
        return True

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._watching.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._watching.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._books.problems.append(f"{self.name}: a client died of {error!r}")

        task.add_done_callback(ended)

    # One prompt

    async def _one(self) -> None:
        prompt = self._books.prompt(self.name, self._rng)
        if not await self._submit(prompt):
            return
        self._books.counts["accepted"] += 1
        if self._rng.random() < 0.06:
            await self._delete(prompt)
        await self._watch(prompt)

    async def _submit(self, prompt: Prompt) -> bool:
        """Hand a prompt in, again and again until there is an answer; return whether it is 200."""
        said = {"prompt": prompt.graph, "client_id": self.name}
        if prompt.prompt_id is not None:
            said["prompt_id"] = prompt.prompt_id
        for _ in range(ATTEMPTS):
            is_rash = prompt.prompt_id is not None and self._rng.random() < 0.05
            patience = aiohttp.ClientTimeout(total=self._rng.uniform(0.0, 0.2) if is_rash else 60.0)
            prompt.life = self._life if self._socket is not None else None
            try:
                async with self._session.post(f"{self._url}/prompt", json=said, timeout=patience) as answer:
                    status, body = answer.status, await answer.read()
            except UNHEARD:
                self._books.counts["answers not seen"] += 1
                if prompt.prompt_id is None:
                    return False  # it may run, and nobody will ask for it
            else:
                if status == 200:
                    return self._accepted(prompt, json.loads(body))
                self._books.counts[f"refused with {status}"] += 1
                if status not in (429, 502, 503):
                    self._books.problems.append(f"{self.name}: POST /prompt was answered {status}: {body[:500]!r}")
                    return False
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))
        self._books.problems.append(f"{self.name}: a prompt was not accepted in {ATTEMPTS} attempts")
        return False

    def _accepted(self, prompt: Prompt, answer: dict[str, Any]) -> bool:
        prompt.is_accepted = True
        if prompt.prompt_id not in (None, answer["prompt_id"]):
            self._books.problems.append(f"{self.name}: {prompt.prompt_id} was answered {answer}")
        prompt.prompt_id = answer["prompt_id"]
        return True

    async def _delete(self, prompt: Prompt) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        prompt.is_deleted = True
        self._books.counts["deleted or interrupted"] += 1
        with suppress(*UNHEARD):
            if self._rng.random() < 0.5:
                await self._post("queue", {"delete": [prompt.prompt_id]})
            else:
                await self._post("interrupt", {"prompt_id": prompt.prompt_id})

    async def _post(self, path: str, said: Any) -> None:
        async with self._session.post(f"{self._url}/{path}", json=said) as answer:
            await answer.read()

    async def _watch(self, prompt: Prompt) -> None:
        """Ask for a prompt's end until it has come."""
        assert prompt.prompt_id is not None
        while True:
            await asyncio.sleep(self._rng.uniform(0.3, 0.7))
            with suppress(*UNHEARD):
                if (entry := await self.entry(prompt.prompt_id)) is not None:
                    prompt.status = _status(entry)
                    break
                if prompt.is_deleted and await self._is_nowhere(prompt.prompt_id):
                    prompt.is_gone = True
                    return
        end_s = time.monotonic() + GRACE_S
        while self._is_connected_since(prompt):
            if self.ends[prompt.prompt_id]:
                return
            if time.monotonic() > end_s:
                prompt.is_untold = True
                return
            await asyncio.sleep(0.1)

    async def entry(self, prompt_id: str) -> dict[str, Any] | None:
        """Return a history entry. Raises UNHEARD."""
        async with self._session.get(f"{self._url}/history/{prompt_id}") as answer:
            if answer.status != 200:
                raise aiohttp.ClientError(f"history answers {answer.status}")
            found: dict[str, Any] = await answer.json()
        return found.get(prompt_id)

    async def _is_nowhere(self, prompt_id: str) -> bool:
        async with self._session.get(f"{self._url}/api/jobs/{prompt_id}") as answer:
            await answer.read()
            return answer.status == 404 and await self.entry(prompt_id) is None

    def _is_connected_since(self, prompt: Prompt) -> bool:
        return self._socket is not None and prompt.life == self._life

    # The websocket

    async def _listen(self) -> None:
        while True:
            with suppress(*UNHEARD):
                async with self._session.ws_connect(
                    f"{self._url}/ws", params={"clientId": self.name}, max_msg_size=0
                ) as socket:
                    self._life, self._socket = self._life + 1, socket
                    try:
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                self._told(json.loads(message.data))
                    finally:
                        self._socket = None
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))

    def _told(self, said: dict[str, Any]) -> None:
        data = said.get("data")
        if not isinstance(data, dict) or (prompt_id := data.get("prompt_id")) is None:
            return
        self.heard.add(prompt_id)
        if said["type"] in ENDS:
            self.ends[prompt_id].append(said["type"])
        if said["type"] == "executing" and data["node"] is None:
            self._start(self._check_history(prompt_id))

    async def _check_history(self, prompt_id: str) -> None:
        """The entry must be there as soon as the end is told."""
        with suppress(*UNHEARD):
            if await self.entry(prompt_id) is None:
                self._books.problems.append(f"{self.name}: {prompt_id} was told to have ended before history had it")


def _status(entry: dict[str, Any]) -> str:
    status = entry["status"]
    kinds = [kind for kind, _ in status["messages"]]
    return "interrupted" if "execution_interrupted" in kinds else str(status["status_str"])
