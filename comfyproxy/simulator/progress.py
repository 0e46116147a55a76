"""How far the nodes of the running prompt are, and the messages that say so.

Source: ComfyUI 0.25.0, `comfy_execution/progress.py`, `main.py` (`hijack_progress`), `comfy/utils.py` (`ProgressBar`).
"""

from collections.abc import Callable
from typing import Any

from .sockets import Preview, Sockets

_MIN_INTERVAL_S = 0.1 - 1e-6  # ten steps of 10 ms are no less than 100 ms
_MIN_PERCENT = 0.5


class Progress:
    """The progress of all nodes of one prompt, told to its client (to everybody if it has none)."""

    def __init__(self, prompt_id: str, client_id: str | None, sockets: Sockets, check: Callable[[], None]) -> None:
        self._prompt_id, self._client_id, self._sockets, self._check = prompt_id, client_id, sockets, check
        self._nodes: dict[str, dict[str, Any]] = {}

    def start(self, node_id: str) -> None:
        self._set(node_id, 0.0, 1.0, "running")

    def finish(self, node_id: str) -> None:
        most = self._nodes.get(node_id, {}).get("max", 1)
        self._set(node_id, most, most, "finished")

    def report(self, node_id: str, value: float, most: float, preview: Preview | None) -> None:
        """Tell of a step. Raises whatever the check raises, when the prompt was interrupted."""
        self._check()
        self._set(node_id, value, most, "running")
        knows_metadata = self._sockets.supports(self._client_id, "supports_preview_metadata")
        if preview is not None and knows_metadata:
            self._sockets.send_preview(preview, self._client_id, self._place(node_id))
        data = {"value": value, "max": most, "prompt_id": self._prompt_id, "node": node_id}
        self._sockets.send("progress", data, self._client_id)
        if preview is not None and not knows_metadata:
            self._sockets.send_preview(preview, self._client_id)

    def _set(self, node_id: str, value: float, most: float, state: str) -> None:
        self._nodes[node_id] = {"value": value, "max": most, "state": state}
        nodes = {known: {**entry, **self._place(known)} for known, entry in self._nodes.items()}
        self._sockets.send("progress_state", {"prompt_id": self._prompt_id, "nodes": nodes}, self._client_id)

    def _place(self, node_id: str) -> dict[str, Any]:
        return {
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }


class ProgressBar:
    """A node's own view of its progress; newer versions leave out steps that come fast."""

    def __init__(self, progress: Progress, node_id: str, total: int, *, clock: Callable[[], float] | None) -> None:
        """Take the clock that tells fast steps, in seconds; None to report them all."""
        self._progress, self._node_id, self._total, self._clock = progress, node_id, total, clock
        self._told_at = 0.0
        self._told = -1

    def update(self, value: int, preview: Preview | None = None) -> None:
        """Report that `value` steps of the total are done."""
        value = min(value, self._total)
        now = self._clock() if self._clock else 0.0
        if self._clock and preview is None and self._told >= 0 and value < self._total:
            percent = (value - max(0, self._told)) / self._total * 100 if self._total > 0 else 100
            if now - self._told_at < _MIN_INTERVAL_S or percent < _MIN_PERCENT:
                return
        self._progress.report(self._node_id, value, self._total, preview)
        self._told_at, self._told = now, value
