"""What handlers need of the service that more than one class could give, as protocols."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from comfyproxy.core.jobs import Job


class Control(Protocol):
    """Whoever ends jobs before their time."""

    async def cancel(self, prompt_ids: Sequence[str]) -> set[str]:
        """Cancel what waits or runs; return the ids of those that did and are being cancelled."""

    async def known(self, prompt_id: str) -> bool:
        """Whether there is, or was, such a job."""


class Board(Protocol):
    """The unfinished jobs, as the status page shows them."""

    @property
    def count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...  # on no backend
    def unfinished(self) -> Iterable[Job]: ...
    def is_running(self, prompt_id: str) -> bool: ...
