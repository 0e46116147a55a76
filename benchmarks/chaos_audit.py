"""What must be true when everything has calmed down."""

import asyncio
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import aiohttp
from chaos_clients import Books, Client, Prompt
from chaos_killer import Fault
from chaos_processes import Backend, Proxy, Usage
from PIL import Image

AT_ONCE = 16  # requests of the audit
TRIES = 10
FEW_DESCRIPTORS = 24  # kept connections, and what SQLite opens at need
FEW_MB = 64.0


class Audit:
    """Finds what is wrong; `problems` says it, `counts` says how often."""

    def __init__(self, proxy: Proxy, session: aiohttp.ClientSession, books: Books) -> None:
        self._url, self._log, self._session, self._books = proxy.url, proxy.log, session, books
        self.problems: list[str] = list(books.problems)
        self.counts: Counter[str] = Counter(lost=0, doubled=0, misdelivered=0, errors=len(books.problems))

    def _wrong(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f"{kind}: {what}")

    async def ends(self, clients: Iterable[Client]) -> None:
        """Every 200 has one end in the history, and those who listened have heard of it once."""
        repeated = await self._repeated_keys()
        names = {client.name: client for client in clients}
        for prompt in self._books.prompts:
            prompt_id = prompt.prompt_id
            if not prompt.is_accepted or prompt_id is None:
                continue
            if prompt.status is None:
                if not (prompt.is_deleted and prompt.is_gone):
                    self._wrong("lost", f"{prompt_id} of {prompt.client} has its 200, and no end")
                continue
            expected = ("error" if prompt.fails else "success", *(["interrupted"] if prompt.is_deleted else []))
            if prompt.status not in expected:
                self._wrong("errors", f"{prompt_id} has ended with {prompt.status}: {await self._why(prompt_id)}")
            if prompt_id in repeated:
                self._wrong("doubled", f"{prompt_id} is in the history twice")
            told = names[prompt.client].ends[prompt_id]
            if len(told) > 1:
                self._wrong("doubled", f"the client of {prompt_id} was told of its end {len(told)} times: {told}")
            if prompt.is_untold:
                self._wrong(
                    "lost", f"{prompt.client} was connected all the time, and not told of the end of {prompt_id}"
                )

    async def _why(self, prompt_id: str) -> str:
        async with self._session.get(f"{self._url}/history/{prompt_id}") as answer:
            return str((await answer.json())[prompt_id]["status"]["messages"][-1])[:500]

    async def _repeated_keys(self) -> set[str]:
        repeated: set[str] = set()

        def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
            counted = Counter(key for key, _ in found)
            repeated.update(key for key, count in counted.items() if count > 1)
            return dict(found)

        async with self._session.get(f"{self._url}/history") as answer:
            json.loads(await answer.read(), object_pairs_hook=pairs)
        return repeated

    def ears(self, clients: Iterable[Client]) -> None:
        """Nobody has heard of what belongs to another."""
        owner = {prompt.prompt_id: prompt.client for prompt in self._books.prompts if prompt.prompt_id is not None}
        for client in clients:
            for prompt_id in client.heard:
                if owner.get(prompt_id, client.name) != client.name:
                    self._wrong("misdelivered", f"{client.name} has heard of {prompt_id} of {owner[prompt_id]}")

    async def pictures(self) -> None:
        """The picture of each prompt is its own."""
        gate = asyncio.Semaphore(AT_ONCE)
        done = [prompt for prompt in self._books.prompts if prompt.status == "success"]
        await asyncio.gather(*(self._picture(prompt, gate) for prompt in done))

    async def _picture(self, prompt: Prompt, gate: asyncio.Semaphore) -> None:
        async with gate, self._session.get(f"{self._url}/history/{prompt.prompt_id}") as answer:
            entry = (await answer.json())[str(prompt.prompt_id)]
        asked_by = entry["prompt"][3].get("client_id")
        if entry["prompt"][1] != prompt.prompt_id or asked_by != prompt.client:
            self._wrong("misdelivered", f"{prompt.prompt_id} of {prompt.client} has the entry of {entry['prompt'][:4]}")
        images = entry["outputs"].get("9", {}).get("images", [])
        if len(images) != 1:
            self._wrong("errors", f"{prompt.prompt_id} has {len(images)} pictures: {entry['outputs']}")
            return
        for _ in range(TRIES):
            async with gate, self._session.get(f"{self._url}/view", params=images[0]) as answer:
                status, data = answer.status, await answer.read()
            if status == 200:
                break
            await asyncio.sleep(1.0)  # a backend that this machine had no time for counts as away
        else:
            self._wrong("errors", f"the picture of {prompt.prompt_id} is answered {status}: {images[0]}")
            return
        colour = Image.open(io.BytesIO(data)).convert("RGB").getpixel((3, 3))
        self.counts["pictures compared"] += 1
        if colour != (prompt.colour >> 16, prompt.colour >> 8 & 255, prompt.colour & 255):
            self._wrong("misdelivered", f"{prompt.prompt_id} shows the picture of another: {images[0]} is {colour}")

    def runs(self, backends: Iterable[Backend], faults: list[Fault]) -> None:
        """Nothing has run twice, unless its backend gave reason to."""
        runs: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for backend in backends:
            for begun_s, prompt_id in backend.runs():
                runs[prompt_id].append((begun_s, backend.name))
        self.counts["prompts run"] = len(runs)
        for prompt_id, found in runs.items():
            found.sort()
            for (first_s, first), (second_s, second) in pairwise(found):
                if any(fault.explains(first, first_s, second, second_s) for fault in faults):
                    self.counts["run again after a fault"] += 1
                else:
                    near = [f for f in faults if f.begun_s < second_s + 1 and f.ended_s > first_s - 15]
                    told = "; ".join(
                        f"{f.kind} {f.target} {f.begun_s - first_s:+.1f}..{f.ended_s - first_s:+.1f}" for f in near
                    )
                    gap_s = second_s - first_s
                    self._wrong("doubled", f"{prompt_id} ran on {first}, and on {second} {gap_s:.1f} s later ({told})")
        for prompt in self._books.prompts:
            if prompt.status == "success" and prompt.prompt_id not in runs:
                self._wrong("errors", f"{prompt.prompt_id} has ended well, and ran nowhere")

    def usage(self, before: Usage, after: Usage) -> None:
        """The proxy holds little more than at its start."""
        if after.descriptors > before.descriptors + FEW_DESCRIPTORS:
            self._wrong("errors", f"file descriptors grew from {before.descriptors} to {after.descriptors}")
        if after.rss_mb > before.rss_mb + FEW_MB:
            self._wrong("errors", f"memory grew from {before.rss_mb:.0f} to {after.rss_mb:.0f} MB")

    def lives(self, proxy: Proxy, backends: Iterable[Backend]) -> None:
        """Nothing has ended by itself, and the proxy has logged no traceback."""
        for child in (proxy, *backends):
            child.note()
            for code in child.ended_by_itself:
                self._wrong("errors", f"{child.name} has ended by itself with {code}")
        log = self._log.read_text(errors="replace")
        if found := log.count("Traceback (most recent call last)"):
            at = log.index("Traceback (most recent call last)")
            self._wrong("errors", f"{found} tracebacks in the log of the proxy, the first: {log[at - 300 : at + 2500]}")
