"""Which backend gets a job: pure ranking of candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

from comfyproxy.core.jobs import BackendId


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a strategy may know of a backend."""

    backend: BackendId
    in_flight: int  # our jobs there
    foreign: int  # prompts that others put there past the proxy
    max_concurrent: int
    is_warm: bool = False  # ran this client's last prompt: its node cache and models are loaded

    @property
    def load(self) -> int:
        """Prompts before the one to be placed."""
        return self.in_flight + self.foreign

    @property
    def is_available(self) -> bool:
        """Whether it may take one more.

        Strangers' prompts count against the bound, but never keep our last one out: else a server that others use
        all the time would never run a job of ours.
        """
        return self.load < self.max_concurrent or self.in_flight == 0


def rank_least_loaded(candidates: Sequence[Candidate], *, turn: int) -> list[BackendId]:
    """Backends to try, emptiest first; empty if all are full.

    Among equals the warm one comes first; ties rotate with `turn`: a strict minimum would starve the later of two
    equals.
    """
    count = len(candidates)
    available = [
        (candidate.load, not candidate.is_warm, (index - turn) % count, candidate.backend)
        for index, candidate in enumerate(candidates)
        if candidate.is_available
    ]
    return [backend for *_, backend in sorted(available)]
