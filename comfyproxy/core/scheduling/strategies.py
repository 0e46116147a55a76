"""How a backend is chosen for a job: the strategies by the names that users know.

A strategy only ranks backends that can run the job and have room for it; whose turn it is among the jobs is the queue's
affair. `model_affinity` alone looks at more than one job at a time: see `affinity`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.types import Request

LAST = 1_000_000  # where a backend stands that nobody gave a priority


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a strategy may know of a backend.

    Attributes:
        load: prompts there, ours and those that others put there past the proxy.
        weight: as configured, else the measured speed: 2.0 takes half the time that 1.0 takes.
        last_turn: when it was chosen last, counted in choices; 0 for never.
        is_warm: it ran this client's last prompt: its node cache and its models are loaded.
    """

    backend: BackendId
    load: int
    max_concurrent: int
    weight: float = 1.0
    priority: int = LAST
    last_turn: int = 0
    is_warm: bool = False


class Strategy(Protocol):
    """What a plugin provides: an object with this method, made without arguments."""

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        """Return the backends to try, best first.

        Args:
            candidates: those that can run the job and have room, longest unused first; never empty.

        A backend that is left out does not get the job now; if all are, the job waits. Same arguments, same answer.
        """


class Keyed:
    """A strategy whose ranking does not depend on the job, so that it can be kept instead of being made each time.

    The smallest key comes first; among equals the warm backend, and then the one that was chosen longest ago: a strict
    minimum would starve the later of two equals.
    """

    stays_warm = True  # whether equals are told apart by whom the client knows

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Return what sorts a backend."""
        raise NotImplementedError

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        """Rank from nothing, as a plugin would."""
        ordered = sorted(
            candidates, key=lambda each: (self.key(each), not (each.is_warm and self.stays_warm), each.last_turn)
        )
        return [each.backend for each in ordered]


class LeastLoaded(Keyed):
    """The one with the fewest prompts."""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort by load."""
        return (candidate.load,)


class RoundRobin(Keyed):
    """One after the other."""

    stays_warm = False

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort by turn alone."""
        return ()


class Weighted(Keyed):
    """Shares in proportion to weight: the one whose queue, with one more, is shortest for its weight."""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort by prompts per weight."""
        return ((candidate.load + 1) / candidate.weight,)


class PriorityBased(Keyed):
    """The best ones first, the next only when the better are full."""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort by priority, then load."""
        return (candidate.priority, candidate.load)


class ModelAffinity(Keyed):
    """Where a job is expected to finish first, which depends on what is in memory: `affinity` does the choosing."""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort by load, the much faster ones first: the order in which backends are looked at."""
        return (candidate.load, -round(math.log2(candidate.weight)))


BUILT_IN: dict[str, type[Keyed]] = {
    "model_affinity": ModelAffinity,
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "priority_based": PriorityBased,
}
NAMES = tuple(BUILT_IN)


def make_strategy(name: str) -> Strategy:
    """Return a built-in strategy. Raises KeyError for another name."""
    return BUILT_IN[name]()
