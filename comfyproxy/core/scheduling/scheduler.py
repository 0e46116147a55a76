"""The scheduler: jobs and backends come in, and it says which job goes where.

Pure: it has no clock and no randomness. `now_s` may be of any clock that does not go back; the same calls give the same
answers.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.affinity import LOOK, Affinity, Choice
from comfyproxy.core.scheduling.durations import Durations, Popularity
from comfyproxy.core.scheduling.fleet import FleetState, Flight, State
from comfyproxy.core.scheduling.prospects import Prospects
from comfyproxy.core.scheduling.queue import Entry, FairQueue
from comfyproxy.core.scheduling.strategies import BUILT_IN, Keyed, ModelAffinity, Strategy
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, MaxBypass, Outlook, Request

REMEMBERED_CLIENTS = 20_000
AGEING_S = 300.0
HANGS = 10.0  # times as long as expected; affinity binds few jobs early, and moving them for less does not pay
MOVE_GAIN_S = 1.0  # a job that would begin so much sooner elsewhere is worth moving
DEFAULT_BYPASS = MaxBypass()


class Scheduler:
    """Says which waiting job goes to which backend.

    Args:
        max_bypass: how long a job may be passed over for the sake of models in memory.
        ageing_s: seconds of service that one step of priority is worth.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_bypass: MaxBypass = DEFAULT_BYPASS,
        ageing_s: float = AGEING_S,
    ) -> None:
        self._at: dict[str, State] = {}  # prompt id -> where it is
        self._last: OrderedDict[str, BackendId] = OrderedDict()  # client -> who ran its last job
        self.durations = Durations()
        self._popularity = Popularity()
        self._fleet = FleetState(self.durations)
        self._queue = FairQueue(ageing_s)
        self._prospects = Prospects(self._fleet, self.durations, self._popularity)
        self._prospects.warm_of = self._last.get
        self._affinity = Affinity(self._queue, self._fleet, self.durations, self._prospects, max_bypass=max_bypass)
        self.use(strategy)

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._queue

    def use(self, strategy: Strategy, *, max_bypass: MaxBypass | None = None, ageing_s: float | None = None) -> None:
        """Go on with another strategy, or with other bounds; what waits and what was learned stays."""
        self._strategy = strategy
        self._keyed = strategy if isinstance(strategy, Keyed) else None
        self._is_affine = isinstance(strategy, ModelAffinity)
        self._fleet.sort_by(self._keyed)
        if max_bypass is not None:
            self._affinity.max_bypass = max_bypass
        if ageing_s is not None:
            self._queue.age_by(ageing_s)

    @property
    def strategy_name(self) -> str:
        """The strategy, for people."""
        made = type(self._strategy)
        known = next((name for name, strategy in BUILT_IN.items() if strategy is made), None)
        return known or str(getattr(self._strategy, "name", made.__name__))

    # Backends

    def set_backend(self, spec: BackendSpec) -> None:
        """Add a backend, or say something else of one: also that what it can run has changed."""
        self._fleet.set_backend(spec)

    def remove_backend(self, backend: BackendId) -> None:
        """Forget a backend; its jobs must have been released."""
        self._fleet.remove(backend)
        self.durations.forget(backend)

    def set_ready(self, backend: BackendId, is_ready: bool) -> None:
        """Let a backend have jobs, or not."""
        if (state := self._fleet.get(backend)) is not None and state.is_ready != is_ready:
            self._fleet.set_ready(state, is_ready)

    def set_foreign(self, backend: BackendId, count: int) -> None:
        """Note how many prompts others have put on a backend past us."""
        if (state := self._fleet.get(backend)) is not None and state.foreign != count:
            state.foreign = count
            self._fleet.changed(state)

    def restarted(self, backend: BackendId) -> None:
        """Note that a backend has come up with nothing in its memory."""
        if (state := self._fleet.get(backend)) is not None:
            self._fleet.restarted(state)

    # Jobs

    def enqueue(self, request: Request, now_s: float) -> None:
        """Let a job wait; one that waits already keeps its turn, whatever else has changed of it."""
        before = self._queue.discard(request.prompt_id)
        entry = self._queue.add(request, expected_s=self.durations.base_s(request.kind), before=before)
        if before is not None:
            entry.passes, entry.passed_s = before.passes, before.passed_s
            entry.passed_since_s, entry.patience_s = before.passed_since_s, before.patience_s
            entry.deferred_since_s = before.deferred_since_s

    def withdraw(self, prompt_id: str) -> None:
        """Let a job wait no longer; unknown ones do not matter."""
        self._queue.discard(prompt_id)

    def next(self, now_s: float) -> Assignment | None:
        """Take out the next job that goes to a backend now; None if none does. To be called until then."""
        if not self._fleet.has_room or not len(self._queue):
            self._prospects.wake_at_s = math.inf
            return None
        choice = self._affinity.next(now_s) if self._is_affine else self._in_turn()
        if choice is None:
            return None
        is_its_turn = self._pass_over(choice, now_s)
        self._take(choice.entry, choice.state, now_s, is_its_turn=is_its_turn)
        return Assignment(choice.entry.request.prompt_id, choice.state.id, choice.why)

    @property
    def wake_at_s(self) -> float | None:
        """When `next` should be asked again, if nothing happens before; None if there is no need."""
        if not self._is_affine or not len(self._queue) or math.isinf(self._prospects.wake_at_s):
            return None
        return self._prospects.wake_at_s

    def adopt(self, request: Request, backend: BackendId, now_s: float) -> None:
        """Note that a job is on a backend already; a second time is nothing."""
        self._queue.discard(request.prompt_id)
        state = self._fleet.get(backend)
        if state is None or self._at.get(request.prompt_id) is state:
            return
        self.released(request.prompt_id)
        client = self._queue.client(request.client)
        flight = self._flight(request, state)
        client.charge(flight.expected_s)
        self._land(flight, state, now_s)

    def started(self, prompt_id: str, now_s: float) -> None:
        """Note that a job's execution has begun."""
        state = self._at.get(prompt_id)
        if state is not None and state.flights[prompt_id].started_s is None:
            flight = state.flights[prompt_id]
            flight.started_s = now_s
            self._popularity.asked(flight.request.needs.models, now_s)

    def finished(self, prompt_id: str, now_s: float, *, is_typical: bool = True) -> None:
        """Note that a job has ended, and learn from it.

        Args:
            is_typical: it ran to its end, and nothing disturbed the measuring.
        """
        state = self._at.pop(prompt_id, None)
        if state is None:
            return
        flight = state.flights[prompt_id]
        if flight.started_s is not None:
            took_s = max(now_s - flight.started_s, 0.0)
            request = flight.request
            if is_typical:
                self.durations.observe(request.kind, request.needs.models, state.id, took_s, is_cold=flight.is_cold)
            self._queue.client(request.client).charge(took_s - flight.expected_s)
        self._fleet.leave(state, prompt_id, has_run=is_typical or flight.started_s is not None)

    def released(self, prompt_id: str) -> None:
        """Note that a job is on no backend any more, without having ended there; unknown ones do not matter."""
        state = self._at.pop(prompt_id, None)
        if state is not None:
            flight = state.flights[prompt_id]
            self._queue.client(flight.request.client).charge(-flight.expected_s)
            self._fleet.leave(state, prompt_id, has_run=flight.started_s is not None)

    # Questions

    def would_go_to(self, request: Request, now_s: float) -> BackendId | None:
        """Return where a job would go by the strategy if no other waited; None if nobody has room. Nothing changes."""
        if not self._is_affine:
            return self.choose(request)
        return self._prospects.would_go_to(request, now_s)

    def outlook(self, request: Request, backend: BackendId, now_s: float) -> Outlook:
        """Return how long a job is expected to take on a backend; zeros for one that is unknown."""
        state, models = self._fleet.get(backend), request.needs.models
        if state is None:
            return Outlook(0.0, 0.0, 0.0, False)
        is_warm = not models or state.tail == models
        return Outlook(
            wait_s=state.busy_s(now_s, self.durations.base_s("")),
            load_s=0.0 if is_warm else self.durations.load_s(models, backend),
            run_s=self.durations.run_s(request.kind, backend),
            holds_models=bool(models) and is_warm,
        )

    def misplaced(self, now_s: float) -> list[tuple[str, BackendId]]:
        """Return jobs that wait on a backend while another one, which would get them now, has nothing to do.

        Whoever takes such a job back and enqueues it sees it go to the idle one, or wait for something better.
        """
        found: list[tuple[str, BackendId]] = []
        idle = {state.id: state for state in self._fleet.available(LOOK) if not state.load}
        taken: set[BackendId] = set()
        for state in self._fleet.crowded(LOOK) if idle else ():
            flight = list(state.flights.values())[-1]
            if flight.started_s is not None:
                continue
            able = self._fleet.able(flight.request.needs, flight.request.excluded)
            if self._is_affine:
                better = (each for each in idle.values() if able is None or each.id in able)
                other = next((each for each in better if self._is_better(flight, state, each, now_s)), None)
            else:
                wait_s = self._wait_s(flight, state, now_s)
                is_worth_it = any(self._gains(flight, wait_s, each) for each in idle.values())
                other = idle.get(self._place_but(flight, state, able, taken)) if is_worth_it else None
                if other is not None and not self._gains(flight, wait_s, other):
                    other = None
            if other is not None:
                found.append((flight.request.prompt_id, state.id))
                taken.add(other.id)
                del idle[other.id]
        return found

    def _wait_s(self, flight: Flight, there: State, now_s: float) -> float:
        """Return how long a job that was sent last still waits where it is.

        Behind one that is late it is taken to wait as long again as that is late: nothing better is known of it.
        """
        late_s = there.late_s(now_s, beyond=HANGS if self._is_affine else 1.0)
        return there.busy_s(now_s, self.durations.base_s("")) - flight.expected_s + late_s

    def _gains(self, flight: Flight, wait_s: float, idle: State) -> bool:
        """Whether a pending job would begin much sooner on an idle backend."""
        models = flight.request.needs.models
        load_s = self.durations.load_s(models, idle.id) if models and idle.tail != models else 0.0
        return wait_s + flight.load_s >= load_s + MOVE_GAIN_S

    def _is_better(self, flight: Flight, there: State, idle: State, now_s: float) -> bool:
        """Whether a pending job would begin much sooner on an idle backend, and would be given to it."""
        wait_s = self._wait_s(flight, there, now_s)
        return self._gains(flight, wait_s, idle) and self._prospects.is_better(flight, wait_s, idle, now_s)

    def _place_but(
        self, flight: Flight, there: State, able: frozenset[BackendId] | None, taken: set[BackendId]
    ) -> BackendId:
        """Return where `next` would send a job that was taken back, if some backends have got another one by then.

        It has to be asked in the same way, or the job would come back, and be taken back again, without end.
        """
        request, warm, without = flight.request, self._warm(flight.request.client), {there.id, *taken}
        if self._keyed is None:
            states = [
                each for each in self._fleet.available() if each.id not in without and (able is None or each.id in able)
            ]
        else:
            name = self._fleet.choose(able, warm, without)
            state = self._fleet.get(name) if name is not None else None
            states = [] if state is None else [state]
        candidates = [self._fleet.candidate(each, is_warm=each.id == warm) for each in states]
        if there.is_ready and (there.load <= there.spec.max_concurrent or len(there.flights) == 1):
            candidates.append(self._fleet.candidate(there, is_warm=there.id == warm, less=1))
            candidates.sort(key=lambda candidate: candidate.last_turn)
        offered = {candidate.backend for candidate in candidates}
        ranked = self._strategy.rank(request, candidates) if candidates else ()
        return next((name for name in ranked if name in offered), there.id)

    def able(self, needs: Needs, excluded: Iterable[BackendId] = ()) -> frozenset[BackendId]:
        """Return who may have a job with these needs, ready or not."""
        able = self._fleet.able(needs, frozenset(excluded))
        return frozenset(state.id for state in self._fleet) if able is None else able

    def is_impossible(self, needs: Needs) -> bool:
        """Whether nobody can run what needs this, as far as is known."""
        return self._fleet.is_impossible(needs)

    def choose(self, request: Request) -> BackendId | None:
        """Return where a job would go now if it were alone; None if nobody has room. Nothing changes."""
        able = self._fleet.able(request.needs, request.excluded)
        if self._keyed is not None:
            return self._fleet.choose(able, self._warm(request.client))
        return self._ranked(request, able)

    # Strategies that look at one job at a time

    def _in_turn(self) -> Choice | None:
        """Return the first job in turn that some backend with room can run."""
        turns = self._queue.in_turn(LOOK)
        try:
            for flow in turns:
                entry = flow.head()
                if entry is not None and (state := self._state_for(entry)) is not None:
                    return Choice(entry, state, "its turn")
                if len(flow.lines) < 2:
                    continue
                for entry in flow.heads(self._fleet.has_room_for)[:LOOK]:
                    if (state := self._state_for(entry)) is not None:
                        return Choice(entry, state, "its turn: those before it wait for other backends")
        finally:
            turns.close()
        if self._queue.is_longer_than(LOOK):
            for entry in self._queue.heads(self._fleet.has_room_for):
                if (state := self._state_for(entry)) is not None:
                    return Choice(entry, state, "its turn: those before it wait for other backends")
        return None

    def _state_for(self, entry: Entry) -> State | None:
        able = self._fleet.able_of(entry.group)
        if self._keyed is not None:
            name = self._fleet.choose(able, self._warm(entry.request.client))
        else:
            name = self._ranked(entry.request, able)
        return self._fleet.get(name) if name is not None else None

    def _ranked(self, request: Request, able: frozenset[BackendId] | None) -> BackendId | None:
        """Ask a strategy that looks at the job."""
        warm = self._warm(request.client)
        candidates = [
            self._fleet.candidate(state, is_warm=state.id == warm)
            for state in self._fleet.available()
            if able is None or state.id in able
        ]
        if not candidates:
            return None
        offered = {candidate.backend for candidate in candidates}
        return next((name for name in self._strategy.rank(request, candidates) if name in offered), None)

    def _warm(self, client: str) -> BackendId | None:
        return self._last.get(client) if self._keyed is None or self._keyed.stays_warm else None

    # Changes

    def _pass_over(self, choice: Choice, now_s: float) -> bool:
        """Keep account of the job whose turn it was; return whether it was that of the one that goes."""
        if not self._is_affine:
            return True
        front, entry = self._affinity.front(choice.state), choice.entry
        if front is None or front is entry:
            return True
        front.passes += 1
        if front.passed_since_s is None:
            front.passed_since_s = now_s
        if front.client is not entry.client and not self._affinity.is_content(front, now_s):
            front.passed_s += entry.expected_s
        return False

    def _take(self, entry: Entry, state: State, now_s: float, *, is_its_turn: bool) -> None:
        flight = self._flight(entry.request, state)
        self._queue.serve(entry, flight.expected_s, is_its_turn=is_its_turn)
        self._land(flight, state, now_s)

    def _land(self, flight: Flight, state: State, now_s: float) -> None:
        self._at[flight.request.prompt_id] = state
        self._fleet.place(state, flight, now_s)
        if not flight.request.client:
            return  # those that name nobody are not one person
        self._last[flight.request.client] = state.id
        self._last.move_to_end(flight.request.client)
        if len(self._last) > REMEMBERED_CLIENTS:
            self._last.popitem(last=False)

    def _flight(self, request: Request, state: State) -> Flight:
        models = request.needs.models
        is_cold = bool(models) and state.tail != models
        return Flight(
            request,
            run_s=self.durations.run_s(request.kind, state.id),
            load_s=self.durations.load_s(models, state.id) if is_cold else 0.0,
            is_cold=is_cold,
        )
