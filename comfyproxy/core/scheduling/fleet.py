"""The backends as the scheduler knows them: who has room, in which order, and what each will hold in memory."""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.durations import Durations, Models
from comfyproxy.core.scheduling.queue import Group
from comfyproxy.core.scheduling.strategies import LAST, Candidate, Keyed
from comfyproxy.core.scheduling.types import BackendSpec, Request

NOTHING: Models = frozenset()
REMEMBERED = 10_000  # answers to who can run what

_Slot = tuple[tuple[float, ...], int, int, BackendId]  # key, last turn, place in the configuration, name


@dataclass(slots=True, eq=False)
class Flight:
    """A job on a backend."""

    request: Request
    run_s: float  # as expected
    load_s: float
    is_cold: bool  # its models have to be loaded
    started_s: float | None = None

    @property
    def expected_s(self) -> float:
        """How long it takes from its start."""
        return self.run_s + self.load_s


@dataclass(slots=True, eq=False)
class State:
    """One backend.

    Attributes:
        foreign: prompts that others put there past the proxy.
        flights: our jobs there, in the order in which they were sent.
        tail: models in its memory once all that it has got is done.
        since_s: when `tail` was used or bound last.
        last_turn: when it was chosen last, counted in choices.
    """

    spec: BackendSpec
    position: int = 0
    is_ready: bool = False
    foreign: int = 0
    flights: dict[str, Flight] = field(default_factory=dict)
    held: Models = NOTHING
    tail: Models = NOTHING
    since_s: float = 0.0
    last_turn: int = 0
    slot: _Slot | None = None  # its place in the order; None without room

    @property
    def id(self) -> BackendId:
        """Its name."""
        return self.spec.backend

    @property
    def load(self) -> int:
        """Prompts there."""
        return len(self.flights) + self.foreign

    @property
    def is_available(self) -> bool:
        """Whether it may take one more.

        Strangers' prompts count against the bound, but never keep our last one out: else a server that others use
        all the time would never run a job of ours.
        """
        return self.is_ready and (self.load < self.spec.max_concurrent or not self.flights)

    def busy_s(self, now_s: float, foreign_s: float) -> float:
        """Return how long it is expected to be busy with what it has; one that is late is done any moment.

        Args:
            foreign_s: how long a stranger's prompt is expected to take.
        """
        total = self.foreign * foreign_s
        for flight in self.flights.values():
            if flight.started_s is None:
                total += flight.expected_s
            else:
                total += max(flight.expected_s - (now_s - flight.started_s), 0.0)
        return total

    def late_s(self, now_s: float, *, beyond: float = 1.0) -> float:
        """Return how much longer than expected its running job has taken; 0 if it is not late.

        Args:
            beyond: what is expected, times this, is not yet late.
        """
        started = (
            (each.expected_s, now_s - each.started_s) for each in self.flights.values() if each.started_s is not None
        )
        return max((took_s - expected_s for expected_s, took_s in started if took_s > beyond * expected_s), default=0.0)


