"""An example of a strategy: few servers work for what is not urgent, so that the others may sleep."""

from collections.abc import Sequence

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.strategies import Candidate
from comfyproxy.core.scheduling.types import Request


class NightShift:
    """Urgent prompts go to the emptiest server; all others fill up the fullest one that still has room."""

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        """Return the servers to try, best first; `sorted` leaves equals as they come, longest unused first."""
        is_urgent = job.priority > 0
        ordered = sorted(candidates, key=lambda each: each.load if is_urgent else -each.load)
        return [each.backend for each in ordered]
