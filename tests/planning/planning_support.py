"""A scheduler that is easily seen through, and short ways to write jobs and fleets."""

from collections import deque
from typing import Any

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, Request
from comfyproxy.planning.fleet import Fleet, FleetBackend, FleetModel
from comfyproxy.planning.trace import TraceJob


class FirstComeFirstServed:
    """The oldest job that can run somewhere goes to the emptiest backend; among equals, to the first."""

    def __init__(self) -> None:
        self._backends: dict[BackendId, tuple[BackendSpec, set[str]]] = {}
        self._waiting: deque[Request] = deque()
        self.told: list[tuple[str, str, float]] = []

    def set_backend(self, spec: BackendSpec) -> None:
        self._backends[spec.backend] = spec, set()

    def set_ready(self, backend: BackendId, is_ready: bool) -> None:
        assert is_ready

    def enqueue(self, request: Request, now_s: float) -> None:
        self._waiting.append(request)

    def next(self, now_s: float) -> Assignment | None:
        for request in self._waiting:
            free = [
                (len(given), place, name)
                for place, (name, (spec, given)) in enumerate(self._backends.items())
                if len(given) < spec.max_concurrent and spec.can(request.needs)
            ]
            if free:
                _, _, name = min(free)
                self._waiting.remove(request)
                self._backends[name][1].add(request.prompt_id)
                return Assignment(request.prompt_id, name, "first come")
        return None

    @property
    def wake_at_s(self) -> float | None:
        return None

    def started(self, prompt_id: str, now_s: float) -> None:
        self.told.append(("started", prompt_id, now_s))

    def finished(self, prompt_id: str, now_s: float, *, is_typical: bool = True) -> None:
        self.told.append(("finished", prompt_id, now_s))
        for _, given in self._backends.values():
            given.discard(prompt_id)

    def misplaced(self, now_s: float) -> list[tuple[str, BackendId]]:
        return []

    def released(self, prompt_id: str) -> None:
        for _, given in self._backends.values():
            given.discard(prompt_id)


def job(at_s: float, run_s: float, model: str = "", client: str = "", **more: Any) -> TraceJob:
    return TraceJob(at_s=at_s, run_s=run_s, model=model, client=client, **more)


def fleet(*backends: FleetBackend, **load_s: float) -> Fleet:
    """Return a fleet with the loads of the models; without backends, one of speed 1."""
    models = {name: FleetModel(load_s=seconds) for name, seconds in load_s.items()}
    return Fleet(backends or (FleetBackend(name="a"),), models)
