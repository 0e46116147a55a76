"""Nothing is told of a prompt before the answer to its POST is out.

A ComfyUI writes that answer before its worker begins (0.25.0, `server.py`, `post_prompt`), and libraries that hand
events out by prompt id rely on it: they drop what names an id that they have not been given yet.
"""

from collections.abc import Callable
from functools import partial

from comfyproxy.service.ports import Streams

# A backend that has taken a prompt on is followed by its answer within milliseconds; nobody should need so much.
MAX_BYTES = 16 * 1024 * 1024


class Answering:
    """Streams that hold back, in order, what is told of prompts that are being submitted.

    Args:
        max_bytes: how much may be held of all prompts together. What would be more ends the holding of its prompt.
    """

    def __init__(self, streams: Streams, *, max_bytes: int = MAX_BYTES) -> None:
        self._streams, self._max_bytes = streams, max_bytes
        self._held: dict[str, list[Callable[[], None]]] = {}
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def hold(self, prompt_id: str) -> None:
        """Hold back what is told of a prompt from now on."""
        self._held.setdefault(prompt_id, [])

    def release(self, prompt_id: str) -> None:
        """Tell what was held of a prompt, and hold no more; without a `hold` before it is nothing."""
        self._bytes -= self._sizes.pop(prompt_id, 0)
        for tell in self._held.pop(prompt_id, ()):
            tell()

    def deliver_text(self, client_id: str | None, message: str, *, event: str, prompt_id: str | None) -> None:
        """Send a message to a client; see `Streams`."""
        tell = partial(self._streams.deliver_text, client_id, message, event=event, prompt_id=prompt_id)
        self._tell(prompt_id, tell, len(message))

    def deliver_binary(self, client_id: str | None, frame: bytes, *, prompt_id: str | None = None) -> None:
        """Send a binary message to a client."""
        tell = partial(self._streams.deliver_binary, client_id, frame, prompt_id=prompt_id)
        self._tell(prompt_id, tell, len(frame))

    def deliver_preview(self, client_id: str | None, frame: bytes, progress: str, *, prompt_id: str) -> None:
        """Send a preview and its progress to a client."""
        tell = partial(self._streams.deliver_preview, client_id, frame, progress, prompt_id=prompt_id)
        self._tell(prompt_id, tell, len(frame) + len(progress))

    def broadcast_text(self, message: str, *, coalesce_key: str | None = None) -> None:
        """Send a message to everybody, at once."""
        self._streams.broadcast_text(message, coalesce_key=coalesce_key)

    def broadcast_binary(self, frame: bytes) -> None:
        """Send a binary message to everybody, at once."""
        self._streams.broadcast_binary(frame)

    def _tell(self, prompt_id: str | None, tell: Callable[[], None], size: int) -> None:
        if prompt_id is not None and self._bytes + size > self._max_bytes:
            self.release(prompt_id)
        if prompt_id is None or prompt_id not in self._held:
            tell()
            return
        self._held[prompt_id].append(tell)
        self._sizes[prompt_id] = self._sizes.get(prompt_id, 0) + size
        self._bytes += size
