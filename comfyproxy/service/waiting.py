"""The jobs that wait here, in the order in which they are to go out.

Jobs that the same backends can run stand in one line, and only the heads of the lines are looked at: a thousand jobs
that wait for one absent backend do not stand in the way of all others.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable

from comfyproxy.core.jobs import BackendId
from comfyproxy.service.live import LiveJob

_Entry = tuple[float, int, LiveJob]


class Waiting:
    """Lines of jobs, each by number and then by arrival."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, list[_Entry]] = {}
        self._entries: dict[str, tuple[Hashable, int]] = {}  # prompt id -> its line, and its place in the order
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._entries

    def add(self, live: LiveJob) -> None:
        """Let a job wait; one that waits already keeps its turn, and stands in the line where it belongs now."""
        before = self._entries.get(live.prompt_id)
        key, order = _line_of(live), next(self._order) if before is None else before[1]
        if before is not None:
            if before[0] == key:
                return
            self.discard(live)
        self._entries[live.prompt_id] = key, order
        heapq.heappush(self._lines.setdefault(key, []), (live.job.number, order, live))

    def discard(self, live: LiveJob) -> None:
        """Let a job wait no longer; unknown ones do not matter."""
        found = self._entries.pop(live.prompt_id, None)
        if found is not None:
            self._head(found[0])  # a line of nobody is removed

    def first_number(self) -> float | None:
        """Return the number of the job that comes first."""
        heads = [head for key in list(self._lines) if (head := self._head(key)) is not None]
        return min(heads)[0] if heads else None

    def take(self, wanted: Callable[[LiveJob], BackendId | None], *, look: int) -> tuple[LiveJob, BackendId] | None:
        """Take out the first job for which `wanted` names a backend.

        Args:
            look: lines to look at before giving up.
        """
        heads = [(head, key) for key in list(self._lines) if (head := self._head(key)) is not None]
        for (_, _, live), _ in heapq.nsmallest(look, heads, key=lambda found: found[0][:2]):
            if (backend := wanted(live)) is not None:
                self.discard(live)
                return live, backend
        return None

    def _head(self, key: Hashable) -> _Entry | None:
        """Return the first of a line, less those that wait no longer."""
        line = self._lines.get(key)
        if line is None:
            return None
        while line:
            entry = line[0]
            if self._entries.get(entry[2].prompt_id) == (key, entry[1]):
                return entry
            heapq.heappop(line)
        del self._lines[key]
        return None


def _line_of(live: LiveJob) -> Hashable:
    """Return what tells which backends may have a job; one with a history of its own stands alone."""
    if live.refused or live.unreachable or live.ghosts:
        return live.prompt_id
    return live.job.pinned, live.classes
