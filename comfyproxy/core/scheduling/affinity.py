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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.durations import Durations
from comfyproxy.core.scheduling.fleet import FleetState, State
from comfyproxy.core.scheduling.prospects import Prospects
from comfyproxy.core.scheduling.queue import Entry, FairQueue, Flow, Group
from comfyproxy.core.scheduling.types import MaxBypass

LOOK = 64  # clients, groups or backends that are looked at for one decision
AMORTISE = 24.0  # other clients' service that a client with much to do may be passed over by, in times of loading
CALM = 3.0  # so much longer it may be passed over while it waits for a better place


@dataclass(frozen=True, slots=True)
class Choice:
    """What should be done now."""

    entry: Entry
    state: State
    why: str


class Affinity:
    """Chooses a job and a backend; keeps the account of who was passed over."""

    def __init__(
        self,
        queue: FairQueue,
        fleet: FleetState,
        durations: Durations,
        prospects: Prospects,
        *,
        max_bypass: MaxBypass,
    ) -> None:
        self._queue, self._fleet = queue, fleet
        self._durations, self._prospects = durations, prospects
        self.max_bypass = max_bypass

    def next(self, now_s: float) -> Choice | None:
        """Return what should be done now; None if nothing."""
        self._prospects.begin()
        return self._of_held_models(now_s) or self._in_turn(now_s)

    # Rule 1

    def _of_held_models(self, now_s: float) -> Choice | None:
        for state in self._that_may_hold_some():
            if not state.tail:
                continue
            entry = self._head_of(self._queue.of_models(state.tail).values(), state)
            if entry is None or not self._prospects.is_time(state, now_s):
                continue
            state = self._prospects.of_equals(self._alike(entry, state, now_s), entry.request)
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
        warm = self._fleet.get(self._prospects.warm_of(entry.request.client) or state.id)
        if warm is None or warm is state or warm.slot is None or warm.load > state.load or warm.tail != state.tail:
            return
        if self._can(warm, entry.group) and self._prospects.is_time(warm, now_s):
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
        best = self._prospects.look(front, now_s).best
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
            self._prospects.wake_at(front.passed_since_s + bounds.seconds)
        if front.client is entry.client:
            return True
        # What is fast loses most by loading: the slow ones give way first.
        patience_s = self._patience_s(front) * self._durations.relative_speed(state.id)
        look = self._prospects.look(front, now_s)
        if look.best is None or look.better is not None:
            if self._prospects.gain_s(front, look, now_s) <= 0.0:
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
        look = self._prospects.look(front, now_s)
        if look.best is None:
            return True
        return look.better is not None and self._prospects.gain_s(front, look, now_s) <= 0.0

    # Rules 2 and 3

    def _in_turn(self, now_s: float) -> Choice | None:
        if not self._fleet.has_room:
            return None
        wanted: list[tuple[float, Entry, State]] = []
        looked = 0
        turns = self._queue.in_turn(LOOK)
        try:
            for flow in turns:
                for entry in self._placeable(flow):
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
        look = self._prospects.look_for(entry.request, self._fleet.able_of(entry.group), now_s)
        if look.best is None:
            return None
        if look.better is None:
            return Choice(entry, look.best, "it is expected to finish there first")
        request, best = entry.request, look.best
        load_s = self._prospects.load_s(request, best)
        if entry.deferred_since_s is None:
            entry.deferred_since_s = now_s
            entry.patience_s = max(load_s, look.gain_s)
        patience_ends_s = entry.deferred_since_s + entry.patience_s
        if now_s >= patience_ends_s or self._is_overdue(entry, now_s):
            return Choice(entry, best, "it has waited for a better place as long as that could be worth")
        self._prospects.wake_at(patience_ends_s)
        if (gain_s := self._prospects.gain_s(entry, look, now_s)) > 0.0:
            wanted.append((gain_s, entry, best))
        return None

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
                if heads := flow.heads(lambda group: self._can(state, group)):
                    return heads[0]
        finally:
            turns.close()
        if self._queue.is_longer_than(LOOK):
            return next(iter(self._queue.heads(lambda group: self._can(state, group))), None)
        return None

    def _head_of(self, groups: Iterable[Group], state: State) -> Entry | None:
        """Return the job whose turn it is among some groups, of those that a backend could run."""
        heads = [head for group in groups if self._can(state, group) and (head := group.head()) is not None]
        return min(heads, key=lambda entry: (entry.flow.tag, entry.request.number, entry.order), default=None)

    def _placeable(self, flow: Flow) -> Iterator[Entry]:
        """Yield the first jobs of one flow's lines that some backend could have now, in order."""
        first = flow.head()
        if first is not None and self._fleet.has_room_for(first.group):
            yield first  # mostly no other is asked for
        for entry in flow.heads(self._fleet.has_room_for)[:LOOK]:
            if entry is not first:
                yield entry

    def _can(self, state: State, group: Group) -> bool:
        able = self._fleet.able_of(group)
        return able is None or state.id in able
