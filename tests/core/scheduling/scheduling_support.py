"""Backends that run what the scheduler gives them, in virtual time."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import make_strategy
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, Request


def models(*names: str, **needs: Any) -> Needs:
    """Return the needs of a job with these models."""
    return Needs(models=frozenset(names), **needs)


def only(*names: str) -> Callable[[Needs], bool]:
    """Return what a backend with just these node classes says of needs."""
    return lambda needs: needs.classes <= frozenset(names)


def make_scheduler(strategy: str = "least_loaded", *names: str, max_concurrent: int = 1, **options: Any) -> Scheduler:
    """Return a scheduler with backends that are ready."""
    scheduler = Scheduler(make_strategy(strategy), **options)
    for name in names:
        ready(scheduler, name, max_concurrent=max_concurrent)
    return scheduler


def ready(scheduler: Scheduler, name: str, **spec: Any) -> None:
    """Let a backend take part."""
    scheduler.set_backend(BackendSpec(backend=BackendId(name), **spec))
    scheduler.set_ready(BackendId(name), True)


def enqueue(scheduler: Scheduler, prompt_id: str, *, now_s: float = 0.0, **request: Any) -> None:
    scheduler.enqueue(Request(prompt_id=prompt_id, **request), now_s)


def going(scheduler: Scheduler, now_s: float = 0.0) -> list[tuple[str, str]]:
    """Return who goes where now."""
    found = []
    while (each := scheduler.next(now_s)) is not None:
        found.append((each.prompt_id, str(each.backend)))
    return found


def goes(scheduler: Scheduler, now_s: float = 0.0) -> tuple[str, str] | None:
    """Return who goes out first now, and where to."""
    each = scheduler.next(now_s)
    return None if each is None else (each.prompt_id, str(each.backend))


def has_run(
    scheduler: Scheduler, name: str, *, run_s: float, now_s: float = 0.0, prompt_id: str = "past", **request: Any
) -> None:
    """Let a backend have run a job from `now_s` on."""
    scheduler.adopt(Request(prompt_id=prompt_id, **request), BackendId(name), now_s)
    scheduler.started(prompt_id, now_s)
    scheduler.finished(prompt_id, now_s + run_s)


@dataclass
class World:
    """Servers that run one prompt after the other, and load the models that it needs if they are not in memory.

    Attributes:
        run_s: how long a prompt runs there.
        load_s: how long loading takes.
        went: who went where, and when.
    """

    scheduler: Scheduler
    run_s: float = 10.0
    load_s: float = 0.0
    now_s: float = 0.0
    went: list[tuple[float, Assignment]] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    _there: dict[BackendId, list[str]] = field(default_factory=dict)
    _ends: dict[BackendId, float] = field(default_factory=dict)
    _held: dict[BackendId, frozenset[str]] = field(default_factory=dict)
    _needs: dict[str, Needs] = field(default_factory=dict)
    _asked: int = 0

    def submit(self, prompt_id: str, **request: Any) -> None:
        self._needs[prompt_id] = request.get("needs", Needs())
        enqueue(self.scheduler, prompt_id, now_s=self.now_s, **request)

    def submit_many(self, prefix: str, count: int, **request: Any) -> None:
        for number in range(count):
            self.submit(f"{prefix}{number}", number=float(number), **request)

    def order(self, names: Iterable[str] | None = None) -> list[str]:
        """Return the jobs in the order in which they went out."""
        wanted = None if names is None else set(names)
        return [each.prompt_id for _, each in self.went if wanted is None or each.prompt_id in wanted]

    def where(self) -> dict[str, str]:
        return {each.prompt_id: str(each.backend) for _, each in self.went}

    def next(self) -> Assignment | None:
        """Ask who goes where now; for tests to look at."""
        return self.scheduler.next(self.now_s)

    def dispatch(self) -> None:
        """Let all go out that may."""
        while (each := self.next()) is not None:
            self.went.append((self.now_s, each))
            self._there.setdefault(each.backend, []).append(each.prompt_id)
            if len(self._there[each.backend]) == 1:
                self._start(each.backend)

    def _start(self, backend: BackendId) -> None:
        prompt_id = self._there[backend][0]
        wanted = self._needs[prompt_id].models
        is_cold = bool(wanted) and self._held.get(backend) != wanted
        if wanted:
            self._held[backend] = wanted
        self.scheduler.started(prompt_id, self.now_s)
        self._ends[backend] = self.now_s + self.run_s + self.load_s * is_cold

    def step(self) -> bool:
        """Go on to what happens next: a prompt ends, or the scheduler wants to be asked. False if nothing does."""
        self.dispatch()
        wake_at_s = self.scheduler.wake_at_s
        upcoming = [*self._ends.values(), *([] if wake_at_s is None else [wake_at_s])]
        if not upcoming:
            return False
        self.now_s = max(min(upcoming), self.now_s)
        for backend in [name for name, at_s in self._ends.items() if at_s <= self.now_s]:
            prompt_id = self._there[backend].pop(0)
            del self._ends[backend]
            self.ended[prompt_id] = self.now_s
            self.scheduler.finished(prompt_id, self.now_s)
            if self._there[backend]:
                self._start(backend)
        self._asked += 1
        assert self._asked < 200_000, "it goes on and on"
        return True

    def run(self, *, until: Callable[[], bool] = lambda: False, steps: int = 100_000) -> None:
        """Go on until nothing is left to do."""
        for _ in itertools.islice(itertools.count(), steps):
            if until() or not self.step():
                return
        raise AssertionError(f"not done after {steps} steps")


def teach(scheduler: Scheduler, *names: str, run_s: float, load_s: float, backends: str = "a", kind: str = "") -> None:
    """Let a scheduler know how long prompts with these models run, and how long loading them takes."""
    for backend in backends:
        for _ in range(20):
            scheduler.durations.observe(kind, frozenset(), BackendId(backend), run_s, is_cold=False)
        for name in names:
            for _ in range(40):
                scheduler.durations.observe(kind, frozenset({name}), BackendId(backend), run_s + load_s, is_cold=True)


def holds(scheduler: Scheduler, name: str, *loaded: str, now_s: float = 0.0) -> None:
    """Let a backend hold models, from a job that has ended."""
    scheduler.adopt(Request(prompt_id="past", client="past", needs=models(*loaded)), BackendId(name), now_s)
    scheduler.finished("past", now_s)


def has(scheduler: Scheduler, name: str, prompt_id: str, *, now_s: float = 0.0, **request: Any) -> None:
    """Let a backend run a job."""
    scheduler.adopt(Request(prompt_id=prompt_id, **request), BackendId(name), now_s)
    scheduler.started(prompt_id, now_s)
