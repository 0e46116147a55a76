"""The jobs that wait, fair between clients: start-time fair queueing in seconds of service.

Each client has a virtual time that grows by the service it gets; whoever has got least is served first. One that comes
back starts where the others are, so nobody saves up. (Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996.)

Jobs that the same backends can run, and that need the same models, stand in one group. Of a hundred thousand waiting
jobs only heads are looked at: of the clients, and of the groups.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.durations import Models
from comfyproxy.core.scheduling.types import Request

REMEMBERED_CLIENTS = 20_000  # that have nothing waiting
SWEEP_AT = 64  # jobs that wait no longer may lie behind those that do; with so many more than these they are swept out

GroupKey = tuple[Needs, frozenset[BackendId]]


@dataclass(slots=True, eq=False)
class Entry:
    """A waiting job.

    Attributes:
        expected_s: how long it was expected to run, without loading, when it came.
        passes: jobs that went before it although it was its turn.
        passed_s: seconds of service that other clients got that way.
        passed_since_s: when the first one went.
        deferred_since_s: since when it waits for a better backend than one that has room, for at most `patience_s`.
    """

    request: Request
    order: int
    client: "Client"
    flow: "Flow"
    group: "Group"
    expected_s: float
    is_waiting: bool = True
    passes: int = 0
    passed_s: float = 0.0
    passed_since_s: float | None = None
    deferred_since_s: float | None = None
    patience_s: float = 0.0


_Line = list[tuple[float, int, int, Entry]]  # a heap by number, then order of arrival; some may wait no longer


@dataclass(slots=True, eq=False)
class Client:
    """Somebody who submits jobs.

    Attributes:
        virtual_s: seconds of service that it is ahead of nobody by.
        credit_s: what it was charged too much, to be taken off the next charge: virtual time never goes back.
    """

    name: str
    virtual_s: float = 0.0
    credit_s: float = 0.0
    waiting: int = 0
    backlog_s: float = 0.0
    flows: dict[int, "Flow"] = field(default_factory=dict)

    def charge(self, seconds: float) -> None:
        """Count service; negative for what was counted too much."""
        seconds -= self.credit_s
        self.credit_s = max(-seconds, 0.0)
        self.virtual_s += max(seconds, 0.0)


@dataclass(slots=True, eq=False)
class Flow:
    """One client's jobs of one priority.

    Attributes:
        head_start_s: what its priority is worth.
        left: jobs that have left since those were swept out that wait no longer.
    """

    client: Client
    priority: int
    head_start_s: float
    order: int
    jobs: _Line = field(default_factory=list)
    lines: dict["Group", _Line] = field(default_factory=dict)
    is_listed: bool = False
    left: int = 0

    @property
    def tag(self) -> float:
        """What sorts it among the flows: smaller is served first."""
        return self.client.virtual_s - self.head_start_s

    def forget_one(self) -> None:
        """Note that one of its jobs waits no longer.

        Its place is found again only once it comes first, and a job that waits for a backend that is away may be before
        it for days.
        """
        self.left += 1
        if self.left > SWEEP_AT and 2 * self.left > len(self.jobs):
            self.left = 0
            for line in (self.jobs, *self.lines.values()):
                line[:] = [place for place in line if place[3].is_waiting]
                heapq.heapify(line)

    def head(self) -> Entry | None:
        """Return its first job."""
        return _head(self.jobs)

    def head_in(self, group: "Group") -> Entry | None:
        """Return its first job in a group."""
        return _head(self.lines.get(group, []))

    def heads(self, is_wanted: Callable[["Group"], bool]) -> list[Entry]:
        """Return its first jobs in some groups, in order. It looks at every group in which it has jobs."""
        heads = [head for group in self.lines if is_wanted(group) and (head := self.head_in(group)) is not None]
        return sorted(heads, key=lambda entry: (entry.request.number, entry.order))


@dataclass(slots=True, eq=False)
class Group:
    """Jobs with the same needs.

    Attributes:
        able: who can run them; None for all. As of `version` of the fleet.
        work_s: how long they were expected to run, all together.
    """

    key: GroupKey
    able: frozenset[BackendId] | None = None
    version: int = -1
    waiting: int = 0
    work_s: float = 0.0
    flows: list[tuple[float, int, Flow]] = field(default_factory=list)  # a heap by tag as it was; tags only grow

    @property
    def needs(self) -> Needs:
        """What all of them need."""
        return self.key[0]

    def head(self) -> Entry | None:
        """Return the job whose turn it is among them."""
        while self.flows:
            tag, order, flow = self.flows[0]
            entry = flow.head_in(self)
            if entry is None:
                heapq.heappop(self.flows)
                flow.lines.pop(self, None)
            elif flow.tag > tag:
                heapq.heapreplace(self.flows, (flow.tag, order, flow))
            else:
                return entry
        return None


class FairQueue:
    """Waiting jobs.

    Args:
        ageing_s: seconds of service that one step of priority is worth.
    """

    def __init__(self, ageing_s: float) -> None:
        self.ageing_s = ageing_s
        self._entries: dict[str, Entry] = {}
        self._order = itertools.count()
        self._clients: OrderedDict[str, Client] = OrderedDict()
        self._flows: list[tuple[float, int, Flow]] = []  # a heap by tag as it was; tags only grow
        self._groups: dict[GroupKey, Group] = {}
        self._by_models: dict[Models, dict[GroupKey, Group]] = {}
        self._virtual_s = 0.0

    def age_by(self, ageing_s: float) -> None:
        """Let a step of priority be worth something else, also for those who wait."""
        if ageing_s == self.ageing_s:
            return
        self.ageing_s = ageing_s
        for client in self._clients.values():
            for flow in client.flows.values():
                flow.head_start_s = flow.priority * ageing_s
        for heap in (self._flows, *(group.flows for group in self._groups.values())):
            heap[:] = [(flow.tag, order, flow) for _, order, flow in heap]
            heapq.heapify(heap)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._entries

    def get(self, prompt_id: str) -> Entry | None:
        """Return a waiting job."""
        return self._entries.get(prompt_id)

    @property
    def groups(self) -> dict[GroupKey, Group]:
        """The groups that have jobs."""
        return self._groups

    def of_models(self, models: Models) -> dict[GroupKey, Group]:
        """Return the groups that need just these models."""
        return self._by_models.get(models, {})

    def client(self, name: str) -> Client:
        """Return a client, which may be new."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(name, self._virtual_s)
            self._forget_clients()
        return client

    def add(self, request: Request, *, expected_s: float, before: Entry | None = None) -> Entry:
        """Let a job wait.

        Args:
            before: what it was until now, if it is put back: it keeps its turn.
        """
        client = self.client(request.client)
        if not client.waiting:
            self._clients.move_to_end(client.name)
        if before is None or before.client is not client:
            # With something waiting it was behind for a reason; but what it could have had elsewhere it does not save.
            behind_s = self.ageing_s if client.waiting else 0.0
            client.virtual_s = max(client.virtual_s, self._virtual_s - behind_s)
        flow = client.flows.get(request.priority)
        if flow is None:
            head_start_s = request.priority * self.ageing_s
            flow = client.flows[request.priority] = Flow(client, request.priority, head_start_s, next(self._order))
        group = self._group((request.needs, request.excluded))
        order = next(self._order) if before is None else before.order
        entry = Entry(request, order, client, flow, group, expected_s)
        # Its old self, if it was put back, may still lie there under the same order.
        place = (request.number, entry.order, next(self._order), entry)
        heapq.heappush(flow.jobs, place)
        line = flow.lines.get(group)
        if line is None:
            line = flow.lines[group] = []
            heapq.heappush(group.flows, (flow.tag, flow.order, flow))
        heapq.heappush(line, place)
        if not flow.is_listed:
            flow.is_listed = True
            heapq.heappush(self._flows, (flow.tag, flow.order, flow))
        self._entries[request.prompt_id] = entry
        client.waiting += 1
        client.backlog_s += expected_s
        group.waiting += 1
        group.work_s += expected_s
        return entry

    def discard(self, prompt_id: str) -> Entry | None:
        """Let a job wait no longer; unknown ones do not matter."""
        entry = self._entries.pop(prompt_id, None)
        if entry is None:
            return None
        entry.is_waiting = False
        entry.flow.forget_one()
        client, group = entry.client, entry.group
        client.waiting -= 1
        client.backlog_s = max(client.backlog_s - entry.expected_s, 0.0) if client.waiting else 0.0
        group.waiting -= 1
        group.work_s = max(group.work_s - entry.expected_s, 0.0)
        if not group.waiting:
            for _, _, flow in group.flows:
                flow.lines.pop(group, None)
            del self._groups[group.key]
            alike = self._by_models[group.needs.models]
            del alike[group.key]
            if not alike:
                del self._by_models[group.needs.models]
        return entry

    def serve(self, entry: Entry, seconds: float, *, is_its_turn: bool) -> None:
        """Take a job out to be run, and charge its client.

        Args:
            seconds: of service, as expected.
            is_its_turn: nobody was before it whom its backend could have served. Who comes now starts there.
        """
        if is_its_turn:
            # Of one that is early for its priority the head start is not counted: nobody else is as far.
            self._virtual_s = max(self._virtual_s, min(entry.client.virtual_s, entry.flow.tag))
        self.discard(entry.request.prompt_id)
        entry.client.charge(seconds)

    def is_longer_than(self, count: int) -> bool:
        """Whether there may be more flows or groups than that."""
        return len(self._flows) > count or len(self._groups) > count

    def heads(self, is_wanted: Callable[[Group], bool]) -> list[Entry]:
        """Return the jobs whose turn it is in some groups, in order. It looks at every group there is."""
        heads = [head for group in self._groups.values() if is_wanted(group) and (head := group.head()) is not None]
        return sorted(heads, key=lambda entry: (entry.flow.tag, entry.request.number, entry.order))

    def in_turn(self, limit: int) -> Generator[Flow, None, None]:
        """Yield the flows that have jobs, the one whose turn it is first. Nothing may change meanwhile.

        The iterator must be closed or run to its end.
        """
        taken: list[tuple[float, int, Flow]] = []
        try:
            while len(taken) < limit and (flow := self.first()) is not None:
                taken.append(heapq.heappop(self._flows))
                yield flow
        finally:
            for item in taken:
                heapq.heappush(self._flows, item)

    def first(self) -> Flow | None:
        """Return the flow whose turn it is."""
        while self._flows:
            tag, order, flow = self._flows[0]
            if flow.head() is None:
                heapq.heappop(self._flows)
                flow.is_listed = False
            elif flow.tag > tag:
                heapq.heapreplace(self._flows, (flow.tag, order, flow))
            else:
                return flow
        return None

    def _group(self, key: GroupKey) -> Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key)
            self._by_models.setdefault(group.needs.models, {})[key] = group
        return group

    def _forget_clients(self) -> None:
        """Let go of those that were away for longest; whoever is behind the others gains nothing by being known."""
        while len(self._clients) > REMEMBERED_CLIENTS:
            name, client = next(iter(self._clients.items()))
            if client.waiting:
                self._clients.move_to_end(name)
                if all(each.waiting for each in itertools.islice(self._clients.values(), 8)):
                    return
                continue
            del self._clients[name]


def _head(line: _Line) -> Entry | None:
    while line:
        entry = line[0][3]
        if entry.is_waiting:
            return entry
        heapq.heappop(line)
    return None
