"""The payloads of unfinished jobs: the newest in memory, within a bound, the rest in the store."""

from collections import OrderedDict

from comfyproxy.core.jobs import Payload
from comfyproxy.core.ports import JobStore


class PayloadLost(LookupError):
    """The store has a job and not what it asks for: somebody has changed it by hand."""


class PayloadCache:
    """A byte-bounded cache in front of the store, so that a hundred thousand waiting graphs fit on the disk."""

    def __init__(self, store: JobStore, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._payloads: OrderedDict[str, Payload] = OrderedDict()
        self._bytes = 0

    def remember(self, prompt_id: str, payload: Payload) -> None:
        """Keep a payload in memory; the oldest make room."""
        self.forget(prompt_id)
        self._payloads[prompt_id] = payload
        self._bytes += _size(payload)
        while self._bytes > self._max_bytes and len(self._payloads) > 1:
            _, oldest = self._payloads.popitem(last=False)
            self._bytes -= _size(oldest)

    def forget(self, prompt_id: str) -> None:
        """Let go of a payload."""
        if (payload := self._payloads.pop(prompt_id, None)) is not None:
            self._bytes -= _size(payload)

    async def get(self, prompt_id: str) -> Payload:
        """Return an unfinished job's payload. Raises StoreUnavailable, PayloadLost."""
        if (payload := self._payloads.get(prompt_id)) is not None:
            return payload
        payload = (await self._store.payloads([prompt_id])).get(prompt_id)
        if payload is None:
            raise PayloadLost(prompt_id)
        self.remember(prompt_id, payload)
        return payload


def _size(payload: Payload) -> int:
    return len(payload.graph) + len(payload.extra_data) + len(payload.rest)
