"""What handlers need of the service that more than one class could give, as protocols."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from comfyproxy.core.jobs import Job
from comfyproxy.service.submissions import Receipt


class Control(Protocol):
    """Whoever ends jobs before their time."""

    async def cancel(self, prompt_ids: Sequence[str]) -> set[str]:
        """Cancel what waits or runs; return the ids of those that did and are being cancelled."""

    async def known(self, prompt_id: str) -> bool:
        """Whether there is, or was, such a job."""

    async def delete_pending(self, prompt_ids: Iterable[str]) -> None:
        """Cancel those that wait."""

    async def clear_pending(self) -> None:
        """Cancel all that wait."""

    async def interrupt(self, prompt_id: str | None) -> None:
        """Stop a prompt if it runs; without an id, all that run."""

    async def free(self, body: bytes) -> None:
        """Let every backend free memory."""


class Submissions(Protocol):
    """Whoever takes prompts in."""

    async def submit(self, body: bytes, *, asked: Mapping[str, Any] | None = None) -> Receipt:
        """Take a prompt in, with the options of its headers, and return the answer for its client."""


class Board(Protocol):
    """The unfinished jobs, as the status page shows them."""

    @property
    def count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...  # on no backend
    def job(self, prompt_id: str) -> Job | None: ...
    def unfinished(self) -> Iterable[Job]: ...
    def is_running(self, prompt_id: str) -> bool: ...
