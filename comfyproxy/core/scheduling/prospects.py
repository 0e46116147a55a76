"""When a job would end on a backend, now or later, and what loading its models there costs it and others."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.durations import Durations, Models, Popularity
from comfyproxy.core.scheduling.fleet import FleetState, Flight, State
from comfyproxy.core.scheduling.queue import Entry, Group
from comfyproxy.core.scheduling.types import Request

LOOK_AT_BACKENDS = 8  # for one job
AHEAD_S = 0.5  # before the end of its last job a backend gets the next, so that its GPU does not wait for the network
MUCH = 2.0  # times as long as expected is so late that nothing is known any more
SURE_S = 1.0  # if it is known so well when that will be
ABOUT, ABOUT_S = 1.05, 0.25  # times that differ by less are equal: nobody knows them better
KEEP_S = 60.0  # models that are likely to be asked for within this time are worth keeping
REPAID_S = 300.0  # a backend that loads models serves its share of the requests for them, for so long


@dataclass(slots=True)
class Look:
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


class Prospects:
    """Compares backends for a job.

    Attributes:
        warm_of: returns who ran a client's last job.
        wake_at_s: when one of the answers changes, if nothing happens before.
    """

    def __init__(self, fleet: FleetState, durations: Durations, popularity: Popularity) -> None:
        self._fleet, self._durations, self._popularity = fleet, durations, popularity
        self._busy: dict[BackendId, float] = {}
        self._timely: dict[BackendId, bool] = {}
        self.warm_of: Callable[[str], BackendId | None] = lambda client: None
        self.wake_at_s = math.inf

    def begin(self) -> None:
        """Begin a decision: nobody wants to be woken yet."""
        self.wake_at_s = math.inf
        self.look_anew()

    def look_anew(self) -> None:
        """Forget what was found out of backends; within one decision they do not change."""
        self._busy.clear()
        self._timely.clear()

    def look(self, entry: Entry, now_s: float) -> Look:
        return self.look_for(entry.request, self._fleet.able_of(entry.group), now_s)

    def look_for(self, request: Request, able: frozenset[BackendId] | None, now_s: float) -> Look:
        """Return where a job could go now, and whether it finishes earlier on a backend that is busy."""
        served = self._served(request.needs.models, len(self._fleet.holders(request.needs.models)), now_s)
        costs = [(self._cost_s(request, state, served, now_s), state) for state in self._free(able, now_s)]
        if not costs:
            return Look()
        best_s = min(cost_s for cost_s, _ in costs)
        best = self.of_equals([state for cost_s, state in costs if cost_s <= _about_s(best_s)], request)
        look = Look(best=best)
        free = {state.id for _, state in costs}
        look.later = [state for state in self._that_may_be_better(request, able) if state.id not in free]
        for state in look.later:
            gain_s = best_s - self._cost_s(request, state, served, now_s)
            if gain_s > max(look.gain_s, ABOUT_S):
                look.better, look.gain_s = state, gain_s
        return look

    def _free(self, able: frozenset[BackendId] | None, now_s: float) -> list[State]:
        """Return backends that could have a job now: those that come first in the order."""
        free = [
            state
            for state in self._fleet.available(LOOK_AT_BACKENDS)
            if (able is None or state.id in able) and self.is_time(state, now_s)
        ]
        if not free and able is not None and (name := self._fleet.choose(able, None)) is not None:
            # They may be far behind in the order.
            state = self._fleet.get(name)
            if state is not None and self.is_time(state, now_s):
                free.append(state)
        return free

    def _that_may_be_better(self, request: Request, able: frozenset[BackendId] | None) -> Iterable[State]:
        """Yield backends that are busy: those that hold the models, and those that have been busy for longest."""
        models = request.needs.models
        holders = islice(self._fleet.holders(models), LOOK_AT_BACKENDS) if models else ()
        busy = islice(self._fleet.busy(), LOOK_AT_BACKENDS)
        for state in {state.id: state for state in (*holders, *busy)}.values():
            if state.is_ready and state.flights and (able is None or state.id in able):
                yield state

    def of_equals(self, states: Iterable[State], request: Request) -> State:
        """Return the one that holds the models and knows the client's last prompt; else the one unused for longest."""
        warm = self.warm_of(request.client)
        return min(
            states,
            key=lambda state: (
                state.tail != request.needs.models,
                state.load,
                state.id != warm,
                state.last_turn,
                state.position,
            ),
        )

    def would_go_to(self, request: Request, now_s: float) -> BackendId | None:
        """Return where a job finishes first that waits for nobody else; None if nobody has room."""
        self.look_anew()
        look = self.look_for(request, self._fleet.able(request.needs, request.excluded), now_s)
        chosen = look.best if look.better is None else look.better
        return chosen.id if chosen is not None else None

    def is_better(self, flight: Flight, wait_s: float, state: State, now_s: float) -> bool:
        """Whether a job that has yet to wait where it is, if it was taken back, would go to this backend instead."""
        self.look_anew()
        models = flight.request.needs.models
        served = self._served(models, len(self._fleet.holders(models)) - flight.is_cold, now_s)
        there_s = wait_s + flight.run_s + flight.load_s / served
        return there_s > _about_s(self._cost_s(flight.request, state, served, now_s))

    def gain_s(self, entry: Entry, look: Look, now_s: float) -> float:
        """Return by how much a job would be done on the best backend before the others have done all of its group."""
        if look.best is None:
            return 0.0
        here_s = self._busy_s(look.best, now_s) + self.load_s(entry.request, look.best)
        here_s += self._durations.run_s(entry.request.kind, look.best.id)
        return self._drain_s(entry.group, look.later, now_s) - here_s

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

    def _cost_s(self, request: Request, state: State, served: float, now_s: float) -> float:
        """Return when a job ends on a backend, with its share of what loading costs it and others."""
        models = request.needs.models
        cost_s = self._busy_s(state, now_s) + self._durations.run_s(request.kind, state.id)
        if models and state.tail != models:
            cost_s += self._durations.load_s(models, state.id) / served
            cost_s += self._eviction_s(state, now_s)
        return cost_s

    def load_s(self, request: Request, state: State) -> float:
        models = request.needs.models
        return self._durations.load_s(models, state.id) if models and state.tail != models else 0.0

    def _served(self, models: Models, holders: int, now_s: float) -> float:
        """Return how many jobs one more holder of models is likely to run: those share the cost of loading."""
        return 1.0 + REPAID_S * self._popularity.per_second(models, now_s) / (holders + 1)

    def _eviction_s(self, state: State, now_s: float) -> float:
        """Return what it costs the others that a backend forgets what it holds: loading it again, if wanted."""
        if not state.tail:
            return 0.0
        count = len(self._fleet.holders(state.tail))
        expected = KEEP_S * self._popularity.per_second(state.tail, now_s) / count
        return self._durations.load_s(state.tail, state.id) * (1.0 - math.exp(-expected))

    def _ready_holders(self, models: Models, able: frozenset[BackendId] | None) -> list[State]:
        return [each for each in self._fleet.holders(models) if each.is_ready and (able is None or each.id in able)]

    def _busy_s(self, state: State, now_s: float) -> float:
        busy_s = self._busy.get(state.id)
        if busy_s is None:
            busy_s = self._busy[state.id] = state.busy_s(now_s, self._durations.base_s(""))
        return busy_s

    def is_time(self, state: State, now_s: float) -> bool:
        """Whether a backend should get another job now, rather than when it is about to be done."""
        is_time = self._timely.get(state.id)
        if is_time is None:
            is_time = self._timely[state.id] = self._find_time(state, now_s)
        return is_time

    def _find_time(self, state: State, now_s: float) -> bool:
        if not state.flights:
            return True
        for each in state.flights.values():
            if each.is_cold or self._durations.spread_s(each.request.kind, state.id) > SURE_S:
                return False
        busy_s = self._busy_s(state, now_s)
        if busy_s > AHEAD_S:
            self.wake_at(now_s + busy_s - AHEAD_S)
            return False
        return not state.late_s(now_s, beyond=MUCH)  # else nobody knows when that will be

    def wake_at(self, at_s: float) -> None:
        self.wake_at_s = min(self.wake_at_s, at_s)


def _about_s(seconds: float) -> float:
    """Return up to where times are equal to this one."""
    return seconds * ABOUT + ABOUT_S
