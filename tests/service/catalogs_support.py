"""A fleet that says what it has, on a clock of its own."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from service_support import make_fleet
from virtual_time import VirtualTime

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown
from comfyproxy.core.health import Health
from comfyproxy.service.catalogs import Catalogs, Document
from comfyproxy.service.features import ServerFeatures
from comfyproxy.service.fleet import Backend
from comfyproxy.service.sources import Refusal, Sources

MAX_AGE_S = 5.0
PATIENCE_S = 2.0


class Said:
    """A whole answer."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        self.headers = {"Content-Type": "application/json"} if status == 200 else {}


class Speaker:
    """One server: what it answers by path, and how slowly."""

    def __init__(self, name: str) -> None:
        self.answers: dict[str, Any] = {
            "/features": {"supports_preview_metadata": True, "of": name},
            "/system_stats": {"system": {"comfyui_version": "0.25.0", "of": name}, "devices": [{"name": name}]},
            "/object_info": node(Loader=[name]),
            "/models": ["checkpoints"],
            "/models/checkpoints": [f"{name}.safetensors"],
        }
        self.status: dict[str, int] = {}
        self.failure: Exception | None = None
        self.takes_s = 0.0
        self.asked: Counter[str] = Counter()
        self.now_asked = 0
        self.on_change: Callable[[int], None] = lambda change: None

    async def get(self, path: str) -> Said:
        self.asked[path] += 1
        self._count(+1)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self._count(-1)
        if self.failure is not None:
            raise self.failure
        answer = self.answers.get(path)
        if answer is None or path in self.status:
            return Said(self.status.get(path, 404), b"")
        return Said(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def _count(self, change: int) -> None:
        self.now_asked += change
        self.on_change(change)

    def dies(self) -> None:
        self.failure = ConnectionRefused("nothing listens")

    def breaks(self) -> None:
        self.failure = DeliveryUnknown("it broke off")

    def talks_nonsense(self) -> None:
        self.failure = BadAnswer("what is this")


def node(**choices: list[str]) -> dict[str, Any]:
    return {name: {"input": {"required": {"model": [models, {}]}}, "name": name} for name, models in choices.items()}


class Stage:
    """The backends with `Catalogs` in front; use it within a running loop.

    Args:
        is_virtual: whether time passes only when nothing else is left to do; threads are not seen to do anything.
    """

    def __init__(self, *names: str, max_age_s: float = MAX_AGE_S, is_virtual: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.time = VirtualTime(loop) if is_virtual else loop.time
        self.fleet = make_fleet(*names)
        self.speakers = {name: Speaker(name) for name in names}
        for name, speaker in self.speakers.items():
            self.backend(name).client = cast(Any, speaker)
        self.sources = Sources(self.fleet, now=self.time, patience_s=PATIENCE_S)
        features = ServerFeatures(self.fleet)
        self.catalogs = Catalogs(self.fleet, self.sources, features, now=self.time, max_age_s=max_age_s)

    def __getitem__(self, name: str) -> Speaker:
        return self.speakers[name]

    def backend(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    def goes(self, name: str) -> None:
        self.backend(name).health = Health(healthy=False)
        self.sources.changed()

    def comes(self, name: str) -> None:
        self.backend(name).health = Health(healthy=True)
        self.sources.changed()

    def passes(self, seconds: float) -> None:
        assert isinstance(self.time, VirtualTime)
        self.time.now_s += seconds

    def asked(self, path: str) -> list[int]:
        return [speaker.asked[path] for speaker in self.speakers.values()]

    async def checkpoints(self) -> Any:
        return value(await self.catalogs.models("checkpoints"))

    async def loaders(self) -> Any:
        found = value(await self.catalogs.object_info())
        return found["Loader"]["input"]["required"]["model"][0]


def value(found: Document | Refusal) -> Any:
    assert isinstance(found, Document), found
    return json.loads(found.body)
