"""Queue items that were rendered before: a poll of a long queue renders only what is new."""

from collections.abc import Container

from comfyproxy.core.jobs import Job


class Rendered:
    """Rendered items by job, within a bound.

    What is in stays in until its job is gone. To make room for the newest instead would, where the queue is longer than
    the bound, throw out each item just before the next poll asks for it.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: dict[str, tuple[tuple[object, ...], bytes]] = {}
        self._bytes = 0

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self._bytes

    def get(self, job: Job, *, create_time: bool) -> bytes | None:
        """Return the item, if it is kept and nothing that it shows has changed."""
        kept = self._items.get(job.prompt_id)
        return kept[1] if kept is not None and kept[0] == _shown(job, create_time) else None

    def put(self, job: Job, item: bytes, *, create_time: bool) -> None:
        """Keep an item if there is room."""
        self._drop(job.prompt_id)
        if self._bytes + len(item) <= self._max_bytes:
            self._items[job.prompt_id] = _shown(job, create_time), item
            self._bytes += len(item)

    def retain(self, prompt_ids: Container[str]) -> None:
        """Forget the items of all other jobs."""
        for prompt_id in [prompt_id for prompt_id in self._items if prompt_id not in prompt_ids]:
            self._drop(prompt_id)

    def _drop(self, prompt_id: str) -> None:
        if (kept := self._items.pop(prompt_id, None)) is not None:
            self._bytes -= len(kept[1])


def _shown(job: Job, create_time: bool) -> tuple[object, ...]:
    """Return what of an item may change."""
    return job.number, job.outputs_to_execute, create_time
