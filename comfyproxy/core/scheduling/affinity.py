"""The strategy `model_affinity`: a job goes where it is expected to finish first, given what is in memory.

Four rules, tried in this order:

1. A backend takes a job whose models it holds, if there is one. The job whose turn it is may be passed over for that,
   but only so often, for so long, and by so much service of other clients (`_may_pass`).
2. Otherwise the job whose turn it is goes where it is expected to finish first. That may be a backend that is busy and
   holds its models: then it waits for that, but no longer than loading them would take. Having waited that long costs
   at most twice the best that could have been done, as in the ski rental problem (Karlin et al., 1988).
3. A backend without such a job becomes another holder of the models for which most work waits, if it can do one job
   before the present holders are through with all of them.
4. A backend that is busy gets its next job only shortly before it is done: until then another may be free first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.durations import Durations, Models, Popularity
from comfyproxy.core.scheduling.fleet import FleetState, State
from comfyproxy.core.scheduling.queue import Entry, FairQueue, Flow, Group
from comfyproxy.core.scheduling.types import MaxBypass, Request

LOOK = 64  # clients, groups or backends that are looked at for one decision
LOOK_AT_BACKENDS = 8
AHEAD_S = 0.5  # before the end of its last job a backend gets the next, so that its GPU does not wait for the network
SURE_S = 1.0  # if it is known so well when that will be
REPAID_S = 300.0  # a backend that loads models serves its share of the requests for them, for so long
ABOUT, ABOUT_S = 1.05, 0.25  # times that differ by less are equal: nobody knows them better
AMORTISE = 24.0  # other clients' service that a client with much to do may be passed over by, in times of loading
CALM = 3.0  # so much longer it may be passed over while it waits for a better place
KEEP_S = 60.0  # models that are likely to be asked for within this time are worth keeping


@dataclass(frozen=True, slots=True)
class Choice:
    """What should be done now."""

    entry: Entry
    state: State
    why: str


@dataclass(slots=True)
class _Look:
    """Where a job could go.

    Attributes:
        best: of those that could have it now.
        later: busy ones that could have it later.
        better: the one of these where it finishes earlier than on the best, by `gain_s`.
    """

    best: State | None = None
    later: Sequence[State] = ()
    better: State | None = None
    gain_s: float = 0.0


class Affinity:
    """Chooses a job and a backend; keeps the account of who was passed over."""

    def __init__(
        self,
        queue: FairQueue,
        fleet: FleetState,
        durations: Durations,
        popularity: Popularity,
        *,
        max_bypass: MaxBypass,
    ) -> None:
        self._queue, self._fleet = queue, fleet
        self._durations, self._popularity = durations, popularity
        self.max_bypass = max_bypass
        self._busy: dict[BackendId, float] = {}
        self._timely: dict[BackendId, bool] = {}
        self.warm_of: Callable[[str], BackendId | None] = lambda client: None
        self.wake_at_s = math.inf

    def next(self, now_s: float) -> Choice | None:
        """Return what should be done now; None if nothing."""
        self.wake_at_s = math.inf
        self.look_anew()
        return self._of_held_models(now_s) or self._in_turn(now_s)

    def look_anew(self) -> None:
        """Forget what was found out of backends; within one decision they do not change."""
        self._busy.clear()
        self._timely.clear()

    # Rule 1

    def _of_held_models(self, now_s: float) -> Choice | None:
        for state in self._that_may_hold_some():
            if not state.tail:
                continue
            entry = self._head_of(self._queue.of_models(state.tail).values(), state)
            if entry is None or not self._is_time(state, now_s):
                continue
            state = self._of_equals(self._alike(entry, state, now_s), entry.request)
            front = self.front(state)
            if front is None or front is entry or front.group is entry.group:
                return Choice(entry, state, "it holds the models")
            if self._may_pass(front, entry, state, now_s):
                return Choice(entry, state, "it holds the models, and others can wait")
            return self._now(front, state, now_s)
        return None

    def _alike(self, entry: Entry, state: State, now_s: float) -> Iterable[State]:
        """Yield backends that are as good for a job as one that holds its models."""
        yield state
        warm = self._fleet.get(self.warm_of(entry.request.client) or state.id)
        if warm is None or warm is state or warm.slot is None or warm.load > state.load or warm.tail != state.tail:
            return
        if self._can(warm, entry.group) and self._is_time(warm, now_s):
            yield warm

    def _that_may_hold_some(self) -> list[State]:
        """Return the backends with room that may hold what some waiting job needs; whichever way is shorter."""
        groups = self._queue.groups
        if len(groups) >= min(self._fleet.available_count, LOOK):
            return self._fleet.available(LOOK)
        found = {
            state.slot: state
            for needs, _ in groups
            for state in islice(self._fleet.holders(needs.models), LOOK)
            if state.slot is not None
        }
        return [found[slot] for slot in sorted(found)]

    def _now(self, front: Entry, state: State, now_s: float) -> Choice:
        """Place a job that was passed over often enough: here, or where it finishes earlier."""
        best = self._best(front, now_s).best
        if best is None or self.front(best) is not front:
            best = state
        return Choice(front, best, "it has waited long enough")

    def _may_pass(self, front: Entry, entry: Entry, state: State, now_s: float) -> bool:
        """Whether a job may go although it is another's turn."""
        bounds = self.max_bypass
        if front.passes >= bounds.count:
            return False
        if front.passed_since_s is not None:
            if now_s - front.passed_since_s >= bounds.seconds:
                return False
            self._wake_at(front.passed_since_s + bounds.seconds)
        if front.client is entry.client:
            return True
        # What is fast loses most by loading: the slow ones give way first.
        patience_s = self._patience_s(front) * self._durations.relative_speed(state.id)
        look = self._best(front, now_s)
        if look.best is None or look.better is not None:
            if self._gain_s(front, look, now_s) <= 0.0:
                return True
            patience_s *= CALM
        return front.passed_s < patience_s

    def _patience_s(self, front: Entry) -> float:
        """How much service of others may go before a job: one prompt per backend, or what makes up for loading.

        Who has one prompt waits for it; who has a thousand is served best if little time is spent on loading.
        """
        one_each_s = self._fleet.ready_count * front.expected_s
        needs = front.request.needs
        load_s = self._durations.load_s(needs.models, BackendId(""))
        return max(one_each_s, min(AMORTISE * load_s, front.client.backlog_s))

    def is_content(self, front: Entry, now_s: float) -> bool:
        """Whether a job loses nothing by being passed over: it waits for a better place, and so do those behind it."""
        look = self._best(front, now_s)
        if look.best is None:
            return True
        return look.better is not None and self._gain_s(front, look, now_s) <= 0.0

    # Rules 2 and 3

    def _in_turn(self, now_s: float) -> Choice | None:
        if not self._fleet.has_room:
            return None
        wanted: list[tuple[float, Entry, State]] = []
        looked = 0
        turns = self._queue.in_turn(LOOK)
        try:
            for flow in turns:
                for entry in self._heads(flow):
                    looked += 1
                    if entry.group.head() is not entry:
                        continue
                    choice = self._consider(entry, wanted, now_s)
                    if choice is not None:
                        return choice
                if looked >= LOOK:
                    break
        finally:
            turns.close()
        if not wanted and self._queue.is_longer_than(LOOK):
            for entry in self._queue.heads(self._fleet.has_room_for)[:LOOK]:
                if (choice := self._consider(entry, wanted, now_s)) is not None:
                    return choice
        if not wanted:
            return None
        _, entry, state = max(wanted, key=lambda found: (found[0], -found[1].order))
        return Choice(entry, state, "those that hold the models have too much to do")

    def _consider(self, entry: Entry, wanted: list[tuple[float, Entry, State]], now_s: float) -> Choice | None:
        look = self._look_for(entry.request, self._fleet.able_of(entry.group), now_s)
        if look.best is None:
            return None
        if look.better is None:
            return Choice(entry, look.best, "it is expected to finish there first")
        request, best = entry.request, look.best
        load_s = self._load_s(request, best)
        if entry.deferred_since_s is None:
            entry.deferred_since_s = now_s
            entry.patience_s = max(load_s, look.gain_s)
        patience_ends_s = entry.deferred_since_s + entry.patience_s
        if now_s >= patience_ends_s or self._is_overdue(entry, now_s):
            return Choice(entry, best, "it has waited for a better place as long as that could be worth")
        self._wake_at(patience_ends_s)
        if (gain_s := self._gain_s(entry, look, now_s)) > 0.0:
            wanted.append((gain_s, entry, best))
        return None

    def _gain_s(self, entry: Entry, look: "_Look", now_s: float) -> float:
        """Return by how much a job would be done on the best backend before the others have done all of its group."""
        if look.best is None:
            return 0.0
        run_s = self._durations.run_s(entry.request.kind, look.best.id)
        return self._drain_s(entry.group, look.later, now_s) - (self._load_s(entry.request, look.best) + run_s)

    def _best(self, entry: Entry, now_s: float) -> "_Look":
        return self._look_for(entry.request, self._fleet.able_of(entry.group), now_s)

    def would_go_to(self, request: Request, now_s: float) -> BackendId | None:
        """Return where a job finishes first that waits for nobody else; None if nobody has room."""
        self.look_anew()
        look = self._look_for(request, self._fleet.able(request.needs, request.excluded), now_s)
        chosen = look.best if look.better is None else look.better
        return chosen.id if chosen is not None else None

    def _look_for(self, request: Request, able: frozenset[BackendId] | None, now_s: float) -> "_Look":
        """Return where a job could go now, and whether it finishes earlier on a backend that is busy."""
        costs = [(self._cost_s(request, state, now_s), state) for state in self._free(able, now_s)]
        if not costs:
            return _Look()
        best_s = min(cost_s for cost_s, _ in costs)
        about_s = best_s * ABOUT + ABOUT_S
        best = self._of_equals([state for cost_s, state in costs if cost_s <= about_s], request)
        look = _Look(best=best)
        free = {state.id for _, state in costs}
        look.later = [state for state in self._that_may_be_better(request, able) if state.id not in free]
        for state in look.later:
            gain_s = best_s - self._cost_s(request, state, now_s)
            if gain_s > max(look.gain_s, ABOUT_S):
                look.better, look.gain_s = state, gain_s
        return look

    def _cost_s(self, request: Request, state: State, now_s: float) -> float:
        """Return how long it takes until a job is done on a backend, and what it costs others."""
        models = request.needs.models
        cost_s = self._busy_s(state, now_s) + self._durations.run_s(request.kind, state.id)
        if models and state.tail != models:
            cost_s += self._durations.load_s(models, state.id) / self._served(models, now_s)
            cost_s += self._eviction_s(state, now_s)
        return cost_s

    def _load_s(self, request: Request, state: State) -> float:
        models = request.needs.models
        return self._durations.load_s(models, state.id) if models and state.tail != models else 0.0

    def _that_may_be_better(self, request: Request, able: frozenset[BackendId] | None) -> Iterable[State]:
        """Yield backends that are busy: those that hold the models, and those that have been busy for longest."""
        models = request.needs.models
        holders = islice(self._fleet.holders(models), LOOK_AT_BACKENDS) if models else ()
        busy = islice(self._fleet.busy(), LOOK_AT_BACKENDS)
        for state in {state.id: state for state in (*holders, *busy)}.values():
            if state.is_ready and state.flights and (able is None or state.id in able):
                yield state

    def _of_equals(self, states: Iterable[State], request: Request) -> State:
        """Return the one that holds the models and knows the client's last prompt; else the one unused for longest."""
        warm = self.warm_of(request.client)
        return min(
            states,
            key=lambda state: (state.tail != request.needs.models, state.id != warm, state.last_turn, state.position),
        )

    def _free(self, able: frozenset[BackendId] | None, now_s: float) -> list[State]:
        """Return backends that could have a job now: those that come first in the order."""
        free = [
            state
            for state in self._fleet.available(LOOK_AT_BACKENDS)
            if (able is None or state.id in able) and self._is_time(state, now_s)
        ]
        if not free and able is not None and (name := self._fleet.choose(able, None)) is not None:
            # They may be far behind in the order.
            state = self._fleet.get(name)
            if state is not None and self._is_time(state, now_s):
                free.append(state)
        return free

    def _ready_holders(self, models: Models, able: frozenset[BackendId] | None) -> list[State]:
        return [each for each in self._fleet.holders(models) if each.is_ready and (able is None or each.id in able)]

    def _drain_s(self, group: Group, later: Sequence[State], now_s: float) -> float:
        """Return when those that hold a group's models will have done all its waiting jobs, as expected.

        Args:
            later: who is waited for where nobody holds them.
        """
        models = group.needs.models
        holders = self._ready_holders(models, self._fleet.able_of(group)) if models else []
        servers = holders or later
        if not servers:
            return math.inf
        busy_s = sum(self._busy_s(each, now_s) for each in servers)
        if models:
            busy_s += sum(self._durations.load_s(models, each.id) for each in servers if each.tail != models)
        speed = sum(self._durations.speed(each.id) for each in servers)
        return busy_s / len(servers) + group.work_s / speed

    def _served(self, models: Models, now_s: float) -> float:
        """Return how many jobs one more holder of models is likely to run: those share the cost of loading."""
        holders = len(self._fleet.holders(models)) + 1
        return 1.0 + REPAID_S * self._popularity.per_second(models, now_s) / holders

    def _eviction_s(self, state: State, now_s: float) -> float:
        """Return what it costs the others that a backend forgets what it holds: loading it again, if wanted."""
        if not state.tail:
            return 0.0
        count = len(self._fleet.holders(state.tail))
        expected = KEEP_S * self._popularity.per_second(state.tail, now_s) / count
        return self._durations.load_s(state.tail, state.id) * (1.0 - math.exp(-expected))

    def _is_overdue(self, entry: Entry, now_s: float) -> bool:
        bounds, since_s = self.max_bypass, entry.passed_since_s
        return entry.passes >= max(bounds.count, 1) or (since_s is not None and now_s - since_s >= bounds.seconds)

    # Small questions

    def front(self, state: State) -> Entry | None:
        """Return the job whose turn it is, among those that a backend could run."""
        turns = self._queue.in_turn(LOOK)
        try:
            for flow in turns:
                entry = flow.head()
                if entry is not None and self._can(state, entry.group):
                    return entry
                for entry in self._heads(flow):
                    if self._can(state, entry.group):
                        return entry
        finally:
            turns.close()
        if self._queue.is_longer_than(LOOK):
            return next(iter(self._queue.heads(lambda group: self._can(state, group))), None)
        return None

    def _head_of(self, groups: Iterable[Group], state: State) -> Entry | None:
        """Return the job whose turn it is among some groups, of those that a backend could run."""
        heads = [head for group in groups if self._can(state, group) and (head := group.head()) is not None]
        return min(heads, key=lambda entry: (entry.flow.tag, entry.request.number, entry.order), default=None)

    def _heads(self, flow: Flow) -> list[Entry]:
        """Return the first jobs of one flow's lines, in order."""
        heads = [head for group in list(flow.lines)[:LOOK] if (head := flow.head_in(group)) is not None]
        return sorted(heads, key=lambda entry: (entry.request.number, entry.order))

    def _can(self, state: State, group: Group) -> bool:
        able = self._fleet.able_of(group)
        return able is None or state.id in able

    def _busy_s(self, state: State, now_s: float) -> float:
        busy_s = self._busy.get(state.id)
        if busy_s is None:
            busy_s = self._busy[state.id] = state.busy_s(now_s, self._durations.base_s(""))
        return busy_s

    def _is_time(self, state: State, now_s: float) -> bool:
        """Whether a backend should get another job now, rather than when it is about to be done."""
        is_time = self._timely.get(state.id)
        if is_time is None:
            is_time = self._timely[state.id] = self._find_time(state, now_s)
        return is_time

    def _find_time(self, state: State, now_s: float) -> bool:
        if not state.flights:
            return True
        busy_s = self._busy_s(state, now_s)
        if busy_s > AHEAD_S:
            self._wake_at(now_s + busy_s - AHEAD_S)
            return False
        return all(
            self._durations.spread_s(each.request.kind, state.id) <= SURE_S and not each.is_cold
            for each in state.flights.values()
        )

    def _wake_at(self, at_s: float) -> None:
        self.wake_at_s = min(self.wake_at_s, at_s)
