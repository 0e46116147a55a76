"""What every strategy keeps to, whatever happens: held against a model that knows only the rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_support import World, models, only, ready

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.queue import Entry
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import NAMES, Candidate, Strategy, make_strategy
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, MaxBypass, Request

BACKENDS = tuple(BackendId(name) for name in "abcd")
CLASSES = frozenset("XYZ")
CLIENTS = ("", "c", "d", "e")
LAST_FIRST = "last_first"
STRATEGIES = (*NAMES, LAST_FIRST)


class LastFirst:
    """A strategy as a plugin brings it along: it reads the job and leaves backends out."""

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        return [each.backend for each in reversed(candidates) if each.load < 2]


def make(name: str) -> Strategy:
    return LastFirst() if name == LAST_FIRST else make_strategy(name)


needs = st.builds(
    Needs,
    classes=st.frozensets(st.sampled_from("XYZ"), max_size=2),
    models=st.sampled_from((frozenset[str](), frozenset({"m"}), frozenset({"n"}), frozenset({"m", "n"}))),
    capabilities=st.sampled_from((frozenset[str](),) * 5 + (frozenset({"gpu"}),)),
    pinned=st.sampled_from((None,) * 6 + BACKENDS),
)
requests = st.fixed_dictionaries(
    {
        "client": st.sampled_from(CLIENTS),
        "number": st.integers(-2, 3).map(float),
        "priority": st.sampled_from((0, 0, 0, 1, -1)),
        "needs": needs,
        "kind": st.sampled_from("kl"),
        "excluded": st.sampled_from((frozenset[BackendId](),) * 4 + tuple(frozenset({name}) for name in BACKENDS)),
    }
)
bounds = st.builds(
    MaxBypass, count=st.sampled_from((0, 1, 2, 5, 1_000)), seconds=st.sampled_from((0.0, 5.0, 30.0, 600.0))
)


@dataclass
class Server:
    """A backend as the model knows it."""

    spec: BackendSpec
    classes: frozenset[str]
    has_gpu: bool
    is_ready: bool = False
    foreign: int = 0
    jobs: dict[str, Request] = field(default_factory=dict)  # in the order in which they came

    def has(self, needs: Needs) -> bool:
        return needs.classes <= self.classes and (self.has_gpu or not needs.capabilities)

    @property
    def has_room(self) -> bool:
        return self.is_ready and (len(self.jobs) + self.foreign < self.spec.max_concurrent or not self.jobs)


@dataclass
class Waiting:
    """A job that waits."""

    request: Request
    came: int
    passed: list[float] = field(default_factory=list)  # when others went although it was its turn


class SchedulerMachine(RuleBasedStateMachine):
    """Does to a scheduler, to another one just like it, and to a model whatever may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.servers: dict[BackendId, Server] = {}
        self.waiting: dict[str, Waiting] = {}
        self.now_s = 0.0
        self.serial = self.steps = 0

    @initialize(strategy=st.sampled_from(STRATEGIES), max_bypass=bounds)
    def begin(self, strategy: str, max_bypass: MaxBypass) -> None:
        self.strategy, self.max_bypass = strategy, max_bypass
        self.scheduler, self.twin = (Scheduler(make(strategy), max_bypass=max_bypass) for _ in range(2))
        self.both("set_backend", self._server(BACKENDS[0], 1, CLASSES, True))
        self.ready_or_not(BACKENDS[0], True)

    def both(self, method: str, *args: Any, **kwargs: Any) -> None:
        for each in (self.scheduler, self.twin):
            getattr(each, method)(*args, **kwargs)

    @property
    def is_affine(self) -> bool:
        return self.strategy == "model_affinity"

    # Backends

    def _server(self, name: BackendId, room: int, classes: frozenset[str], has_gpu: bool, **spec: Any) -> BackendSpec:
        server = self.servers.get(name)
        if server is None:
            server = self.servers[name] = Server(BackendSpec(backend=name), classes, has_gpu)
        server.classes, server.has_gpu = classes, has_gpu
        server.spec = BackendSpec(backend=name, max_concurrent=room, can=server.has, **spec)
        return server.spec

    @rule(
        name=st.sampled_from(BACKENDS),
        room=st.integers(1, 3),
        classes=st.frozensets(st.sampled_from("XYZ"), min_size=1),
        has_gpu=st.booleans(),
        weight=st.sampled_from((None, 0.5, 4.0)),
        priority=st.sampled_from((None, 1, 2)),
        is_ready=st.booleans(),
    )
    def set_backend(
        self,
        name: BackendId,
        room: int,
        classes: frozenset[str],
        has_gpu: bool,
        weight: float | None,
        priority: int | None,
        is_ready: bool,
    ) -> None:
        self.both("set_backend", self._server(name, room, classes, has_gpu, weight=weight, priority=priority))
        if is_ready:
            self.ready_or_not(name, True)

    @rule(name=st.sampled_from(BACKENDS), is_ready=st.sampled_from((True, True, False)))
    def ready_or_not(self, name: BackendId, is_ready: bool) -> None:
        self.both("set_ready", name, is_ready)
        if name in self.servers:
            self.servers[name].is_ready = is_ready

    @rule(name=st.sampled_from(BACKENDS), count=st.sampled_from((0, 0, 1, 4)))
    def foreign(self, name: BackendId, count: int) -> None:
        self.both("set_foreign", name, count)
        if name in self.servers:
            self.servers[name].foreign = count

    @rule(name=st.sampled_from(BACKENDS))
    def restart(self, name: BackendId) -> None:
        self.both("restarted", name)

    @rule(name=st.sampled_from(BACKENDS[1:]))
    def remove_backend(self, name: BackendId) -> None:
        if name in self.servers:
            for prompt_id in list(self.servers[name].jobs):
                self.release(prompt_id)
            self.both("remove_backend", name)
            del self.servers[name]

    @rule(strategy=st.sampled_from(STRATEGIES), max_bypass=st.none() | bounds)
    def use(self, strategy: str, max_bypass: MaxBypass | None) -> None:
        for each in (self.scheduler, self.twin):
            each.use(make(strategy), max_bypass=max_bypass)
        self.strategy, self.max_bypass = strategy, max_bypass or self.max_bypass

    # Jobs

    @rule(request=requests, times=st.integers(1, 3))
    def enqueue(self, request: dict[str, Any], times: int) -> None:
        for _ in range(times):
            self.serial += 1
            self.wait(Request(prompt_id=f"p{self.serial}", **request))

    def wait(self, request: Request) -> None:
        self.both("enqueue", request, self.now_s)
        before = self.waiting.pop(request.prompt_id, None)
        self.steps += 1
        passed = [] if before is None else before.passed
        self.waiting[request.prompt_id] = Waiting(request, self.steps if before is None else before.came, passed)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), request=requests)
    def enqueue_again(self, data: st.DataObject, request: dict[str, Any]) -> None:
        prompt_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.wait(Request(prompt_id=prompt_id, **request))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        prompt_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.both("withdraw", prompt_id)
        del self.waiting[prompt_id]

    @rule(request=requests, name=st.sampled_from(BACKENDS), has_waited=st.booleans(), data=st.data())
    def adopt(self, request: dict[str, Any], name: BackendId, has_waited: bool, data: st.DataObject) -> None:
        self.serial += 1
        prompt_id = f"p{self.serial}"
        if self.waiting and has_waited:
            prompt_id = data.draw(st.sampled_from(sorted(self.waiting)))
        adopted = Request(prompt_id=prompt_id, **request)
        self.both("adopt", adopted, name, self.now_s)
        self.waiting.pop(prompt_id, None)
        if name in self.servers:
            self.servers[name].jobs[prompt_id] = adopted

    @property
    def there(self) -> list[str]:
        return sorted(prompt_id for server in self.servers.values() for prompt_id in server.jobs)

    def _leave(self, prompt_id: str) -> None:
        for server in self.servers.values():
            server.jobs.pop(prompt_id, None)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.both("started", data.draw(st.sampled_from(self.there)), self.now_s)

    @precondition(lambda self: self.there)
    @rule(data=st.data(), is_typical=st.booleans())
    def finish(self, data: st.DataObject, is_typical: bool) -> None:
        prompt_id = data.draw(st.sampled_from(self.there))
        self.both("finished", prompt_id, self.now_s, is_typical=is_typical)
        self._leave(prompt_id)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self.release(data.draw(st.sampled_from(self.there)))

    def release(self, prompt_id: str) -> None:
        self.both("released", prompt_id)
        self._leave(prompt_id)

    @rule(seconds=st.sampled_from((0.5, 3.0, 20.0, 100.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def move_misplaced(self) -> None:
        """As the dispatcher does. What goes back to where it was is right there."""
        self.ask(10)
        misplaced = self.scheduler.misplaced(self.now_s)
        assert misplaced == self.twin.misplaced(self.now_s)
        for prompt_id, name in misplaced:
            request = self.servers[name].jobs[prompt_id]
            self.release(prompt_id)
            self.wait(request)
        self.ask(20)
        assert set(misplaced).isdisjoint(self.scheduler.misplaced(self.now_s))

    # What is said

    @rule(times=st.integers(1, 6))
    def ask(self, times: int) -> None:
        for _ in range(times):
            if self._next() is None:
                break

    @rule()
    def ask_when_it_wants_to_be_asked(self) -> None:
        self._next()
        if (wake_at_s := self.scheduler.wake_at_s) is not None:
            self.now_s = max(wake_at_s, self.now_s)
            self.ask(6)

    def _next(self) -> Assignment | None:
        fronts = {state.id: self.scheduler._affinity.front(state) for state in self.scheduler._fleet}
        found = self.scheduler.next(self.now_s)
        assert found == self.twin.next(self.now_s)
        assert self.scheduler.wake_at_s == self.twin.wake_at_s
        if found is None:
            self._nothing_could_go()
            return None
        waiting = self.waiting.pop(found.prompt_id)
        server = self.servers[found.backend]
        assert server.has_room
        assert found.backend in self._able(waiting.request)
        assert found.why
        self._is_first_of_its_equals(waiting)
        if self.is_affine:
            self._is_passed_over(fronts[found.backend], found)
        server.jobs[found.prompt_id] = waiting.request
        return found

    def _able(self, request: Request) -> set[BackendId]:
        """Return who may have a job, ready or not."""
        open_to_it = {name for name in self.servers if name not in request.excluded}
        if request.needs.pinned is not None:
            return open_to_it & {request.needs.pinned}
        able = {name for name in open_to_it if self.servers[name].has(request.needs)}
        return open_to_it if not able and not request.needs.capabilities else able

    def _is_first_of_its_equals(self, waiting: Waiting) -> None:
        request = waiting.request
        for other in self.waiting.values():
            if (other.request.client, other.request.priority) == (request.client, request.priority) and (
                other.request.needs,
                other.request.excluded,
            ) == (request.needs, request.excluded):
                assert (request.number, waiting.came) < (other.request.number, other.came)

    def _nothing_could_go(self) -> None:
        """Nothing goes out: nothing can, or somebody wants to be asked later."""
        could = [
            each
            for each in self.waiting.values()
            if any(self.servers[name].has_room for name in self._able(each.request))
        ]
        wake_at_s = self.scheduler.wake_at_s
        if self.is_affine:
            # One that has jobs of ours may keep the next for their end, if nobody knows when that will be.
            idle = {name for name, server in self.servers.items() if server.has_room and not server.jobs}
            assert wake_at_s is not None or all(idle.isdisjoint(self._able(each.request)) for each in could)
            assert wake_at_s is None or self.now_s < wake_at_s < math.inf
        elif self.strategy != LAST_FIRST:
            assert not could
            assert wake_at_s is None

    def _is_passed_over(self, front: Entry | None, found: Assignment) -> None:
        """A job goes although it is another's turn there: that one is not yet at its bounds, or was never passed over.

        Who waits for a busy backend is passed over at least once: until then it blocks nobody, whatever the bounds.
        """
        if front is None or front.request.prompt_id == found.prompt_id:
            return
        passed = self.waiting[front.request.prompt_id].passed
        assert len(passed) < max(self.max_bypass.count, 1)
        assert not passed or self.now_s - passed[0] < self.max_bypass.seconds
        passed.append(self.now_s)

    # What must be true after every step

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for each in (self.scheduler, self.twin):
            assert len(each) == len(self.waiting)
            assert all(prompt_id in each for prompt_id in self.waiting)
            on = {state.id: list(state.flights) for state in each._fleet}
            assert on == {name: list(server.jobs) for name, server in self.servers.items()}
            assert {prompt_id: state.id for prompt_id, state in each._at.items()} == {
                prompt_id: name for name, server in self.servers.items() for prompt_id in server.jobs
            }

    @invariant()
    def who_has_room_is_known(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        fleet = self.scheduler._fleet
        assert {state.id for state in fleet.available()} == {
            name for name, server in self.servers.items() if server.has_room
        }
        assert [state.slot for state in fleet.available()] == sorted(fleet._order)
        assert fleet.ready_count == sum(server.is_ready for server in self.servers.values())
        assert {state.id for state in fleet.crowded(100)} == {
            name for name, server in self.servers.items() if server.jobs and len(server.jobs) + server.foreign > 1
        }
        for state in fleet:
            assert state in fleet.holders(state.tail)

    @invariant()
    def the_queue_adds_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        queue = self.scheduler._queue
        entries = [entry for prompt_id in self.waiting if (entry := queue.get(prompt_id)) is not None]
        assert {id(group) for group in queue.groups.values()} == {id(entry.group) for entry in entries}
        for group in queue.groups.values():
            assert group.waiting == sum(entry.group is group for entry in entries)
            assert group.head() in entries
        for client in queue._clients.values():
            assert client.waiting == sum(entry.client is client for entry in entries)
        assert len(list(queue.in_turn(100))) == len({id(entry.flow) for entry in entries})

    def teardown(self) -> None:
        """Let all that can run go out in the end."""
        if not hasattr(self, "scheduler"):
            return
        for name in self.servers:
            self.foreign(name, 0)
            self.ready_or_not(name, True)
        for _ in range(3 * len(self.waiting) + 3 * len(self.there) + 20):
            while self._next() is not None:
                pass
            if (wake_at_s := self.scheduler.wake_at_s) is not None:
                self.now_s = wake_at_s
                while self._next() is not None:
                    pass
            self.now_s += 10.0
            for prompt_id in self.there:
                self.both("started", prompt_id, self.now_s - 5.0)
                self.both("finished", prompt_id, self.now_s)
                self._leave(prompt_id)
        assert [each for each in self.waiting.values() if self._able(each.request)] == []


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestScheduler = SchedulerMachine.TestCase


# Whole days of work


class Watched(World):
    """Notes how often, and since when, each job is passed over where it could have gone.

    Attributes:
        at_most: the most often that one was.
        at_longest_s: the longest time from the first to the last.
    """

    at_most = 0
    at_longest_s = 0.0

    def next(self) -> Assignment | None:
        fronts = {state.id: self.scheduler._affinity.front(state) for state in self.scheduler._fleet}
        found = super().next()
        front = fronts[found.backend] if found is not None else None
        if found is None or front is None or front.request.prompt_id == found.prompt_id:
            return found
        self.__dict__.setdefault("passed", {}).setdefault(front.request.prompt_id, []).append(self.now_s)
        passed = self.__dict__["passed"][front.request.prompt_id]
        self.at_most = max(self.at_most, len(passed))
        self.at_longest_s = max(self.at_longest_s, passed[-1] - passed[0])
        return found


jobs = st.lists(
    st.fixed_dictionaries(
        {
            "client": st.sampled_from(CLIENTS),
            "number": st.integers(0, 2).map(float),
            "priority": st.sampled_from((0, 0, 0, 1)),
            "needs": st.builds(models, st.sampled_from("mnop"))
            | st.just(Needs())
            | st.just(models("m", classes=CLASSES)),
            "kind": st.sampled_from("kl"),
        }
    ),
    max_size=60,
)
fleets = st.lists(
    st.fixed_dictionaries(
        {
            "max_concurrent": st.integers(1, 3),
            "can": st.sampled_from((only("X", "Y", "Z"), only("X"))),
            "weight": st.sampled_from((None, 1.0, 3.0)),
            "priority": st.sampled_from((None, 1, 2)),
        }
    ),
    min_size=1,
    max_size=5,
)


def world_of(fleet: list[dict[str, Any]], strategy: Strategy, *, load_s: float, **options: Any) -> Watched:
    world = Watched(Scheduler(strategy, **options), run_s=7.0, load_s=load_s)
    for number, spec in enumerate(fleet):
        ready(world.scheduler, f"b{number}", **spec)
    return world


def work(world: World, work_list: list[dict[str, Any]], *, at_once: int) -> None:
    """Let jobs come in, so many at once, while others run, and wait for the end of all."""
    for place, request in enumerate(work_list):
        world.submit(f"p{place}", **request)
        if place % at_once == 0:
            world.step()
    world.run()


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(fleet=fleets, those=jobs, load_s=st.sampled_from((0.0, 3.0, 40.0)), at_once=st.integers(1, 20))
@settings(max_examples=40)
def test_every_job_runs_in_the_end_and_equals_in_their_order(
    strategy: str, fleet: list[dict[str, Any]], those: list[dict[str, Any]], load_s: float, at_once: int
) -> None:
    world = world_of(fleet, make(strategy), load_s=load_s)
    work(world, those, at_once=at_once)
    assert sorted(world.ended) == sorted(f"p{place}" for place in range(len(those)))
    assert sorted(world.order()) == sorted(world.ended)
    assert len(world.scheduler) == 0
    assert world.scheduler.wake_at_s is None
    assert all(client.waiting == 0 for client in world.scheduler._queue._clients.values())
    assert not any(state.flights for state in world.scheduler._fleet)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(those=jobs)
@settings(max_examples=20)
def test_equals_of_one_client_go_in_their_order(strategy: str, those: list[dict[str, Any]]) -> None:
    world = world_of([{"max_concurrent": 1}] * 3, make(strategy), load_s=20.0)
    for place, request in enumerate(those):
        world.submit(f"p{place}", **request)
    world.run()
    alike: dict[tuple[Any, ...], list[tuple[float, int]]] = {}
    for prompt_id in world.order():
        request = those[int(prompt_id[1:])]
        key = request["client"], request["priority"], request["needs"]
        alike.setdefault(key, []).append((request["number"], int(prompt_id[1:])))
    assert all(order == sorted(order) for order in alike.values())


@given(
    fleet=fleets,
    those=jobs,
    load_s=st.sampled_from((3.0, 40.0)),
    at_once=st.integers(1, 20),
    count=st.integers(0, 4),
    seconds=st.sampled_from((0.0, 20.0, 60.0, 1e9)),
)
@settings(max_examples=200)
def test_nobody_who_could_go_is_passed_over_beyond_the_bounds(
    fleet: list[dict[str, Any]],
    those: list[dict[str, Any]],
    load_s: float,
    at_once: int,
    count: int,
    seconds: float,
) -> None:
    bound = MaxBypass(count=count, seconds=seconds)
    world = world_of(fleet, make("model_affinity"), load_s=load_s, max_bypass=bound)
    work(world, those, at_once=at_once)
    assert world.at_most <= max(count, 1)
    assert world.at_longest_s <= seconds


@pytest.mark.parametrize("strategy", NAMES)
@given(
    lengths=st.lists(st.sampled_from((1.0, 5.0, 20.0)), min_size=2, max_size=4),
    backends=st.integers(1, 3),
)
@settings(max_examples=15)
def test_clients_that_always_have_work_get_equal_service(strategy: str, lengths: list[float], backends: int) -> None:
    scheduler = Scheduler(make_strategy(strategy))
    for number in range(backends):
        ready(scheduler, f"b{number}")
    for client, run_s in enumerate(lengths):
        for _ in range(20):
            for number in range(backends):
                scheduler.durations.observe(str(client), frozenset(), BackendId(f"b{number}"), run_s, is_cold=False)
        for number in range(300):
            request = Request(
                prompt_id=f"{client}-{number}", client=str(client), number=float(number), kind=str(client)
            )
            scheduler.enqueue(request, 0.0)
    service = dict.fromkeys(range(len(lengths)), 0.0)
    ends: list[tuple[float, str]] = []
    now_s = 0.0
    while now_s < 200.0:
        while (found := scheduler.next(now_s)) is not None:
            client = int(found.prompt_id.split("-")[0])
            service[client] += lengths[client]
            scheduler.started(found.prompt_id, now_s)
            ends.append((now_s + lengths[client], found.prompt_id))
        ends.sort()
        now_s, prompt_id = ends.pop(0)
        scheduler.finished(prompt_id, now_s)
    assert max(service.values()) - min(service.values()) <= 2 * backends * max(lengths)