class FleetState:
    """All backends; those with room in the strategy's order.

    The order is a list that is kept sorted: a change costs a bisection and a move in memory, and the best one is
    always at hand, among eight or a thousand.
    """

    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._states: dict[BackendId, State] = {}
        self._order: list[_Slot] = []
        self._with_room: set[BackendId] = set()
        self._holders: dict[Models, dict[BackendId, State]] = {}
        self._able: dict[tuple[Needs, frozenset[BackendId]], frozenset[BackendId] | None] = {}
        self._crowded: dict[BackendId, State] = {}
        self._busy: dict[BackendId, State] = {}
        self._impossible: set[tuple[Needs, frozenset[BackendId]]] = set()
        self._keyed: Keyed | None = None
        self._turn = self._added = 0
        self.ready_count = 0
        self.version = 0  # grows with every change of who could run what

    def __iter__(self) -> Iterator[State]:
        return iter(self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def get(self, backend: BackendId) -> State | None:
        """Return a backend's state."""
        return self._states.get(backend)

    def sort_by(self, strategy: Keyed | None) -> None:
        """Order by another strategy; None: by turn alone."""
        self._keyed = strategy
        for state in self:
            self.changed(state)

    def set_backend(self, spec: BackendSpec) -> None:
        """Add a backend, or say something else of one."""
        state = self._states.get(spec.backend)
        if state is None:
            state = self._states[spec.backend] = State(spec, self._added)
            self._added += 1
            self._hold(state, NOTHING)
        state.spec = spec
        self._abilities_changed()
        self.changed(state)

    def remove(self, backend: BackendId) -> None:
        """Forget a backend that is no longer configured; unknown ones do not matter."""
        state = self._states.pop(backend, None)
        if state is None:
            return
        if state.is_ready:
            self.ready_count -= 1
        self._unlist(state)
        self._crowded.pop(backend, None)
        self._busy.pop(backend, None)
        self._forget_tail(state)
        self._abilities_changed()

    def _abilities_changed(self) -> None:
        self.version += 1
        self._able.clear()
        self._impossible.clear()

    def set_ready(self, state: State, is_ready: bool) -> None:
        """Note that a backend takes jobs, or does not."""
        self.ready_count += is_ready - state.is_ready
        state.is_ready = is_ready
        self.changed(state)

    def changed(self, state: State) -> None:
        """Put a backend where it belongs now."""
        self._unlist(state)
        if state.flights and state.load > 1:
            self._crowded[state.id] = state
        else:
            self._crowded.pop(state.id, None)
        if state.is_available:
            key = () if self._keyed is None else self._keyed.key(self.candidate(state))
            state.slot = key, state.last_turn, state.position, state.id
            insort(self._order, state.slot)
            self._with_room.add(state.id)

    def _unlist(self, state: State) -> None:
        if state.slot is not None:
            del self._order[bisect_left(self._order, state.slot)]
            self._with_room.remove(state.id)
            state.slot = None

    @property
    def has_room(self) -> bool:
        """Whether any backend could take a job."""
        return bool(self._order)

    @property
    def available_count(self) -> int:
        """How many could."""
        return len(self._order)

    def available(self, limit: int | None = None) -> list[State]:
        """Return the backends with room, in order."""
        return [self._states[slot[3]] for slot in (self._order if limit is None else self._order[:limit])]

    def choose(
        self, able: Collection[BackendId] | None, warm: BackendId | None, without: Collection[BackendId] = ()
    ) -> BackendId | None:
        """Return the first backend with room that is one of `able` (None: any).

        Args:
            warm: comes first among equals.
            without: these do not count.
        """
        order = self._order
        if without:
            found = (slot for slot in order if slot[3] not in without and (able is None or slot[3] in able))
            if (first := next(found, None)) is None:
                return None
            best = first
            warm = None if warm in without else warm
        elif able is None:
            if not order:
                return None
            best = order[0]
        else:
            for best in order:
                if best[3] in able:
                    break
            else:
                return None
        if warm is None or warm == best[3]:
            return best[3]
        state = self._states.get(warm)
        is_equal = state is not None and state.slot is not None and state.slot[0] == best[0]
        return warm if is_equal and (able is None or warm in able) else best[3]

    def busy(self) -> Collection[State]:
        """Return the backends that have jobs of ours, the one that got its last job longest ago first."""
        return self._busy.values()

    def crowded(self, limit: int) -> list[State]:
        """Return backends on which one of our jobs has others before it."""
        return list(islice(self._crowded.values(), limit))

    def candidate(self, state: State, *, is_warm: bool = False, less: int = 0) -> Candidate:
        """Return what a strategy may know of a backend.

        Args:
            less: jobs there that are not to be counted.
        """
        spec = state.spec
        return Candidate(
            spec.backend,
            state.load - less,
            spec.max_concurrent,
            self._durations.speed(spec.backend) if spec.weight is None else spec.weight,
            LAST if spec.priority is None else spec.priority,
            state.last_turn,
            is_warm,
        )

    def able(self, needs: Needs, excluded: frozenset[BackendId]) -> frozenset[BackendId] | None:
        """Return who may have a job, as far as is known; None for all.

        Where nobody can run it, everybody may be asked: the client reads ComfyUI's own error then. But what was asked
        of us and not of ComfyUI is kept to.
        """
        key = needs, excluded
        if key not in self._able:
            if len(self._able) >= REMEMBERED:
                self._able.clear()
                self._impossible.clear()
            self._able[key] = self._find_able(needs, excluded)
        return self._able[key]

    def is_impossible(self, needs: Needs) -> bool:
        """Whether nobody can run what needs this, as far as is known."""
        self.able(needs, frozenset())
        return (needs, frozenset()) in self._impossible

    def _find_able(self, needs: Needs, excluded: frozenset[BackendId]) -> frozenset[BackendId] | None:
        open_to_it = [state for state in self if state.id not in excluded]
        if needs.pinned is not None:
            return frozenset(state.id for state in open_to_it if state.id == needs.pinned)
        able = frozenset(state.id for state in open_to_it if state.spec.can(needs))
        if not able:
            self._impossible.add((needs, excluded))
        if not able and not needs.capabilities:
            able = frozenset(state.id for state in open_to_it)
        return None if len(able) == len(self) else able

    def able_of(self, group: Group) -> frozenset[BackendId] | None:
        """Return who may have the jobs of a group; None for all."""
        if group.version != self.version:
            group.able = self.able(*group.key)
            group.version = self.version
        return group.able

    def has_room_for(self, group: Group) -> bool:
        """Whether a backend that may have the jobs of a group could take one."""
        able = self.able_of(group)
        return bool(self._order) if able is None else not self._with_room.isdisjoint(able)

    # What is in memory

    def holders(self, models: Models) -> Collection[State]:
        """Return those that will hold these models once they are done with what they have."""
        return self._holders.get(models, {}).values()

    def place(self, state: State, flight: Flight, now_s: float) -> None:
        """Note that a job is on a backend now."""
        state.flights[flight.request.prompt_id] = flight
        self._turn += 1
        state.last_turn = self._turn
        if flight.request.needs.models:
            self._hold(state, flight.request.needs.models)
        state.since_s = now_s
        self._busy.pop(state.id, None)
        self._busy[state.id] = state
        self.changed(state)

    def leave(self, state: State, prompt_id: str, *, has_run: bool) -> None:
        """Note that a job is no longer there.

        Args:
            has_run: so far that its models are in memory.
        """
        flight = state.flights.pop(prompt_id)
        if has_run and flight.request.needs.models:
            state.held = flight.request.needs.models
        self._will_hold(state)
        self.changed(state)

    def restarted(self, state: State) -> None:
        """Note that a backend has nothing in its memory any more."""
        state.held = NOTHING
        self._will_hold(state)

    def _will_hold(self, state: State) -> None:
        """Find out what will be in memory once all that is there is done."""
        if not state.flights:
            self._busy.pop(state.id, None)
        tail = state.held
        for each in state.flights.values():
            tail = each.request.needs.models or tail
        self._hold(state, tail)

    def _hold(self, state: State, models: Models) -> None:
        self._forget_tail(state)
        state.tail = models
        self._holders.setdefault(models, {})[state.id] = state

    def _forget_tail(self, state: State) -> None:
        before = self._holders.get(state.tail)
        if before is not None and before.pop(state.id, None) is not None and not before:
            del self._holders[state.tail]
