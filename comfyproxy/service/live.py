"""One unfinished job with what only this process knows of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from comfyproxy.core.jobs import BackendId, Job
from comfyproxy.core.needs import Needs


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job on the board; two of them are never equal."""

    job: Job
    needs: Needs | None = None  # what a backend must have for it; None where nobody has looked
    kind: str = ""  # of workflow: those of one kind take about the same time
    priority: int = 0  # the larger, the more urgent
    why: str = ""  # it goes where it goes, for people
    is_claimed: bool = False  # whoever takes it in sends it, once the scheduler says where to
    is_admitted: bool = False  # its client has been, or is being, told 200: it counts and shows in the queue
    is_running: bool = False
    node: str | None = None  # the node that runs
    is_gapless: bool = True  # the link has stood since it was sent
    executed: set[str] = field(default_factory=set)  # nodes whose outputs the client has been told of
    tail: list[str] = field(default_factory=list)  # messages held until the history entry is stored
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    unreachable: frozenset[BackendId] = frozenset()  # could not be reached with it lately
    losses: list[str] = field(default_factory=list)  # how its earlier runs ended, for people
    ghosts: set[BackendId] = field(default_factory=set)  # where such a run may still be: not to be sent there
    was_moved_for_memory: bool = False  # it ran out of memory once, and got another backend for that
    refused: dict[BackendId, str] = field(default_factory=dict)  # said no to it, and in which words
    client_graph: bool = False  # the dispatched graph was rewritten: history shows the client's own
    # The client's spellings of models -> those of the backend that has the job. Not stored: a job that was sent before
    # a restart of the proxy shows the backend's, just as its history shows the graph that was sent.
    spellings: Mapping[str, str] = field(default_factory=dict)
    is_settling: bool = False
    is_visitor: bool = False  # on its backend only to be judged; takes no slot
    is_counted: bool = False  # the run that its backend has taken on is among the job's attempts
    moving: asyncio.Event | None = None  # set when what is under way between the proxy and a backend has ended
    sent_s: float = 0.0  # monotonic; when its sending began
    heard_s: float = 0.0  # monotonic; when its backend last told of it

    @property
    def prompt_id(self) -> str:
        """The id that its client knows."""
        return self.job.prompt_id

    def depart(self) -> None:
        """Mark the job as being sent or taken back; whoever else wants to move it waits until it is at rest again.

        It costs an event only while it lasts: of a hundred thousand waiting jobs few are on the move.
        """
        if self.moving is not None:
            raise RuntimeError(f"prompt {self.prompt_id} is on the move already")
        self.moving = asyncio.Event()

    def rest(self) -> None:
        """Mark the job as being where it is said to be."""
        moving, self.moving = self.moving, None
        if moving is not None:
            moving.set()

    async def at_rest(self) -> None:
        """Wait until nobody moves the job."""
        while self.moving is not None:
            await self.moving.wait()

    @asynccontextmanager
    async def transition(self) -> AsyncIterator[None]:
        """Move the job, after all who began before; its state has to be looked at anew inside."""
        await self.at_rest()
        self.depart()
        try:
            yield
        finally:
            self.rest()

    def forget_run(self) -> None:
        """Let go of what belongs to a run that will be done again."""
        self.tail.clear()
        self.executed.clear()
        self.is_gapless = True
        self.is_settling = self.is_visitor = self.is_counted = False
        self.why = ""
