"""The board under any sequence of changes, held against a model without indexes."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from service_support import make_fleet, make_job, make_placement

from comfyproxy.core.jobs import BackendId, InvalidTransition, JobState
from comfyproxy.core.needs import ANYWHERE, Needs
from comfyproxy.service.board import Board
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.store.memory import MemoryStore

NAMES = ("a", "b")
ROOM = 3
CLIENTS = ("c", "d", None)
TERMINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass
class Known:
    """One job as the model knows it."""

    live: LiveJob
    number: float
    client: str | None
    state: JobState = JobState.QUEUED
    backend: str | None = None
    its_id: str | None = None
    pinned: str | None = None
    is_admitted: bool = False
    is_visitor: bool = False
    is_judged: bool = False  # on a visit, or on its way back from one
    started: int | None = None  # the how manieth start it was
    node: str | None = None
    is_waiting: bool = False
    queued: int = 0  # when it was put into the queue

    @property
    def prompt_id(self) -> str:
        return self.live.prompt_id


class BoardMachine(RuleBasedStateMachine):
    """Does to a board and to a model whatever the service may do."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.fleet = make_fleet(*NAMES, max_concurrent=ROOM)
        self.placement = make_placement(self.fleet)
        self.board = Board(self.fleet, PayloadCache(MemoryStore()), self.placement)
        self.known: dict[str, Known] = {}
        self.last_start: dict[str, str] = {}  # backend -> the prompt that started there last, while it runs
        self.steps = self.serial = 0
        self.changes = 0
        self.board.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def _tick(self) -> int:
        self.steps += 1
        return self.steps

    def _is_here(self, prompt_id: str) -> bool:
        return prompt_id in self.known

    def _stop(self, known: Known) -> None:
        known.started, known.node = None, None
        if known.backend is not None and self.last_start.get(known.backend) == known.prompt_id:
            del self.last_start[known.backend]

    @rule(
        target=jobs,
        number=st.integers(-1, 2),
        client=st.sampled_from(CLIENTS),
        is_admitted=st.booleans(),
        backend=st.sampled_from((None, None, *NAMES)),
        pinned=st.sampled_from((None, None, *NAMES)),
        waits=st.booleans(),
    )
    def add(
        self,
        number: int,
        client: str | None,
        is_admitted: bool,
        backend: str | None,
        pinned: str | None,
        waits: bool,
    ) -> str:
        self.serial += 1
        prompt_id = f"p{self.serial}"
        state = JobState.QUEUED if backend is None else JobState.ACCEPTED
        job = make_job(
            prompt_id,
            number=float(number),
            client_id=client,
            state=state,
            backend=None if backend is None else BackendId(backend),
        )
        needs = ANYWHERE if pinned is None else Needs(pinned=BackendId(pinned))
        live = LiveJob(job, needs=needs, is_admitted=is_admitted)
        self.board.add(live)
        self.known[prompt_id] = Known(
            live, float(number), client, state, backend, pinned=pinned, is_admitted=is_admitted
        )
        if waits:
            self._queue(prompt_id)
        return prompt_id

    @rule(prompt_id=jobs)
    def admit(self, prompt_id: str) -> None:
        if self._is_here(prompt_id):
            self.board.admit(self.known[prompt_id].live)
            self.known[prompt_id].is_admitted = True

    @rule(prompt_id=jobs)
    def queue(self, prompt_id: str) -> None:
        self._queue(prompt_id)

    def _queue(self, prompt_id: str) -> None:
        if self._is_here(prompt_id) and self.known[prompt_id].state is JobState.QUEUED:
            known = self.known[prompt_id]
            self.board.queue(known.live)
            if not known.is_waiting:
                known.queued = self._tick()
            known.is_waiting, known.is_judged = True, False

    @rule(prompt_id=jobs)
    def unqueue(self, prompt_id: str) -> None:
        if self._is_here(prompt_id):
            self.board.unqueue(self.known[prompt_id].live)
            self.known[prompt_id].is_waiting = False

    @rule()
    def take(self) -> None:
        """Take a job out and bind it, as the dispatcher does."""
        waiting = [known for known in self.known.values() if known.is_waiting]
        room = {name: self._has_room(name) for name in NAMES}
        fitting = [each for each in waiting if (room[each.pinned] if each.pinned else any(room.values()))]
        found = self.board.take()
        if not fitting:
            assert found is None
            return
        assert found is not None
        live, backend, _ = found
        known = self.known[live.prompt_id]
        assert known in fitting
        assert room[backend]
        assert known.pinned in (None, backend)
        if known.pinned is None:
            loads = {name: len(self._there(name)) for name in NAMES if room[name]}
            assert loads[backend] == min(loads.values())
        # Whose turn it is among clients is the scheduler's affair; of one client's jobs the first goes.
        rivals = [each for each in fitting if each.client == known.client]
        assert all((known.number, known.queued) <= (each.number, each.queued) for each in rivals)
        self.board.move(live, JobState.DISPATCHING, backend=backend)
        known.is_waiting, known.state, known.backend = False, JobState.DISPATCHING, backend
        known.live.is_visitor = known.is_visitor = False

    def _there(self, name: str) -> set[str]:
        """Return the jobs that take a slot of a backend."""
        return {known.prompt_id for known in self.known.values() if known.backend == name and not known.is_visitor}

    def _has_room(self, name: str) -> bool:
        return len(self._there(name)) < ROOM

    @rule(number=st.integers(-2, 3))
    def who_is_judged_comes_first(self, number: int) -> None:
        judged = [known.number for known in self.known.values() if known.is_judged]
        assert self.board.is_anybody_before(number) is any(each < number for each in judged)

    @rule(prompt_id=jobs)
    def relist(self, prompt_id: str) -> None:
        if self._is_here(prompt_id):
            self.board.relist(self.known[prompt_id].live)

    @rule(prompt_id=jobs, backend=st.sampled_from(NAMES), is_visitor=st.booleans())
    def dispatch(self, prompt_id: str, backend: str, is_visitor: bool) -> None:
        if self._is_here(prompt_id) and self.known[prompt_id].state is JobState.QUEUED:
            known = self.known[prompt_id]
            known.live.is_visitor = known.is_visitor = is_visitor
            known.is_judged = is_visitor
            self.board.move(known.live, JobState.DISPATCHING, backend=BackendId(backend))
            known.state, known.backend, known.is_waiting = JobState.DISPATCHING, backend, False

    @rule(prompt_id=jobs, mints=st.booleans())
    def accept(self, prompt_id: str, mints: bool) -> None:
        if self._is_here(prompt_id) and self.known[prompt_id].state is JobState.DISPATCHING:
            known = self.known[prompt_id]
            known.its_id = f"its-{prompt_id}" if mints else None
            self.board.move(known.live, JobState.ACCEPTED, backend_prompt_id=known.its_id)
            known.state = JobState.ACCEPTED

    @rule(prompt_id=jobs)
    def stay(self, prompt_id: str) -> None:
        if self._is_here(prompt_id):
            self.board.stay(self.known[prompt_id].live)
            known = self.known[prompt_id]
            known.is_judged = known.is_judged and not known.is_visitor
            known.is_visitor = False

    @rule(prompt_id=jobs, node=st.sampled_from((None, "1", "2")))
    def start(self, prompt_id: str, node: str | None) -> None:
        if self._is_here(prompt_id) and self.known[prompt_id].backend is not None:
            known = self.known[prompt_id]
            self.board.started(known.live, now_s=1.0)
            if known.started is None:
                known.started = self._tick()
                known.is_judged = known.is_judged and not known.is_visitor
                known.is_admitted, known.is_visitor = True, False
                self.last_start[str(known.backend)] = prompt_id
            known.live.node = known.node = node

    @rule(prompt_id=jobs)
    def return_to_queue(self, prompt_id: str) -> None:
        if self._is_here(prompt_id) and self.known[prompt_id].state is not JobState.QUEUED:
            known = self.known[prompt_id]
            self._stop(known)
            self.board.move(known.live, JobState.QUEUED)
            known.state, known.backend, known.its_id = JobState.QUEUED, None, None
            known.is_visitor = known.is_waiting = False

    @rule(prompt_id=consumes(jobs), to=st.sampled_from(TERMINAL))
    def end(self, prompt_id: str, to: JobState) -> None:
        if not self._is_here(prompt_id):
            return
        known = self.known[prompt_id]
        if known.state is JobState.QUEUED and to is JobState.SUCCEEDED:
            to = JobState.CANCELLED
        self.board.move(known.live, to)
        self.board.remove(known.live)
        self._forget(known)

    @rule(prompt_id=consumes(jobs))
    def remove(self, prompt_id: str) -> None:
        if self._is_here(prompt_id):
            known = self.known[prompt_id]
            self.board.remove(known.live)
            self._forget(known)
            self.board.remove(known.live)

    def _forget(self, known: Known) -> None:
        self._stop(known)
        del self.known[known.prompt_id]

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def move_where_it_may_not(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(sorted(self.known.values(), key=lambda each: each.prompt_id)))
        to = JobState.ACCEPTED if known.state is not JobState.DISPATCHING else JobState.DISPATCHING
        try:
            self.board.move(known.live, to)
        except InvalidTransition:
            return
        raise AssertionError(f"{known.state} -> {to}")

    # What must be true after every step

    @invariant()
    def jobs_are_found(self) -> None:
        assert all(self.board.get(known.prompt_id) is known.live for known in self.known.values())
        assert all(known.live.job.state is known.state for known in self.known.values())
        admitted = {known.prompt_id for known in self.known.values() if known.is_admitted}
        assert {job.prompt_id for job in self.board.unfinished()} == admitted
        assert self.board.count == len(admitted)
        assert all((self.board.job(prompt_id) is not None) is (prompt_id in admitted) for prompt_id in self.known)

    @invariant()
    def waiting_is_counted(self) -> None:
        assert self.board.waiting_count == sum(known.is_waiting for known in self.known.values())

    @invariant()
    def backends_have_what_they_have(self) -> None:
        for backend in self.fleet:
            there = [known for known in self.known.values() if known.backend == backend.id]
            assert {live.prompt_id for live in self.board.on(backend.id)} == {known.prompt_id for known in there}
            assert backend.in_flight == {known.prompt_id for known in there if not known.is_visitor}
            assert backend.visitors == {known.prompt_id for known in there if known.is_visitor}
            for known in self.known.values():
                expected = known.live if known.backend == backend.id else None
                assert self.board.find(backend.id, known.its_id or known.prompt_id) is expected
            running = self.board.running_on(backend.id)
            assert (None if running is None else running.prompt_id) == self.last_start.get(backend.id)

    @invariant()
    def the_scheduler_knows_who_is_where(self) -> None:
        on = {state.id: set(state.flights) for state in self.placement.scheduler._fleet}
        there = {BackendId(name): self._there(name) for name in NAMES}
        assert {name: jobs for name, jobs in on.items() if jobs} == {name: jobs for name, jobs in there.items() if jobs}
        at = {prompt_id: state.id for prompt_id, state in self.placement.scheduler._at.items()}
        assert at == {prompt_id: name for name, jobs in there.items() for prompt_id in jobs}
        for known in self.known.values():
            assert (known.prompt_id in self.placement) is known.is_waiting

    @invariant()
    def running_is_known(self) -> None:
        running = {known.prompt_id for known in self.known.values() if known.started is not None}
        assert {job.prompt_id for job in self.board.running()} == running
        assert {prompt_id for prompt_id in self.known if self.board.is_running(prompt_id)} == running
        pending = [known for known in self.known.values() if known.is_admitted and known.started is None]
        assert [job.number for job in self.board.pending()] == sorted(known.number for known in pending)
        for client in CLIENTS:
            if client is not None:
                of_client = [k for k in self.known.values() if k.client == client and k.started and k.node]
                last = max(of_client, key=lambda known: known.started or 0, default=None)
                assert self.board.running_node(client) == (None if last is None else last.node)

    @invariant()
    def nothing_is_left_behind(self) -> None:
        if not self.known:
            assert not self.board._running_of
            assert not self.board._running_on
            assert not any(self.board._by_backend.values())
        assert self.board.version == self.changes


BoardMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBoard = BoardMachine.TestCase
